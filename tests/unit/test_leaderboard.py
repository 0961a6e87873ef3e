"""Methods side by side at one total, by one command."""

from pathlib import Path

import pytest

from streamcache.cli.leaderboard import ALL, _chosen
from streamcache.inputs.models import load_model
from tests.shell import Run

ROOT = Path(__file__).parents[2]
SMALL = ("--max-eval-tokens", "200", "--cap-total", "64", "--questions", "2")


def test_all_has_every_rule_once_and_names_those_that_are_the_same() -> None:
    found = _chosen(f"{ALL},{ROOT}/examples/content_rules.py:KeyDiff", load_model("reference"), 256)
    labels = [each.label for each in found]
    assert labels[0].split(", ") == ["mit", "ours-standard", "fast", "lazy-R1"]
    assert labels[-1] == "KeyDiff" and {"window", "gaps", "wrap", "best, best-fast"} <= set(labels)
    assert all(each.policy.capacity <= 256 for each in found if each.label != "quality")


def test_the_command_writes_the_table_into_its_page_and_measures_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "board.md"
    page.write_text(
        "Before.\n<!-- leaderboard: begin -->\nold\n<!-- leaderboard: end -->\nAfter.\n"
    )
    rule = f"{ROOT}/examples/own_rule.py:HalveWhenFull"
    command = ("leaderboard", *SMALL, "--configs", f"fast,window,gaps,{rule}", "--page", str(page))
    ran = run(*command)
    assert ran.status == 0, ran.err
    text = page.read_text()
    assert text.startswith("Before.\n") and text.endswith("After.\n") and "\nold\n" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {row.split(" | ")[0] for row in rows[2:]} == {
        *("| fast", "| window", "| gaps", "| HalveWhenFull")
    }
    ppl = [float(row.split(" | ")[2]) for row in rows[2:]]
    assert ppl == sorted(ppl) and "recall at 48" in rows[0]
    monkeypatch.setattr("streamcache.measure.run.streaming_nll", None)
    assert run(*command).out == ran.out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--configs", "baseline"], "no configuration"),
        (["--max-eval-tokens", "100"], "do not fill 256 entries"),
    ],
)
def test_what_cannot_be_gets_one_line(run: Run, given: list[str], said: str) -> None:
    ran = run("leaderboard", *given)
    assert ran.status == 2 and ran.err.count("\n") == 1 and said in ran.err
