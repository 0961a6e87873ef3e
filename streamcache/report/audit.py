"""The published claims and the measurements here, each with a verdict by a stated rule.

A figure of pythia-2.8b's perplexity can be checked with its weights only, a time in milliseconds on
an A800 only. A speedup needs the shape on a GPU, with any weights; a claim about what helps and
what hurts can be tested on any model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

from streamcache.measure.configurations import ABLATIONS
from streamcache.measure.measurement import Fields, Measurement, Record
from streamcache.report import published
from streamcache.report.collect import Group
from streamcache.report.published import Range
from streamcache.report.tables import DASH, METHODS, Table, increase, number, percent, span

SHAPE = "pythia-2.8b"
NEEDS_WEIGHTS = "cannot be tested here: needs Pythia's weights; ready, not run"
READY = "streamcache paper --model-name EleutherAI/pythia-2.8b"
NEEDS_A800 = "cannot be tested here: needs an A800"
NOT_RUN = "not run"
TOLERANCE = 0.1  # of a speedup
PERCENT = 0.005  # of a PPL increase: half a percentage point
MIN_DEGRADATION, MIN_IMPROVEMENT = 0.05, -0.01  # PPL relative to the other, for a claim to hold
MIN_GAIN = -0.001  # PPL relative to the same total with all entries in the window
FASTER = 1.03  # TPOT over TPOT
ERRORS = 3  # standard errors of a speedup, beyond which it is not chance


@dataclass(frozen=True)
class Finding:
    """What was measured about a claim."""

    measured: str
    on: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """What was published, and how it is tested."""

    text: str
    published: str
    test: Callable[["RecordIndex"], Finding | None]


@dataclass(frozen=True)
class RecordIndex:
    """The measurements of all groups, looked through in order of what they prove."""

    groups: list[Group] = field(default_factory=list)

    def quality(self, corpus: str) -> Group | None:
        """The group to take PPL from: Pythia's weights first, then most positions compared."""
        found = [
            group
            for group in self.groups
            if published.is_of(group.first.workload, corpus)
            and any(row.record.quality for row in group.rows)
        ]
        return max(
            found,
            key=lambda group: (
                _is_pythia(group.first),
                max(row.record.quality.n_compared for row in group.rows if row.record.quality),
                group.first.workload.n_tokens,
            ),
            default=None,
        )

    def speed(self, *names: str) -> tuple[Measurement, ...] | None:
        """Timed measurements of all the names, from one group: the shape first, then a GPU."""
        found = []
        for group in self.groups:
            rows = [group.get(name) for name in names]
            timed = tuple(row for row in rows if row and row.record.speed)
            if len(timed) == len(names):
                found.append(timed)
        return max(
            found,
            key=lambda rows: (has_shape(rows[0].record), is_gpu(rows[0].record)),
            default=None,
        )

    def quantised(self, how: str, name: str) -> tuple[Measurement, Measurement] | None:
        """Timed measurements of a configuration, with the weights as they came and quantised."""
        rows = [row for group in self.groups if (row := group.get(name)) and row.record.speed]
        found = []
        for plain, row in product(rows, rows):
            same = _timed(plain.record) == _timed(row.record)
            weights = (
                plain.record.configuration.get("weights"),
                row.record.configuration.get("weights"),
            )
            if same and weights == (None, how):
                found.append((plain, row))
        return max(
            found,
            key=lambda rows: (has_shape(rows[0].record), is_gpu(rows[0].record)),
            default=None,
        )


def _timed(record: Record) -> tuple[str, str, str]:
    return record.workload.timed, record.workload.dtype, record.environment.device


def has_shape(record: Record) -> bool:
    """Whether the timed model has the published model's shape."""
    return record.workload.timed.rpartition(":")[2].rpartition("/")[2] == SHAPE


def is_gpu(record: Record) -> bool:
    """Whether it was measured on a GPU."""
    return not f"{record.environment.device} ".startswith("cpu ")


def _is_pythia(record: Record) -> bool:
    """Whether PPL is of the published model's weights."""
    return record.workload.model.rpartition("/")[2] == SHAPE and record.workload.revision != "seed0"


def claims() -> list[Claim]:
    rows: list[Claim] = []
    for name in ("mit", "best", "quality"):
        figures = published.PG19[name]
        rows.append(Claim(f"{_title(name)}: speedup", f"{span(figures.speedup)}×", _speedup(name)))
        rows.append(
            Claim(f"{_title(name)}: PPL", percent(figures.increase), _increase(name, "pg19"))
        )
    times = [
        f"{name} {span(published.PG19[name].tpot_ms)}"
        for name in ("baseline", "mit", "best", "quality")
    ]
    rows.append(Claim("TPOT, ms", ", ".join(times), _times))
    wikitext = published.WIKITEXT["mit"]
    rows.append(
        Claim("WikiText, MIT: PPL", percent(wikitext.increase), _increase("mit", "wikitext"))
    )
    cells = [f"{cell} {percent(published.PG19[f'softlite-{cell}'].increase)}" for cell in _CELLS]
    rows += [
        Claim(
            "Lazy Pruning is faster than pruning at every token",
            "R = 4 6.62×, R = 16 7.09×",
            _faster("lazy-R1", "lazy-R16"),
        ),
        Claim(
            "Ours (Best) is faster than MIT StreamingLLM",
            "14.1 ms, 14.6 ms",
            _faster("mit", "best"),
        ),
        Claim(
            f"R ≥ 128 breaks PPL (here: {MIN_DEGRADATION:.0%} or more over R = 1)", "yes", _breaks
        ),
        Claim(
            f"S = 32 or 64 beats S = 4 by far (here: by {-MIN_IMPROVEMENT:.0%} of PPL or more)",
            "yes",
            _sinks,
        ),
        Claim("slack and max_drop only help together", ", ".join(cells), _together),
        Claim(
            "torch.compile, CUDA graphs and a static cache bring nothing",
            "yes",
            _faster("ours-standard", "captured", negative=True),
        ),
        Claim("Refresh fails, as published (tail)", "yes", _reserved("refresh", "tail")),
        Claim("Refresh fails, in stream order (middle)", "yes", _reserved("refresh", "middle")),
        Claim("Overlap fails", "yes", _reserved("overlap")),
        Claim("INT8 weights bring nothing (eager)", "yes", _quantised("int8", "fast")),
        Claim("INT8 weights bring nothing (captured)", "yes", _quantised("int8", "captured")),
    ]
    return rows


def table(groups: list[Group]) -> Table:
    """A row per claim."""
    index = RecordIndex(groups)
    rows = []
    for claim in claims():
        found = claim.test(index) or Finding(DASH, DASH, NOT_RUN)
        rows.append((claim.text, claim.published, found.measured, found.on, found.verdict))
    notes = (
        f"published on {published.ON}",
        f"a speedup counts as reproduced within {TOLERANCE:.0%} of the published range, a PPL "
        f"increase within {100 * PERCENT:g} percentage points, a faster configuration from "
        f"{FASTER - 1:.0%} on, and beyond {ERRORS} standard errors of its blocks",
        f"entries put to another use fail where PPL is not at least {-MIN_GAIN:.1%} below that "
        "of the same total with all entries in the window",
        f"Pythia's weights: `{READY}`",
        "the ablations have one total budget each; their PPLs are over the positions in common",
    )
    header = ("claim", "published", "measured here", "on", "verdict")
    return Table("Audit", header, tuple(rows), notes, prose=True)


def _title(name: str) -> str:
    return METHODS.get(name, name)


def _verdict(holds: bool) -> str:
    return "reproduced" if holds else "not reproduced"


def _within(value: float, values: Range, slack: float) -> bool:
    return values[0] - slack <= value <= values[1] + slack


def _on(record: Record, text: bool = True) -> str:
    workload = record.workload
    if not text and record.speed:
        return f"{workload.timed} {workload.dtype}, {record.environment.device}"
    place = f"{workload.model} {workload.dtype}, {record.environment.device}"
    return f"{place}: {workload.text}, {workload.n_tokens:,} tokens"


def _speedup(name: str) -> Callable[[RecordIndex], Finding | None]:
    def test(index: RecordIndex) -> Finding | None:
        rows = index.speed(name)
        if not rows:
            return None
        record = rows[0].record
        speed, figures = record.speed, published.PG19[name].speedup
        if not speed or not speed.speedup or not figures:
            return None
        verdict = "cannot be tested here: needs the shape on a GPU"
        if has_shape(record) and is_gpu(record):
            slack = TOLERANCE * figures[1]
            verdict = _verdict(_within(speed.speedup, figures, slack))
        return Finding(f"{number(speed.speedup)}×", _on(record, text=False), verdict)

    return test


def _increase(name: str, corpus: str) -> Callable[[RecordIndex], Finding | None]:
    def test(index: RecordIndex) -> Finding | None:
        group = index.quality(corpus)
        row = group.get(name) if group else None
        quality = row.record.quality if row else None
        if not row or not quality or quality.ppl_increase is None:
            return None
        value = quality.ppl_increase
        verdict = NEEDS_WEIGHTS
        printed = {"pg19": published.PG19, "wikitext": published.WIKITEXT}[corpus][name].increase
        if _is_pythia(row.record) and printed:
            verdict = _verdict(_within(value, printed, PERCENT))
        measured = f"{increase(quality)} at {quality.n_compared:,} positions"
        return Finding(measured, _on(row.record), verdict)

    return test


def _times(index: RecordIndex) -> Finding | None:
    names = ("baseline", "mit", "best", "quality")
    rows = index.speed(*names)
    if not rows:
        return None
    times = [
        f"{name} {number(row.record.speed.tpot_mean_ms)}"
        for name, row in zip(names, rows)
        if row.record.speed
    ]
    verdict = NEEDS_A800
    if "A800" in rows[0].record.environment.device and has_shape(rows[0].record):
        near = [
            _within(row.record.speed.tpot_mean_ms, printed, TOLERANCE * printed[1])
            for name, row in zip(names, rows)
            if row.record.speed and (printed := published.PG19[name].tpot_ms)
        ]
        verdict = _verdict(all(near))
    return Finding(", ".join(times), _on(rows[0].record, text=False), verdict)


def _faster(
    slow: str, fast: str, negative: bool = False
) -> Callable[[RecordIndex], Finding | None]:
    """Whether one is faster than the other beyond noise; or, `negative`, whether it fails to be.

    Speedups are compared, each over the baseline that was timed alternately with it: a machine that
    is slower for a while is slower for both.
    """

    def test(index: RecordIndex) -> Finding | None:
        if not (rows := index.speed(slow, fast)):
            return None
        first, second = (row.record.speed for row in rows)
        if not first or not second or not first.speedup or not second.speedup:
            return None
        measured = ", ".join(
            f"{_title(name)} {number(speed.tpot_mean_ms)} ms ({number(speed.speedup)}×)"
            for name, speed in ((slow, first), (fast, second))
        )
        gain = second.speedup / first.speedup
        errors = [(s.speedup_error or 0.0) / s.speedup for s in (first, second)]
        noise = ERRORS * math.hypot(*errors)
        if noise >= FASTER - 1:
            measured += f"; times scatter by {noise:.0%}"
        faster = gain >= max(FASTER, 1 + noise)
        return Finding(measured, _on(rows[0].record, text=False), _verdict(faster is not negative))

    return test


def _quantised(how: str, name: str) -> Callable[[RecordIndex], Finding | None]:
    def test(index: RecordIndex) -> Finding | None:
        rows = index.quantised(how, name)
        if not rows:
            return None
        first, second = (row.record.speed.tpot_mean_ms for row in rows if row.record.speed)
        plain = rows[0].record
        measured = f"{plain.workload.dtype} {number(first)} ms, {how} {number(second)} ms"
        return Finding(measured, _on(plain, text=False), _verdict(first / second < FASTER))

    return test


def _reserved(use: str, where: str = "middle") -> Callable[[RecordIndex], Finding | None]:
    """Whether entries put to another use than the window bring nothing at the same total."""

    def test(index: RecordIndex) -> Finding | None:
        for group in sorted(index.groups, key=lambda g: -g.first.workload.n_tokens):
            changes = {}
            for row in group.rows:
                record, quality = row.record, row.record.quality
                n = int(record.configuration.get(use, 0))
                at = record.configuration.get("refresh_at", "middle")
                if not n or not quality or (use == "refresh" and at != where):
                    continue
                if plain := _undivided(group, record):
                    changes[record.sizes.total, n] = quality.ppl / plain - 1
            if changes:
                each = (f"{n} of {total} entries {percent(c)}" for (total, n), c in changes.items())
                verdict = _verdict(min(changes.values()) > MIN_GAIN)
                return Finding(f"PPL {', '.join(each)}", _on(group.first), verdict)
        return None

    return test


def _undivided(group: Group, other: Record) -> float | None:
    """PPL of the same policy with the whole of a budget for its window."""
    for row in group.rows:
        record, quality = row.record, row.record.quality
        divided = record.sizes.overlap or record.sizes.refresh or record.recomputes
        same = _besides_window(record) == _besides_window(other)
        whole = quality is not None and quality.n_positions == record.workload.n_tokens - 1
        if same and whole and quality and record.sizes.total == other.sizes.total and not divided:
            return quality.ppl
    return None


def _besides_window(record: Record) -> Fields:
    """What a policy has besides its window: S, R, the slack in force and max_drop."""
    given, sizes = record.configuration, record.sizes
    names = ("n_sink", "max_drop", "compress_every")
    found: Fields = {name: given[name] for name in names if name in given}
    return {**found, "slack": sizes.capacity - sizes.floor}


def _common(index: RecordIndex, *names: str) -> tuple[list[float], Record] | None:
    """PPLs of configurations on PG19 over the positions in common, and one of the records.

    None where one is missing, or their totals are not one: sizes would be compared with it.
    """
    group = index.quality("pg19")
    if group is None:
        return None
    common = group.common()
    found = {name: row for each in ABLATIONS.values() for name, row in group.all_of(each)}
    rows = [found.get(name) for name in names]
    values = [common.get(row.record.key) if row else None for row in rows]
    totals = {row.record.sizes.total for row in rows if row}
    if any(value is None for value in values) or len(totals) > 1:
        return None
    return [value for value in values if value is not None], group.first


def _breaks(index: RecordIndex) -> Finding | None:
    if not (found := _common(index, "lazy-R1", "lazy-R128")):
        return None
    (every, rarely), record = found
    change = rarely / every - 1
    measured = f"R = 128 {percent(change)} over R = 1"
    return Finding(measured, _on(record), _verdict(change >= MIN_DEGRADATION))


def _sinks(index: RecordIndex) -> Finding | None:
    if not (found := _common(index, "sink-4", "sink-32", "sink-64")):
        return None
    (few, *many), record = found
    changes = [value / few - 1 for value in many]
    measured = ", ".join(f"S = {n} {percent(c)}" for n, c in zip((32, 64), changes))
    return Finding(f"{measured} over S = 4", _on(record), _verdict(min(changes) <= MIN_IMPROVEMENT))


_CELLS = ("none", "slack", "maxdrop", "full")


def _together(index: RecordIndex) -> Finding | None:
    if not (found := _common(index, *(f"softlite-{cell}" for cell in _CELLS))):
        return None
    (none, *others), record = found
    changes = [value / none - 1 for value in others]
    measured = ", ".join(f"{cell} {percent(c)}" for cell, c in zip(_CELLS[1:], changes))
    holds = changes[2] <= MIN_IMPROVEMENT and min(changes[:2]) > MIN_IMPROVEMENT
    return Finding(f"{measured} over none", _on(record), _verdict(holds))
