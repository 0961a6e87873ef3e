"""Snapshots of a machine with torch: what it is, its state, what disturbs it."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import cache

import torch
import transformers

from streamcache.gate.environment import PARENT, Environment, tracers
from streamcache.machine import cpu_model
from streamcache.version import VERSION

_THROTTLES = {  # bits of NVML's clock event reasons that slow a GPU: nvmlClocksEventReasons*
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
_QUERY = "power.limit,driver_version,clocks_event_reasons.active,temperature.gpu,clocks.sm"


class TorchEnvironmentProbe:
    """What `golden_environment` gives for models on a device: see `Environment`."""

    def __init__(self, device: torch.device):
        self.device = device

    def sample(self) -> Environment:
        on_gpu = self.device.type == "cuda"
        found = gpu(self.device) if on_gpu else {}
        readings: list[str] = []
        machine: dict[str, str | int] = {
            "device": f"cpu {platform.machine()}",
            "threads": torch.get_num_threads(),
        }
        problems = [*tracers(), *modes()]
        if on_gpu:
            properties = torch.cuda.get_device_properties(self.device)
            machine = {
                "device": properties.name,
                "memory_gib": round(properties.total_memory / 2**30),
                "power_limit_w": found.get("power.limit", ""),
            }
            reasons = found.get("clocks_event_reasons.active", "")
            problems += [*throttled(reasons), *foreign(self.device)]
            readings = [f"{found.get('clocks.sm')} MHz, {found.get('temperature.gpu')} C"]
        return Environment(
            machine=machine,
            host={"cpu": cpu_model()},
            context={
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
                "python": platform.python_version(),
                "streamcache": VERSION,
                **({"driver": found.get("driver_version", "")} if on_gpu else {}),
            },
            canaries=canaries(self.device),
            problems=problems,
            readings=readings,
        )


def modes() -> list[str]:
    """What of torch's own is left on in this process, and slows every operation down."""
    found = []
    if torch._C._len_torch_function_stack():
        found.append("a TorchFunctionMode is on")
    if torch._C._len_torch_dispatch_stack():
        found.append("a TorchDispatchMode is on")
    if torch.is_anomaly_enabled():
        found.append("autograd's anomaly detection is on")
    return found


def gpu(device: torch.device) -> dict[str, str]:
    """What nvidia-smi says of a device, by the name asked for; empty where there is none."""
    answer = _smi(f"--query-gpu={_QUERY}", _id(device))
    if not answer:
        return {}
    return dict(zip(_QUERY.split(","), (part.strip() for part in answer[0].split(","))))


def throttled(reasons: str) -> list[str]:
    """Why the GPU is slowed down, from the bits of its clock event reasons."""
    try:
        bits = int(reasons, 16)
    except ValueError:
        return []
    return [f"the GPU is throttled: {name}" for bit, name in _THROTTLES.items() if bits & bit]


def foreign(device: torch.device) -> list[str]:
    """Processes on the GPU besides this one and the one that waits for it.

    In a container the numbers may be those of the host, and ours is not among them: then all that
    is known is that there are more processes than ours.
    """
    pids = {int(p) for p in _smi("--query-compute-apps=pid", _id(device)) if p.isdigit()}
    ours = {os.getpid(), *([os.getppid()] if PARENT in os.environ else [])}
    if os.getpid() in pids:
        return [f"a foreign process computes on the GPU: {pid}" for pid in sorted(pids - ours)]
    if len(pids) > len(ours):
        return [f"{len(pids)} processes compute on the GPU, {len(ours)} of them ours"]
    return []


def _id(device: torch.device) -> str:
    """By the device's own number: CUDA may count devices otherwise than nvidia-smi."""
    return f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"


def _smi(*arguments: str) -> list[str]:
    command = ["nvidia-smi", *arguments, "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return ran.stdout.splitlines() if ran.returncode == 0 else []


def canaries(device: torch.device) -> dict[str, float]:
    """Seconds of fixed pieces of work, the shortest of some tries.

    Of the host: the rate at which small operations start, and a product. Of a GPU: a copy, which
    shows its memory, and a product.
    """
    small = torch.ones(8)
    square = torch.ones(256, 256)

    def many_small() -> None:
        for _ in range(500):
            small.add_(0)

    found = {
        "host operations": _shortest(many_small),
        "host product": _shortest(lambda: square @ square),
    }
    if device.type == "cuda":
        source, wide = _canary_tensors(device)
        target = torch.empty_like(source)
        wait, tries = torch.cuda.synchronize, 25  # a busy host sees a device late: 5 were too few
        found["device copy"] = _shortest(lambda: target.copy_(source), wait, tries)
        found["device product"] = _shortest(lambda: wide @ wide, wait, tries)
    return found


@cache
def _canary_tensors(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.randn(4096, 4096, device=device, dtype=torch.float16)
    return torch.randn(1 << 27, device=device), wide


def _shortest(
    work: Callable[[], object], wait: Callable[[], object] = lambda: None, tries: int = 5
) -> float:
    times = []
    for _ in range(tries):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


Surroundings = TorchEnvironmentProbe  # its former name
