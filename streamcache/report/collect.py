"""The records of a folder, each beside its arrays, grouped by what can be compared."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy
from numpy.typing import NDArray

from streamcache.measure.diagnose import Diagnosis
from streamcache.measure.profiling import Profile
from streamcache.measure.records import SCHEMA_VERSION, Record, RecordError, array_path, read_array

Kind = Literal["nll", "tpot"]


@dataclass(frozen=True)
class Measured:
    """A record, where it lies, and the numbers beside it."""

    record: Record
    path: Path
    arrays: dict[Kind, NDArray[numpy.float64]] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """The configuration, without the size it was given."""
        return self.record.configuration.partition("@")[0]

    def array(self, kind: Kind) -> NDArray[numpy.float64] | None:
        """NLL of each token, nats [T - 1], or ms of each timed token; None where not kept."""
        return self.arrays.get(kind)


@dataclass(frozen=True)
class Group:
    """Records that compare: one model, environment and text; one of each configuration."""

    rows: tuple[Measured, ...]

    @property
    def first(self) -> Record:
        return self.rows[0].record

    @property
    def subject(self) -> str:
        """Model and device."""
        record = self.first
        timed = record.speed.model if record.speed else record.subject.model
        other = "" if timed == record.subject.model else f" (timed: {timed})"
        return f"{record.subject.model} {record.subject.dtype}{other}, {record.environment.device}"

    @property
    def text(self) -> str:
        return f"{self.first.subject.text}, {self.first.subject.n_tokens:,} tokens"

    def common(self) -> dict[str, float]:
        """PPL of each configuration over the positions at which all of them have a full cache.

        Steady PPLs start where each cache is first full, which is at other positions for other
        windows; these compare. Empty where the NLLs were not kept or the text is too short.
        """
        rows = [row for row in self.rows if row.record.mode != "recompute"]
        nll = {row.record.configuration: row.array("nll") for row in rows}
        floors = [row.record.policy.n_sink + row.record.policy.window_size for row in rows]
        first = max(floors, default=0) - 1
        return {
            name: float(numpy.exp(values[first:].mean()))
            for name, values in nll.items()
            if values is not None and len(values) > first
        }

    def get(self, name: str) -> Measured | None:
        """The record of a configuration by its name, in preference of its published size."""
        found = [row for row in self.rows if row.name == name]
        return min(found, key=lambda row: len(row.record.configuration), default=None)

    def starting(self, prefix: str) -> list[Measured]:
        """An ablation's records, one of each name, in order of R and S.

        Preferred are those of one total that windows were derived from: the one with most records,
        or the larger of two.
        """
        rows = [row for row in self.rows if row.name.startswith(prefix)]
        count = Counter(row.record.policy.capacity for row in rows)
        derived = (r.record.policy.capacity for r in rows if "@" in r.record.configuration)
        total = max(derived, key=lambda each: (count[each], each), default=None)
        rows.sort(key=lambda row: row.record.policy.capacity == total)
        found = {row.name: row for row in rows}
        order = {"softlite-none": 0, "softlite-slack": 1, "softlite-maxdrop": 2}
        return sorted(
            found.values(),
            key=lambda row: (
                row.record.policy.compress_every,
                row.record.policy.n_sink,
                order.get(row.name, 3),
            ),
        )


class Found(NamedTuple):
    """What lies below a folder.

    Attributes:
        bad: a line about each file that is a record, or the numbers of one, and cannot be read.
    """

    groups: list[Group]
    diagnoses: list[Diagnosis]
    profiles: list[Profile]
    bad: list[str]


def collect(folder: Path) -> Found:
    """All records, diagnoses and profiles below a folder.

    Of a configuration measured twice in the same group, the newest counts.
    pytest-benchmark's files are read, too.
    """
    records: list[Measured] = []
    diagnoses: list[Diagnosis] = []
    profiles: list[Profile] = []
    bad: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            if path.stat().st_size > _LONGEST:
                continue
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            bad.append(f"{path} cannot be read: {error}")
            continue
        for entry in _entries(content):
            kind = _KINDS.get(str(entry.get("schema")))
            if kind is None:
                continue
            try:
                made = msgspec.convert(entry, kind)
            except msgspec.ValidationError as error:
                bad.append(f"{path} is a broken record: {error}")
                continue
            if made.version != SCHEMA_VERSION:
                bad.append(f"{path} has schema version {made.version}, not {SCHEMA_VERSION}")
            elif isinstance(made, Record):
                records.append(Measured(made, path, _arrays(made, path, bad)))
            elif isinstance(made, Diagnosis):
                diagnoses.append(made)
            else:
                profiles.append(made)
    records.sort(key=lambda one: one.path.stat().st_mtime_ns)
    return Found(_grouped(records), diagnoses, profiles, bad)


_LONGEST = 1 << 25  # bytes; what is longer is a trace
_KINDS: dict[str, type[Record] | type[Diagnosis] | type[Profile]] = {
    "streamcache-eval": Record,
    "streamcache-diagnosis": Diagnosis,
    "streamcache-profile": Profile,
}


def _entries(content: Any) -> list[dict[str, Any]]:
    """The file's own object, or those that pytest-benchmark keeps."""
    if not isinstance(content, dict):
        return []
    benchmarks = content.get("benchmarks")
    listed = benchmarks if isinstance(benchmarks, list) else []
    extra = [one.get("extra_info") for one in listed if isinstance(one, dict)]
    return [entry for entry in [content, *extra] if isinstance(entry, dict)]


def _arrays(record: Record, path: Path, bad: list[str]) -> dict[Kind, NDArray[numpy.float64]]:
    """The numbers that lie beside a record; what cannot be read is named in `bad`."""
    lengths: dict[Kind, int] = {"nll": record.subject.n_tokens - 1}
    if record.speed:
        lengths["tpot"] = record.speed.n_tokens
    found = {}
    for kind, n in lengths.items():
        if (beside := array_path(path, kind)).exists():
            try:
                found[kind] = read_array(beside, n)
            except RecordError as error:
                bad.append(str(error))
    return found


def _grouped(found: list[Measured]) -> list[Group]:
    groups: dict[tuple[object, ...], dict[str, Measured]] = {}
    for one in found:
        record = one.record
        subject = msgspec.structs.replace(record.subject, text_source="")
        timed = record.speed.model if record.speed else subject.model
        key = (subject, timed, record.environment)
        groups.setdefault(key, {})[record.configuration] = one
    return [Group(tuple(groups[key].values())) for key in sorted(groups, key=str)]
