"""Records as a table for people."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from streamcache.measure.records import Record

DASH = "–"


_COLUMNS = ("PPL", "steady", "shared", "increase", "TPOT", "p50", "p99", "speedup", "prunes")
_BRIEF = ("PPL", "increase", "TPOT", "p99", "speedup", "prunes")


def table(records: Sequence[Record], brief: bool = False) -> Table:
    """One row per configuration: quality beside speed; `brief` leaves room for long names."""
    first = records[0]
    text = f"{first.subject.text} ({first.subject.text_source}), {first.subject.n_tokens} tokens"
    view = Table(
        title=f"{first.subject.model} {first.subject.dtype}, {first.environment.device}: {text}",
        caption="\n".join(_notes(records)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,  # fits 80 columns
    )
    view.add_column("configuration", overflow="fold")
    shown = _BRIEF if brief else _COLUMNS
    for header in shown:
        view.add_column(header, justify="right", no_wrap=True)
    for record in records:
        cells = dict(zip(_COLUMNS, _row(record)))
        view.add_row(record.configuration, *(cells[header] for header in shown))
    return view


def _row(record: Record) -> list[str]:
    quality, speed = record.quality, record.speed
    cells = [DASH] * 8
    if quality:
        # The PPL of a sample of positions compares with nothing but the same sample.
        if quality.n_positions == record.subject.n_tokens - 1:
            cells[:2] = number(quality.ppl), number(quality.ppl_steady)
        cells[2] = number(quality.ppl_compared)
        if quality.ppl_increase is not None:
            cells[3] = f"{100 * quality.ppl_increase:+.2f} %"
    if speed:
        times = (speed.tpot_mean_ms, speed.tpot_p50_ms, speed.tpot_p99_ms)
        cells[4:7] = [number(ms) for ms in times]
        if speed.speedup:
            cells[7] = f"{speed.speedup:.2f}x"
    prunes = f"{record.prunes.scheduled}+{record.prunes.forced}"
    return [*cells, prunes]


def number(value: float | None) -> str:
    """Two decimals, or three digits where that is more."""
    if value is None:
        return DASH
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _notes(records: Sequence[Record]) -> list[str]:
    qualities = [record.quality for record in records if record.quality]
    lines = ["TPOT: mean ms per token, batch 1, evictions in; prunes: scheduled+forced"]
    if methods := sorted({q.method for q in qualities} - {"recompute"}):
        lines.append(f"PPL by {', '.join(methods)}, over all positions and in the steady state")
    if compared := max((q.n_compared for q in qualities), default=0):
        lines.append(f"shared: PPL at {compared} full-window positions of the recompute baseline")
    if any(q.method != "recompute" and not q.n_compared for q in qualities):
        lines.append(
            f"increase {DASH}: the text ends before this window and the baseline's are both full; "
            "--max-eval-tokens gives more"
        )
    return [*lines, *dict.fromkeys(note for record in records for note in record.notes)]
