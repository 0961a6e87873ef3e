"""What workflows may do: code of a pull request meets no secret and no right to write."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FILES = sorted((Path(__file__).parents[2] / ".github" / "workflows").glob("*.yml"))
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
