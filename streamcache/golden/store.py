"""Golden files: what several processes measured on one device, and why it was recorded."""

import math
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from streamcache.files import write_bytes
from streamcache.golden import stats
from streamcache.golden.samples import PROTOCOL, Environment, Number, Process, Sample, Value

VERSION = 1
MIN_PROCESSES = 5
LEAST_TAU = 0.03
MOST_TAU = 0.10  # what lets more pass is not recorded
LEAST_GUARD = 0.15  # of the baseline's own time
SCHEMA = "streamcache-golden"


class GoldenError(ValueError):
    """A golden file cannot be used or written; the message says why."""


class Band(msgspec.Struct, frozen=True):
    """A figure somebody published: the speedup lies between; nothing else is known."""

    low: float
    high: float


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a benchmark was.

    Attributes:
        identity, host_bound, numbers, exact: as of the samples. The tolerances of numbers are those
            of the golden, so that a test cannot loosen them unseen.
        log_ratios: one a process, log(contestant / baseline).
        baselines_s, contestants_s: seconds, one a process.
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


class Provenance(msgspec.Struct, frozen=True):
    """Where a golden comes from; of 0 processes: from a publication, which says so."""

    reason: str
    date: str
    commit: str
    processes: int
    context: dict[str, Value] = {}


class Golden(msgspec.Struct, frozen=True):
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
        found: Any = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise GoldenError(
            f"no golden {path}: {error.strerror}; record one with --golden-update"
        ) from error
    except msgspec.MsgspecError as error:
        raise GoldenError(f"{path} is not JSON, or cut off: {error}") from error
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


def _check(golden: Golden, path: Path) -> None:
    if golden.protocol != PROTOCOL:
        raise GoldenError(f"{path} has protocol {golden.protocol}, this release takes {PROTOCOL}")
    for name, seconds in golden.canaries.items():
        if not 0 < seconds < math.inf:
            raise GoldenError(f"{path}: canary {name!r} has no time")
    for name, entry in golden.entries.items():
        if wrong := flaw(entry):
            raise GoldenError(f"{path}: {name}: {wrong}")


def flaw(entry: Entry) -> str:
    """Why nothing can be held against an entry, in words; empty where it can be."""
    times = entry.log_ratios, entry.baselines_s, entry.contestants_s
    if len(set(map(len, times))) > 1 or 0 < len(entry.log_ratios) < MIN_PROCESSES:
        return f"it needs times of at least {MIN_PROCESSES} processes, or of none"
    if not all(map(math.isfinite, entry.log_ratios)):
        return "a log-ratio is no number"
    if not all(0 < s < math.inf for s in (*entry.baselines_s, *entry.contestants_s)):
        return "a time is zero or no number"
    if entry.anchor is not None and not math.isfinite(entry.anchor):
        return "the anchor is no number"
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
            lost = 100 * math.expm1(entry.tau)
            return f"so noisy that a loss of {lost:.0f} % would pass: {name}"
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
    timed = bool(sample.pairs), bool(sample.busy), sample.host_bound
    return sample.identity, sample.exact, sample.numbers.keys(), timed


def updated(
    old: Golden | None, processes: list[Process], provenance: Provenance, new_only: bool = False
) -> tuple[Golden, list[str]]:
    """The golden after an update, and what changed, a line each.

    An entry that moved by no more than a third of its threshold stays as it is, so that a baseline
    does not follow the last run. The anchor of an entry that is replaced stays, too, unless the
    entry is now of something else.

    Raises:
        GoldenError: too few processes, unlike machines, or processes that measured unlike things.
    """
    if len(processes) < MIN_PROCESSES:
        raise GoldenError(f"{len(processes)} processes are too few, {MIN_PROCESSES} are needed")
    place = processes[0].environment
    if any(_place(p.environment) != _place(place) for p in processes):
        raise GoldenError("the processes ran on unlike machines")
    by_name: dict[str, list[Sample]] = {}
    for process in processes:
        for sample in process.samples:
            by_name.setdefault(sample.name, []).append(sample)
    for name, samples in sorted(by_name.items()):
        if len(samples) != len(processes):
            raise GoldenError(f"{name} was measured by {len(samples)} of {len(processes)}")
    canaries = _canaries(processes)
    if old and (old.is_published or (old.machine, old.host) != _place(place)):
        _replaces(old, place, by_name.keys(), new_only)
        old = None
    entries, changes = dict(old.entries) if old else {}, []
    for name, samples in sorted(by_name.items()):
        entry, before = entry_of(samples), entries.get(name)
        if old and (paces := stats.paces(canaries, old.canaries)):
            pace = math.exp(statistics.fmean(paces))
            at_pace = [s / pace for s in entry.baselines_s]
            entry = msgspec.structs.replace(entry, baselines_s=at_pace)
        if before is None:
            changes.append(f"+ {name}: {_shown(entry)}")
        elif new_only or not _moved(before, entry):
            continue
        else:
            same = before.identity == entry.identity and before.host_bound == entry.host_bound
            if same and before.anchor is not None:
                entry = msgspec.structs.replace(entry, anchor=before.anchor)
            changes.append(f"~ {name}: {_shown(before)} -> {_shown(entry)}")
        entries[name] = entry
    if old is None:
        return Golden(provenance, place.machine, place.host, canaries, entries), changes
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


def _canaries(processes: list[Process]) -> dict[str, float]:
    canaries = {}
    for name in processes[0].environment.canaries:
        seconds = [p.environment.canaries.get(name, math.nan) for p in processes]
        if not all(0 < s < math.inf for s in seconds):
            raise GoldenError(f"canary {name!r} has no time")
        canaries[name] = statistics.median(seconds)
    return canaries


def _moved(before: Entry, now: Entry) -> bool:
    fixed = ("identity", "exact", "host_bound", "band")
    if any(getattr(before, name) != getattr(now, name) for name in fixed):
        return True
    if before.numbers.keys() != now.numbers.keys() or bool(before.log_ratios) != bool(
        now.log_ratios
    ):
        return True
    for name, number in now.numbers.items():
        golden = before.numbers[name]
        if (number.drift, number.at_most) != (golden.drift, golden.at_most):
            return True
        if abs(number.value - golden.value) > number.drift / 3 * abs(golden.value):
            return True
    if not now.log_ratios:
        return False
    change = statistics.fmean(now.log_ratios) - statistics.fmean(before.log_ratios)
    slower = math.log(statistics.median(now.baselines_s) / statistics.median(before.baselines_s))
    return abs(change) > before.tau / 3 or abs(slower) > LEAST_GUARD / 3


def _shown(entry: Entry) -> str:
    parts = [f"{name} {number.value:.6g}" for name, number in entry.numbers.items()]
    if entry.log_ratios:
        speedup = math.exp(-statistics.fmean(entry.log_ratios))
        parts.append(f"speedup {speedup:.3f} (tau {100 * entry.tau:.1f} %)")
    if entry.band:
        parts.append(f"speedup {entry.band.low} to {entry.band.high}, published")
    return ", ".join(parts)
