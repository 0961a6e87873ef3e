"""Models inside of something else: what is fed to them is looked at all the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from streamcache.caches.hooks import PaddingError
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.tiny import error, expected, llama, text

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24
TIGHT = 1e-4


class Wrapper(nn.Module):
    """As PEFT does it: the model is called, or only its forward."""

    def __init__(self, model: PreTrainedModel, call: str):
        super().__init__()
        self.inner, self.call = model, call

    def forward(self, **kwargs: Any) -> Any:
        return self.inner(**kwargs) if self.call == "call" else self.inner.forward(**kwargs)


def peft(model: PreTrainedModel) -> Any:
    library = pytest.importorskip("peft")
    return library.get_peft_model(model, library.LoraConfig(target_modules=["q_proj"]))


def compiled(model: PreTrainedModel) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, Any] = {
    "a call": lambda model: Wrapper(model, "call"),
    "a forward": lambda model: Wrapper(model, "forward"),
    "peft": peft,
    "torch.compile": compiled,
    "data parallel": nn.DataParallel,
}


@pytest.mark.parametrize("name", WRAPPERS)
@torch.no_grad()
def test_a_wrapped_model_is_streamed_like_the_model(name: str) -> None:
    """Positions start anew, an input longer than the window is split, padding is refused."""
    model, ids = llama(), text(120)
    reference = expected(model, POLICY, ids)
    wrapped = WRAPPERS[name](model)
    cache = StreamingCache(wrapped, POLICY)
    mask = torch.ones(1, 9, dtype=torch.long)
    mask[0, 0] = 0
    with pytest.raises(PaddingError, match="padding would become"):
        wrapped(input_ids=ids[:, :9], attention_mask=mask, past_key_values=cache)
    logits = [wrapped(input_ids=ids[:, :28], past_key_values=cache).logits]
    logits += [wrapped(input_ids=t, past_key_values=cache).logits for t in ids[:, 28:].split(1, 1)]
    assert cache.seen == 120 and cache.base > 0
    assert error(torch.cat(logits, dim=1), reference) < TIGHT


@torch.no_grad()
def test_a_compiled_model_is_not_compiled_anew_at_every_step() -> None:
    torch._dynamo.reset()
    model, ids = llama(), text(80)
    wrapped = compiled(model)
    cache = StreamingCache(wrapped, POLICY)

    def n_frames(steps: Tensor) -> int:
        before = torch._dynamo.utils.counters["frames"]["total"]
        for token in steps.split(1, dim=1):
            wrapped(input_ids=token, past_key_values=cache)
        return int(torch._dynamo.utils.counters["frames"]["total"] - before)

    n_frames(ids[:, :40])
    assert n_frames(ids[:, 40:]) == 0


@torch.no_grad()
def test_a_model_without_an_output_embedding() -> None:
    model, ids = llama(), text(60)
    bare = AutoModel.from_config(model.config)
    bare.load_state_dict(model.get_decoder().state_dict())
    cache = StreamingCache(bare.eval(), POLICY)
    pieces = [bare(input_ids=t, past_key_values=cache).last_hidden_state for t in ids.split(1, 1)]
    logits = model.get_output_embeddings()(torch.cat(pieces, dim=1))
    assert error(logits, expected(model, POLICY, ids)) < TIGHT
