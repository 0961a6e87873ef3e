"""What pytest is asked: the options of goldens, and what of them makes no sense."""

import os
from pathlib import Path

import pytest

from streamcache.gate import goldens as store
from streamcache.gate.plugin import outputs as files
from streamcache.gate.plugin.git import check_clean

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
        help="only measure, and write what was measured; holds nothing against goldens",
    )
    group.addoption("--golden-markdown", metavar="FILE", type=Path, help="write the report")
    parser.addini("golden_dir", "folder of the golden files", default="tests/golden")


def golden_path(config: pytest.Config) -> Path:
    return config.rootpath / config.getini("golden_dir") / f"{config.getoption('golden')}.json"


def updates(config: pytest.Config) -> bool:
    return any(map(config.getoption, ("golden_update", "golden_update_new_only", "golden_from")))


def check_usage(config: pytest.Config) -> None:
    name, samples = config.getoption("golden"), config.getoption("golden_samples")
    if name == "":
        raise Usage("--golden is empty: give --golden NAME")
    asks = config.getoption("golden_required") or updates(config)
    if asks and not name:
        raise Usage("which goldens? give --golden NAME")
    if asks and samples:
        raise Usage("--golden-samples only measures: it requires nothing and records nothing")
    if name or samples:
        _check_measures(config)
    if updates(config):
        _check_update(config)
    elif name or samples:
        files.check(config)


def _check_measures(config: pytest.Config) -> None:
    spread = config.getoption("numprocesses", None) or config.getoption("tx", None)
    if spread or config.getoption("dist", "no") != "no":
        raise Usage("--golden and -n do not go together: processes side by side disturb times")
    if config.getoption("benchmark_disable", False) or config.getoption("benchmark_skip", False):
        raise Usage("--golden with benchmarks disabled or skipped would measure nothing")


def _check_update(config: pytest.Config) -> None:
    if os.environ.get("CI"):
        raise Usage("goldens are not recorded under CI: run the update yourself and commit it")
    if not config.getoption("golden_reason"):
        raise Usage('goldens need a reason: give --golden-reason "..."')
    if found := config.getoption("golden_from"):
        here = config.invocation_params.dir
        outside = any(not path.resolve().is_relative_to(here) for path in found)
        if outside and config.inipath is None:  # pytest's root is what its arguments share
            raise Usage("files from elsewhere hide the project's settings: add -c INI-FILE")
    else:
        n = config.getoption("golden_processes")
        if n < store.MIN_PROCESSES:
            raise Usage(f"{n} processes are too few: at least {store.MIN_PROCESSES}")
    check_clean(config, golden_path(config).parent)
