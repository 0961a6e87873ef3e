"""Measurements: written all or nothing, read back the same, else refused; where they are kept."""

import errno
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamcache.files import write_bytes
from streamcache.measure import measurement
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.measure.measurement import Measurement, RecordError
from streamcache.measure.store import Store, folder_name
from streamcache.policy import EvictionPolicy
from tests import made

RECORD = made.record(NAMED["best"])
ARRAYS = np.linspace(1, 2, 2999), np.linspace(5, 6, 64)


def test_a_measurement_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "best.json"
    measurement.write(path, Measurement(RECORD, *ARRAYS))
    found = measurement.read(path)
    assert found.record == RECORD and found.path == path
    for array, written in zip((found.nll, found.tpot_ms), ARRAYS):
        assert array is not None
        np.testing.assert_allclose(array, written, rtol=1e-6)
    names = {entry.name for entry in path.parent.iterdir()}
    assert names == {"best.json", "best.nll.npy", "best.tpot.npy"}


def test_a_record_without_its_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    measurement.write(path, Measurement(RECORD, *ARRAYS))
    (tmp_path / "best.tpot.npy").unlink()
    with pytest.raises(RecordError, match=r"best\.tpot\.npy cannot be read"):
        measurement.read(path)


def test_the_policy_of_a_record_is_made_from_its_fields() -> None:
    assert RECORD.policy == NAMED["best"].policy
    fields = {**RECORD.configuration, "rule": "MyRule"}
    assert msgspec.structs.replace(RECORD, configuration=fields).policy is None


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    measurement.write_struct(path, RECORD)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"no space.*/record\.json"):
        write_bytes(path, b"half of a rec")
    assert measurement.read_struct(measurement.Record, path, "record") == RECORD
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
    measurement.write_struct(target, RECORD)
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_an_array_is_read_back_whole_or_not_at_all(tmp_path: Path) -> None:
    path = measurement.array_path(tmp_path / "x.R16.json", "nll")
    assert path.name == "x.R16.nll.npy"
    measurement.write_array(path, [1.0, 2.0, 3.0])
    assert np.array_equal(measurement.read_array(path, 3), [1, 2, 3])
    with pytest.raises(RecordError, match=r"\(3,\)"):
        measurement.read_array(path, 4)
    for half in (path.read_bytes()[:-5], b"", b"no numbers"):
        path.write_bytes(half)
        with pytest.raises(RecordError, match="cannot be read"):
            measurement.read_array(path, 3)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not a readable"),
        (b"{}", "not a readable"),
        (b"\xff\xfe", "not a readable"),
        (b'{"schema": "streamcache-diagnosis"}', "not a readable"),
        (msgspec.json.encode(RECORD)[:-20], "not a readable"),
        (msgspec.json.encode(msgspec.structs.replace(RECORD, version=1)), "schema version 1"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=words):
        measurement.read(path)


# The store


def test_a_measurement_is_found_by_its_fields_under_any_label(tmp_path: Path) -> None:
    store, where = Store(tmp_path), RECORD.environment
    first = store.path(NAMED["ours-standard"], made.WORKLOAD, where)
    store.put(first, Measurement(made.record(NAMED["ours-standard"]), *ARRAYS))
    assert NAMED["lazy-R1"] == NAMED["ours-standard"], "the label is no part of the identity"
    second = store.path(NAMED["lazy-R1"], made.WORKLOAD, where)
    assert second != first and (found := store.find(second)) is not None
    assert found.record.label == "ours-standard"
    store.put(second, Measurement(made.record(NAMED["lazy-R1"]), *ARRAYS))
    assert len(list(tmp_path.rglob("*.json"))) == 1, "one measurement has one file"


def test_every_field_of_configuration_and_workload_counts(tmp_path: Path) -> None:
    store, where = Store(tmp_path), RECORD.environment
    policy = EvictionPolicy(4, 100, compress_every=32)
    plain = Configuration(policy, "reference")
    others = [
        replace(plain, policy=EvictionPolicy(4, 101, compress_every=32)),
        replace(plain, policy=EvictionPolicy(4, 100, 31, compress_every=32)),
        replace(plain, cache="streaming"),
        replace(plain, cache="ring"),
        replace(plain, cache="ring", engine="captured"),
        replace(plain, overlap=8),
        replace(plain, refresh=8),
        replace(plain, refresh=8, refresh_at="tail"),
        replace(plain, weights="int8"),
        replace(plain, batch=2),
    ]
    paths = {store.path(each, made.WORKLOAD, where).stem[-8:] for each in (plain, *others)}
    assert len(paths) == 1 + len(others)
    workloads = [
        msgspec.structs.replace(made.WORKLOAD, **{name: value})
        for name, value in {
            "model": "m", "revision": "s", "dtype": "float16", "timed": "t", "text": "u",
            "text_digest": "e", "n_tokens": 4,
        }.items()
    ]  # fmt: skip
    assert len({folder_name(each) for each in (made.WORKLOAD, *workloads)}) == 8
    places = [msgspec.structs.replace(where, **{name: "x"}) for name in ("device", "torch")]
    assert len({store.path(plain, made.WORKLOAD, each) for each in (where, *places)}) == 3


def test_the_source_of_a_text_is_no_part_of_a_workload() -> None:
    """The same tokens from a folder and from the hub are one text."""
    hub = msgspec.structs.replace(made.WORKLOAD, text_source="hub x@y")
    assert folder_name(hub) == folder_name(made.WORKLOAD)


def test_file_names_hold_no_signs_that_a_system_refuses(tmp_path: Path) -> None:
    configuration = Configuration(EvictionPolicy(4, 60, 3, 2, 8), "streaming")
    path = Store(tmp_path).path(configuration, made.WORKLOAD, RECORD.environment)
    assert path.stem[:-9] == "streaming-S4-W60-slack3-drop2-R8"
