"""Runs of the gate at once, each on cores of its own, so that none disturbs another."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"

Job = TypeVar("Job")
Result = TypeVar("Result")


def parsed(text: str) -> list[int]:
    """The cores of a list as `taskset` and the kernel write it: "0-3,8"."""
    ranges = (part.partition("-") for part in text.strip().split(","))
    return [core for low, _, high in ranges for core in range(int(low), int(high or low) + 1)]


def groups(cores: Sequence[int], size: int) -> list[str]:
    """Groups of so many cores, for `taskset -c`; threads of one core are in one group."""
    ordered = sorted(cores, key=lambda core: (_first_sibling(core), core))
    whole = len(ordered) // size
    return [",".join(map(str, ordered[i * size : (i + 1) * size])) for i in range(whole)]


def _first_sibling(core: int) -> int:
    path = Path(_SIBLINGS.format(core))
    return min(parsed(path.read_text(encoding="ascii"))) if path.exists() else core


def spread(
    run: Callable[[Job, str], Result], jobs: Iterable[Job], groups: Sequence[str]
) -> Iterator[Result]:
    """What `run` returns for each job and the cores that it has, as soon as it is there."""
    free: SimpleQueue[str] = SimpleQueue()
    for group in groups:
        free.put(group)

    def placed(job: Job) -> Result:
        cores = free.get()
        try:
            return run(job, cores)
        finally:
            free.put(cores)

    with ThreadPoolExecutor(len(groups)) as pool:
        for done in as_completed([pool.submit(placed, job) for job in jobs]):
            yield done.result()
