"""Benchmarks measured in fresh processes: to record goldens, and to confirm a failure."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamcache.golden import samples
from streamcache.golden.record import PARENT
from streamcache.golden.samples import Environment, Process, SampleError

_WRITES = ("--benchmark-json", "--junitxml", "--junit-xml", "--golden-markdown")


def measured(config: pytest.Config) -> Iterator[Process]:
    """The same tests in fresh processes, one after the other."""
    n = config.getoption("golden_processes")
    for i in range(n):
        print(f"golden: process {i + 1} of {n}", flush=True)
        yield _fresh(config, list(config.invocation_params.args))


def measured_again(config: pytest.Config, name: str) -> Process:
    """One benchmark once more, in a fresh process; what kept it from that is its problem."""
    chosen = {str(argument) for argument in config.args}
    options, left = [], iter(config.invocation_params.args)
    for argument in left:
        option, equals, _ = argument.partition("=")
        if option in _WRITES:
            if not equals:
                next(left, None)
        elif argument not in chosen:
            options.append(argument)
    test = config.rootpath / name.partition("::")[0]
    try:
        # This process, which may hold the device, does nothing meanwhile.
        return _fresh(config, [*options, f"{test}::{name.partition('::')[2]}"], {PARENT: "1"})
    except SampleError as error:
        lines = str(error).splitlines()
        problem = " ... ".join(dict.fromkeys(lines[:1] + lines[-1:]))
        return Process(Environment(problems=[problem]), [])


def _fresh(
    config: pytest.Config, arguments: list[str], environment: dict[str, str] | None = None
) -> Process:
    """What a fresh process measures.

    Raises:
        SampleError: it failed, or measured nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.json"
        command = [sys.executable, "-m", "pytest", "-q", *arguments, f"--golden-samples={path}"]
        where, variables = config.invocation_params.dir, {**os.environ, **(environment or {})}
        ran = subprocess.run(command, cwd=where, env=variables, capture_output=True, text=True)
        if ran.returncode != 0:
            tail = (ran.stdout + ran.stderr).strip()[-2000:]
            raise SampleError(f"a process failed with status {ran.returncode}:\n{tail}")
        return samples.read(path)
