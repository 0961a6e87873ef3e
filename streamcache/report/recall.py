"""Right answers by the distance of the fact: a table and a picture."""

from streamcache.measure.recall import Recalled
from streamcache.report.svg_file import svg_file
from streamcache.report.tables import Table


def recall_table(found: list[Recalled], title: str) -> Table:
    """A row a distance, a column a configuration."""
    names = list(dict.fromkeys(each.configuration for each in found))
    cells = {(each.configuration, each.distance): each for each in found}
    distances = sorted({each.distance for each in found})
    rows = tuple(
        (f"{distance:,}", *(_cell(cells[name, distance]) for name in names))
        for distance in distances
    )
    n_asked = sorted({each.n_asked for each in found})
    return Table(
        title,
        ("distance", *names),
        rows,
        (
            f"right answers of {' to '.join(map(str, dict.fromkeys((n_asked[0], n_asked[-1]))))} "
            "at each distance, by greedy decoding, with 95 % (Wilson); in brackets the mean NLL of "
            "a token of the answer",
            "distance: from the number of a fact to where it is asked for, in tokens",
        ),
    )


def _cell(each: Recalled) -> str:
    low, high = (100 * limit for limit in each.interval)
    share = 100 * each.n_right / each.n_asked
    return f"{share:.0f} % ({low:.0f} to {high:.0f}) [{each.nll:.2f}]"


def svg(found: list[Recalled], title: str, entries: int) -> bytes:
    """The share of right answers by distance: an SVG."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=100, layout="constrained")
    for name in dict.fromkeys(each.configuration for each in found):
        mine = [each for each in found if each.configuration == name]
        shares = [each.n_right / each.n_asked for each in mine]
        spans = [each.interval for each in mine]
        below = [share - low for share, (low, _) in zip(shares, spans)]
        above = [high - share for share, (_, high) in zip(shares, spans)]
        distances = [each.distance for each in mine]
        axes.errorbar(distances, shares, (below, above), marker="o", capsize=3, label=name)
    axes.axvline(entries, color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set(
        title=title,
        ylim=(-0.03, 1.03),
        xlabel=f"distance from the fact to the question (tokens; dotted: {entries:,} entries)",
        ylabel="right answers",
    )
    axes.legend()
    axes.grid(alpha=0.25)
    return svg_file(figure)
