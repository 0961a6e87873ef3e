"""The hooks on a model: what they refuse, and what they leave alone."""

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from streamcache.caches import one_pass
from streamcache.caches.base import BoundedCache
from streamcache.caches.padding import PaddingError
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.cases import CACHES, each_cache
from tests.tiny import error, expected, llama, neox, stream, text, tiny

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24
TIGHT = 1e-4


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


def left_padded(batch: int, n_tokens: int) -> Tensor:
    mask = torch.ones(batch, n_tokens, dtype=torch.long)
    mask[0, :3] = 0
    return mask


Call = Callable[[Any, StreamingCache, Tensor], Any]

REFUSED: dict[str, tuple[type[Exception], str, Call]] = {
    "padding on the right": (
        PaddingError,
        "after a stream's first token: pad on the left only",
        lambda model, cache, ids: model.generate(
            ids,
            attention_mask=left_padded(*ids.shape).flip(1),
            past_key_values=cache,
            max_new_tokens=4,
        ),
    ),
    "padding on the right, by place": (
        PaddingError,
        "after a stream's first token: pad on the left only",
        lambda model, cache, ids: model(ids, left_padded(*ids.shape).flip(1), None, cache),
    ),
    "a row without a token": (
        PaddingError,
        "has no tokens: remove it",
        lambda model, cache, ids: model(
            input_ids=ids[:, :1], attention_mask=left_padded(2, 1), past_key_values=cache
        ),
    ),
    "a mask of ones own": (
        PaddingError,
        "makes its own mask",
        lambda model, cache, ids: model(
            input_ids=ids, attention_mask=torch.ones(2, 1, 40, 40), past_key_values=cache
        ),
    ),
    "positions that do not continue": (
        ValueError,
        "continue after the 0 tokens seen",
        lambda model, cache, ids: model(
            input_ids=ids, position_ids=torch.arange(1, 41)[None], past_key_values=cache
        ),
    ),
    "no use of the cache": (
        ValueError,
        "use_cache=False contradicts past_key_values",
        lambda model, cache, ids: model.generate(
            ids[:, :9], past_key_values=cache, use_cache=False, max_new_tokens=4
        ),
    ),
    "continuous batching": (
        ValueError,
        "generate_batch uses a paged cache",
        lambda model, cache, ids: model.generate_batch([[1, 2]], past_key_values=cache),
    ),
    "no token": (
        ValueError,
        "no tokens to feed: .* seen all 0",
        lambda model, cache, ids: model(input_ids=ids[:, :0], past_key_values=cache),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_a_token_is_processed(model: PreTrainedModel, case: str) -> None:
    kind, message, call = REFUSED[case]
    ids, cache = text(40, batch=2), StreamingCache(model, POLICY)
    with pytest.raises(kind, match=message):
        call(model, cache, ids)
    assert cache.seen == 0
    assert error(stream(model, cache, ids), expected(model, POLICY, ids)) < TIGHT


def test_the_attentions_of_an_input_longer_than_the_window_are_refused() -> None:
    model, ids = llama(attn_implementation="eager"), text(40)
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions needs the input in one forward"):
        stream(model, StreamingCache(model, POLICY), ids, [40])


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"attention_mask": torch.tensor([[0]])}, PaddingError),
        ({"attention_mask": torch.zeros(1, 1, 1, 21)}, PaddingError),
        ({"position_ids": torch.tensor([[7]])}, ValueError),
    ],
    ids=["padding", "a 4-D mask", "a position"],
)
def test_a_single_token_is_looked_at_too(
    model: PreTrainedModel, wrong: dict[str, Tensor], kind: type[Exception]
) -> None:
    cache = StreamingCache(model, POLICY)
    stream(model, cache, text(20))
    with pytest.raises(kind):
        model(input_ids=text(1), past_key_values=cache, **wrong)
    assert cache.seen == 20


def test_positions_that_count_on_are_accepted(model: PreTrainedModel) -> None:
    ids, cache = text(60), StreamingCache(model, POLICY)
    logits = stream(model, cache, ids[:, :50])
    right = torch.arange(50, 60)[None]
    last = model(input_ids=ids[:, 50:], position_ids=right, past_key_values=cache).logits
    reference = expected(model, POLICY, ids)
    assert error(torch.cat([logits, last], dim=1), reference) < TIGHT
    with pytest.raises(ValueError, match="continue after the 60 tokens seen"):
        model(input_ids=ids[:, :10], position_ids=right, past_key_values=cache)


@each_cache
def test_hooks_leave_caches_of_transformers_alone(cache_type: type[BoundedCache]) -> None:
    """A model with hooks serves a DynamicCache, and a padded batch, bit for bit as before."""
    model, ids, mask = neox(), text(30, batch=2), left_padded(2, 30)
    before = model(input_ids=ids, attention_mask=mask, past_key_values=DynamicCache()).logits
    without_cache = model(input_ids=ids, attention_mask=mask).logits
    stream(model, cache_type(model, POLICY), ids)
    after = model(input_ids=ids, attention_mask=mask, past_key_values=DynamicCache()).logits
    assert torch.equal(before, after)
    assert torch.equal(without_cache, model(input_ids=ids, attention_mask=mask).logits)


def test_a_model_is_attached_to_once(model: PreTrainedModel) -> None:
    caches = [cache_type(model, POLICY) for cache_type in CACHES]
    for module in (model, model.get_decoder()):
        assert len(module._forward_pre_hooks) == len(module._forward_hooks) == 1
    del caches


@each_cache
def test_a_deep_copy_of_a_model(cache_type: type[BoundedCache]) -> None:
    """The copy has hooks and a cache of its own; the original goes on as if there were none."""
    original, ids = neox(), text(100)
    cache = cache_type(original, POLICY)
    first = stream(original, cache, ids[:, :50])
    other = copy.deepcopy(original)
    with torch.no_grad():
        other.get_output_embeddings().weight *= -1
    negated = stream(other, cache_type(other, POLICY), ids)
    rest = stream(original, cache, ids[:, 50:])
    reference = expected(original, POLICY, ids)
    assert error(torch.cat([first, rest], dim=1), reference) < TIGHT
    assert error(-negated, reference) < TIGHT


def test_the_decoder_called_by_itself(model: PreTrainedModel) -> None:
    """Before and after positions were re-based, in inputs of any length, alternating."""
    ids, cache = text(160), StreamingCache(model, POLICY)
    head = stream(model, cache, ids[:, :60])
    decoder, output_embeddings = model.get_decoder(), model.get_output_embeddings()
    with torch.no_grad():
        pieces = [
            decoder(input_ids=p, past_key_values=cache)[0] for p in ids[:, 60:100].split(8, 1)
        ]
        middle = output_embeddings(torch.cat(pieces, dim=1))
    tail = stream(model, cache, ids[:, 100:])
    assert cache.seen == 160
    reference = expected(model, POLICY, ids)
    assert error(torch.cat([head, middle, tail], dim=1), reference) < TIGHT


def test_a_long_input_that_is_interrupted_is_fed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its pass nothing has changed yet; in its last token the cache refuses until reset."""
    model: Any = neox()
    ids, policy = text(30), EvictionPolicy(4, 16)
    monkeypatch.setitem(one_pass._BLOCK, "cpu", 8)
    reference = expected(model, policy, ids)
    for call in range(1, 7):  # a trial, four blocks and the last token
        cache = StreamingCache(model, policy)
        handle = model.gpt_neox.layers[1].register_forward_pre_hook(stop_at(call))
        with torch.no_grad(), pytest.raises(KeyboardInterrupt):
            model(input_ids=ids, past_key_values=cache)
        handle.remove()
        if call < 6:
            assert cache.seen == 0
        else:
            with pytest.raises(RuntimeError, match=r"a long input was .*29 tokens seen"):
                stream(model, cache, ids, [30])
            cache.reset()
        assert error(stream(model, cache, ids, [30]), reference) < TIGHT


def stop_at(call: int) -> Any:
    """A hook that interrupts the forward when it is called that often."""
    calls: list[object] = []

    def hook(module: object, args: object) -> None:
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt

    return hook


def hooks_of(model: PreTrainedModel) -> list[int]:
    modules = list(model.modules())
    return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules]


def test_the_hooks_go_with_the_last_cache_of_a_model() -> None:
    model: Any = llama()
    before = hooks_of(model)
    caches = [cache_type(model, POLICY) for cache_type in CACHES]
    fork = copy.deepcopy(caches[0])
    stream(model, caches[1], text(30))
    del caches
    gc.collect()
    assert hooks_of(model) != before, "the fork is left"
    stream(model, fork, text(30))
    del fork
    gc.collect()
    assert hooks_of(model) == before
    assert "generate_batch" not in vars(model)


def test_hooks_are_registered_once_by_many_threads() -> None:
    model, barrier = llama(), threading.Barrier(8)
    caches: list[BoundedCache] = []

    def build() -> None:
        barrier.wait()
        caches.append(StreamingCache(model, POLICY))

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caches) == 8 and sum(hooks_of(model)) == 4, "two on the model, two on its decoder"


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_may_be_passed_by_either_of_its_names(model: PreTrainedModel, name: str) -> None:
    cache, ids = StreamingCache(model, POLICY), text(60)
    with torch.no_grad():
        pieces = [model(input_ids=p, **{name: cache}).logits for p in ids.split(1, dim=1)]
    assert cache.seen == 60
    assert error(torch.cat(pieces, dim=1), expected(model, POLICY, ids)) < TIGHT


def test_a_cache_of_another_model_is_refused() -> None:
    """Also where that has the same shape, or fewer layers."""
    cache = StreamingCache(llama(), POLICY)
    for other in (llama(), llama(num_hidden_layers=1), neox()):
        own = StreamingCache(other, POLICY)  # so that there are hooks
        with pytest.raises(RuntimeError, match="was built for another model"):
            stream(other, cache, text(3))
        assert own.seen == cache.seen == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_was_cast_after_the_cache_was_built_is_refused(dtype: torch.dtype) -> None:
    model: Any = llama()
    cache = StreamingCache(model, POLICY)
    stream(model, cache, text(5))
    model.to(dtype)
    with pytest.raises(RuntimeError, match=r"was cast, .* build a new cache"):
        stream(model, cache, text(5))
    StreamingCache(model, POLICY)
    moved = llama()
    cache = StreamingCache(moved, POLICY)
    for module in moved.modules():  # what a move to another device does
        module._buffers.update({n: b.clone() for n, b in module.named_buffers(recurse=False)})
    stream(moved, cache, text(5))


def test_gradient_checkpointing_which_uses_no_cache_is_noticed() -> None:
    model = llama()
    model.gradient_checkpointing_enable()
    model.train()
    cache = StreamingCache(model, POLICY)
    with pytest.raises(RuntimeError, match="only 0 of 2 layers have appended"):
        model(input_ids=text(5), past_key_values=cache)


def test_gradients_are_refused_when_they_are_asked_for(model: PreTrainedModel) -> None:
    """A forward outside `no_grad` is right, a backward would be wrong."""
    cache, ids = StreamingCache(model, POLICY), text(9)
    outputs = model(input_ids=ids, labels=ids, past_key_values=cache)
    assert error(outputs.logits, expected(model, POLICY, ids)) < TIGHT
    with pytest.raises(RuntimeError, match="for inference only"):
        outputs.loss.backward()


def test_all_outputs_of_an_input_longer_than_the_window() -> None:
    """Also those that are by expert, not by token, and the loss."""
    shape = {"num_key_value_heads": 2, "num_local_experts": 4, "sliding_window": None}
    model, ids = tiny("mixtral", **shape), text(40, batch=2)
    cache = StreamingCache(model, POLICY)
    with torch.no_grad():
        outputs = model(
            input_ids=ids,
            labels=ids,
            past_key_values=cache,
            output_hidden_states=True,
            output_router_logits=True,
        )
        plain = model(input_ids=ids, labels=ids, output_hidden_states=True)
        kept = model(
            input_ids=ids,
            past_key_values=StreamingCache(model, POLICY),
            logits_to_keep=torch.tensor([3, 30]),
        )
    assert [h.shape for h in outputs.hidden_states] == [h.shape for h in plain.hidden_states]
    assert torch.equal(outputs.logits, model.get_output_embeddings()(outputs.hidden_states[-1]))
    assert [r.shape for r in outputs.router_logits] == [(80, 4)] * 2
    first = outputs.hidden_states[1][1, 20]  # of the second row, in the order of a whole input
    assert first.shape == (32,) and outputs.loss.isfinite()
    assert torch.allclose(kept.logits, outputs.logits[:, [3, 30]], atol=1e-5)


def test_an_input_longer_than_the_window_with_outputs_as_a_tuple() -> None:
    """Asked for by the call, or of the decoder by the config."""
    model, ids = llama(), text(40)
    cache = StreamingCache(model, POLICY)
    with torch.no_grad():
        reference = model(input_ids=ids, past_key_values=cache, output_hidden_states=True)
        cache.reset()
        outputs = model(input_ids=ids, past_key_values=cache, return_dict=False)
        cache.reset()
        model.config.return_dict = False
        inner = model.get_decoder()(input_ids=ids, past_key_values=cache)
    assert isinstance(outputs, tuple) and torch.equal(outputs[0], reference.logits)
    assert isinstance(inner, tuple) and torch.equal(inner[0], reference.hidden_states[-1])
