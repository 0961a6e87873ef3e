"""The published figures: they are bands, and on another card neither pass nor fail."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamcache.gate import goldens, storage
from streamcache.gate.goldens import Entry
from streamcache.measure.configurations import NAMED
from streamcache.policy import fields_that_are_set
from tests.bench.test_gpu import TIMED

ROOT = Path(__file__).parents[2]
PUBLISHED = storage.read(ROOT / "tests" / "golden" / "a800.json")
BENCHMARK = "tests/bench/test_gpu.py::test_configuration"
READ = "tests/bench/test_gpu.py::test_quality"
POLICY = ("n_sink", "window_size", "cache_slack", "max_drop", "compress_every")
CARD = "NVIDIA A800-SXM4-80GB"
# What a run on the card of `DEVICE` would measure: the middle of each band, a PPL below its budget.
MADE_UP = """
import itertools, json, os
import pytest
from streamcache.gate import Environment

ENTRIES = json.loads(os.environ["ENTRIES"])

class Card:
    def sample(self):
        return Environment({"device": os.environ["DEVICE"], "memory_gib": 80}, {"cpu": "any"})

@pytest.fixture(scope="session")
def golden_environment():
    return Card()

def say(golden, entry):
    golden.identity(**entry["identity"], attention="sdpa")
    golden.equal(text="0123")
    golden.metric("ppl", 12.0, rel_tol=1e-3)
    if entry["ppl"]:
        golden.metric("ppl / baseline", entry["ppl"], rel_tol=1e-3)

@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e["speedup"]])
def test_configuration(name, benchmark, golden):
    say(golden, ENTRIES[name])
    golden.time(benchmark, lambda: 0.1 / ENTRIES[name]["speedup"], lambda: 0.1)

@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if not e["speedup"]])
def test_quality(name, golden):
    say(golden, ENTRIES[name])

def test_decoding(golden):
    golden.equal(decoded=400)
"""


def name_of(key: str) -> str:
    return key.partition("[")[2].strip("]")


def made_up(entry: Entry) -> dict[str, Any]:
    ppl = entry.metrics["ppl / baseline"].value - 0.01 if entry.metrics else None
    middle = (
        math.sqrt(entry.published_range.low * entry.published_range.high)
        if entry.published_range
        else None
    )
    return {"speedup": middle, "ppl": ppl, "identity": entry.identity}


@pytest.fixture
def bench(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    for variable in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(variable, raising=False)
    entries = {name_of(key): made_up(entry) for key, entry in PUBLISHED.entries.items()}
    monkeypatch.setenv("ENTRIES", json.dumps(entries))
    monkeypatch.setenv("DEVICE", CARD)
    folder = pytester.path / "tests"
    (folder / "golden").mkdir(parents=True)
    (folder / "bench").mkdir()
    storage.write(folder / "golden" / "a800.json", PUBLISHED)
    (folder / "bench" / "test_gpu.py").write_text(MADE_UP)
    (pytester.path / "pytest.ini").write_text("[pytest]\n")
    return pytester


def gate(bench: pytest.Pytester) -> pytest.RunResult:
    return bench.runpytest_inprocess(
        "--golden=a800", "--golden-required", "--benchmark-json=a.json"
    )


def statuses(bench: pytest.Pytester) -> dict[tuple[str, str], str]:
    found = json.loads((bench.path / "a.json").read_text())["streamcache"]["verdicts"]
    return {(v["name"], v["check"]): v["status"] for v in found}


def test_the_a800_golden_says_that_it_was_published_and_not_measured() -> None:
    assert PUBLISHED.is_published and PUBLISHED.machine == {"device": CARD}
    assert PUBLISHED.provenance.reason.startswith("published, not measured here")


def test_every_entry_is_a_benchmark_of_a_configuration_as_it_is_today() -> None:
    for key, entry in PUBLISHED.entries.items():
        configuration = NAMED[name_of(key)]
        assert key.partition("[")[0] == (BENCHMARK if configuration.name in TIMED else READ)
        policy = fields_that_are_set(configuration.policy)
        assert {k: v for k, v in entry.identity.items() if k in POLICY} == policy
        assert entry.identity["dtype"] == "float16" and entry.identity["n_tokens"] == 20_000
        assert bool(entry.published_range) == (configuration.name in TIMED) and not entry.log_ratios


def test_the_card_passes_within_the_bands(bench: pytest.Pytester) -> None:
    """What was not published, here a decoding, is no failure either."""
    assert gate(bench).ret == 0
    found = statuses(bench)
    assert found.pop(("tests/bench/test_gpu.py::test_decoding", "golden")) == "inconclusive"
    assert set(found.values()) == {"pass"}
    assert {name for name, _ in found} == set(PUBLISHED.entries)
    assert sum(check == "speed" for _, check in found) == 4


def test_another_card_is_invalid_in_every_entry(
    bench: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVICE", "NVIDIA H200")
    ran = gate(bench)
    assert ran.ret == 75
    ran.stdout.fnmatch_lines([f"*another machine: device is 'NVIDIA H200', not '{CARD}'*"])
    found = statuses(bench)
    assert {name for name, _ in found} >= set(PUBLISHED.entries)
    assert set(found.values()) == {"invalid"}


@pytest.mark.parametrize(
    ("change", "check", "status"),
    [
        ({"speedup": 6.0}, "speed", 1),
        ({"ppl": 1.0283}, "ppl / baseline", 1),
        ({"speedup": 9}, "", 0),
    ],
)
def test_below_the_band_or_over_the_budget_fails(
    change: dict[str, float],
    check: str,
    status: int,
    bench: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = {name_of(key): made_up(entry) for key, entry in PUBLISHED.entries.items()}
    entries["best"].update(change)
    monkeypatch.setenv("ENTRIES", json.dumps(entries))
    assert gate(bench).ret == status
    failed = [key for key, status in statuses(bench).items() if status == "fail"]
    assert failed == ([(f"{BENCHMARK}[best]", check)] if check else [])


def test_the_file_is_in_the_order_that_an_update_would_write(tmp_path: Path) -> None:
    storage.write(tmp_path / "again.json", PUBLISHED)
    written = (ROOT / "tests" / "golden" / "a800.json").read_bytes()
    assert (tmp_path / "again.json").read_bytes() == written
    assert msgspec.json.decode(written)["version"] == goldens.VERSION
