"""What a golden must hold for a verdict against it to mean something."""

import math
import statistics

from streamcache.gate import stats
from streamcache.gate.goldens import Entry, Golden
from streamcache.gate.samples import PROTOCOL, Metric

MIN_PROCESSES = 5
MAX_TAU = 0.10  # what lets more pass is not recorded
MAX_GUARD = math.log(2)
MAX_LOG = 100.0  # of anything that is a ratio of times
MAX_ANCHOR_DISTANCE = math.log(10)  # from the log-ratios: farther away an anchor holds nothing
MAX_OWN_TAU = 1.0  # of what a test asks for: a loss of 100 %, twice the time
MAX_REL_TOL = 10.0  # of a metric


def golden_error(golden: Golden) -> str:
    """Why a golden is refused as a whole, in words; empty where it can judge."""
    if golden.protocol != PROTOCOL:
        return f"it has protocol {golden.protocol}, this release takes {PROTOCOL}"
    processes = golden.provenance.processes
    if processes < 0:
        return f"provenance.processes is {processes}"
    if processes == 0 and any(entry.log_ratios for entry in golden.entries.values()):
        return "provenance.processes is 0 (published figures), but entries contain times"
    if processes == 0 and not all(entry.published for entry in golden.entries.values()):
        return "provenance.processes is 0 (published figures), but an entry is not of a publication"
    for name, seconds in golden.canaries.items():
        if not 0 < seconds < math.inf:
            return f"canary {name!r} has no time"
    for name, entry in golden.entries.items():
        if wrong := validation_error(entry):
            return f"{name}: {wrong}"
    return next(iter(noise_errors(golden).values()), "")


def validation_error(entry: Entry) -> str:
    """Why nothing can be compared with an entry, in words; empty where it can be."""
    if not (entry.log_ratios or entry.published_range or entry.metrics or entry.equal):
        return "it holds nothing"
    return _times_error(entry) or _range_error(entry) or _metrics_error(entry.metrics)


def _times_error(entry: Entry) -> str:
    times = (*entry.baselines_s, *entry.candidates_s)
    timed = bool(entry.log_ratios or times)
    n_processes = min(map(len, (entry.log_ratios, entry.baselines_s, entry.candidates_s)))
    if not all(abs(log) <= MAX_LOG for log in entry.mean_log_ratios):
        return "a mean log-ratio is not a number"
    if entry.mean_log_ratios and len(entry.mean_log_ratios) < MIN_PROCESSES:
        return f"it needs mean log-ratios of at least {MIN_PROCESSES} processes, or of none"
    if timed and entry.published:
        return "it is of a publication, but contains times"
    if timed and n_processes < MIN_PROCESSES:
        return f"it needs times of at least {MIN_PROCESSES} processes, or of none"
    if not all(abs(log) <= MAX_LOG for log in entry.log_ratios):
        return f"a log-ratio is not a number between -{MAX_LOG:.0f} and {MAX_LOG:.0f}"
    if not all(0 < s < math.inf for s in times):
        return "a time is zero or not a number"
    if timed != (entry.anchor is not None):
        return "it needs an anchor where it has times, and none where it has not"
    if not 0 <= entry.min_tau <= MAX_OWN_TAU:
        return f"min_tau is {entry.min_tau}: it must be between 0 and {MAX_OWN_TAU:g}"
    if not 0 <= entry.noise < math.inf:
        return f"noise is {entry.noise}"
    if entry.anchor is not None:
        distance = entry.anchor - statistics.fmean(entry.log_ratios)
        if not abs(distance) <= MAX_ANCHOR_DISTANCE:
            return (
                "its anchor is not a number, or too far away: delete the entry to record it again"
            )
    return ""


def _range_error(entry: Entry) -> str:
    found = entry.published_range
    if found and entry.log_ratios:
        return "it has both times and a published range"
    if found and not 0 < found.low <= found.high < math.inf:
        return f"{found.low} to {found.high} is no range"
    return ""


def _metrics_error(metrics: dict[str, Metric]) -> str:
    for name, metric in metrics.items():
        if not math.isfinite(metric.value):
            return f"{name} is {metric.value}"
        if wrong := limits_error(metric):
            return f"{name}: {wrong}"
        if not metric.within_bounds(metric.value):
            return f"{name} is {metric.value:.7g}, {bounds(metric)}"
    return ""


def limits_error(metric: Metric) -> str:
    """Why a metric's limits make no sense, in words; empty where they do."""
    if not 0 <= metric.rel_tol <= MAX_REL_TOL:
        return f"rel_tol is {metric.rel_tol}: it must be between 0 and {MAX_REL_TOL:g}"
    if not 0 <= metric.abs_tol < math.inf:
        return f"abs_tol is {metric.abs_tol}: it must be a number, and not below 0"
    for side in ("max_value", "min_value"):
        bound = getattr(metric, side)
        if bound is not None and not math.isfinite(bound):
            return f"{side} is {bound}: it must be a number, or None"
    return ""


def bounds(metric: Metric) -> str:
    """The bounds of a metric in words."""
    found = []
    if metric.max_value is not None:
        found.append(f"max_value is {metric.max_value:g}")
    if metric.min_value is not None:
        found.append(f"min_value is {metric.min_value:g}")
    return ", ".join(found)


def noise_errors(golden: Golden) -> dict[str, str]:
    """Where the noise between the processes would let too much pass, by name and in words."""
    found = {}
    for name, entry in golden.entries.items():
        if not entry.log_ratios:
            continue
        noisy = max(stats.threshold(entry.log_ratios, 0.0), 3 * entry.noise)
        if noisy > max(MAX_TAU, entry.min_tau):
            loss = stats.percent(noisy)
            found[name] = f"{name} is so noisy that a loss of {loss:.0f} % would pass"
        elif entry.baselines_s and entry.guard > MAX_GUARD:
            found[name] = f"{name} is so noisy that a baseline of twice its time would pass"
    return found
