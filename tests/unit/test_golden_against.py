"""`--golden-against`: a commit and the tree that is there, as their users meet it."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_golden_plugin import PLUGINS, git, shell

GATED = """
from pathlib import Path
import conftest

FACTOR = float(Path(__file__).with_name("factor").read_text())

def test_gated(benchmark, golden):
    golden.identity(n=3)
    golden.equal(n=conftest.N)
    golden.metric("figure", 1.0, rel_tol=1e-6)
    golden.time(benchmark, lambda: 0.01 * FACTOR, lambda: 0.02)
"""
PLAIN = """
import time
from pathlib import Path

FACTOR = float(Path(__file__).with_name("factor").read_text())

def work():
    end = time.thread_time() + 0.002 * FACTOR
    while time.thread_time() < end:
        pass

def test_plain(benchmark):
    benchmark.pedantic(work, rounds=20)
"""


def repository(where: Path, test: str) -> Path:
    (where / "test_it.py").write_text(test)
    (where / "conftest.py").write_text("N = 3\n")
    (where / "factor").write_text("1.0")
    (where / "pytest.ini").write_text(f"[pytest]\n{PLUGINS}")
    (where / ".gitignore").write_text("__pycache__\n.pytest_cache\n.benchmarks\n*.out\n")
    git(where, "init", "-q")
    git(where, "add", ".")
    git(where, "commit", "-qm", "base")
    return where


def against(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return shell(where, "--golden-against=HEAD", "--golden-rounds=3", *arguments)


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    return repository(tmp_path, GATED)


def test_an_unchanged_tree_passes_and_leaves_nothing_behind(gated: Path) -> None:
    (gated / "requirements.txt").write_text("numpy\n")
    git(gated, "add", "requirements.txt")
    ran = against(gated)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "golden: PASS (5 pass)" in ran.stdout and "HEAD" in ran.stdout
    assert "changed since the base: requirements.txt" in ran.stdout
    worktrees = subprocess.run(
        ["git", "worktree", "list"], cwd=gated, capture_output=True, text=True, check=True
    )
    assert len(worktrees.stdout.splitlines()) == 1


def test_a_slower_tree_fails_and_says_by_how_much(gated: Path) -> None:
    (gated / "factor").write_text("1.1")
    ran = against(gated, "--golden-json=a.out", "--golden-markdown=b.out")
    assert ran.returncode == 1 and "slower by 10.0" in ran.stdout
    found = json.loads((gated / "a.out").read_text())["streamcache"]["verdicts"]
    assert {v["check"] for v in found if v["status"] == "fail"} == {"speed"}
    assert "slower by 10.0" in (gated / "b.out").read_text()


def test_each_tree_imports_its_own_modules(gated: Path) -> None:
    (gated / "conftest.py").write_text("N = 4\n")
    ran = against(gated)
    assert ran.returncode == 1 and "n is 4, the golden's is 3" in ran.stdout


def test_a_test_that_fails_here_alone_is_a_failure(gated: Path) -> None:
    (gated / "test_it.py").write_text(GATED.replace("golden.equal(", "assert False\n    print("))
    ran = against(gated)
    assert ran.returncode == 1 and "fails here, and not at the base" in ran.stdout


def test_a_benchmark_without_the_fixture_is_compared_by_its_times(tmp_path: Path) -> None:
    where = repository(tmp_path, PLAIN)
    (where / "factor").write_text("2.0")
    ran = against(where)
    assert ran.returncode == 1 and "test_plain  speed" in ran.stdout


def test_a_command_builds_each_tree(gated: Path) -> None:
    (gated / "conftest.py").write_text("N = 4\n")
    ran = against(gated, "--golden-build", "echo N = 5 > conftest.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (gated / "conftest.py").read_text() == "N = 5\n"
    ran = against(gated, "--golden-build", "exit 3")
    assert ran.returncode == 4 and "--golden-build failed" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--golden=toy",), "compares with a commit, and with no golden"),
        (("--golden-against=nothing",), "git knows no such commit"),
        (("--golden-rounds=2",), "must be at least 3"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: tuple[str, ...], says: str, gated: Path
) -> None:
    ran = against(gated, *arguments)
    assert ran.returncode == 4 and says in ran.stderr and ran.stderr.count("\n") == 1
