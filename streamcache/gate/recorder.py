"""What a benchmark calls to say what it measured, and the clock its times are read from."""

import contextlib
import math
import operator
from collections.abc import Callable
from typing import Protocol

from streamcache.gate.samples import Environment, Number, Sample, Value
from streamcache.gate.stats import LEAST_PAIRS
from streamcache.gate.stopwatch import Stopwatch

PARENT = "STREAMCACHE_GOLDEN_PARENT"  # set where a process that measures waits for this one

Seconds = Callable[[], float]  # runs a block and returns seconds per unit of work


class Clock:
    """A timer for pytest-benchmark that a benchmark moves on by the seconds it measured itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rounds(Protocol):
    """The part of pytest-benchmark's fixture that is used."""

    extra_info: dict[str, object]

    def pedantic(self, target: Callable[[], None], *, rounds: int) -> object: ...


class Surroundings(Protocol):
    """A look at the machine; taken before, during and after each benchmark."""

    def sample(self) -> Environment: ...


class Recorder:
    """The fixture `golden`: one benchmark's sample, in the making."""

    def __init__(self, name: str, clock: Clock, surroundings: Surroundings):
        self.name, self.clock, self._surroundings = name, clock, surroundings
        self.looks = [surroundings.sample()]
        self._identity: dict[str, Value] = {}
        self._exact: dict[str, Value] = {}
        self._numbers: dict[str, Number] = {}
        self._pairs: list[tuple[float, float]] = []
        self._busy: list[tuple[float, float]] = []
        self._host_bound = True
        self._waited = 0.0

    def identity(self, **what: Value) -> None:
        """What is measured; figures compare only where all of it is the same."""
        for key, value in what.items():
            value = _value(key, value)
            if self._identity.setdefault(key, value) != value:
                raise ValueError(f"{key} is {self._identity[key]!r} already, not {value!r}")

    def exactly(self, **values: Value) -> None:
        """Counts and digests that must equal the golden's."""
        for key, value in values.items():
            self._is_new(key)
            self._exact[key] = _value(key, value)

    def number(
        self, name: str, value: float, *, drift: float, at_most: float | None = None
    ) -> None:
        """A figure: `drift` is the largest relative change either way, `at_most` a budget."""
        self._is_new(name)
        if not 0 <= drift < math.inf:
            raise ValueError(f"{name} may drift by {drift}: it must be a number, and not below 0")
        if at_most is not None and not math.isfinite(at_most):
            raise ValueError(f"{name} has a budget of {at_most}: it must be a number, or None")
        self._numbers[name] = Number(float(value), float(drift), at_most)

    def _is_new(self, name: str) -> None:
        if name in self._numbers or name in self._exact:
            raise ValueError(f"{name} is said twice: the golden has room for one")

    def time(
        self,
        benchmark: Rounds,
        contestant: Seconds,
        baseline: Seconds,
        pairs: int = 12,
        busy: tuple[Seconds, Seconds] | None = None,
    ) -> None:
        """Time a contestant beside a baseline, in turns that alternate: ABBA.

        Each call runs a block and returns seconds per unit of work. The contestant's seconds are a
        round of pytest-benchmark, so its median is the time per unit and `ops` the rate.

        Args:
            busy: blocks of the contestant and of what it is held against that return the seconds
                that a device was at work, per unit: given where the device waits for its host, and
                judged in place of the times, which are reported, and held against published bands
                only. Otherwise times are the host's. Where both are bound by the same, by memory
                say, the ratio is the same from card to card.
        """
        contestant(), baseline()
        self._host_bound = busy is None

        def pair() -> None:
            if len(self._pairs) == pairs // 2:
                self.look()
            self._pairs.append(in_turn(len(self._pairs), contestant, baseline))
            self.clock.now += self._pairs[-1][0]

        with Stopwatch() as watch:
            benchmark.pedantic(pair, rounds=pairs)
        if watch.seconds > 0.5:  # of less, what share was waited for is luck
            self._waited = watch.waited
        benchmark.extra_info["pairs_s"] = list(self._pairs)
        if busy is not None:
            busy[0](), busy[1]()
            few = max(LEAST_PAIRS, pairs // 2)  # a device at work scatters little
            self._busy = [in_turn(turn, *busy) for turn in range(few)]
            benchmark.extra_info["busy_s"] = list(self._busy)

    def look(self) -> None:
        self.looks.append(self._surroundings.sample())

    def sample(self) -> Sample:
        return Sample(
            name=self.name,
            identity=self._identity,
            pairs=self._pairs,
            busy=self._busy,
            host_bound=self._host_bound,
            waited=self._waited,
            numbers=self._numbers,
            exact=self._exact,
        )


def in_turn(turn: int, contestant: Seconds, baseline: Seconds) -> tuple[float, float]:
    """Seconds of both; who comes first alternates."""
    if turn % 2:
        b = baseline()
        return contestant(), b
    return contestant(), baseline()


def _value(key: str, value: object) -> Value:
    """As goldens keep it: text, or a whole number, numpy's too."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)  # type: ignore[arg-type]
    raise TypeError(f"{key} is {value!r}: it must be text or a whole number, figures have `number`")
