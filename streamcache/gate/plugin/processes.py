"""Benchmarks measured in fresh processes: to record, to confirm a failure, to compare trees.

A fresh process is called as this one was, so that its root, settings and plugins are the same. What
it does otherwise it reads from its environment when options are parsed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from streamcache.gate import samples
from streamcache.gate.environment import PARENT, Environment
from streamcache.gate.samples import Process, SampleError
from streamcache.machine import idle_cores

_ORDER = "STREAMCACHE_GOLDEN_ORDER"
_POLL_S = 0.05
_ENOUGH_IDLE = 1.5  # cores
# Seconds that pytest-benchmark repeats a function for, and what is enough in several processes.
_USUAL_MAX_TIME, _FEW_MAX_TIME = "1.0", "0.25"
_GATES = (
    *(
        "golden",
        "golden_required",
        "golden_judged",
        "golden_markdown",
        "golden_json",
        *("golden_against", "golden_history", "golden_warn_only", "golden_noise_from"),
    ),
    *("golden_update", "golden_update_new_only", "golden_from", "golden_reset_anchors"),
)
_WRITES = (
    *("basetemp", "xmlpath", "log_file"),
    *("benchmark_json", "benchmark_save", "benchmark_autosave", "benchmark_histogram"),
    *("benchmark_compare", "benchmark_compare_fail", "benchmark_cprofile"),
)


class Order(msgspec.Struct, frozen=True):
    """What a fresh process does.

    Attributes:
        tests: node ids; all that it is called with where there are none.
        plain: benchmarks without the fixture `golden` are measured, too.
        few_pairs: of what takes many pairs to be sure alone, since there are other processes.
        may_fail: failing tests are part of the result.
        timed: only tests with the fixture `benchmark`, or only those without; None: all.
        explain: say where the time goes.
        other: the tree that must not be measured in place of this one; empty where there is none.
        turn: measure as soon as there is this file; until then only import and collect.
        samples: the file to write.
    """

    tests: list[str] = []
    plain: bool = False
    few_pairs: bool = False
    may_fail: bool = False
    timed: bool | None = None
    explain: bool = False
    other: str = ""
    turn: str = ""
    samples: str = ""


def strays_of(order: Order) -> list[str]:
    """Files of the other tree that this process has imported."""
    if not order.other:
        return []
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    inside = (Path(file) for file in files if file.startswith(order.other + os.sep))
    return sorted(str(file) for file in inside if "site-packages" not in file.parts)


def wait_for_turn(order: Order) -> None:
    """Come back when it is this process's turn, or nobody waits for it any more."""
    parent = os.getppid()
    while order.turn and not Path(order.turn).exists():
        if os.getppid() != parent:
            pytest.exit("the process that waited for this one has ended")
        time.sleep(_POLL_S)


def in_turns(
    config: pytest.Config, orders: Sequence[tuple[Order, Path]], here: Path
) -> Iterator[Process]:
    """What fresh processes measure, one after the other, each in its tree.

    Where a second core is idle, one starts while the one before it measures: half the time goes
    into imports.
    """
    at_once = 2 if idle_cores() > _ENOUGH_IDLE else 1
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
        turns = [Path(folder, str(i)) for i in range(len(orders) + 1)]
        turns[0].touch()

        def one(i: int) -> Process:
            order, tree = orders[i]
            order = msgspec.structs.replace(order, turn=str(turns[i]))
            try:
                return fresh(config, order, here, tree)[0]
            finally:
                turns[i + 1].touch()

        yield from pool.map(one, range(len(orders)))


def follow_order(config: pytest.Config) -> None:
    """In a fresh process: only measure, and write samples only."""
    text = os.environ.pop(_ORDER, None)  # not for what tests may start
    if text is None:
        return
    order = msgspec.json.decode(text, type=Order)
    vars(config.option).update(dict.fromkeys(_GATES + _WRITES))
    vars(config.option).update(golden_samples=Path(order.samples), golden_order=order)
    if order.few_pairs and str(config.getoption("benchmark_max_time", "")) == _USUAL_MAX_TIME:
        config.option.benchmark_max_time = _FEW_MAX_TIME
    if order.tests:
        named = (test.partition("::") for test in order.tests)
        files = [(str(config.rootpath / file), mark, test) for file, mark, test in named]
        config.args[:] = ["".join(parts) for parts in files if Path(parts[0]).exists()]


def measured(config: pytest.Config) -> Iterator[Process]:
    """The same tests in fresh processes, one after the other."""
    n = config.getoption("golden_processes")
    for i in range(n):
        print(f"golden: process {i + 1} of {n}", flush=True)
        process, said = fresh(config, Order())
        for line in said.splitlines():
            if line.startswith("golden: "):
                print(line, flush=True)
        yield process


def measured_again(config: pytest.Config, tests: list[str]) -> Process:
    """Benchmarks once more, in a fresh process; what kept them from that is its problem."""
    try:
        # This process, which may hold the device, does nothing meanwhile.
        return fresh(config, Order(tests=tests), waits=True)[0]
    except SampleError as error:
        lines = str(error).splitlines()
        problem = " ... ".join(dict.fromkeys(lines[:1] + lines[-1:]))
        return Process(Environment(problems=[problem]), [])


def fresh(
    config: pytest.Config,
    order: Order,
    here: Path | None = None,
    tree: Path | None = None,
    waits: bool = False,
) -> tuple[Process, str]:
    """What a fresh process measures, and what it says.

    Args:
        here, tree: the tree of this process, and the one to measure in its place.
        waits: whether this process may hold a device meanwhile.

    Raises:
        SampleError: it failed.
    """
    arguments, cwd = list(config.invocation_params.args), config.invocation_params.dir
    # As of this process: with other tests, or a report elsewhere, pytest may find others.
    where = ["--rootdir", str(config.rootpath)]
    where += ["-c", str(config.inipath)] if config.inipath else []
    arguments = [*where, *arguments]
    environment = {**os.environ, **({PARENT: "1"} if waits else {})}
    if here and tree:
        arguments = [_moved(argument, here, tree) for argument in map(str, arguments)]
        cwd = Path(_moved(str(cwd.resolve()), here, tree))
        first = [str(p) for p in (tree / "src", tree) if p.is_dir()]
        paths = [*first, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        resolved = [str(Path(p).resolve()) for p in paths if p]
        moved = [_moved(p, here, tree) for p in resolved]
        # What only this tree has, such as packages of an environment inside it, is for both.
        found = [m if Path(m).exists() else p for m, p in zip(moved, resolved)]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(found))
        if tree != here:
            order = msgspec.structs.replace(order, other=str(here))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.json"
        placed = msgspec.structs.replace(order, samples=str(path))
        environment[_ORDER] = msgspec.json.encode(placed).decode()
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *arguments],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        fine = [pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED]
        if order.may_fail and path.exists():
            fine.append(pytest.ExitCode.TESTS_FAILED)
        if ran.returncode not in fine or not path.exists():
            tail = (ran.stdout + ran.stderr).strip()[-2000:]
            place = f" in {tree}" if tree else ""
            raise SampleError(f"a process failed{place} with status {ran.returncode}:\n{tail}")
        process = samples.read(path)
    if process.strays:
        raise SampleError(
            f"not the commit was measured, but {process.strays[0]} of this tree: where a project "
            "is installed from its folder, its packages must be in the root or in src"
        )
    return process, ran.stdout


def _moved(text: str, here: Path, tree: Path) -> str:
    """A path in one tree as the same in another; anything else as it is."""
    inside = text == str(here) or text.startswith(str(here) + os.sep)
    return str(tree) + text.removeprefix(str(here)) if inside else text
