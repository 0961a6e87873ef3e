"""What pytest is asked: the options of goldens, and what of them makes no sense."""

import os
import subprocess
from pathlib import Path

import pytest

from streamcache.golden import store

Usage = pytest.UsageError


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("golden", "golden baselines")
    group.addoption("--golden", metavar="NAME", help="gate against <golden_dir>/NAME.json")
    group.addoption(
        "--golden-required", action="store_true", help="what has a golden must be measured"
    )
    group.addoption("--golden-update", action="store_true", help="measure anew and record")
    group.addoption(
        "--golden-update-new-only", action="store_true", help="record only what has no golden"
    )
    group.addoption(
        "--golden-from", metavar="JSON", nargs="+", type=Path, help="record from these results"
    )
    group.addoption("--golden-reason", metavar="TEXT", help="why goldens are recorded")
    group.addoption(
        "--golden-processes", metavar="N", type=int, default=store.MIN_PROCESSES, help="to record"
    )
    group.addoption(
        "--golden-samples",
        metavar="JSON",
        type=Path,
        help="only measure, and write what was measured, whatever else is asked for",
    )
    group.addoption("--golden-markdown", metavar="FILE", type=Path, help="write the report")
    parser.addini("golden_dir", "folder of the golden files", default="tests/golden")


def golden_path(config: pytest.Config) -> Path:
    return config.rootpath / config.getini("golden_dir") / f"{config.getoption('golden')}.json"


def updates(config: pytest.Config) -> bool:
    names = ("golden_update", "golden_update_new_only", "golden_from")
    return not config.getoption("golden_samples") and any(map(config.getoption, names))


def check_usage(config: pytest.Config) -> None:
    _check_measures(config)
    if config.getoption("golden_samples"):
        return
    if not config.getoption("golden"):
        if config.getoption("golden_required") or updates(config):
            raise Usage("which goldens? give --golden NAME")
        return
    if not updates(config):
        return
    if os.environ.get("CI"):
        raise Usage("goldens are not recorded under CI: run the update yourself and commit it")
    if not config.getoption("golden_reason"):
        raise Usage('goldens need a reason: give --golden-reason "..."')
    if found := config.getoption("golden_from"):
        if len({path.resolve() for path in found}) < len(found):
            raise Usage("--golden-from has a file twice: each must be of a process of its own")
        here = config.invocation_params.dir
        outside = any(not path.resolve().is_relative_to(here) for path in found)
        if outside and config.inipath is None:  # pytest's root is what its arguments share
            raise Usage("files from elsewhere hide the project's settings: add -c INI-FILE")
    else:
        n = config.getoption("golden_processes")
        if n < store.MIN_PROCESSES:
            raise Usage(f"{n} processes are too few: at least {store.MIN_PROCESSES}")
    if _dirty(config):
        raise Usage("goldens are recorded from a clean tree only: commit or stash your changes")


def _check_measures(config: pytest.Config) -> None:
    if not (config.getoption("golden") or config.getoption("golden_samples")):
        return
    if config.getoption("numprocesses", None) or config.getoption("tx", None):
        raise Usage("--golden and -n do not go together: processes side by side disturb times")
    if config.getoption("benchmark_disable", False) or config.getoption("benchmark_skip", False):
        raise Usage("--golden with benchmarks disabled or skipped would measure nothing")


def _dirty(config: pytest.Config) -> bool:
    """Whether the repository has changes, but for the goldens; without a repository nothing has."""
    top = git(config, "rev-parse", "--show-toplevel")
    if not top:
        return False
    folder = golden_path(config).parent.resolve()
    changed = git(config, "status", "--porcelain", "-z", "--untracked-files=all", "--", ":/")
    paths = [Path(top, line[3:]).resolve() for line in changed.split("\0") if line]
    return any(folder not in path.parents for path in paths)


def git(config: pytest.Config, *arguments: str) -> str:
    """What git says in the root folder; nothing where there is no git or no repository."""
    command = ["git", *arguments]
    try:
        ran = subprocess.run(command, cwd=config.rootpath, capture_output=True, text=True)
    except OSError:
        return ""
    return ran.stdout.rstrip("\n") if ran.returncode == 0 else ""
