"""`streamcache paper`: the plan, the files, and what interruptions and failures leave behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from streamcache.caches.admission import UnsupportedModelError
from streamcache.cli import paper as cli_paper
from streamcache.decoding.onepass import streaming_nll
from streamcache.measure import measurement
from streamcache.measure import run as measuring
from streamcache.measure.configurations import ABLATIONS, NAMED
from streamcache.measure.paper import configurations
from streamcache.policy import PolicyError, evictions
from tests.shell import Run

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("two_layers")

# A budget of 256 and a text of 600 tokens: 19 configurations in seconds.
SMALL = [
    *("paper", "--dataset-name", "stream", "--max-eval-tokens", "600", "--cap-total", "256"),
    *("--tpot-tokens", "8", "--runs", "1", "--positions", "4", "--output-dir", "runs"),
]
NAMES = [c.name for c in configurations(256, on_gpu=False)]
DISTINCT = len(set(configurations(256, on_gpu=False)))  # under 19 names


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first four configurations only, by name."""
    monkeypatch.setattr(cli_paper, "configurations", lambda *given: configurations(*given)[:4])
    return NAMES[:4]


def test_at_the_published_total_the_methods_have_their_published_sizes() -> None:
    chosen = {c.name: c for c in configurations(2048, on_gpu=True)}
    for name in (
        "baseline",
        "mit",
        "ours-standard",
        "best",
        "quality",
        "fast",
        "captured",
        "lazy-R1",
    ):
        assert chosen[name] == NAMED[name]


@pytest.mark.parametrize("total", [256, 2048, 4096])
def test_an_ablation_has_one_budget(total: int) -> None:
    chosen = configurations(total, on_gpu=False)
    assert len({c.name for c in chosen}) == len(chosen) == 19
    ablations: list[Any] = [c.policy for c in chosen[6:]]
    assert len(ablations) == 13 == sum(map(len, ABLATIONS.values()))
    assert {policy.capacity for policy in ablations} == {total}
    assert [policy.compress_every for policy in ablations[:5]] == [1, 16, 32, 64, 128]
    assert [policy.n_sink for policy in ablations[5:9]] == [4, 16, 32, 64]


def test_max_drop_alone_never_binds() -> None:
    """As docs/audit.md says: an eviction of R = 32 has no more than 32 entries to evict."""
    chosen = {c.name: c.policy for c in configurations(2048, on_gpu=False)}
    none, capped = chosen["softlite-none@2048"], chosen["softlite-maxdrop@2048"]
    assert list(evictions(none, 20_000)) == list(evictions(capped, 20_000))


def test_a_budget_without_room_is_refused_at_once(run: Run) -> None:
    for total in (50, 131):
        with pytest.raises(PolicyError, match="total must be at least 132"):
            configurations(total, on_gpu=False)
    assert configurations(132, on_gpu=False)
    ran = run("paper", "--dataset-name", "stream", "--cap-total", "100")
    assert ran.status == 2 and "total must be at least 132" in ran.err and ran.err.count("\n") == 1


def test_a_text_that_cannot_be_had_is_one_line(run: Run, tmp_path: Path) -> None:
    ran = run("paper", "--data-dir", str(tmp_path))
    assert ran.status == 2 and len(ran.err.splitlines()) == 1 and "4047.txt" in ran.err
    assert not (tmp_path / "runs").exists()


def test_the_plan_measures_nothing(run: Run, tmp_path: Path) -> None:
    ran = run(*SMALL, "--dry-run")
    assert ran.status == 0, ran.err
    assert all(name in ran.out for name in NAMES)
    assert "19 of 19 measurements to make, about" in ran.out
    assert not (tmp_path / "runs").exists()


def test_each_measurement_leaves_a_record_and_its_numbers(run: Run, few: list[str]) -> None:
    ran = run(*SMALL)
    assert ran.status == 0, ran.err
    assert all(name in ran.out for name in few)
    for name, path in records().items():
        found = measurement.read(path)
        record, times, nll = found.record, found.tpot_ms, found.nll
        assert record.label == name and record.quality and record.speed
        assert record.sizes.capacity == 256
        assert times is not None and nll is not None
        assert np.quantile(times, 0.5) == pytest.approx(record.speed.tpot_p50_ms, rel=1e-5)
        assert record.quality.ppl == pytest.approx(np.exp(nll.mean()))
        assert record.quality.n_compared == 4
        assert nll.shape == ((260,) if record.recomputes else (599,))


def test_what_is_finished_is_not_measured_again_unless_forced(run: Run, few: list[str]) -> None:
    assert run(*SMALL).status == 0
    before = stamps()
    ran = run(*SMALL)
    assert ran.status == 0 and "4 of 4 measurements are finished" in ran.err
    assert "0 of 4 measurements to make" in run(*SMALL, "--dry-run").out
    assert stamps() == before
    assert run(*SMALL, "--tpot-tokens", "16").status == 0
    again = {few[1], few[2]}  # a round of best@256's R = 64 was longer from the beginning
    assert changed(before) == again, "a longer timing replaces a shorter one"
    before = stamps()
    assert run(*SMALL).status == 0 and not changed(before), "a shorter one does not"
    assert run(*SMALL, "--force").status == 0 and changed(before) == set(few)


def test_forced_the_baseline_is_measured_again(run: Run, few: list[str]) -> None:
    assert run(*SMALL).status == 0
    stored = records()["baseline@256"]
    found = measurement.read(stored)
    assert found.nll is not None
    altered = np.full_like(found.nll, 9.0)
    measurement.write(stored, measurement.Measurement(found.record, altered, found.tpot_ms))
    assert run(*SMALL, "--force").status == 0
    again = measurement.read(stored).nll
    assert again == pytest.approx(found.nll, abs=1e-4)


def test_arrays_that_cannot_be_read_are_measured_again(run: Run, few: list[str]) -> None:
    assert run(*SMALL).status == 0
    before, paths = stamps(), records()
    nll = measurement.array_path(paths[few[1]], "nll")
    nll.write_bytes(nll.read_bytes()[:100])
    measurement.array_path(paths[few[2]], "tpot").unlink()
    assert run(*SMALL).status == 0 and changed(before) == {few[1], few[2]}


def test_two_files_of_one_name_are_two_texts(
    run: Run, few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_paper, "configurations", lambda *given: configurations(*given)[:2])
    for folder, words in (("a", "one word and another, "), ("b", "the mill stood by the river. ")):
        Path(folder).mkdir()
        Path(folder, "x.txt").write_text(words * 400)
    ran = run(*SMALL, "--dataset-name", "a/x.txt, b/x.txt")
    assert ran.status == 0, ran.err
    folders = sorted(path for path in Path("runs").iterdir() if path.is_dir())
    assert len(folders) == 2
    ppl = [
        found.quality.ppl
        for folder in folders
        for path in folder.glob("mit*.json")
        if (found := measurement.read(path).record).quality
    ]
    assert len(set(ppl)) == 2


def test_a_record_of_another_release_is_kept_beside(
    run: Run, few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(measurement, "VERSION", "0.0.1")
        assert run(*SMALL).status == 0
    ran = run(*SMALL)
    assert ran.status == 0 and "0 of 4 measurements are finished" in ran.err
    assert len(list(Path("runs").rglob("*.json"))) == 8


def test_one_that_fails_is_reported_and_tried_again(
    run: Run, few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(*arguments: Any) -> Tensor:
        if arguments[2].n_sink == 32:
            raise RuntimeError("out of luck\nwith details")
        return streaming_nll(*arguments)

    monkeypatch.setattr(measuring, "streaming_nll", broken)
    ran = run(*SMALL)
    assert ran.status == 1
    assert "best@256 on stream failed: out of luck" in ran.err and "Traceback" not in ran.err
    assert "1 of 4 measurements failed" in ran.err
    assert set(stamps()) == {*few} - {"best@256"}
    (trace,) = Path("runs").rglob("best@256.failed.txt")
    assert "with details" in trace.read_text()
    before = stamps()
    monkeypatch.setattr(measuring, "streaming_nll", streaming_nll)
    assert run(*SMALL).status == 0
    assert changed(before) == set() and set(stamps()) == set(few)
    assert not trace.exists()


def test_random_weights_are_timed_only(run: Run, few: list[str]) -> None:
    assert run(*SMALL, "--model-name", "random:reference").status == 0
    paths = records()
    assert set(paths) == set(few)
    for path in paths.values():
        found = measurement.read(path)
        assert found.record.quality is None and found.record.speed is not None
        assert found.nll is None
    again = run(*SMALL, "--model-name", "random:reference")
    assert "4 of 4 measurements are finished" in again.err


def start(folder: Path) -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    command = """
from streamcache.cli import main
from tests.shell import load_two_layers, measure_little
measure_little(setattr)
load_two_layers(setattr)
main()
"""
    return subprocess.Popen(
        [sys.executable, "-c", command, *SMALL],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_in_the_middle_it_loses_and_repeats_nothing(run: Run, tmp_path: Path) -> None:
    """SIGKILL, which nothing can catch, while the command runs in a process of its own."""
    process = start(tmp_path)
    deadline = time.monotonic() + 120
    while len(stamps()) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    before = stamps()
    assert 4 <= len(before) < DISTINCT
    for path in records().values():
        measurement.read(path)
    again = run(*SMALL)
    assert again.status == 0, again.err
    assert " of 19 measurements are finished" in again.err
    assert len(stamps()) == DISTINCT
    assert not changed(before)


@pytest.mark.slow
def test_thirty_kills_lose_and_repeat_nothing_and_leave_nothing(run: Run, tmp_path: Path) -> None:
    """At any moment: while importing, measuring, or writing."""
    delays, before = random.Random(0), dict[str, int]()
    for _ in range(30):
        process = start(tmp_path)
        time.sleep(delays.uniform(2, 8))
        process.kill()
        process.communicate()
        assert not changed(before)
        before = stamps()
        for path in records().values():
            measurement.read(path)
    assert run(*SMALL).status == 0
    assert len(stamps()) == DISTINCT and not changed(before)
    left = [path.name for path in Path("runs").rglob("*") if path.name.startswith(".")]
    assert left == [".lock"] and not list(Path("runs").rglob("*.partial.json"))


def records() -> dict[str, Path]:
    """The records on disk, by label."""
    paths = [each for each in Path("runs").rglob("*.json") if ".partial." not in each.name]
    return {json.loads(path.read_bytes())["label"]: path for path in paths}


def stamps() -> dict[str, int]:
    """When each record was written, by label."""
    return {label: path.stat().st_mtime_ns for label, path in records().items()}


def changed(before: dict[str, int]) -> set[str]:
    """The configurations whose records were written again."""
    now = stamps()
    return {name for name in before if now[name] != before[name]}


def test_a_model_that_cannot_be_streamed_is_one_line_once(
    run: Run, few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedModelError("its positions are learned")

    monkeypatch.setattr(measuring, "streaming_nll", refuse)
    ran = run(*SMALL)
    assert ran.status == 2 and ran.err.count("its positions are learned") == 1
