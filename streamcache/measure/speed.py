"""The time per token (TPOT) of a configuration, alternately with the recompute baseline."""

import math
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from streamcache.decoding.nll import Advance
from streamcache.decoding.recompute import recompute_step
from streamcache.measure.configurations import BASELINE, Configuration
from streamcache.measure.device_time import KernelTime, weight_copy
from streamcache.measure.measurement import Speed
from streamcache.measure.pairs import Pair, Stopwatch, alternate, speedup, speedup_error
from streamcache.measure.steps import steady_step
from streamcache.measure.timing import TokenTimings, time_tokens, whole_rounds
from streamcache.measure.workload import Workload

_SETTLE = 8  # untimed tokens before each block: the first find other data in the CPU's caches
_COPIES = 4  # of the weights' bytes, per block of a device pair
_MIN_DEVICE_PAIRS = 5  # device time scatters little


class _Block:
    """A block of steps; a call runs one and returns seconds per token, evictions included.

    On a GPU by the device's clock, on a CPU without the time waited for a core.
    """

    def __init__(
        self, step: Callable[[], object], n_tokens: int, device: torch.device, settle: int = 0
    ):
        self.step, self.n_tokens, self.device, self.settle = step, n_tokens, device, settle
        self.blocks: list[TokenTimings] = []
        self.wait_s = 0.0

    def __call__(self) -> float:
        for _ in range(self.settle):
            self.step()
        with Stopwatch() as watch:
            timings = time_tokens(self.step, self.n_tokens, self.device)
        self.blocks.append(timings)
        self.wait_s += watch.wait_s
        seconds = sum(timings.token_ms) / 1e3 if timings.on_device else watch.seconds
        return seconds / self.n_tokens


def measure_speed(
    configuration: Configuration,
    workload: Workload,
    n_tokens: int,
    n_pairs: int,
    baseline_forwards: int = 1,
    device_time: bool = False,
    advance: Advance | None = None,
) -> tuple[Speed, list[float]]:
    """Times of a configuration beside the recompute baseline, and of each token in ms.

    Blocks of the two alternate, so that a change of the machine's speed touches both. A block is
    whole rounds of R, so that it has its share of the evictions. A text shorter than a cache is
    repeated: the time of a token does not depend on which token it is. The recompute baseline
    itself is timed beside itself.

    Args:
        n_tokens: timed tokens, at least.
        n_pairs: blocks of each.
        baseline_forwards: forwards of the baseline per block.
        device_time: on a GPU, also pairs of the time that the device computed, beside a copy of
            the weights' size (decoding is bound by memory, recomputing by power), and the number
            of kernels per token.
        advance: called with 1 for each finished pair.
    """
    model = workload.timed_model.model
    device, policy = model.device, configuration.policy
    window = workload.window or BASELINE
    ids = workload.ids(workload.timed_model, max(policy.floor, window.floor))
    recompute = recompute_step(model, ids, window.n_sink, window.window_size)
    baseline = _Block(recompute, baseline_forwards, device)
    if configuration.recomputes:
        own = steady_step(configuration, model, ids)
        candidate = _Block(own, baseline_forwards, device)
    else:
        length = whole_rounds(policy, math.ceil(n_tokens / n_pairs))
        step = steady_step(configuration, model, ids)
        candidate = _Block(step, length, device, _SETTLE)
        candidate()
    candidate(), baseline()  # two blocks of whole rounds: then no length of the cache is new
    for block in (candidate, baseline):
        block.blocks.clear()
        block.wait_s = 0.0
    pairs: list[Pair] = []
    for turn in range(n_pairs):
        pairs.append(alternate(turn, candidate, baseline))
        if advance:
            advance(1)
    own_times, base_times = (TokenTimings.join(block.blocks) for block in (candidate, baseline))
    wall_s = (own_times.wall_ms + base_times.wall_ms) / 1e3
    n, cache = len(own_times.token_ms), getattr(candidate.step, "cache", None)
    device_pairs: list[Pair] = []
    kernels = None
    if device_time and device.type == "cuda":
        device_pairs, kernels = _device_pairs(configuration, candidate, model, n_pairs)
    speed = Speed(
        tpot_mean_ms=own_times.wall_ms / n,
        tpot_p50_ms=percentile(own_times.token_ms, 50),
        tpot_p99_ms=percentile(own_times.token_ms, 99),
        tpot_device_ms=sum(own_times.token_ms) / n if own_times.on_device else None,
        n_tokens=n,
        baseline_ms=base_times.wall_ms / len(base_times.token_ms),
        speedup=speedup(pairs),
        speedup_error=speedup_error(pairs),
        pairs=pairs,
        device_pairs=device_pairs,
        kernels_per_token=kernels,
        # Of less than half a second the share that was waited for is chance.
        wait_share=(candidate.wait_s + baseline.wait_s) / wall_s if wall_s > 0.5 else 0.0,
        seen=cache.seen if cache is not None else None,
        held=cache.size if cache is not None else None,
    )
    return speed, own_times.token_ms


def _device_pairs(
    configuration: Configuration, candidate: _Block, model: nn.Module, n_pairs: int
) -> tuple[list[Pair], float | None]:
    """Pairs of the time that the device computed, and the median number of kernels per token.

    The kernels of a captured step overlap and wait for nobody: its own clock is right.
    """
    captured = configuration.engine == "captured"
    kernels = KernelTime(candidate.step, whole_rounds(configuration.policy, 2))
    own: Callable[[], float] = kernels
    if captured:
        own = _Block(candidate.step, candidate.n_tokens, candidate.device, _SETTLE)
    copy = KernelTime(weight_copy(model), _COPIES)
    own(), copy()
    n = max(_MIN_DEVICE_PAIRS, n_pairs // 2)
    pairs = [alternate(turn, own, copy) for turn in range(n)]
    return pairs, None if captured else median(kernels.kernels_per_token)


def percentile(values: list[float], percent: float) -> float:
    """A percentile of some numbers, between two of them where need be."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(percent / 100))
