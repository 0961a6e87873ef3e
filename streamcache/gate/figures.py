"""Figures against the golden's: what is deterministic is judged once and never tried again."""

import math

import msgspec

from streamcache.gate.goldens import Entry
from streamcache.gate.samples import Metric, Sample
from streamcache.gate.validation import bounds
from streamcache.gate.verdicts import Status, Verdict


def check_figures(sample: Sample, entry: Entry) -> list[Verdict]:
    """Counts and digests, then metrics."""
    return [*check_equal(sample, entry), *check_metrics(sample, entry)]


def check_equal(sample: Sample, entry: Entry) -> list[Verdict]:
    verdicts = []
    keys = entry.equal.keys() if entry.published else sample.equal.keys() | entry.equal.keys()
    for key in sorted(keys):
        now, then = sample.equal.get(key), entry.equal.get(key)
        status = Status.PASS if now == then else Status.FAIL
        cause = "" if now == then else f"{key} is {now!r}, the golden's is {then!r}"
        verdicts.append(Verdict(sample.name, key, status, str(now), str(then), cause=cause))
    return verdicts


def check_metrics(sample: Sample, entry: Entry) -> list[Verdict]:
    verdicts = []
    keys = entry.metrics.keys() if entry.published else sample.metrics.keys() | entry.metrics.keys()
    for key in sorted(keys):
        now, then = sample.metrics.get(key), entry.metrics.get(key)
        if now is None or then is None:
            cause = f"{key} is {'missing' if now is None else 'new'}"
            verdicts.append(Verdict(sample.name, key, Status.MISSING, cause=cause))
        elif entry.published:  # today's limits are no part of it
            plain = msgspec.structs.replace(then, value=now.value)
            verdicts.append(check_metric(sample.name, key, plain, then))
        else:
            verdicts.append(check_metric(sample.name, key, now, then))
    return verdicts


def check_metric(name: str, key: str, now: Metric, golden: Metric) -> Verdict:
    """Whether a metric is where it was; the test's limits and the golden's both hold."""
    shown = f"{now.value:.7g}", f"{golden.value:.7g}"
    if not math.isfinite(now.value):
        return Verdict(name, key, Status.FAIL, *shown, cause=f"{key} is {now.value}: not a number")
    for limits in (now, golden):
        if not limits.within_bounds(now.value):
            cause = f"{key} is {shown[0]}, {bounds(limits)}"
            return Verdict(name, key, Status.FAIL, *shown, cause=cause)
    own = msgspec.structs.replace(now, value=golden.value)
    if not (golden.allows(now.value) and own.allows(now.value)):
        moved, allowed = now.value - golden.value, min(golden.rel_tol, now.rel_tol)
        if golden.abs_tol > allowed * abs(golden.value):
            cause = f"{key} moved by {moved:+.3g}, abs_tol is {golden.abs_tol:.3g}"
        else:
            change = moved / max(abs(golden.value), 1e-300)
            cause = f"{key} moved by {100 * change:+.3g} %, rel_tol is {100 * allowed:.2g} %"
        return Verdict(name, key, Status.FAIL, *shown, cause=cause)
    return Verdict(name, key, Status.PASS, *shown)
