"""How a golden is recorded from processes, and what an update leaves alone."""

import math
import statistics
from collections.abc import Collection
from typing import Any

import msgspec

from streamcache.gate import canaries, stats
from streamcache.gate.environment import Environment, Value, differences
from streamcache.gate.goldens import Entry, Golden, GoldenError, Provenance
from streamcache.gate.samples import Metric, Process, Sample
from streamcache.gate.validation import MIN_PROCESSES, validation_error

RESET = "--golden-reset-anchors"


def updated(
    old: Golden | None,
    processes: list[Process],
    provenance: Provenance,
    new_only: bool = False,
    reset_anchors: bool = False,
) -> tuple[Golden, list[str]]:
    """The golden after an update, and what changed, a line each.

    What moved by no more than a third of its threshold stays as it is, so that a golden does not
    follow the last run. An anchor stays, too: with `reset_anchors` it is reset where something
    else is measured now, or where the losses since then exceed their budget. Published entries are
    replaced where they were measured, and stay where they were not.

    Raises:
        GoldenError: too few processes, unlike machines or versions, processes that measured unlike
            things, a machine whose canaries are out of band, or anchors that would be reset
            without `reset_anchors`.
    """
    here = _environment(processes)
    by_name = _samples_by_name(processes)
    timed = {name for name, samples in by_name.items() if samples[0].pairs}
    seconds = _canaries(processes)
    moved_host = old is not None and not old.is_published and old.host != here.host
    if old:
        _require_same_machine(old, here)
        if moved_host and timed:
            _require_full_replacement(old, here, by_name.keys(), new_only)
        elif not old.is_published:
            _require_canaries_in_band(old, processes)
    kept = {} if old is None or (moved_host and timed) else old.entries
    renewed = _renewed_anchors(old.entries if old else {}, kept, by_name)
    if renewed and not (reset_anchors or new_only):
        raise GoldenError(
            f"anchors would be reset, so that losses up to now are forgotten: "
            f"{'; '.join(renewed)}; if that is right, add {RESET}"
        )
    entries, changes = dict(kept), []
    for name, samples in sorted(by_name.items()):
        before = kept.get(name)
        if before is not None and new_only:
            continue
        entry = entry_of(samples)
        if old and kept and (paces := canaries.paces(seconds, old.canaries)):
            pace = math.exp(statistics.fmean(paces))
            at_pace = [s / pace for s in entry.baselines_s]
            entry = msgspec.structs.replace(entry, baselines_s=at_pace)
        if before is not None:
            entry = _moved(before, entry, reset_anchors)
            if entry == before:
                continue
            if wrong := validation_error(entry):
                raise GoldenError(f"{name}: {wrong}")
        changes.append(_change(name, old.entries.get(name) if old else None, entry))
        entries[name] = msgspec.structs.replace(entry, recorded=provenance.date)
    if old and not changes:
        return old, []
    golden = Golden(
        provenance=provenance,
        machine=here.machine,
        host=here.host,
        canaries=seconds,
        entries=entries,
        earlier=[*old.earlier, old.provenance] if old else [],
    )
    if old and kept and not old.is_published:  # as they were: entries are in units of them
        golden = msgspec.structs.replace(
            golden, machine=old.machine, host=old.host, canaries=old.canaries
        )
    return golden, changes


def _environment(processes: list[Process]) -> Environment:
    """The environment that all processes had in common."""
    if len(processes) < MIN_PROCESSES:
        raise GoldenError(f"{len(processes)} processes are too few, {MIN_PROCESSES} are needed")
    first = processes[0].environment
    for process in processes:
        found = process.environment
        if (found.machine, found.host) != (first.machine, first.host):
            raise GoldenError("the processes ran on different machines")
        if found.context != first.context:
            raise GoldenError("the processes ran with different versions")
    return first


def _samples_by_name(processes: list[Process]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for process in processes:
        for sample in process.samples:
            found.setdefault(sample.name, []).append(sample)
    for name, samples in sorted(found.items()):
        if len(samples) != len(processes):
            raise GoldenError(f"{name} was measured by {len(samples)} of {len(processes)}")
    return found


def _canaries(processes: list[Process]) -> dict[str, float]:
    found = {}
    for name in processes[0].environment.canaries:
        seconds = [p.environment.canaries.get(name, math.nan) for p in processes]
        if not all(0 < s < math.inf for s in seconds):
            raise GoldenError(f"canary {name!r} has no time")
        found[name] = statistics.median(seconds)
    return found


def _require_same_machine(old: Golden, here: Environment) -> None:
    """A publication names some facts of a machine only."""
    now = here.machine
    if old.is_published:
        now = {key: value for key, value in now.items() if key in old.machine}
    if differs := differences(now, old.machine):
        raise GoldenError(f"these goldens are of another machine ({differs}): use another name")


def _require_full_replacement(
    old: Golden, here: Environment, names: Collection[str], new_only: bool
) -> None:
    """Times of two host CPUs do not go into one file."""
    left = sorted(old.entries.keys() - names)
    if left or new_only:
        missing = f"; not measured: {left[0]}" if left else ""
        raise GoldenError(
            f"golden was recorded on another host CPU ({differences(here.host, old.host)}); "
            f"re-record all entries, new ones alone are not enough{missing}"
        )


def _require_canaries_in_band(old: Golden, processes: list[Process]) -> None:
    """Refuse to record where the gate would not judge."""
    for process in processes:
        timed = [sample for sample in process.samples if sample.pairs]
        host_bound = any(sample.host_bound for sample in timed)
        wrong = canaries.out_of_band(process.environment.canaries, old.canaries, host_bound)
        if timed and wrong:
            raise GoldenError(f"machine state out of tolerance: {wrong}")


def _renewed_anchors(
    old: dict[str, Entry], kept: dict[str, Entry], found: dict[str, list[Sample]]
) -> list[str]:
    """The anchors that would be reset, a line each, with the reason."""
    lines = []
    for name, samples in sorted(found.items()):
        before, now = old.get(name), samples[0]
        if before is None or before.anchor is None:
            continue
        why = "its times are of another host CPU" if name not in kept else ""
        why = why or _what_differs(before, now.identity, now.host_bound)
        why = why or ("" if now.pairs else "it has no times now")
        if why:
            lines.append(f"{name} ({why})")
    return lines


def _what_differs(before: Entry, identity: dict[str, Value], host_bound: bool) -> str:
    if differs := differences(identity, before.identity):
        return f"its identity changed: {differs}"
    if before.host_bound != host_bound:
        return "host times became device times, or the other way round"
    return ""


def entry_of(samples: list[Sample]) -> Entry:
    """What several processes measured of one benchmark.

    Raises:
        GoldenError: they did not measure the same, or nothing could be compared with it.
    """
    first = samples[0]
    for sample in samples:
        if _common(sample) != _common(first):
            raise GoldenError(f"{first.name}: the processes did not measure the same thing")
    metrics = {}
    for name, metric in first.metrics.items():
        values = [s.metrics[name].value for s in samples]
        metrics[name] = msgspec.structs.replace(metric, value=statistics.median(values))
        either_way = msgspec.structs.replace(metrics[name], better="")
        if not all(map(either_way.allows, values)):
            between = f"{min(values):.7g} and {max(values):.7g}"
            raise GoldenError(f"{first.name}: {name} is between {between}: beyond its tolerance")
    timed = [s for s in samples if s.pairs]
    ratios = [s.median_log_ratio for s in timed]
    entry = Entry(
        identity=first.identity,
        host_bound=first.host_bound,
        log_ratios=ratios,
        baselines_s=[s.baseline_s for s in timed],
        candidates_s=[s.candidate_s for s in timed],
        mean_log_ratios=[s.mean_log_ratio for s in timed],
        anchor=statistics.fmean(ratios) if ratios else None,
        metrics=metrics,
        equal=first.equal,
        min_tau=first.tau,
    )
    if wrong := validation_error(entry):
        raise GoldenError(f"{first.name}: {wrong}")
    return entry


def _common(sample: Sample) -> tuple[object, ...]:
    """What samples of one benchmark must have in common."""
    limits = {name: metric.limits for name, metric in sample.metrics.items()}
    timed = bool(sample.pairs), bool(sample.device_pairs), sample.host_bound
    return sample.identity, sample.equal, limits, timed, sample.tau


def _moved(before: Entry, now: Entry, reset_anchors: bool) -> Entry:
    """The entry now, except what moved by no more than a third of its threshold."""
    if before.published or _what_differs(before, now.identity, now.host_bound):
        return now
    metrics = {k: _moved_metric(before.metrics.get(k), n) for k, n in now.metrics.items()}
    now = msgspec.structs.replace(now, metrics=metrics, recorded=before.recorded)
    if not now.log_ratios or not before.log_ratios:
        return now
    assert before.anchor is not None and now.anchor is not None
    reset = reset_anchors and now.anchor - before.anchor > before.anchor_budget
    kept: dict[str, Any] = {} if reset else {"anchor": before.anchor}
    lost = statistics.fmean(now.log_ratios) - statistics.fmean(before.log_ratios)
    slower = _mean_log(now.baselines_s) - _mean_log(before.baselines_s)
    if not abs(lost) > before.tau / 3:
        kept["log_ratios"] = before.log_ratios
        if before.mean_log_ratios:
            kept["mean_log_ratios"] = before.mean_log_ratios
    if not abs(slower) > before.guard / 3:
        kept["baselines_s"] = before.baselines_s
    if {"log_ratios", "baselines_s"} <= kept.keys():
        kept["candidates_s"] = before.candidates_s
    return msgspec.structs.replace(now, **kept)


def _moved_metric(before: Metric | None, now: Metric) -> Metric:
    if before is None or before.limits != now.limits:
        return now
    return now if abs(now.value - before.value) > now.rel_tol / 3 * abs(before.value) else before


def _mean_log(seconds: list[float]) -> float:
    return statistics.fmean(map(math.log, seconds))


def _change(name: str, before: Entry | None, now: Entry) -> str:
    """One line on what an update writes, tolerances that changed included."""
    if before is None:
        return f"+ {name}: {shown(now)}"
    limits = [
        f"; {key}: {_limits(before.metrics[key])} becomes {_limits(metric)}"
        for key, metric in now.metrics.items()
        if key in before.metrics and before.metrics[key].limits != metric.limits
    ]
    if before.min_tau != now.min_tau:
        limits.append(f"; tau of the test: {before.min_tau} becomes {now.min_tau}")
    anchor = ""
    if before.anchor is not None and now.anchor != before.anchor:
        anchor = f"; its anchor is reset, it was {math.exp(-before.anchor):.3f}"
    return f"~ {name}: {shown(before)} -> {shown(now)}{''.join(limits)}{anchor}"


def _limits(metric: Metric) -> str:
    fields = msgspec.to_builtins(metric)
    return ", ".join(f"{key} {value:g}" for key, value in fields.items() if key != "value")


def shown(entry: Entry) -> str:
    """An entry in one line."""
    parts = [f"{name} {metric.value:.6g}" for name, metric in entry.metrics.items()]
    if entry.log_ratios:
        speedup = math.exp(-statistics.fmean(entry.log_ratios))
        parts.append(f"speedup {speedup:.3f} (tau {stats.percent(entry.tau):.1f} %)")
    if found := entry.published_range:
        parts.append(f"speedup {found.low} to {found.high}, published")
    return ", ".join(parts)
