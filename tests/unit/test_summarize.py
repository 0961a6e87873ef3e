"""`streamcache summarize`: what is in the tables, on the page, and which verdict is reached."""

import json
import platform
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamcache.measure import checked
from streamcache.measure.configurations import ABLATIONS, NAMED, Configuration, with_budget
from streamcache.policy import EvictionPolicy
from streamcache.report import audit, collect, published, render
from streamcache.report.tables import METHODS, Table, number, percent
from tests import made
from tests.shell import Run

H200 = "NVIDIA H200"
SHAPE = "random:pythia-2.8b"

BEGIN, END = "<!-- audit: begin -->", "<!-- audit: end -->"


def test_tables_have_the_methods_by_their_names_and_the_published_beside(summarised: Path) -> None:
    names = ["Baseline", "MIT StreamingLLM", "Ours (Standard)", "Ours (Lazy Prune)", "Ours (Best)"]
    assert list(METHODS.values()) == names
    text = (summarised / "summary.md").read_text()
    first = text.split("### Methods")[1].split("###")[0]
    shown = re.findall(r"^\| (.*?) \|", first, re.MULTILINE)
    assert shown == ["method", "---", *names, "fast", "quality"]
    best = next(line for line in first.splitlines() if line.startswith("| Ours (Best)"))
    assert "32/2000/16/32/64" in best and "+2.19–2.82 %" in best and "7.03–7.11×" in best
    assert "+1.00 %" in best and "20.00×" in best and "| 32+" not in first
    for title in ("Lazy Pruning", "Sinks", "Softlite"):
        assert text.count(f"### {title}") == 2, "once for each text"
    assert text.count("lazy-R128@2048") == 2


def test_latex_is_a_document_away_from_a_table(summarised: Path) -> None:
    text = (summarised / "summary.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1 + 2 * 4 + 1 + 3 + 1
    assert "Ours (Best) &" in text and r"$\sigma$" in text
    for block in re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        columns = len(re.findall(r"[lr]|p\{\d+cm", block[0]))
        for line in re.findall(r".*\\\\$", block[1], re.MULTILINE):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    assert not re.search(r"(?<!\\)[%#_]", text) and text.isascii()


def test_diagnoses_have_a_table(summarised: Path) -> None:
    text = (summarised / "summary.md").read_text().split("## Diagnosis")[1]
    assert "| S=4 W=125 R=512 | S=4 W=636 | reference: pg19/4047, 3,000 | 6 | +0.2500 |" in text
    assert "+0.0198 to +0.0353" in text and "+0.5000 | 0.0100" in text


def test_profiles_have_tables(summarised: Path) -> None:
    text = (summarised / "summary.md").read_text().split("## Profile")[1]
    where = f"| ours-standard | reference float32, cpu {platform.machine()} | 6.25 | 900 |"
    assert f"{where} – | – | – | – | 20.0% | – |" in text
    assert f"{where} 128 | 128 | 1.25 | 20% | 20.0% | 20.0% |" in text
    assert "| aten::addmm | 24.0 | 2.00 | 22.2% |" in text
    assert "| attention_kernel&lt;128> | 32.0 | 0.5 | 40.0% |" in text


def test_special_signs_are_escaped() -> None:
    table = Table("a_b", ("x|y", "50 %"), (("α^{~}\\", "&"),))
    assert r"x\|y" in render.markdown(table)
    latex = render.latex(table)
    assert r"a\_b" in latex and r"50 \%" in latex and r"\textasciicircum{}\{" in latex


@pytest.mark.parametrize(
    "shown, expected",
    [
        (number(17.8612), "17.86"),
        (number(0.01234), "0.0123"),
        (number(None), "–"),
        (percent(-0.00001), "+0.00 %"),
        (percent(0.0219), "+2.19 %"),
        (percent((0.0219, 0.0282)), "+2.19–2.82 %"),
        (percent((0.0545, 0.0545)), "+5.45 %"),
    ],
)
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected


def test_published_figures_go_by_text_and_configuration() -> None:
    def figures(configuration: Configuration, text: str) -> published.Figures:
        workload = msgspec.structs.replace(made.WORKLOAD, text=text)
        return published.of_record(made.record(configuration, workload=workload))

    assert figures(NAMED["best"], "pg19/4047").tpot_ms == (14.1, 14.1)
    derived = with_budget(NAMED["softlite-maxdrop"], 2048)
    assert figures(derived, "pg19/4047").increase == (0.0594, 0.0594)
    assert figures(NAMED["mit"], "wikitext/wikitext-103-v1").speedup == (3, 5)
    assert figures(NAMED["mit"], "stream") == published.Figures()
    assert figures(NAMED["fast"], "pg19/4047") == published.Figures(), "another cache"


# Collecting


def test_what_cannot_be_read_is_named_and_left_out(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    made.write(folder / "pg19", made.record(NAMED["best"]))
    (folder / "broken.json").write_text('{"schema": "streamcache-measurement", "version": 2}')
    (folder / "half.json").write_text('{"schema": ')
    old = msgspec.structs.replace(made.record(NAMED["mit"]), version=99)
    checked.write_struct(folder / "old.json", old)
    trace = folder / "trace.json"
    trace.write_text("{" + " " * (1 << 25))
    (folder / "other.json").write_text('[{"some": "thing"}]')
    (folder / "gone.json").symlink_to("nowhere")
    ran = run("summarize")
    assert ran.status == 0
    named = ("broken.json", "half.json", "old.json", "gone.json", "trace.json")
    assert all(ran.err.count(name) == 1 for name in named) and "longer than 32 MiB" in ran.err
    assert "other.json" not in ran.err


@pytest.mark.parametrize(
    "content",
    [
        {"schema": {"fields": []}},
        {"benchmarks": ["x"]},
        {"benchmarks": {"x": 1}},
        {"benchmarks": None},
    ],
)
def test_what_is_no_record_is_passed_over(tmp_path: Path, content: object) -> None:
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert collect.collect(tmp_path) == ([], [], [], [], [], [])


def test_numbers_that_cannot_be_read_are_named_and_left_out(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name in ("mit", "best"):
        made.write(folder, made.record(NAMED[name]))
    for path in (folder / "mit.nll.npy", folder / "best.tpot.npy"):
        path.write_bytes(path.read_bytes()[:-40])
    (folder / "best.nll.npy").write_bytes(checked.array_bytes([1.0]))
    ran = run("summarize")
    assert ran.status == 0
    for name in ("mit.nll.npy", "best.tpot.npy", "best.nll.npy"):
        assert ran.err.count(f"{name}") == 1 and ran.err.count("left out: ") == 3


def test_ablations_alone_have_tables(run: Run, tmp_path: Path) -> None:
    for name in ("sink-4", "sink-16"):
        made.write(tmp_path / "runs", made.record(NAMED[name]))
    assert run("summarize").status == 0
    text = (tmp_path / "runs" / "summary.md").read_text()
    assert "### Methods" not in text and "sink-16" in text and "batch 1" in text
    assert "sink-16" in (tmp_path / "runs" / "index.html").read_text()


def test_an_ablation_is_of_the_total_its_windows_were_derived_from(tmp_path: Path) -> None:
    names = ABLATIONS["lazy"]
    for folder, total in (("a", 256), ("b", 2048)):
        for name in names:
            made.write(tmp_path / folder, made.record(with_budget(NAMED[name], total)))
    for name in names:  # newer, each of another total
        made.write(tmp_path / "c", made.record(NAMED[name]))
    (group,) = collect.collect(tmp_path).groups
    rows = group.all_of(names)
    assert [name for name, _ in rows] == list(names)
    assert {row.record.sizes.total for _, row in rows} == {2048}
    assert [row.record.label for _, row in rows][:2] == ["lazy-R1", "lazy-R16@2048"]


def test_no_records_is_one_line(run: Run, tmp_path: Path) -> None:
    ran = run("summarize", "--output-dir", str(tmp_path))
    assert ran.status == 2 and "no records below" in ran.err and "Traceback" not in ran.err


def test_groups_hold_what_compares(tmp_path: Path) -> None:
    for i, device in enumerate((None, H200)):
        for name in ("mit", "best"):
            made.write(tmp_path / str(i), made.record(NAMED[name], device=device))
    timed = made.record(NAMED["mit"], timed=SHAPE, device=H200)  # another model's time
    made.write(tmp_path / "timed", timed)
    newer = made.record(NAMED["best"], ppl=19.0, date="2026-02-01T12:00:00+00:00")
    made.write(tmp_path / "newer", newer)
    groups, *_, bad = collect.collect(tmp_path)
    assert not bad and sorted(len(group.rows) for group in groups) == [1, 2, 2]
    newest = next(g for g in groups if H200 not in g.title).get("best")
    assert newest and newest.record.quality and newest.record.quality.ppl == 19.0


def test_benchmark_files_are_read(tmp_path: Path) -> None:
    extra = checked.with_checksum(made.record(NAMED["mit"], timed=SHAPE, device=H200))
    content = {"benchmarks": [{"name": "a", "extra_info": extra}, {"extra_info": {"x": 1}}]}
    (tmp_path / "benchmark-gpu.json").write_text(json.dumps(content))
    groups, *_, bad = collect.collect(tmp_path)
    assert not bad and len(groups) == 1 and f"(timed: {SHAPE})" in groups[0].title


def test_common_positions_are_those_at_which_every_cache_is_full(tmp_path: Path) -> None:
    for name in ("lazy-R1", "lazy-R128"):
        made.write(tmp_path, made.record(with_budget(NAMED[name], 2048)))
    (group,) = collect.collect(tmp_path).groups
    assert {row.record.key for row in group.rows} == set(group.common())
    for row in group.rows:
        assert row.nll is not None
        assert group.common()[row.record.key] == pytest.approx(np.exp(row.nll[2047:].mean()))


# The audit


def verdicts(folder: Path) -> dict[str, tuple[str, str]]:
    """Measured and verdict by the claim's first words."""
    table = audit.table(collect.collect(folder).groups)
    return {row[0]: (row[2], row[4]) for row in table.rows}


def verdict(folder: Path, claim: str) -> str:
    found = [answer for text, (_, answer) in verdicts(folder).items() if text.startswith(claim)]
    assert len(found) == 1, claim
    return found[0]


def test_nothing_measured_is_not_run(tmp_path: Path) -> None:
    assert {answer for _, answer in verdicts(tmp_path).values()} == {"not run"}


@pytest.mark.parametrize(
    "timed, device, tpot_ms, expected",
    [
        ("reference", None, 14.6, "cannot be tested here: needs the shape on a GPU"),
        (SHAPE, H200, 100 / 6.9, "reproduced"),
        (SHAPE, H200, 100 / 5.6, "reproduced"),
        (SHAPE, H200, 100 / 5.4, "not reproduced"),
        (SHAPE, H200, 100 / 1.2, "not reproduced"),
    ],
)
def test_a_speedup_is_judged_on_the_shape_on_a_gpu(
    tmp_path: Path, timed: str, device: str | None, tpot_ms: float, expected: str
) -> None:
    one = made.record(NAMED["mit"], timed=timed, device=device, tpot_ms=tpot_ms)
    made.write(tmp_path, one)
    assert verdict(tmp_path, "MIT StreamingLLM: speedup") == expected


@pytest.mark.parametrize(
    "model, increase, expected",
    [
        ("reference", 0.023, audit.NEEDS_WEIGHTS),
        ("EleutherAI/pythia-2.8b", 0.023, "reproduced"),
        ("EleutherAI/pythia-2.8b", 0.0005, "not reproduced"),
    ],
)
def test_an_increase_is_judged_with_the_weights(
    tmp_path: Path, model: str, increase: float, expected: str
) -> None:
    workload = msgspec.structs.replace(made.WORKLOAD, model=model)
    made.write(tmp_path, made.record(NAMED["mit"], increase=increase, workload=workload))
    assert verdict(tmp_path, "MIT StreamingLLM: PPL") == expected


def test_times_need_an_a800(tmp_path: Path) -> None:
    def write(device: str) -> None:
        for name in ("baseline", "mit", "best", "quality"):
            (tpot, _) = published.PG19[name].tpot_ms or (0, 0)
            one = made.record(NAMED[name], tpot_ms=tpot, timed=SHAPE, device=device)
            made.write(tmp_path / device, one)

    write(H200)
    assert verdict(tmp_path, "TPOT") == audit.NEEDS_A800


@pytest.mark.parametrize("slow, expected", [(5.2, "reproduced"), (5.1, "not reproduced")])
def test_faster_is_three_percent_faster(tmp_path: Path, slow: float, expected: str) -> None:
    made.write(tmp_path, made.record(NAMED["mit"], tpot_ms=slow))
    made.write(tmp_path, made.record(NAMED["best"], tpot_ms=5.0))
    assert verdict(tmp_path, "Ours (Best) is faster") == expected


@pytest.mark.parametrize("scatter, expected", [(0.01, "reproduced"), (0.02, "not reproduced")])
def test_faster_is_beyond_the_scatter_of_the_blocks(
    tmp_path: Path, scatter: float, expected: str
) -> None:
    for name, tpot_ms in {"mit": 10.6, "best": 10.0}.items():
        made.write(tmp_path, made.record(NAMED[name], tpot_ms=tpot_ms, scatter=scatter))
    assert verdict(tmp_path, "Ours (Best) is faster") == expected


@pytest.mark.parametrize("captured, expected", [(2.0, "not reproduced"), (5.0, "reproduced")])
def test_a_negative_result_is_reproduced_where_nothing_is_gained(
    tmp_path: Path, captured: float, expected: str
) -> None:
    made.write(tmp_path, made.record(NAMED["ours-standard"], tpot_ms=5.0))
    made.write(tmp_path, made.record(NAMED["captured"], tpot_ms=captured))
    assert verdict(tmp_path, "torch.compile") == expected


@pytest.mark.parametrize(
    "ppl, expected", [(26.0, "reproduced"), (19.99, "reproduced"), (19.9, "not reproduced")]
)
@pytest.mark.parametrize(
    "use, claim",
    [
        ({"refresh": 64, "refresh_at": "tail"}, "Refresh fails, as published"),
        ({"refresh": 64}, "Refresh fails, in stream order"),
        ({"overlap": 64}, "Overlap fails"),
    ],
)
def test_reserved_entries_are_compared_with_the_same_total(
    tmp_path: Path, use: dict[str, Any], claim: str, ppl: float, expected: str
) -> None:
    less = EvictionPolicy.from_budget(256, 4, compress_every=32, overlap=64)
    made.write(tmp_path, made.record(Configuration(less, "reference", **use), ppl=ppl))
    assert verdict(tmp_path, claim) == "not run"
    smaller = EvictionPolicy.from_budget(200, 4, compress_every=32)
    made.write(tmp_path, made.record(Configuration(smaller, "reference"), ppl=30.0))
    assert verdict(tmp_path, claim) == "not run"
    plain = EvictionPolicy.from_budget(256, 4, compress_every=32)
    made.write(tmp_path, made.record(Configuration(plain, "reference"), ppl=20.0))
    assert verdict(tmp_path, claim) == expected


@pytest.mark.parametrize("int8, expected", [(3.0, "not reproduced"), (6.0, "reproduced")])
def test_integer_weights_are_compared_with_the_same_configuration(
    tmp_path: Path, int8: float, expected: str
) -> None:
    quantised = replace(NAMED["captured"], weights="int8")
    made.write(tmp_path / "a", made.record(NAMED["captured"], tpot_ms=5.0))
    made.write(tmp_path / "c", made.record(NAMED["fast"], tpot_ms=1.0))
    assert verdict(tmp_path, "INT8 weights bring nothing (captured)") == "not run"
    made.write(tmp_path / "b", made.record(quantised, tpot_ms=int8))
    assert verdict(tmp_path, "INT8 weights bring nothing (captured)") == expected
    assert verdict(tmp_path, "INT8 weights bring nothing (eager)") == "not run"


@pytest.mark.parametrize(
    "claim, nll, expected",
    [
        ("R ≥ 128", {"lazy-R1": 3.0, "lazy-R128": 3.06}, "reproduced"),
        ("R ≥ 128", {"lazy-R1": 3.0, "lazy-R128": 3.04}, "not reproduced"),
        ("S = 32", {"sink-4": 3.0, "sink-32": 2.98, "sink-64": 3.0}, "reproduced"),
        ("S = 32", {"sink-4": 3.0, "sink-32": 2.995, "sink-64": 3.02}, "not reproduced"),
        ("slack and", {"none": 3.0, "slack": 3.0, "maxdrop": 3.0, "full": 2.96}, "reproduced"),
        ("slack and", {"none": 3.0, "slack": 2.96, "maxdrop": 3, "full": 2.96}, "not reproduced"),
        ("slack and", {"none": 3.0, "slack": 3.0, "maxdrop": 3.0, "full": 3.0}, "not reproduced"),
    ],
)
def test_what_helps_and_what_hurts_is_judged_on_any_model(
    tmp_path: Path, claim: str, nll: dict[str, float], expected: str
) -> None:
    for name, mean in nll.items():
        named = NAMED.get(name) or NAMED[f"softlite-{name}"]
        made.write(tmp_path, made.record(with_budget(named, 2048)), mean)
    assert verdict(tmp_path, claim) == expected


def test_sizes_of_unlike_totals_are_not_judged(tmp_path: Path) -> None:
    for name, mean in (("lazy-R1", 3.0), ("lazy-R128", 3.06)):  # 2,048 and 2,175 entries
        made.write(tmp_path, made.record(NAMED[name]), mean)
    assert verdict(tmp_path, "R ≥ 128") == "not run"


def test_reserved_entries_are_compared_at_the_same_slack(tmp_path: Path) -> None:
    less = EvictionPolicy.from_budget(256, 4, 16, compress_every=32, refresh=64)
    tail = Configuration(less, "reference", refresh=64, refresh_at="tail")
    made.write(tmp_path, made.record(tail, ppl=19.0))
    for slack, ppl in ((None, 30.0), (16, 18.0)):
        plain = EvictionPolicy.from_budget(256, 4, slack, compress_every=32)
        made.write(tmp_path, made.record(Configuration(plain, "reference"), ppl=ppl))
    assert verdict(tmp_path, "Refresh fails, as published") == "reproduced"


def test_the_audit_goes_between_its_marks(run: Run, tmp_path: Path) -> None:
    made.methods(tmp_path / "runs")
    page = tmp_path / "audit.md"
    page.write_text(f"# Audit\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    for _ in range(2):  # the same the second time
        assert run("summarize", "--audit", str(page)).status == 0
        text = page.read_text()
        assert text.startswith("# Audit\n\nBefore.\n") and text.endswith(f"{END}\n\nAfter.\n")
        assert "old" not in text and text.count("R ≥ 128 breaks PPL") == 1
    page.write_text("no marks")
    ran = run("summarize", "--audit", str(page))
    assert ran.status == 2 and "no lines" in ran.err and page.read_text() == "no marks"
    page.write_bytes(b"\xff\xfe\x00")
    ran = run("summarize", "--audit", str(page))
    assert ran.status == 2 and "not UTF-8" in ran.err and ran.err.count("\n") == 1


def test_a_verdict_that_the_records_say_nothing_of_stays_in_the_page(
    run: Run, tmp_path: Path
) -> None:
    def verdicts(page: Path) -> dict[str, str]:
        rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
        return {row.split(" | ")[0]: row for row in rows[2:]}

    made.methods(tmp_path / "all")
    made.write(tmp_path / "one", made.record(NAMED["mit"]))
    page, other = tmp_path / "audit.md", tmp_path / "other.md"
    assert run("summarize", "--output-dir", "all", "--audit", str(page)).status == 0
    assert run("summarize", "--output-dir", "one", "--audit", str(other)).status == 0
    before, one = verdicts(page), verdicts(other)
    ran = run("summarize", "--output-dir", "one", "--audit", str(page))
    kept = [
        claim
        for claim in before
        if one[claim].endswith("| not run |") and not before[claim].endswith("| not run |")
    ]
    assert len(kept) > 1 and f"{len(kept)} verdicts are kept" in ran.err
    assert verdicts(page) == {
        claim: before[claim] if claim in kept else one[claim] for claim in one
    }


# The page


class Seen(HTMLParser):
    """Elements, identifiers and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.links.append(value or "")


def test_the_page_is_whole_by_itself(summarised: Path) -> None:
    text = (summarised / "index.html").read_text()
    seen = Seen()
    seen.feed(text)
    assert seen.tags.count("svg") == 2 * 5 + 2 and seen.tags.count("table") == 1 + 2 * 4 + 1 + 3 + 1
    assert "script" not in seen.tags and "@import" not in text
    assert all(link.startswith(("#", "data:")) for link in seen.links), seen.links
    assert not re.search(r"url\((?!#)", text)
    assert len(set(seen.ids)) == len(seen.ids)
    for target in re.findall(r'(?:href="|url\()#([\w-]+)', text):
        assert target in seen.ids
    assert "currentColor" in text and "#13579b" not in text
    assert "roofline: weights and cache read once" in text


@pytest.mark.filterwarnings("error")
def test_what_is_timed_only_has_a_page_too(run: Run, tmp_path: Path) -> None:
    for name in ("lazy-R1", "lazy-R16", "lazy-R32"):
        one = made.record(NAMED[name], timed=SHAPE)
        made.write(tmp_path / "runs", msgspec.structs.replace(one, quality=None))
    assert run("summarize").status == 0
    text = (tmp_path / "runs" / "index.html").read_text()
    assert text.count("<svg") == 2 and "PPL increase, %" not in text and "TPOT, ms" in text


def test_without_matplotlib_the_tables_are_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.methods(tmp_path / "runs")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = run("summarize")
    assert ran.status == 2 and "streamcache[plots]" in ran.err and "Traceback" not in ran.err
    assert (tmp_path / "runs" / "summary.md").exists()
    assert not (tmp_path / "runs" / "index.html").exists()
