"""The peak memory of a process, in bytes on every system."""

import ast
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

import streamcache
from streamcache.measure.memory import peak_memory_bytes

MIB = 2**20
UNIX_ONLY = {"fcntl", "grp", "pwd", "resource", "termios"}


def test_peak_memory_is_at_least_what_was_just_allocated() -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("only Linux tells the pages of a process")
    held = numpy.ones(64 * MIB, dtype=numpy.uint8)
    resident = int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = peak_memory_bytes()
    assert held.nbytes == 64 * MIB
    assert peak is not None and resident * 0.99 <= peak < resident * 100


@pytest.mark.parametrize(("platform", "expected"), [("linux", 300_000 * 1024), ("darwin", 300_000)])
def test_peak_memory_is_in_the_unit_of_its_system(
    platform: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(ru_maxrss=300_000)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory_bytes() == expected


def test_peak_memory_is_unknown_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_bytes() is None


def test_no_module_imports_at_its_top_what_only_unix_has() -> None:
    package = Path(streamcache.__file__).parent
    for path in package.rglob("*.py"):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Import):
                names = {alias.name for alias in statement.names}
                assert not names & UNIX_ONLY, path
            elif isinstance(statement, ast.ImportFrom):
                assert statement.module not in UNIX_ONLY, path
