"""pytest works where the gate's dependencies are not installed; the gate says what it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process that cannot import a package."""
    (folder / missing).mkdir()
    (folder / missing / "__init__.py").write_text(
        f"raise ModuleNotFoundError('none', name={missing!r})\n"
    )
    (folder / "test_it.py").write_text("def test_it():\n    pass\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    blocked = ["-p", "no:benchmark"] if missing == "pytest_benchmark" else []
    command = [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", *blocked, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("missing", ["msgspec", "pytest_benchmark"])
@pytest.mark.parametrize("option", ["--golden=cpu", "--golden-update", "--golden-samples=a.json"])
def test_without_a_dependency_an_option_of_the_gate_is_one_line(
    missing: str, option: str, tmp_path: Path
) -> None:
    ran = run(tmp_path, missing, option)
    assert ran.returncode == 4
    needs = f"{option.partition('=')[0]} needs {missing}, which is not installed"
    assert ran.stderr.strip() == f"ERROR: {needs}: pip install 'streamcache[gate]'"


def test_without_a_dependency_tests_without_the_gate_run(tmp_path: Path) -> None:
    assert run(tmp_path, "msgspec").returncode == 0


def test_without_a_dependency_a_test_that_takes_the_fixture_says_what_to_install(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_gated.py").write_text("def test_gated(golden):\n    pass\n")
    ran = run(tmp_path, "msgspec", "test_gated.py")
    assert ran.returncode == 1 and "pip install 'streamcache[gate]'" in ran.stdout
