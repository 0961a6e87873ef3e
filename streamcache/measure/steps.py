"""What carries a configuration out: its cache, one step of a decode, a stream token by token."""

from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.kinds import cache_type
from streamcache.caches.refresh import RefreshCache
from streamcache.caches.scored import ScoredCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.decoding.loop import (
    CapturedSteadyDecode,
    SteadyDecode,
    captured_nll,
    nll_between_evictions,
    sequential_nll,
)
from streamcache.decoding.nll import Advance, Score, token_nll
from streamcache.decoding.recompute import recompute_step
from streamcache.measure.configurations import Configuration
from streamcache.policy import PolicyError


def cache_of(configuration: Configuration, model: PreTrainedModel) -> BoundedCache:
    """A new cache for a model.

    Raises:
        ValueError: the configuration recomputes its context and has no cache.
        PolicyError: it is an experiment that is computed in one pass only.
    """
    if configuration.recomputes:
        raise ValueError(f"{configuration.name} recomputes its context and has no cache")
    if configuration.is_experiment:
        raise PolicyError(
            f"{configuration.name} is computed in one pass only, and has a PPL and no times: "
            "--tpot-tokens 0"
        )
    if configuration.by_content:
        return ScoredCache(model, configuration.policy)
    if configuration.refresh:
        return RefreshCache(
            model, configuration.policy, configuration.refresh, configuration.refresh_at
        )
    return cache_type(configuration.cache)(model, configuration.policy)


def steady_step(
    configuration: Configuration, model: PreTrainedModel, input_ids: Tensor
) -> Callable[[], object]:
    """A function that decodes one token of the text [T] per call, in the steady state."""
    policy, batch = configuration.policy, configuration.batch
    if configuration.recomputes:
        return recompute_step(model, input_ids, policy.n_sink, policy.floor - policy.n_sink)
    if configuration.engine == "captured":
        return CapturedSteadyDecode(CapturedDecoder(model, policy, batch), input_ids)
    cache = cache_of(configuration, model)
    return SteadyDecode(fed_model(cache, model), input_ids, cache, batch)


def decoded_nll(
    configuration: Configuration,
    model: PreTrainedModel,
    input_ids: Tensor,
    advance: Advance | None = None,
    score: Score = token_nll,
) -> Tensor:
    """NLL [T - 1] of the text [T], or another score, decoded with the configuration's cache.

    Token by token, but from eviction to eviction where evicted tokens are put back: between two
    evictions such a cache only grows, so both agree.
    """
    if configuration.engine == "captured":
        decoder = CapturedDecoder(model, configuration.policy)
        return captured_nll(decoder, input_ids, advance, score)
    decode = nll_between_evictions if configuration.refresh else sequential_nll
    cache = cache_of(configuration, model)
    return decode(fed_model(cache, model), input_ids, cache, advance, score)


def fed_model(cache: BoundedCache, model: PreTrainedModel) -> PreTrainedModel:
    """The model that feeds a cache: the one it was built for, or the copy that it made."""
    return cache.model if isinstance(cache, ScoredCache) else model
