"""Golden files: what several processes measured on one device, and why it was recorded."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from streamcache.files import write_bytes
from streamcache.gate import canaries, stats
from streamcache.gate.samples import PROTOCOL, Environment, Number, Process, Sample, Value

VERSION = 1
MIN_PROCESSES = 5
LEAST_TAU = 0.03
MOST_TAU = 0.10  # what lets more pass is not recorded
LEAST_GUARD = 0.15  # of the baseline's own time
MOST_GUARD = math.log(2)
MOST_LOG = 100.0  # of anything that is a ratio of times
MOST_AWAY = math.log(10)  # of the anchor: farther away it holds nothing
SCHEMA = "streamcache-golden"


class GoldenError(ValueError):
    """A golden file cannot be used or written; the message says why."""


class Band(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A figure somebody published: the speedup lies between; nothing else is known."""

    low: float
    high: float


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a benchmark was.

    Attributes:
        identity, host_bound, numbers, exact: as of the samples. The tolerances of numbers are those
            of the golden, so that a test cannot loosen them unseen.
        log_ratios: one a process, log(contestant / baseline).
        baselines_s, contestants_s: seconds, one a process; of the same processes as the log-ratios
            or of others, since an update replaces what moved and nothing else.
        anchor: the log-ratio at the last release; losses since then add up against a budget.
        band: instead of samples, a published speedup.
    """

    identity: dict[str, Value] = {}
    host_bound: bool = True
    log_ratios: list[float] = []
    baselines_s: list[float] = []
    contestants_s: list[float] = []
    anchor: float | None = None
    numbers: dict[str, Number] = {}
    exact: dict[str, Value] = {}
    band: Band | None = None

    @property
    def tau(self) -> float:
        """The loss of speed that counts, as a log-ratio."""
        return stats.threshold(self.log_ratios, LEAST_TAU)

    @property
    def guard(self) -> float:
        """The same of the baseline's own time."""
        return stats.threshold([math.log(s) for s in self.baselines_s], LEAST_GUARD)


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a golden comes from; of 0 processes: from a publication, which says so."""

    reason: str
    date: str
    commit: str
    processes: int
    context: dict[str, Value] = {}


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The goldens of one device.

    Attributes:
        provenance, earlier: of the last update and of those before, whose entries may still stand.
        canaries: of the first update; the `baselines_s` of later ones are converted to them.
    """

    provenance: Provenance
    machine: dict[str, Value]
    host: dict[str, Value]
    canaries: dict[str, float]
    entries: dict[str, Entry]
    earlier: list[Provenance] = []
    protocol: int = PROTOCOL
    version: int = VERSION
    schema: str = SCHEMA

    @property
    def is_published(self) -> bool:
        """Whether its figures were published by somebody, not measured by this gate."""
        return self.provenance.processes == 0


def read(path: Path) -> Golden:
    """Read a golden file.

    Raises:
        GoldenError: it is missing, cut off, no golden, or of a version that is not understood.
    """
    try:
        data = path.read_bytes()
        found: Any = msgspec.json.decode(data)
        twice = _twice(data)
    except OSError as error:
        raise GoldenError(
            f"no golden {path}: {error.strerror}; record one with --golden-update"
        ) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise GoldenError(f"{path} is not JSON, or cut off: {error}") from error
    if twice:
        raise GoldenError(f"{path} has {min(twice)!r} twice in one place")
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise GoldenError(f"{path} is not a golden file: it has no schema {SCHEMA!r}")
    if found.get("version") != VERSION:
        raise GoldenError(
            f"{path} has version {found.get('version')!r}, this release reads {VERSION}"
        )
    try:
        golden = msgspec.convert(found, Golden)
    except msgspec.ValidationError as error:
        raise GoldenError(f"{path} is not a valid golden file: {error}") from error
    _check(golden, path)
    return golden


def _twice(data: bytes) -> set[str]:
    """Keys that an object has twice: of these, readers of JSON keep the last and say nothing."""
    found: set[str] = set()

    def look(pairs: list[tuple[str, object]]) -> None:
        counts = Counter(key for key, _ in pairs)
        found.update(key for key, n in counts.items() if n > 1)

    json.loads(data, object_pairs_hook=look)
    return found


def _check(golden: Golden, path: Path) -> None:
    if golden.protocol != PROTOCOL:
        raise GoldenError(f"{path} has protocol {golden.protocol}, this release takes {PROTOCOL}")
    processes = golden.provenance.processes
    timed = any(entry.log_ratios for entry in golden.entries.values())
    if processes < 0 or (processes == 0 and timed):
        raise GoldenError(f"{path}: no times are of {processes} processes")
    for name, seconds in golden.canaries.items():
        if not 0 < seconds < math.inf:
            raise GoldenError(f"{path}: canary {name!r} has no time")
    for name, entry in golden.entries.items():
        if wrong := flaw(entry):
            raise GoldenError(f"{path}: {name}: {wrong}")
    if noise := noisy(golden):
        raise GoldenError(f"{path} is {noise}")


def flaw(entry: Entry) -> str:
    """Why nothing can be held against an entry, in words; empty where it can be."""
    if not (entry.log_ratios or entry.band or entry.numbers or entry.exact):
        return "it holds nothing"
    fewest = min(map(len, (entry.log_ratios, entry.baselines_s, entry.contestants_s)))
    timed = bool(entry.log_ratios or entry.baselines_s or entry.contestants_s)
    if timed and fewest < MIN_PROCESSES:
        return f"it needs times of at least {MIN_PROCESSES} processes, or of none"
    if not all(abs(log) <= MOST_LOG for log in entry.log_ratios):
        return "a log-ratio is no number, or beyond any"
    if not all(0 < s < math.inf for s in (*entry.baselines_s, *entry.contestants_s)):
        return "a time is zero or no number"
    if timed != (entry.anchor is not None):
        return "it needs an anchor where it has times, and none where it has not"
    if entry.anchor is not None:
        away = entry.anchor - statistics.fmean(entry.log_ratios)
        if not abs(away) <= MOST_AWAY:
            return "its anchor is no number, or too far away: delete the entry to start anew"
    if entry.band and timed:
        return "it has both times and a band"
    if entry.band and not 0 < entry.band.low <= entry.band.high < math.inf:
        return f"{entry.band.low} to {entry.band.high} is no band"
    for name, number in entry.numbers.items():
        if not math.isfinite(number.value):
            return f"{name} is {number.value}"
        if not 0 <= number.drift < math.inf:
            return f"{name} may drift by {number.drift}"
        if number.at_most is not None and not number.value <= number.at_most < math.inf:
            return f"{name} {number.value:.7g} is over its budget of {number.at_most:g}"
    return ""


def noisy(golden: Golden) -> str:
    """Where the noise it was recorded in would let too much pass, in words; empty if nowhere."""
    for name, entry in golden.entries.items():
        if entry.log_ratios and entry.tau > MOST_TAU:
            return f"so noisy that a loss of {stats.percent(entry.tau):.0f} % would pass: {name}"
        if entry.baselines_s and entry.guard > MOST_GUARD:
            return f"so noisy that a baseline of twice its time would pass: {name}"
    return ""


def write(path: Path, golden: Golden) -> None:
    """Write a golden file, keys in order, all or nothing."""
    entries = dict(sorted(golden.entries.items()))
    golden = msgspec.structs.replace(golden, entries=entries)
    plain = msgspec.json.encode(golden, order="sorted")
    write_bytes(path, msgspec.json.format(plain, indent=1) + b"\n")


def entry_of(samples: list[Sample]) -> Entry:
    """What several processes measured of one benchmark.

    Raises:
        GoldenError: they did not measure the same, or nothing could be held against it.
    """
    first = samples[0]
    for sample in samples:
        if _measured(sample) != _measured(first):
            raise GoldenError(f"{first.name}: the processes did not measure the same thing")
    numbers = {}
    for name, number in first.numbers.items():
        values = [s.numbers[name].value for s in samples]
        middle = statistics.median(values)
        numbers[name] = msgspec.structs.replace(number, value=middle)
        if not all(abs(v - middle) <= number.drift * abs(middle) for v in values):
            between = f"{min(values):.7g} and {max(values):.7g}"
            raise GoldenError(f"{first.name}: {name} is between {between}: more than it may drift")
    timed = [s for s in samples if s.pairs]
    ratios = [s.log_ratio for s in timed]
    entry = Entry(
        identity=first.identity,
        host_bound=first.host_bound,
        log_ratios=ratios,
        baselines_s=[s.baseline_s for s in timed],
        contestants_s=[s.contestant_s for s in timed],
        anchor=statistics.fmean(ratios) if ratios else None,
        numbers=numbers,
        exact=first.exact,
    )
    if wrong := flaw(entry):
        raise GoldenError(f"{first.name}: {wrong}")
    return entry


def _measured(sample: Sample) -> tuple[object, ...]:
    """What samples of one benchmark must have in common."""
    allowed = {name: (number.drift, number.at_most) for name, number in sample.numbers.items()}
    timed = bool(sample.pairs), bool(sample.busy), sample.host_bound
    return sample.identity, sample.exact, allowed, timed


def updated(
    old: Golden | None, processes: list[Process], provenance: Provenance, new_only: bool = False
) -> tuple[Golden, list[str]]:
    """The golden after an update, and what changed, a line each.

    What moved by no more than a third of its threshold stays as it is, so that a golden does not
    follow the last run. The anchor stays, too, unless the entry is now of something else.

    Raises:
        GoldenError: too few processes, unlike machines or versions, processes that measured unlike
            things, or a machine that is not itself.
    """
    if len(processes) < MIN_PROCESSES:
        raise GoldenError(f"{len(processes)} processes are too few, {MIN_PROCESSES} are needed")
    place = processes[0].environment
    if any(_place(p.environment) != _place(place) for p in processes):
        raise GoldenError("the processes ran on unlike machines")
    if any(p.environment.context != place.context for p in processes):
        raise GoldenError("the processes ran with unlike versions")
    by_name: dict[str, list[Sample]] = {}
    for process in processes:
        for sample in process.samples:
            by_name.setdefault(sample.name, []).append(sample)
    for name, samples in sorted(by_name.items()):
        if len(samples) != len(processes):
            raise GoldenError(f"{name} was measured by {len(samples)} of {len(processes)}")
    times = _canaries(processes)
    if old and (old.is_published or (old.machine, old.host) != _place(place)):
        _replaces(old, place, by_name.keys(), new_only)
        old = None
    if old:
        _is_itself(old, processes)
    entries, changes = dict(old.entries) if old else {}, []
    for name, samples in sorted(by_name.items()):
        entry, before = entry_of(samples), entries.get(name)
        if old and (paces := canaries.paces(times, old.canaries)):
            pace = math.exp(statistics.fmean(paces))
            at_pace = [s / pace for s in entry.baselines_s]
            entry = msgspec.structs.replace(entry, baselines_s=at_pace)
        if before is None:
            changes.append(f"+ {name}: {_shown(entry)}")
        else:
            entry = before if new_only else _moved(before, entry)
            if entry == before:
                continue
            if wrong := flaw(entry):
                raise GoldenError(f"{name}: {wrong}")
            changes.append(f"~ {name}: {_shown(before)} -> {_shown(entry)}")
        entries[name] = entry
    if old is None:
        return Golden(provenance, place.machine, place.host, times, entries), changes
    if not changes:
        return old, []
    earlier = [*old.earlier, old.provenance]
    return msgspec.structs.replace(
        old, provenance=provenance, earlier=earlier, entries=entries
    ), changes


def _place(environment: Environment) -> tuple[dict[str, Value], dict[str, Value]]:
    return environment.machine, environment.host


def _replaces(old: Golden, place: Environment, names: Collection[str], new_only: bool) -> None:
    """Refuse to mix what was measured in two places in one file."""
    if not old.is_published and old.machine != place.machine:
        raise GoldenError("these goldens are of another machine: record under another name")
    left = sorted(old.entries.keys() - names)
    if left or new_only:
        raise GoldenError(
            "these goldens come from another place: measure all of them, not "
            + (f"all but {left[0]}" if left else "new ones only")
        )


def _is_itself(old: Golden, processes: list[Process]) -> None:
    """Refuse to record where the gate would not judge: with a canary out of its band."""
    for process in processes:
        timed = [sample for sample in process.samples if sample.pairs]
        host_bound = any(sample.host_bound for sample in timed)
        wrong = canaries.off(process.environment.canaries, old.canaries, host_bound)
        if timed and wrong:
            raise GoldenError(f"the machine is not itself: {wrong}")


def _canaries(processes: list[Process]) -> dict[str, float]:
    found = {}
    for name in processes[0].environment.canaries:
        seconds = [p.environment.canaries.get(name, math.nan) for p in processes]
        if not all(0 < s < math.inf for s in seconds):
            raise GoldenError(f"canary {name!r} has no time")
        found[name] = statistics.median(seconds)
    return found


def _moved(before: Entry, now: Entry) -> Entry:
    """The entry now, but for what moved by no more than a third of its threshold."""
    if (before.identity, before.host_bound) != (now.identity, now.host_bound):
        return now
    numbers = {k: _moved_number(before.numbers.get(k), n) for k, n in now.numbers.items()}
    now = msgspec.structs.replace(now, numbers=numbers)
    if not now.log_ratios or not before.log_ratios:
        return now
    kept: dict[str, Any] = {"anchor": before.anchor}
    lost = statistics.fmean(now.log_ratios) - statistics.fmean(before.log_ratios)
    slower = _mean_log(now.baselines_s) - _mean_log(before.baselines_s)
    if not abs(lost) > before.tau / 3:
        kept["log_ratios"] = before.log_ratios
    if not abs(slower) > before.guard / 3:
        kept["baselines_s"] = before.baselines_s
    if len(kept) == 3:
        kept["contestants_s"] = before.contestants_s
    return msgspec.structs.replace(now, **kept)


def _moved_number(before: Number | None, now: Number) -> Number:
    if before is None or (before.drift, before.at_most) != (now.drift, now.at_most):
        return now
    return now if abs(now.value - before.value) > now.drift / 3 * abs(before.value) else before


def _mean_log(seconds: list[float]) -> float:
    return statistics.fmean(map(math.log, seconds))


def _shown(entry: Entry) -> str:
    parts = [f"{name} {number.value:.6g}" for name, number in entry.numbers.items()]
    if entry.log_ratios:
        speedup = math.exp(-statistics.fmean(entry.log_ratios))
        parts.append(f"speedup {speedup:.3f} (tau {stats.percent(entry.tau):.1f} %)")
    if entry.band:
        parts.append(f"speedup {entry.band.low} to {entry.band.high}, published")
    return ", ".join(parts)
