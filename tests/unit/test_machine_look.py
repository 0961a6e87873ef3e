"""A look at the machine, with a made-up nvidia-smi."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from streamcache.gate import torch_environment as machine
from streamcache.gate.environment import PARENT, differences
from streamcache.gate.torch_environment import TorchEnvironmentProbe
from streamcache.machine import cpu_model

UUID = "11111111-2222-3333-4444-555555555555"
IDLE = "0x0000000000000001"
CUDA = torch.device("cuda", 0)


class Smi:
    """A stub on PATH that answers from files and writes down what it was asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        stub = folder / "nvidia-smi"
        stub.write_text(
            f'#!/bin/sh\necho "$@" >> {folder}/asked\n'
            f'case "$1" in *compute-apps*) cat {folder}/apps ;; *) cat {folder}/gpu ;; esac\n'
            f"exit $(cat {folder}/status)\n"
        )
        stub.chmod(0o755)
        self.says()

    def says(
        self, power: str = "700.00", reasons: str = IDLE, apps: str = "", status: int = 0
    ) -> None:
        (self.folder / "gpu").write_text(f"{power}, 575.57.08, {reasons}, 31, 1980\n")
        (self.folder / "apps").write_text(apps)
        (self.folder / "status").write_text(str(status))

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Smi(tmp_path)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA, as far as a look at the machine needs it."""
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=140 * 2**30, uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(machine, "canaries", lambda device: {"device copy": 1e-3})


def test_a_gpu_is_its_name_memory_and_power_limit(smi: Smi, a_gpu: None) -> None:
    look = TorchEnvironmentProbe(CUDA).sample()
    assert look.machine == {"device": "NVIDIA H200", "memory_gib": 140, "power_limit_w": "700.00"}
    assert look.context["driver"] == "575.57.08"
    assert look.problems == [] and look.canaries == {"device copy": 1e-3}


def test_only_the_gpu_in_use_is_asked_after(smi: Smi, a_gpu: None) -> None:
    """Not the first of those that nvidia-smi counts: CUDA may see only some."""
    TorchEnvironmentProbe(CUDA).sample()
    assert len(smi.asked) == 2
    assert all(f"--id=GPU-{UUID}" in line for line in smi.asked)


def test_another_power_limit_is_another_machine(smi: Smi, a_gpu: None) -> None:
    before = TorchEnvironmentProbe(CUDA).sample().machine
    smi.says(power="500.00")
    after = TorchEnvironmentProbe(CUDA).sample().machine
    assert differences(after, before) == "power_limit_w is '500.00', not '700.00'"


@pytest.mark.parametrize(
    ("reasons", "names"),
    [
        ("0x0000000000000000", []),
        (IDLE, []),
        ("0x0000000000000004", []),  # the power cap: busy, not throttled
        ("0x0000000000000008", ["hardware slowdown"]),
        ("0x0000000000000020", ["software thermal slowdown"]),
        ("0x0000000000000048", ["hardware slowdown", "hardware thermal slowdown"]),
        ("0x0000000000000080", ["hardware power brake"]),
        ("[N/A]", []),
        ("", []),
    ],
)
def test_a_throttled_gpu_is_a_problem(
    reasons: str, names: list[str], smi: Smi, a_gpu: None
) -> None:
    smi.says(reasons=reasons)
    problems = TorchEnvironmentProbe(CUDA).sample().problems
    assert problems == [f"the GPU is throttled: {name}" for name in names]


def test_a_foreign_process_is_a_problem(
    smi: Smi, a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    smi.says(apps=f"{os.getpid()}\n")
    assert TorchEnvironmentProbe(CUDA).sample().problems == []
    smi.says(apps=f"{os.getpid()}\n999999999\n[N/A]\n")
    says = ["a foreign process computes on the GPU: 999999999"]
    assert TorchEnvironmentProbe(CUDA).sample().problems == says


def test_a_process_that_waits_for_this_one_is_none(
    smi: Smi, a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi.says(apps=f"{os.getpid()}\n{os.getppid()}\n")
    monkeypatch.delenv(PARENT, raising=False)
    assert len(TorchEnvironmentProbe(CUDA).sample().problems) == 1
    monkeypatch.setenv(PARENT, "1")
    assert TorchEnvironmentProbe(CUDA).sample().problems == []


def test_in_a_container_another_process_on_the_gpu_is_seen_by_the_count(
    smi: Smi, a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container: this process is not in the list under the number it knows."""
    monkeypatch.delenv(PARENT, raising=False)
    smi.says(apps="999999998\n")
    assert TorchEnvironmentProbe(CUDA).sample().problems == []
    smi.says(apps="999999998\n999999999\n")
    says = ["2 processes compute on the GPU, 1 of them ours"]
    assert TorchEnvironmentProbe(CUDA).sample().problems == says
    monkeypatch.setenv(PARENT, "1")
    assert TorchEnvironmentProbe(CUDA).sample().problems == []


def test_clocks_and_temperature_are_read_at_each_look(smi: Smi, a_gpu: None) -> None:
    assert TorchEnvironmentProbe(CUDA).sample().readings == ["1980 MHz, 31 C"]


def test_without_nvidia_smi_there_is_no_power_limit(
    a_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    look = TorchEnvironmentProbe(CUDA).sample()
    assert look.machine["power_limit_w"] == "" and look.problems == []


def test_an_nvidia_smi_that_fails_says_nothing(smi: Smi, a_gpu: None) -> None:
    smi.says(apps="123\n", status=9)
    look = TorchEnvironmentProbe(CUDA).sample()
    assert look.machine["power_limit_w"] == "" and look.problems == []


def test_a_cpu_is_its_kind_and_threads_and_its_model_the_host() -> None:
    look = TorchEnvironmentProbe(torch.device("cpu")).sample()
    assert set(look.machine) == {"device", "threads"}
    assert look.machine["threads"] == torch.get_num_threads()
    assert look.host == {"cpu": cpu_model()} and cpu_model()
    assert look.context["torch"] == torch.__version__ and "driver" not in look.context


def test_canaries_of_the_host_take_time() -> None:
    look = TorchEnvironmentProbe(torch.device("cpu")).sample()
    assert set(look.canaries) == {"host operations", "host product"}
    assert all(0 < s < math.inf for s in look.canaries.values())
