"""Plots of records. Raw values, and binned means where the axis says so; nothing is smoothed."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy

from streamcache.extras import require
from streamcache.measure.checked import Floats
from streamcache.measure.configurations import ABLATIONS
from streamcache.measure.diagnose import Diagnosis
from streamcache.measure.ladder import Ladder
from streamcache.measure.measurement import Measurement, Record
from streamcache.policy import evictions
from streamcache.report import published
from streamcache.report.collect import Group
from streamcache.report.tables import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of medium lightness: distinct on white and on black, and for the colour-blind.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#3b82d6", "#e07b28", "#1f9e77", "#a66bd3", "#8a9099"
COLOURS = {
    "baseline": GREY,
    "mit": ORANGE,
    "ours-standard": BLUE,
    "best": GREEN,
    "fast": PURPLE,
    "captured": "#d2528b",
    "lazy-R128": "#b59a1c",
}
_INK = "#13579b"  # stands for the colour of the page's text until the plot is in a page
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two $ is no formula
    "font.family": "sans-serif",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.labelspacing": 0.25,
    "axes.formatter.useoffset": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.labelcolor": _INK,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
}
WIDTH = 10.0  # inches: 1000 px on the page


@contextmanager
def style() -> Iterator[None]:
    """The page's style, for the plots that are drawing within.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    require("plots", "the plots of the page")
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def figure(height: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """A figure, height in inches, and its axes from left to right, top to bottom."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(WIDTH, height), layout="constrained")
    return drawing, list(drawing.subplots(rows, columns, squeeze=False).flat)


def svg(drawing: "Figure", name: str) -> str:
    """The figure as an <svg> element that takes the text colour of the page around it."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    element = buffer.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    # Identifiers are the page's, not the figure's.
    element = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", element)
    return element.replace(_INK, "currentColor")


def ablation(group: Group, name: str, by: str) -> "Figure | None":
    """PPL increase and TPOT of an ablation's configurations.

    Args:
        by: the field of the policy that is varied, or "" for cells that differ in several.
    """
    found = group.all_of(ABLATIONS[name])
    found = [(each, row) for each, row in found if row.record.speed or row.record.quality]
    if len(found) < 2:
        return None
    rows = [row for _, row in found]
    judged = any(row.record.quality for row in rows)  # random weights are timed only
    drawing, panels = figure(3.8, 1, 1 + judged)
    cells = dict(zip(ABLATIONS["softlite"], ("none", "slack", "maxdrop", "full")))
    labels = [
        str(row.record.configuration.get(by, 1)) if by else cells[each] for each, row in found
    ]
    if judged:
        _increases(panels[0], group, rows, labels)
    _times(panels[-1], rows, labels)
    names = {"compress_every": "R, tokens from eviction to eviction", "n_sink": "S, sinks"}
    for axes in panels:
        axes.set_xlabel(names.get(by, "cell: slack σ, max_drop δ"))
        axes.set_xlim(-0.5, len(rows) - 0.5)
    return drawing


def _increases(axes: "Axes", group: Group, rows: list[Measurement], labels: list[str]) -> None:
    common = group.common()
    first = group.get("ours-standard") or group.get("mit") or group.get("lazy-R1")
    standard = common.get(first.record.key) if first else None
    at = range(len(rows))
    axes.set_xticks(at, labels)
    axes.axhline(0, color=GREY, linewidth=1)
    measured = [row.record.quality.ppl_increase if row.record.quality else None for row in rows]
    if any(value is not None for value in measured):
        n = max(row.record.quality.n_compared for row in rows if row.record.quality)
        _dots(axes, measured, BLUE, "o", f"over recompute, {n:,} positions ± standard error")
        for i, row in enumerate(rows):
            if (quality := row.record.quality) and quality.ppl_increase_error:
                middle, error = quality.ppl_increase or 0, quality.ppl_increase_error
                axes.vlines(i, 100 * (middle - error), 100 * (middle + error), color=BLUE)
    if standard:
        values = [common.get(row.record.key) for row in rows]
        over = [value / standard - 1 if value else None for value in values]
        _dots(axes, over, GREEN, "s", "over R = 1 (S = 4), all positions in common")
    printed = [published.of_record(row.record).increase for row in rows]
    if any(printed):
        _dots(
            axes,
            [p and p[0] for p in printed],
            ORANGE,
            "D",
            "published (A800, pythia-2.8b)",
            "none",
        )
    axes.set_ylabel("PPL increase, %")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -1), max(high, 1))  # a hundredth of a percent is no cliff
    _legend(axes)


def _dots(
    axes: "Axes", fractions: list[Any], colour: str, marker: str, label: str, fill: str = ""
) -> None:
    points = [(i, 100 * value) for i, value in enumerate(fractions) if value is not None]
    axes.plot(
        *zip(*points), color=colour, marker=marker, linestyle="", label=label,
        markerfacecolor=fill or colour, markersize=8,
    )  # fmt: skip


def _times(axes: "Axes", rows: list[Measurement], labels: list[str]) -> None:
    axes.set_xticks(range(len(rows)), labels)
    axes.set_ylabel("TPOT, ms per token")
    for i, row in enumerate(rows):
        if speed := row.record.speed:
            axes.vlines(i, speed.tpot_p50_ms, speed.tpot_p99_ms, color=GREY, linewidth=3)
            axes.plot(i, speed.tpot_mean_ms, color=BLUE, marker="o", markersize=8)
    axes.plot([], [], color=BLUE, marker="o", linestyle="", label="mean, evictions included")
    axes.plot([], [], color=GREY, linewidth=3, label="p50 to p99")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
    _legend(axes)


def _legend(axes: "Axes", columns: int = 1) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=columns)


def nll(group: Group) -> "Figure | None":
    """The stream as a whole, and token by token around evictions."""
    names = ("mit", "best", "lazy-R128")
    shown = [(name, row) for name in names if (row := group.get(name)) and row.nll is not None]
    if len(shown) < 2:
        return None
    drawing, (whole, near, difference) = figure(9.0, 3, 1)
    bins = 256
    for (name, row), colour, width in zip(
        shown, (ORANGE, GREEN, BLUE), (4.5, 2.5, 1)
    ):  # they agree
        values = _nll(row)
        n = len(values) // bins * bins
        if n:
            middle = numpy.arange(n // bins) * bins + bins / 2
            ppl = numpy.exp(values[:n].reshape(-1, bins).mean(axis=1))
            whole.plot(middle, ppl, color=colour, linewidth=width, label=label(name, row))
    whole.set_xlabel("position, tokens")
    whole.set_ylabel(f"PPL per {bins} tokens")
    if len(_nll(shown[0][1])) >= bins:
        _legend(whole, 3)
    (standard_name, standard), (lazy_name, lazy) = shown[:2]
    evicted = _evictions(lazy.record)
    if len(evicted) < 2:
        return drawing
    start = evicted[len(evicted) // 2][0] - 8
    stop = min(start + 160, lazy.record.workload.n_tokens - 1)
    at = numpy.arange(start, stop)
    for name, row, colour, width in (
        (standard_name, standard, ORANGE, 2.5),
        (lazy_name, lazy, GREEN, 1.2),
    ):
        near.plot(at, _nll(row)[start:stop], color=colour, linewidth=width, label=label(name, row))
    near.set_ylabel("NLL, nats")
    gap = _nll(lazy)[start:stop] - _nll(standard)[start:stop]
    name = f"{label(lazy_name, lazy)} minus {label(standard_name, standard)}, each token"
    difference.plot(at, gap, color=BLUE, marker=".", linestyle="", label=name)
    difference.axhline(0, color=GREY, linewidth=1)
    difference.set_ylabel("difference, nats")
    for axes in (near, difference):
        axes.set_xlabel("position, tokens")
        axes.set_xlim(start, stop)
        for t, n in evicted:
            if start <= t < stop:
                axes.axvline(t, color=GREY, linestyle="--", linewidth=1)
                axes.annotate(
                    f"−{n}", (t, 1), xycoords=("data", "axes fraction"), fontsize=9,
                    va="top", color=GREY,
                )  # fmt: skip
    near.plot([], [], color=GREY, linestyle="--", label="entries evicted")
    _legend(near, 3)
    _legend(difference)
    return drawing


def _evictions(record: Record) -> list[tuple[int, int]]:
    """Position and entries of every eviction of a stream; none for a rule of one's own."""
    if (policy := record.policy) is None:
        return []
    counts = evictions(policy, record.workload.n_tokens - 1)
    return [(t, n) for t, n in enumerate(counts) if n]


def around_evictions(found: Diagnosis, axes: "Axes") -> None:
    """Mean NLL difference by the distance to an eviction, and that of shuffled boundaries."""
    effect = found.effect
    offset = numpy.arange(-effect.span, effect.span)
    band = (effect.shuffled_low, effect.shuffled_high)
    axes.fill_between(offset, *band, color=GREY, alpha=0.3, label="95 % of the shuffles")
    control = found.control.profile
    axes.plot(offset, control, color=ORANGE, linewidth=1, label="control: no eviction there")
    axes.plot(offset, effect.profile, color=BLUE, marker=".", linewidth=1, label="after evictions")
    axes.axvline(-0.5, color=GREY, linestyle="--", linewidth=1)
    axes.set_xlabel("tokens since the eviction")
    axes.set_ylabel("mean NLL difference, nats")
    _legend(axes, 3)


def diagnosis(found: Diagnosis) -> "Figure":
    """The plot of `around_evictions`, alone."""
    drawing, (axes,) = figure(3.6)
    around_evictions(found, axes)
    return drawing


def tail(group: Group) -> "Figure | None":
    """Every timed token, and the share of tokens that are at least as slow."""
    shown = [
        (name, row, row.tpot_ms)
        for name in COLOURS
        if (row := group.get(name)) and row.tpot_ms is not None
    ]
    if not shown:
        return None
    drawing, (each, share) = figure(4.2, 1, 2)
    for name, row, times in shown:
        colour, title = COLOURS[name], label(name, row)
        if name != "baseline":
            each.plot(times, color=colour, marker=".", markersize=4, linestyle="", label=title)
        ordered = numpy.sort(times)
        slower = 1 - numpy.arange(len(ordered)) / len(ordered)
        share.step(ordered, slower, where="pre", color=colour, label=title)
    each.set_xlabel("timed token, as it came")
    each.set_ylabel("ms per token")
    each.set_yscale("log")
    share.set_xlabel("ms per token")
    share.set_ylabel("share of tokens at least as slow")
    share.set_xscale("log")
    share.set_yscale("log")
    drawing.legend(
        *share.get_legend_handles_labels(), loc="outside upper left", ncols=6, fontsize=11
    )
    for axis in (each.yaxis, share.xaxis):
        _plain(axis)
    return drawing


def ladder(found: Ladder) -> "Figure":
    """The ways to decode one stream, from the slowest down to the roofline."""
    steps = [
        (row.name, row.ms, row.mbu) for row in found.rows if row.roofline_ms and row.batch == 1
    ]
    rooflines = {row.roofline_ms for row in found.rows if row.roofline_ms and row.batch == 1}
    floor = "roofline: weights and cache read once"
    shown = [*steps, *((floor, ms, None) for ms in sorted(rooflines)[:1])]
    shown.sort(key=lambda step: step[1])
    drawing, (axes,) = figure(1.2 + 0.42 * len(shown))
    for i, (name, ms, mbu) in enumerate(shown):
        axes.plot(ms, i, color=GREY if name == floor else BLUE, marker="o", ms=9)
        text = f"{ms:.3g} ms" + (f", MBU {mbu:.0%}" if mbu else "")
        axes.annotate(text, (ms, i), (9, 0), textcoords="offset points", va="center", fontsize=11)
    axes.set_yticks(range(len(shown)), [name for name, _, _ in shown])
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 2.5)
    axes.set_xlabel("ms per token, batch 1 (logarithmic)")
    _plain(axes.xaxis)
    axes.set_ylim(-0.5, len(shown) - 0.5)
    return drawing


def _plain(axis: Any) -> None:
    """Numbers on a logarithmic axis as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def label(name: str, row: Measurement) -> str:
    """The paper's name of a method, or the label."""
    return METHODS.get(name, row.record.label)


def _nll(row: Measurement) -> Floats:
    assert row.nll is not None
    return row.nll
