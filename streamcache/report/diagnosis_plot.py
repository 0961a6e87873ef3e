"""The picture of a diagnosis: some tokens, the mean around all evictions, and the shuffles."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from streamcache.measure.checked import Floats
from streamcache.measure.diagnose import CacheState, Diagnosis, EvictionEffect
from streamcache.report.plots import around_evictions
from streamcache.report.svg_file import svg_file

_POLICY, _EVICTION = "C0", "C3"
_SHOWN = 400  # tokens in the first panels: more could not be distinguished
_BEFORE = 100  # of them before the first eviction


def svg(diagnosis: Diagnosis, states: list[CacheState], nll: Floats, against: Floats) -> bytes:
    """An SVG, 1000 px wide. Nothing is smoothed."""
    figure, panels = plt.subplots(4, 1, figsize=(10, 14), dpi=100, layout="constrained")
    figure.suptitle(
        f"{diagnosis.configuration} against {diagnosis.against}: {diagnosis.workload.text}, "
        f"{diagnosis.workload.n_tokens} tokens, {diagnosis.workload.model}"
    )
    first = diagnosis.first_position - 1
    marked = [i for i in range(first, len(nll)) if states[i].evicted]
    begin = max(first, marked[0] - _BEFORE)
    shown = np.arange(begin, min(begin + _SHOWN, len(nll)))
    _tokens(panels[0], shown, nll, "NLL (nats per token)", "Tokens around the first evictions")
    less = f"The same tokens, less their NLL under {diagnosis.against}"
    _tokens(panels[1], shown, nll - against, "NLL difference (nats per token)", less)
    marks = [i + 1 for i in marked if i <= shown[-1]]
    for axes in panels[:2]:
        for position in marks if len(marks) <= _SHOWN // 8 else []:
            axes.axvline(position, color=_EVICTION, linewidth=1, alpha=0.6)
    around_evictions(diagnosis, panels[2])
    panels[2].set_title(f"Around {diagnosis.effect.n_boundaries} evictions")
    _shuffles(panels[3], diagnosis)
    for axes in panels:
        axes.grid(alpha=0.25)
    return svg_file(figure)


def _tokens(axes: Axes, shown: NDArray[np.int64], series: Floats, label: str, title: str) -> None:
    axes.plot(shown + 1, series[shown], color=_POLICY, linewidth=0.8)
    axes.set(xlabel="position in the text (tokens); evictions in red", ylabel=label, title=title)


def _shuffles(axes: Axes, diagnosis: Diagnosis) -> None:
    rows = {
        "NLL as it is": diagnosis.raw,
        "control": diagnosis.control,
        "after evictions": diagnosis.effect,
    }
    for height, effect in enumerate(rows.values()):
        axes.plot(effect.shuffled_excess, (height, height), color="grey", linewidth=8, alpha=0.4)
        axes.plot(effect.excess, height, "o", color=_POLICY)
        axes.annotate(
            _figures(effect),
            (effect.excess, height),
            (0, 9),
            textcoords="offset points",
            ha="center",
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


def _figures(effect: EvictionEffect) -> str:
    return f"{effect.excess:+.4f}, p = {effect.excess_p:.4f}"
