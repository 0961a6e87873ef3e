"""What a benchmark calls to say what it measured, and the clock its times are read from."""

import contextlib
import cProfile
import math
import operator
import pstats
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from streamcache.gate.environment import Environment, EnvironmentProbe, Value, interpreter
from streamcache.gate.samples import Metric, Pairs, Sample
from streamcache.gate.stats import MIN_PAIRS
from streamcache.gate.validation import limits_error
from streamcache.measure.memory import peak_rss_bytes, reset_peak_rss
from streamcache.measure.pairs import Seconds, Stopwatch, alternate

MIN_BLOCK_S = 1e-3
MEMORY_NOISE = 4 << 20  # bytes that an allocator may keep or not

Profile = Callable[[], dict[str, float]]
PeakMemory = tuple[Callable[[], int | None], Callable[[], int]]

FEW_PAIRS = 10  # where there are other processes that measure the same


class Clock:
    """A timer for pytest-benchmark that a benchmark moves on by the seconds it measured itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Benchmark(Protocol):
    """The part of pytest-benchmark's fixture that is used."""

    extra_info: dict[str, object]

    def pedantic(self, target: Callable[[], None], *, rounds: int) -> object: ...


class Recorder:
    """The fixture `golden`: collects one benchmark's sample."""

    def __init__(self, name: str, clock: Clock, probe: EnvironmentProbe, few_pairs: bool = False):
        self._few_pairs = few_pairs
        self.name, self.clock, self._probe = name, clock, probe
        self.snapshots: list[Environment] = [probe.sample()]
        self._identity: dict[str, Value] = {}
        self._equal: dict[str, Value] = {}
        self._metrics: dict[str, Metric] = {}
        self._pairs: Pairs = []
        self._device_pairs: Pairs = []
        self._wait_share = 0.0
        self.tau = 0.0
        self.warn_only = False
        self.explains = False  # whether profiles are asked for
        self._profile: dict[str, float] = {}

    def identity(self, **what: Value) -> None:
        """What is measured; figures compare only where all of it is the same. Leave defaults out,
        so that a new field with a neutral default does not make it another benchmark."""
        for key, value in what.items():
            value = _value(key, value)
            if self._identity.setdefault(key, value) != value:
                raise ValueError(f"{key} is {self._identity[key]!r} already, not {value!r}")

    def equal(self, **values: Value) -> None:
        """Counts and digests that must equal the golden's."""
        for key, value in values.items():
            self._require_new(key)
            self._equal[key] = _value(key, value)

    def metric(
        self,
        name: str,
        value: float,
        *,
        rel_tol: float,
        max_value: float | None = None,
        min_value: float | None = None,
        abs_tol: float = 0.0,
        better: str = "",
    ) -> None:
        """A figure that must not move: see `samples.Metric` for its limits."""
        self._require_new(name)
        if better not in ("", "lower", "higher"):
            raise ValueError(f"{name}: better is {better!r}: it must be 'lower' or 'higher'")
        fields = {"max_value": max_value, "min_value": min_value, "abs_tol": float(abs_tol)}
        metric = Metric(float(value), float(rel_tol), **fields, better=better)  # type: ignore[arg-type]
        if wrong := limits_error(metric):
            raise ValueError(f"{name}: {wrong}")
        self._metrics[name] = metric

    @contextmanager
    def peak_memory(
        self, peak: PeakMemory | None = None, *, name: str = "peak memory", rel_tol: float = 0.1
    ) -> Iterator[None]:
        """Record the bytes that a block holds at most, beyond what was held before: less is fine.

        Args:
            peak: of the host (default), or two functions: one that resets a device's mark, and one
                that reads it in bytes, such as those of `torch.cuda`.
            rel_tol: the growth that is allowed, in addition to `MEMORY_NOISE` bytes.
        """
        reset, read = peak or (reset_peak_rss, peak_rss_bytes)
        before = reset() or 0
        yield
        grown = max(0, read() - before)
        self.metric(name, grown, rel_tol=rel_tol, abs_tol=MEMORY_NOISE, better="lower")

    def exactly(self, **values: Value) -> None:
        """The former name of `equal`."""
        self.equal(**values)

    def number(
        self, name: str, value: float, *, drift: float, at_most: float | None = None
    ) -> None:
        """The former name of `metric`."""
        self.metric(name, value, rel_tol=drift, max_value=at_most)

    def _require_new(self, name: str) -> None:
        if name in self._metrics or name in self._equal:
            raise ValueError(f"metric {name!r} was recorded twice in one benchmark")

    def n_pairs(self, usual: int) -> int:
        """How many pairs to time: few where several processes share the work."""
        return min(usual, FEW_PAIRS) if self._few_pairs else usual

    def time(
        self,
        benchmark: Benchmark,
        candidate: Seconds,
        baseline: Seconds,
        pairs: int = 12,
        device_time: tuple[Seconds, Seconds] | None = None,
        busy: tuple[Seconds, Seconds] | None = None,
    ) -> None:
        """Time a candidate and a baseline alternately: ABBA.

        Each call runs a block and returns seconds per unit of work.

        Args:
            device_time: blocks of the candidate and of its reference that return device seconds per
                unit: given where the device waits for its host, and judged in place of the times,
                which are reported, and compared with published ranges only. Where both blocks are
                bound by the same, by memory say, the ratio is the same from card to card.
            busy: the former name of `device_time`.
        """
        pairs = self.n_pairs(pairs)
        for block in (candidate, baseline):
            _require_long_enough(block)
        self.profile(lambda: by_function(candidate))
        with Stopwatch() as watch:
            timed = [alternate(turn, candidate, baseline) for turn in range(pairs // 2)]
            self.probe()
            timed += [alternate(turn, candidate, baseline) for turn in range(pairs // 2, pairs)]
        device_pairs = None
        if blocks := device_time or busy:
            blocks[0](), blocks[1]()
            few = max(MIN_PAIRS, pairs // 2)  # device time scatters little
            device_pairs = [alternate(turn, *blocks) for turn in range(few)]
        wait_share = watch.wait_share if watch.seconds > 0.5 else 0.0  # of less it is luck
        self.record(benchmark, pairs=timed, device_pairs=device_pairs, wait_share=wait_share)

    def record(
        self,
        benchmark: Benchmark,
        *,
        pairs: Sequence[tuple[float, float]],
        device_pairs: Sequence[tuple[float, float]] | None = None,
        wait_share: float = 0.0,
    ) -> None:
        """Times measured elsewhere. Each pair is a round of pytest-benchmark, whose median is then
        the candidate's time per unit and `ops` its rate.

        Args:
            pairs: seconds per unit of the candidate and of the baseline, measured alternately.
            device_pairs: the same in device time, judged in place of the pairs: see `time`.
            wait_share: share of the time that the thread waited for a core: see `Stopwatch`.
        """
        if self._pairs:
            raise ValueError("times were recorded twice in one benchmark")
        self._pairs = [(float(a), float(b)) for a, b in pairs]
        self._device_pairs = [(float(a), float(b)) for a, b in device_pairs or []]
        self._wait_share = wait_share
        # Anything that is not a time is judged later, and must not end the report.
        seconds = iter([a if 0 < a < math.inf else 0.0 for a, _ in self._pairs])

        def replay() -> None:
            self.clock.now += next(seconds)

        benchmark.pedantic(replay, rounds=len(self._pairs))
        benchmark.extra_info["pairs_s"] = self._pairs
        if self._device_pairs:
            benchmark.extra_info["device_pairs_s"] = self._device_pairs

    def profile(self, profile: Profile) -> None:
        """Offer to say where the time goes. Called only where a loss must be explained.

        Args:
            profile: returns milliseconds by kernel, operator or function.
        """
        if self.explains and not self._profile:
            self._profile = profile()

    def probe(self) -> None:
        """Take a snapshot of the machine: before, during and after each benchmark."""
        self.snapshots.append(self._probe.sample())

    def sample(self) -> Sample:
        return Sample(
            name=self.name,
            identity={**self._identity, **interpreter()},
            pairs=self._pairs,
            device_pairs=self._device_pairs,
            host_bound=not self._device_pairs,
            wait_share=self._wait_share,
            metrics=self._metrics,
            equal=self._equal,
            tau=self.tau,
            warn_only=self.warn_only,
            profile=self._profile,
        )


def by_function(block: Callable[[], object]) -> dict[str, float]:
    """Milliseconds that each function takes by itself while a block runs once."""
    watched = cProfile.Profile()
    watched.runcall(block)
    found: dict[str, float] = {}
    for (file, _, function), row in pstats.Stats(watched).stats.items():  # type: ignore[attr-defined]
        name = f"{Path(file).name}:{function}" if file != "~" else function
        found[name] = found.get(name, 0.0) + 1e3 * row[2]
    return found


def _require_long_enough(block: Seconds) -> None:
    """Run a block untimed.

    Raises:
        ValueError: it is so short that what it reports is the clock's own time.
    """
    start = time.perf_counter()
    seconds = block()
    wall = time.perf_counter() - start
    if seconds <= wall < MIN_BLOCK_S:
        raise ValueError(
            f"a block takes {1e6 * wall:.0f} µs: repeat its work, so that it takes at least "
            f"{1e3 * MIN_BLOCK_S:g} ms and the clock's own 40 µs do not count"
        )


def _value(key: str, value: object) -> Value:
    """As goldens keep it: text, or a whole number, numpy's too."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)  # type: ignore[arg-type]
    raise TypeError(f"{key} is {value!r}: it must be text or a whole number, figures have `metric`")
