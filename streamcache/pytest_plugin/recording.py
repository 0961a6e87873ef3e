"""Goldens are recorded instead of running tests: other processes measure, this one writes."""

import sys
from datetime import datetime, timezone

import pytest

from streamcache.golden import samples, store
from streamcache.golden.samples import Process, SampleError
from streamcache.golden.store import GoldenError, Provenance
from streamcache.pytest_plugin.options import Usage, check_usage, git, golden_path, updates
from streamcache.pytest_plugin.processes import measured

_INVALID = 75


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Recording runs no tests here: fresh processes measure, this one writes."""
    if config.option.help or not updates(config):
        return None
    try:
        check_usage(config)
        found = config.getoption("golden_from")
        processes = []
        for process in map(samples.read, found) if found else measured(config):
            if problem := _problem(process):
                print(f"golden: not recorded, the environment is invalid: {problem}")
                return _INVALID
            processes.append(process)
        return _record(config, processes)
    except (Usage, GoldenError, SampleError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return int(pytest.ExitCode.USAGE_ERROR)


def _record(config: pytest.Config, processes: list[Process]) -> int:
    """Write the golden, or say why not; an exit status."""
    path = golden_path(config)
    old = store.read(path) if path.exists() else None
    provenance = Provenance(
        reason=config.getoption("golden_reason"),
        date=today(),
        commit=git(config, "rev-parse", "HEAD"),
        processes=len(processes),
        context=processes[0].environment.context,
    )
    new_only = config.getoption("golden_update_new_only")
    golden, changes = store.updated(old, processes, provenance, new_only)
    if noise := store.noisy(golden):
        print(f"golden: not recorded, {noise}")
        return _INVALID
    if changes:
        store.write(path, golden)
    print("\n".join(changes or ["nothing moved by more than a third of its threshold"]))
    print(f"golden: {path}, {len(changes)} of {len(golden.entries)} entries written")
    return 0


def today() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _problem(process: Process) -> str:
    """Why no golden is made of it; empty if nothing is known against it."""
    disturbed = (f"{s.name}: {s.disturbed}" for s in process.samples if s.disturbed)
    return next(iter([*process.environment.problems, *disturbed]), "")
