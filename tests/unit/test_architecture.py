"""The imports keep the contracts of pyproject.toml, and the linter sees one that does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

from tests import architecture

ROOT = Path(__file__).parents[2]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint(folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-c", LINT, "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("reference_model", "__pycache__")
    shutil.copytree(ROOT / "streamcache", folder / "streamcache", ignore=ignored)
    return folder


def test_the_package_keeps_its_contracts(pristine: Path) -> None:
    status, output = lint(pristine)
    assert status == 0, output
    assert "0 broken" in output


@pytest.mark.parametrize(
    ("module", "imported", "contract"),
    [
        ("policy", "streamcache.caches.base", "A folder imports nothing from those above it"),
        ("caches/ring", "streamcache.measure", "A folder imports nothing from those above it"),
        ("report/tables", "streamcache.gate", "A folder imports nothing from those above it"),
        ("caches/rope", "streamcache.caches.streaming", "No circles"),
        ("policy", "torch", "What to evict is a matter of integers"),
        ("gate/verdicts", "pytest", "Only the plugin of the gate knows pytest"),
        ("gate/verdicts", "torch", "The gate knows no torch and no model"),
        ("gate/verdicts", "streamcache.caches.base", "The gate knows no torch and no model"),
        ("gate/goldens", "streamcache.gate.bench", "Nothing of the gate needs its benchmarks"),
    ],
)
def test_a_planted_import_breaks_its_contract(
    module: str, imported: str, contract: str, pristine: Path
) -> None:
    path = pristine / "streamcache" / f"{module}.py"
    before = path.read_text()
    path.write_text(f"{before}\n\ndef planted() -> None:\n    import {imported}\n")
    try:
        status, output = lint(pristine)
    finally:
        path.write_text(before)
    lines = output.splitlines()
    assert status == 1 and f"{path.stem} -> " in output, output
    assert any(line.startswith(contract) and "BROKEN" in line for line in lines), output


def test_a_new_folder_must_be_given_its_place(pristine: Path) -> None:
    extra = pristine / "streamcache" / "serving.py"
    extra.touch()
    try:
        status, output = lint(pristine)
    finally:
        extra.unlink()
    assert status != 0 and "serving" in output


def test_figures_of_a_small_graph(tmp_path: Path) -> None:
    sources = {
        "policy.py": "",
        "caches/__init__.py": "",
        "caches/base.py": "import streamcache.policy\nimport streamcache.caches.hooks",
        "caches/hooks.py": "def f():\n    import streamcache.caches.base",
        "cli.py": "from streamcache.caches import base\nfrom streamcache import policy",
    }
    for name, source in {"__init__.py": "", **sources}.items():
        path = tmp_path / "streamcache" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    command = [sys.executable, "-m", "tests.architecture", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "modules: 5, imports between them: 5",
        "folders and files at the top: 3, arrows between them: 3",
        "longest chain of these: 3: cli -> caches -> policy",
        "longest chain of modules: 3",
        "circles of modules: 1",
        "circles of folders: 0",
        "  streamcache.caches.base = streamcache.caches.hooks",
    ]
    assert architecture.part("streamcache.caches.base") == "caches"
