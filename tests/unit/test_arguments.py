"""What new users pass: served right, or refused in one line that says what is wanted."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from streamcache import (
    CapturedDecoder,
    CapturedGeneration,
    EvictionPolicy,
    StreamingCache,
    UnsupportedModelError,
    recompute_nll,
    streaming_nll,
)
from streamcache.caches.base import BoundedCache
from tests.cases import CACHES, each_cache
from tests.tiny import error, expected, llama, stream, text

POLICY = EvictionPolicy(4, 12, 3, 2, 5)
IDS = text(60)
TIGHT = 1e-4


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


def decoded(model: PreTrainedModel) -> Tensor:
    decoder = CapturedDecoder(model, POLICY)
    logits = [decoder.prefill(IDS[:, :30])]
    logits += [decoder.step(token).clone()[:, None] for token in IDS[:, 30:].unbind(dim=1)]
    return torch.cat(logits, dim=1)


@contextmanager
def default(changed: torch.dtype | str) -> Iterator[None]:
    """Another default than what the model has: of the dtype, or of the device."""
    if isinstance(changed, torch.dtype):
        torch.set_default_dtype(changed)
    else:
        torch.set_default_device(changed)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize("changed", [torch.float64, torch.bfloat16, "meta"])
def test_the_defaults_of_torch_change_nothing(
    model: PreTrainedModel, changed: torch.dtype | str
) -> None:
    reference = expected(model, POLICY, IDS)
    nll = torch.nn.functional.cross_entropy(reference[0, :-1], IDS[0, 1:], reduction="none")
    again = recompute_nll(model, IDS[0], 4, 12, [3, 40])
    with default(changed):
        found = [
            stream(model, cache_type(model, POLICY), IDS, [30, *[1] * 30]) for cache_type in CACHES
        ]
        found.append(decoded(model))
        computed = streaming_nll(model, IDS[0], POLICY)
        assert torch.equal(recompute_nll(model, IDS[0], 4, 12, [3, 40]), again)
    for logits in found:
        assert error(logits, reference) < TIGHT
    assert computed.dtype is torch.float32 and (computed - nll).abs().max() < 5e-4


def test_rows_are_repeated_whatever_the_default_device(model: PreTrainedModel) -> None:
    cache = StreamingCache(model, POLICY)
    with torch.no_grad():
        model(input_ids=IDS[:, :3], past_key_values=cache)
    with default("meta"):
        cache.batch_repeat_interleave(3)
    assert cache.batch_size == 3


IDS_OF_NO_TEXT: dict[str, Any] = {
    "a string": "hello world",
    "strings": ["hello", "world"],
    "a dictionary": {"input_ids": IDS},
    "nothing": None,
}


@pytest.mark.parametrize("given", IDS_OF_NO_TEXT.values(), ids=list(IDS_OF_NO_TEXT))
def test_a_text_that_is_not_of_ids(model: PreTrainedModel, given: Any) -> None:
    kind = type(given).__name__
    for measure in (
        lambda: streaming_nll(model, given, POLICY),
        lambda: recompute_nll(model, given, 4, 12, [3]),
    ):
        with pytest.raises(ValueError, match=f"input_ids must be integers.*got {kind}"):
            measure()
    with pytest.raises(ValueError, match=f"positions must be integers.*got {kind}"):
        recompute_nll(model, IDS[0], 4, 12, given)


TOKENS: dict[str, tuple[Any, str]] = {
    "a number": (3, "int"),
    "a list": ([3], "list"),
    "a float": (torch.tensor([3.7]), r"float32 \[1\]"),
    "two": (torch.tensor([3, 4]), r"int64 \[2\]"),
}


@pytest.mark.parametrize("given, described", TOKENS.values(), ids=list(TOKENS))
def test_a_step_takes_a_tensor_of_ids(model: PreTrainedModel, given: Any, described: str) -> None:
    decoder = CapturedDecoder(model, POLICY)
    with pytest.raises(ValueError, match=f"a step takes 1 tokens, .* got {described}"):
        decoder.step(given)
    if described != r"int64 \[2\]":
        with pytest.raises(
            ValueError, match=rf"a prompt must be token ids \[B, T\], got {described}"
        ):
            decoder.prefill(given)
    assert decoder.cache.seen == 0


@pytest.mark.parametrize("batch", [0, -1, 2.0, True, "2"])
def test_a_batch_is_a_positive_integer(model: PreTrainedModel, batch: Any) -> None:
    with pytest.raises(ValueError, match="batch must be an integer >= 1"):
        CapturedDecoder(model, POLICY, batch)


@pytest.mark.parametrize("given", [None, (4, 12), 2048])
def test_a_policy_that_is_none(model: PreTrainedModel, given: Any) -> None:
    uses: list[Callable[[], object]] = [
        lambda: CapturedDecoder(model, given),
        lambda: streaming_nll(model, IDS[0], given),
        *(lambda kind=kind: kind(model, given) for kind in CACHES),
    ]
    for use in uses:
        with pytest.raises(
            TypeError, match=r"is not a policy \(such as EvictionPolicy\(4, 2044\)\)"
        ):
            use()


def test_arguments_in_the_wrong_order(model: PreTrainedModel) -> None:
    with pytest.raises(TypeError, match="EvictionPolicy is not a transformers model"):
        StreamingCache(POLICY, model)  # type: ignore[arg-type]


USES: list[Callable[[PreTrainedModel], object]] = [
    lambda model: CapturedDecoder(model, POLICY),
    lambda model: streaming_nll(model, IDS[0], POLICY),
    lambda model: recompute_nll(model, IDS[0], 4, 12, [3]),
]


@pytest.mark.parametrize("use", USES, ids=["decoder", "one pass", "recompute"])
def test_a_model_that_predicts_no_tokens(
    model: PreTrainedModel, use: Callable[[PreTrainedModel], object]
) -> None:
    bare = AutoModel.from_config(model.config)
    with pytest.raises(TypeError, match=r"LlamaModel predicts no tokens: .*AutoModelForCausalLM"):
        use(bare)


@pytest.mark.parametrize("use", USES, ids=["decoder", "one pass", "recompute"])
def test_a_model_that_is_not_in_memory(
    model: PreTrainedModel, use: Callable[[PreTrainedModel], object]
) -> None:
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(UnsupportedModelError, match="not in memory"):
        use(empty)


@each_cache
def test_a_cache_is_not_pickled_with_its_model(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    """The copy would have no hooks; a shallow copy would share its buffers."""
    cache = cache_type(model, POLICY)
    for attempt in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match=r"cannot be pickled: copy\.deepcopy\(cache\) forks"):
            attempt(cache)


@pytest.mark.parametrize("with_mask", [True, False])
def test_the_loop_of_transformers_gets_a_bounded_cache(
    model: PreTrainedModel, with_mask: bool
) -> None:
    """By whatever name this version of transformers calls it."""
    captured = CapturedGeneration(model, POLICY)
    how: dict[str, Any] = {"attention_mask": torch.ones(1, 30)} if with_mask else {}
    with pytest.warns(UserWarning, match="its mode is beam_search"):
        output = model.generate(  # type: ignore[operator]
            IDS[:, :30].clamp(min=1),
            custom_generate=captured,
            num_beams=2,
            max_new_tokens=5,
            return_dict_in_generate=True,
            pad_token_id=0,
            **how,
        )
    held = output.past_key_values
    assert isinstance(held, StreamingCache) and held.size <= POLICY.capacity
