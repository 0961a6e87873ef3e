"""Records: written all or nothing, read back the same, refused when they are something else."""

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from streamcache.files import write_bytes
from streamcache.measure import records
from streamcache.measure.records import Policy, Prunes, Quality, Record, RecordError, Speed, Subject

RECORD = Record(
    configuration="best",
    mode="fast",
    policy=Policy(32, 2000, 16, 32, 64, 2048),
    subject=Subject("reference", "sha256:0", "float32", "stream", "packaged", "d", 4096),
    environment=records.environment(torch.device("cpu")),
    quality=Quality("one-pass", 17.5, 18.25, 4095, 2048, 20.5, 0.0017, 64),
    speed=Speed("reference", 7.25, 7.0, 9.0, None, 256, 40.0, 290.0),
    prunes=Prunes(31, 90, 2000),
    peak_memory_bytes=10**9,
)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    records.write(path, RECORD)
    assert records.read(path) == RECORD
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    records.write(path, RECORD)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"no space.*/record\.json"):
        write_bytes(path, b"half of a rec")
    assert records.read(path) == RECORD
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_threads_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(lambda i: write_bytes(path, bytes([i]) * 100_000), range(64)):
            pass
    assert len(set(path.read_bytes())) == 1 and path.stat().st_size == 100_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_a_link_goes_on_pointing_at_its_file(tmp_path: Path) -> None:
    target, link = tmp_path / "elsewhere" / "record.json", tmp_path / "record.json"
    records.write(target, RECORD)
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_numbers_are_read_back_whole_or_not_at_all(tmp_path: Path) -> None:
    path = records.array_path(tmp_path / "x.R16.json", "nll")
    assert path.name == "x.R16.nll.npy"
    records.write_array(path, [1.0, 2.0, 3.0])
    assert np.array_equal(records.read_array(path, 3), [1, 2, 3])
    with pytest.raises(RecordError, match=r"\(3,\)"):
        records.read_array(path, 4)
    for half in (path.read_bytes()[:-5], b"", b"no numbers"):
        path.write_bytes(half)
        with pytest.raises(RecordError, match="cannot be read"):
            records.read_array(path, 3)


def test_a_text_file_is_told_from_another_of_its_name() -> None:
    def name(**changes: str) -> str:
        return msgspec.structs.replace(RECORD.subject, **changes).file_name

    assert name() == "reference-float32-stream-4096"
    file = {"text": "x.txt", "text_source": "file"}
    assert name(**file, text_digest="a" * 64) != name(**file, text_digest="b" * 64)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not a readable"),
        (b"{}", "not a readable"),
        (b'{"schema": "streamcache-baseline"}', "not a readable"),
        (msgspec.json.encode(RECORD)[:-20], "not a readable"),
        (msgspec.json.encode(msgspec.structs.replace(RECORD, version=2)), "schema version 2"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=words):
        records.read(path)
