"""Files that the release before wrote, by its own code, on the packaged model and text."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcache.measure.checked import RecordError
from streamcache.measure.measurement import Record
from streamcache.measure.version1 import NOTE, from_version_1, is_version_1
from streamcache.policy import EvictionPolicy, Evictions
from streamcache.report.collect import collect
from tests.shell import Run

FILES = Path(__file__).parent / "version1"
POLICY = EvictionPolicy(4, 40, cache_slack=2, max_drop=3, compress_every=4)


def content(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / f"{name}.json").read_text())
    return found


def record(name: str) -> Record:
    found = from_version_1(content(name))
    assert isinstance(found, Record)
    return found


def test_a_record_says_what_it_said() -> None:
    found, old = record("eval"), content("eval")
    assert found.policy == POLICY and found.cache == "streaming"
    assert (found.label, found.sizes.floor, found.sizes.total) == (old["configuration"], 44, 46)
    assert found.evictions == Evictions(28, 29, 115) and found.notes == (NOTE,)
    assert found.quality is not None and found.quality.ppl == old["quality"]["ppl"]
    speed = found.speed
    assert speed is not None and speed.baseline_ms == old["speed"]["baseline_mean_ms"]
    assert speed.speedup == pytest.approx(old["speed"]["speedup"]) and speed.speedup_error is None
    for name in ("model", "revision", "text_digest", "n_tokens"):
        assert getattr(found.workload, name) == old["subject"][name]
    for name, value in old["environment"].items():
        assert getattr(found.environment, name) == value


def test_what_was_part_of_a_name_is_a_field() -> None:
    assert record("base").recomputes
    captured = record("captured")
    assert (captured.cache, captured.configuration["engine"]) == ("ring", "captured")
    assert (captured.workload.dtype, captured.configuration["weights"]) == ("float32", "int8")
    refresh = record("refresh")
    assert (refresh.cache, refresh.configuration["refresh"]) == ("reference", 8)
    assert refresh.sizes.total == 64


def test_a_folder_of_it_is_summarised(run: Run, tmp_path: Path) -> None:
    shutil.copytree(FILES, tmp_path / "runs")
    found = collect(tmp_path / "runs")
    assert [len(group.rows) for group in found.groups] == [3, 1] and not found.bad
    (nll,) = [row.nll for group in found.groups for row in group.rows if row.nll is not None]
    assert np.exp(nll.mean()) == pytest.approx(content("eval")["quality"]["ppl"], rel=1e-6)
    ran = run("summarize")
    assert ran.status == 0 and not ran.err
    text = (tmp_path / "runs" / "summary.md").read_text()
    assert "4/40/2/3/4" in text and "59.41×" in text and NOTE in text
    assert "S=4 W=60 R=32" in text and "| aten::addmm |" in text


def changed(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a JSON value; of a list only the first is tried."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, each in value.items():
            yield from changed(each, (*path, key))
    elif isinstance(value, list) and value:
        yield from changed(value[0], (*path, 0))


@pytest.mark.parametrize("name", ["base", "eval", "refresh", "diagnosis", "profile"])
def test_a_field_that_is_missing_or_of_another_type_is_one_line(name: str) -> None:
    whole, n_refused = content(name), 0
    for path in changed(whole):
        new: Any
        for new in (None, -1, 0, 1e308, "", "x", [], {}, [[1]], True):
            other = copy.deepcopy(whole)
            at = other
            for key in path[:-1]:
                at = at[key]
            if new is None:
                del at[path[-1]]
            else:
                at[path[-1]] = new
            if not is_version_1(other):
                continue
            try:
                from_version_1(other)
            except RecordError as error:
                assert str(error).startswith("damaged") and "\n" not in str(error)
                n_refused += 1
    assert n_refused > 100
