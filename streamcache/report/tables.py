"""Records as tables: cells are text, what prints them is another matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from streamcache.measure.diagnose import Diagnosis
from streamcache.measure.profiling import Profile
from streamcache.measure.records import Quality, Record
from streamcache.report import published
from streamcache.report.collect import Group, Measured
from streamcache.report.published import Range
from streamcache.report.terminal import DASH, number

_DEAREST = 10  # rows

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


def methods(group: Group) -> Table | None:
    """The methods by the names they have in the paper, then what else was measured.

    None where there are ablations only.
    """
    rows = [(METHODS[name], row) for name in METHODS if (row := group.get(name))]
    shown = {id(row) for _, row in rows}
    others = [
        (row.record.configuration, row)
        for row in sorted(group.rows, key=lambda row: row.name)
        if id(row) not in shown and not row.name.startswith(tuple(ABLATIONS))
    ]
    return _table("Methods", "method", group, [*rows, *others])


def ablation(group: Group, prefix: str) -> Table | None:
    """One ablation; None where nothing of it was measured."""
    rows = [(row.record.configuration, row) for row in group.starting(prefix)]
    return _table(ABLATIONS[prefix], "configuration", group, rows)


def diagnoses(found: Sequence[Diagnosis]) -> Table | None:
    """A row per diagnosis; None without one."""
    header = (
        *("policy", "against", "text", "prunes", "excess", "p", "peak", "p", "width"),
        *("control p", "in all", "95 %"),
    )
    rows = tuple(
        (
            made.configuration,
            made.against,
            f"{made.subject.model}: {made.subject.text}, {made.subject.n_tokens:,}",
            str(made.spike.n_boundaries),
            f"{made.spike.excess:+.4f}",
            f"{made.spike.excess_p:.4f}",
            f"{made.spike.peak:+.4f}",
            f"{made.spike.peak_p:.4f}",
            f"{made.spike.width:.1f}",
            f"{made.control.excess_p:.4f}",
            f"{made.difference.mean:+.4f}",
            f"{made.difference.low:+.4f} to {made.difference.high:+.4f}",
        )
        for made in found
    )
    notes = (
        "NLL in nats per token, less that of the policy compared with; excess: mean after prunes "
        "less mean before; p: share of shuffled boundaries that reach as much; width: in tokens",
        "control: the same boundaries on a policy that does not prune there; in all: the mean over "
        "the steady state",
    )
    return Table("Tokens after prunes", header, rows, notes) if rows else None


def profiles(found: Sequence[Profile]) -> Table | None:
    """A row per profile; None without one."""
    header = (
        *("configuration", "model", "step ms", "operators", "launches", "kernels", "device ms"),
        *("busy", "eviction, host", "eviction, device"),
    )
    rows = []
    for made in found:
        m, device = made.measured, made.measured.kernels_per_token > 0
        rows.append(
            (
                made.configuration,
                f"{made.subject.model} {made.subject.dtype}, {made.environment.device}",
                number(m.step_ms),
                f"{m.operators_per_token:.0f}",
                f"{m.launches_per_token:.0f}" if device else DASH,
                f"{m.kernels_per_token:.0f}" if device else DASH,
                number(m.device_ms) if device else DASH,
                f"{m.device_busy:.0%}" if device else DASH,
                f"{m.eviction.host_share:.1%}",
                f"{m.eviction.device_share:.1%}" if device else DASH,
            )
        )
    notes = (
        "all per token, evictions included; step: without the profiler; busy: device over step; "
        "eviction: its share of the profiled step and of all kernels",
    )
    return Table("Where a step goes", header, tuple(rows), notes) if rows else None


def dearest(made: Profile) -> Table:
    """What takes most of a step: kernels where there are any, else operators."""
    m = made.measured
    rows = [(k.name, k.runs, k.device_ms, k.device_share) for k in m.kernels] or [
        (o.name, o.calls, o.host_ms, o.host_share) for o in m.operators
    ]
    what = "kernel" if m.kernels else "operator"
    cells = tuple(
        (name[:60], f"{count:.1f}", number(ms), f"{share:.1%}")
        for name, count, ms, share in rows[:_DEAREST]
    )
    title = f"{made.configuration}: the dearest {what}s"
    return Table(title, (what, "a token", "ms a token", "share"), cells)


def of_group(group: Group) -> dict[str, Table]:
    """The tables that have rows, by "methods" or an ablation's prefix.

    What holds for all of them is said below the first.
    """
    tables = {"methods": methods(group), **{each: ablation(group, each) for each in ABLATIONS}}
    found = {name: table for name, table in tables.items() if table}
    first = next(iter(found))
    return {**found, first: replace(found[first], notes=tuple(_notes(group)))}


def _table(
    title: str,
    first: str,
    group: Group,
    rows: Sequence[tuple[str, Measured]],
) -> Table | None:
    if not rows:
        return None
    common = group.common()
    cells = [(label, *_cells(row.record, common)) for label, row in rows]
    columns = [
        column
        for column in zip((first, *_HEADER), *cells)
        if any(cell != DASH for cell in column[1:])
    ]
    header, *filled = zip(*columns)
    return Table(title, header, tuple(filled))


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
    first, where = group.first, group.first.environment
    lines = [
        f"{group.subject}; torch {where.torch}, transformers {where.transformers}, "
        f"{where.threads} threads; text {group.text} ({first.subject.text_source})",
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
