"""What one process measured: a sample of each benchmark, and where it was taken."""

import math
import statistics
from pathlib import Path
from typing import Any

import msgspec

PROTOCOL = 1  # how samples are taken; samples of different protocols do not compare

Value = str | int


# Share of the time: who waits for a core so often finds its caches emptied when it has one. On two
# cores with five busy threads, steps of 5 ms took 25 to 45 % longer, waiting not counted.
BUSY = 0.15


class SampleError(ValueError):
    """A file holds no samples; the message says why."""


class Number(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure that must not drift.

    Attributes:
        value: what was measured; NaN is legal here and fails in the gate.
        drift: the largest relative difference from the golden, either way.
        at_most: the largest value allowed, whatever the golden says; None for any.
    """

    value: float
    drift: float
    at_most: float | None = None


class Sample(msgspec.Struct, frozen=True):
    """One benchmark, measured once, in one process.

    Attributes:
        name: the node id of the test.
        identity: what was measured; compares only with the same.
        pairs: seconds of the contestant and of the baseline beside it, in the order taken.
        busy: the same, of the time that a device was at work, where it waits for a host: judged in
            place of the pairs, which say more of the host than of the code, but against bands.
        host_bound: whether the host's speed, and not the device's alone, decides the contestant's.
        waited: share of the time of the pairs that the thread waited for a core.
        numbers: figures by name.
        exact: counts and digests that must be equal.
    """

    name: str
    identity: dict[str, Value] = {}
    pairs: list[tuple[float, float]] = []
    busy: list[tuple[float, float]] = []
    host_bound: bool = True
    waited: float = 0.0
    numbers: dict[str, Number] = {}
    exact: dict[str, Value] = {}

    @property
    def disturbed(self) -> str:
        """Why what is judged may be too long, in words; empty where nothing is known against it."""
        return self.crowded if self.host_bound else ""

    @property
    def crowded(self) -> str:
        """Why its pairs may be."""
        if self.waited <= BUSY:
            return ""
        return f"the machine is busy: {100 * self.waited:.0f} % of the time no core was free"

    @property
    def judged(self) -> list[tuple[float, float]]:
        """The pairs that the gate goes by."""
        return self.busy or self.pairs

    @property
    def log_ratio(self) -> float:
        """Median of log(contestant / baseline) over the pairs: robust against a disturbed pair."""
        return statistics.median(self.log_ratios) if self.judged else math.nan

    @property
    def log_ratios(self) -> list[float]:
        return log_ratios(self.judged)

    @property
    def baseline_s(self) -> float:
        """At its quickest: nothing else is there to take the machine's noise out of it."""
        return min(b for _, b in self.judged)

    @property
    def contestant_s(self) -> float:
        return statistics.median(a for a, _ in self.judged)


def log_ratios(pairs: list[tuple[float, float]]) -> list[float]:
    return [math.log(a) - math.log(b) if a > 0 and b > 0 else math.nan for a, b in pairs]


class Environment(msgspec.Struct, frozen=True):
    """Where samples were taken.

    Attributes:
        machine: must be the same for anything to compare: device, memory, power limit, threads.
        host: must be the same for what is host-bound to compare: the CPU's model.
        context: recorded, and shown where it differs: versions, driver.
        canaries: seconds of fixed pieces of work; out of band, the machine is not itself.
        problems: what makes timing invalid: a throttled GPU, a foreign process.
        readings: what else was seen, one a look: clocks, temperature.
    """

    machine: dict[str, Value] = {}
    host: dict[str, Value] = {}
    context: dict[str, Value] = {}
    canaries: dict[str, float] = {}
    problems: list[str] = []
    readings: list[str] = []


class Process(msgspec.Struct, frozen=True, tag="streamcache-samples", tag_field="schema"):
    """All samples of a process: the section `streamcache` of a pytest-benchmark JSON."""

    environment: Environment
    samples: list[Sample]
    date: str = ""
    protocol: int = PROTOCOL


def merged(environments: list[Environment]) -> Environment:
    """Of several looks at one machine: canaries at their median, all problems and readings."""
    first = environments[0]
    canaries = {
        name: statistics.median(e.canaries.get(name, math.nan) for e in environments)
        for name in first.canaries
    }
    problems = list(dict.fromkeys(p for e in environments for p in e.problems))
    readings = [r for e in environments for r in e.readings]
    return msgspec.structs.replace(first, canaries=canaries, problems=problems, readings=readings)


def read(path: Path) -> Process:
    """The samples in a file of `--golden-samples` or `--benchmark-json`.

    Raises:
        SampleError: there are none, or of another protocol.
    """
    try:
        found = msgspec.json.decode(path.read_bytes())
        if "streamcache" in found:
            found = found["streamcache"]["process"]
        process = msgspec.convert(_with_nan(found), Process)
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise SampleError(f"{path} holds no samples of golden benchmarks: {error}") from error
    if process.protocol != PROTOCOL:
        raise SampleError(f"{path} has samples of protocol {process.protocol}, not {PROTOCOL}")
    return process


def _with_nan(found: Any) -> Any:
    """JSON has no NaN, and null stands in its place; but where there is no budget."""
    if isinstance(found, dict):
        return {k: None if k == "at_most" and v is None else _with_nan(v) for k, v in found.items()}
    if isinstance(found, list):
        return [_with_nan(v) for v in found]
    return math.nan if found is None else found
