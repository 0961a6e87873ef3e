"""The picture of a diagnosis: some tokens, the mean around all prunes, and the shuffles."""

import io

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from streamcache.measure.diagnose import Diagnosis, Floats, Held, Spike

_POLICY, _CONTROL, _PRUNE = "C0", "C1", "C3"
_SHOWN = 400  # tokens in the first panels: more would not be told apart
_BEFORE = 100  # of them before the first prune


def svg(made: Diagnosis, states: list[Held], nll: Floats, against: Floats) -> bytes:
    """An SVG, 1000 px wide. Nothing is smoothed."""
    figure, panels = plt.subplots(4, 1, figsize=(10, 14), dpi=100, layout="constrained")
    figure.suptitle(
        f"{made.configuration} against {made.against}: {made.subject.text}, "
        f"{made.subject.n_tokens} tokens, {made.subject.model}"
    )
    first = made.first_position - 1
    prunes = [i for i in range(first, len(nll)) if states[i].evicted]
    begin = max(first, prunes[0] - _BEFORE)
    shown = np.arange(begin, min(begin + _SHOWN, len(nll)))
    _tokens(panels[0], shown, nll, "NLL (nats per token)", "Tokens around the first prunes")
    less = f"The same tokens, less their NLL under {made.against}"
    _tokens(panels[1], shown, nll - against, "NLL difference (nats per token)", less)
    marks = [i + 1 for i in prunes if i <= shown[-1]]
    for axes in panels[:2]:
        for prune in marks if len(marks) <= _SHOWN // 8 else []:
            axes.axvline(prune, color=_PRUNE, linewidth=1, alpha=0.6)
    _around(panels[2], made)
    _shuffles(panels[3], made)
    for axes in panels:
        axes.grid(alpha=0.25)
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()


def _tokens(axes: Axes, shown: NDArray[np.int64], series: Floats, label: str, title: str) -> None:
    axes.plot(shown + 1, series[shown], color=_POLICY, linewidth=0.8)
    axes.set(xlabel="position in the text (tokens); prunes in red", ylabel=label, title=title)


def _around(axes: Axes, made: Diagnosis) -> None:
    spike, offset = made.spike, np.arange(-made.spike.span, made.spike.span)
    band = (spike.shuffled_low, spike.shuffled_high)
    axes.fill_between(offset, *band, color="grey", alpha=0.3, label="95 % of the shuffles")
    axes.plot(offset, spike.profile, ".-", color=_POLICY, label=made.configuration)
    axes.plot(
        offset, made.control.profile, color=_CONTROL, linewidth=0.8, label="control: no prune there"
    )
    axes.axvline(-0.5, color=_PRUNE, linewidth=1)
    axes.set(
        xlabel="tokens since the prune",
        ylabel="mean NLL difference (nats per token)",
        title=f"Around {spike.n_boundaries} prunes",
    )
    axes.legend(frameon=False)


def _shuffles(axes: Axes, made: Diagnosis) -> None:
    rows = {"NLL as it is": made.raw, "control": made.control, "after prunes": made.spike}
    for height, spike in enumerate(rows.values()):
        axes.plot(spike.shuffled_excess, (height, height), color="grey", linewidth=8, alpha=0.4)
        axes.plot(spike.excess, height, "o", color=_POLICY)
        axes.annotate(
            _figures(spike), (spike.excess, height), (0, 9), textcoords="offset points", ha="center"
        )
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set(
        yticks=range(len(rows)),
        yticklabels=list(rows),
        ylim=(-0.5, len(rows) - 0.3),
        xlabel="mean after less mean before (nats per token)",
        title="Excess (point) and 95 % of the shuffles (bar)",
    )
    axes.margins(x=0.15)


def _figures(spike: Spike) -> str:
    return f"{spike.excess:+.4f}, p = {spike.excess_p:.4f}"
