"""Every command in the docs runs: `streamcache` ones here with small settings, `pytest` and `tox`
ones by CI, where their place is checked here."""

import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch

from tests.shell import Run

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = ["--max-eval-tokens", "260", "--runs", "1"]
CI = (ROOT / ".ci" / "run").read_text()


def blocks(language: str) -> list[str]:
    return [
        block
        for page in DOCS
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    ]


COMMANDS = [
    part.strip()
    for block in blocks("bash")
    for line in block.splitlines()
    for part in line.split("&&")
    if part.strip()
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"(^|\s)streamcache ", c)])
def test_streamcache_commands(
    command: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = shlex.split(command)
    if "STREAMCACHE_DATA=" in words[0]:
        words.pop(0)
        (tmp_path / "pg19").mkdir()
        (tmp_path / "pg19" / "4047.txt").write_text("A little text of our own, word by word. " * 90)
        monkeypatch.setenv("STREAMCACHE_DATA", str(tmp_path))
    small = SMALL if words[1] == "baseline" else [*SMALL, "--tpot-tokens", "8"]
    ran = run(*words[1:], *small)
    assert ran.status == 0, ran.err
    assert "TPOT" in ran.out


def test_other_commands_are_those_of_ci_and_tox() -> None:
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini")
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "tox":
            environments = words[2].split(",")
            for name in environments:
                assert any(name in re.split(r"[:{},]", section) for section in tox.sections())
        elif words[0] in ("ruff", "mypy"):
            assert command in CI and command in tox["testenv:lint"]["commands"]
        elif words[0] == "pytest" and "gpu tests/bench" not in command:
            prefix = command.split(" --benchmark-json")[0]
            assert prefix in CI or command == "pytest tests/unit"
        elif words[0] == "pytest":
            assert command.split(" --benchmark-json")[0] in tox["testenv:{a800,h200}"]["commands"]
        else:
            assert words[0] == "pip" or "streamcache" in words[:2], command


def test_ci_runs_the_readmes_test_command() -> None:
    found = re.findall(r"^pip install.*pytest tests/unit$", (ROOT / "README.md").read_text(), re.M)
    assert len(found) == 1


@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference = ROOT / "streamcache" / "reference_model"
    for auto in (AutoModelForCausalLM, AutoTokenizer):
        real = auto.from_pretrained
        monkeypatch.setattr(
            auto, "from_pretrained", lambda name, real=real: real(reference, dtype=torch.float32)
        )
    names: dict[str, object] = {}
    exec(block, names)
    story = names["story"]
    assert isinstance(story, torch.Tensor) and story.shape[1] >= 64


def test_paths_and_links_exist() -> None:
    for page in DOCS:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for path in re.findall(r"^(streamcache/\w+\.py)", (ROOT / "README.md").read_text(), re.M):
        assert (ROOT / path).exists(), path
