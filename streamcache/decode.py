"""Decoding a stream token by token: its exact NLL, and the time a token takes (TPOT)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.bounded import BoundedCache
from streamcache.capture import CapturedDecoder

Advance = Callable[[int], None]  # told how many tokens were just finished

_FILL = 512  # tokens a forward while the cache fills up


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood [n] (float32) of targets [n] under logits [n, vocabulary]."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


class NotFiniteError(ValueError):
    """A model predicts something that is no number; the message says where."""


def finite(nll: Tensor) -> Tensor:
    """The NLLs [n] as they are.

    Raises:
        NotFiniteError: one of them is NaN or infinite.
    """
    if not bool((good := nll.isfinite()).all()):
        first = int((~good).nonzero()[0])
        raise NotFiniteError(
            f"the NLL of prediction {first} of {len(nll)} is {float(nll[first])}: the model is "
            "broken or its dtype too narrow"
        )
    return nll


@torch.inference_mode()
def fill(
    model: PreTrainedModel, input_ids: Tensor, cache: BoundedCache, advance: Advance | None = None
) -> Tensor:
    """Feed the first tokens of a stream [T] until the cache holds S + W; their NLL.

    Nothing is evicted meanwhile, so feeding many tokens at once is exact. Stops one token before
    the end of the stream, whose last token is only ever a target.
    """
    if len(input_ids) < 2:
        raise ValueError(f"a stream of {len(input_ids)} tokens predicts nothing: 2 are needed")
    length = min(cache.policy.floor, input_ids.shape[0] - 1)
    rows = []
    for start in range(0, length, step := min(_FILL, cache.policy.window_size)):
        stop = min(start + step, length)
        logits = model(input_ids=input_ids[None, start:stop], past_key_values=cache).logits[0]
        rows.append(token_nll(logits, input_ids[start + 1 : stop + 1]))
        if advance:
            advance(stop - start)
    return torch.cat(rows)


@torch.inference_mode()
def sequential_nll(
    model: PreTrainedModel, input_ids: Tensor, cache: BoundedCache, advance: Advance | None = None
) -> Tensor:
    """NLL of a teacher-forced stream, decoded token by token: float32 [T - 1].

    Entry t is the NLL of token t + 1, predicted from what the cache holds after token t.

    Args:
        input_ids: the stream [T], T >= 2, on the model's device.
        cache: empty; used up.
        advance: called with the number of tokens just finished.

    Raises:
        ValueError: fewer than two tokens.
    """

    def step(token: Tensor) -> Tensor:
        return model(input_ids=token[None], past_key_values=cache).logits[0]

    return _nll_by(step, fill(model, input_ids, cache, advance), input_ids, advance)


@torch.inference_mode()
def captured_nll(
    decoder: CapturedDecoder, input_ids: Tensor, advance: Advance | None = None
) -> Tensor:
    """`sequential_nll` by a decoder, which starts a new stream."""
    decoder.reset()
    head = fill(decoder.model, input_ids, decoder.cache, advance)
    return _nll_by(decoder.step, head, input_ids, advance)


def _nll_by(
    step: Callable[[Tensor], Tensor], head: Tensor, input_ids: Tensor, advance: Advance | None
) -> Tensor:
    """NLL [T - 1]: of the head, and of the rest by a step from a token [1] to logits [1, V]."""
    rows = torch.empty(input_ids.shape[0] - 1, device=input_ids.device)
    rows[: head.shape[0]] = head
    for t in range(head.shape[0], input_ids.shape[0] - 1):
        logits = step(input_ids[t : t + 1])
        rows[t] = token_nll(logits, input_ids[t + 1 : t + 2])[0]
        if advance:
            advance(1)
    return rows


@dataclass(frozen=True)
class Laps:
    """Times of consecutive tokens.

    Attributes:
        token_ms: per token, on the device's clock (CUDA events) where there is one.
        wall_ms: host clock over the whole region, device-synchronised at its ends.
        on_device: whether token_ms are CUDA events; on the CPU they are the host's clock.
    """

    token_ms: list[float]
    wall_ms: float
    on_device: bool

    @staticmethod
    def join(blocks: "list[Laps]") -> "Laps":
        token_ms = [ms for block in blocks for ms in block.token_ms]
        return Laps(token_ms, sum(block.wall_ms for block in blocks), blocks[0].on_device)


def time_tokens(step: Callable[[], object], n_tokens: int, device: torch.device) -> Laps:
    """Call `step`, which decodes one token, `n_tokens` times and time each call.

    No synchronisation inside the region: on CUDA an event is recorded after every step, and the
    time from event to event is what the device needed or waited for.
    """
    on_device = device.type == "cuda"
    if on_device:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(n_tokens + 1)]
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize(device)
        wall_ms = (time.perf_counter() - start) * 1e3
        return Laps([a.elapsed_time(b) for a, b in pairwise(events)], wall_ms, True)
    ticks = [time.perf_counter()]
    for _ in range(n_tokens):
        step()
        ticks.append(time.perf_counter())
    token_ms = [(b - a) * 1e3 for a, b in pairwise(ticks)]
    return Laps(token_ms, (ticks[-1] - ticks[0]) * 1e3, False)


class Stream:
    """A batch-1 teacher-forced decode in the steady state; each call decodes one token.

    The text [T] is gone through again when it ends: what a token costs does not depend on which
    token it is.
    """

    def __init__(self, model: PreTrainedModel, input_ids: Tensor, cache: BoundedCache):
        self.model, self.input_ids, self.cache = model, input_ids, cache
        fill(model, input_ids, cache)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        t = self.cache.seen % (self.input_ids.shape[0] - 1)
        return self._decode(self.input_ids[t : t + 1])

    def _decode(self, token: Tensor) -> Tensor:
        return self.model(input_ids=token[None], past_key_values=self.cache).logits


class CapturedStream(Stream):
    """The same by a decoder, which starts a new stream."""

    def __init__(self, decoder: CapturedDecoder, input_ids: Tensor):
        decoder.reset()
        self.decoder = decoder
        super().__init__(decoder.model, input_ids, decoder.cache)

    def _decode(self, token: Tensor) -> Tensor:
        return self.decoder.step(token)
