"""The measurements of a folder, grouped by what can be compared."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy

from streamcache.measure.checked import RecordError, checked, read_json
from streamcache.measure.configurations import NAMED, Configuration, identity, with_budget
from streamcache.measure.diagnose import Diagnosis
from streamcache.measure.ladder import Ladder
from streamcache.measure.measurement import Fields, Measurement, Record, with_arrays
from streamcache.measure.profile import Profile
from streamcache.measure.sinks import Sinks
from streamcache.measure.version1 import from_version_1, is_version_1
from streamcache.plain import plain_values
from streamcache.policy import PolicyError

# Of a baseline that was interrupted, and texts that were written: not for tables.
_KEPT = "streamcache-partial", "streamcache-written"
_Other = Diagnosis | Profile | Ladder | Sinks
_KINDS: dict[str, type[Record | _Other]] = {
    "streamcache-measurement": Record,
    "streamcache-diagnosis": Diagnosis,
    "streamcache-profile": Profile,
    "streamcache-ladder": Ladder,
    "streamcache-sinks": Sinks,
}


@dataclass(frozen=True)
class Group:
    """Measurements that compare: one workload and environment; one of each configuration."""

    rows: tuple[Measurement, ...]

    @property
    def first(self) -> Record:
        """A record, for what all have in common."""
        return self.rows[0].record

    @property
    def title(self) -> str:
        """Model and device."""
        record = self.first
        workload = record.workload
        other = "" if workload.timed == workload.model else f" (timed: {workload.timed})"
        weights = record.configuration.get("weights")
        dtype = f"{workload.dtype} {weights}" if weights else workload.dtype
        return f"{workload.model} {dtype}{other}, {record.environment.device}"

    @property
    def text(self) -> str:
        """The text and its length."""
        return f"{self.first.workload.text}, {self.first.workload.n_tokens:,} tokens"

    def common(self) -> dict[object, float]:
        """PPL of each configuration over the positions at which all of them have a full cache.

        Steady PPLs start where each cache is first full, which is at other positions for other
        windows; these compare. By `Record.key`; empty where the text is too short.
        """
        rows = [row for row in self.rows if not row.record.recomputes]
        first = max((row.record.sizes.floor for row in rows), default=0) - 1
        return {
            row.record.key: float(numpy.exp(row.nll[first:].mean()))
            for row in rows
            if row.nll is not None and len(row.nll) > first
        }

    def get(self, name: str) -> Measurement | None:
        """The measurement of a named configuration.

        With its published sizes where there is one, else with the window of another total.
        """
        return next(self._of(NAMED[name], derived_first=False), None)

    def all_of(self, names: tuple[str, ...]) -> list[tuple[str, Measurement]]:
        """An ablation's measurements with their names, all of one total where there is one.

        Preferred is the total that most of the names were measured with; the larger of two.
        """
        found = {name: list(self._of(NAMED[name], derived_first=True)) for name in names}
        totals = [row.record.sizes.total for rows in found.values() for row in rows]
        count = {total: sum(any(r.record.sizes.total == total for r in rows)
                            for rows in found.values()) for total in totals}  # fmt: skip
        total = max(count, key=lambda each: (count[each], each), default=None)
        chosen = []
        for name, rows in found.items():
            rows.sort(key=lambda row: row.record.sizes.total != total)
            if rows:
                row = rows[0]
                labelled = msgspec.structs.replace(row.record, label=_label(name, row))
                chosen.append((name, replace(row, record=labelled)))
        return chosen

    def _of(self, named: Configuration, derived_first: bool) -> Iterator[Measurement]:
        """The measurements that are the named configuration, or it with another total."""
        wanted = [identity(named)]
        for total in sorted({row.record.sizes.total for row in self.rows}, reverse=True):
            try:
                wanted.append(identity(with_budget(named, total)))
            except PolicyError:
                continue
        if named.recomputes:  # its window is the workload's
            wanted += [row.record.configuration for row in self.rows if row.record.recomputes]
        if derived_first:
            wanted = [*wanted[1:], wanted[0]]
        rows = {tuple(sorted(_plain(row.record).items())): row for row in self.rows}
        keys = dict.fromkeys(tuple(sorted(fields.items())) for fields in wanted)
        yield from (rows[key] for key in keys if key in rows)


def _plain(record: Record) -> Fields:
    """The fields of a configuration except its weights, which a group has in common."""
    return {name: value for name, value in record.configuration.items() if name != "weights"}


def _label(name: str, row: Measurement) -> str:
    return (
        name if _plain(row.record) == identity(NAMED[name]) else f"{name}@{row.record.sizes.total}"
    )


class Found(NamedTuple):
    """The contents of a folder.

    Attributes:
        bad: a line for each file that cannot be read, or is a record, or the array of one, that is
            damaged.
    """

    groups: list[Group]
    diagnoses: list[Diagnosis]
    profiles: list[Profile]
    ladders: list[Ladder]
    sinks: list[Sinks]
    bad: list[str]


def collect(folder: Path) -> Found:
    """All measurements, diagnoses and profiles below a folder.

    Of a configuration measured twice in the same group, the newest counts. Files of
    pytest-benchmark are read, too.
    """
    measurements: list[Measurement] = []
    others: list[_Other] = []
    bad: list[str] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            content = _content(path, folder)
        except RecordError as error:
            bad.append(f"{path} cannot be read: {error}")
            continue
        for entry in _entries(content):
            try:
                found = _record(entry)
            except RecordError as error:
                bad.append(f"{path} is no record that counts: {error}")
                continue
            if isinstance(found, Record):
                # A benchmark's file has the record alone.
                alone = entry is not content
                measurements.append(
                    Measurement(found, path=path) if alone else with_arrays(found, path, bad)
                )
            elif found is not None:
                others.append(found)
    measurements.sort(key=lambda one: one.record.date)
    return Found(
        _grouped(measurements),
        [one for one in others if isinstance(one, Diagnosis)],
        [one for one in others if isinstance(one, Profile)],
        [one for one in others if isinstance(one, Ladder)],
        [one for one in others if isinstance(one, Sinks)],
        bad,
    )


def _content(path: Path, folder: Path) -> object:
    """The JSON of a file.

    Raises:
        RecordError: it cannot be read, or is a link to what somebody keeps elsewhere.
    """
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a link to nowhere, or to itself
        raise RecordError(getattr(error, "strerror", None) or "a link to itself") from error
    if not target.is_relative_to(folder.resolve()):
        raise RecordError("a link out of the folder")
    return read_json(path)


def _record(entry: dict[str, Any]) -> Record | _Other | None:
    """What an object of a JSON file is; None where it is not of this package.

    Raises:
        RecordError: it is a record of this package, and of an unknown version, or damaged.
    """
    if is_version_1(entry):
        return from_version_1(plain_values(entry))
    schema = entry.get("schema")
    if schema in _KEPT:
        return None
    kind = _KINDS.get(schema) if isinstance(schema, str) else None
    if kind is not None:
        checked(entry, kind)
        return msgspec.convert(plain_values(entry), kind)
    if "checksum" in entry or str(schema).startswith("streamcache-"):
        raise RecordError(f"damaged, or of a kind that this release does not know: {schema!r}")
    return None


def _entries(content: Any) -> list[dict[str, Any]]:
    """The file's own object, or those that pytest-benchmark keeps."""
    if not isinstance(content, dict):
        return []
    benchmarks = content.get("benchmarks")
    listed = benchmarks if isinstance(benchmarks, list) else []
    extra = [one.get("extra_info") for one in listed if isinstance(one, dict)]
    return [entry for entry in [content, *extra] if isinstance(entry, dict)]


def _grouped(found: list[Measurement]) -> list[Group]:
    groups: dict[str, dict[str, Measurement]] = {}
    for one in found:
        record = one.record
        workload = msgspec.structs.replace(record.workload, text_source="")
        weights = record.configuration.get("weights", "")
        key = msgspec.json.encode((workload, weights, record.environment)).decode()
        fields = msgspec.json.encode(record.configuration, order="sorted").decode()
        groups.setdefault(key, {})[fields] = one
    return [Group(tuple(groups[key].values())) for key in sorted(groups)]
