"""What workflows may do: code of a pull request meets no secret and no right to write."""

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, Any] = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def events(name: str) -> set[str]:
    return set(WORKFLOWS[name][True])  # YAML takes "on" for a boolean


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_and_leave_no_credentials(name: str) -> None:
    used = [step for step in steps(name) if "uses" in step]
    for step in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"]), step
        if step["uses"].startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
    assert "permissions" in WORKFLOWS[name]


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if "pull_request" in events(name)])
def test_code_of_a_pull_request_reads_only(name: str) -> None:
    text = next(path for path in FILES if path.stem == name).read_text()
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    assert "secrets." not in text and "github.token" not in text


def test_what_may_write_runs_nothing_of_the_pull_request() -> None:
    """Neither its files nor what it named: names come in by the environment, not into a script."""
    writing = [n for n in WORKFLOWS if "write" in WORKFLOWS[n]["permissions"].values()]
    assert writing == ["comment"] and events("comment") == {"workflow_run"}
    assert WORKFLOWS["comment"][True]["workflow_run"]["workflows"] == [WORKFLOWS["times"]["name"]]
    for step in steps("comment"):
        assert "uses" not in step and "${{" not in step["run"]


def test_the_times_of_a_pull_request_are_an_environment_of_tox_with_its_history() -> None:
    assert any("tox -e against" in step.get("run", "") for step in steps("times"))
    checkouts = [s for s in steps("times") if s.get("uses", "").startswith("actions/checkout")]
    assert [step["with"]["fetch-depth"] for step in checkouts] == [0]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_runner_of_ones_own_installs_by_hash_alone(name: str) -> None:
    for job in WORKFLOWS[name]["jobs"].values():
        if "self-hosted" not in job["runs-on"]:
            continue
        lines = [line for step in job["steps"] for line in step.get("run", "").splitlines()]
        installs = [line for line in lines if "pip install" in line]
        assert installs and all("--require-hashes --no-deps -r" in line for line in installs)
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    environment = tox["testenv:{a800,h200,h100}"]
    assert "--require-hashes --no-deps" in environment["install_command"]
    assert environment["deps"] == "-r {tox_root}/.github/gpu-requirements.txt"


def test_what_is_installed_by_hash_is_what_ci_was_run_with() -> None:
    locked = (ROOT / ".github" / "gpu-requirements.txt").read_text()
    packages = dict(re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", locked, re.MULTILINE))
    entries = re.split(r"\n(?=[a-z])", locked[locked.index("accelerate") :])
    assert all("--hash=sha256:" in entry for entry in entries) and len(entries) >= len(packages)
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        if name in packages and name not in ("numpy", "matplotlib"):  # two versions, by Python
            assert packages[name] == version, name
    needed = {"transformers", "pytest", "pytest-benchmark", "hypothesis", "msgspec", "tox"}
    assert needed <= packages.keys() and "torch" not in packages, "torch is the host's own"
