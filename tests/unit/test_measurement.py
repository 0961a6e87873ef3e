"""Measurements: written all or nothing, read back the same, else refused; where they are kept."""

import errno
import io
import math
import os
import random
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from streamcache import machine
from streamcache.files import write_bytes
from streamcache.measure import checked, measurement, store
from streamcache.measure.checked import RecordError
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.measure.measurement import Measurement
from streamcache.measure.store import Store, folder_name
from streamcache.policy import EvictionPolicy
from tests import made

RECORD = made.record(NAMED["best"])
ARRAYS = np.linspace(1, 2, 2999), np.linspace(5, 6, 64)


def test_a_measurement_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "best.json"
    measurement.write(path, Measurement(RECORD, *ARRAYS))
    found = measurement.read(path)
    assert msgspec.structs.replace(found.record, arrays={}) == RECORD and found.path == path
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
    checked.write_struct(path, RECORD)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"no space.*/record\.json"):
        write_bytes(path, b"half of a rec")
    assert checked.read_struct(measurement.Record, path, "record") == RECORD
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
    checked.write_struct(target, RECORD)
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"


def test_an_array_is_read_back_whole_or_not_at_all(tmp_path: Path) -> None:
    path = measurement.array_path(tmp_path / "x.R16.json", "nll")
    assert path.name == "x.R16.nll.npy"
    data = checked.array_bytes([1.0, 2.0, 3.0])
    path.write_bytes(data)
    assert np.array_equal(checked.read_array(path, 3, checked.sha256(data)), [1, 2, 3])
    with pytest.raises(RecordError, match=r"\(4,\)"):
        checked.read_array(path, 4, checked.sha256(data))
    for other in (data[:-5], b"", b"no numbers", checked.array_bytes([1.0, 2.0, 4.0])):
        path.write_bytes(other)
        with pytest.raises(RecordError, match=r"x\.R16\.nll\.npy cannot be read: damaged"):
            checked.read_array(path, 3, checked.sha256(data))


def test_an_array_with_a_right_checksum_and_no_numbers_is_one_line(tmp_path: Path) -> None:
    """Whoever made it: numpy raises errors of many kinds, and takes pickles and archives."""
    path = tmp_path / "x.nll.npy"
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    archive = io.BytesIO()
    np.savez(archive, [1.0])
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    for data in (
        *(header.replace(b"%s", shape).ljust(128) for shape in (b"9" * 15 + b",", b"'x',", b"((")),
        *(archive.getvalue(), pickled.getvalue(), b"PK\x03\x04", b"\x80\x04", b""),
    ):
        path.write_bytes(data)
        with pytest.raises(RecordError, match=r"x\.nll\.npy (cannot be read|has the shape)"):
            checked.read_array(path, 3, checked.sha256(data))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "not a readable"),
        (b"{}", "not a readable"),
        (b"\xff\xfe", "not a readable"),
        (b'{"schema": "streamcache-diagnosis"}', "not a readable"),
        (msgspec.json.encode(RECORD)[:-20], "not a readable"),
        (msgspec.json.encode(msgspec.structs.replace(RECORD, version=1)), "schema version 1"),
        (msgspec.json.encode(RECORD), "damaged or edited: its checksum is another one"),
        (b"[" * 100_000, "not a readable"),
        (b'"\\ud800"', "not a readable"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=words):
        measurement.read(path)


def flipped(data: bytes, bits: Iterable[int]) -> Iterator[bytes]:
    for bit in bits:
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        yield bytes(other)


class Disk:
    """Files whose content is replaced on the way: of every bit no file need be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.content: dict[Path, bytes] = {}
        monkeypatch.setattr(checked, "read_bytes", self.read)

    def read(self, path: Path, max_bytes: int) -> bytes:
        return self.content[path] if path in self.content else path.read_bytes()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_record_with_a_flipped_bit_is_refused_or_says_the_same(
    tmp_path: Path, disk: Disk
) -> None:
    """Every bit of it. What says the same: white space, and a default that is not read."""
    path = tmp_path / "best.json"
    written = measurement.write(path, Measurement(RECORD, *ARRAYS)).record
    data, refused = path.read_bytes(), 0
    for other in flipped(data, range(8 * len(data))):
        disk.content[path] = other
        try:
            assert checked.read_struct(measurement.Record, path, "record") == written
        except RecordError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 0.9 * 8 * len(data)


def test_an_array_with_a_flipped_bit_is_refused(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "best.json"
    measurement.write(path, Measurement(RECORD, *ARRAYS))
    array = measurement.array_path(path, "nll")
    data = array.read_bytes()
    bits = random.Random(0).sample(range(8 * len(data)), 2_000)
    for other in flipped(data, [*range(1024), *bits]):
        disk.content[array] = other
        with pytest.raises(RecordError, match=r"best\.nll\.npy cannot be read: damaged"):
            measurement.read(path)


def test_a_partial_baseline_with_a_flipped_bit_is_begun_anew(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "baseline.json"
    store.write_partial(path, "0123abcd", [1.0, 2.5])
    file = store.partial_path(path)
    data = file.read_bytes()
    for other in flipped(data, range(8 * len(data))):
        disk.content[file] = other
        assert store.read_partial(path, "0123abcd") in ([], [1.0, 2.5])


def test_a_record_with_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    assert RECORD.quality is not None
    for value in (math.nan, math.inf):
        quality = msgspec.structs.replace(RECORD.quality, ppl=value)
        with pytest.raises(RecordError, match=r"could not be read back.*ppl"):
            checked.write_struct(
                tmp_path / "x.json", msgspec.structs.replace(RECORD, quality=quality)
            )


@pytest.mark.parametrize("made_by", ["pipe", "device", "folder", "endless link", "long file"])
def test_only_files_of_a_sensible_length_are_read(tmp_path: Path, made_by: str) -> None:
    """A pipe would hang for ever, a device has no end."""
    path = tmp_path / "x.json"
    if made_by == "pipe":
        os.mkfifo(path)
    elif made_by == "device":
        path.symlink_to("/dev/zero")
    elif made_by == "folder":
        path.mkdir()
    elif made_by == "endless link":
        path.symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(checked.MAX_BYTES + 1)
    with pytest.raises(RecordError, match=r"x\.json is not a readable streamcache record: \w+"):
        measurement.read(path)


def test_a_record_has_the_environment_it_was_made_in() -> None:
    assert RECORD.environment.cpu == machine.cpu_model() != ""
    assert measurement.environment(torch.device("cpu")) == RECORD.environment


def test_the_commit_is_that_of_the_checkout_of_this_package(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@y")
        ran = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return ran.stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    init = package / "__init__.py"
    init.write_text("")
    commit_of = machine.source_commit.__wrapped__
    assert commit_of(package) is None, "no checkout"
    git("init", "-q")
    assert commit_of(package) is None, "installed within the checkout of something else"
    git("add", ".")
    git("commit", "-qm", "Add")
    head = git("rev-parse", "HEAD")[:12]
    assert commit_of(package) == head
    init.write_text("changed = True")
    assert commit_of(package) == f"{head}+"


# The store


def test_a_measurement_is_found_by_its_fields_under_any_label(tmp_path: Path) -> None:
    kept, where = Store(tmp_path), RECORD.environment
    first = kept.path(NAMED["ours-standard"], made.WORKLOAD, where)
    kept.put(first, Measurement(made.record(NAMED["ours-standard"]), *ARRAYS))
    assert NAMED["lazy-R1"] == NAMED["ours-standard"], "the label is no part of the identity"
    second = kept.path(NAMED["lazy-R1"], made.WORKLOAD, where)
    assert second == first and (found := kept.find(second)) is not None
    assert found.record.label == "ours-standard"
    kept.put(second, Measurement(made.record(NAMED["lazy-R1"]), *ARRAYS))
    assert len(list(tmp_path.rglob("*.json"))) == 1, "one measurement has one file"


def test_every_field_of_configuration_and_workload_counts(tmp_path: Path) -> None:
    kept, where = Store(tmp_path), RECORD.environment
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
    paths = {kept.path(each, made.WORKLOAD, where).stem[-8:] for each in (plain, *others)}
    assert len(paths) == 1 + len(others)
    workloads = [
        msgspec.structs.replace(made.WORKLOAD, **{name: value})
        for name, value in {
            "model": "m", "revision": "s", "dtype": "float16", "timed": "t", "text": "u",
            "text_digest": "e", "n_tokens": 4,
        }.items()
    ]  # fmt: skip
    assert len({folder_name(each) for each in (made.WORKLOAD, *workloads)}) == 8
    places = [msgspec.structs.replace(where, **{name: "x"}) for name in ("device", "cpu", "torch")]
    assert len({kept.path(plain, made.WORKLOAD, each) for each in (where, *places)}) == 4


def test_the_source_of_a_text_is_no_part_of_a_workload() -> None:
    """The same tokens from a folder and from the hub are one text."""
    hub = msgspec.structs.replace(made.WORKLOAD, text_source="hub x@y")
    assert folder_name(hub) == folder_name(made.WORKLOAD)


def test_file_names_hold_no_signs_that_a_system_refuses(tmp_path: Path) -> None:
    configuration = Configuration(EvictionPolicy(4, 60, 3, 2, 8), "streaming")
    path = Store(tmp_path).path(configuration, made.WORKLOAD, RECORD.environment)
    assert path.stem[:-9] == "streaming-S4-W60-slack3-drop2-R8"
