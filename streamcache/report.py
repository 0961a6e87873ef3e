"""Records as a table for people."""

from collections.abc import Sequence

from rich.table import Table

from streamcache.records import Record


def table(records: Sequence[Record]) -> Table:
    """One row per configuration: quality beside speed."""
    first = records[0]
    text = f"{first.subject.text} ({first.subject.text_source}), {first.subject.n_tokens} tokens"
    title = f"{first.subject.model} {first.subject.dtype} · {text} · {first.environment.device}"
    view = Table(title=title, caption="\n".join(_notes(records)), title_justify="left")
    view.add_column("configuration")
    view.add_column("rotation")
    for header in ("PPL", "steady", "increase", "TPOT p50", "p99", "mean ms", "speedup"):
        view.add_column(header, justify="right")
    view.add_column("prunes\nsched/forced", justify="right")
    for record in records:
        quality, speed = record.quality, record.speed
        view.add_row(
            record.configuration,
            record.mode,
            f"{quality.ppl:.3f}" if quality else "–",
            f"{quality.ppl_steady:.3f}" if quality and quality.ppl_steady else "–",
            _percent(quality.ppl_increase) if quality else "–",
            f"{speed.tpot_p50_ms:.2f}" if speed else "–",
            f"{speed.tpot_p99_ms:.2f}" if speed else "–",
            f"{speed.tpot_mean_ms:.2f}" if speed else "–",
            f"{speed.speedup:.2f}x" if speed and speed.speedup else "–",
            f"{record.prunes.scheduled}/{record.prunes.forced}",
        )
    return view


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:+.2f} %"


def _notes(records: Sequence[Record]) -> list[str]:
    methods = sorted({record.quality.method for record in records if record.quality})
    compared = {record.quality.n_compared for record in records if record.quality}
    lines = [f"PPL by {', '.join(methods)}"] if methods else []
    if compared - {0}:
        lines.append(f"increase over the recompute baseline at {max(compared)} identical positions")
    lines += list(dict.fromkeys(note for record in records for note in record.notes))
    return lines
