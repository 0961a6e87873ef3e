"""PG19 as one stream: PPL by position and by book, configurations side by side.

The protocol of Xiao et al. 2023, section 4.1: the test books one after the other, one token at a
time, and a cache that is never reset.
"""

import math
from dataclasses import dataclass, replace

import numpy

from streamcache.inputs.books import Books
from streamcache.inputs.corpora import digest_of
from streamcache.inputs.models import LoadedModel
from streamcache.measure.checked import Floats
from streamcache.measure.configurations import NAMED, Configuration, with_budget
from streamcache.measure.imported import imported_configuration
from streamcache.measure.measurement import Measurement
from streamcache.measure.progress import Progress, no_progress
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy

CAUSAL = "causal"  # all of the text, up to the context that the model was trained with
_RESAMPLED = 2000  # times
_FIRST_EDGE = 1024  # of the positions
_PIECE = 1024  # tokens, by which it is seen where a configuration breaks
_WORSE = math.log(1.1)  # nats: a PPL that is higher by 10 %


@dataclass(frozen=True)
class Streamed:
    """Measurements of one stream of books.

    Attributes:
        by_name: by the name of the configuration; `causal` covers the beginning only.
    """

    books: Books
    by_name: dict[str, Measurement]


def configuration_of(name: str, loaded: LoadedModel, total: int) -> Configuration:
    """A named configuration with a budget of `total` entries, a rule by its path, or `causal`.

    Raises:
        KeyError: there is no such name, or it has no cache.
        ValueError: the model does not say which context it was trained with.
    """
    weights = loaded.quantization
    if name == CAUSAL:
        context = trained_context(loaded)
        if context is None:
            raise ValueError(f"{loaded.name} does not say its trained context: leave out {CAUSAL}")
        return Configuration(EvictionPolicy(0, context), "streaming", weights=weights, label=CAUSAL)
    if ":" in name:
        return replace(imported_configuration(name, 4, total), weights=weights)
    if NAMED[name].recomputes:
        raise KeyError(name)
    return replace(with_budget(NAMED[name], total), weights=weights, label=name)


def trained_context(loaded: LoadedModel) -> int | None:
    """Tokens; None where the config does not say."""
    config = loaded.model.config.get_text_config(decoder=True)
    context = getattr(config, "max_position_embeddings", None)
    return int(context) if context else None


def measure_stream(
    loaded: LoadedModel,
    books: Books,
    configurations: list[Configuration],
    store: Store,
    progress: Progress = no_progress,
) -> Streamed:
    """Measure configurations on a stream; an interrupted run continues where it stopped."""
    found = {}
    for configuration in configurations:
        text, ids = books.text, books.text.input_ids
        if configuration.label == CAUSAL:
            ids = ids[: configuration.policy.capacity + 1]  # the last is only predicted
            text = replace(text, input_ids=ids, digest=digest_of(ids))
        workload = Workload(loaded, text, window=None)
        what = What(tpot_tokens=0)
        found[configuration.label] = run(configuration, workload, what, store, progress=progress)
    return Streamed(books, found)


def edges(n_predictions: int) -> list[int]:
    """Where the rows of PPL by position begin and end: 0, 1024, 2048, 4096 and so on."""
    found, edge = [0], _FIRST_EDGE
    while edge < n_predictions:
        found.append(edge)
        edge *= 2
    return [*found, n_predictions]


def by_position(nll: Floats, begin: int, end: int) -> float | None:
    """PPL of the predictions after tokens `begin` to `end` - 1; None where not all are measured."""
    return math.exp(nll[begin:end].mean()) if end <= len(nll) else None


def worse_from(nll: Floats, reference: Floats) -> int | None:
    """Where the first 1,024 tokens begin whose PPL is more than 10 % above a reference's.

    What follows may be better again: angles of RoPE recur. None where there are no such tokens.
    """
    n_pieces = min(len(nll), len(reference)) // _PIECE
    gaps = (nll[: n_pieces * _PIECE] - reference[: n_pieces * _PIECE]).reshape(n_pieces, _PIECE)
    bad = numpy.flatnonzero(gaps.mean(axis=1) > _WORSE)
    return int(bad[0]) * _PIECE if len(bad) else None


def by_book(books: Books, nll: Floats) -> dict[str, Floats]:
    """The NLLs of each book's tokens that were measured, over all times that it was read."""
    ends = [*books.starts[1:], len(books.text.input_ids)]
    found: dict[str, list[Floats]] = {}
    for name, start, end in zip(books.names, books.starts, ends):
        part = nll[max(0, start - 1) : end - 1]  # entry t is the NLL of token t + 1
        if len(part):
            found.setdefault(name, []).append(part)
    return {name: numpy.concatenate(parts) for name, parts in found.items()}


def interval(parts: list[Floats], seed: int = 0) -> tuple[float, float] | None:
    """95 % of exp of the mean, where books are drawn again with replacement; None of one book."""
    if len(parts) < 2:
        return None
    sums = numpy.array([part.sum() for part in parts])
    counts = numpy.array([len(part) for part in parts])
    drawn = numpy.random.default_rng(seed).integers(len(parts), size=(_RESAMPLED, len(parts)))
    low, high = numpy.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return math.exp(low), math.exp(high)
