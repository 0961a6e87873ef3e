"""What one process measured: a sample of each benchmark, and the environment it was taken in."""

import math
import statistics
from pathlib import Path
from typing import Any, Literal

import msgspec

from streamcache.gate.environment import Environment, Value
from streamcache.measure.pairs import log_ratios

PROTOCOL = 1  # how samples are taken; samples of different protocols do not compare
VERSION = 2  # of the files that hold samples

# A thread that waits for a core this often finds its caches emptied when it gets one. On two cores
# with five busy threads, steps of 5 ms took 25 to 45 % longer, the waiting not counted.
MAX_WAIT_SHARE = 0.15

Pairs = list[tuple[float, float]]


class SampleError(ValueError):
    """A file holds no samples; the message says why."""


class Metric(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A figure that must not move.

    Attributes:
        value: what was measured; NaN is legal here and fails in the gate.
        rel_tol: the largest relative difference from the golden.
        max_value, min_value: bounds that hold for any golden; None: no bound.
        abs_tol: a difference of this size is allowed, however small the golden's value is.
        better: "lower" or "higher" where a change that way is no error; "" where any change is.
    """

    value: float
    rel_tol: float
    max_value: float | None = None
    min_value: float | None = None
    abs_tol: float = 0.0
    better: Literal["", "lower", "higher"] = ""

    def allows(self, value: float) -> bool:
        """Whether another measurement is close enough to this one."""
        change = value - self.value
        if (self.better == "lower" and change < 0) or (self.better == "higher" and change > 0):
            return True
        return abs(change) <= max(self.rel_tol * abs(self.value), self.abs_tol)

    def within_bounds(self, value: float) -> bool:
        """Whether a value is a number between `min_value` and `max_value`."""
        low = -math.inf if self.min_value is None else self.min_value
        high = math.inf if self.max_value is None else self.max_value
        return math.isfinite(value) and low <= value <= high

    @property
    def limits(self) -> tuple[object, ...]:
        """All but the value: what is allowed."""
        return msgspec.structs.astuple(self)[1:]


class Sample(msgspec.Struct, frozen=True):
    """One benchmark, measured once, in one process.

    Attributes:
        name: the node id of the test.
        identity: what was measured; compares only with the same. A default is left out.
        pairs: seconds of the candidate and of the baseline measured alternately with it.
        device_pairs: the same in device time, where the device waits for its host: judged in place
            of the pairs, which say more of the host than of the code, but against published ranges.
        host_bound: whether the host's speed, and not the device's alone, decides the candidate's.
        wait_share: share of the time of the pairs that the thread waited for a core.
        metrics: figures by name.
        equal: counts and digests that must be equal.
        mean_s: mean over all rounds, where a pair stands for several; 0: that of the pairs.
        tau: the loss of speed that counts, as a fraction; 0 where the test does not say.
        warn_only: whether the test asks that nothing of it fails the run.
        profile: milliseconds by kernel, operator or function, where it was asked for.
    """

    name: str
    identity: dict[str, Value] = {}
    pairs: Pairs = []
    device_pairs: Pairs = []
    host_bound: bool = True
    wait_share: float = 0.0
    metrics: dict[str, Metric] = {}
    equal: dict[str, Value] = {}
    mean_s: float = 0.0
    tau: float = 0.0
    warn_only: bool = False
    profile: dict[str, float] = {}

    @property
    def disturbed(self) -> str:
        """Why the gated pairs may be too long, in words; empty where nothing is known."""
        return self.cpu_contended if self.host_bound else ""

    @property
    def cpu_contended(self) -> str:
        """Why the pairs of the host's clock may be too long."""
        if self.wait_share <= MAX_WAIT_SHARE:
            return ""
        return f"the CPU is contended: {100 * self.wait_share:.0f} % of the time no core was free"

    @property
    def gated_pairs(self) -> Pairs:
        """The pairs that are judged."""
        return self.device_pairs or self.pairs

    @property
    def log_ratios(self) -> list[float]:
        """log(candidate / baseline) of each gated pair."""
        return log_ratios(self.gated_pairs)

    @property
    def median_log_ratio(self) -> float:
        """Robust against a disturbed pair; NaN without pairs."""
        return statistics.median(self.log_ratios) if self.gated_pairs else math.nan

    @property
    def mean_log_ratio(self) -> float:
        """Of the means over the pairs: rare slow blocks move it, but not the median."""
        if self.mean_s:
            return math.log(self.mean_s)
        candidates, baselines = zip(*self.gated_pairs)
        return log_ratios([(sum(candidates), sum(baselines))])[0]

    @property
    def baseline_s(self) -> float:
        """The quickest baseline: nothing else takes the machine's noise out of it."""
        return min(b for _, b in self.gated_pairs)

    @property
    def candidate_s(self) -> float:
        return statistics.median(a for a, _ in self.gated_pairs)


class Process(msgspec.Struct, frozen=True, tag="streamcache-samples", tag_field="schema"):
    """All samples of a process: the section `streamcache` of a pytest-benchmark JSON.

    Attributes:
        failed: node ids of the tests that failed, and have no sample.
        left: whether tests were left out, since only those with times were asked for.
        strays: files of the other tree that were imported.
    """

    environment: Environment
    samples: list[Sample]
    date: str = ""
    failed: list[str] = []
    left: bool = False
    strays: list[str] = []
    protocol: int = PROTOCOL
    version: int = VERSION


def read(path: Path) -> Process:
    """The samples in a file of `--golden-samples` or `--benchmark-json`.

    Raises:
        SampleError: there are none, or of another protocol or version.
    """
    try:
        found = msgspec.json.decode(path.read_bytes())
        if "streamcache" in found:
            found = found["streamcache"]["process"]
        version = found.get("version", 1)
        process = msgspec.convert(_with_nan(found), Process)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise SampleError(f"{path} holds no samples of golden benchmarks: {error}") from error
    if version != VERSION:
        raise SampleError(f"{path} has samples of version {version}, not {VERSION}: measure again")
    if process.protocol != PROTOCOL:
        raise SampleError(f"{path} has samples of protocol {process.protocol}, not {PROTOCOL}")
    return process


def _with_nan(found: Any) -> Any:
    """JSON has no NaN, and null stands in its place."""
    if isinstance(found, dict):
        return {k: _with_nan(v) for k, v in found.items()}
    if isinstance(found, list):
        return [_with_nan(v) for v in found]
    return math.nan if found is None else found
