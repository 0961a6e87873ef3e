"""`run`: from NLLs to figures, the baseline of all comparisons, and what is kept and found."""

import dataclasses
import errno
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from streamcache import cli
from streamcache.decoding.nll import NotFiniteError
from streamcache.decoding.onepass import streaming_nll
from streamcache.decoding.recompute import recompute_nll
from streamcache.inputs.corpora import TokenizedText, digest_of
from streamcache.inputs.models import LoadedModel
from streamcache.measure import baseline, checked, measurement, quality, speed
from streamcache.measure import run as measuring
from streamcache.measure.baseline import BaselineMismatch
from streamcache.measure.checked import RecordError
from streamcache.measure.configurations import NAMED, RECOMPUTE, Configuration, with_budget
from streamcache.measure.measurement import Measurement
from streamcache.measure.pairs import alternate, speedup, speedup_error
from streamcache.measure.run import What, is_finished, run
from streamcache.measure.speed import measure_speed
from streamcache.measure.store import (
    NotKeptError,
    Store,
    folder_name,
    measurement_digest,
    partial_path,
    read_partial,
    write_partial,
)
from streamcache.measure.timing import TokenTimings, time_tokens
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy, PolicyError
from tests import made, tiny

WINDOW = EvictionPolicy(3, 13)
BASELINE = Configuration(WINDOW, RECOMPUTE, label="baseline")
POLICY = EvictionPolicy(3, 13, compress_every=4)
STREAMING = Configuration(POLICY, "streaming")
ONLY_PPL = What(positions=5, tpot_tokens=0)


def tiny_workload(n_tokens: int = 60, **changes: Any) -> Workload:
    ids = tiny.text(n_tokens)[0]
    text = TokenizedText("random", ids, digest_of(ids), "file")
    loaded = LoadedModel(tiny.llama(), None, "tiny", "sha256:0")
    return Workload(loaded, text, **{"window": WINDOW, **changes})


# Figures


def test_all_early_positions_and_evenly_spread_late_ones() -> None:
    positions = quality.baseline_positions(16, 60, 5).tolist()
    assert positions[:16] == list(range(16))
    assert len(positions) == 21 and positions[16] == 16 and positions[-1] == 58
    assert positions == sorted(set(positions))
    assert quality.baseline_positions(16, 10, 5).tolist() == list(range(9))
    assert quality.baseline_positions(16, 60, 43).tolist() == list(range(59))


def test_the_increase_and_its_error_are_over_the_positions_in_common() -> None:
    assert quality.baseline_positions(8, 20, 4).tolist() == [*range(8), 8, 11, 15, 18]
    nll = np.full(19, 2.0)
    nll[[8, 11, 15, 18]] = [2.1, 2.3, 2.1, 2.3]
    found = quality.of_stream(nll, 8, "one-pass", np.full(12, 2.0), 8, 4)
    assert found.n_compared == 4
    assert found.ppl_compared == pytest.approx(math.exp(2.2))
    assert found.ppl_increase == pytest.approx(math.exp(0.2) - 1)
    deviation = math.sqrt(4 * 0.1**2 / 3)
    assert found.ppl_increase_error == pytest.approx(math.exp(0.2) * deviation / 2)


def test_without_positions_in_common_there_is_no_increase() -> None:
    found = quality.of_stream(np.full(19, 2.0), 8, "one-pass", np.full(8, 2.0), 8, 0)
    assert found.n_compared == 0 and found.ppl_increase is found.ppl_increase_error is None
    assert found.ppl == pytest.approx(math.exp(2.0)) and found.n_steady == 12


def test_the_speedup_is_the_median_over_pairs() -> None:
    """One pair that the machine disturbed does not move it."""
    pairs = [(1.0, 8.0), (1.0, 8.0), (1.1, 8.0), (0.9, 8.0), (50.0, 8.0)]
    assert speedup(pairs) == pytest.approx(8.0)
    error = speedup_error(pairs)
    assert error is not None and 0 < error < 1
    assert speedup_error(pairs[:3]) is None


def test_blocks_alternate_in_their_order() -> None:
    order: list[str] = []

    def block(name: str) -> float:
        order.append(name)
        return 1.0

    for turn in range(3):
        alternate(turn, lambda: block("a"), lambda: block("b"))
    assert "".join(order) == "abbaab"


@pytest.mark.parametrize("every", [1, 5, 36])
def test_timed_tokens_have_their_share_of_the_evictions(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block, whatever its phase: of R tokens one finds the cache after an eviction."""
    configuration = Configuration(EvictionPolicy(2, 8, compress_every=every), "streaming")
    blocks: list[int] = []

    def watched(step: Any, n_tokens: int, device: torch.device) -> TokenTimings:
        if hasattr(step, "cache"):
            blocks.append(n_tokens)
        return time_tokens(step, n_tokens, device)

    monkeypatch.setattr(speed, "time_tokens", watched)
    calls: list[int] = []
    workload = tiny_workload(window=EvictionPolicy(2, 8))
    found, times = measure_speed(configuration, workload, 64, 8, advance=calls.append)
    assert all(n % every == 0 for n in blocks) and sum(blocks[2:]) == found.n_tokens == len(times)
    assert 64 <= found.n_tokens < 64 + 8 * every and calls == [1] * 8
    assert found.speedup == pytest.approx(speedup(found.pairs)) and len(found.pairs) == 8
    assert found.seen is not None and found.seen > sum(blocks) and found.held is not None
    assert found.tpot_p50_ms > 0 and found.tpot_device_ms is None
    p50, p99 = np.quantile(times, (0.50, 0.99))
    assert (found.tpot_p50_ms, found.tpot_p99_ms) == pytest.approx((p50, p99))


# The baseline


def test_a_baseline_is_measured_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload, store = tiny_workload(), Store(tmp_path)
    first = run(BASELINE, workload, ONLY_PPL, store)
    assert first.nll is not None and len(first.nll) == 21
    whole = recompute_nll(
        workload.loaded.model, workload.text.input_ids, 3, 13, torch.arange(16, 59)
    )
    assert first.nll[-1] == pytest.approx(float(whole[-1]), abs=1e-4)
    monkeypatch.setattr(baseline, "recompute_nll", lambda *a, **k: pytest.fail("measured again"))
    assert run(BASELINE, workload, ONLY_PPL, store).record == first.record
    run(STREAMING, workload, ONLY_PPL, store)  # is compared with what is stored
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_an_interrupted_baseline_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload, store, calls = tiny_workload(), Store(tmp_path), []
    what = What(positions=40, tpot_tokens=0)

    def interrupted(*arguments: Any, **others: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return recompute_nll(*arguments, **others)

    monkeypatch.setattr(baseline, "recompute_nll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(BASELINE, workload, what, store)
    where = measurement.environment(workload.loaded.model.device)
    path = store.path(BASELINE, workload.record, where, positions=40)
    made_from = measurement_digest(BASELINE, workload.record, where, positions=40)
    assert len(read_partial(path, made_from)) == 16 + 16 and not path.exists()
    found = run(BASELINE, workload, what, store)
    assert found.nll is not None and len(found.nll) == 56 and len(calls) == 3 + 2
    assert not partial_path(path).exists(), "nothing is left over"


@pytest.mark.parametrize("other", [tiny_workload(n_tokens=59), tiny_workload(window=POLICY)])
def test_what_was_begun_of_another_baseline_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Workload
) -> None:
    """The same file is asked for, and an interrupted run of something else has left its part."""
    path, store = tmp_path / "b.json", Store(tmp_path / "runs")
    begun = dataclasses.replace(BASELINE, policy=EvictionPolicy(2, 14))
    made_from = measurement_digest(
        begun if other.window == POLICY else BASELINE,
        other.record,
        measurement.environment(torch.device("cpu")),
        positions=5,
    )
    write_partial(path, made_from, [1.0] * 20)
    found = run(BASELINE, tiny_workload(), ONLY_PPL, store, baseline_file=path).nll
    expected = run(BASELINE, tiny_workload(), ONLY_PPL, store).nll
    assert np.array_equal(found, expected)  # type: ignore[arg-type]


def test_a_baseline_in_a_file_of_its_own_is_found_there(tmp_path: Path) -> None:
    path, store = tmp_path / "b.json", Store(tmp_path / "runs")
    found = run(BASELINE, tiny_workload(), ONLY_PPL, store, baseline_file=path)
    assert found.path == path and measurement.read(path).record == found.record
    streamed = run(STREAMING, tiny_workload(), ONLY_PPL, store, baseline_file=path)
    assert streamed.record.quality and streamed.record.quality.n_compared == 5
    assert len(list((tmp_path / "runs").rglob("*.json"))) == 1


def test_a_baseline_in_a_file_of_its_own_leaves_others_of_a_like_name_alone(tmp_path: Path) -> None:
    """What stands behind the last hyphen of it is no digest, so it is not looked for."""
    others = [tmp_path / "a-base.json", tmp_path / "my-base.nll.json"]
    for other in others:
        other.write_text("mine")
    path = tmp_path / "my-base.json"
    found = run(BASELINE, tiny_workload(), ONLY_PPL, Store(tmp_path / "runs"), baseline_file=path)
    assert found.path == path and [other.read_text() for other in others] == ["mine", "mine"]
    assert measurement.read(path).record == found.record


@pytest.mark.parametrize(
    "field, workload, compared, what",
    [
        ("text_digest", tiny_workload(59), BASELINE, ONLY_PPL),
        ("n_sink", tiny_workload(), Configuration(EvictionPolicy(2, 13), RECOMPUTE), ONLY_PPL),
        ("window_size", tiny_workload(), Configuration(EvictionPolicy(3, 12), RECOMPUTE), ONLY_PPL),
        ("positions", tiny_workload(), BASELINE, dataclasses.replace(ONLY_PPL, positions=6)),
    ],
)
def test_a_baseline_of_something_else_is_refused(
    tmp_path: Path, field: str, workload: Workload, compared: Configuration, what: What
) -> None:
    path = tmp_path / "b.json"
    run(BASELINE, tiny_workload(), ONLY_PPL, baseline_file=path, store=Store(tmp_path))
    with pytest.raises(BaselineMismatch, match=rf"its {field} is .*streamcache baseline"):
        run(compared, workload, what, Store(tmp_path), baseline_file=path)


@pytest.mark.parametrize("name", ["device", "cpu", "torch", "transformers", "streamcache"])
def test_a_baseline_is_of_its_device_and_libraries(tmp_path: Path, name: str) -> None:
    path = tmp_path / "b.json"
    found = run(BASELINE, tiny_workload(), ONLY_PPL, Store(tmp_path), baseline_file=path)
    elsewhere = msgspec.structs.replace(found.record.environment, **{name: "other"})
    record = msgspec.structs.replace(found.record, environment=elsewhere)
    checked.write_struct(path, record)
    with pytest.raises(BaselineMismatch, match=f"its {name} is 'other'"):
        run(BASELINE, tiny_workload(), ONLY_PPL, Store(tmp_path), baseline_file=path)


def test_the_way_out_of_a_mismatch_is_the_command_that_makes_a_fitting_one(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    run(BASELINE, tiny_workload(59), ONLY_PPL, Store(tmp_path), baseline_file=path)
    with pytest.raises(BaselineMismatch) as caught:
        run(BASELINE, tiny_workload(), ONLY_PPL, Store(tmp_path), baseline_file=path)
    command = "--n-sink 3 --window-size 13 --max-eval-tokens 60 --positions 5"
    assert f"`streamcache baseline {command} --baseline-file {path}`" in str(caught.value)


def test_a_baseline_that_is_named_is_looked_at_though_nothing_is_left_to_measure(
    tmp_path: Path,
) -> None:
    store, path = Store(tmp_path / "runs"), tmp_path / "b.json"
    measured = run(STREAMING, tiny_workload(), ONLY_PPL, store)
    found = run(STREAMING, tiny_workload(), ONLY_PPL, store, baseline_file=path)
    assert found.record == measured.record
    path.write_text("some text")
    with pytest.raises(RecordError, match="not a readable streamcache record"):
        run(STREAMING, tiny_workload(), ONLY_PPL, store, baseline_file=path)
    path.unlink()
    run(BASELINE, tiny_workload(59), ONLY_PPL, store, baseline_file=path)
    with pytest.raises(BaselineMismatch, match="its text_digest is"):
        run(STREAMING, tiny_workload(), ONLY_PPL, store, baseline_file=path)


def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path) -> None:
    path, store = tmp_path / "b.json", Store(tmp_path / "runs")
    path.write_text('{"schema": "streamcache-measurement"')
    with pytest.raises(RecordError, match="not a readable streamcache record"):
        run(BASELINE, tiny_workload(), ONLY_PPL, store, baseline_file=path)
    streamed = run(STREAMING, tiny_workload(), ONLY_PPL, store)
    measurement.write(path, streamed)
    with pytest.raises(RecordError, match="is not a recompute baseline"):
        run(BASELINE, tiny_workload(), ONLY_PPL, store, baseline_file=path)


def test_a_model_that_predicts_no_numbers_is_refused() -> None:
    workload = tiny_workload()
    workload.loaded.model.lm_head.weight.data[3, 5] = torch.nan
    with pytest.raises(NotFiniteError, match="prediction 0 of 16 is nan"):
        run(BASELINE, workload, ONLY_PPL)


# What is kept and found


def test_only_what_is_missing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, store = tiny_workload(), Store(tmp_path)
    with_times = What(positions=5, tpot_tokens=16, pairs=2)
    assert is_finished(STREAMING, workload, ONLY_PPL, store) is None
    first = run(STREAMING, workload, ONLY_PPL, store)
    assert first.record.speed is None and is_finished(STREAMING, workload, ONLY_PPL, store)
    assert is_finished(STREAMING, workload, with_times, store) is None
    monkeypatch.setattr(measuring, "streaming_nll", lambda *a: pytest.fail("measured again"))
    both = run(STREAMING, workload, with_times, store)
    assert both.record.quality == first.record.quality and both.record.speed is not None
    assert run(STREAMING, workload, with_times, store).record == both.record
    longer = run(STREAMING, workload, dataclasses.replace(with_times, tpot_tokens=32), store)
    assert longer.record.speed and longer.record.speed.n_tokens == 32


def test_forced_it_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, store, calls = tiny_workload(), Store(tmp_path), []
    run(STREAMING, workload, ONLY_PPL, store)

    def counted(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return streaming_nll(*arguments)

    monkeypatch.setattr(measuring, "streaming_nll", counted)
    run(STREAMING, workload, ONLY_PPL, store)
    run(STREAMING, workload, ONLY_PPL, store, force=True)
    assert calls == [1]


@pytest.mark.parametrize("cache", ["reference", "rerotating", "streaming", "ring"])
def test_sequential_decoding_agrees_with_the_one_pass(cache: str) -> None:
    configuration = Configuration(POLICY, cache)
    one_pass, decoded = (
        run(configuration, tiny_workload(), What(method, 5, 0)).nll
        for method in ("one-pass", "sequential")
    )
    assert one_pass is not None and decoded is not None
    np.testing.assert_allclose(one_pass, decoded, atol=1e-4)


def test_reserved_entries_are_recorded_as_what_they_are() -> None:
    policy = EvictionPolicy.from_budget(32, 3, compress_every=4, overlap=4, refresh=5)
    configuration = Configuration(policy, "reference", overlap=4, refresh=5, refresh_at="tail")
    record = run(configuration, tiny_workload(), ONLY_PPL).record
    assert record.sizes.total == 32 and (record.sizes.overlap, record.sizes.refresh) == (4, 5)
    assert record.configuration["refresh_at"] == "tail" and record.quality
    assert record.quality.method == "sequential", "refresh has no one pass"


def test_weights_other_than_those_loaded_are_refused() -> None:
    with pytest.raises(ValueError, match="has weights 'int8'"):
        run(dataclasses.replace(STREAMING, weights="int8"), tiny_workload())


def test_batches_decode_side_by_side() -> None:
    what = What(ppl=None, tpot_tokens=8, pairs=1)
    found = run(dataclasses.replace(STREAMING, batch=3), tiny_workload(), what)
    assert found.record.configuration["batch"] == 3 and found.record.speed


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"cache": "fast"}, "no cache 'fast'"),
        ({"cache": "streaming", "engine": "captured"}, "needs the cache 'ring'"),
        ({"cache": "streaming", "refresh": 4}, "refresh is built on"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Configuration(POLICY, **fields)


def test_a_budget_keeps_what_is_reserved() -> None:
    reserved = Configuration(EvictionPolicy(4, 20), "reference", refresh=8, label="r")
    assert with_budget(reserved, 64).policy == EvictionPolicy(4, 64 - 4 - 8)
    assert with_budget(reserved, 64).name == "r@64" and with_budget(reserved, 32) == reserved


def test_two_timed_models_in_folders_of_one_name_are_two_workloads() -> None:
    plain = tiny_workload()
    timed = [dataclasses.replace(plain.loaded, revision=f"sha256:{i}") for i in (1, 2)]
    records = {tiny_workload(timed=each).record for each in timed} | {plain.record}
    assert {record.timed for record in records} == {"tiny", "tiny@1", "tiny@2"}


def test_two_runs_in_one_folder_measure_once_and_the_second_says_that_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    waits, measured = threading.Event(), []

    def warn(text: str, **_: object) -> None:
        said.append(text)
        waits.set()

    def while_another_waits(*arguments: Any) -> torch.Tensor:
        measured.append(1)
        assert waits.wait(60)
        return streaming_nll(*arguments)

    monkeypatch.setattr("warnings.warn", warn)
    monkeypatch.setattr(measuring, "streaming_nll", while_another_waits)
    workload = tiny_workload()
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(
            lambda _: run(STREAMING, workload, ONLY_PPL, Store(tmp_path)), range(2)
        )
    assert len(measured) == 1 and one.record == other.record
    assert said[0].startswith(f"another run measures in {tmp_path}: waiting")


def test_what_is_finished_is_found_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Nor is it locked: nothing is measured."""
    workload, store = tiny_workload(), Store(tmp_path)
    run(STREAMING, workload, ONLY_PPL, store)
    with store.lock():
        assert run(STREAMING, workload, ONLY_PPL, Store(tmp_path)).path is not None


def test_leftovers_of_a_killed_run_are_removed_by_the_next(tmp_path: Path) -> None:
    workload, store = tiny_workload(), Store(tmp_path)
    leftover = tmp_path / folder_name(workload.record) / ".streamcache-0123.tmp"
    leftover.parent.mkdir()
    leftover.write_text("half")
    run(STREAMING, workload, ONLY_PPL, store)
    assert not leftover.exists()


# Disks and memory that do not suffice


class FullDisk:
    """Has room for so many more files."""

    def __init__(self, n_files: int):
        self.left = n_files

    def __call__(self, _: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [0, 1])
def test_a_full_disk_loses_no_measurement_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Nor what was kept before: arrays and record are replaced together."""
    workload, store = tiny_workload(), Store(tmp_path)
    before = run(STREAMING, workload, ONLY_PPL, store)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    monkeypatch.setattr("os.fsync", FullDisk(room))
    changed = tiny.llama()
    with torch.no_grad():
        changed.get_output_embeddings().weight.mul_(1.1)
    other = dataclasses.replace(workload, loaded=LoadedModel(changed, None, "tiny", "sha256:0"))
    with pytest.raises(NotKeptError, match="No space left") as caught:
        run(STREAMING, other, ONLY_PPL, store, force=True)
    found = caught.value.measurement
    assert found.record.quality and before.record.quality
    assert found.record.quality.ppl != before.record.quality.ppl
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == files
    monkeypatch.undo()
    assert run(STREAMING, workload, ONLY_PPL, store).record == before.record


def test_a_baseline_goes_on_though_its_beginning_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "_SAVE_EVERY_S", 0)
    monkeypatch.setattr("os.fsync", FullDisk(0))
    what = What(positions=40, tpot_tokens=0)
    said = r"baseline is not kept: No space left.*partial\.json"
    with pytest.warns(UserWarning, match=said), pytest.raises(NotKeptError) as caught:
        run(BASELINE, tiny_workload(), what, Store(tmp_path))
    assert caught.value.measurement.nll is not None
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_begun_baseline_is_kept_until_the_whole_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload, store = tiny_workload(), Store(tmp_path)
    path = store.path(BASELINE, workload.record, measurement.environment(torch.device("cpu")), 5)
    write_partial(path, "0123abcd", [1.0])
    monkeypatch.setattr("os.fsync", FullDisk(0))
    with pytest.raises(NotKeptError):
        store.put(path, Measurement(made.record(NAMED["best"]), np.ones(2999), np.ones(64)))
    assert read_partial(path, "0123abcd") == [1.0]


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so a file stands where the folder would be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(measuring, "streaming_nll", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(OSError):
        run(STREAMING, tiny_workload(), ONLY_PPL, Store(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    "fields", [{"window_size": 1 << 40}, {"window_size": 8, "compress_every": 1 << 40}]
)
def test_a_cache_that_no_memory_holds_is_refused_before_anything_is_measured(
    tmp_path: Path, fields: dict[str, int]
) -> None:
    huge = Configuration(EvictionPolicy(4, **fields), "streaming")
    with pytest.raises(PolicyError, match=r"a cache of 10995\d+ entries takes \d+ GB and cpu has"):
        run(huge, tiny_workload(), What(positions=5, tpot_tokens=8), Store(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_kept_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table on the output, and one line that says why it is not in the folder."""
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x.json")

    def fail(**_: object) -> None:
        raise NotKeptError(full, Measurement(made.record(NAMED["best"])))

    monkeypatch.setattr(cli.commands, "main", fail)
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr()
    assert "best" in shown.out and "PPL" in shown.out
    assert shown.err == "streamcache: No space left on device: runs/x.json\n"
