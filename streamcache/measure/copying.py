"""What is lost beyond the window: a passage is read again, a number of tokens after its first time.

A model that still sees the passage predicts it much better the second time. Once the passage has
left the cache, it cannot.
"""

import math
from dataclasses import dataclass

import numpy
import torch

from streamcache.inputs.corpora import TokenizedText, digest_of
from streamcache.inputs.models import LoadedModel
from streamcache.measure.checked import Floats
from streamcache.measure.configurations import Configuration
from streamcache.measure.progress import Progress, no_progress
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload

PASSAGE = 32  # tokens
_CUE = 8  # of them, from which the model can see that the passage is repeated


@dataclass(frozen=True)
class Copied:
    """One configuration at one distance.

    Attributes:
        distance: tokens from the beginning of the passage to that of its copy.
        first, again: PPL of the passage, of both times over the same tokens.
        error: standard error of log(again / first), over the passages.
    """

    configuration: str
    distance: int
    first: float
    again: float
    error: float


def copying_text(text: TokenizedText, distance: int, n_passages: int) -> TokenizedText:
    """A stream in which each passage comes again: its marker, then passage, filler and passage.

    Args:
        text: at least 1 + n_passages * distance tokens, of which the first is kept as marker.
        distance: at least `PASSAGE` tokens.
    """
    ids = text.input_ids
    if distance < PASSAGE or len(ids) < 1 + n_passages * distance:
        raise ValueError(f"{n_passages} passages {distance} tokens apart do not fit the text")
    pieces = [ids[:1]]
    for begin in range(1, 1 + n_passages * distance, distance):
        pieces += [ids[begin : begin + distance], ids[begin : begin + PASSAGE]]
    stream = torch.cat(pieces)
    name = f"{text.name}, {n_passages} passages again after {distance}"
    return TokenizedText(name, stream, digest_of(stream), text.source)


def measure_copying(
    loaded: LoadedModel,
    text: TokenizedText,
    configurations: list[Configuration],
    distances: list[int],
    n_passages: int,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> list[Copied]:
    """Measure every configuration at every distance."""
    found = []
    for distance in distances:
        stream = copying_text(text, distance, n_passages)
        workload = Workload(loaded, stream, window=None)
        for configuration in configurations:
            what = What(tpot_tokens=0)
            measured = run(configuration, workload, what, store, progress=progress)
            assert measured.nll is not None
            found.append(_copied(configuration.name, distance, n_passages, measured.nll))
    return found


def _copied(name: str, distance: int, n_passages: int, nll: Floats) -> Copied:
    # Entry t is the NLL of token t + 1, so the first passage begins at entry 0.
    begins = numpy.arange(n_passages) * (distance + PASSAGE)
    tokens = begins[:, None] + numpy.arange(_CUE, PASSAGE)
    first, again = nll[tokens], nll[tokens + distance]
    gaps = (again - first).mean(axis=1)
    error = float(gaps.std(ddof=1)) / math.sqrt(n_passages) if n_passages > 1 else 0.0
    return Copied(name, distance, math.exp(first.mean()), math.exp(again.mean()), error)
