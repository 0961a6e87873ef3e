"""The leaderboard as a table."""

from streamcache.measure.leaderboard import Entry
from streamcache.measure.recall import Recalled
from streamcache.report.tables import Table, number, sizes


def leaderboard_table(entries: list[Entry], title: str) -> Table:
    """A row a method, the lowest PPL first."""
    rows = tuple(
        (
            entry.record.label,
            f"{entry.record.cache} {sizes(entry.record)}",
            number(entry.ppl),
            _share(entry.within),
            _share(entry.beyond),
            f"{entry.record.sizes.capacity:,}",
            f"{entry.cache_bytes / 1e6:.1f}",
            entry.record.quality.method if entry.record.quality else "",
            entry.record.date[:10],
            entry.record.commit or "",
        )
        for entry in entries
    )
    first = entries[0]
    workload, where = first.record.workload, first.record.environment
    return Table(
        title,
        (
            *("method", "S/W/σ/δ/R", "PPL", f"recall at {first.within.distance:,}"),
            *(f"at {first.beyond.distance:,}", "entries", "MB", "PPL by", "date", "commit"),
        ),
        rows,
        (
            f"{workload.model} {workload.dtype}, {where.device}: {workload.text}, "
            f"{workload.n_tokens:,} tokens",
            "PPL: over the positions at which all of these caches are full",
            f"recall: right answers of {first.within.n_asked} to facts so many tokens back, with "
            "95 %",
            "MB: keys and values of a full cache",
        ),
    )


def _share(found: Recalled) -> str:
    low, high = (100 * limit for limit in found.interval)
    return f"{100 * found.n_right / found.n_asked:.0f} % ({low:.0f} to {high:.0f})"
