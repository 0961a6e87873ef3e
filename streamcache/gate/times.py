"""The times of one process against the golden's."""

import math
import statistics
from typing import Any

import msgspec

from streamcache.gate import canaries
from streamcache.gate.environment import Environment, differences
from streamcache.gate.goldens import MIN_TAU, Entry, Golden
from streamcache.gate.samples import Sample
from streamcache.gate.stats import MIN_PAIRS, Loss, error_of_median, percent
from streamcache.gate.verdicts import Status, Verdict
from streamcache.measure.pairs import log_ratios

MIN_NOISE = 0.05  # log; a narrower bound is never too wide
MAX_GAIN = math.log(2)  # beyond it, what is timed hardly does its work any more


def check_times(
    sample: Sample, entry: Entry, golden: Golden, environment: Environment
) -> list[Verdict]:
    """What the times of one process say, for themselves; at most one verdict where they cannot be
    judged, else one for each of speed, anchor and baseline."""
    entry = _with_stricter_tau(entry, sample)
    if not sample.pairs and not entry.log_ratios and not entry.published_range:
        return []
    if unusable := _unusable(sample, entry, environment):
        return [unusable]
    if entry.published_range:
        return [check_published_range(sample, entry)]
    if elsewhere := _elsewhere(sample, golden, environment):
        return [elsewhere]
    error = error_of_median(sample.log_ratios)
    loss = Loss(sample.median_log_ratio, error, entry.log_ratios, entry.noise)
    bound = sample.host_bound
    host = canaries.slower_host(environment.canaries, golden.canaries) if bound else 0.0
    return [
        inconclusive_if_host_slower(check_speed(sample, entry, loss, host)),
        inconclusive_if_host_slower(check_anchor(sample, entry, loss, host)),
        *check_mean(sample, entry),
        check_baseline_time(sample, golden, environment),
    ]


def _with_stricter_tau(entry: Entry, sample: Sample) -> Entry:
    """The test's tau and the golden's both hold, so that a test loosens nothing unseen."""
    usual = math.expm1(MIN_TAU)
    return msgspec.structs.replace(entry, min_tau=min(entry.min_tau or usual, sample.tau or usual))


def _unusable(sample: Sample, entry: Entry, environment: Environment) -> Verdict | None:
    """Times that no golden could judge."""
    name = sample.name
    if not sample.pairs or not (entry.log_ratios or entry.published_range):
        side = "sample" if not sample.pairs else "golden"
        return Verdict(name, "speed", Status.MISSING, cause=f"the {side} has no times")
    pairs = sample.pairs if entry.published_range else sample.gated_pairs
    if not all(map(math.isfinite, log_ratios(pairs))):
        return Verdict(name, "times", Status.FAIL, cause="a time is zero or not a number")
    if len(pairs) < MIN_PAIRS:
        cause = f"{len(pairs)} pairs of times are too few, {MIN_PAIRS} are needed"
        return Verdict(name, "speed", Status.INVALID, cause=cause)
    if environment.problems:
        cause = "; ".join(environment.problems)
        return Verdict(name, "speed", Status.INVALID, cause=cause)
    return None


def _elsewhere(sample: Sample, golden: Golden, environment: Environment) -> Verdict | None:
    """Times taken on another host, or in another state of the machine, than the golden's."""
    now, then = environment.canaries, golden.canaries
    if wrong := canaries.out_of_band(now, then, sample.host_bound):
        cause = f"machine state out of tolerance: {wrong}"
        return Verdict(sample.name, "speed", Status.INVALID, cause=cause)
    if sample.host_bound and (differs := differences(environment.host, golden.host)):
        cause = f"bound by another host: {differs}; record goldens here to gate speed here"
        return Verdict(sample.name, "host", Status.INCONCLUSIVE, cause=cause)
    return None


def check_speed(sample: Sample, entry: Entry, loss: Loss, host: float) -> Verdict:
    """The ratio to the baseline of the same run against the golden's."""
    tau = entry.tau
    verdict = _lost(sample, "speed", statistics.fmean(entry.log_ratios), loss.margin, tau, host)
    if loss.upper_bound < -max(MAX_GAIN, tau):
        cause = f"{ratio(-loss.estimate):.1f} x as fast: does it still do its work? {_RECORD}"
        return msgspec.structs.replace(verdict, status=Status.FAIL, cause=cause)
    if loss.upper_bound < -tau:
        cause = f"faster by {-percent(loss.estimate):.1f} %: {_RECORD}"
        return msgspec.structs.replace(verdict, status=Status.IMPROVED, cause=cause)
    if verdict.status is Status.PASS and loss.margin > max(tau, MIN_NOISE):
        cause = f"too noisy: the bound is {percent(loss.margin):.0f} % wide"
        return msgspec.structs.replace(verdict, status=Status.INCONCLUSIVE, cause=cause)
    return verdict


_RECORD = "record it, or it can be lost again"


def check_mean(sample: Sample, entry: Entry) -> list[Verdict]:
    """The ratio of the means: a block in ten that takes ten times as long moves no median."""
    if not entry.mean_log_ratios:
        return []
    now, then = sample.mean_log_ratio, statistics.fmean(entry.mean_log_ratios)
    disturbed = math.log1p(2 / len(sample.gated_pairs))  # two pairs of twice their time are chance
    tau = max(entry.mean_tau, disturbed)
    shown: dict[str, Any] = {
        "now": f"{ratio(-now):.3f}x",
        "golden": f"{ratio(-then):.3f}x",
        "loss": ratio(now - then) - 1,
        "tau": tau,
    }
    if now - then > tau:
        cause = f"the mean is slower by {percent(now - then):.0f} %"
        return [Verdict(sample.name, "mean", Status.FAIL, cause=cause, **shown)]
    return [Verdict(sample.name, "mean", Status.PASS, **shown)]


def check_anchor(sample: Sample, entry: Entry, loss: Loss, host: float) -> Verdict:
    """The same against the last release: ten losses of 1 % do not pass."""
    assert entry.anchor is not None
    return _lost(sample, "anchor", entry.anchor, loss.margin, entry.anchor_budget, host)


def _lost(
    sample: Sample, check: str, then: float, margin: float, tau: float, host: float
) -> Verdict:
    estimate = sample.median_log_ratio - then
    shown: dict[str, Any] = {
        "now": f"{ratio(-sample.median_log_ratio):.3f}x",
        "golden": f"{ratio(-then):.3f}x",
        "loss": ratio(estimate) - 1,
        "margin": margin,
        "tau": tau,
        "host": host,
    }
    if estimate - margin > tau:
        cause = f"slower by {percent(estimate):.1f} ± {percent(margin):.1f} %"
        return Verdict(sample.name, check, Status.FAIL, cause=cause, **shown)
    return Verdict(sample.name, check, Status.PASS, **shown)


def ratio(log: float) -> float:
    """exp, but of a number beyond any a number that can be shown."""
    return math.exp(min(log, 700.0))


def inconclusive_if_host_slower(verdict: Verdict) -> Verdict:
    """A loss that a slower host alone may explain says nothing of the code."""
    assert verdict.loss is not None and verdict.margin is not None and verdict.tau is not None
    if verdict.status is not Status.FAIL or verdict.loss < 0:
        return verdict
    if math.log1p(verdict.loss) - verdict.margin - verdict.host > verdict.tau:
        return verdict
    cause = f"{verdict.cause}, and so is the host by {percent(verdict.host):.1f} %"
    return msgspec.structs.replace(verdict, status=Status.INCONCLUSIVE, cause=cause)


def check_baseline_time(sample: Sample, golden: Golden, environment: Environment) -> Verdict:
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
        "golden": f"{1e3 * ratio(then):.4g} ms",
        "loss": ratio(change) - 1,
        "tau": tau,
    }
    if not change <= tau:
        cause = f"the baseline itself is slower by {percent(change):.0f} %"
        return Verdict(sample.name, "baseline", Status.FAIL, cause=cause, **shown)
    if change < -max(MAX_GAIN, tau):
        cause = f"the baseline itself is {ratio(-change):.1f} x as fast: does it still do its work?"
        return Verdict(sample.name, "baseline", Status.FAIL, cause=cause, **shown)
    return Verdict(sample.name, "baseline", Status.PASS, **shown)


def check_published_range(sample: Sample, entry: Entry) -> Verdict:
    """Against a published speedup, which is all that is known."""
    assert entry.published_range is not None
    log = statistics.median(log_ratios(sample.pairs))  # publications time a host, too
    now, low, high = ratio(-log), entry.published_range.low, entry.published_range.high
    shown: dict[str, Any] = {"now": f"{now:.2f}x", "golden": f"{low:g} to {high:g}x"}
    if now < low:
        cause = f"{now:.2f}x is below the published speedup"
        return Verdict(sample.name, "speed", Status.FAIL, cause=cause, **shown)
    if now > high:
        cause = "above the published speedup: record your own goldens"
        return Verdict(sample.name, "speed", Status.IMPROVED, cause=cause, **shown)
    return Verdict(sample.name, "speed", Status.PASS, **shown)
