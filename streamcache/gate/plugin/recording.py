"""Goldens are recorded instead of running tests: other processes measure, this one writes."""

import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest

from streamcache.gate import samples, storage
from streamcache.gate.goldens import Golden, GoldenError, Provenance
from streamcache.gate.plugin import against
from streamcache.gate.plugin.git import git
from streamcache.gate.plugin.options import Usage, golden_path, updates
from streamcache.gate.plugin.processes import follow_order, measured
from streamcache.gate.plugin.usage import check_usage
from streamcache.gate.samples import Process, SampleError
from streamcache.gate.updates import updated
from streamcache.gate.validation import noise_errors

_INVALID = 75


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Recording and comparing run no tests here: fresh processes measure, this one writes."""
    follow_order(config)
    asks = config.getoption("golden_against") or updates(config)
    if config.option.help or not asks:
        return None
    try:
        check_usage(config)
        if config.getoption("golden_against"):
            return against.run(config)
        _old(config)
        return _record(config)
    except KeyboardInterrupt:
        print("golden: interrupted, nothing was written", file=sys.stderr)
        return int(pytest.ExitCode.INTERRUPTED)
    except (Usage, GoldenError, SampleError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return int(pytest.ExitCode.USAGE_ERROR)


def _old(config: pytest.Config) -> Golden | None:
    """The golden to be rewritten. Before minutes of measuring, see that it can be."""
    path = golden_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        return storage.read(path) if path.exists() else None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two updates write one after the other, where the system has locks of folders."""
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _record(config: pytest.Config) -> int:
    """Measure and write the golden, or say why not; an exit status."""
    found = config.getoption("golden_from")
    processes: list[Process] = []
    for process in map(samples.read, found) if found else measured(config):
        if not process.samples:
            print("golden: not recorded, nothing was measured")
            return int(pytest.ExitCode.NO_TESTS_COLLECTED)
        if problem := _problem(process):
            print(f"golden: not recorded, the environment is invalid: {problem}")
            return _INVALID
        if any((p.date, p.samples) == (process.date, process.samples) for p in processes):
            raise Usage(
                "--golden-from has one process twice: each file must come from a different process"
            )
        processes.append(process)
    with _alone(golden_path(config)):  # read again: another update may have written meanwhile
        return _write(config, _old(config), processes)


def _write(config: pytest.Config, old: Golden | None, processes: list[Process]) -> int:
    path = golden_path(config)
    provenance = Provenance(
        reason=config.getoption("golden_reason"),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=git(config, "rev-parse", "HEAD") or "",
        processes=len(processes),
        context=processes[0].environment.context,
    )
    new_only = config.getoption("golden_update_new_only")
    reset = config.getoption("golden_reset_anchors")
    golden, changes = updated(old, processes, provenance, new_only, reset)
    noisy = noise_errors(golden)
    if noisy:  # the others are recorded: to repeat all until each is quiet would favour low noise
        quiet = [process_without(process, noisy) for process in processes]
        golden, changes = updated(old, quiet, provenance, new_only, reset)
    if changes:
        storage.write(path, golden)
    print("\n".join(changes or ["nothing moved by more than a third of its threshold"]))
    print(f"golden: {path}, {len(changes)} of {len(golden.entries)} entries written")
    for line in noisy.values():
        print(f"golden: not recorded, {line}")
    return _INVALID if noisy else 0


def process_without(process: Process, names: Collection[str]) -> Process:
    """The process without its samples of some benchmarks."""
    samples = [sample for sample in process.samples if sample.name not in names]
    return msgspec.structs.replace(process, samples=samples)


def _problem(process: Process) -> str:
    """Why no golden is made of it; empty if nothing is known against it."""
    disturbed = (f"{s.name}: {s.disturbed}" for s in process.samples if s.disturbed)
    return next(iter([*process.environment.problems, *disturbed]), "")
