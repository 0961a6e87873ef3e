"""A decoder whatever happens to it: interruptions, calls beside it, autocast, training."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.streaming import StreamingCache
from streamcache.decoding import captured
from streamcache.decoding.captured import CapturedDecoder
from streamcache.decoding.kernels.attention import attend
from streamcache.policy import EvictionPolicy
from tests.interrupt import Choice, Interrupted, Oom, RaiseAtLine, each_choice_of_lines
from tests.tiny import error, expected, llama, stream, text, tiny

POLICY = EvictionPolicy(2, 6, 2, 2, 3)  # capacity 10; positions are re-based at 40
TIGHT = 1e-4


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


def steps(decoder: CapturedDecoder, ids: Tensor) -> Tensor:
    return torch.stack([decoder.step(token).clone() for token in ids.unbind(dim=1)], dim=1)


class Place:
    """Where a decoder is in its stream, to take it back there."""

    def __init__(self, decoder: CapturedDecoder):
        self.decoder, cache = decoder, decoder.cache
        self.counts = {name: getattr(cache, name) for name in ("seen", "evicted", "base")}
        self.slots = [states.clone() for states in (*cache.keys, *cache.values)]

    def restore(self) -> None:
        self.decoder.reset()
        cache = self.decoder.cache
        for slots, before in zip((*cache.keys, *cache.values), self.slots):
            slots.copy_(before)
        vars(cache).update(self.counts)


#: Tokens before, what is interrupted, and its number of tokens.
Call = Callable[[CapturedDecoder, Tensor], Tensor]
CALLS: dict[str, tuple[int, Call, int]] = {
    "a first step": (0, steps, 1),
    "a step that evicts": (23, steps, 1),
    "a step before which positions are re-based": (40, steps, 1),
    "a first prompt": (0, CapturedDecoder.prefill, 5),
    "a long prompt": (24, CapturedDecoder.prefill, 15),
}


@pytest.mark.parametrize("case", CALLS)
@each_choice_of_lines
def test_an_exception_at_any_line_leaves_nothing_silently_wrong(
    model: PreTrainedModel,
    case: str,
    chosen: Choice,
    record_property: Callable[[str, object], None],
) -> None:
    n_before, call, n_tokens = CALLS[case]
    ids = text(n_before + n_tokens + 6)
    before, at_work, after = ids.split([n_before, n_tokens, 6], dim=1)
    decoder = CapturedDecoder(model, POLICY)
    if n_before:
        steps(decoder, before)
    place = Place(decoder)
    reference = expected(model, POLICY, ids)[:, -6:]
    n_continued = n_refused = 0
    lines = RaiseAtLine.lines_of(partial(call, decoder, at_work))
    for i, line in enumerate(chosen(lines)):
        place.restore()
        interruption = RaiseAtLine(line, Interrupted if i % 2 else Oom)
        if not interruption.run(partial(call, decoder, at_work)):
            break
        try:
            if decoder.cache.seen != n_before + n_tokens:
                call(decoder, at_work)
            logits = steps(decoder, after)
        except RuntimeError as refusal:
            assert "reset()" in str(refusal)
            n_refused += 1
            decoder.reset()
            logits = steps(decoder, ids)[:, -6:]
        else:
            n_continued += 1
        assert error(logits, reference) < TIGHT, f"silently wrong after line {line}"
    record_property("continued", n_continued)
    record_property("refused", n_refused)
    assert line > 20 and n_continued > 0


def test_a_step_that_failed_can_be_taken_again(model: PreTrainedModel) -> None:
    """A token id out of range, and a full device in the middle of a layer."""
    ids, decoder = text(60), CapturedDecoder(model, POLICY)
    rows: list[Tensor] = []
    for t, token in enumerate(ids.unbind(dim=1)):
        if t % 7 == 3:
            with pytest.raises(IndexError):
                decoder.step(torch.tensor([10_000]))
        rows.append(decoder.step(token).clone())
    assert error(torch.stack(rows, dim=1), expected(model, POLICY, ids)) < TIGHT


def test_the_cache_of_a_decoder_may_be_used_beside_it(model: PreTrainedModel) -> None:
    """The model is called with it between steps, and it is reset by itself."""
    ids, decoder = text(90), CapturedDecoder(model, POLICY)
    for _ in range(2):
        parts = [steps(decoder, ids[:, :30])]
        for begin in (30, 50, 70):
            chunk = ids[:, begin : begin + 4]
            with torch.inference_mode():
                parts.append(decoder.model(chunk, past_key_values=decoder.cache).logits)
            parts.append(steps(decoder, ids[:, begin + 4 : begin + 20]))
        assert error(torch.cat(parts, dim=1), expected(model, POLICY, ids)) < TIGHT
        decoder.cache.reset()


def test_a_decoder_whose_slots_were_taken_away_refuses_until_reset(model: PreTrainedModel) -> None:
    ids, decoder = text(40), CapturedDecoder(model, POLICY)
    steps(decoder, ids[:, :20])
    decoder.cache.reorder_cache(torch.tensor([0]))
    for call in (decoder.step, decoder.prefill):
        with pytest.raises(RuntimeError, match=r"reset\(\) the decoder"):
            call(ids[:, :1])
    decoder.reset()
    assert error(steps(decoder, ids), expected(model, POLICY, ids)) < TIGHT
    decoder.cache.reset()
    with torch.inference_mode():
        decoder.model(text(3, batch=2), past_key_values=decoder.cache)
    with pytest.raises(RuntimeError, match=r"reset\(\) the decoder"):
        decoder.step(ids[:, :1])
    decoder.reset()
    assert error(steps(decoder, ids), expected(model, POLICY, ids)) < TIGHT


@pytest.mark.parametrize("built_inside", [False, True])
def test_autocast_around_a_decoder_changes_nothing(
    model: PreTrainedModel, built_inside: bool
) -> None:
    ids, decoder = text(60), CapturedDecoder(model, POLICY)
    reference = expected(model, POLICY, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if built_inside:
            decoder = CapturedDecoder(model, POLICY)
        logits = torch.cat([decoder.prefill(ids[:, :20]), steps(decoder, ids[:, 20:])], dim=1)
    assert logits.dtype == torch.float32
    assert error(logits, reference) < TIGHT


def test_a_long_input_under_autocast() -> None:
    """In the arithmetic that autocast chooses, as far off as single tokens are."""
    model, policy, ids = llama(head_dim=32), EvictionPolicy(4, 16), text(120)
    reference = expected(model, policy, ids)
    caches = [StreamingCache(model, policy) for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = stream(model, caches[0], ids, [50, 1, 69])
        single = stream(model, caches[1], ids)
    assert (whole - reference).abs().mean() < 1.25 * (single - reference).abs().mean()


def test_mpt_decodes_past_its_trained_length() -> None:
    """Its ALiBi is of distances, which the capacity bounds."""
    model = tiny("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=32)
    ids, policy = text(100), EvictionPolicy(2, 12, 2)
    longer = tiny("mpt", d_model=32, n_heads=4, n_layers=2, max_seq_len=256)
    decoder = CapturedDecoder(model, policy)
    logits = torch.cat([decoder.prefill(ids[:, :50]), steps(decoder, ids[:, 50:])], dim=1)
    assert error(logits, expected(longer, policy, ids)) < TIGHT


def test_captured_steps_are_compared_with_the_model_before_they_are_used(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU at construction: a kernel that is wrong there has the decoder run eagerly."""
    decoder = CapturedDecoder(model, POLICY, batch=2)
    assert decoder._error_of_steps() < TIGHT
    assert CapturedDecoder(model, EvictionPolicy(1, 1))._error_of_steps() < TIGHT
    right = attend
    monkeypatch.setattr(captured, "attend", lambda *given: right(*given) * 0)
    assert decoder._error_of_steps() > captured._MAX_ERROR
    decoder._require_agreement()
    assert decoder.eager_because and "captured steps are off by" in decoder.eager_because
    decoder.reset()
    ids = text(20, batch=2)
    assert error(steps(decoder, ids), expected(model, POLICY, ids)) < TIGHT, "eagerly it is right"
    monkeypatch.setattr(captured, "attend", lambda *given: right(*given) * torch.nan)
    assert CapturedDecoder(model, POLICY)._error_of_steps() == float("inf")
