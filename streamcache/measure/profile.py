"""Where the time of a decoding step goes: by operator, by kernel, in evictions and in the rest.

torch.profiler watches some tokens of a stream in the steady state. It slows the host down: shares
are to be read from it, and the time of a step is taken before, without it.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from streamcache.caches.bookkeeping import Bookkeeping
from streamcache.decoding.loop import SteadyDecode
from streamcache.decoding.nll import Advance
from streamcache.measure.checked import SCHEMA_VERSION
from streamcache.measure.measurement import Environment, Fields, WorkloadRecord
from streamcache.measure.timing import time_tokens
from streamcache.policy import evictions

_STEP, _EVICTION = "streamcache: step", "streamcache: eviction"
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
_WARM_UP = 8  # tokens


class Operator(msgspec.Struct, frozen=True):
    """What the host calls: an operator of torch, or a function of the CUDA runtime."""

    name: str
    calls: float  # per token
    host_ms: float  # per token, without the operators that it calls
    host_share: float  # of the profiled step
    device_ms: float  # per token, of the kernels it launches itself


class Kernel(msgspec.Struct, frozen=True):
    """What a GPU runs, copies and fills among it; within a CUDA graph, too."""

    name: str
    runs: float  # per token
    device_ms: float  # per token
    device_share: float  # of all kernels


class Part(msgspec.Struct, frozen=True):
    """A part of the step, with all that it calls."""

    host_ms: float  # per token, profiled
    host_share: float
    device_ms: float  # per token
    device_share: float


class EvictedEntries(msgspec.Struct, frozen=True):
    """In the profiled tokens."""

    evictions: int
    entries: int


class StepProfile(msgspec.Struct, frozen=True):
    """A step by operator and kernel. Per token of `n_tokens`, evictions included."""

    n_tokens: int
    evicted: EvictedEntries
    step_ms: float  # without the profiler
    profiled_ms: float  # the host's time with it
    python_ms: float  # of the host, outside of operators: Python
    operators_per_token: float  # calls of the host, without the runtime's
    launches_per_token: float  # of kernels and graphs; 0 on a CPU
    kernels_per_token: float
    device_ms: float  # sum over kernels
    device_busy: float  # device_ms over step_ms; above 1 where kernels overlap
    eviction: Part
    forward: Part  # all the rest
    operators: tuple[Operator, ...]  # the most expensive first
    kernels: tuple[Kernel, ...]


class Profile(msgspec.Struct, frozen=True, tag="streamcache-profile", tag_field="schema"):
    """Where the time of a configuration's step goes."""

    label: str
    configuration: Fields
    workload: WorkloadRecord
    environment: Environment
    step: StepProfile
    version: int = SCHEMA_VERSION


@contextmanager
def evictions_marked() -> Iterator[None]:
    """Have caches show their evictions to the profiler."""
    evict = Bookkeeping.evict

    def marked(self: Bookkeeping) -> None:
        with record_function(_EVICTION):
            evict(self)

    Bookkeeping.evict = marked  # type: ignore[method-assign]
    try:
        yield
    finally:
        Bookkeeping.evict = evict  # type: ignore[method-assign]


def profile_steps(
    stream: SteadyDecode, n_tokens: int, trace: Path | None = None, advance: Advance | None = None
) -> StepProfile:
    """Profile the next steps of a stream.

    Args:
        trace: write what the profiler saw, for chrome://tracing or ui.perfetto.dev; `.json` or
            `.json.gz`.
        advance: called with the number of tokens just finished, 2 n_tokens in all.
    """
    device, cache = stream.model.device, stream.cache
    time_tokens(stream, _WARM_UP, device)
    laps = time_tokens(stream, n_tokens, device)
    if advance:
        advance(n_tokens)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    seen, evicted = cache.seen, cache.evicted
    with evictions_marked(), profile(activities=activities) as watched:
        for _ in range(n_tokens):
            with record_function(_STEP):
                stream()
            if advance:
                advance(1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    if trace is not None:
        _write_trace(watched, trace)
    dropped = islice(evictions(cache.policy, cache.seen), seen, None)
    evicted_entries = EvictedEntries(sum(n > 0 for n in dropped), cache.evicted - evicted)
    return _summarize_events(watched.events(), n_tokens, laps.wall_ms / n_tokens, evicted_entries)


def _summarize_events(
    events: Any, n_tokens: int, step_ms: float, evicted: EvictedEntries
) -> StepProfile:
    """From torch's events; their times are in microseconds."""
    to_ms = 1e-3 / n_tokens
    on_host = [e for e in events if e.device_type == DeviceType.CPU]
    steps = [e for e in on_host if e.name == _STEP]
    evictions = [e for e in on_host if e.name == _EVICTION]
    called = [e for step in steps for e in _below(step)]
    ran = [
        e for e in events if e.device_type != DeviceType.CPU and e.name not in (_STEP, _EVICTION)
    ]  # a mark has a shadow on the device, which is no kernel
    host_ms = sum(e.cpu_time_total for e in steps) * to_ms
    device_ms = sum(e.time_range.elapsed_us() for e in ran) * to_ms

    def part(host: float, device: float) -> Part:
        return Part(host, host / host_ms, device, device / device_ms if device_ms else 0.0)

    evicting_host = sum(e.cpu_time_total for e in evictions) * to_ms
    evicting_device = sum(_device_us(e) for top in evictions for e in (top, *_below(top))) * to_ms

    operators: dict[str, list[Any]] = defaultdict(list)
    for event in called:
        operators[event.name].append(event)
    kernels: dict[str, list[Any]] = defaultdict(list)
    for event in ran:
        kernels[event.name].append(event)
    operator_rows = []
    for name, group in operators.items():
        own = sum(e.self_cpu_time_total for e in group) * to_ms
        device = sum(map(_device_us, group)) * to_ms
        operator_rows.append(Operator(name, len(group) / n_tokens, own, own / host_ms, device))
    kernel_rows = []
    for name, group in kernels.items():
        ms = sum(e.time_range.elapsed_us() for e in group) * to_ms
        kernel_rows.append(Kernel(name, len(group) / n_tokens, ms, ms / device_ms))
    return StepProfile(
        n_tokens=n_tokens,
        evicted=evicted,
        step_ms=step_ms,
        profiled_ms=host_ms,
        python_ms=host_ms - sum(row.host_ms for row in operator_rows),
        operators_per_token=sum(not _of_runtime(e) for e in called) / n_tokens,
        launches_per_token=sum(e.name.startswith(_LAUNCHES) for e in called) / n_tokens,
        kernels_per_token=len(ran) / n_tokens,
        device_ms=device_ms,
        device_busy=device_ms / step_ms,
        eviction=part(evicting_host, evicting_device),
        forward=part(host_ms - evicting_host, device_ms - evicting_device),
        operators=tuple(sorted(operator_rows, key=lambda row: -row.host_ms)),
        kernels=tuple(sorted(kernel_rows, key=lambda row: -row.device_ms)),
    )


def _below(event: Any) -> Iterator[Any]:
    """All that an event calls, marks aside."""
    for child in event.cpu_children:
        if child.name not in (_STEP, _EVICTION):
            yield child
        yield from _below(child)


def _device_us(event: Any) -> float:
    """Of the kernels that the event launched itself."""
    return sum(k.duration for k in event.kernels if k.name not in (_STEP, _EVICTION))


def _of_runtime(event: Any) -> bool:
    return event.name.startswith("cu")  # cudaLaunchKernel, cuLaunchKernel; operators are aten::


def _write_trace(watched: Any, path: Path) -> None:
    """All or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix determines the format
    try:
        watched.export_chrome_trace(str(unfinished))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
