"""The packages as a stranger gets them: built, checked, installed and used outside of the tree."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from streamcache.version import VERSION

for package in ("build", "twine"):
    pytest.importorskip(package, reason="`tox -e package` has it")

ROOT = Path(__file__).parents[2]
USE = """
import sys
from importlib.metadata import version
import streamcache
from streamcache import EvictionPolicy, StreamingCache
from streamcache.inputs.models import load_model

assert "site-of-the-wheel" in streamcache.__file__, streamcache.__file__
assert version("streamcache") == streamcache.__version__
loaded = load_model("reference")
cache = StreamingCache(loaded.model, EvictionPolicy(4, 20))
prompt = loaded.tokenizer("It was a dark night", return_tensors="pt")
story = loaded.model.generate(**prompt, past_key_values=cache, max_new_tokens=40)
assert cache.size == 24 and story.shape[1] > 40
"""


def tracked() -> set[str]:
    """The files of the repository, or of the sdist that this runs in."""
    ran = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = ran.stdout.splitlines() if ran.returncode == 0 else []
    return {file for file in files if not file.endswith(".gitignore")}


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and a wheel that is built from it: so the sdist has all that a build needs.

    They are kept in the folder STREAMCACHE_DIST, if there is this variable.
    """
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    if keep := os.environ.get("STREAMCACHE_DIST"):
        shutil.copytree(folder, ROOT / keep, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob(f"streamcache-{VERSION}-py3-none-any.whl")
    return found


def test_the_index_accepts_their_metadata(dist: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_the_sdist_has_every_file_of_the_repository(dist: Path) -> None:
    with tarfile.open(dist / f"streamcache-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked() <= names, sorted(tracked() - names)
    assert {"tests/unit/test_policy.py", "docs/why.md", "constraints.txt"} <= names


def test_the_wheel_has_the_package_alone_with_its_model_and_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = message_from_bytes(archive.read(f"streamcache-{VERSION}.dist-info/METADATA"))
    model = "streamcache/reference_model"
    assert {f"{model}/model.safetensors", "streamcache/py.typed"} <= names
    assert {"streamcache/__init__.pyi", f"{model}/tokenizer.json"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"streamcache", f"streamcache-{VERSION}.dist-info"}
    assert wheel.stat().st_size < 20e6, "15 MB, most of them the weights of the reference model"
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Author"]
    assert metadata["Keywords"] and metadata["Requires-Python"] == ">=3.10"
    assert len(metadata.get_all("Classifier", [])) > 5


def test_it_is_used_outside_of_the_tree(wheel: Path, tmp_path: Path) -> None:
    """With the packages of this environment: those are on the index, this one is what is new."""
    site = tmp_path / "site-of-the-wheel"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        ran = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    python("-c", USE)
    assert python("-m", "streamcache", "--version").strip().endswith(VERSION)
    text = python("-m", "streamcache", "generate", "It was", "--max-new-tokens", "8")
    assert text.startswith("It was")
