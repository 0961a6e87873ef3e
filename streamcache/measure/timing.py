"""Times of consecutive tokens, by the clock of the device."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from streamcache.policy import Policy


@dataclass(frozen=True)
class TokenTimings:
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
    def join(blocks: "list[TokenTimings]") -> "TokenTimings":
        token_ms = [ms for block in blocks for ms in block.token_ms]
        wall_ms = sum(block.wall_ms for block in blocks)
        return TokenTimings(token_ms, wall_ms, blocks[0].on_device)


def time_tokens(step: Callable[[], object], n_tokens: int, device: torch.device) -> TokenTimings:
    """Call `step`, which decodes one token, `n_tokens` times and time each call.

    No synchronisation inside the region: on CUDA an event is recorded after every step, and the
    time from event to event is what the device needed or waited for.
    """
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(n_tokens + 1)]
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        events[0].record()
        for event in events[1:]:
            step()
            event.record()
        torch.cuda.synchronize(device)
        wall_ms = (time.perf_counter() - start) * 1e3
        return TokenTimings([a.elapsed_time(b) for a, b in pairwise(events)], wall_ms, True)
    ticks = [time.perf_counter()]
    for _ in range(n_tokens):
        step()
        ticks.append(time.perf_counter())
    token_ms = [(b - a) * 1e3 for a, b in pairwise(ticks)]
    return TokenTimings(token_ms, (ticks[-1] - ticks[0]) * 1e3, False)


def whole_rounds(policy: Policy, n_tokens: int) -> int:
    """At least `n_tokens`, in whole rounds of R: wherever a round starts, it has all evictions."""
    every = getattr(policy, "compress_every", 1)
    return math.ceil(n_tokens / every) * every
