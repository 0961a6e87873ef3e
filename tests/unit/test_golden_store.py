"""Golden files: what is recorded, what is left alone, and what is refused."""

import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcache.gate import samples as sampled
from streamcache.gate import storage
from streamcache.gate.environment import Environment, merged
from streamcache.gate.goldens import Entry, Golden, GoldenError, Provenance, PublishedRange
from streamcache.gate.samples import Metric, Process, SampleError
from streamcache.gate.updates import entry_of, updated
from streamcache.gate.validation import golden_error, noise_errors, validation_error
from tests.goldens import (
    HERE,
    NAME,
    PROVENANCE,
    RATIOS,
    altered,
    golden,
    processes,
    sample,
    samples,
)

LATER = Provenance("a faster kernel", "2026-02-28T12:00:00+00:00", "decaf", 5)
GOLDEN = golden()
ELSEWHERE = Environment({"device": "other"}, HERE.host, {}, HERE.canaries)
NEXT_DOOR = Environment(HERE.machine, {"cpu": "slide rule"}, {}, {"host product": 2e-3})


def update(
    old: Golden | None, found: list[Process], new_only: bool = False, reset_anchors: bool = False
) -> tuple[Golden, list[str]]:
    return updated(old, found, LATER, new_only, reset_anchors)


def renamed(found: list[Process], name: str) -> list[Process]:
    return [
        Process(p.environment, [*p.samples, msgspec.structs.replace(p.samples[0], name=name)])
        for p in found
    ]


# Files


def test_a_golden_file_that_is_written_is_read_back(tmp_path: Path) -> None:
    storage.write(tmp_path / "toy.json", GOLDEN)
    assert storage.read(tmp_path / "toy.json") == GOLDEN


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_golden_with_a_flipped_bit_is_refused_or_says_the_same(
    tmp_path: Path, every: int
) -> None:
    """A digit of a time, a tolerance, a name."""
    path = tmp_path / "toy.json"
    storage.write(path, GOLDEN)
    data, n_refused = path.read_bytes(), 0
    bits = range(0, 8 * len(data), every)
    for bit in bits:
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        path.write_bytes(other)
        try:
            assert storage.read(path) == GOLDEN, bit
        except GoldenError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            n_refused += 1
    assert n_refused > 0.75 * len(bits), "the others are of white space"


def test_a_golden_that_was_edited_says_how_to_keep_the_edit(tmp_path: Path) -> None:
    path = tmp_path / "toy.json"
    storage.write(path, GOLDEN)
    edited = path.read_text().replace("20.5", "30.5")
    path.write_text(edited)
    with pytest.raises(GoldenError, match=r'edited: .* remove the line "checksum"'):
        storage.read(path)
    lines = [line for line in edited.splitlines() if '"checksum"' not in line]
    path.write_text("\n".join(lines))
    assert storage.read(path).entries[NAME].metrics["ppl"].max_value == 30.5


@given(st.permutations(["b::x", "a::y", "c::z", NAME]))
def test_writing_is_in_one_order_and_again_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "order.json"
    entries = {name: GOLDEN.entries[NAME] for name in names}
    storage.write(path, msgspec.structs.replace(GOLDEN, entries=entries))
    first = path.read_bytes()
    storage.write(path, storage.read(path))
    assert path.read_bytes() == first
    keys = list(json.loads(first)["entries"])
    assert keys == sorted(keys)
    assert first.endswith(b"}\n"), "a text file, for diffs"


def test_a_golden_that_is_not_there_says_how_to_record_one(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="record one with --golden-update"):
        storage.read(tmp_path / "none.json")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    """It may have no end."""
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.json")
        with pytest.raises(GoldenError, match=r"pipe\.json: not a regular file"):
            storage.read(tmp_path / "pipe.json")
    (tmp_path / "long.json").write_bytes(b" " * ((1 << 25) + 1))
    with pytest.raises(GoldenError, match=r"long\.json: longer than 32 MiB"):
        storage.read(tmp_path / "long.json")


def encoded(**fields: Any) -> bytes:
    plain = json.loads(msgspec.json.encode(GOLDEN))
    return json.dumps({**plain, **fields}).encode()


def entry(**fields: Any) -> bytes:
    plain = json.loads(msgspec.json.encode(GOLDEN.entries[NAME]))
    return encoded(entries={NAME: {**plain, **fields}})


NO_TIMES: dict[str, Any] = {
    "log_ratios": [],
    "baselines_s": [],
    "candidates_s": [],
    "anchor": None,
}
FIGURE = {"value": 20.0, "rel_tol": 1e-3}
MADE = msgspec.to_builtins(PROVENANCE)
KEY = NAME.encode()
BROKEN = {
    "empty": (b"", "cut off"),
    "cut off": (msgspec.json.encode(GOLDEN)[:200], "cut off"),
    "not JSON": (b"\x00\xff\xfe", "not JSON"),
    "not a number": (b'{"schema": NaN}', "not JSON"),
    "out of range": (b'{"schema": 1e999}', "out of range"),
    "a list": (b"[]", "not a golden file"),
    "foreign": (b'{"machine_info": {}, "benchmarks": []}', "not a golden file"),
    "another schema": (encoded(schema="pytest-benchmark"), "not a golden file"),
    "the future": (encoded(version=3), "version 3, this release reads 2"),
    "the past": (encoded(version=1), r"reads 2: python -m streamcache.gate.convert .*toy.json"),
    "no version": (encoded(version=None), "version None"),
    "another protocol": (encoded(protocol=7), "protocol 7"),
    "a field of another type": (encoded(machine=3), r"object.*machine"),
    "too few processes": (entry(log_ratios=[-1.0]), "at least 5 processes"),
    "an entry without numbers": (entry(log_ratios=[None] * 5), "log_ratios"),
    "a time of zero": (entry(baselines_s=[0.0] * 5), "zero"),
    "a canary of zero": (encoded(canaries={"host product": 0.0}), "canary"),
    "an upside-down band": (
        entry(**NO_TIMES, published_range={"low": 2.0, "high": 1.0}),
        "is no range",
    ),
    "times and a band": (
        entry(published_range={"low": 1.0, "high": 2.0}),
        "both times and a published range",
    ),
    "no text": (b'{"schema": "\xff\xfe"}', "not JSON"),
    "too deep": (b"[" * 100_000, "not JSON"),
    "a log-ratio beyond any": (
        entry(log_ratios=[-1.0] * 4 + [1e308]),
        "between -100 and 100",
    ),
    "an anchor of nothing": (entry(anchor=None), "needs an anchor"),
    "an anchor without times": (entry(**{**NO_TIMES, "anchor": 0.0}), "needs an anchor"),
    "an anchor that holds nothing": (entry(anchor=5.0), "too far away"),
    "an empty entry": (encoded(entries={NAME: {"identity": {"model": "toy"}}}), "holds nothing"),
    "an unknown field": (encoded(comment="tau"), "unknown field `comment`"),
    "a misspelt field": (entry(anchr=-1.0), "unknown field `anchr`"),
    "a misspelt tolerance": (entry(metrics={"ppl": FIGURE | {"atmost": 1.0}}), "`atmost`"),
    "a key twice": (
        encoded().replace(b'"anchor"', b'"anchor": 9, "anchor"'),
        "duplicate key 'anchor'",
    ),
    "an entry twice": (
        encoded().replace(b'"entries": {', b'"entries": {"%s": {}, ' % KEY),
        "duplicate key",
    ),
    "times of nobody": (encoded(provenance={**MADE, "processes": 0}), "provenance.processes is 0"),
    "times of fewer": (encoded(provenance={**MADE, "processes": -1}), "provenance.processes is -1"),
    "a tolerance that lets all pass": (
        entry(metrics={"ppl": FIGURE | {"rel_tol": 1e9}}),
        "rel_tol is 1000000000.0: it must be between 0 and 10",
    ),
    "a publication with an entry of its own": (
        encoded(
            provenance={**MADE, "processes": 0},
            entries={NAME: {"identity": {}, "metrics": {"ppl": FIGURE}}},
        ),
        "an entry is not of a publication",
    ),
    "a scatter that lets all pass": (entry(log_ratios=[-1.1, -1.05, -1, -0.95, -0.9]), "27 %"),
    "one baseline of no time": (entry(baselines_s=[0.1] * 4 + [1e-10]), "twice its time"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_golden_is_refused_in_a_line_and_left_alone(how: str, tmp_path: Path) -> None:
    data, says = BROKEN[how]
    path = tmp_path / "toy.json"
    path.write_bytes(data)
    with pytest.raises(GoldenError, match=says) as caught:
        storage.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert path.read_bytes() == data


def test_a_golden_of_figures_alone_is_one(tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_bytes(entry(**NO_TIMES))
    assert storage.read(tmp_path / "toy.json").entries[NAME].metrics


# An entry


def test_an_entry_holds_what_each_process_measured() -> None:
    one = entry_of(samples())
    assert one.log_ratios == pytest.approx(list(RATIOS))
    assert one.anchor == pytest.approx(-1.0)
    assert one.baselines_s == pytest.approx([0.1] * 5)
    assert one.candidates_s == pytest.approx([0.1 * math.exp(r) for r in RATIOS], rel=2e-3)
    assert one.metrics == {"ppl": Metric(20.0, 1e-3, 20.5)}
    assert one.equal == {"positions": 100} and one.identity == {"model": "toy"}


def test_a_baseline_is_as_quick_as_it_ever_was_in_a_process() -> None:
    disturbed = [(a, 3 * b) if i else (a, b) for i, (a, b) in enumerate(sample().pairs)]
    assert entry_of(samples(pairs=disturbed)).baselines_s == [0.1] * 5


def test_a_figure_is_the_median_of_the_processes() -> None:
    values = (20.006, 20.0, 20.002, 20.004, 19.998)
    found = [sample(metrics={"ppl": Metric(value, 1e-3)}) for value in values]
    assert entry_of(found).metrics["ppl"].value == 20.002


def test_a_benchmark_that_measured_nothing_makes_no_entry() -> None:
    with pytest.raises(GoldenError, match=f"{NAME}: it holds nothing"):
        entry_of(samples(pairs=[], metrics={}, equal={}))


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"identity": {"model": "other"}}, "same thing"),
        ({"equal": {"positions": 99}}, "same thing"),
        ({"metrics": {}}, "same thing"),
        ({"pairs": []}, "same thing"),
        ({"pairs": [(math.nan, 0.1)] * 10}, "log-ratio is not a number"),
        ({"pairs": [(0.0, 0.1)] * 10}, "log-ratio is not a number"),
        ({"metrics": {"ppl": Metric(20.0, 2e-3, 20.5)}}, "same thing"),
        ({"metrics": {"ppl": Metric(20.0, 1e-3, 20.4)}}, "same thing"),
        ({"metrics": {"ppl": Metric(math.nan, 1e-3, 20.5)}}, "beyond its tolerance"),
        (
            {"metrics": {"ppl": Metric(20.1, 1e-3, 20.5)}},
            "20 and 20.1: beyond its tolerance",
        ),
    ],
)
def test_processes_that_differ_make_no_entry(odd: dict[str, Any], says: str) -> None:
    with pytest.raises(GoldenError, match=says):
        entry_of([*samples()[1:], sample(**odd)])


def test_a_figure_over_its_budget_makes_no_entry() -> None:
    with pytest.raises(GoldenError, match="ppl is 20, max_value is 19"):
        entry_of(samples(metrics={"ppl": Metric(20.0, 1e-3, max_value=19.0)}))


# An update


def test_a_first_record_says_what_it_holds() -> None:
    found, changes = updated(None, processes(), PROVENANCE)
    assert found == GOLDEN
    assert changes == [f"+ {NAME}: ppl 20, speedup 2.718 (tau 3.0 %)"]
    assert found.machine == HERE.machine and found.canaries == HERE.canaries


def test_an_update_keeps_entries_that_moved_by_less_than_a_third_of_tau() -> None:
    found, changes = update(GOLDEN, processes([r + 0.009 for r in RATIOS]))
    assert found is GOLDEN and changes == []


@pytest.mark.parametrize(
    "moved",
    [
        processes([r + 0.011 for r in RATIOS]),
        processes([r - 0.011 for r in RATIOS]),
        processes(baseline_s=0.11),
        processes(metrics={"ppl": Metric(20.01, 1e-3, 20.5)}),
        processes(metrics={"ppl": Metric(20.0, 2e-3, 20.5)}),
        processes(metrics={"ppl": Metric(20.0, 1e-3, 20.4)}),
        processes(equal={"positions": 101}),
    ],
)
def test_an_update_replaces_and_shows_entries_that_moved_by_more(moved: list[Process]) -> None:
    found, (change,) = update(GOLDEN, moved)
    assert change.startswith(f"~ {NAME}: ppl 20, speedup 2.718 (tau 3.0 %) -> ")
    assert found.provenance is LATER and found.earlier == [PROVENANCE]
    assert update(found, moved) == (found, [])


def test_an_update_replaces_only_entries_that_moved() -> None:
    """Nor does a figure follow what changes beside it."""
    ratios, was = [r + 0.009 for r in RATIOS], GOLDEN.entries[NAME]
    figure = {"ppl": Metric(20.001, 1e-3, 20.5)}
    found, _ = update(GOLDEN, processes(ratios, baseline_s=0.12, metrics=figure))
    now = found.entries[NAME]
    assert (now.log_ratios, now.metrics) == (was.log_ratios, was.metrics)
    assert now.baselines_s == pytest.approx([0.12] * 5)
    assert now.candidates_s[2] == pytest.approx(0.12 * math.exp(-0.991), rel=2e-3)
    found, _ = update(GOLDEN, processes([r + 0.02 for r in RATIOS], baseline_s=0.103))
    now = found.entries[NAME]
    assert now.baselines_s == was.baselines_s and now.log_ratios != was.log_ratios
    found, _ = update(GOLDEN, processes(ratios, equal={"positions": 1}, metrics=figure))
    now = msgspec.structs.replace(found.entries[NAME], recorded=was.recorded)
    assert now == msgspec.structs.replace(was, equal={"positions": 1})


def test_a_baseline_is_left_alone_within_a_third_of_its_own_threshold() -> None:
    apart = altered(GOLDEN, baselines_s=[0.08, 0.09, 0.1, 0.11, 0.12])
    guard = apart.entries[NAME].guard
    assert guard == pytest.approx(0.481, abs=1e-3)
    then = math.exp(statistics.fmean(map(math.log, apart.entries[NAME].baselines_s)))
    assert update(apart, processes(baseline_s=then * math.exp(0.9 * guard / 3))) == (apart, [])
    assert update(apart, processes(baseline_s=then * math.exp(1.1 * guard / 3)))[1]


def test_more_processes_than_before_replace_what_moved() -> None:
    ten = [*RATIOS, *RATIOS]
    found, _ = update(GOLDEN, processes(ten, baseline_s=0.12))
    now = found.entries[NAME]
    assert (len(now.log_ratios), len(now.baselines_s)) == (5, 10) and not validation_error(now)


def test_an_update_that_leaves_the_range_of_the_anchor_is_refused() -> None:
    with pytest.raises(GoldenError, match=r"anchor .* delete the entry to record it again"):
        update(GOLDEN, processes([r - 2.5 for r in RATIOS]))


@given(st.floats(-0.1, 0.1))
def test_an_update_is_taken_or_left_as_a_whole(moved: float) -> None:
    found, changes = update(GOLDEN, processes([r + moved for r in RATIOS]))
    assert (found is GOLDEN) == (not changes)
    if abs(abs(moved) - 0.01) > 1e-6:
        assert bool(changes) == (abs(moved) > 0.01)


def test_the_anchor_stays_through_updates() -> None:
    first = processes([r + 0.02 for r in RATIOS])
    second = processes([r + 0.04 for r in RATIOS])
    found = update(update(GOLDEN, first)[0], second)[0].entries[NAME]
    assert found.anchor == GOLDEN.entries[NAME].anchor
    assert sum(found.log_ratios) / 5 == pytest.approx(-0.96)


def test_an_anchor_of_zero_is_one() -> None:
    even = golden([0.0] * 5)
    found = update(even, processes([0.02] * 5))[0].entries[NAME]
    assert found.anchor == 0.0


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ({"identity": {"model": "other"}}, "its identity changed: model is 'other', not 'toy'"),
        ({"identity": {"model": "toy", "priority": 1}}, "priority is 1, not None"),
        ({"host_bound": False}, "host times became device times"),
        ({"pairs": []}, "it has no times now"),
        ({"where": NEXT_DOOR}, "its times are of another host CPU"),
    ],
)
def test_an_update_that_would_forget_an_anchor_names_it_and_needs_a_flag_of_its_own(
    now: dict[str, Any], why: str
) -> None:
    """A slower benchmark of another identity would otherwise be accepted without its anchor."""
    slower = processes([r + 0.1 for r in RATIOS], **now)
    with pytest.raises(GoldenError, match="anchors would be reset") as caught:
        update(GOLDEN, slower)
    for part in (NAME, why, "--golden-reset-anchors"):
        assert part in str(caught.value)
    found, (change,) = update(GOLDEN, slower, reset_anchors=True)
    anchor = found.entries[NAME].anchor
    assert anchor == (None if "pairs" in now else pytest.approx(-0.9))
    assert "its anchor is reset, it was 2.718" in change
    assert found.earlier == [PROVENANCE]


def test_a_loss_beyond_the_anchors_budget_is_accepted_with_the_same_flag_and_no_other() -> None:
    slower, faster = (processes([r + moved for r in RATIOS]) for moved in (0.1, -0.1))
    assert update(GOLDEN, slower)[0].entries[NAME].anchor == pytest.approx(-1.0)
    found, (change,) = update(GOLDEN, slower, reset_anchors=True)
    assert found.entries[NAME].anchor == pytest.approx(-0.9) and "is reset" in change
    found, (change,) = update(GOLDEN, faster, reset_anchors=True)
    assert found.entries[NAME].anchor == pytest.approx(-1.0) and "is reset" not in change


def test_an_update_shows_a_tolerance_that_it_loosens() -> None:
    loose = processes(metrics={"ppl": Metric(20.0, 0.5, 20.5)})
    _, (change,) = update(GOLDEN, loose)
    assert "ppl: rel_tol 0.001, max_value 20.5 becomes rel_tol 0.5, max_value 20.5" in change


def test_an_entry_says_which_record_it_is_of() -> None:
    both, _ = update(GOLDEN, renamed(processes(), "other"))
    assert both.entries["other"].recorded == LATER.date
    assert both.entries[NAME].recorded == PROVENANCE.date


def test_new_only_adds_and_touches_nothing_else() -> None:
    found, changes = update(GOLDEN, renamed(processes([-0.5] * 5), "new"), new_only=True)
    assert [c[:5] for c in changes] == ["+ new"]
    assert found.entries[NAME] is GOLDEN.entries[NAME]


def test_an_update_keeps_entries_that_were_not_measured() -> None:
    both, _ = update(GOLDEN, renamed(processes(), "other"))
    found, _ = update(both, processes([-0.5] * 5))
    assert found.entries["other"] is both.entries["other"]


def test_a_machine_slower_as_a_whole_does_not_move_its_baseline() -> None:
    slow = Environment(HERE.machine, HERE.host, {}, {"host product": 1.3e-3})
    assert update(GOLDEN, processes(where=slow, baseline_s=0.13)) == (GOLDEN, [])
    found, _ = update(GOLDEN, processes([-0.5] * 5, where=slow, baseline_s=0.13))
    assert found.entries[NAME].baselines_s == pytest.approx([0.1] * 5)


DEVICE = Environment(HERE.machine, HERE.host, {}, {"device copy": 1e-3, "host product": 1e-3})


@pytest.mark.parametrize(
    ("copy", "product", "host_bound", "recorded"),
    [
        (1.09, 1.0, True, True),
        (1.2, 1.0, True, False),
        (1.0, 3.0, True, False),
        (1.0, 3.0, False, True),
    ],
)
def test_a_machine_with_a_canary_out_of_band_is_not_recorded(
    copy: float, product: float, host_bound: bool, recorded: bool
) -> None:
    """As the gate does not judge there. One process of five is enough."""
    was = golden(where=DEVICE, host_bound=host_bound)
    canaries = {"device copy": copy * 1e-3, "host product": product * 1e-3}
    odd = msgspec.structs.replace(DEVICE, canaries=canaries)
    found = processes([-0.5] * 5, where=DEVICE, host_bound=host_bound)
    found[3] = Process(odd, found[3].samples)
    if recorded:
        assert update(was, found)[1]
    else:
        with pytest.raises(GoldenError, match="machine state out of tolerance: canary"):
            update(was, found)
    untimed = sample(name="untimed", pairs=[])
    assert update(was, [Process(odd, [untimed])] * 5)[1], "figures do not depend on it"
    if recorded:  # nor does it depend on them
        assert update(was, [Process(p.environment, [*p.samples, untimed]) for p in found])[1]


def test_two_versions_do_not_mix() -> None:
    newer = msgspec.structs.replace(HERE, context={"python": "4"})
    with pytest.raises(GoldenError, match="different versions"):
        update(None, [*processes()[:4], *processes(where=newer)[:1]])


def test_too_few_processes_are_refused() -> None:
    with pytest.raises(GoldenError, match="4 processes are too few, 5 are needed"):
        update(GOLDEN, processes(RATIOS[:4]))


def test_a_benchmark_that_only_some_measured_is_refused() -> None:
    found = processes()
    found[2] = Process(HERE, [])
    with pytest.raises(GoldenError, match="measured by 4 of 5"):
        update(None, found)


def test_two_machines_do_not_mix_in_one_golden() -> None:
    with pytest.raises(GoldenError, match="different machines"):
        update(None, [*processes()[:4], *processes(where=ELSEWHERE)[:1]])
    with pytest.raises(GoldenError, match=r"of another machine .*: use another name"):
        update(GOLDEN, processes(where=ELSEWHERE))


def test_two_hosts_do_not_mix_either() -> None:
    both, _ = update(GOLDEN, renamed(processes(), "other"))
    with pytest.raises(GoldenError, match=r"another host CPU .*; re-record all .*: other"):
        update(both, processes(where=NEXT_DOOR), reset_anchors=True)
    with pytest.raises(GoldenError, match="new ones alone are not enough"):
        update(GOLDEN, renamed(processes(where=NEXT_DOOR), "new"), new_only=True)
    found, changes = update(GOLDEN, processes(where=NEXT_DOOR), reset_anchors=True)
    assert len(changes) == 1 and found.host == NEXT_DOOR.host
    assert found.canaries == NEXT_DOOR.canaries


def test_figures_are_recorded_on_another_host_cpu_beside_times_of_the_first() -> None:
    """They are judged there, too."""
    figures = [Process(NEXT_DOOR, [sample(name="new", pairs=[])])] * 5
    found, changes = update(GOLDEN, figures)
    assert len(changes) == 1 and set(found.entries) == {NAME, "new"}
    assert (found.host, found.canaries) == (HERE.host, HERE.canaries)


def test_own_figures_replace_published_ones_where_they_were_measured() -> None:
    entry = Entry({"model": "toy"}, published=True, published_range=PublishedRange(2.0, 3.0))
    bands = {NAME: entry, "other": entry}
    published = Golden(Provenance("published", "", "", 0), {"device": "toy"}, {}, {}, bands)
    where = msgspec.structs.replace(HERE, machine={"device": "toy", "memory_gib": 80})
    found, changes = update(published, processes(where=where))
    assert len(changes) == 1 and found.machine == where.machine
    assert found.entries[NAME].log_ratios and not found.entries[NAME].published
    assert found.entries["other"] == entry
    assert found.earlier == [published.provenance] and not golden_error(found)
    with pytest.raises(GoldenError, match="of another machine"):
        update(published, processes(where=ELSEWHERE))


@pytest.mark.parametrize("seconds", [0.0, math.nan, math.inf])
def test_a_canary_without_a_time_is_not_recorded(seconds: float) -> None:
    where = Environment(HERE.machine, canaries={"host product": seconds})
    with pytest.raises(GoldenError, match="canary 'host product' has no time"):
        update(None, processes(where=where))


def test_a_golden_that_noise_has_widened_is_named() -> None:
    calm = golden([-1.03, -1.015, -1.0, -0.985, -0.97])
    assert noise_errors(GOLDEN) == noise_errors(calm) == noise_errors(golden(pairs=[])) == {}
    wild = golden([-1.1, -1.05, -1.0, -0.95, -0.9])
    assert noise_errors(wild) == {NAME: f"{NAME} is so noisy that a loss of 27 % would pass"}
    torn = altered(GOLDEN, baselines_s=[0.1, 0.1, 0.1, 0.1, 0.2])
    twice = f"{NAME} is so noisy that a baseline of twice its time would pass"
    assert noise_errors(torn) == {NAME: twice}


# Samples


def test_samples_are_read_as_written_and_from_a_benchmark_json(tmp_path: Path) -> None:
    (one,) = processes([-1.0])
    path = tmp_path / "out.json"
    path.write_bytes(msgspec.json.encode(one))
    assert sampled.read(path) == one
    section = {"version": 2, "process": msgspec.to_builtins(one), "verdicts": []}
    path.write_bytes(msgspec.json.encode({"benchmarks": [], "streamcache": section}))
    assert sampled.read(path) == one


def test_a_figure_that_is_nan_is_read_as_none(tmp_path: Path) -> None:
    numbers = {"ppl": Metric(math.nan, 1e-3), "nll": Metric(3.0, 1e-3, 4.0)}
    where = msgspec.structs.replace(HERE, canaries={"host product": math.nan})
    odd = Process(where, [sample(pairs=[(math.nan, 1.0)], metrics=numbers)])
    path = tmp_path / "out.json"
    path.write_bytes(msgspec.json.encode(odd))
    found = sampled.read(path)
    assert msgspec.json.encode(found) == msgspec.json.encode(odd)
    ((own, beside),) = found.samples[0].pairs
    assert math.isnan(own) and math.isnan(found.samples[0].metrics["ppl"].value) and beside == 1.0
    assert found.samples[0].metrics["ppl"].max_value is None


@pytest.mark.parametrize(
    "data",
    [
        b'{"schema": "\xff\xfe"}',
        b"[" * 100_000,
        b"",
        b"[]",
        b"3",
        b"{}",
        b'{"benchmarks": []}',
        b'{"streamcache": {}}',
        b"null",
    ],
    ids=lambda data: str(data[:16]),
)
def test_a_file_without_samples_is_refused_in_a_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(data)
    with pytest.raises(SampleError, match="holds no samples") as caught:
        sampled.read(path)
    assert "\n" not in str(caught.value)


def test_samples_of_another_version_are_refused(tmp_path: Path) -> None:
    """Their fields had other names, and would be read as absent."""
    path = tmp_path / "out.json"
    path.write_bytes(b'{"schema": "streamcache-samples", "environment": {}, "samples": []}')
    with pytest.raises(SampleError, match="version 1, not 2"):
        sampled.read(path)


def test_samples_of_another_protocol_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(msgspec.json.encode(Process(HERE, [], protocol=99)))
    with pytest.raises(SampleError, match="protocol 99"):
        sampled.read(path)


def test_several_looks_make_one() -> None:
    looks = [
        Environment(canaries={"host": 1.0}, problems=["hot"]),
        Environment(canaries={"host": 3.0}, problems=["hot", "crowded"]),
    ]
    assert merged(looks) == Environment(canaries={"host": 2.0}, problems=["hot", "crowded"])
    gone = merged([looks[0], Environment()])
    assert math.isnan(gone.canaries["host"])


def test_pairs_of_any_size_have_a_log_ratio() -> None:
    assert sample(pairs=[(1e-308, 1e308)]).median_log_ratio == pytest.approx(
        math.log(1e-308) * 2, rel=1e-3
    )
    assert math.isnan(sample(pairs=[]).median_log_ratio)
