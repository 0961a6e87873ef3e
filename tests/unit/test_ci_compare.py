"""What .ci/compare makes of the commits that there are, and of the gate's exit status."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_golden_commits import commits
from tests.unit.test_golden_plugin import git

SCRIPT = Path(__file__).parents[2] / ".ci" / "compare"
PYTEST = """#!/bin/sh
echo "$*" >> calls
read status < statuses
sed -i 1d statuses
for argument; do
  case $argument in --golden-markdown=*) cat report > "${argument#*=}"; esac
done
exit $status
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the script, and a pytest that only ends as it is told to."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytest").write_text(PYTEST)
    (tmp_path / "bin" / "pytest").chmod(0o755)
    git(tmp_path, "init", "-q", "-b", "main")
    return tmp_path


def compare(
    clone: Path, *statuses: int, base: str = "", report: str = "golden: PASS"
) -> tuple[int, list[str], str]:
    """The exit status, what pytest was called with, and what was said."""
    (clone / "report").write_text(report)
    (clone / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    path = f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "STREAMCACHE_BASE": base}
    ran = subprocess.run([clone / ".ci/compare"], env=environment, capture_output=True, text=True)
    calls = clone / "calls"
    return ran.returncode, calls.read_text().splitlines() if calls.exists() else [], ran.stdout


@pytest.mark.parametrize(
    ("statuses", "ends", "says"),
    [
        ([0], 0, ""),
        ([1], 1, ""),
        ([4], 4, ""),
        ([76], 76, ""),
        ([75, 0], 0, ""),
        ([75, 1], 1, ""),
        ([75, 75], 0, "the times were not judged: this machine is disturbed\n"),
    ],
)
def test_red_fails_and_a_disturbed_machine_does_not(
    clone: Path, statuses: list[int], ends: int, says: str
) -> None:
    commits(clone, 2)
    status, calls, said = compare(clone, *statuses)
    assert (status, len(calls), said) == (ends, len(statuses), says)
    assert "-o addopts= --golden-against=merge-base --golden-required" in calls[0]


def test_a_run_that_ends_without_a_report_has_not_passed(clone: Path) -> None:
    """As where something in the tree ends the process by itself, with status 0."""
    commits(clone, 2)
    status, _, said = compare(clone, 0, report="")
    assert (status, said) == (1, "the comparison ended without a report\n")


def test_a_first_commit_has_nothing_to_compare_with(clone: Path) -> None:
    commits(clone, 1)
    assert compare(clone) == (
        0,
        [],
        "there is no commit to compare with: times are not judged\n",
    )


@pytest.mark.parametrize(("base", "used"), [("HEAD~2", "HEAD~2"), ("0" * 40, "merge-base")])
def test_a_push_is_compared_with_what_it_began_with(clone: Path, base: str, used: str) -> None:
    commits(clone, 3)
    assert f"--golden-against={used} " in compare(clone, 0, base=base)[1][0]
