"""Hybrids: attention is bounded, and the state of the other layers is of the whole stream."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from streamcache.caches.admission import UnsupportedModelError
from streamcache.caches.base import BoundedCache
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.policy import EvictionPolicy, PolicyError
from tests.cases import CACHES, HEADS
from tests.hybrids import HYBRIDS, expected_of_hybrid
from tests.interrupt import Interrupted, RaiseAtLine
from tests.tiny import error, stream, text, tiny

POLICY = EvictionPolicy(3, 9, 4, 3, 5)
TIGHT = 1e-4


def hybrid(family: str) -> Any:
    torch.manual_seed(0)  # some weights are drawn when a model is built
    return tiny(family, **HYBRIDS[family])


@pytest.fixture(scope="module")
def lfm2() -> Any:
    return hybrid("lfm2")


@pytest.fixture(scope="module")
def jamba() -> Any:
    return hybrid("jamba")


def bound(family: str, model: Any, ids: Tensor) -> float:
    """1e-4; of a gated delta rule, which computes in float32 whatever it is given, twice what
    transformers' own cache is off by where nothing is evicted."""
    if family != "qwen3_next":
        return TIGHT
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        rows = [model(input_ids=token, past_key_values=cache).logits for token in ids.split(1, 1)]
    everything = EvictionPolicy(0, ids.shape[1])
    return 2 * error(torch.cat(rows, dim=1), expected_of_hybrid(model, everything, ids))


@pytest.mark.parametrize("family", HYBRIDS)
def test_a_hybrid_agrees_with_the_oracle(family: str) -> None:
    """Token by token, in one input, and in several."""
    model, ids = hybrid(family), text(45, batch=2)
    reference = expected_of_hybrid(model, POLICY, ids)
    most = bound(family, model, ids)
    assert most < 5e-3
    for pieces in ([1] * 45, [45], [20, 1, 3, 21]):
        cache = StreamingCache(model, POLICY)
        assert error(stream(model, cache, ids, pieces), reference) < most
        assert cache.evicted > 25


@pytest.mark.parametrize("cache_type", CACHES)
def test_every_cache_streams_a_hybrid(jamba: Any, cache_type: type[BoundedCache]) -> None:
    ids, policy = text(45), EvictionPolicy(4, 8)
    logits = stream(jamba, cache_type(jamba, policy), ids)
    assert error(logits, expected_of_hybrid(jamba, policy, ids)) < TIGHT


@pytest.mark.parametrize("family", ["jamba", "lfm2", "falcon_h1"])
def test_rows_of_unequal_length_of_a_hybrid(family: str) -> None:
    """Padding enters no state, and a row whose prompt is one token begins with an empty one."""
    model, ids, padding = hybrid(family), text(45, batch=3), [5, 0, 19]
    mask = torch.stack([(torch.arange(20) >= lead).long() for lead in padding])
    cache = StreamingCache(model, POLICY)
    with torch.no_grad():
        prompt = model(input_ids=ids[:, :20], attention_mask=mask, past_key_values=cache).logits
    logits = torch.cat([prompt, stream(model, cache, ids[:, 20:], [1] * 10 + [5] + [1] * 10)], 1)
    for row, own, lead in zip(ids, logits, padding):
        alone = stream(model, StreamingCache(model, POLICY), row[None, lead:])
        assert error(own[None, lead:], alone) < TIGHT
    assert cache.row(1).lengths == [45]


def test_a_decoder_of_a_hybrid_is_eager_and_right(jamba: Any) -> None:
    """Also where a row begins anew."""
    ids, new = text(40, batch=2), text(30, seed=1)
    decoder = CapturedDecoder(jamba, POLICY, 2)
    assert "state beside keys and values" in str(decoder.eager_because)
    rows = [decoder.step(token).clone() for token in ids[:, :30].unbind(dim=1)]
    decoder.replace(0, new[:, :20])
    rest = ids[:, 30:].clone()
    rest[0] = new[0, 20:]
    rows += [decoder.step(token).clone() for token in rest.unbind(dim=1)]
    logits = torch.stack(rows, dim=1)
    assert error(logits[1:], expected_of_hybrid(jamba, POLICY, ids[1:])) < TIGHT
    assert error(logits[:1, 30:], expected_of_hybrid(jamba, POLICY, new)[:, 20:]) < TIGHT


def test_a_stream_of_a_hybrid_is_forked_selected_and_begun_anew(jamba: Any, tmp_path: Path) -> None:
    ids, cache = text(40, batch=2), StreamingCache(jamba, POLICY)
    with torch.inference_mode():
        stream(jamba, cache, ids[:, :30])
    fork = copy.deepcopy(cache)
    fork.batch_select_indices(torch.tensor([1]))
    with pytest.raises(ValueError, match="keep its text, and feed that again"):
        fork.save(tmp_path / "stream")
    rest = stream(jamba, cache, ids[:, 30:])
    assert error(stream(jamba, fork, ids[1:, 30:]), rest[1:]) < TIGHT
    cache.reset()
    again = stream(jamba, cache, ids[:1])
    assert error(again[:, 30:], rest[:1]) < TIGHT


def test_generate_with_a_hybrid(lfm2: Any) -> None:
    """Beams reorder the states."""
    ids, how = text(20), {"max_new_tokens": 25, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    for beams in (1, 3):
        cache = StreamingCache(lfm2, EvictionPolicy(4, 60))
        out = lfm2.generate(ids, attention_mask=mask, past_key_values=cache, num_beams=beams, **how)
        plain = lfm2.generate(ids, attention_mask=mask, num_beams=beams, **how)
        assert torch.equal(out, plain), "nothing was evicted"


def test_a_state_that_enters_keys_or_values_is_refused() -> None:
    """Zaya makes half of a value of the token before, by a state."""
    model = tiny("zaya", **{**HEADS, "num_experts": 2, "moe_intermediate_size": 16})
    with pytest.raises(UnsupportedModelError, match="enters its keys or values"):
        StreamingCache(model, POLICY)


def test_no_token_of_a_hybrid_can_be_taken_back(jamba: Any) -> None:
    with pytest.raises(PolicyError, match="max_rollback must be from 0 to 0"):
        StreamingCache(jamba, POLICY, max_rollback=1)


@pytest.mark.parametrize("n_tokens", [1, 6])
def test_an_interrupted_forward_of_a_hybrid_is_not_run_twice(jamba: Any, n_tokens: int) -> None:
    """At some lines: either nothing has changed, or the cache refuses until it is reset."""
    ids = text(24 + n_tokens)
    before = StreamingCache(jamba, POLICY)
    stream(jamba, before, ids[:, :20])
    reference = stream(jamba, copy.deepcopy(before), ids[:, 20:])[:, n_tokens:]
    n_refused = n_continued = 0
    for line in range(1, 2000, 40):
        cache = copy.deepcopy(before)
        call = partial(stream, jamba, cache, ids[:, 20 : 20 + n_tokens], [n_tokens])
        if not RaiseAtLine(line, Interrupted).run(call):
            break
        try:
            if cache.seen != 20 + n_tokens:
                stream(jamba, cache, ids[:, 20 : 20 + n_tokens], [n_tokens])
            rest = stream(jamba, cache, ids[:, 20 + n_tokens :])
        except RuntimeError as refusal:
            assert "reset()" in str(refusal)
            n_refused += 1
        else:
            assert error(rest, reference) < TIGHT, f"silently wrong after line {line}"
            n_continued += 1
    assert n_refused and n_continued


def test_states_keep_no_history_of_gradients(jamba: Any) -> None:
    cache = StreamingCache(jamba, POLICY)
    for token in text(5).split(1, dim=1):
        jamba(input_ids=token, past_key_values=cache)
    states = [s for layer in cache.layers if layer for s in layer.recurrent_states.values()]
    assert states and not any(state.requires_grad for state in states)


@pytest.mark.slow
def test_fifty_thousand_tokens_of_a_hybrid_in_flat_memory(jamba: Any) -> None:
    """The last tokens agree with the oracle's own recurrence: a stream of the same end."""
    import resource

    cache, ids = StreamingCache(jamba, EvictionPolicy(4, 60)), text(50_000)
    peaks: list[int] = []
    with torch.inference_mode():
        for begin in range(0, 50_000, 10_000):
            for token in ids[:, begin : begin + 10_000].split(1, dim=1):
                logits = jamba(input_ids=token, past_key_values=cache).logits
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            print(f"{cache.seen} tokens, {cache.size} held, peak {peaks[-1]} KiB")
    assert logits.isfinite().all() and cache.size == 64
    assert peaks[-1] - peaks[0] < 4096, "KiB"
