"""Records as tables: cells are text, what prints them is another matter."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from streamcache.records import Quality, Record
from streamcache.summary import published
from streamcache.summary.collect import Group, Measured
from streamcache.summary.published import Range

DASH = "–"

METHODS = {
    "baseline": "Baseline",
    "mit": "MIT StreamingLLM",
    "ours-standard": "Ours (Standard)",
    "lazy-R32": "Ours (Lazy Prune)",
    "best": "Ours (Best)",
}
ABLATIONS = {
    "lazy-": "Lazy Pruning: every R-th token",
    "sink-": "Sinks: the first S tokens",
    "softlite-": "Softlite Eviction: slack and max_drop",
}
_HEADER = (
    *("S/W/σ/δ/R", "PPL", "steady", "common", "increase", "published"),
    *("TPOT ms", "p50", "p99", "speedup", "published", "prunes"),
)


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of as many cells: a name and numbers, or (`prose`) text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    prose: bool = False


def methods(group: Group) -> Table:
    """The methods by the names they have in the paper, then what else was measured."""
    rows = [(METHODS[name], row) for name in METHODS if (row := group.get(name))]
    shown = {id(row) for _, row in rows}
    others = [
        (row.record.configuration, row)
        for row in sorted(group.rows, key=lambda row: row.name)
        if id(row) not in shown and not row.name.startswith(tuple(ABLATIONS))
    ]
    return _table("Methods", "method", group, [*rows, *others], _notes(group))


def ablation(group: Group, prefix: str) -> Table | None:
    """One ablation; None where nothing of it was measured."""
    rows = [(row.record.configuration, row) for row in group.starting(prefix)]
    return _table(ABLATIONS[prefix], "configuration", group, rows) if rows else None


def of_group(group: Group) -> list[Table]:
    found = [ablation(group, prefix) for prefix in ABLATIONS]
    return [methods(group), *(table for table in found if table)]


def _table(
    title: str,
    first: str,
    group: Group,
    rows: Iterable[tuple[str, Measured]],
    notes: Sequence[str] = (),
) -> Table:
    common = group.common()
    cells = tuple((label, *_cells(row.record, common)) for label, row in rows)
    return Table(title, (first, *_HEADER), cells, tuple(notes))


def _cells(record: Record, common: Mapping[str, float]) -> list[str]:
    quality, speed = record.quality, record.speed
    printed = published.of(record.subject.text, record.configuration)
    whole = quality is not None and quality.n_positions == record.subject.n_tokens - 1
    return [
        sizes(record),
        number(quality.ppl) if quality and whole else DASH,  # no sample of positions
        number(quality.ppl_steady) if quality and whole else DASH,
        number(common.get(record.configuration)),
        increase(quality),
        percent(printed.increase),
        number(speed.tpot_mean_ms if speed else None),
        number(speed.tpot_p50_ms if speed else None),
        number(speed.tpot_p99_ms if speed else None),
        f"{number(speed.speedup)}×" if speed and speed.speedup else DASH,
        f"{span(printed.speedup)}×" if printed.speedup else DASH,
        f"{record.prunes.scheduled}+{record.prunes.forced}",
    ]


def increase(quality: Quality | None) -> str:
    """PPL increase and its standard error over the positions compared."""
    if quality is None or quality.ppl_increase is None:
        return DASH
    if not quality.ppl_increase_error:
        return percent(quality.ppl_increase)
    return f"{percent(quality.ppl_increase)[:-2]} ± {100 * quality.ppl_increase_error:.2f} %"


def sizes(record: Record) -> str:
    """S, W, σ in force, δ, R."""
    p = record.policy
    slack = p.capacity - p.n_sink - p.window_size
    return f"{p.n_sink}/{p.window_size}/{slack}/{p.max_drop or DASH}/{p.compress_every}"


def _notes(group: Group) -> list[str]:
    first = group.first
    lines = [
        f"{group.subject}; torch {first.environment.torch}, transformers "
        f"{first.environment.transformers}; text {group.text} ({first.subject.text_source})",
        "TPOT: mean ms per token, batch 1, steady state, evictions included; speedup: over the "
        "recompute baseline timed in the same run; prunes: scheduled+forced",
    ]
    if group.common():
        lines.append(
            "steady: from where the cache is first full; common: where all caches of this text are"
        )
    compared = [row.record.quality.n_compared for row in group.rows if row.record.quality]
    if any(compared):
        lines.append(
            f"increase: of PPL over the recompute baseline, at {max(compared):,} identical "
            "positions with a full window, ± its standard error over them"
        )
    if any(published.of(first.subject.text, row.name).speedup for row in group.rows):
        lines.append(f"published: {published.ON}")
    return [*lines, *dict.fromkeys(note for row in group.rows for note in row.record.notes)]


def number(value: float | None) -> str:
    """Two decimals, or three digits where that is more."""
    if value is None:
        return DASH
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def span(values: Range | None) -> str:
    if values is None:
        return DASH
    low, high = (f"{value:g}" for value in values)
    return low if low == high else f"{low}–{high}"


def percent(values: Range | float | None) -> str:
    """A fraction measured, to two decimals of a percent, or a published range as printed."""
    if values is None:
        return DASH
    if isinstance(values, float):
        return f"{round(100 * values, 2) + 0.0:+.2f} %"  # no negative zero
    low, high = (100 * value for value in values)
    return f"{low:+.4g} %" if low == high else f"{low:+.4g}–{high:.4g} %"
