"""From the NLL of each token to perplexities."""

import math

import numpy
import torch
from numpy.typing import NDArray

from streamcache.decoding.nll import require_finite
from streamcache.measure.checked import Floats
from streamcache.measure.measurement import Quality

Positions = NDArray[numpy.int64]


def baseline_positions(floor: int, n_tokens: int, late: int) -> Positions:
    """The positions at which the recompute baseline is evaluated, increasing.

    Every position before the window is full, and `late` later ones, evenly spread.
    """
    last = n_tokens - 1
    early = numpy.arange(min(floor, last))
    late = min(late, max(0, last - floor))
    if late == 0:
        return early
    spread = numpy.linspace(floor, last - 1, late).round().astype(numpy.int64)
    return numpy.concatenate([early, spread])


def ppl(nll: Floats) -> float:
    """exp of the mean NLL.

    Raises:
        NotFiniteError: an NLL is NaN or infinite.
    """
    require_finite(torch.from_numpy(nll))
    return math.exp(nll.mean())


def of_stream(
    nll: Floats,
    floor: int,
    method: str,
    baseline: Floats | None = None,
    baseline_floor: int = 0,
    late: int = 0,
) -> Quality:
    """Perplexities of a stream's NLL [T - 1], compared with the baseline where there is one.

    Args:
        floor: S + W of the policy. After token floor - 1 its cache is full for the first time.
        baseline: its NLL at `baseline_positions(baseline_floor, T, late)`.
    """
    steady = nll[floor - 1 :]
    compared = increase = error = None
    n_compared = 0
    if baseline is not None:
        positions = baseline_positions(baseline_floor, len(nll) + 1, late)
        both_full = positions >= max(floor - 1, baseline_floor)
        if n_compared := int(both_full.sum()):
            own = nll[positions[both_full]]
            difference = own - baseline[both_full]
            require_finite(torch.from_numpy(difference))
            compared = ppl(own)
            increase = math.exp(difference.mean()) - 1
            if n_compared > 1:
                deviation = float(difference.std(ddof=1))
                error = math.exp(difference.mean()) * deviation / math.sqrt(n_compared)
    return Quality(
        method=method,
        ppl=ppl(nll),
        ppl_steady=ppl(steady) if len(steady) else None,
        n_positions=len(nll),
        n_steady=len(steady),
        ppl_compared=compared,
        ppl_increase=increase,
        n_compared=n_compared,
        ppl_increase_error=error,
        late_positions=late if baseline is not None else 0,
    )


def of_baseline(nll: Floats, floor: int, n_tokens: int, late: int) -> Quality:
    """Perplexities of the baseline itself, over the positions at which it was evaluated."""
    full = nll[baseline_positions(floor, n_tokens, late) >= floor]
    steady = ppl(full) if len(full) else None
    return Quality(
        method="recompute",
        ppl=ppl(nll),
        ppl_steady=steady,
        n_positions=len(nll),
        n_steady=len(full),
        ppl_compared=steady,
        ppl_increase=0.0 if len(full) else None,
        n_compared=len(full),
        late_positions=len(full),
    )
