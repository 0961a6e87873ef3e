"""Profiles: what is counted, to which part it goes, and that marks leave no trace behind."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from streamcache.caches.base import BoundedCache
from streamcache.caches.kinds import MODES
from streamcache.decoding.loop import SteadyDecode
from streamcache.measure.configurations import Configuration
from streamcache.measure.profile import (
    _EVICTION,
    _STEP,
    EvictedEntries,
    Profile,
    _summarize_events,
    evictions_marked,
    profile_steps,
)
from streamcache.measure.steps import steady_step
from streamcache.policy import EvictionPolicy
from tests.shell import Run
from tests.tiny import neox, text


def profiled(mode: str, policy: EvictionPolicy, n_tokens: int = 16) -> Any:
    stream = steady_step(Configuration(policy, *MODES[mode]), neox(), text(40)[0])
    assert isinstance(stream, SteadyDecode)
    return profile_steps(stream, n_tokens)


@pytest.mark.parametrize("mode", ["mit", "ours", "fast"])
def test_operators_and_the_two_parts_of_a_step(mode: str) -> None:
    taken = profiled(mode, EvictionPolicy(4, 20, compress_every=4))
    calls = {row.name: row.calls for row in taken.operators}
    assert calls["aten::addmm"] == 2 * 4, "two layers of four products each"
    assert taken.evicted == EvictedEntries(4, 16) and taken.n_tokens == 16
    assert 0 < taken.eviction.host_ms < taken.forward.host_ms
    assert taken.eviction.host_share + taken.forward.host_share == pytest.approx(1)
    own = sum(row.host_ms for row in taken.operators)
    assert own + taken.python_ms == pytest.approx(taken.profiled_ms) and taken.python_ms > 0
    assert taken.operators_per_token == pytest.approx(sum(calls.values()))
    assert not taken.kernels and taken.launches_per_token == taken.device_ms == 0


def test_evictions_show_in_the_count_of_operators() -> None:
    often, seldom = (profiled("fast", EvictionPolicy(4, 20, compress_every=r)) for r in (1, 16))
    assert often.operators_per_token > seldom.operators_per_token
    assert often.evicted.entries == seldom.evicted.entries == 16


def test_a_captured_step_has_no_eviction() -> None:
    taken = profiled("captured", EvictionPolicy(4, 20))
    assert taken.eviction.host_ms == 0 and taken.evicted == EvictedEntries(16, 16)


def test_marks_are_taken_off_whatever_happens() -> None:
    before = BoundedCache.evict
    with pytest.raises(KeyboardInterrupt), evictions_marked():
        assert BoundedCache.evict is not before
        raise KeyboardInterrupt
    assert BoundedCache.evict is before


def host(name: str, us: float, *children: Any, kernels: tuple[tuple[str, float], ...] = ()) -> Any:
    return SimpleNamespace(
        name=name,
        device_type=DeviceType.CPU,
        cpu_children=children,
        cpu_time_total=us,
        self_cpu_time_total=us - sum(child.cpu_time_total for child in children),
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
    )


def on_device(name: str, us: float) -> Any:
    span = SimpleNamespace(elapsed_us=lambda: us)
    return SimpleNamespace(name=name, device_type=DeviceType.CUDA, time_range=span)


def test_device_time_goes_to_the_part_that_launched_it() -> None:
    """Two tokens as torch reports them from a GPU: the marks have shadows on the device, which are
    no kernels, and hang on the marks as if launched; a graph's kernels hang on nothing."""
    turn = host("aten::mul", 20, host("cudaLaunchKernel", 5), kernels=(("turn", 40),))
    eviction = host(_EVICTION, 60, turn, kernels=((_EVICTION, 70), ("written by hand", 10)))
    product = host("aten::mm", 50, host("cudaLaunchKernelExC", 5), kernels=(("gemm", 300),))
    first = host(_STEP, 200, eviction, product, kernels=((_STEP, 999),))
    second = host(_STEP, 100, host("cudaGraphLaunch", 80))
    events = [
        *(first, eviction, turn, *turn.cpu_children, product, *product.cpu_children),
        *(second, *second.cpu_children, host("cudaDeviceSynchronize", 500)),
        *(on_device("turn", 40), on_device("written by hand", 10), on_device("gemm", 300)),
        *(on_device("gemm", 200), on_device("Memcpy DtoD", 50)),
        *(on_device(_EVICTION, 70), on_device(_STEP, 999)),
    ]
    taken = _summarize_events(events, 2, 0.5, EvictedEntries(1, 1))
    assert taken.profiled_ms == pytest.approx(0.150)
    assert taken.device_ms == pytest.approx(0.300) and taken.device_busy == pytest.approx(0.6)
    assert taken.eviction.host_ms == pytest.approx(0.030)
    assert taken.eviction.device_ms == pytest.approx(0.025)
    assert taken.forward.device_ms == pytest.approx(0.275)
    assert taken.eviction.device_share == pytest.approx(25 / 300)
    assert (taken.operators_per_token, taken.launches_per_token) == (1, 1.5)
    assert taken.kernels_per_token == 2.5
    kernels = {row.name: (row.runs, row.device_ms) for row in taken.kernels}
    assert list(kernels) == ["gemm", "Memcpy DtoD", "turn", "written by hand"]
    assert kernels["gemm"] == pytest.approx((1, 0.250))
    operators = {row.name: row for row in taken.operators}
    assert operators["aten::mm"].device_ms == pytest.approx(0.150)
    assert operators["aten::mm"].host_ms == pytest.approx(0.0225)
    assert operators["cudaGraphLaunch"].host_share == pytest.approx(80 / 300)


def test_the_command_writes_a_record_and_a_trace(run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "traces" / "step.json.gz"
    ran = run(
        *("profile", "--max-eval-tokens", "200", "--window-size", "60", "--tokens", "8"),
        *("--streaming-mode", "ours", "--compress-every", "4", "--trace", str(trace)),
    )
    assert ran.status == 0, ran.err
    assert "eviction" in ran.out and "aten::addmm" in ran.out and "2 evictions of 8" in ran.out
    path = tmp_path / "runs" / "profile" / "reference-float32-rerotating-S4-W60-R4.json"
    made = msgspec.json.decode(path.read_bytes(), type=Profile)
    assert made.configuration["cache"] == "rerotating"
    assert made.configuration["compress_every"] == 4
    assert made.step.step_ms > 0 and made.step.eviction.host_ms > 0
    seen = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == _STEP for event in seen) == 8
    assert list(trace.parent.iterdir()) == [trace]


def test_bad_input_gets_one_line(run: Run) -> None:
    ran = run("profile", "--tokens", "0")
    assert ran.status == 2 and ran.err.count("\n") == 1 and "tokens" in ran.err
