"""Records: written all or nothing, read back the same, refused when they are something else."""

from pathlib import Path

import msgspec
import pytest
import torch

from streamcache import records
from streamcache.files import write_bytes
from streamcache.records import Policy, Prunes, Quality, Record, RecordError, Speed, Subject

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
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_bytes(path, b"half of a rec")
    assert records.read(path) == RECORD
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


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
