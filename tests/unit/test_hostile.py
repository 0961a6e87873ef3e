"""Folders of strangers: nothing outside is written, names are text, and each fault is one line."""

import hashlib
import os
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save

from streamcache.decoding.checkpoint import Checkpoint
from streamcache.files import read_bytes, remove_leftovers, write_bytes
from streamcache.measure import checked, measurement
from streamcache.measure.checked import RecordError
from streamcache.measure.configurations import NAMED
from streamcache.measure.measurement import Measurement
from streamcache.measure.store import Store, write_partial
from streamcache.plain import in_spreadsheet, plain
from streamcache.report import audit, collect, render
from streamcache.report.tables import Table, tables_for
from tests import made
from tests.shell import Run

NAME = (
    "[red]x[/red] \x1b]0;title\x07\x1b[2J\nssh-rsa AAAA\r| cell | <script>alert(1)</script> "
    "![x](http://x/y.png) [link](http://x) $\\frac{$ \u202e :smile: \\input{x} \x85"
)


def hostile(folder: Path) -> None:
    """A record whose every name is an attack, of which the checksum is right."""
    workload = msgspec.structs.replace(made.WORKLOAD, model=NAME, text=NAME, text_source=NAME)
    for name in ("mit", "best", "lazy-R1", "lazy-R16"):
        record = made.record(NAMED[name], workload=workload, device=NAME)
        record = msgspec.structs.replace(record, label=NAME, notes=(NAME,))
        arrays = np.full(record.workload.n_tokens - 1, 3.0), np.full(64, 5.0)
        measurement.write(folder / f"{name}.json", Measurement(record, *arrays))


def test_names_are_text_wherever_they_are_shown(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    hostile(folder)
    made.profile(folder, on_gpu=False)
    (folder / "[red]\x1b[2J.json").write_text("{")
    ran = run("summarize")
    assert ran.status == 0, ran.err
    assert r"left out: runs/[red]\x1b[2J.json cannot be read" in ran.err
    texts = {name: (folder / name).read_text() for name in ("summary.md", "summary.tex")}
    page = (folder / "index.html").read_text()
    for shown in (ran.out, ran.err, page, *texts.values()):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown)
        assert not re.search(r"^ssh-rsa", shown, re.MULTILINE)
    assert r"\[red\]x\[/red\] \\x1b\]0;title" in texts["summary.md"], "not lost, either"
    assert "<script" not in texts["summary.md"] and not re.search(r"(?<!\\)\]\(", "summary.md")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert r"\input" not in texts["summary.tex"] and texts["summary.tex"].isascii()


def test_a_table_in_a_terminal_shows_names_as_they_are(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "[bold]:smile: \x1b[2J.txt"
    text.write_text("The heron waits by the mill. " * 40)
    ran = run(
        *("eval", "--dataset-name", str(text), "--max-eval-tokens", "140", "--n-sink", "2"),
        *("--window-size", "20", "--positions", "1", "--tpot-tokens", "8", "--runs", "1"),
    )
    assert ran.status == 0, ran.err
    assert r"[bold]:smile: \x1b[2J.txt" in ran.out and "\x1b" not in ran.out + ran.err
    (record,) = [path for path in (tmp_path / "runs").rglob("*.json") if "streaming" in path.name]
    assert measurement.read(record).record.workload.text == text.name


@pytest.mark.parametrize("name", ["summary.md", "summary.tex", "index.html"])
def test_a_summary_is_not_written_through_a_link_out_of_the_folder(
    run: Run, tmp_path: Path, name: str
) -> None:
    keys = tmp_path / "authorized_keys"
    keys.write_text("mine\n")
    made.methods(tmp_path / "runs")
    (tmp_path / "runs" / name).symlink_to("../authorized_keys")
    ran = run("summarize")
    assert ran.status == 2 and ran.err.count("\n") == 1
    assert f"a link leads out of runs: runs/{name}" in ran.err
    assert keys.read_text() == "mine\n"


def test_a_record_is_not_written_through_a_link_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    store = Store(tmp_path / "runs")
    record = made.record(NAMED["best"])
    path = store.path(NAMED["best"], record.workload, record.environment)
    arrays = np.full(2999, 3.0), np.full(64, 5.0)
    store.folder.mkdir()
    path.parent.symlink_to(outside)
    with pytest.raises(OSError, match="a link leads out of"):
        store.put(path, Measurement(record, *arrays))
    path.parent.unlink()
    path.parent.mkdir()
    for each in (path, measurement.array_path(path, "nll"), measurement.array_path(path, "tpot")):
        each.unlink(missing_ok=True)
        each.symlink_to(outside / "file")
        with pytest.raises(OSError, match="a link leads out of"):
            store.put(path, Measurement(record, *arrays))
        each.unlink()
    path.with_name(f"{path.stem}.partial.json").symlink_to(outside / "file")
    with pytest.warns(UserWarning, match="a link leads out of"):
        write_partial(path, "0123abcd", [1.0])
    assert [each.name for each in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "mine"


def test_what_is_unfinished_is_not_written_through_a_link_out_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part of a baseline, the state of a pass and the lock; nor is something removed there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (outside / ".streamcache-0.tmp").write_text("mine")
    store = Store(tmp_path / "runs")
    store.folder.mkdir()
    folder = store.folder / "a"
    folder.symlink_to(outside)
    path = folder / "baseline-0123abcd.json"
    with pytest.warns(UserWarning, match="a link leads out of"):
        write_partial(path, "0123abcd", [1.0], store.within(path))
    checkpoint = Checkpoint(folder / "x.state", every_s=0, within=store.within(path))
    layers = SimpleNamespace(evicted=0, held=lambda layer: pytest.fail("there are no layers"))
    with pytest.raises(OSError, match="a link leads out of"):
        checkpoint.save_if_due(torch.ones(3), layers, 0)  # type: ignore[arg-type]
    with store.lock():
        pass
    (store.folder / ".lock").unlink(missing_ok=True)
    (store.folder / ".lock").symlink_to(outside / "file")
    with pytest.raises(OSError), store.lock():
        pytest.fail("the file of somebody else would be emptied")
    assert {each.name for each in outside.iterdir()} == {"file", ".streamcache-0.tmp"}
    assert (outside / "file").read_text() == "mine"


def test_the_state_of_a_stranger_is_not_used(tmp_path: Path) -> None:
    """Its checksum is right; it is no file of tensors, or of other ones."""
    path = tmp_path / "x.state"
    layer = {"keys.1": torch.ones(1), "values.1": torch.ones(1)}
    for content in (b"", b"\xff" * 100, save({}), save({"nll": torch.ones(3)}), save(layer)):
        path.write_bytes(hashlib.sha256(content).digest() + content)
        assert Checkpoint(path).load(torch.device("cpu")) is None


def test_an_array_without_end_is_not_read(tmp_path: Path) -> None:
    """A file of 1 TiB that takes no room, and a record that says that it is as long."""
    path = tmp_path / "x.nll.npy"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RecordError, match="longer than 256 MiB"):
        checked.read_array(path, 1 << 38, None)


@pytest.mark.parametrize("note", ["```", "~~~", "# x", "> x", "- x", "+ x", "* x", "===", "---"])
def test_a_note_begins_no_block_of_its_own(note: str) -> None:
    (line,) = render.markdown(Table("", (), (), (note,))).splitlines()[-1:]
    assert line == f"\\{note}."


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").symlink_to("a")
    write_bytes(tmp_path / "b", b"new", within=tmp_path)
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "b").is_symlink()


def test_each_foreign_file_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    made.methods(folder)
    os.mkfifo(folder / "pipe.json")
    (folder / "zero.json").symlink_to("/dev/zero")
    (folder / "loop.json").symlink_to("loop.json")
    (folder / "folder.json").mkdir()
    (tmp_path / "secret.json").write_text('{"password": "x"}')
    (folder / "out.json").symlink_to("../secret.json")
    bad = {
        "nested.json": b"[" * 1_000_000,
        "surrogate.json": b'{"schema": "\\ud800"}',
        "latin.json": b'{"\xe9": 1}',
        "nan.json": b'{"schema": "streamcache-measurement", "version": NaN}',
        "unknown.json": b'{"schema": "streamcache-new", "version": 2}',
        "list.json": b'{"schema": "streamcache-measurement", "version": [2]}',
        "short.json": b'{"schema": "streamcache-measurement", "version": 2, "checksum": 5}',
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    found = collect.collect(folder)
    assert len(found.groups) == 1 and len(found.groups[0].rows) == 4
    named = {*bad, "pipe.json", "zero.json", "loop.json", "folder.json", "out.json"}
    assert {Path(line.split(" ")[0]).name for line in found.bad} == named
    assert len(found.bad) == len(named) and not any("\n" in plain(line) for line in found.bad)
    assert not any("password" in line for line in found.bad)


def test_a_record_with_a_flipped_bit_is_named_or_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it no longer says that it is a record."""
    path = made.write(tmp_path, made.record(NAMED["best"]))
    data, arrays = path.read_bytes(), read_bytes
    (group,) = collect.collect(tmp_path).groups
    for bit in random.Random(0).sample(range(8 * len(data)), 500):
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        monkeypatch.setattr(
            checked,
            "read_bytes",
            lambda file, n, other=other: bytes(other) if file == path else arrays(file, n),
        )
        found = collect.collect(tmp_path)
        same = [each.first for each in found.groups] == [group.first]
        assert same or (len(found.bad) == 1 and path.name in found.bad[0] and not found.groups)


@pytest.mark.parametrize(
    "change",
    [
        {"configuration": {}},
        {"configuration": {"cache": "streaming", "n_sink": 4}},
        {"configuration": {"cache": "streaming", "n_sink": "x", "window_size": 3}},
        {"configuration": {"cache": "streaming", "n_sink": 0, "window_size": 0}},
    ],
)
def test_what_cannot_be_a_configuration_is_refused_where_it_is_read(
    tmp_path: Path, change: dict[str, object]
) -> None:
    made.methods(tmp_path)
    content = msgspec.to_builtins(made.record(NAMED["best"])) | change
    (tmp_path / "x.json").write_bytes(msgspec.json.encode(content))
    found = collect.collect(tmp_path)
    assert len(found.bad) == 1 and "x.json is no record that counts: damaged" in found.bad[0]


def test_empty_names_and_numbers_without_measure_are_shown(tmp_path: Path) -> None:
    """Of a record whose checksum is right: no table, verdict or title fails over it."""
    huge = made.record(NAMED["best"], ppl=1e308, increase=-1e300, tpot_ms=1e-300, device=" ")
    for value in ("", " "):
        empty: dict[str, Any] = msgspec.to_builtins(huge)
        for part in (empty, empty["workload"], empty["environment"], empty["quality"]):
            part |= {name: value for name in part if isinstance(part[name], str)}
        record = msgspec.convert(empty | {"schema": "streamcache-measurement"}, type(huge))
        checked.write_struct(tmp_path / f"a{value}.json", record)
    groups = collect.collect(tmp_path).groups
    assert [len(group.rows) for group in groups] == [1, 1]
    for group in groups:
        assert all(render.markdown(table) for table in tables_for(group).values())
    assert "best" in render.latex(audit.table(groups)).lower()


def test_a_token_is_no_formula_in_a_spreadsheet() -> None:
    assert in_spreadsheet("=HYPERLINK(1)\n") == r"'=HYPERLINK(1)\n"
    assert [in_spreadsheet(text) for text in ("-", "@a", "a=1", "")] == ["-", "'@a", "a=1", ""]


def test_plain_text_is_one_line_of_signs_that_can_be_seen() -> None:
    assert plain("a\tb\nc\x1b[2J\x9b\u202e\u2028\udc80 σ – é 漢") == (
        r"a\tb\nc\x1b[2J\x9b\u202e\u2028\udc80 σ – é 漢"
    )


# What is left behind, and long names


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".streamcache-0123.tmp").write_text("half")
    (tmp_path / ".streamcache-new.tmp").symlink_to("kept")
    (tmp_path / "kept").write_text("mine")
    (tmp_path / ".mine.tmp").write_text("mine")
    remove_leftovers(tmp_path, older_than_s=60)
    assert len(list(tmp_path.iterdir())) == 4, "it may be being written"
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "kept",
        ".mine.tmp",
        ".streamcache-new.tmp",
    }


def test_the_longest_name_of_a_file_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".json")
    checked.write_struct(path, made.record(NAMED["best"]))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_name_that_is_too_long_is_refused_before_the_work(run: Run, tmp_path: Path) -> None:
    """With it, the names of the arrays beside the record."""
    for length in (250, 300):
        ran = run("eval", "--output-file", "x" * (length - 5) + ".json")
        assert ran.status == 2 and "cannot write" in ran.err and "too long" in ran.err
    assert list(tmp_path.iterdir()) == []
