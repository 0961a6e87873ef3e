"""The options of the gate. Imports nothing that the gate's extra brings."""

from pathlib import Path

import pytest

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
        "--golden-reset-anchors",
        action="store_true",
        help="an update may start anchors anew: of another identity or host, or of a loss accepted",
    )
    group.addoption(
        "--golden-from", metavar="JSON", nargs="+", type=Path, help="record from these results"
    )
    group.addoption("--golden-reason", metavar="TEXT", help="why goldens are recorded")
    group.addoption("--golden-processes", metavar="N", type=int, help="to record (default: 5)")
    group.addoption(
        "--golden-samples",
        metavar="JSON",
        type=Path,
        help="only measure, and write what was measured; compares with no golden",
    )
    group.addoption("--golden-markdown", metavar="FILE", type=Path, help="write the report")
    parser.addini("golden_dir", "folder of the golden files", default="tests/golden")


def given(config: pytest.Config) -> str:
    """The first option of the gate that was given; empty where none was."""
    options = vars(config.option).items()
    names = (name for name, value in options if value not in (None, False))
    found = (name for name in names if name == "golden" or name.startswith("golden_"))
    return next((f"--{name.replace('_', '-')}" for name in found), "")


def golden_path(config: pytest.Config) -> Path:
    return config.rootpath / config.getini("golden_dir") / f"{config.getoption('golden')}.json"


def updates(config: pytest.Config) -> bool:
    return any(map(config.getoption, ("golden_update", "golden_update_new_only", "golden_from")))
