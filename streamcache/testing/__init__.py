"""Checks for a rule of eviction, or a cache, of one's own: `check_policy` and `check_cache`.

They raise AssertionError with what is wrong, and need no test framework:

    def test_my_rule() -> None:
        check_policy(MyRule(n_sink=4, floor=64, capacity=80))

    def test_my_cache() -> None:
        check_cache(MyCache, model, EvictionPolicy(4, 12, compress_every=8))
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.scored import Entries, ScoredPolicy
from streamcache.policy import Policy, fields_that_are_set
from streamcache.testing.oracle import Oracle

__all__ = ["Oracle", "check_cache", "check_policy", "kept_tokens", "logit_error", "oracle_logits"]


def check_policy(policy: Policy, n_tokens: int = 2000) -> None:
    """Check what every cache relies on, over a stream of `n_tokens`.

    The same arguments give the same eviction; an eviction is of entries that are there and no
    sinks, and of at most `max_drop` where the rule has one; after each append the cache holds at
    most `capacity` entries, among them the first `n_sink` tokens and the most recent ones, `floor`
    in all; and it has an identity.

    Raises:
        AssertionError: it does not; the message names the token.
    """
    n_sink, floor, capacity = policy.n_sink, policy.floor, policy.capacity
    assert 0 <= n_sink < floor <= capacity, (
        f"0 <= n_sink < floor <= capacity does not hold: {n_sink}, {floor}, {capacity}"
    )
    assert fields_that_are_set(policy), "a policy has fields that distinguish it from others"
    if isinstance(policy, ScoredPolicy):
        _check_scores(policy)
    limit = getattr(policy, "max_drop", None)
    size = 0
    for seen in range(n_tokens):
        where = f"before token {seen}, with {size} entries held,"
        evicted = policy.drop(seen, size)
        assert isinstance(evicted, int), f"{where} drop gave {evicted!r}, no integer"
        assert evicted == policy.drop(seen, size), f"{where} drop gave two answers"
        assert isinstance(policy.scheduled(seen), bool), f"{where} scheduled gave no bool"
        assert 0 <= evicted <= max(0, size - n_sink), (
            f"{where} drop evicts {evicted} entries, but {max(0, size - n_sink)} are no sinks"
        )
        is_allowed = limit is None or evicted <= limit
        assert is_allowed, f"{where} drop evicts {evicted} > max_drop={limit}"
        size += 1 - evicted
        assert size <= capacity, f"{where} drop leaves {size} entries, capacity is {capacity}"
        assert not evicted or size >= floor, f"{where} drop leaves {size} entries, floor is {floor}"


def _check_scores(policy: ScoredPolicy) -> None:
    """Scores of random entries: of the right shape, numbers, and the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    n_entries = policy.total
    for batch, n_heads in ((1, 1), (2, 3)):
        keys, values = torch.randn(2, batch, n_heads, n_entries, 8, generator=generator)
        attention = torch.rand(batch, n_heads, n_entries, generator=generator).softmax(dim=-1)
        entries = Entries(keys, values, attention)
        before = Entries(*(tensor.clone() for tensor in entries))
        scores = policy.scores(entries)
        allowed = [(batch, n_heads, n_entries), (batch, 1, n_entries)]
        assert tuple(scores.shape) in allowed, f"scores are {tuple(scores.shape)}, not {allowed}"
        assert bool(scores.isfinite().all()), "a score is no finite number"
        assert torch.equal(scores, policy.scores(entries)), "scores gave two answers"
        unchanged = all(torch.equal(*pair) for pair in zip(entries, before))
        assert unchanged, "scores changed the entries"


def check_cache(
    make: Callable[[Any, Policy], BoundedCache],
    model: PreTrainedModel,
    policy: Policy,
    n_tokens: int = 80,
    tolerance: float = 1e-4,
) -> float:
    """Check a kind of cache against a float64 oracle that shares no code with caches.

    A stream token by token, one in inputs of any length, a batch whose rows are reordered, a
    fork, and a second stream after `reset()`; and what the cache says of itself on the way.

    Args:
        make: the class of the cache, or any function of a model and a policy.
        model: float32, on any device, best tiny: the oracle runs it over all that is held for
            every token. Random weights should be large, or its attention is flat.
        policy: what to evict and when; n_tokens should be a few times its capacity.
        n_tokens: of each stream.
        tolerance: the largest allowed error, as `logit_error` has it.

    Returns:
        The largest error found.

    Raises:
        AssertionError: the logits, or what the cache says, are wrong.
    """
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2, n_tokens), generator=generator).to(model.device)
    cache = make(model, policy)
    errors = []

    def compare(what: str, logits: Tensor, reference: Tensor) -> None:
        errors.append(logit_error(logits, reference))
        found = f"{what}: logits are off by {errors[-1]:.1e} of their spread"
        assert errors[-1] <= tolerance, found

    stepwise = oracle_logits(model, policy, ids)
    compare("token by token", _feed(model, cache, ids, [1] * n_tokens), stepwise)
    cache.reset()
    assert (cache.seen, cache.evicted, cache.size) == (0, 0, 0), "reset() leaves something"
    inputs = _lengths(n_tokens, policy.capacity)
    compare("several at once, after reset()", _feed(model, cache, ids[:1], inputs), stepwise[:1])
    half = n_tokens // 2
    cache.reset()
    _feed(model, cache, ids[:, :half], [1] * half)
    fork = copy.deepcopy(cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    rest = [1] * (n_tokens - half)
    swapped = torch.cat([ids[:, :half].flip(0), ids[:, half:]], dim=1)
    reference = oracle_logits(model, policy, swapped)[:, half:]
    compare("after its rows were reordered", _feed(model, cache, ids[:, half:], rest), reference)
    compare("a fork", _feed(model, fork, ids[:, half:], rest), stepwise[:, half:])
    return max(errors)


def _lengths(n_tokens: int, capacity: int) -> list[int]:
    lengths: list[int] = []
    while sum(lengths) < n_tokens:
        wanted = (1, (capacity + 1) // 2, 1, capacity + 3)[len(lengths) % 4]
        lengths.append(min(wanted, n_tokens - sum(lengths)))
    return lengths


@torch.no_grad()
def _feed(
    model: PreTrainedModel, cache: BoundedCache, ids: Tensor, lengths: Sequence[int]
) -> Tensor:
    """Logits of forwards over inputs of these lengths, with what the cache says checked."""
    logits = []
    model = getattr(cache, "model", model)  # of a ScoredCache, the copy that feeds it
    for chunk in ids.split(list(lengths), dim=1):
        seen = cache.seen
        logits.append(model(input_ids=chunk, past_key_values=cache).logits)
        assert cache.seen == cache.get_seq_length() == seen + chunk.shape[1], "seen is wrong"
        assert cache.size == cache.seen - cache.evicted <= cache.policy.capacity, "size is wrong"
        assert cache.batch_size == len(ids), "batch_size is wrong"
    return torch.cat(logits, dim=1)


def oracle_logits(model: PreTrainedModel, policy: Policy, ids: Tensor) -> Tensor:
    """Logits [B, T, V] of a stream [B, T], in float64."""
    wide: Any = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=torch.float64)
    wide.load_state_dict(model.state_dict())
    oracle = Oracle(wide.to(model.device).eval())
    kept = kept_tokens(policy, ids.shape[1])
    return torch.stack([oracle.logits(row, kept) for row in ids])


def kept_tokens(policy: Policy, n_tokens: int) -> list[list[int]]:
    """The tokens that each token of a stream sees, itself the last."""
    held: list[int] = []
    after: list[list[int]] = []
    for t in range(n_tokens):
        evicted = policy.drop(t, len(held))
        held = [*held[: policy.n_sink], *held[policy.n_sink + evicted :], t]
        after.append(held)
    return after


@torch.no_grad()
def logit_error(logits: Tensor, reference: Tensor) -> float:
    """The largest difference, in units of the reference's standard deviation over the vocabulary.

    1e-5 is exact in float32, 1 another prediction; infinite where a logit is not a number.
    """
    difference = (logits.double() - reference.double()).abs()
    spread = reference.double().std(dim=-1).mean()
    return float(difference.nan_to_num(nan=torch.inf).max() / spread)
