"""`streamcache paper`: the plan, the files, and what interruptions and failures leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from streamcache.cli import paper as cli_paper
from streamcache.measure import baseline, evaluate, records
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.measure.paper import configurations
from streamcache.policy import PolicyError, evictions
from tests.shell import Run

# A budget of 256 and a text of 600 tokens: 19 configurations in seconds.
SMALL = [
    *("paper", "--dataset-name", "stream", "--max-eval-tokens", "600", "--cap-total", "256"),
    *("--tpot-tokens", "8", "--runs", "1", "--positions", "4", "--output-dir", "runs"),
]
FOLDER = Path("runs/paper/reference-float32-stream-600")
NAMES = [c.name for c in configurations(256, on_gpu=False)]


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
    ablations = [c for c in chosen if c.name.startswith(("lazy-", "sink-", "softlite-"))]
    assert len(ablations) == 13
    assert {c.policy.capacity for c in ablations} == {total}
    rates = [c.policy.compress_every for c in ablations if c.name.startswith("lazy")]
    assert rates == [1, 16, 32, 64, 128]
    assert [c.policy.n_sink for c in ablations if c.name.startswith("sink")] == [4, 16, 32, 64]


def test_max_drop_alone_never_binds() -> None:
    """As docs/audit.md says: a prune of R = 32 has no more than 32 entries to drop."""
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
    for name in few:
        record = records.read(FOLDER / f"{name}.json")
        assert record.configuration == name and record.quality and record.speed
        assert record.policy.capacity == 256
        times = np.load(FOLDER / f"{name}.tpot.npy")
        assert len(times) == record.speed.n_tokens
        assert np.quantile(times, 0.5) == pytest.approx(record.speed.tpot_p50_ms, rel=1e-5)
        if record.mode == "recompute":
            continue
        nll = np.load(FOLDER / f"{name}.nll.npy").astype(np.float64)
        assert nll.shape == (599,) and record.quality.ppl == pytest.approx(np.exp(nll.mean()))
        assert record.quality.n_compared == 4 and record.speed.speedup is not None


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
    (stored,) = Path("runs/baselines").iterdir()
    made = baseline.read(stored)
    records.write(stored, baseline.Baseline(made.fingerprint, [9.0] * len(made.nll)))
    assert run(*SMALL, "--force").status == 0
    assert baseline.read(stored).nll == pytest.approx(made.nll, abs=1e-4)


def test_numbers_that_cannot_be_read_are_measured_again(run: Run, few: list[str]) -> None:
    assert run(*SMALL).status == 0
    before = stamps()
    nll, tpot = FOLDER / f"{few[1]}.nll.npy", FOLDER / f"{few[2]}.tpot.npy"
    nll.write_bytes(nll.read_bytes()[:100])
    tpot.unlink()
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
    folders = sorted(Path("runs/paper").iterdir())
    assert len(folders) == 2 == len(list(Path("runs/baselines").iterdir()))
    first, second = (records.read(folder / f"{few[0]}.json").quality for folder in folders)
    assert first and second and first.ppl_compared != second.ppl_compared


def test_a_record_of_something_else_is_measured_anew(run: Run, few: list[str]) -> None:
    assert run(*SMALL).status == 0
    before = stamps()
    path = FOLDER / f"{few[1]}.json"
    other = json.loads(path.read_text())
    other["environment"]["streamcache"] = "0.0.1"
    path.write_text(json.dumps(other))
    (FOLDER / f"{few[2]}.json").write_text("{")
    ran = run(*SMALL)
    assert ran.status == 0 and "2 of 4 measurements are finished" in ran.err
    assert changed(before) == set(few[1:3])


def test_one_that_fails_is_reported_and_tried_again(
    run: Run, few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate.stream_nll

    def broken(loaded: object, text: object, configuration: Configuration, *rest: object) -> Tensor:
        if configuration.name == "best@256":
            raise RuntimeError("out of luck\nwith details")
        return real(loaded, text, configuration, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "stream_nll", broken)
    ran = run(*SMALL)
    assert ran.status == 1
    assert "best@256 on stream failed: out of luck" in ran.err and "Traceback" not in ran.err
    assert "1 of 4 measurements failed" in ran.err
    assert set(stamps()) == {*few} - {"best@256"}
    assert "with details" in (FOLDER / "best@256.failed.txt").read_text()
    before = stamps()
    monkeypatch.setattr(evaluate, "stream_nll", real)
    assert run(*SMALL).status == 0
    assert changed(before) == set() and set(stamps()) == set(few)
    assert not (FOLDER / "best@256.failed.txt").exists()


def test_random_weights_are_timed_only(run: Run, few: list[str]) -> None:
    assert run(*SMALL, "--model-name", "random:reference").status == 0
    folder = FOLDER.with_name("random_reference-float32-stream-600")
    for name in few:
        record = records.read(folder / f"{name}.json")
        assert record.quality is None and record.speed is not None
        assert not (folder / f"{name}.nll.npy").exists()
    again = run(*SMALL, "--model-name", "random:reference")
    assert "4 of 4 measurements are finished" in again.err


def test_killed_in_the_middle_it_loses_and_repeats_nothing(run: Run, tmp_path: Path) -> None:
    """SIGKILL, which nothing can catch, while the command runs in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from streamcache.cli import main; main()", *SMALL],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while len(stamps()) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    before = stamps()
    assert 4 <= len(before) < 19
    for name in before:
        records.read(FOLDER / f"{name}.json")
    again = subprocess.run(
        [sys.executable, "-c", "from streamcache.cli import main; main()", *SMALL],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert f"{len(before)} of 19 measurements are finished" in again.stderr
    assert set(stamps()) == set(NAMES)
    assert not changed(before)


def stamps() -> dict[str, int]:
    """When each record was written, by configuration."""
    return {path.stem: path.stat().st_mtime_ns for path in FOLDER.glob("*.json")}


def changed(before: dict[str, int]) -> set[str]:
    """The configurations whose records were written again."""
    now = stamps()
    return {name for name in before if now[name] != before[name]}
