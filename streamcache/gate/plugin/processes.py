"""Benchmarks measured in fresh processes: to record goldens, and to confirm a failure.

A fresh process is called as this one was, so that its root, settings and plugins are the same. What
it does otherwise it is told by an order in its environment, and follows when options are parsed.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamcache.gate import samples
from streamcache.gate.environment import PARENT, Environment
from streamcache.gate.samples import Process, SampleError

_ORDER = "STREAMCACHE_GOLDEN_ORDER"
_GATES = (
    *("golden", "golden_required", "golden_markdown", "golden_json"),
    *("golden_update", "golden_update_new_only", "golden_from", "golden_reset_anchors"),
)
_WRITES = (
    *("basetemp", "xmlpath", "log_file"),
    *("benchmark_json", "benchmark_save", "benchmark_autosave", "benchmark_histogram"),
    *("benchmark_compare", "benchmark_compare_fail", "benchmark_cprofile"),
)


def follow_order(config: pytest.Config) -> None:
    """In a fresh process: only measure, and write samples only."""
    order = os.environ.pop(_ORDER, None)  # not for what tests may start
    if order is None:
        return
    path, test = json.loads(order)
    vars(config.option).update(dict.fromkeys(_GATES + _WRITES), golden_samples=Path(path))
    if test:
        config.args[:] = [test]


def measured(config: pytest.Config) -> Iterator[Process]:
    """The same tests in fresh processes, one after the other."""
    n = config.getoption("golden_processes")
    for i in range(n):
        print(f"golden: process {i + 1} of {n}", flush=True)
        process, said = _fresh(config)
        for line in said.splitlines():
            if line.startswith("golden: "):
                print(line, flush=True)
        yield process


def measured_again(config: pytest.Config, name: str) -> Process:
    """One benchmark once more, in a fresh process; what kept it from that is its problem."""
    file, _, test = name.partition("::")
    try:
        # This process, which may hold the device, does nothing meanwhile.
        return _fresh(config, f"{config.rootpath / file}::{test}", {PARENT: "1"})[0]
    except SampleError as error:
        lines = str(error).splitlines()
        problem = " ... ".join(dict.fromkeys(lines[:1] + lines[-1:]))
        return Process(Environment(problems=[problem]), [])


def _fresh(
    config: pytest.Config, test: str = "", environment: dict[str, str] | None = None
) -> tuple[Process, str]:
    """What a fresh process measures, of all tests or of one, and what it says.

    Raises:
        SampleError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.json"
        variables = {**os.environ, **(environment or {}), _ORDER: json.dumps([str(path), test])}
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *config.invocation_params.args],
            cwd=config.invocation_params.dir,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if ran.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            tail = (ran.stdout + ran.stderr).strip()[-2000:]
            raise SampleError(f"a process failed with status {ran.returncode}:\n{tail}")
        return samples.read(path), ran.stdout
