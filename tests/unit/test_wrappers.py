"""Models inside of something else: what is fed to them is looked at all the same."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from streamcache import CapturedDecoder, CapturedGeneration, recompute_nll, streaming_nll
from streamcache.caches.padding import PaddingError
from streamcache.caches.probe import UnsupportedModelError
from streamcache.caches.shared_copy import fingerprint
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
    """Positions are re-based, an input longer than the window is split, padding is refused."""
    model, ids = llama(), text(120)
    reference = expected(model, POLICY, ids)
    wrapped = WRAPPERS[name](model)
    cache = StreamingCache(wrapped, POLICY)
    mask = torch.ones(1, 9, dtype=torch.long)
    mask[0, 8] = 0
    with pytest.raises(PaddingError, match="pad on the left only"):
        wrapped(input_ids=ids[:, :9], attention_mask=mask, past_key_values=cache)
    logits = [wrapped(input_ids=ids[:, :28], past_key_values=cache).logits]
    logits += [wrapped(input_ids=t, past_key_values=cache).logits for t in ids[:, 28:].split(1, 1)]
    assert cache.seen == 120 and cache.base > 0
    assert error(torch.cat(logits, dim=1), reference) < TIGHT


@pytest.mark.parametrize("name", WRAPPERS)
@torch.no_grad()
def test_a_wrapped_model_is_measured_and_decoded_like_the_model(name: str) -> None:
    model, ids = llama(), text(60)
    reference = expected(model, POLICY, ids)
    wrapped = WRAPPERS[name](model)
    nll = torch.nn.functional.cross_entropy(reference[0, :-1], ids[0, 1:], reduction="none")
    assert (streaming_nll(wrapped, ids[0], POLICY) - nll).abs().max() < 5e-4
    decoder = CapturedDecoder(wrapped, POLICY)
    logits = torch.stack([decoder.step(token).clone() for token in ids.unbind(dim=1)], dim=1)
    assert error(logits, reference) < TIGHT
    sizes = 4, 16, [3, 40]
    assert torch.equal(recompute_nll(wrapped, ids[0], *sizes), recompute_nll(model, ids[0], *sizes))
    captured = CapturedGeneration(wrapped, POLICY)
    captured.model.generate(  # type: ignore[operator]
        ids, custom_generate=captured, max_new_tokens=3, do_sample=False
    )
    assert captured.eager_because is None


def test_another_adapter_is_another_model() -> None:
    """PEFT switches them in place: what was made for the first must not serve the second."""
    library = pytest.importorskip("peft")
    lora = library.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model, ids = library.get_peft_model(llama(), lora), text(60)[0]
    model.add_adapter("other", lora)
    first = streaming_nll(model, ids, POLICY)
    model.set_adapter("other")
    second = streaming_nll(model, ids, POLICY)
    assert not torch.equal(first, second)
    model.set_adapter("default")
    assert torch.equal(first, streaming_nll(model, ids, POLICY))


def test_a_list_of_a_module_is_a_part_of_what_a_copy_took_over() -> None:
    model = llama()
    module: Any = model.get_decoder().layers[0]
    module.active = ["first"]
    before = fingerprint(model)
    assert fingerprint(model) == before
    module.active[0] = "second"
    assert fingerprint(model) != before


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_learned_tokens_before_every_input_are_refused(kind: str) -> None:
    """They would be fed again at every step."""
    library = pytest.importorskip("peft")
    learned = getattr(library, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = library.get_peft_model(llama(), learned)
    for use in (StreamingCache, CapturedDecoder):
        with pytest.raises(UnsupportedModelError, match="prompt learning"):
            use(model, POLICY)


class PromptLearning(nn.Module):
    """What the package sees of such a model."""

    class active_peft_config:
        is_prompt_learning = True

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.base_model = model


def test_prompt_learning_is_refused_without_peft() -> None:
    with pytest.raises(UnsupportedModelError, match="prompt learning"):
        StreamingCache(PromptLearning(llama()), POLICY)


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
