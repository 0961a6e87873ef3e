"""Times of a candidate and a baseline in alternating blocks, and the speedup that they show.

Only a ratio of times measured next to each other survives a machine whose speed changes. Needs
nothing but the standard library.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Seconds = Callable[[], float]  # runs a block and returns seconds per unit of work
Pair = tuple[float, float]  # seconds per unit of work of the candidate and of the baseline

_SCHEDSTAT = Path("/proc/thread-self/schedstat")  # ns on a core, ns waited for one, time slices


def alternate(turn: int, candidate: Seconds, baseline: Seconds) -> Pair:
    """Seconds of one block of each; the order changes from turn to turn (ABBA)."""
    if turn % 2:
        b = baseline()
        return candidate(), b
    return candidate(), baseline()


def log_ratios(pairs: Sequence[Pair]) -> list[float]:
    """log(candidate / baseline) of each pair; NaN where a time is not positive."""
    return [math.log(a) - math.log(b) if a > 0 and b > 0 else math.nan for a, b in pairs]


def speedup(pairs: Sequence[Pair]) -> float:
    """Median of baseline / candidate over the pairs: one disturbed pair does not move it."""
    return math.exp(-statistics.median(log_ratios(pairs)))


def speedup_error(pairs: Sequence[Pair]) -> float | None:
    """Standard error of `speedup`, from the middle half of the pairs; None for fewer than four.

    For normal values the quartiles are 1.349 deviations apart, and the error of a median is 1.253
    times that of a mean.
    """
    if len(pairs) < 4:
        return None
    low, _, high = statistics.quantiles(log_ratios(pairs), n=4, method="inclusive")
    return speedup(pairs) * 1.253 * (high - low) / 1.349 / math.sqrt(len(pairs))


def run_queue_wait_s() -> float:
    """Seconds that the calling thread was ready to run and had no core; 0 where not on Linux."""
    try:
        return int(_SCHEDSTAT.read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _other_threads_s() -> float:
    """Seconds that the other threads of this process have computed."""
    return time.process_time() - time.thread_time()


class Stopwatch:
    """The wall clock, less the time that the thread waited for a core.

    A busy machine then makes a benchmark wait, not slow. Sleeping and waiting for anything else
    count, and so does the wait for a core that other threads of this process had. For work in one
    thread.

    Attributes:
        seconds: of the block it was the context of.
        wait_s: what was taken off.
        wait_share: share of the wall-clock time that was taken off.
    """

    seconds = wait_s = wait_share = 0.0

    def __enter__(self) -> "Stopwatch":
        self._others = _other_threads_s()
        self._start = time.perf_counter()
        self._waited = run_queue_wait_s()
        return self

    def __exit__(self, *_: object) -> None:
        # The wall clock is read around the wait at both ends: the wait is part of the wall time.
        waited = run_queue_wait_s() - self._waited
        wall = time.perf_counter() - self._start
        self.wait_s = max(0.0, waited - (_other_threads_s() - self._others))
        self.seconds, self.wait_share = wall - self.wait_s, self.wait_s / wall
