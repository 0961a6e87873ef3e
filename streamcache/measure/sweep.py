"""Many measurements, on all cards of a host: each card a process that measures one at a time.

Times are taken where nothing else runs on the card. The PPL of a configuration is compared with the
recompute baseline, so it waits for that; the times of others are taken meanwhile.
"""

import json
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from streamcache.inputs.corpora import TokenizedText
from streamcache.inputs.models import LoadedModel
from streamcache.measure.configurations import RECOMPUTE, Configuration, identity
from streamcache.measure.progress import Progress, no_progress
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy, PolicyWarning

Load = Callable[[str], LoadedModel]  # of a device
Finished = Callable[["Job", Exception | None], None]


class WorkerError(RuntimeError):
    """A process of a sweep has ended, for want of memory or by a signal."""


@dataclass(frozen=True)
class Job:
    """A configuration to be measured.

    Attributes:
        workload: which one of the sweep's.
    """

    configuration: Configuration
    workload: int


@dataclass(frozen=True, eq=False)
class _Unit:
    """What one card does at a time.

    Attributes:
        waits: whether for the baseline of its workload.
        is_last: whether the job is then finished.
    """

    job: Job
    what: What
    force: bool
    waits: bool = False
    is_last: bool = True


def sweep(
    jobs: Sequence[Job],
    workloads: Sequence[Workload],
    what: What,
    store: Store,
    finished: Finished,
    *,
    others: Sequence[str] = (),
    load: Load | None = None,
    stop_at: tuple[type[Exception], ...] = (),
    force: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Measure every job, and keep it; one that fails does not keep the others from being measured.

    Args:
        workloads: whose models lie on the first device, where this process measures.
        finished: called with a job that is done, and with the reason if it failed, from any thread.
        others: further devices. What they measure is loaded by `load`.
        stop_at: errors that end the sweep.
        force: measure again, even if it is stored.
        progress: shows progress bars of the first device.

    Raises:
        Exception: one of `stop_at`.
        WorkerError: a process that measures on another device has ended.
    """
    plan = _Plan(_divided(jobs, workloads, what, force) if others else _whole(jobs, what, force))

    def measure(unit: _Unit) -> None:
        workload = workloads[unit.job.workload]
        run(unit.job.configuration, workload, unit.what, store, progress=progress, force=unit.force)

    texts = [(workload.text, workload.window) for workload in workloads]
    with ExitStack() as opened, store.lock() if others else nullcontext():
        threads = []
        for device in others:
            far = opened.enter_context(_process(load, device, texts, store.folder))
            thread = threading.Thread(
                target=_work, args=(plan, far, finished, stop_at), name=device, daemon=True
            )
            threads.append(thread)
            thread.start()
        try:
            _work(plan, measure, finished, stop_at)
        finally:
            plan.stop()
        for thread in threads:
            thread.join()
    if plan.error is not None:
        raise plan.error


def _whole(jobs: Sequence[Job], what: What, force: bool) -> list[_Unit]:
    return [_Unit(job, what, first and force) for job, first in _with_first(jobs)]


def _divided(
    jobs: Sequence[Job], workloads: Sequence[Workload], what: What, force: bool
) -> list[_Unit]:
    """Baselines first, then times, then PPLs; what takes long to begin before the others."""
    baselines, timed, read = [], [], []
    for index, workload in enumerate(workloads):
        if what.ppl and workload.window is not None and not workload.ppl_unavailable_reason:
            weights = workload.loaded.quantization
            window = Configuration(workload.window, RECOMPUTE, weights=weights, label="baseline")
            own = [job for job in jobs if job.workload == index and _is_same(job, window)]
            job, extent = (
                (own[0], what) if own else (Job(window, index), replace(what, tpot_tokens=0))
            )
            baselines.append(_Unit(job, extent, force and bool(own), is_last=bool(own)))
    with_baseline = {unit.job.workload for unit in baselines}
    for job, is_first in _with_first(jobs):
        if any(unit.job is job for unit in baselines):
            continue
        if job.workload not in with_baseline:
            timed.append(_Unit(job, what, is_first and force))
            continue
        if what.tpot_tokens:
            timed.append(_Unit(job, replace(what, ppl=None), is_first and force, is_last=False))
        read.append(_Unit(job, what, force and is_first and not what.tpot_tokens, waits=True))
    timed.sort(key=lambda unit: unit.job.configuration.engine != "captured")
    return [*baselines, *timed, *read]


def _with_first(jobs: Sequence[Job]) -> Iterator[tuple[Job, bool]]:
    """Each job, and whether it is the first of its configuration, which is the one measured."""
    seen = set()
    for job in jobs:
        key = job.workload, json.dumps(identity(job.configuration), sort_keys=True)
        yield job, key not in seen
        seen.add(key)


def _is_same(job: Job, configuration: Configuration) -> bool:
    return identity(job.configuration) == identity(configuration)


class _Plan:
    """The units that are due, for workers that take one at a time."""

    def __init__(self, units: list[_Unit]):
        self._open, self._taken = list(units), list[_Unit]()
        self._changed = threading.Condition()
        self.error: Exception | None = None

    def take(self) -> _Unit | None:
        """The next unit that need not wait; None where nothing is left."""
        with self._changed:
            while due := [unit for unit in self._open if unit not in self._taken]:
                if unit := next(filter(self._is_ready, due), None):
                    self._taken.append(unit)
                    return unit
                self._changed.wait()
            return None

    def _is_ready(self, unit: _Unit) -> bool:
        """Nothing in front of it is of the same configuration, or its baseline if it waits."""
        for other in self._open[: self._open.index(unit)]:
            is_baseline = other.job.configuration.recomputes and not other.waits
            if other.job.workload == unit.job.workload and (
                _is_same(other.job, unit.job.configuration) or (unit.waits and is_baseline)
            ):
                return False
        return True

    def done(self, unit: _Unit) -> None:
        with self._changed:
            if unit in self._open:
                self._open.remove(unit)
            self._taken.remove(unit)
            self._changed.notify_all()

    def stop(self, error: Exception | None = None) -> None:
        """Nothing more is taken."""
        with self._changed:
            self._open.clear()
            self.error = self.error or error
            self._changed.notify_all()


def _work(
    plan: _Plan,
    measure: Callable[[_Unit], None],
    finished: Finished,
    stop_at: tuple[type[Exception], ...],
) -> None:
    """Measure one unit after the other, for as long as there are some."""
    while (unit := plan.take()) is not None:
        error: Exception | None = None
        try:
            measure(unit)
        except Exception as raised:
            error = raised
        plan.done(unit)
        if isinstance(error, (WorkerError, *stop_at)):
            plan.stop(error)
        elif unit.is_last:
            finished(unit.job, error)


_own: dict[str, object] = {}  # of a process that measures on another device


@contextmanager
def _process(
    load: Load | None,
    device: str,
    texts: list[tuple[TokenizedText, EvictionPolicy | None]],
    folder: Path,
) -> Iterator[Callable[[_Unit], None]]:
    """A process that measures what it is given on a device; it is ended with the sweep."""
    start = partial(_open, load, device, texts, folder, torch.get_num_threads())
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=start)

    def measure(unit: _Unit) -> None:
        try:
            pool.submit(_measure, unit).result()
        except BrokenProcessPool as error:
            raise WorkerError(f"the process that measured on {device} has ended") from error

    try:
        yield measure
    except BaseException:
        for process in list((pool._processes or {}).values()):  # public from Python 3.14 on
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _open(
    load: Load | None,
    device: str,
    texts: list[tuple[TokenizedText, EvictionPolicy | None]],
    folder: Path,
    n_threads: int,
) -> None:
    torch.set_num_threads(n_threads)  # a record says how many measured, and is found by it
    warnings.simplefilter("ignore", PolicyWarning)  # it warns of what is measured here
    assert load is not None
    loaded = load(device)
    _own["workloads"] = [Workload(loaded, text, window=window) for text, window in texts]
    _own["store"] = Store(folder, is_locked=True)


def _measure(unit: _Unit) -> None:
    workloads, store = _own["workloads"], _own["store"]
    assert isinstance(workloads, list) and isinstance(store, Store)
    run(unit.job.configuration, workloads[unit.job.workload], unit.what, store, force=unit.force)


def trace_of(error: Exception) -> str:
    """Where an error was raised, in any process."""
    return "".join(traceback.format_exception(error))
