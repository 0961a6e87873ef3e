"""Which commit `--golden-against=merge-base` means, bisecting, and two updates at once."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamcache.gate import storage
from streamcache.gate.goldens import Entry
from streamcache.gate.plugin import against, recording
from streamcache.gate.samples import Process
from tests.goldens import NAME, processes
from tests.unit import test_golden_plugin
from tests.unit.test_golden_plugin import DOCS, Toy, git, only_our_plugins

toy, recorded = test_golden_plugin.toy, test_golden_plugin.recorded  # fixtures


def commits(where: Path, n: int, begin: int = 0) -> list[str]:
    """Hashes of n commits; in the i-th the file `n` holds i."""
    found = []
    for i in range(begin, begin + n):
        (where / "n").write_text(str(i))
        git(where, "add", ".")
        git(where, "commit", "-qm", f"commit {i}")
        found.append(said(where, "rev-parse", "HEAD"))
    return found


def said(where: Path, *arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], cwd=where, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


def merge_base(where: Path) -> str | None:
    config: Any = SimpleNamespace(rootpath=where)
    return against._merge_base(config)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GITHUB_BASE_REF", raising=False)
    git(tmp_path, "init", "-q", "-b", "main")
    return tmp_path


def test_a_branch_is_compared_with_where_it_began(repository: Path) -> None:
    began = commits(repository, 2)[-1]
    git(repository, "checkout", "-qb", "topic")
    commits(repository, 2, begin=10)
    assert merge_base(repository) == began
    git(repository, "checkout", "-q", "main")
    commits(repository, 1, begin=5)
    git(repository, "checkout", "-q", "topic")
    assert merge_base(repository) == began


def test_the_main_branch_is_compared_with_the_commit_before(repository: Path) -> None:
    first, last = commits(repository, 2)
    assert merge_base(repository) == first
    (repository / "new").write_text("not in git")
    assert merge_base(repository) == first
    (repository / "n").write_text("changed")
    assert merge_base(repository) == last


def test_so_is_a_fresh_clone_and_one_commit_has_nothing_to_compare_with(repository: Path) -> None:
    first, _ = commits(repository, 2)
    git(repository, "clone", "-q", ".", "clone")
    assert merge_base(repository / "clone") == first
    git(repository / "clone", "checkout", "-q", "--detach")
    assert merge_base(repository / "clone") == first
    git(repository / "clone", "reset", "-q", "--hard", first)
    git(repository / "clone", "update-ref", "refs/remotes/origin/main", first)
    assert merge_base(repository / "clone") is None


def test_where_no_branch_is_the_main_one_it_is_the_commit_before(repository: Path) -> None:
    first, _ = commits(repository, 2)
    git(repository, "checkout", "-q", "--detach")
    git(repository, "branch", "-qD", "main")
    assert merge_base(repository) == first


def test_a_pull_request_names_its_branch(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits(repository, 1)
    git(repository, "checkout", "-qb", "release")
    began = commits(repository, 1, begin=5)[0]
    git(repository, "clone", "-q", ".", "clone")
    commits(repository / "clone", 1, begin=9)
    monkeypatch.setenv("GITHUB_BASE_REF", "release")
    assert merge_base(repository / "clone") == began


def test_two_updates_at_once_lose_nothing(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one writes while this one measures."""
    theirs = "test_toy.py::test_theirs"

    def measured(config: pytest.Config) -> Iterator[Process]:
        yield from processes()
        toy.adds_entry(theirs, equal={"n": 1})

    monkeypatch.setattr(recording, "measured", measured)
    assert toy("--golden-update-new-only", "--golden-reason=ours").ret == 0
    entries = storage.read(toy.golden).entries
    assert entries[theirs] == Entry(equal={"n": 1}) and entries[NAME].log_ratios


TIMED = """
import time
from pathlib import Path

def work():
    end = time.thread_time() + (2e-3 if int(Path("n").read_text()) >= 11 else 1e-3)
    while time.thread_time() < end:
        pass

def test_work(benchmark):
    benchmark.pedantic(work, rounds=100)
"""


@pytest.mark.slow
def test_bisecting_finds_the_first_slow_commit(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of the docs, on sixteen commits."""
    (line,) = (line for line in DOCS.splitlines() if line.startswith("git bisect run"))
    (repository / "test_it.py").write_text(TIMED)
    (repository / "pytest.ini").write_text("[pytest]\n")
    (repository / ".gitignore").write_text("__pycache__\n.pytest_cache\n.benchmarks\n")
    found = commits(repository, 16)
    git(repository, "bisect", "start", "HEAD", found[0])
    line = line.replace("tests/bench/test_cpu.py", "test_it.py").replace("v1.0", found[0])
    only_our_plugins(monkeypatch)
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    ran = subprocess.run(line, shell=True, cwd=repository, capture_output=True, text=True)
    assert f"{found[11]} is the first bad commit" in ran.stdout, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("status", "bisected"), [(0, 0), (1, 1), (2, 125), (4, 125), (5, 125), (75, 125), (76, 125)]
)
def test_what_cannot_be_judged_is_skipped_by_a_bisection(status: int, bisected: int) -> None:
    (line,) = (line for line in DOCS.splitlines() if line.startswith("git bisect run"))
    script = line.partition("'")[2].rpartition("'")[0]
    _, rest = script.split(";", 1)
    ran = subprocess.run(["sh", "-c", f"(exit {status});{rest}"])
    assert ran.returncode == bisected
