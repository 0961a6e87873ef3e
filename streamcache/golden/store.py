"""Golden files: what several processes measured on one device, and why it was recorded."""

import math
import statistics
from pathlib import Path
from typing import Any

import msgspec

from streamcache.files import write_bytes
from streamcache.golden import stats
from streamcache.golden.samples import PROTOCOL, Number, Process, Sample, Value

VERSION = 1
MIN_PROCESSES = 5
LEAST_TAU = 0.03
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
    """Where a golden comes from."""

    reason: str
    date: str
    commit: str
    processes: int
    context: dict[str, Value] = {}


class Golden(msgspec.Struct, frozen=True):
    """The goldens of one device."""

    provenance: Provenance
    machine: dict[str, Value]
    host: dict[str, Value]
    canaries: dict[str, float]
    entries: dict[str, Entry]
    protocol: int = PROTOCOL
    version: int = VERSION
    schema: str = SCHEMA


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
    for name, entry in golden.entries.items():
        lengths = {len(entry.log_ratios), len(entry.baselines_s), len(entry.contestants_s)}
        if len(lengths) > 1 or lengths & set(range(1, MIN_PROCESSES)):
            raise GoldenError(
                f"{path}: {name} needs figures of at least {MIN_PROCESSES} processes, or of none"
            )
        if not all(map(math.isfinite, entry.log_ratios)):
            raise GoldenError(f"{path}: {name} has a log-ratio that is no number")


def write(path: Path, golden: Golden) -> None:
    """Write a golden file, keys in order, all or nothing."""
    entries = dict(sorted(golden.entries.items()))
    golden = msgspec.structs.replace(golden, entries=entries)
    plain = msgspec.json.encode(golden, order="sorted")
    write_bytes(path, msgspec.json.format(plain, indent=1) + b"\n")


def entry_of(samples: list[Sample]) -> Entry:
    """What several processes measured of one benchmark.

    Raises:
        GoldenError: they did not measure the same, or a figure is no number.
    """
    first = samples[0]
    for sample in samples:
        if (sample.identity, sample.exact) != (first.identity, first.exact):
            raise GoldenError(f"{first.name}: the processes did not measure the same thing")
        for name, number in sample.numbers.items():
            if not math.isfinite(number.value):
                raise GoldenError(f"{first.name}: {name} is {number.value}")
    timed = [s for s in samples if s.pairs]
    numbers = {
        name: msgspec.structs.replace(
            number, value=statistics.median(s.numbers[name].value for s in samples)
        )
        for name, number in first.numbers.items()
    }
    ratios = [s.log_ratio for s in timed]
    return Entry(
        identity=first.identity,
        host_bound=first.host_bound,
        log_ratios=ratios,
        baselines_s=[s.baseline_s for s in timed],
        contestants_s=[s.contestant_s for s in timed],
        anchor=statistics.fmean(ratios) if ratios else None,
        numbers=numbers,
        exact=first.exact,
    )


def updated(
    old: Golden | None, processes: list[Process], provenance: Provenance, new_only: bool = False
) -> tuple[Golden, list[str]]:
    """The golden after an update, and what changed, a line each.

    An entry that moved by no more than a third of its threshold stays as it is, so that a baseline
    does not follow the last run. The anchor of an entry that is replaced stays, too.

    Raises:
        GoldenError: too few processes, unlike machines, or processes that measured unlike things.
    """
    if len(processes) < MIN_PROCESSES:
        raise GoldenError(f"{len(processes)} processes are too few, {MIN_PROCESSES} are needed")
    machine = processes[0].environment
    if any(p.environment.machine != machine.machine for p in processes):
        raise GoldenError("the processes ran on unlike machines")
    by_name: dict[str, list[Sample]] = {}
    for process in processes:
        for sample in process.samples:
            by_name.setdefault(sample.name, []).append(sample)
    entries = dict(old.entries) if old else {}
    changes = []
    for name, samples in sorted(by_name.items()):
        if len(samples) < len(processes):
            raise GoldenError(f"{name} was measured by {len(samples)} of {len(processes)}")
        entry, before = entry_of(samples), entries.get(name)
        if before is None:
            changes.append(f"+ {name}: {_shown(entry)}")
        elif new_only or not _moved(before, entry):
            continue
        else:
            entry = msgspec.structs.replace(entry, anchor=before.anchor or entry.anchor)
            changes.append(f"~ {name}: {_shown(before)} -> {_shown(entry)}")
        entries[name] = entry
    canaries = {
        name: statistics.median(p.environment.canaries[name] for p in processes)
        for name in machine.canaries
    }
    if old and not changes:
        return old, []
    golden = Golden(provenance, machine.machine, machine.host, canaries, entries)
    return golden, changes


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
    return abs(change) > before.tau / 3


def _shown(entry: Entry) -> str:
    parts = [f"{name} {number.value:.6g}" for name, number in entry.numbers.items()]
    if entry.log_ratios:
        speedup = math.exp(-statistics.fmean(entry.log_ratios))
        parts.append(f"speedup {speedup:.3f} (tau {100 * entry.tau:.1f} %)")
    if entry.band:
        parts.append(f"speedup {entry.band.low} to {entry.band.high}, published")
    return ", ".join(parts)
