"""The clock that pytest-benchmark reads in a test with a golden."""

import time

from streamcache.gate.recorder import Clock


class BenchmarkClock(Clock):
    """A wall clock, but where `golden.record` moved it on it shows these seconds only."""

    def __init__(self) -> None:
        super().__init__()
        self._start = time.perf_counter()
        self._read = self.now

    def __call__(self) -> float:
        if self.now == self._read:
            self.now = time.perf_counter() - self._start
        self._read = self.now
        return self.now
