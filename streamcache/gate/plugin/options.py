"""The options of the gate."""

from pathlib import Path

import pytest

from streamcache.gate.validation import MIN_PROCESSES

ROUNDS = 4
MERGE_BASE = "merge-base"

Usage = pytest.UsageError


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("golden", "golden baselines")
    group.addoption("--golden", metavar="NAME", help="gate against <golden_dir>/NAME.json")
    group.addoption(
        "--golden-against",
        metavar="REV",
        help="compare this tree with a commit, both measured alternately on this machine; "
        f"{MERGE_BASE}: with where this branch began, or on the main branch the commit before",
    )
    group.addoption(
        "--golden-rounds", metavar="N", type=int, default=ROUNDS, help="of --golden-against"
    )
    group.addoption(
        "--golden-build", metavar="COMMAND", help="builds each tree of --golden-against"
    )
    group.addoption(
        "--golden-required", action="store_true", help="what has a golden must be measured"
    )
    group.addoption(
        "--golden-judged",
        action="store_true",
        help="times that are not judged, since the golden is of another host, are invalid",
    )
    group.addoption(
        "--golden-warn-only", action="store_true", help="what is red is a warning: exit status 0"
    )
    group.addoption(
        "--golden-noise-from",
        metavar="FILE",
        type=Path,
        help="of --golden-history: the noise of a benchmark is at least what its runs show",
    )
    group.addoption("--golden-update", action="store_true", help="measure again and record")
    group.addoption(
        "--golden-update-new-only", action="store_true", help="record only what has no golden"
    )
    group.addoption(
        "--golden-reset-anchors",
        action="store_true",
        help="an update may reset anchors: after a change of identity or host, or to accept a loss",
    )
    group.addoption(
        "--golden-from", metavar="JSON", nargs="+", type=Path, help="record from these results"
    )
    group.addoption("--golden-reason", metavar="TEXT", help="why goldens are recorded")
    group.addoption(
        "--golden-processes", metavar="N", type=int, default=MIN_PROCESSES, help="to record"
    )
    group.addoption(
        "--golden-samples",
        metavar="JSON",
        type=Path,
        help="only measure, and write what was measured; compares with no golden",
    )
    group.addoption(
        "--golden-history",
        metavar="FILE",
        type=Path,
        help="append a line a benchmark to a file, for `python -m streamcache.gate history`",
    )
    group.addoption("--golden-markdown", metavar="FILE", type=Path, help="write the report")
    group.addoption(
        "--golden-json", metavar="FILE", type=Path, help="write samples and verdicts, for programs"
    )
    parser.addini("golden_dir", "folder of the golden files", default="tests/golden")


def golden_path(config: pytest.Config) -> Path:
    return config.rootpath / config.getini("golden_dir") / f"{config.getoption('golden')}.json"


def updates(config: pytest.Config) -> bool:
    return any(map(config.getoption, ("golden_update", "golden_update_new_only", "golden_from")))
