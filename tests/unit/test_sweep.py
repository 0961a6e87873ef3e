"""Many measurements on two workers are those of one, and go on where they stopped."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from streamcache.caches.admission import UnsupportedModelError
from streamcache.cli.common import loader
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import load_model
from streamcache.measure import sweep as module
from streamcache.measure.configurations import RECOMPUTE, Configuration
from streamcache.measure.measurement import Measurement
from streamcache.measure.run import What, is_finished, run
from streamcache.measure.store import Store
from streamcache.measure.sweep import Job, WorkerError, sweep
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy

WINDOW = EvictionPolicy(4, 60)
WHAT = What(positions=4, tpot_tokens=4, pairs=1)
JOBS = [
    Job(Configuration(WINDOW, RECOMPUTE, label="baseline"), 0),
    Job(Configuration(EvictionPolicy(4, 60), "streaming", label="fast"), 0),
    Job(Configuration(EvictionPolicy(4, 50, 9), "streaming", label="slack"), 0),
    Job(Configuration(EvictionPolicy(4, 60), "streaming", label="fast again"), 0),
]


@pytest.fixture(scope="module")
def workload() -> Workload:
    loaded = load_model("reference")
    text = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=120)
    return Workload(loaded, text, window=WINDOW)


def swept(workload: Workload, folder: Path, **options: Any) -> dict[str, Exception | None]:
    told: dict[str, Exception | None] = {}
    sweep(
        JOBS,
        [workload],
        WHAT,
        Store(folder),
        lambda job, error: told.update({job.configuration.name: error}),
        **options,
    )
    return told


def _exit(device: str) -> Any:
    os._exit(1)


def found(workload: Workload, folder: Path) -> list[Measurement]:
    kept = [is_finished(job.configuration, workload, WHAT, Store(folder)) for job in JOBS]
    assert None not in kept
    return [measurement for measurement in kept if measurement is not None]


@pytest.fixture
def three_threads() -> Iterator[None]:
    """As many as no process has by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_two_workers_measure_what_one_measures(
    workload: Workload, tmp_path: Path, three_threads: None
) -> None:
    everything = dict.fromkeys((job.configuration.name for job in JOBS), None)
    assert swept(workload, tmp_path / "one") == everything
    two = {"others": ["cpu"], "load": loader("reference", None, "auto", None)}
    assert swept(workload, tmp_path / "two", **two) == everything
    one, other = (found(workload, tmp_path / name) for name in ("one", "two"))
    for mine, theirs in zip(one, other):
        assert mine.nll == pytest.approx(theirs.nll)
        assert theirs.record.speed is not None
    assert len(list((tmp_path / "two").glob("*/*.json"))) == 3


def test_an_error_is_told_and_the_others_are_measured(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = run

    def fails(configuration: Configuration, *rest: Any, **options: Any) -> Measurement:
        if configuration.name == "slack":
            raise RuntimeError("out of order")
        return measure(configuration, *rest, **options)

    monkeypatch.setattr(module, "run", fails)
    told = swept(workload, tmp_path)
    assert str(told.pop("slack")) == "out of order"
    assert set(told.values()) == {None} and len(told) == 3


def test_an_error_that_ends_the_sweep_is_raised(
    workload: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Measurement:
        raise UnsupportedModelError("not this model")

    monkeypatch.setattr(module, "run", fails)
    with pytest.raises(UnsupportedModelError, match="not this model"):
        swept(workload, tmp_path, stop_at=(UnsupportedModelError,))


def test_a_process_that_ends_ends_the_sweep(workload: Workload, tmp_path: Path) -> None:
    """It would fail everything that is left, and faster than others measure it."""
    with pytest.raises(WorkerError, match="measured on cpu has ended"):
        swept(workload, tmp_path, others=["cpu"], load=_exit)


def test_a_ppl_waits_for_its_baseline_and_times_do_not(workload: Workload) -> None:
    """Nor is a configuration measured by two workers at a time."""
    plan = module._Plan(module._divided(JOBS, [workload], WHAT, force=False))
    taken = [plan.take() for _ in range(3)]
    names = [(u.job.configuration.name, u.what.ppl) for u in taken if u]
    assert names == [("baseline", "one-pass"), ("fast", None), ("slack", None)]
    fast = taken[1]
    assert fast is not None
    plan.done(fast)  # its second label may be timed now, and its PPL still waits
    following = plan.take()
    assert following is not None and following.job.configuration.name == "fast again"
    assert following.what.ppl is None
    baseline = taken[0]
    assert baseline is not None
    plan.done(baseline)
    plan.done(following)
    assert [u.what.ppl for u in (plan.take(),) if u] == ["one-pass"]


def test_forced_measurements_keep_the_times_that_were_taken_anew(workload: Workload) -> None:
    units = module._divided(JOBS, [workload], WHAT, force=True)
    assert [(u.job.configuration.name, u.what.ppl, u.force) for u in units] == [
        ("baseline", "one-pass", True),
        ("fast", None, True),
        ("slack", None, True),
        ("fast again", None, False),
        ("fast", "one-pass", False),
        ("slack", "one-pass", False),
        ("fast again", "one-pass", False),
    ]
