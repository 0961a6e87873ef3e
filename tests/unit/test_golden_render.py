"""The report: failures first, nothing lost, one line a check."""

import math
import re

from hypothesis import given
from hypothesis import strategies as st

from streamcache.gate import render
from streamcache.gate.verdicts import Status, Verdict

FAILED = Verdict(
    "a.py::test_speed[a|b]",
    "speed",
    Status.FAIL,
    now="2.500x",
    golden="2.718x",
    loss=0.087,
    margin=0.004,
    tau=0.03,
    cause="slower by 8.7 %\nin two processes",
)
PASSED = Verdict("t.py::test_speed[x::y]", "speed", Status.PASS, "2.7x", "2.7x", 0.0, 0.004, 0.03)
DRIFTED = Verdict("t.py::test_ppl", "ppl", Status.FAIL, "21", "20", cause="ppl drifted by +5 %")
SAME = Verdict("t.py::test_ppl", "positions", Status.PASS, "100", "100")
GONE = Verdict("t.py::test_old", "benchmark", Status.MISSING, cause="not measured")
ALL = [SAME, PASSED, GONE, FAILED, DRIFTED]


def test_headline_has_the_worst_and_the_counts() -> None:
    assert render.headline(ALL) == "golden: FAIL (2 fail, 1 missing, 2 pass)"
    assert render.headline([]) == "golden: NOTHING MEASURED"
    assert render.headline([GONE]) == "golden: MISSING (1 missing)"


def test_failures_come_first_and_equal_counts_are_left_out() -> None:
    assert [(row[0], row[1], row[2]) for row in render.rows(ALL)] == [
        ("FAIL", "test_speed[a|b]", "speed"),
        ("FAIL", "test_ppl", "ppl"),
        ("MISSING", "test_old", "benchmark"),
        ("ok", "test_speed[x::y]", "speed"),
    ]


def test_a_row_shows_both_figures_the_loss_with_its_bound_and_what_counts() -> None:
    assert render.rows([FAILED])[0][3:7] == ("2.500x", "2.718x", "+8.7 % ± 0.4", "3.0 %")


def test_all_of_a_row_is_in_percent_of_the_time() -> None:
    """As the cause says it."""
    wide = Verdict("n", "speed", Status.PASS, loss=0.9, margin=math.log(1.6), tau=math.log(1.1))
    assert render.rows([wide])[0][5:7] == ("+90.0 % ± 60.0", "10.0 %")


def test_tests_of_one_name_are_told_apart_by_their_files() -> None:
    names = ["a.py::test_x", "b.py::test_x", "b.py::test_y"]
    found = [Verdict(name, "ppl", Status.FAIL) for name in names]
    assert [row[1] for row in render.rows(found)] == ["a.py::test_x", "b.py::test_x", "test_y"]


def columns(line: str) -> int:
    """As GitHub counts them."""
    return len(re.findall(r"(?<!\\)\|", line)) - 1


@given(st.lists(st.text(st.sampled_from("a|\\\n\r\x0b\u2028"), max_size=5), min_size=5, max_size=5))
def test_any_text_fits_a_cell_of_a_markdown_table(cells: list[str]) -> None:
    name, check, now, golden, cause = cells
    odd = Verdict(name, check, Status.FAIL, now, golden, cause=cause)
    text = render.text([odd])
    assert [len(line.splitlines()) for line in text] == [1, 1, 1]
    table = [line for line in render.markdown([odd]).splitlines() if line.startswith("|")]
    assert [columns(line) for line in table] == [len(render.HEADER)] * 3


def test_every_status_has_a_mark_and_only_red_ones_shout() -> None:
    for status in Status:
        mark = render.rows([Verdict("n", "c", status, tau=0.1)])[0][0]
        assert mark.isupper() == status.fails_build


def test_text_is_a_table_that_ends_with_the_headline() -> None:
    lines = render.text(ALL)
    assert lines[0].split() == list(render.HEADER[1:])
    assert lines[-1] == render.headline(ALL)
    column = lines[0].index("golden")
    assert lines[1][column:].startswith("2.718x")


def test_markdown_keeps_each_check_in_one_row() -> None:
    lines = render.markdown(ALL, ["a note"]).splitlines()
    assert lines[0] == "### golden: FAIL (2 fail, 1 missing, 2 pass)"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(render.rows(ALL))
    assert {columns(line) for line in table} == {len(render.HEADER)}
    assert lines[-1] == "- a note" or lines[-2] == "- a note"


def test_names_are_no_markup_in_a_comment_on_a_pull_request() -> None:
    name = "<img src=x> [a](http://x) ![b](http://y) \x1b[2J\u202e"
    text = render.markdown([Verdict(name, name, Status.FAIL, name, name, cause=name)], [name])
    assert "<img" not in text and "\x1b" not in text and "\u202e" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
