"""Measurements as tables of text; `render` prints them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from streamcache.measure.configurations import ABLATIONS
from streamcache.measure.diagnose import Diagnosis
from streamcache.measure.ladder import Ladder
from streamcache.measure.measurement import Quality, Record
from streamcache.measure.profile import Profile
from streamcache.report import published
from streamcache.report.collect import Group
from streamcache.report.published import Range

DASH = "–"
_MOST_EXPENSIVE = 10  # rows

METHODS = {  # as the paper names them
    "baseline": "Baseline",
    "mit": "MIT StreamingLLM",
    "ours-standard": "Ours (Standard)",
    "lazy-R32": "Ours (Lazy Prune)",
    "best": "Ours (Best)",
}
ABLATION_TITLES = {
    "lazy": "Lazy Pruning: every R-th token",
    "sink": "Sinks: the first S tokens",
    "softlite": "Softlite Eviction: slack and max_drop",
}
TERMINAL = (
    *("PPL", "steady", "shared", "increase", "TPOT ms", "p50 ms", "p99 ms", "speedup"),
    "evictions",
)
BRIEF = ("PPL", "increase", "TPOT ms", "p99 ms", "speedup", "evictions")
SUMMARY = (
    *("S/W/σ/δ/R", "PPL", "steady", "common", "increase", "published"),
    *("TPOT ms", "p50 ms", "p99 ms", "baseline ms", "speedup", "published speedup", "evictions"),
)


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of as many cells: a name and numbers, or (`prose`) text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    prose: bool = False


def of_records(records: Sequence[Record], columns: tuple[str, ...] = TERMINAL) -> Table:
    """One row per record, of one workload: quality and speed."""
    first = records[0]
    workload = first.workload
    text = f"{workload.text} ({workload.text_source}), {workload.n_tokens} tokens"
    weights = first.configuration.get("weights")
    dtype = f"{workload.dtype} {weights}" if weights else workload.dtype
    title = f"{workload.model} {dtype}, {first.environment.device}: {text}"
    rows = [(record.label, record) for record in records]
    return _table(title, "configuration", rows, {}, columns, tuple(_run_notes(records)))


def methods(group: Group) -> Table | None:
    """The methods by the names they have in the paper, then what else was measured.

    None where there are ablations only.
    """
    found = {name: row for name in METHODS if (row := group.get(name))}
    shown = {id(row) for row in found.values()}
    ablations = [row for names in ABLATIONS.values() for _, row in group.all_of(names)]
    fields = [row.record.configuration for row in ablations]
    others = [
        (row.record.label, row.record)
        for row in sorted(group.rows, key=lambda row: row.record.label)
        if id(row) not in shown and row.record.configuration not in fields
    ]
    rows = [(METHODS[name], row.record) for name, row in found.items()]
    if all(row.record.configuration in fields for row in found.values()) and not others:
        return None
    return _table("Methods", "method", [*rows, *others], group.common())


def ablation(group: Group, name: str) -> Table | None:
    """One ablation; None where nothing of it was measured."""
    rows = [(row.record.label, row.record) for _, row in group.all_of(ABLATIONS[name])]
    return _table(ABLATION_TITLES[name], "configuration", rows, group.common()) if rows else None


def diagnoses(found: Sequence[Diagnosis]) -> Table | None:
    """A row per diagnosis; None without one."""
    header = (
        *("policy", "against", "text", "evictions", "excess", "p", "peak", "p of peak", "width"),
        *("control p", "on average", "95 %"),
    )
    rows = tuple(
        (
            one.configuration,
            one.against,
            f"{one.workload.model}: {one.workload.text}, {one.workload.n_tokens:,}",
            str(one.effect.n_boundaries),
            f"{one.effect.excess:+.4f}",
            f"{one.effect.excess_p:.4f}",
            f"{one.effect.peak:+.4f}",
            f"{one.effect.peak_p:.4f}",
            f"{one.effect.width:.1f}",
            f"{one.control.excess_p:.4f}",
            f"{one.difference.mean:+.4f}",
            f"{one.difference.low:+.4f} to {one.difference.high:+.4f}",
        )
        for one in found
    )
    notes = (
        "NLL in nats per token, less that of the policy compared with; excess: mean after "
        "evictions less mean before; p: share of shuffled boundaries with an effect as large; "
        "width: tokens",
        "control: the same boundaries on a policy that has no evictions there; on average: over "
        "the steady state",
    )
    return Table("Tokens after evictions", header, rows, notes) if rows else None


def profiles(found: Sequence[Profile]) -> Table | None:
    """A row per profile; None without one."""
    header = (
        *("configuration", "model", "step ms", "operators", "launches", "kernels", "device ms"),
        *("busy", "eviction, host", "eviction, device"),
    )
    rows = []
    for one in found:
        m, device = one.step, one.step.kernels_per_token > 0
        rows.append(
            (
                one.label,
                f"{one.workload.model} {one.workload.dtype}, {one.environment.device}",
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
    return Table("Time of a step", header, tuple(rows), notes) if rows else None


def most_expensive(profile: Profile) -> Table:
    """The kernels that take most of a step, or the operators where there are no kernels."""
    m = profile.step
    rows = [(k.name, k.runs, k.device_ms, k.device_share) for k in m.kernels] or [
        (o.name, o.calls, o.host_ms, o.host_share) for o in m.operators
    ]
    kind = "kernel" if m.kernels else "operator"
    cells = tuple(
        (name[:60], f"{count:.1f}", number(ms), f"{share:.1%}")
        for name, count, ms, share in rows[:_MOST_EXPENSIVE]
    )
    title = f"{profile.label}: the most expensive {kind}s"
    return Table(title, (kind, "per token", "ms per token", "share"), cells)


def ladder_table(found: Ladder) -> Table:
    """A row per way to decode, in the order of their times."""
    header = ("decoding", "ms per token", "roofline ms", "over it", "MBU", "tokens/s", "first, s")
    rows = tuple(
        (
            row.name,
            number(row.ms),
            number(row.roofline_ms),
            f"{row.ms / row.roofline_ms:.2f}×" if row.roofline_ms else DASH,
            f"{row.mbu:.0%}" if row.mbu else DASH,
            f"{row.tokens_per_s:.0f}" if row.roofline_ms else DASH,
            number(row.seconds),
        )
        for row in sorted(found.rows, key=lambda row: row.ms)
    )
    notes = [
        f"a large copy on this device moves {found.copy_tb_s:.3g} TB/s; roofline: weights and "
        "cache read once at that rate; MBU: roofline over time; first: seconds until the first "
        "token, with compiling",
        "ms: medians, evictions included; of the streaming NLL, of the whole text",
    ]
    reasons = dict.fromkeys(row.eager_because for row in found.rows if row.eager_because)
    notes += [f"captured rows ran eagerly: {reason}" for reason in reasons]
    title = f"{found.model} {found.dtype}, {found.environment.device}: ways to decode"
    return Table(title, header, rows, tuple(notes))


def tables_for(group: Group) -> dict[str, Table]:
    """The tables that have rows, by "methods" or an ablation's name.

    Notes that hold for all of them are below the first.
    """
    tables = {"methods": methods(group), **{each: ablation(group, each) for each in ABLATIONS}}
    found = {name: table for name, table in tables.items() if table}
    first = next(iter(found))
    return {**found, first: replace(found[first], notes=tuple(_notes(group)))}


def _table(
    title: str,
    first: str,
    rows: Sequence[tuple[str, Record]],
    common: Mapping[object, float],
    columns: tuple[str, ...] | None = None,
    notes: tuple[str, ...] = (),
) -> Table:
    """The columns asked for; of a summary, those in which some row has a value."""
    cells = [{first: label, **_cells(record, common)} for label, record in rows]
    header = (first, *(columns or SUMMARY))
    if columns is None:
        header = tuple(c for c in header if any(row[c] != DASH for row in cells))
    return Table(title, header, tuple(tuple(row[c] for c in header) for row in cells), notes)


def _cells(record: Record, common: Mapping[object, float]) -> dict[str, str]:
    """Every cell that a row may show, by column."""
    quality, speed = record.quality, record.speed
    printed = published.of_record(record)
    # The PPL of a sample of positions compares with nothing but the same sample.
    whole = quality is not None and quality.n_positions == record.workload.n_tokens - 1
    return {
        "S/W/σ/δ/R": sizes(record),
        "PPL": number(quality.ppl) if quality and whole else DASH,
        "steady": number(quality.ppl_steady) if quality and whole else DASH,
        "shared": number(quality.ppl_compared if quality else None),
        "common": number(common.get(record.key)),
        "increase": increase(quality),
        "published": percent(printed.increase),
        "TPOT ms": number(speed.tpot_mean_ms if speed else None),
        "p50 ms": number(speed.tpot_p50_ms if speed else None),
        "p99 ms": number(speed.tpot_p99_ms if speed else None),
        "baseline ms": number(speed.baseline_ms if speed else None),
        "speedup": f"{speed.speedup:.2f}×" if speed else DASH,
        "published speedup": f"{span(printed.speedup)}×" if printed.speedup else DASH,
        "evictions": f"{record.evictions.scheduled}+{record.evictions.forced}",
    }


def increase(quality: Quality | None) -> str:
    """PPL increase and its standard error over the positions compared."""
    if quality is None or quality.ppl_increase is None:
        return DASH
    if not quality.ppl_increase_error:
        return percent(quality.ppl_increase)
    return f"{percent(quality.ppl_increase)[:-2]} ± {100 * quality.ppl_increase_error:.2f} %"


def sizes(record: Record) -> str:
    """S, W, σ in force, δ, R; for a rule of one's own its floor and capacity."""
    s, fields = record.sizes, record.configuration
    if "rule" in fields:
        return f"{s.n_sink}/{s.floor - s.n_sink}/{s.capacity - s.floor}"
    drop, every = fields.get("max_drop", DASH), fields.get("compress_every", 1)
    return f"{s.n_sink}/{s.floor - s.n_sink}/{s.capacity - s.floor}/{drop}/{every}"


def _run_notes(records: Sequence[Record]) -> list[str]:
    """What a reader of one run's table must know."""
    qualities = [record.quality for record in records if record.quality]
    speeds = [record.speed for record in records if record.speed]
    lines = []
    if speeds:
        n = min(len(s.pairs) for s in speeds), max(len(s.pairs) for s in speeds)
        blocks = f"{n[0]}" if n[0] == n[1] else f"{n[0]} to {n[1]}"
        lines.append(
            "TPOT: mean per token, evictions included; speedup: median over "
            f"{blocks} blocks of baseline / configuration, alternating"
        )
        base = [s.baseline_ms for s in speeds]
        lines.append(f"baseline: {number(min(base))} to {number(max(base))} ms in these blocks")
    lines.append("evictions: scheduled+forced")
    if methods := sorted({q.method for q in qualities} - {"recompute"}):
        lines.append(
            f"PPL by {', '.join(methods)}: over all positions; steady: from where each row's cache "
            "is first full, which is at other positions for other windows"
        )
    if compared := max((q.n_compared for q in qualities), default=0):
        lines.append(
            f"shared: PPL at {compared} full-window positions of the recompute baseline; increase: "
            "over the baseline there, ± its standard error"
        )
    if any(q.method != "recompute" and not q.n_compared for q in qualities):
        lines.append(
            f"increase {DASH}: the text ends before this window and the baseline's are both full; "
            "--max-eval-tokens gives more"
        )
    if any(r.configuration.get("engine") == "captured" for r in records) and all(
        r.environment.device.startswith("cpu") for r in records
    ):
        lines.append("captured: nothing is captured on a CPU; the same step runs eagerly")
    for record in records:
        if refreshed := record.sizes.refresh:
            where = record.configuration.get("refresh_at", "middle")
            lines.append(f"up to {refreshed} evicted tokens are put back ({where})")
        if record.sizes.overlap:
            lines.append(f"{record.sizes.overlap} entries of the budget stay empty (overlap)")
    return [*lines, *dict.fromkeys(note for record in records for note in record.notes)]


def _notes(group: Group) -> list[str]:
    """What a reader of a summary's tables must know."""
    first, where = group.first, group.first.environment
    lines = [
        f"{group.title}; torch {where.torch}, transformers {where.transformers}, "
        f"{where.threads} threads; text {group.text} ({first.workload.text_source})",
        "TPOT: mean ms per token, batch 1, steady state, evictions included; speedup: median of "
        "the recompute baseline's time over the configuration's, in blocks timed alternately; "
        "evictions: scheduled+forced",
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
    if any(published.of_record(row.record).speedup for row in group.rows):
        lines.append(f"published: {published.ON}")
    return [*lines, *dict.fromkeys(note for row in group.rows for note in row.record.notes)]


def number(value: float | None) -> str:
    """Two decimals, or three digits where that is more."""
    if value is None:
        return DASH
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def span(values: Range | None) -> str:
    """A published range, or its one value."""
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
