"""Every file of examples runs on the packaged model, and prints what it promises."""

import io
import re
import runpy
import sys
from pathlib import Path

import pytest

from streamcache import StreamingCache
from streamcache.testing import check_cache, check_policy, kept_tokens
from tests.tiny import llama

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


class Example:
    """Runs a file of examples as a shell would, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, name: str, *arguments: str, stdin: str = "") -> tuple[str, str]:
        self.monkeypatch.setattr(sys, "argv", [name, *arguments])
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        printed = self.capsys.readouterr()
        return printed.out, printed.err


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    return Example(monkeypatch, capsys)


def test_a_chat_goes_on_past_the_cache(example: Example) -> None:
    out, err = example(
        "endless_chat.py", "--total", "64", "--tokens", "30", stdin="It was night.\nGo on.\nAnd?\n"
    )
    seen, held = zip(*re.findall(r"\[(\d+) tokens seen, (\d+) held\]", err))
    assert len(seen) == 3 and int(seen[-1]) > 64 and held[-1] == "64"
    assert out.strip()


def test_a_growing_file_is_followed_and_odd_lines_surprise(
    example: Example, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("The rain fell.\n" * 12 + "xq zzv 9# !!\nThe rain fell.\nhalf a li")
    out, _ = example("follow_file.py", str(text), "--total", "64", "--idle", "0.3")
    surprise = [float(line.split()[0]) for line in out.splitlines()]
    assert len(surprise) == 14, "a line counts when it has ended"
    assert surprise[12] == max(surprise) and surprise[11] < surprise[0]


def test_turns_are_evicted_whole_and_the_system_prompt_stays(example: Example) -> None:
    lines = "".join(f"Turn {i}.\n" for i in range(8))
    _, err = example("whole_turns.py", "--total", "96", "--tokens", "16", stdin=lines)
    held = re.findall(r"\[(\d+) entries: the prefix and (\d+) turns\]", err)
    assert len(held) == 8, "none is cut"
    assert [int(turns) for _, turns in held][-1] < 8 and max(int(size) for size, _ in held) <= 96


def test_the_rule_of_whole_turns_keeps_what_a_rule_must_keep() -> None:
    rule = runpy.run_path(str(EXAMPLES / "whole_turns.py"))["WholeTurns"]
    turns = [5, 9, 14, 30, 33, 41, 60, 61]
    check_policy(rule(5, 16, turns))
    check_cache(StreamingCache, llama(), rule(5, 16, turns))
    kept = kept_tokens(rule(5, 16, turns), 70)
    assert kept[16] == [0, 1, 2, 3, 4, *range(9, 17)], "the turn of the tokens 5 to 8 went"
    assert kept[29][5] == 29 - 10, "a turn that fills the cache alone loses single tokens"


def test_each_user_of_a_batch_has_a_stream(example: Example) -> None:
    out, _ = example("many_users.py", "--users", "3", "--tokens", "60", "--total", "48")
    *users, last = out.splitlines()
    assert [line.split(":")[0] for line in users] == ["user 0", "user 1", "user 2"]
    assert last == "3 streams of [77, 73, 72] tokens, at most 48 held of each"


def test_drafts_of_a_bounded_cache_are_accepted_and_change_no_text(example: Example) -> None:
    sizes = ("--prompt", "600", "--tokens", "60", "--total", "128", "--draft", "4")
    out, _ = example("self_drafting.py", *sizes)
    accepted, _, same = out.splitlines()
    assert int(accepted.partition("%")[0]) > 40
    assert same == "the same text as without drafts"


def test_an_own_rule_is_measured_beside_the_usual_one(example: Example) -> None:
    out, _ = example("own_rule.py", "--tokens", "300", "--total", "64")
    halving, usual = re.findall(r"PPL ([\d.]+), (\d+) entries in (\d+) evictions", out)
    assert 1 < float(halving[0]) < 1000 and 1 < float(usual[0]) < 1000
    assert int(halving[2]) < 10 and usual[1] == usual[2] == str(299 - 64)


def test_the_benchmark_is_that_of_the_docs() -> None:
    """`test_golden_plugin` records and judges it."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs/gate.md").read_text(), re.DOTALL)
    (block,) = (each for each in found if "def test_" in each)
    assert (EXAMPLES / "test_sort.py").read_text().endswith(f'"""\n\n{block}')


def test_every_example_is_tested_and_in_the_docs() -> None:
    names = ("test_examples.py", "test_server_example.py", "test_scored.py")
    tests = "".join(Path(__file__).with_name(name).read_text() for name in names)
    page = (ROOT / "docs" / "examples.md").read_text()
    for file in EXAMPLES.glob("*.py"):
        assert f'"{file.name}"' in tests or f'example("{file.stem}")' in tests
        assert f"(../examples/{file.name})" in page
