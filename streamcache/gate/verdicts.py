"""From samples and goldens to verdicts: pure functions.

Quality does not depend on the weather: a figure has drifted or it has not, and is never tried
again. Speed does: a loss counts when even its lower 95 % bound exceeds the threshold, and is a
failure only when a fresh process agrees.
"""

import enum
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from streamcache.gate import canaries
from streamcache.gate.goldens import Entry, Golden, flaw
from streamcache.gate.samples import Environment, Number, Process, Sample, Value, log_ratios
from streamcache.gate.stats import LEAST_PAIRS, Loss, error_of_median, percent

LEAST_NOISE = 0.05  # log; a narrower bound is never too wide
ANCHOR_BUDGET = 0.05  # what may be lost since the last release, all steps together


class Status(enum.Enum):
    """What a check says, the gravest last. Only FAIL, MISSING and INVALID are red."""

    PASS = "pass"
    IMPROVED = "improved"  # faster than the threshold: record it, or it can be lost unseen
    INCONCLUSIVE = "inconclusive"  # too noisy, or not comparable here: nothing was shown
    SUSPECT = "suspect"  # slower, but a fresh process did not agree
    INVALID = "invalid"  # measured where or when it means nothing
    MISSING = "missing"  # a benchmark without a golden, or a golden without a benchmark
    FAIL = "fail"

    @property
    def is_red(self) -> bool:
        return self in (Status.FAIL, Status.MISSING, Status.INVALID)

    @property
    def gravity(self) -> int:
        return list(Status).index(self)


class Verdict(msgspec.Struct, frozen=True):
    """One check of one benchmark.

    Attributes:
        check: what was compared: "speed", "baseline", "anchor", "identity", a number's name...
        now, golden: the figures, as shown.
        loss: of speed, as a fraction.
        margin, tau, host: logs: its one-sided 95 % bound, what counts, what a slower host explains.
        cause: one line in words.
    """

    name: str
    check: str
    status: Status
    now: str = ""
    golden: str = ""
    loss: float | None = None
    margin: float | None = None
    tau: float | None = None
    host: float = 0.0
    cause: str = ""


def worst(verdicts: Iterable[Verdict]) -> Status:
    """The gravest status; of none, PASS."""
    return max((v.status for v in verdicts), key=lambda s: s.gravity, default=Status.PASS)


def judge(
    sample: Sample, golden: Golden, environment: Environment, again: Process | None = None
) -> list[Verdict]:
    """All verdicts on a benchmark.

    Args:
        again: what a fresh process measured, where `needs_confirmation` asked for it.
    """
    if wrong := _incomparable(sample, golden, environment):
        return [wrong]
    entry = golden.entries[sample.name]
    second = None if again is None else _second(sample.name, golden, again)
    return [
        *_exact(sample, entry, golden.is_published),
        *_numbers(sample, entry, golden.is_published),
        *(_confirmed(v, second) for v in _times(sample, entry, golden, environment)),
    ]


def _incomparable(sample: Sample, golden: Golden, environment: Environment) -> Verdict | None:
    """Why a sample cannot be held against the golden at all; None where it can be."""
    name, entry = sample.name, golden.entries.get(sample.name)
    if differs := _unlike(environment.machine, golden.machine, golden.is_published):
        return Verdict(name, "machine", Status.INVALID, cause=f"another machine: {differs}")
    if entry is None and golden.is_published:
        cause = "measured, but nothing was published of it"
        return Verdict(name, "golden", Status.INCONCLUSIVE, cause=cause)
    if entry is None:
        return Verdict(name, "golden", Status.MISSING, cause="measured, but no golden has it")
    if wrong := flaw(entry):
        return Verdict(name, "golden", Status.FAIL, cause=f"the golden cannot judge: {wrong}")
    if differs := _unlike(sample.identity, entry.identity, golden.is_published):
        cause = f"not what the golden measured: {differs}"
        return Verdict(name, "identity", Status.INVALID, cause=cause)
    if sample.pairs and entry.log_ratios and sample.host_bound != entry.host_bound:
        cause = "times of a host do not compare with those of a device at work"
        return Verdict(name, "identity", Status.INVALID, cause=cause)
    return None


def _second(name: str, golden: Golden, again: Process) -> list[Verdict]:
    """What a fresh process says of the times."""
    repeated = next((s for s in again.samples if s.name == name), None)
    if repeated is None:
        cause = "; ".join(again.environment.problems) or "it did not measure this"
        return [Verdict(name, "speed", Status.INVALID, cause=cause)]
    if wrong := _incomparable(repeated, golden, again.environment):
        return [wrong]
    entry = golden.entries[name]
    disturbed = repeated.crowded if entry.band else repeated.disturbed
    return [_doubted(v, disturbed) for v in _times(repeated, entry, golden, again.environment)]


def needs_confirmation(sample: Sample, golden: Golden, environment: Environment) -> bool:
    """Whether a fresh process must measure again: for what may be a failure, or only noise."""
    verdicts = judge(sample, golden, environment)
    noise = [v for v in verdicts if v.status is Status.INCONCLUSIVE and v.loss is not None]
    return bool(noise) or any(v.status is Status.SUSPECT for v in verdicts)


def missing(golden: Golden, measured: Iterable[str]) -> list[Verdict]:
    """Goldens that no benchmark answered to."""
    cause = "the golden has it, but it was not measured"
    names = sorted(golden.entries.keys() - set(measured))
    return [Verdict(name, "benchmark", Status.MISSING, cause=cause) for name in names]


def differences(now: dict[str, Value], golden: dict[str, Value]) -> str:
    """The keys that differ, with both values; empty where none does."""
    keys = [k for k in sorted(now.keys() | golden.keys()) if now.get(k) != golden.get(k)]
    return ", ".join(f"{k} is {now.get(k)!r}, not {golden.get(k)!r}" for k in keys)


def _unlike(now: dict[str, Value], golden: dict[str, Value], published: bool) -> str:
    """The same; of a publication only what it says."""
    return differences({k: v for k, v in now.items() if k in golden or not published}, golden)


def _exact(sample: Sample, entry: Entry, published: bool) -> list[Verdict]:
    verdicts = []
    keys = entry.exact.keys() if published else sample.exact.keys() | entry.exact.keys()
    for key in sorted(keys):
        now, then = sample.exact.get(key), entry.exact.get(key)
        status = Status.PASS if now == then else Status.FAIL
        cause = "" if now == then else f"{key} is {now!r}, the golden's is {then!r}"
        verdicts.append(Verdict(sample.name, key, status, str(now), str(then), cause=cause))
    return verdicts


def _numbers(sample: Sample, entry: Entry, published: bool) -> list[Verdict]:
    verdicts = []
    keys = entry.numbers.keys() if published else sample.numbers.keys() | entry.numbers.keys()
    for key in sorted(keys):
        now, then = sample.numbers.get(key), entry.numbers.get(key)
        if now is None or then is None:
            cause = f"{key} is {'gone' if now is None else 'new'}"
            verdicts.append(Verdict(sample.name, key, Status.MISSING, cause=cause))
        else:
            if published:  # a budget of today's is no part of it
                now = msgspec.structs.replace(now, at_most=None)
            verdicts.append(number(sample.name, key, now, then))
    return verdicts


def number(name: str, key: str, now: Number, golden: Number) -> Verdict:
    """Whether a figure is where it was: two-sided, since a sudden gain is an error too."""
    shown = f"{now.value:.7g}", f"{golden.value:.7g}"
    if not math.isfinite(now.value):
        return Verdict(name, key, Status.FAIL, *shown, cause=f"{key} is {now.value}: no number")
    budgets = [b for b in (now.at_most, golden.at_most) if b is not None]
    if not all(now.value <= budget for budget in budgets):
        cause = f"{key} {shown[0]} is over its budget of {min(budgets):g}"
        return Verdict(name, key, Status.FAIL, *shown, cause=cause)
    scale = max(abs(golden.value), 1e-300)
    change = (now.value - golden.value) / scale
    if not abs(change) <= golden.drift:
        cause = f"{key} drifted by {100 * change:+.3g} %, allowed are {100 * golden.drift:.2g} %"
        return Verdict(name, key, Status.FAIL, *shown, cause=cause)
    return Verdict(name, key, Status.PASS, *shown)


def _times(sample: Sample, entry: Entry, golden: Golden, environment: Environment) -> list[Verdict]:
    """What the times of one process say, for themselves."""
    if not sample.pairs and not entry.log_ratios and not entry.band:
        return []
    name = sample.name
    if not sample.pairs or not (entry.log_ratios or entry.band):
        side = "sample" if not sample.pairs else "golden"
        return [Verdict(name, "speed", Status.MISSING, cause=f"the {side} has no times")]
    pairs = sample.pairs if entry.band else sample.judged
    if not all(map(math.isfinite, log_ratios(pairs))):
        return [Verdict(name, "times", Status.FAIL, cause="a time is zero or no number")]
    if len(pairs) < LEAST_PAIRS:
        cause = f"{len(pairs)} pairs of times are too few, {LEAST_PAIRS} are needed"
        return [Verdict(name, "speed", Status.INVALID, cause=cause)]
    if environment.problems:
        cause = "; ".join(environment.problems)
        return [Verdict(name, "speed", Status.INVALID, cause=cause)]
    if entry.band:
        return [banded(sample, entry)]
    if off := canaries.off(environment.canaries, golden.canaries, sample.host_bound):
        return [Verdict(name, "speed", Status.INVALID, cause=off)]
    if sample.host_bound and (differs := differences(environment.host, golden.host)):
        cause = f"bound by another host: {differs}; record goldens here to gate speed here"
        return [Verdict(name, "host", Status.INCONCLUSIVE, cause=cause)]
    found = Loss(sample.log_ratio, error_of_median(sample.log_ratios), entry.log_ratios)
    bound = sample.host_bound
    host = canaries.slower_host(environment.canaries, golden.canaries) if bound else 0.0
    return [
        _excused(speed(sample, entry, found, host)),
        _excused(anchored(sample, entry, found, host)),
        guarded(sample, golden, environment),
    ]


def _excused(verdict: Verdict) -> Verdict:
    """A loss that a slower host alone may explain says nothing of the code."""
    if verdict.status is not Status.FAIL:
        return verdict
    assert verdict.loss is not None and verdict.margin is not None and verdict.tau is not None
    if math.log1p(verdict.loss) - verdict.margin - verdict.host > verdict.tau:
        return verdict
    cause = f"{verdict.cause}, and so is the host by {percent(verdict.host):.1f} %"
    return msgspec.structs.replace(verdict, status=Status.INCONCLUSIVE, cause=cause)


def _confirmed(first: Verdict, second: list[Verdict] | None) -> Verdict:
    """What is left of a failure when a fresh process has measured again.

    A failure that nothing can confirm is no pass: what keeps a machine from measuring twice is
    itself in need of repair.
    """
    if first.status is Status.INCONCLUSIVE and first.loss is not None and second is not None:
        return _cleared(first, second)
    if first.status is not Status.FAIL or first.check == "times":
        return first
    same = next((v for v in second or [] if v.check == first.check), None)
    if second is None:
        status, cause = Status.SUSPECT, "to be confirmed"
    elif same and same.status is Status.FAIL:
        status, cause = Status.FAIL, f"a fresh process agrees: {same.cause}"
    elif same and same.status in (Status.PASS, Status.IMPROVED):
        status, cause = Status.SUSPECT, f"a fresh process does not agree: {same.now}"
    else:
        status, cause = Status.INVALID, f"a fresh process could not confirm: {_causes(second)}"
    return msgspec.structs.replace(first, status=status, cause=f"{first.cause}; {cause}")


def _cleared(first: Verdict, second: list[Verdict]) -> Verdict:
    """A verdict that noise or a slower host hid, once measured again.

    A loss seen in the fresh process alone is a suspicion. One seen in both is no pass, however far
    the times scatter, and neither is what could not be measured again.
    """
    assert first.loss is not None and first.tau is not None
    same = next((v for v in second if v.check == first.check), None)
    if same and same.status is Status.IMPROVED and first.loss > first.tau:  # each denies the other
        return msgspec.structs.replace(same, status=Status.PASS, cause="")
    if same and same.status in (Status.PASS, Status.IMPROVED):
        return same
    if same and same.status is Status.FAIL and not _seen(first):
        cause = f"{same.cause} in a fresh process; the first was {first.cause}"
        return msgspec.structs.replace(same, status=Status.SUSPECT, cause=cause)
    if same and same.status is Status.INCONCLUSIVE and not (_seen(first) and _seen(same)):
        return first
    cause = f"{first.cause}; a fresh process could not clear it: {_causes(second)}"
    return msgspec.structs.replace(first, status=Status.INVALID, cause=cause)


def _seen(verdict: Verdict) -> bool:
    """Whether it shows a loss that counts and that no host explains, for all that chance may."""
    assert verdict.loss is not None and verdict.tau is not None
    return verdict.loss > _ratio(verdict.tau + verdict.host) - 1


def _causes(verdicts: list[Verdict]) -> str:
    return "; ".join(v.cause for v in verdicts if v.cause)


def _doubted(verdict: Verdict, disturbed: str) -> Verdict:
    """A fresh process that was disturbed confirms no failure."""
    if verdict.status is not Status.FAIL or verdict.check == "times" or not disturbed:
        return verdict
    cause = f"{verdict.cause}, but {disturbed}"
    return msgspec.structs.replace(verdict, status=Status.INVALID, cause=cause)


def speed(sample: Sample, entry: Entry, found: Loss, host: float) -> Verdict:
    """The ratio to the same-run baseline against the golden's."""
    tau = entry.tau
    verdict = _lost(sample, "speed", statistics.fmean(entry.log_ratios), found.margin, tau, host)
    if found.at_most < -tau:
        cause = f"faster by {-percent(found.estimate):.1f} %: record it, or it can be lost again"
        return msgspec.structs.replace(verdict, status=Status.IMPROVED, cause=cause)
    if verdict.status is Status.PASS and found.margin > max(tau, LEAST_NOISE):
        cause = f"too noisy: the bound is {percent(found.margin):.0f} % wide"
        return msgspec.structs.replace(verdict, status=Status.INCONCLUSIVE, cause=cause)
    return verdict


def anchored(sample: Sample, entry: Entry, found: Loss, host: float) -> Verdict:
    """The same against the last release: ten steps of 1 % do not pass."""
    assert entry.anchor is not None
    budget = max(ANCHOR_BUDGET, entry.tau)
    return _lost(sample, "anchor", entry.anchor, found.margin, budget, host)


def _lost(
    sample: Sample, check: str, then: float, margin: float, tau: float, host: float
) -> Verdict:
    estimate = sample.log_ratio - then
    shown: dict[str, Any] = {
        "now": f"{_ratio(-sample.log_ratio):.3f}x",
        "golden": f"{_ratio(-then):.3f}x",
        "loss": _ratio(estimate) - 1,
        "margin": margin,
        "tau": tau,
        "host": host,
    }
    if estimate - margin > tau:
        cause = f"slower by {percent(estimate):.1f} ± {percent(margin):.1f} %"
        return Verdict(sample.name, check, Status.FAIL, cause=cause, **shown)
    return Verdict(sample.name, check, Status.PASS, **shown)


def _ratio(log: float) -> float:
    return math.exp(min(log, 700.0))  # figures beyond any are shown, too


def guarded(sample: Sample, golden: Golden, environment: Environment) -> Verdict:
    """The baseline's own time, so that a slower baseline does not pass for a speedup.

    In units of the canary of its kind, since a machine may as a whole be faster or slower.
    """
    moved = canaries.paces(environment.canaries, golden.canaries)
    entry = golden.entries[sample.name]
    now, then = math.log(sample.baseline_s), statistics.fmean(map(math.log, entry.baselines_s))
    change = now - then - (statistics.fmean(moved) if moved else 0.0)
    tau = entry.guard + (statistics.pstdev(moved) if moved else 0.0)
    shown: dict[str, Any] = {
        "now": f"{1e3 * sample.baseline_s:.4g} ms",
        "golden": f"{1e3 * _ratio(then):.4g} ms",
        "loss": _ratio(change) - 1,
        "tau": tau,
    }
    if not change <= tau:
        cause = f"the baseline itself is slower by {percent(change):.0f} %"
        return Verdict(sample.name, "baseline", Status.FAIL, cause=cause, **shown)
    return Verdict(sample.name, "baseline", Status.PASS, **shown)


def banded(sample: Sample, entry: Entry) -> Verdict:
    """Against a published speedup, which is all that is known."""
    assert entry.band is not None
    log = statistics.median(log_ratios(sample.pairs))  # who published timed a host, too
    now, low, high = _ratio(-log), entry.band.low, entry.band.high
    shown: dict[str, Any] = {"now": f"{now:.2f}x", "golden": f"{low:g} to {high:g}x"}
    if now < low:
        cause = f"{now:.2f}x is below the published speedup"
        return Verdict(sample.name, "speed", Status.FAIL, cause=cause, **shown)
    if now > high:
        cause = "above the published speedup: record your own goldens"
        return Verdict(sample.name, "speed", Status.IMPROVED, cause=cause, **shown)
    return Verdict(sample.name, "speed", Status.PASS, **shown)


def exit_status(verdicts: Sequence[Verdict], n_measured: int) -> int:
    """0 pass, 1 fail or missing, 5 nothing measured, 75 invalid."""
    if n_measured == 0:
        return 5
    status = worst(verdicts)
    if status in (Status.FAIL, Status.MISSING):
        return 1
    return 75 if status is Status.INVALID else 0
