"""Recompute baselines that the release before wrote, by its own command, on the packaged model."""

import copy
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from streamcache.decoding.recompute import recompute_nll
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import load_model
from streamcache.measure import baseline, measurement
from streamcache.measure.baseline import BaselineMismatch
from streamcache.measure.checked import Floats, RecordError
from streamcache.measure.configurations import RECOMPUTE, Configuration
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.version1 import from_version_1, is_version_1
from streamcache.measure.version1_baseline import NOTE, Fingerprint, baseline_of
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy
from streamcache.report.collect import collect
from tests.shell import Run
from tests.unit.test_version1 import changed

FILES = Path(__file__).parent / "version1" / "baselines"
FINISHED = FILES / "reference-stream-d4834546f777.json"
UNFINISHED = FILES / "reference-stream-8ff581756fd4.json"  # 48 of 72 positions
INT8 = FILES / "reference-stream-f7c787d4d4e7.json"
WINDOW = EvictionPolicy(4, 28)
BASELINE = Configuration(WINDOW, RECOMPUTE, label="baseline")
STREAMING = Configuration(WINDOW, "streaming")


def positions(n: int) -> What:
    return What(positions=n, tpot_tokens=0)


@pytest.fixture(scope="module")
def workload() -> Workload:
    loaded = load_model("reference", dtype="float32", device="cpu")
    text = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=100)
    return Workload(loaded, text, window=WINDOW)


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def put(path: Path, folder: Path, **changes: Any) -> Path:
    """A baseline as it was kept in a folder of measurements, as if it had been made here."""
    here = msgspec.structs.asdict(measurement.environment(torch.device("cpu")))
    made = {name: here[name] for name in ("device", "torch", "transformers", "streamcache")}
    old = content(path)
    fingerprint = msgspec.convert({**old["fingerprint"], **made}, Fingerprint)
    name = re.sub(r"[0-9a-f]{12}", fingerprint.name, path.name)
    target = folder / "baselines" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    old["fingerprint"] = {**msgspec.structs.asdict(fingerprint), **changes}
    target.write_text(json.dumps(old))
    return target


@pytest.mark.parametrize("path", [FINISHED, UNFINISHED, INT8], ids=["whole", "begun", "int8"])
def test_a_file_has_the_name_by_which_it_is_looked_up(path: Path) -> None:
    found = baseline_of(content(path))
    assert found.fingerprint.path(FILES.parent) == path
    assert (found.quality is None) == (path == UNFINISHED)
    weights = "int8" if path == INT8 else None
    wanted = dataclasses.replace(BASELINE, weights=weights)
    old, here = found.fingerprint, measurement.environment(torch.device("cpu"))
    where = msgspec.structs.replace(
        here, device=old.device, torch=old.torch, transformers=old.transformers
    )
    subject = measurement.WorkloadRecord(
        "reference", old.revision, "float32", "", "stream", "packaged", old.text_digest, 100
    )
    assert Fingerprint.of(wanted, subject, where, old.late_positions) == old


def test_the_store_and_a_file_give_what_was_measured(
    tmp_path: Path, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = run(BASELINE, workload, positions(12))
    monkeypatch.setattr(baseline, "recompute_nll", lambda *a, **k: pytest.fail("measured again"))
    path = put(FINISHED, tmp_path)
    for file in (None, path):
        found = run(BASELINE, workload, positions(12), Store(tmp_path), baseline_file=file)
        assert found.path == path and found.record.notes == (NOTE,)
        assert np.array_equal(nll_of(found), content(FINISHED)["nll"])
        assert nll_of(found) == pytest.approx(nll_of(again), abs=1e-4)
        assert found.record.quality is not None and again.record.quality is not None
        assert found.record.quality.ppl == pytest.approx(again.record.quality.ppl, rel=1e-4)
        assert found.record.quality.late_positions == 12


def nll_of(found: measurement.Measurement) -> Floats:
    assert found.nll is not None
    return found.nll


def test_what_is_compared_with_one_says_so(tmp_path: Path, workload: Workload) -> None:
    put(FINISHED, tmp_path)
    store = Store(tmp_path)
    found = run(STREAMING, workload, positions(12), store)
    assert found.record.quality is not None and found.record.quality.n_compared == 12
    assert found.path is not None and measurement.read(found.path).record.notes == (NOTE,)
    today = run(STREAMING, workload, positions(12))
    assert today.record.quality is not None and today.record.notes == ()
    assert found.record.quality.ppl_increase == pytest.approx(
        today.record.quality.ppl_increase, abs=1e-4
    )
    timed = run(BASELINE, workload, dataclasses.replace(positions(12), tpot_tokens=8), store)
    assert timed.path is not None and timed.path.parent.name != "baselines", "with times it is new"
    assert measurement.read(timed.path).record.notes == (NOTE,)
    assert not collect(tmp_path).bad


@pytest.mark.parametrize("is_named", [False, True])
def test_one_that_was_interrupted_is_finished(
    tmp_path: Path, workload: Workload, monkeypatch: pytest.MonkeyPatch, is_named: bool
) -> None:
    expected = run(BASELINE, workload, positions(40))
    fed: list[int] = []

    def watched(*arguments: Any, **others: Any) -> torch.Tensor:
        fed.extend(arguments[4].tolist())
        return recompute_nll(*arguments, **others)

    monkeypatch.setattr(baseline, "recompute_nll", watched)
    path, store = put(UNFINISHED, tmp_path), Store(tmp_path)
    file = path if is_named else None
    found = run(BASELINE, workload, positions(40), store, baseline_file=file)
    assert len(fed) == 72 - 48 and found.record.notes == (NOTE,)
    assert nll_of(found) == pytest.approx(nll_of(expected), abs=1e-4)
    assert np.array_equal(nll_of(found)[:48], content(UNFINISHED)["nll"])
    assert found.path is not None and (found.path == path) == is_named
    assert measurement.read(found.path).record == found.record, "and is of this version"


OTHER = {
    "model": "other",
    "revision": "sha256:0123456789abcdef",
    "dtype": "float32 int8",
    "text_digest": "0" * 64,
    "n_tokens": 101,
    "n_sink": 3,
    "window_size": 29,
    "late_positions": 11,
    "device": "cpu riscv",
    "torch": "2.0",
    "transformers": "",
    "streamcache": "0.0.9",
}


@pytest.mark.parametrize("name", Fingerprint.__struct_fields__)
def test_one_of_something_else_is_refused(tmp_path: Path, workload: Workload, name: str) -> None:
    file = put(FINISHED, tmp_path, **{name: OTHER[name]})
    values = content(file)
    values["nll"] = values["nll"][:40]
    file.write_text(json.dumps(values))
    with pytest.raises(BaselineMismatch, match=rf"its {name} is {OTHER[name]!r}.*--baseline-file"):
        run(BASELINE, workload, positions(12), Store(tmp_path), baseline_file=file)
    found = run(BASELINE, workload, positions(12), Store(tmp_path))
    assert found.record.notes == () and found.path != file, "its name alone is not trusted"


def test_a_damaged_one_is_named_and_measured_again(tmp_path: Path, workload: Workload) -> None:
    path, store = put(FINISHED, tmp_path), Store(tmp_path)
    path.write_text(path.read_text()[:-4])
    with pytest.raises(RecordError, match=re.escape(str(path))):
        run(BASELINE, workload, positions(12), store, baseline_file=path)
    broken = content(put(FINISHED, tmp_path))
    broken["nll"][3] += 1e-9
    path.write_text(json.dumps(broken))
    said = rf"{re.escape(str(path))} is not .*damaged: its NLL 3 is .*; the baseline is measured"
    with pytest.raises(RecordError, match="no model has predicted"):
        run(BASELINE, workload, positions(12), store, baseline_file=path)
    assert any("its NLL 3" in line for line in collect(tmp_path).bad)
    with pytest.warns(UserWarning, match=said):
        found = run(BASELINE, workload, positions(12), store)
    assert found.record.notes == () and found.path != path


def test_few_flipped_bits_are_not_seen() -> None:
    """Every bit of a file. What passes: the first digit of an NLL, 8.379... in place of 9.379..."""
    data, whole = FINISHED.read_bytes(), baseline_of(content(FINISHED))
    n_refused = n_of_another = n_passed = 0
    for bit in range(8 * len(data)):
        other = bytearray(data)
        other[bit // 8] ^= 1 << bit % 8
        try:
            decoded = msgspec.json.decode(bytes(other))
            assert is_version_1(decoded)
            found = baseline_of(decoded)
        except (msgspec.MsgspecError, UnicodeError, AssertionError, RecordError):
            n_refused += 1
            continue
        if found.fingerprint != whole.fingerprint:
            n_of_another += 1  # refused where it is compared
        elif not np.array_equal(found.nll, whole.nll):
            (changed_at,) = np.flatnonzero(found.nll != whole.nll)
            difference = found.nll[changed_at] - whole.nll[changed_at]
            assert difference in (1, -1, 2, -2, 4, -4, 8, -8), "all digits behind the point hold"
            n_passed += 1
    assert n_refused + n_of_another > 11_000 and n_passed == 77  # of 11,120


@pytest.mark.parametrize("name", ["n_tokens", "n_sink", "window_size", "late_positions"])
@pytest.mark.parametrize("value", [-1, 1 << 40, 1 << 62, 1 << 70, 1e300, 3.5, True, "4"])
def test_numbers_of_a_stranger_take_no_memory(name: str, value: object) -> None:
    old = content(FINISHED)
    old["fingerprint"][name] = value
    try:
        assert len(baseline_of(old).nll) == 44
    except RecordError as error:
        assert str(error).startswith("damaged") and "\n" not in str(error)


@pytest.mark.parametrize("value", [-0.5, 3.4e38, 1e39, 1e-50, 0.1, None, "1", [1.0]])
def test_an_nll_that_no_model_predicts_is_refused(value: object) -> None:
    old = content(FINISHED)
    old["nll"][0] = value
    with pytest.raises(RecordError, match="damaged"):
        baseline_of(old)


def test_a_field_that_is_missing_or_of_another_type_is_one_line() -> None:
    whole, n_refused = content(FINISHED), 0
    for path in changed(whole):
        new: Any
        for new in (None, -1, 0, 1e308, "", "x", [], {}, [[1]], True):
            other = copy.deepcopy(whole)
            at: Any = other
            for key in path[:-1]:
                at = at[key]
            if new is None:
                del at[path[-1]]
            else:
                at[path[-1]] = new
            try:
                if is_version_1(other):
                    from_version_1(other)
            except RecordError as error:
                assert str(error).startswith("damaged") and "\n" not in str(error)
                n_refused += 1
    assert n_refused > 60


def test_a_record_without_nlls_is_no_baseline(tmp_path: Path, workload: Workload) -> None:
    path = FILES.parent / "base.json"
    with pytest.raises(RecordError, match="schema version 1"):
        run(BASELINE, workload, positions(12), Store(tmp_path), baseline_file=path)


def test_the_command_prints_where_its_baseline_is_from(run: Run, tmp_path: Path) -> None:
    path = put(FINISHED, tmp_path)
    size = ("--dtype", "float32", "--max-eval-tokens", "100", "--positions", "12")
    window = ("--n-sink", "4", "--window-size", "28", "--mode", "baseline", "--runs", "1")
    ran = run("eval", *size, *window, "--device", "cpu", "--baseline-file", str(path))
    assert ran.status == 0 and "without a checksum, written by version 1" in " ".join(
        ran.out.split()
    )
