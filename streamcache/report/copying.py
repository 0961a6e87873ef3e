"""PPL of passages that are read again: a table and a picture."""

from streamcache.measure.copying import PASSAGE, Copied
from streamcache.report.svg_file import svg_file
from streamcache.report.tables import Table, number


def copying_table(found: list[Copied], title: str) -> Table:
    """A row a configuration and distance."""
    rows = tuple(
        (
            each.configuration,
            f"{each.distance:,}",
            number(each.first),
            number(each.again),
            f"{100 * (each.again / each.first - 1):+.0f} ± "
            f"{100 * each.error * each.again / each.first:.0f} %",
        )
        for each in found
    )
    return Table(
        title,
        ("configuration", "distance", "PPL", "PPL again", "change"),
        rows,
        (
            f"passages of {PASSAGE} tokens; distance: from a passage to its copy, in tokens",
            "change: of the second time over the first, ± its standard error over the passages",
        ),
    )


def svg(found: list[Copied], title: str) -> bytes:
    """PPL of the copy over that of the first time, by distance: an SVG."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=100, layout="constrained")
    for name in dict.fromkeys(each.configuration for each in found):
        mine = [each for each in found if each.configuration == name]
        axes.errorbar(
            [each.distance for each in mine],
            [each.again / each.first for each in mine],
            [each.error * each.again / each.first for each in mine],
            marker="o",
            capsize=3,
            label=name,
        )
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set(
        title=title,
        xlabel="distance from the passage to its copy (tokens)",
        ylabel="PPL of the copy / PPL of the first time",
    )
    axes.legend()
    axes.grid(alpha=0.25)
    return svg_file(figure)
