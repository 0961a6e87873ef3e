"""`generate` by captured steps: what transformers' own loop gives with the same policy."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed
from transformers.generation.streamers import BaseStreamer

from streamcache import CapturedGeneration, EagerWarning, EvictionPolicy, StreamingCache
from tests.tiny import llama, text

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


@pytest.fixture
def captured(model: PreTrainedModel) -> CapturedGeneration:
    return CapturedGeneration(model, POLICY)


def generate(model: Any, ids: Tensor, n_new: int = 40, **how: Any) -> Any:
    set_seed(0)
    how = {"attention_mask": torch.ones_like(ids), **how}
    return model.generate(ids, max_new_tokens=n_new, pad_token_id=0, **how)


SAMPLING = [
    {"do_sample": False},
    {"do_sample": True, "top_p": 0.9, "temperature": 1.3},
    {"do_sample": True, "top_k": 7, "repetition_penalty": 1.2, "min_new_tokens": 5},
    {"do_sample": False, "eos_token_id": [3, 11, 29]},
]


@pytest.mark.parametrize("how", SAMPLING)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_gives_what_the_eager_loop_gives(
    model: PreTrainedModel, captured: CapturedGeneration, batch: int, how: dict[str, Any]
) -> None:
    ids = text(30, batch=batch)
    cache = StreamingCache(model, POLICY)
    expected = generate(model, ids, past_key_values=cache, **how)
    assert cache.evicted > 0 or "eos_token_id" in how
    assert torch.equal(generate(model, ids, custom_generate=captured, **how), expected)
    assert captured.eager_because is None


def test_a_second_call_begins_a_new_stream(
    model: PreTrainedModel, captured: CapturedGeneration
) -> None:
    ids = text(30)
    first = generate(model, ids, custom_generate=captured, do_sample=False)
    assert torch.equal(generate(model, ids, custom_generate=captured, do_sample=False), first)


def test_several_calls_go_on_with_one_stream(
    model: PreTrainedModel, captured: CapturedGeneration
) -> None:
    cache: Any = StreamingCache(model, POLICY)
    how = {"do_sample": False, "return_dict_in_generate": True}
    ids = text(20)
    own: Any = None
    for turn in range(3):
        expected = generate(model, ids, 15, past_key_values=cache, **how)
        given: dict[str, Any] = {} if own is None else {"past_key_values": own}
        output = generate(model, ids, 15, custom_generate=captured, **given, **how)
        assert captured.eager_because is None
        assert torch.equal(output.sequences, expected.sequences), turn
        own = output.past_key_values
        ids = torch.cat([output.sequences, text(5, seed=turn)], dim=1)


def test_the_output_has_scores_and_logits(
    model: PreTrainedModel, captured: CapturedGeneration
) -> None:
    how = {
        "do_sample": True,
        "top_k": 9,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    ids = text(30, batch=2)
    expected = generate(model, ids, past_key_values=StreamingCache(model, POLICY), **how)
    output = generate(model, ids, custom_generate=captured, **how)
    for name in ("scores", "logits"):
        assert len(output[name]) == len(expected[name]) == 40
        for step, other in zip(output[name], expected[name]):
            assert torch.allclose(step, other, atol=1e-4)


class Heard(BaseStreamer):
    """What a streamer is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.view(-1).tolist()

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("how", [{}, {"eos_token_id": [3, 11, 29]}])
def test_a_streamer_hears_every_token_once(
    model: PreTrainedModel, captured: CapturedGeneration, how: dict[str, Any]
) -> None:
    heard = Heard()
    out = generate(
        model, text(30), custom_generate=captured, token_streamer=heard, do_sample=False, **how
    )
    assert heard.tokens == out[0].tolist() and heard.ended


@pytest.mark.parametrize(
    "how, reason",
    [
        ({"num_beams": 2}, "its mode is beam_search"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "hidden states"),
    ],
)
def test_what_it_does_not_do_runs_eagerly_and_says_why(
    model: PreTrainedModel, captured: CapturedGeneration, how: dict[str, Any], reason: str
) -> None:
    ids, how = text(20), {"do_sample": False, **how}
    try:
        expected = generate(model, ids, past_key_values=StreamingCache(model, POLICY), **how)
    except ValueError as refused:  # as it is without captured steps
        with pytest.warns(EagerWarning, match=reason), pytest.raises(type(refused)):
            generate(model, ids, custom_generate=captured, **how)
    else:
        with pytest.warns(EagerWarning, match=reason):
            out = generate(model, ids, custom_generate=captured, **how)
        expected, out = (x if isinstance(x, Tensor) else x.sequences for x in (expected, out))
        assert torch.equal(out, expected)
    assert captured.eager_because is not None and reason in captured.eager_because


def test_a_cache_of_the_user_is_used_eagerly(
    model: PreTrainedModel, captured: CapturedGeneration
) -> None:
    cache = StreamingCache(model, POLICY)
    with pytest.warns(EagerWarning, match="given another cache"):
        generate(model, text(20), custom_generate=captured, past_key_values=cache, do_sample=False)
    assert cache.seen == 59


def test_another_model_is_not_decoded_by_it(captured: CapturedGeneration) -> None:
    other = llama(hidden_size=16)
    with pytest.warns(EagerWarning, match="another model"):
        out = generate(other, text(20), custom_generate=captured, do_sample=False)
    expected = generate(
        other, text(20), past_key_values=StreamingCache(other, POLICY), do_sample=False
    )
    assert torch.equal(out, expected)
