"""Time that the host took from a measurement."""

import time
from pathlib import Path

_SCHEDSTAT = Path("/proc/thread-self/schedstat")  # ns on a core, ns waited for one, time slices


def waited() -> float:
    """Seconds that the calling thread was ready to run and another had its core.

    On Linux; elsewhere 0, and times are what the wall clock says.
    """
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class Stopwatch:
    """The wall clock, less what the thread waited for a core: a busy machine makes a benchmark
    wait, not slow. Sleeping and waiting for anything else count. For work in one thread.

    Attributes:
        seconds: of the block that it was the context of.
        waited: share of the wall clock's time that was taken off.
    """

    seconds = waited = 0.0

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter()
        self._waited = waited()
        return self

    def __exit__(self, *_: object) -> None:
        # Wall around waiting, at both ends: what is taken off is part of what it is taken from.
        taken = waited() - self._waited
        wall = time.perf_counter() - self._start
        self.seconds, self.waited = wall - taken, taken / wall
