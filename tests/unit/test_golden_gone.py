"""A run that measured nothing, or that lost a benchmark, is never green."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamcache.gate import samples, storage
from streamcache.gate.goldens import Entry, Golden, Provenance, PublishedRange

SUITE = """
import time
from streamcache.measure.pairs import Stopwatch
def block():
    with Stopwatch() as host:
        sum(range(100_000))
    return host.seconds
def test_kept(golden, benchmark):
    golden.time(benchmark, block, lambda: 10 * block())
def test_lost(golden):
    golden.metric("two", 2.0, rel_tol=0.0)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, without what CI sets around this one."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "GITHUB_STEP_SUMMARY")}
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=kept)


def rewrite(folder: Path, old: str, new: str) -> None:
    path = folder / "test_it.py"
    path.write_text(path.read_text().replace(old, new))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """A golden of the suite; times are not the matter here, so any speedup is right."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "test_it.py").write_text(SUITE)
    ran = run(folder, "--golden-samples=one.json")
    assert ran.returncode == 0, ran.stdout
    process = samples.read(folder / "one.json")
    entries = {
        s.name: Entry(
            identity=s.identity,
            metrics=s.metrics,
            equal=s.equal,
            published_range=PublishedRange(0.01, 1e4) if s.pairs else None,
        )
        for s in process.samples
    }
    place = process.environment
    made = Provenance("a test", "2026-01-01", "unknown", 1)
    return Golden(made, place.machine, place.host, place.canaries, entries)


@pytest.fixture
def suite(recorded: Golden, tmp_path: Path) -> Path:
    (tmp_path / "test_it.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\ngolden_dir = .\n")
    storage.write(tmp_path / "own.json", recorded)
    return tmp_path


def test_all_there_is_green(suite: Path) -> None:
    ran = run(suite, "--golden=own", "--golden-required")
    assert ran.returncode == 0, ran.stdout


def test_a_benchmark_that_is_gone_is_a_failing_test(suite: Path) -> None:
    rewrite(suite, "test_lost", "helper")
    ran = run(suite, "--golden=own", "--junitxml=out.xml")
    assert ran.returncode == 1 and "MISSING benchmark" in ran.stdout, ran.stdout
    assert "its benchmark no longer exists" in (suite / "out.xml").read_text()
    again = run(suite, "--golden=own", "--lf")
    assert again.returncode == 5, "nothing but the lost one: nothing is measured"
    assert "MISSING benchmark" in again.stdout


def test_a_benchmark_that_was_not_selected_is_not_missing(suite: Path) -> None:
    rewrite(suite, "test_lost", "helper")
    assert run(suite, "--golden=own", "test_it.py::test_kept").returncode == 0
    assert run(suite, "--golden=own", "-k", "kept").returncode == 1, "-k leaves out, deletes not"


def test_deselected_goldens_are_counted_and_fail_only_where_required(suite: Path) -> None:
    ran = run(suite, "--golden=own", "-k", "kept")
    assert ran.returncode == 0 and "NOT MEASURED: 1 of 2" in ran.stdout
    assert run(suite, "--golden=own", "-k", "kept", "--golden-required").returncode == 1


def test_nothing_measured_is_never_green(suite: Path) -> None:
    rewrite(suite, "import time\n", "import pytest\npytestmark = pytest.mark.skip('no device')\n")
    for more in ((), ("--golden-required",)):
        assert run(suite, "--golden=own", *more).returncode == 5


@pytest.mark.parametrize("option", ["--benchmark-disable", "--benchmark-skip"])
def test_benchmarks_disabled_are_refused(suite: Path, option: str) -> None:
    ran = run(suite, "--golden=own", option)
    assert ran.returncode == 4 and "measure nothing" in ran.stderr


def test_the_process_that_confirms_knows_that_another_waits_for_it(suite: Path) -> None:
    parent = "import os\nfrom streamcache.gate.environment import PARENT\n"
    text = SUITE.replace("import time\n", parent).replace("10 * block()", "1.0")
    text = text.replace(
        "    return host.seconds\n", "    return 1.0 if PARENT in os.environ else 1e9\n"
    )
    (suite / "test_it.py").write_text(text)
    ran = run(suite, "--golden=own")
    assert ran.returncode == 0 and "does not agree" in ran.stdout
