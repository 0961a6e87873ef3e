"""Decoding a stream token by token: its exact NLL, and a decode in the steady state."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.decoding.nll import Advance, Score, token_nll

_PREFILL = 512  # tokens a forward while the cache fills up


@torch.inference_mode()
def prefill(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: BoundedCache,
    advance: Advance | None = None,
    batch: int = 1,
    score: Score = token_nll,
) -> Tensor:
    """Feed the first tokens of a stream [T] until the cache holds S + W; their NLL, or other score.

    With a batch, that many streams are fed the same tokens.

    Nothing is evicted meanwhile, so feeding many tokens at once is exact. Stops one token before
    the end of the stream, whose last token is only ever a target.
    """
    if len(input_ids) < 2:
        raise ValueError(f"a stream of {len(input_ids)} tokens predicts nothing: 2 are needed")
    length = min(cache.policy.floor, input_ids.shape[0] - 1)
    rows = []
    for start in range(0, length, _PREFILL):
        stop = min(start + _PREFILL, length)
        logits = model(
            input_ids=input_ids[start:stop].expand(batch, -1), past_key_values=cache
        ).logits[0]
        rows.append(score(logits, input_ids[start + 1 : stop + 1]))
        if advance:
            advance(stop - start)
    return torch.cat(rows)


@torch.inference_mode()
def sequential_nll(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: BoundedCache,
    advance: Advance | None = None,
    score: Score = token_nll,
) -> Tensor:
    """NLL of a teacher-forced stream, decoded token by token: float32 [T - 1].

    Entry t is the NLL of token t + 1, predicted from what the cache holds after token t.

    Args:
        input_ids: the stream [T], T >= 2, on the model's device.
        cache: empty; used up.
        advance: called with the number of tokens just finished.
        score: what is taken of each token in place of its NLL.

    Raises:
        ValueError: fewer than two tokens.
    """

    def step(token: Tensor) -> Tensor:
        return model(input_ids=token[None], past_key_values=cache).logits[0]

    head = prefill(model, input_ids, cache, advance, score=score)
    return _nll_by(step, head, input_ids, advance, score)


@torch.inference_mode()
def captured_nll(
    decoder: CapturedDecoder,
    input_ids: Tensor,
    advance: Advance | None = None,
    score: Score = token_nll,
) -> Tensor:
    """`sequential_nll` by a decoder, which starts a new stream."""
    decoder.reset()
    head = prefill(decoder.model, input_ids, decoder.cache, advance, score=score)
    return _nll_by(decoder.step, head, input_ids, advance, score)


def _nll_by(
    step: Callable[[Tensor], Tensor],
    head: Tensor,
    input_ids: Tensor,
    advance: Advance | None,
    score: Score,
) -> Tensor:
    """Scores of T - 1 tokens: of the head, and of the rest by a step from token [1] to logits."""
    rows = head.new_empty(len(input_ids) - 1, *head.shape[1:])
    rows[: head.shape[0]] = head
    for t in range(head.shape[0], input_ids.shape[0] - 1):
        logits = step(input_ids[t : t + 1])
        rows[t] = score(logits, input_ids[t + 1 : t + 2])[0]
        if advance:
            advance(1)
    return rows


@torch.inference_mode()
def nll_between_evictions(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: BoundedCache,
    advance: Advance | None = None,
    score: Score = token_nll,
) -> Tensor:
    """`sequential_nll`, from eviction to eviction in one forward: in between a cache only grows."""
    head = prefill(model, input_ids, cache, advance, score=score)
    rows = [head]
    begin, last = len(head), len(input_ids) - 1
    pieces = input_ids[begin:last].split(cache.pieces(last - begin)) if begin < last else ()
    for piece in pieces:
        logits = model(input_ids=piece[None], past_key_values=cache).logits[0]
        rows.append(score(logits, input_ids[cache.seen - len(piece) + 1 : cache.seen + 1]))
        if advance:
            advance(len(piece))
    return torch.cat(rows)


class SteadyDecode:
    """A teacher-forced decode in the steady state; each call decodes one token of each stream.

    When the text [T] ends, decoding starts again at its beginning: the cost of a token does not
    depend on which token it is.
    """

    def __init__(
        self, model: PreTrainedModel, input_ids: Tensor, cache: BoundedCache, batch: int = 1
    ):
        self.model, self.input_ids, self.cache, self.batch = model, input_ids, cache, batch
        prefill(model, input_ids, cache, batch=batch)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        t = self.cache.seen % (self.input_ids.shape[0] - 1)
        return self._decode(self.input_ids[t : t + 1].expand(self.batch))

    def _decode(self, token: Tensor) -> Tensor:
        return self.model(input_ids=token[:, None], past_key_values=self.cache).logits


class CapturedSteadyDecode(SteadyDecode):
    """The same by a decoder, which starts a new stream."""

    def __init__(self, decoder: CapturedDecoder, input_ids: Tensor):
        decoder.reset()
        self.decoder = decoder
        super().__init__(decoder.model, input_ids, decoder.cache, decoder.batch)

    def _decode(self, token: Tensor) -> Tensor:
        return self.decoder.step(token)
