"""The clocks that pytest-benchmark reads."""

import contextlib
import os
import threading
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


class WaitlessClock:
    """The wall clock less the waits for a core, as `Stopwatch` takes them, in 5 µs a reading.

    For the thread that reads it first. Where the system does not report waits (not Linux) it is the
    wall clock.
    """

    def __init__(self) -> None:
        self._waited = self._waited_before = self._others_before = 0.0
        self._file: int | None = None

    def __call__(self) -> float:
        if self._file is None:
            self._open()
        others = time.process_time() - time.thread_time()
        while True:  # a wait between the readings would count now, and be taken off the next round
            wait, now = self._wait_s(), time.perf_counter()
            if self._wait_s() == wait:
                break
        # A wait for a core that other threads of this process had is its own doing.
        if wait > self._waited_before:
            own = max(0.0, others - self._others_before)
            self._waited += max(0.0, wait - self._waited_before - own)
        self._waited_before, self._others_before = wait, others
        return now - self._waited

    def _open(self) -> None:
        self._file = -1
        with contextlib.suppress(OSError):
            path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
            self._file = os.open(path, os.O_RDONLY)
        self._waited_before = self._wait_s()
        self._others_before = time.process_time() - time.thread_time()

    def _wait_s(self) -> float:
        if self._file is None or self._file < 0:
            return 0.0
        os.lseek(self._file, 0, os.SEEK_SET)
        return int(os.read(self._file, 64).split()[1]) / 1e9

    def __del__(self) -> None:
        if self._file is not None and self._file >= 0:
            os.close(self._file)
