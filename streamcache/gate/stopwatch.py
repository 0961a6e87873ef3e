"""The wall clock, less the time that the host took from a measurement."""

import time
from pathlib import Path

_SCHEDSTAT = Path("/proc/thread-self/schedstat")  # ns on a core, ns waited for one, time slices


def run_queue_wait_s() -> float:
    """Seconds that the calling thread was ready to run and another had its core.

    On Linux; elsewhere 0, and times are what the wall clock says.
    """
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class Stopwatch:
    """The wall clock, less the time that the thread waited for a core: a busy machine makes a
    benchmark wait, not slow. Sleeping and waiting for anything else count. For work in one thread.

    Attributes:
        seconds: of the block that it was the context of.
        wait_share: share of the wall clock's time that was taken off.
    """

    seconds = wait_share = 0.0

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter()
        self._waited = run_queue_wait_s()
        return self

    def __exit__(self, *_: object) -> None:
        # Wall around waiting, at both ends: what is taken off is part of what it is taken from.
        taken = run_queue_wait_s() - self._waited
        wall = time.perf_counter() - self._start
        self.seconds, self.wait_share = wall - taken, taken / wall
