"""`--golden-against`: a commit and the tree that is there, as their users meet it."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.unit.test_golden_plugin import git, only_our_plugins, shell

FIGURES = """
import conftest

def test_figures(golden):
    golden.equal(n=conftest.N)
"""
TIMES = """
import time
from pathlib import Path
import pytest

FACTOR = float(Path(__file__).with_name("factor").read_text())

def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

def block(factor):
    work(1e-3 * factor ** 4)
    return 0.01 * factor

def test_gated(benchmark, golden):
    golden.identity(n=3)
    golden.time(benchmark, lambda: block(FACTOR), lambda: block(2), pairs=4)

@pytest.mark.golden(tau=0.2)
def test_lenient(benchmark, golden):
    golden.time(benchmark, lambda: block(FACTOR), lambda: block(2), pairs=4)

@pytest.mark.golden(warn_only=True)
def test_warned(benchmark, golden):
    golden.time(benchmark, lambda: block(FACTOR), lambda: block(2), pairs=4)

def test_plain(benchmark):
    benchmark.pedantic(work, args=(1e-3 * FACTOR ** 4,), rounds=20)

def test_broken(benchmark, golden):
    assert FACTOR == 1
    golden.time(benchmark, lambda: block(1), lambda: block(2), pairs=4)
"""


def repository(where: Path, test: str) -> Path:
    (where / "test_it.py").write_text(test)
    (where / "conftest.py").write_text("N = 3\n")
    (where / "factor").write_text("1.0")
    (where / "pytest.ini").write_text("[pytest]\n")
    (where / ".gitignore").write_text("__pycache__\n.pytest_cache\n.benchmarks\n*.out\n")
    git(where, "init", "-q", "-b", "main")
    git(where, "add", ".")
    git(where, "commit", "-qm", "base")
    return where


def against(
    where: Path, *arguments: str, revision: str = "HEAD", **environment: str
) -> subprocess.CompletedProcess[str]:
    gate = f"--golden-against={revision}", "--golden-rounds=3"
    return shell(where, *gate, *arguments, **environment)


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    return repository(tmp_path, FIGURES)


class Compared(NamedTuple):
    """A run on a tree that is slower and has other figures than its commit."""

    ran: subprocess.CompletedProcess[str]
    verdicts: list[dict[str, Any]]
    report: str
    changes: dict[str, list[float]]

    def status(self, test: str, check: str) -> str:
        (found,) = (
            v for v in self.verdicts if (v["name"], v["check"]) == (f"test_it.py::{test}", check)
        )
        return str(found["status"])


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    where = repository(tmp_path_factory.mktemp("slower"), FIGURES + TIMES)
    (where / "factor").write_text("1.1")
    (where / "conftest.py").write_text("N = 4\n")
    ran = against(where, "--golden-json=a.out", "--golden-markdown=b.out")
    found = json.loads((where / "a.out").read_text())["streamcache"]
    report = (where / "b.out").read_text()
    return Compared(ran, found["verdicts"], report, found["changes"])


def test_an_unchanged_tree_passes_and_leaves_nothing_behind(tmp_path: Path) -> None:
    where = repository(tmp_path, FIGURES + TIMES)
    (where / "requirements.txt").write_text("numpy\n")
    git(where, "add", "requirements.txt")
    ran = against(where, "-k", "gated")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "golden: PASS (3 pass)" in ran.stdout and "HEAD" in ran.stdout
    assert "changed since the base: requirements.txt" in ran.stdout
    worktrees = subprocess.run(
        ["git", "worktree", "list"], cwd=where, capture_output=True, text=True, check=True
    )
    assert len(worktrees.stdout.splitlines()) == 1


def test_a_slower_tree_fails_and_says_by_how_much(slower: Compared) -> None:
    assert slower.ran.returncode == 1, slower.ran.stderr
    assert slower.status("test_gated", "speed") == "fail"
    assert "slower by 10.0" in slower.ran.stdout and "slower by 10.0" in slower.report


def test_programs_get_the_change_of_each_round(slower: Compared) -> None:
    found = slower.changes["test_it.py::test_gated speed"]
    assert len(found) == 6 and found == pytest.approx([math.log(1.1)] * 6)  # 3, and 3 to confirm


def test_it_says_where_the_time_goes(slower: Compared) -> None:
    assert re.search(r"test_gated, where the time goes: .*: \d.* -> \d.* ms", slower.ran.stdout)
    assert "what changed: git diff --stat" in slower.ran.stdout


def test_a_test_has_its_own_tau_and_may_only_warn(slower: Compared) -> None:
    assert slower.status("test_lenient", "speed") == "pass"
    assert slower.status("test_warned", "speed") == "warning"
    assert "FAIL: slower by 10.0" in slower.ran.stdout


def test_each_tree_imports_its_own_modules(slower: Compared) -> None:
    assert slower.status("test_figures", "n") == "fail"
    assert "n is 4, the golden's is 3" in slower.ran.stdout


def test_a_test_that_fails_here_alone_is_a_failure(slower: Compared) -> None:
    assert slower.status("test_broken", "test") == "fail"
    assert "fails here, and not at the base" in slower.ran.stdout


def test_a_benchmark_without_the_fixture_is_compared_by_its_times(slower: Compared) -> None:
    assert slower.status("test_plain", "speed") == "fail"


LIBRARY = """
import lib

def test_figures(golden):
    golden.equal(n=lib.N)
"""


def with_library(where: Path, conftest: str) -> Path:
    """A repository whose library is in a folder of its own, and changed since the commit."""
    (where / "python").mkdir()
    (where / "python" / "lib.py").write_text("N = 3\n")
    repository(where, LIBRARY)
    (where / "conftest.py").write_text(conftest)
    git(where, "commit", "-qam", "conftest")
    (where / "python" / "lib.py").write_text("N = 4\n")
    return where


def test_a_library_on_the_path_is_that_of_each_tree(tmp_path: Path) -> None:
    where = with_library(tmp_path, "")
    ran = against(where, PYTHONPATH=os.pathsep.join([str(where / "python"), *sys.path]))
    assert ran.returncode == 1 and "n is 4, the golden's is 3" in ran.stdout, ran.stdout


def test_it_is_said_where_both_trees_would_measure_one_library(tmp_path: Path) -> None:
    """As where a project is installed from its folder, and lies elsewhere than in it or in src."""
    where = with_library(
        tmp_path, f"import sys\nsys.path.insert(0, {str(tmp_path / 'python')!r})\n"
    )
    ran = against(where)
    assert ran.returncode == 4, ran.stdout
    assert f"not the commit was measured, but {tmp_path / 'python' / 'lib.py'}" in ran.stderr


def test_a_command_builds_each_tree(figures: Path) -> None:
    (figures / "conftest.py").write_text("N = 4\n")
    ran = against(figures, "--golden-build", "echo N = 5 > conftest.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (figures / "conftest.py").read_text() == "N = 5\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--golden=toy"], "compares with a commit, and with no golden"),
        (["--golden-against=nothing"], "git finds no such commit"),
        (["--golden-against=merge-base"], "git finds no such commit"),  # there is one commit
        (["--golden-rounds=2"], "must be at least 3"),
        (["--golden-build", "exit 3"], "--golden-build failed"),
        (["--golden-noise-from=none"], "No such file"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: list[str],
    says: str,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only_our_plugins(monkeypatch)
    repository(pytester.path, FIGURES)
    ran = pytester.runpytest_inprocess("--golden-against=HEAD", "--golden-rounds=3", *arguments)
    errors = [line for line in ran.errlines if line.startswith("ERROR")]
    assert ran.ret == 4 and len(errors) == 1 and says in "\n".join(ran.errlines)
