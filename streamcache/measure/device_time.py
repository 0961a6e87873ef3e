"""The time that a GPU computes, without what it waits for its host."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile


class KernelTime:
    """A block of steps; a call runs one and returns seconds per token that the GPU computed.

    The time of its kernels, one after the other, without the waits for the host in between.
    """

    def __init__(self, step: Callable[[], object], n_tokens: int):
        self.step, self.n_tokens = step, n_tokens
        self.kernels_per_token: list[float] = []

    def __call__(self) -> float:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            for _ in range(self.n_tokens):
                self.step()
            torch.cuda.synchronize()
        # As recorded: torch takes seconds to make its own events of tens of thousands.
        events: Any = watched.profiler.kineto_results.events()
        ran = [e.duration_ns() for e in events if e.device_type() == DeviceType.CUDA]
        self.kernels_per_token.append(len(ran) / self.n_tokens)
        return sum(ran) / 1e9 / self.n_tokens


def weight_copy(model: nn.Module) -> Callable[[], object]:
    """A function that moves as many bytes as the weights have: half are read, half written."""
    half = sum(weight.nbytes for weight in model.parameters()) // 2
    source = torch.zeros(half, dtype=torch.uint8, device=next(model.parameters()).device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
