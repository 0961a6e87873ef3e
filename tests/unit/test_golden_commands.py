"""Goldens shown, compared and checked without a run of pytest."""

import os
from pathlib import Path

import msgspec
import pytest

from streamcache.gate import history, storage
from streamcache.gate.__main__ import main
from tests.goldens import NAME, RATIOS, altered, golden


@pytest.fixture
def path(tmp_path: Path) -> Path:
    storage.write(tmp_path / "toy.json", golden())
    return tmp_path / "toy.json"


def test_show_tells_what_was_recorded_and_where(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 entries, 2026-01-31 from 5 processes at c0ffee: a first record" in out
    assert "device toy, cpu abacus" in out
    assert f"{NAME}: ppl 20, speedup 2.718 (tau 3.0 %) (model toy)" in out


def test_diff_names_what_changed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = path.with_name("other.json")
    slower = golden([r + 0.1 for r in RATIOS])
    entries = {**slower.entries, "test_new": slower.entries[NAME]}
    storage.write(other, msgspec.structs.replace(slower, entries=entries, host={"cpu": "x"}))
    assert main(["diff", str(path), str(path)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", str(path), str(other)]) == 1
    out = capsys.readouterr().out
    assert "host: cpu is 'x', not 'abacus'" in out and "+ test_new" in out
    assert "speedup 2.718 (tau 3.0 %) -> ppl 20, speedup 2.460" in out and "anchor -1.0 ->" in out


def test_check_refuses_what_cannot_judge(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(path)]) == 0
    wild = path.with_name("wild.json")
    storage.write(wild, altered(golden(), log_ratios=[-1.1, -1.05, -1.0, -0.95, -0.9]))
    assert main(["check", str(path), str(wild)]) == 1
    out = capsys.readouterr().out
    assert "1 entries can judge" in out and "so noisy that a loss of 27 % would pass" in out


def test_names_in_a_golden_and_a_history_are_text(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a stranger's file: the escapes that a terminal obeys are shown, with a right checksum."""
    evil = "\x1b]0;title\x07\u202e\u200b\x9b2J"
    whole = golden()
    entry = msgspec.structs.replace(whole.entries[NAME], identity={evil: evil})
    made = msgspec.structs.replace(whole.provenance, reason=evil, date=evil, commit=evil)
    other = msgspec.structs.replace(
        whole, entries={evil: entry}, provenance=made, machine={evil: evil}, host={evil: evil}
    )
    hostile, lines = path.with_name("hostile.json"), path.with_name("history.jsonl")
    storage.write(hostile, other)
    line = history.Line("2026", evil, evil, {evil: evil}, metrics={evil: 1.0})
    lines.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for _ in range(9)))
    main(["show", str(hostile)])
    main(["diff", str(path), str(hostile)])
    main(["history", str(lines)])
    main(["history", str(lines), "--export", "bencher"])
    shown = capsys.readouterr()
    assert not set("\x1b\x07\u202e\u200b\x9b") & set(shown.out + shown.err)
    assert r"\x1b]0;title" in shown.out, "not lost, either"


@pytest.mark.parametrize(
    "content", [b"\xff\n", b"[" * 100_000 + b"\n", b"{}\n", b"pipe", b"device", b"1e999\n"]
)
def test_a_file_that_is_no_history_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "history.jsonl"
    if content == b"pipe":
        os.mkfifo(path)
    elif content == b"device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(content)
    assert main(["history", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_log_ratio_that_no_times_have_is_refused(tmp_path: Path) -> None:
    path, line = tmp_path / "x", history.Line("2026", "", "a", {}, 1e300)
    path.write_bytes(history.encoded([line]))
    with pytest.raises(history.HistoryError, match=r"line 1: no time has the log-ratio 1e\+300"):
        history.read(path)


def test_a_file_that_is_no_golden_is_one_line(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text("[]")
    assert main(["show", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
