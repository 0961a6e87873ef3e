"""The gate as its users meet it: pytest runs on the example of docs/gate.md, and their exit codes.

The example runs as it stands in the docs. Its clock is replaced by one that is told what to say,
but for the last test.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from streamcache.gate import goldens, history, storage
from streamcache.gate.environment import PARENT
from streamcache.gate.plugin import recording

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "gate.md").read_text()
EXAMPLE, MARKERS = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
NAME = "test_toy.py::test_sort"
SURROUNDINGS = """
import itertools, os, time
from pathlib import Path
import pytest
from streamcache.gate import Environment
from streamcache.gate.environment import PARENT
from streamcache.gate.environment import PARENT

class Toy:
    snapshots = 0

    def sample(self):
        self.snapshots += 1
        problems = [os.environ["TOY_PROBLEM"]] if "TOY_PROBLEM" in os.environ else []
        if os.environ.get("TOY_PROBLEM_AT", str(self.snapshots)) != str(self.snapshots):
            problems = []
        machine = {"device": os.environ.get("TOY_DEVICE", "toy")}
        host = {"cpu": os.environ.get("TOY_HOST", "abacus")}
        return Environment(machine, host, context={"toys": "1"}, problems=problems)

@pytest.fixture(scope="session")
def golden_environment():
    return Toy()
"""
CLOCK = """
def slowdown():
    once = Path(os.environ.get("TOY_SLOW_ONCE", "none"))
    if once.exists():
        once.unlink()
        return 1.2
    return float(os.environ.get("TOY_SLOWDOWN", "1"))

@pytest.fixture(autouse=True)
def clock(request, monkeypatch):
    factor = slowdown()
    wiggle = itertools.cycle([1.0, 1.001, 0.999, 1.002])
    def seconds(work):
        took = {"sort": 0.002 * factor, "merge": 0.004}[work.__name__]
        return took * next(wiggle)
    monkeypatch.setattr(request.module, "seconds", seconds, raising=False)
    # Nor is anything busy.
    monkeypatch.setattr("streamcache.measure.pairs.run_queue_wait_s", lambda: 0.0)
"""


# Alone, since every process would spend most of its time importing the other plugins.
ALONE = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "streamcache.pytest_entry,pytest_benchmark.plugin",
}


def git(where: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=toy", "-c", "user.email=toy@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=where, check=True, capture_output=True)


def lay_out(where: Path, clock: str = CLOCK) -> None:
    """A repository with the example in it: a copy, since git takes longer."""
    shutil.copytree(Path(committed(clock).name), where, dirs_exist_ok=True)


@cache
def committed(clock: str) -> "TemporaryDirectory[str]":
    folder = TemporaryDirectory()
    where = Path(folder.name)
    (where / "test_toy.py").write_text(EXAMPLE)
    (where / "conftest.py").write_text(SURROUNDINGS + clock)
    (where / "pytest.ini").write_text("[pytest]\ngolden_dir = goldens\n")
    (where / ".gitignore").write_text("__pycache__\n.pytest_cache\n*.out\n")
    git(where, "init", "-q", "--template=")
    git(where, "add", ".")
    git(where, "commit", "-qm", "toy")
    return folder


RECORD = ["--golden=toy", "--golden-update", "--golden-reason", "first"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def shell(where: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, without what CI sets around this one."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "GITHUB_STEP_SUMMARY")}
    kept = {k: v for k, v in kept.items() if not k.startswith("PYTEST_")}
    environment = {**kept, **ALONE, **environment}
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, env=environment)


def only_our_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)


@cache
def record() -> str:
    """The golden of the example, from five processes."""
    with TemporaryDirectory() as folder:
        where = Path(folder)
        lay_out(where)
        ran = shell(where, *RECORD)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert f"+ {NAME}: average 0." in ran.stdout
        assert re.search(r"speedup (1.99|2.00)\d", ran.stdout)
        assert "process 5 of 5" in ran.stdout and "1 of 1 entries written" in ran.stdout
        return (where / "goldens" / "toy.json").read_text()


@pytest.fixture(autouse=True)
def only_our_plugins_here(monkeypatch: pytest.MonkeyPatch) -> None:
    only_our_plugins(monkeypatch)


@pytest.fixture
def recorded() -> str:
    """For all modules that use the toy: recorded once."""
    return record()


class Toy:
    """A repository with the example and its golden, and pytest in it."""

    def __init__(self, pytester: pytest.Pytester, golden: str):
        self.pytester, self.path = pytester, pytester.path
        lay_out(self.path)
        self.golden = self.path / "goldens" / "toy.json"
        self.golden.parent.mkdir()
        self.golden.write_text(golden)

    def __call__(self, *arguments: str, **more: bool) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess("--golden=toy", *arguments, **more)

    def edit(self, old: str, new: str, file: str = "test_toy.py") -> None:
        path = self.path / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def add(self, text: str, file: str = "conftest.py") -> None:
        with (self.path / file).open("a") as appended:
            appended.write(text)

    def adds_entry(self, name: str, **fields: object) -> None:
        self.by_hand(lambda entries: entries.update({name: fields}))

    def by_hand(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit the entries, and remove the checksum."""
        found = json.loads(self.golden.read_text())
        edit(found["entries"])
        found.pop("checksum", None)
        self.golden.write_text(json.dumps(found))

    def commit(self) -> None:
        git(self.path, "add", ".")
        git(self.path, "commit", "-qm", "changed")

    def unchanged(self, golden: str) -> bool:
        left = [path.name for path in self.golden.parent.iterdir()]
        return self.golden.read_text() == golden and left == ["toy.json"]


@pytest.fixture
def toy(pytester: pytest.Pytester, recorded: str, monkeypatch: pytest.MonkeyPatch) -> Toy:
    for name in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    only_our_plugins(monkeypatch)
    return Toy(pytester, recorded)


def said(ran: pytest.RunResult, *lines: str) -> None:
    ran.stdout.fnmatch_lines([f"*{line}*" for line in lines])


def one_line(ran: pytest.RunResult, *parts: str) -> None:
    """Refused with status 4 and a single line."""
    assert ran.ret == 4
    lines = [line for line in ran.errlines + ran.outlines if line.startswith("ERROR")]
    assert len(lines) == 1 and all(part in lines[0] for part in parts), ran.errlines
    assert "Traceback" not in "\n".join(ran.errlines + ran.outlines)


# Green and red


def test_an_unchanged_benchmark_is_green(toy: Toy) -> None:
    ran = toy("--golden-required")
    assert ran.ret == 0
    said(ran, "golden: toy, 1 entries, * from 5 processes: first", "golden: PASS (6 pass)")


def test_without_a_golden_nothing_is_gated(pytester: pytest.Pytester, recorded: str) -> None:
    lay_out(pytester.path)
    ran = pytester.runpytest_inprocess()
    assert ran.ret == 0
    ran.stdout.no_fnmatch_line("*golden:*")


def test_a_slowdown_is_red_when_a_fresh_process_agrees(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SLOWDOWN", "1.2")
    ran = toy("--junitxml=junit.out", "--golden-markdown=report.out")
    assert ran.ret == 1
    said(
        ran,
        "FAIL speed: slower by 20.0 ± * %; a fresh process agrees: slower by 20.0 ±",
        "golden: FAIL (3 fail, 3 pass)",
        f"to reproduce: pytest {NAME} --golden=toy",
        f"to accept, from a clean tree: pytest {NAME} --golden=toy --golden-update",
    )
    (case,) = ElementTree.parse(toy.path / "junit.out").iter("testcase")
    failure = case.find("failure")
    assert failure is not None and "FAIL speed" in (failure.text or "")
    report = (toy.path / "report.out").read_text()
    assert report.startswith("### golden: FAIL") and "to reproduce" in report


def test_a_slowdown_that_a_fresh_process_does_not_see_is_suspect(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = toy.path / "once.out"
    once.touch()
    monkeypatch.setenv("TOY_SLOW_ONCE", str(once))
    ran = toy()
    assert ran.ret == 0 and not once.exists()
    said(ran, "a fresh process does not agree", "golden: SUSPECT (3 suspect, 3 pass)")


def test_a_failure_that_cannot_be_confirmed_is_invalid(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = toy.path / "once.out"
    once.touch()
    monkeypatch.setenv("TOY_SLOW_ONCE", str(once))
    fragile = "found = sort()\n    import os; assert os.path.isdir('goldens/..') and FIRST()"
    toy.edit("found = sort()", fragile)
    toy.edit(
        "def sort():",
        "import sys\n\n\ndef FIRST():\n    return 'xyz' in sys.modules\n\n\ndef sort():",
    )
    monkeypatch.setitem(sys.modules, "xyz", sys)  # here, and in no fresh process
    ran = toy()
    assert ran.ret == 75
    said(ran, "a fresh process could not confirm: a process failed with status 1")


def test_confirmation_works_from_a_folder_below_and_with_options(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SLOWDOWN", "1.2")
    (toy.path / "below").mkdir()
    monkeypatch.chdir(toy.path / "below")
    ran = toy("..", "-k", "sort", "--benchmark-json=out.out")
    assert ran.ret == 1
    said(ran, "a fresh process agrees")
    json.loads((toy.path / "below" / "out.out").read_text())


def test_confirmation_measures_one_benchmark_and_leaves_no_files(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a file and a keyword have one name, and another file is named elsewhere."""
    monkeypatch.setenv("TOY_SLOWDOWN", "1.2")
    monkeypatch.setenv("PYTEST_ADDOPTS", "test_other.py")
    toy.add(
        f"import os\n\n\ndef test_toy():\n    assert {PARENT!r} not in os.environ\n",
        "test_other.py",
    )
    toy.edit("(benchmark, golden):", "(benchmark, golden, in_use):")
    toy.add(
        "\n@pytest.fixture\ndef in_use(tmp_path):\n    (tmp_path / 'x').touch()\n    yield\n"
        "    assert (tmp_path / 'x').exists()\n"
    )
    ran = toy("test_toy.py", "-k", "test_toy", "--basetemp=base.out", "--benchmark-save=x")
    assert ran.ret == 1
    said(ran, "a fresh process agrees")
    ran.assert_outcomes(failed=1, passed=1)
    assert len([*toy.path.glob(".benchmarks/*/*.json")]) == 1


def test_last_failed_runs_a_regression_again(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.edit("def test_sort", "def test_other():\n    pass\n\n\ndef test_sort")
    monkeypatch.setenv("TOY_SLOWDOWN", "1.2")
    assert toy().ret == 1
    monkeypatch.delenv("TOY_SLOWDOWN")
    ran = toy("--lf")
    ran.assert_outcomes(passed=1)  # and not the other


def test_a_figure_that_drifted_is_red_at_once(toy: Toy) -> None:
    toy.edit("statistics.fmean(found)", "statistics.fmean(found) * (1 + 1e-6)")
    ran = toy()
    assert ran.ret == 1
    said(ran, "FAIL average: average moved by +0.0001 %")


def test_a_figure_that_becomes_nan_fails(toy: Toy) -> None:
    toy.edit("statistics.fmean(found)", "float('nan')")
    ran = toy()
    assert ran.ret == 1
    said(ran, "FAIL average: average is nan: not a number")


def test_something_else_under_the_same_name_is_invalid(toy: Toy) -> None:
    toy.edit("length=500", "length=501")
    ran = toy()
    assert ran.ret == 76
    said(ran, "INVALID identity: not what the golden measured: length is 501, not 500")


def test_times_on_another_host_are_not_judged_and_it_says_so(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_HOST", "slide rule")
    ran = toy("--golden-required")
    assert ran.ret == 0
    said(ran, "NOT JUDGED: times of 1 benchmarks")


def test_another_machine_is_invalid(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_DEVICE", "abacus")
    ran = toy("--golden-required")
    assert ran.ret == 75
    said(ran, "INVALID machine: another machine: device is 'abacus', not 'toy'")


def test_a_disturbed_machine_is_invalid(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_PROBLEM", "the GPU is throttled: hardware slowdown")
    ran = toy()
    assert ran.ret == 75
    said(ran, "INVALID speed: the GPU is throttled")


@pytest.mark.parametrize("look", ["before", "during", "after"])
def test_a_problem_seen_before_during_or_after_a_benchmark_is_invalid(
    look: str, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_PROBLEM", "throttled")
    monkeypatch.setenv("TOY_PROBLEM_AT", str(["before", "during", "after"].index(look) + 1))
    assert toy().ret == 75


ELSEWHERE = """
import pytest
from streamcache.gate import Environment

class Abacus:
    def sample(self):
        return Environment(machine={"device": "abacus"})

@pytest.fixture(scope="session")
def golden_environment():
    return Abacus()

def test_other(golden):
    golden.equal(one=1)
"""


def test_samples_of_two_machines_in_one_run_are_invalid(toy: Toy) -> None:
    toy.add(ELSEWHERE, "test_zoo.py")
    toy.commit()
    assert toy("--golden-samples=x.out").ret == 0
    ran = toy("--golden-reason", "why", "--golden-from", "x.out")
    assert ran.ret == 75
    said(ran, "is invalid: one run, two machines: *device is 'abacus', not 'toy'")


def test_another_failure_is_a_failure_even_where_the_machine_is_invalid(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.edit("def test_sort", "def test_wrong():\n    assert False\n\n\ndef test_sort")
    monkeypatch.setenv("TOY_DEVICE", "abacus")
    assert toy().ret == 1


def test_a_failure_of_pytest_keeps_its_exit_status(toy: Toy) -> None:
    """A file that cannot be collected; and coverage, say, that a plugin finds too low."""
    broken = toy.path / "test_broken.py"
    broken.write_text("import nothing_of_this_name")
    assert toy().ret == 2, "interrupted, which no verdict replaces"
    assert toy("--continue-on-collection-errors").ret == 1
    broken.unlink()
    toy.add("\n@pytest.hookimpl(wrapper=True)\ndef pytest_runtestloop(session):\n")
    toy.add("    ran = yield\n    session.testsfailed += 1\n    return ran\n")
    assert toy().ret == 1


def test_a_failure_of_a_second_attempt_is_a_failure(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests are run again as plugins do. What an attempt has shown is not forgotten, too."""
    toy.add(AGAIN)
    monkeypatch.setenv("TOY_DEVICE", "abacus")
    assert toy().ret == 75
    once = "    once = Path('once.out')\n    assert not once.exists()\n    once.touch()\n"
    toy.edit("    found = sort()", f"    from pathlib import Path\n\n{once}    found = sort()")
    assert toy().ret == 1


def test_a_verdict_is_red_even_where_a_failure_is_expected(toy: Toy) -> None:
    toy.edit("def test_sort", "import pytest\n\n\n@pytest.mark.xfail\ndef test_sort")
    assert toy("--golden-required").ret == 0
    toy.edit("statistics.fmean(found)", "0.0")
    ran = toy()
    assert ran.ret == 1
    ran.assert_outcomes(failed=1)


def test_a_teardown_that_fails_is_not_hidden_by_a_verdict(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    falls = "\n@pytest.fixture\ndef falls():\n    yield\n    assert False\n"
    toy.add(falls)
    toy.edit("(benchmark, golden)", "(falls, benchmark, golden)")
    monkeypatch.setenv("TOY_DEVICE", "abacus")
    assert toy().ret == 1


# What is not measured


def test_a_new_benchmark_needs_a_golden(toy: Toy) -> None:
    toy.edit("def test_sort", "def test_new(golden):\n    pass\n\n\ndef test_sort")
    ran = toy()
    assert ran.ret == 1
    said(ran, "MISSING golden: measured, but no golden has it")


SKIPS = {
    "skipped": ("def test_sort", "import pytest\n\n\n@pytest.mark.skip\ndef test_sort"),
    "skipped inside": ("    found = sort()", "    import pytest\n\n    pytest.skip('no GPU')"),
    "skipped by unittest": (
        "    found = sort()",
        "    import unittest\n\n    raise unittest.SkipTest",
    ),
    "expected to fail": (
        "def test_sort(benchmark, golden):",
        "import pytest\n\n\n@pytest.mark.xfail\ndef test_sort(golden):\n    assert False\n",
    ),
    "expected inside": ("    found = sort()", "    import pytest\n\n    pytest.xfail('x')"),
    "renamed": ("def test_sort", "def test_sorted"),
    "deleted": ("def test_sort", "def sort_test"),
    "no longer golden": (
        "(benchmark, golden):",
        "(benchmark):\n    from unittest.mock import Mock\n\n    golden = Mock()",
    ),
}
OTHER = "def test_other(golden):\n    golden.equal(one=1)\n\n\n"
AGAIN = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        report.outcome = "rerun" if report.failed else report.outcome
        item.ihook.pytest_runtest_logreport(report=report)
"""


@pytest.mark.parametrize("how", [how for how in SKIPS if how != "renamed"])
def test_nothing_measured_is_an_error_required_or_not(how: str, toy: Toy) -> None:
    toy.edit(*SKIPS[how])
    assert toy("--golden-required").ret == 5
    assert toy().ret == 5
    assert toy("--golden-samples=x.out").ret == 5


@pytest.mark.parametrize("how", SKIPS)
def test_a_golden_that_nothing_answers_to_is_missing(how: str, toy: Toy) -> None:
    """Beside another one that is measured and passes."""
    toy.adds_entry("test_toy.py::test_other", equal={"one": 1})
    toy.edit("def test_sort", OTHER + "def test_sort")
    toy.edit(*SKIPS[how])
    ran = toy("--golden-required")
    assert ran.ret == 1
    said(ran, "MISSING  test_sort *benchmark*", "NOT MEASURED: 1 of 2 goldens", "to retire a")
    ran = toy("--golden-required", "--deselect", NAME, "--deselect", "test_toy.py::test_sorted")
    assert ran.ret == 1


ODD = """
import unittest
import pytest

class TestCase(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def take(self, golden):
        self.golden = golden

    def test_it(self):
        self.golden.equal(one=2)

def test_late(request):
    request.getfixturevalue("golden").equal(one=2)
"""


def test_unittest_cases_and_late_requests_of_the_fixture_are_judged(toy: Toy) -> None:
    """A test case of unittest, and a test that asks for it late."""
    toy.add(ODD, "test_odd.py")
    toy.adds_entry("test_odd.py::TestCase::test_it", equal={"one": 1})
    toy.adds_entry("test_odd.py::test_late", equal={"one": 1})
    ran = toy()
    ran.assert_outcomes(failed=2, passed=1)
    said(ran, "test_it *one is 2, the golden's is 1", "test_late *one is 2, the golden's is 1")


def test_gone_is_what_a_file_lacks_not_what_was_left_out(toy: Toy) -> None:
    other = toy.path / "test_other.py"
    name = "test_other.py::TestIt::test_one[a::b]"
    toy.adds_entry(name, equal={"one": 1})
    skip = "import pytest\n\npytest.skip('no device', allow_module_level=True)\n"
    for left_out in (skip, "import pytest\n\npytest.importorskip('no_such_thing')\n"):
        other.write_text(left_out)
        ran = toy()
        assert ran.ret == 0
        said(ran, "NOT MEASURED: 1 of 2 goldens")
    assert toy("--ignore=test_other.py").ret == 0
    assert toy("--golden-required").ret == 1
    for lacks in ("class TestIt:\n    def test_two(self):\n        pass\n", ""):
        other.write_text(lacks)
        assert toy("--cache-clear").ret == 1
    other.unlink()
    ran = toy("--cache-clear", "--lf")
    assert ran.ret == 1
    said(ran, "MISSING benchmark: it has a golden, and its benchmark no longer exists")


def test_one_benchmark_can_be_gated_alone(toy: Toy) -> None:
    """Goldens that nobody asked for are neither measured nor gone."""
    toy.adds_entry("test_toy.py::test_gone", equal={"one": 1})
    assert toy(NAME).ret == 0
    assert toy("test_toy.py").ret == 1
    assert toy("test_toy.py::test_gone").ret == 4, "pytest finds no such test"


def test_deselected_goldens_are_named_where_they_are_not_required(toy: Toy) -> None:
    for nothing in (("-k", "nothing"), ("--collect-only",)):
        ran = toy(*nothing)
        assert ran.ret == 5
        said(ran, "NOT MEASURED: 1 of 1 goldens")


def test_an_entry_that_was_deleted_is_missing(toy: Toy) -> None:
    toy.by_hand(lambda entries: entries.clear())
    ran = toy("--golden-required")
    assert ran.ret == 1
    said(ran, "MISSING golden: measured, but no golden has it")


# Usage


def test_a_golden_that_is_not_there(toy: Toy) -> None:
    toy.golden.unlink()
    one_line(toy(), "no golden", "record one with --golden-update")


def test_required_goldens_have_a_name(pytester: pytest.Pytester) -> None:
    one_line(pytester.runpytest_inprocess("--golden-required"), "give --golden NAME")
    one_line(pytester.runpytest_inprocess("--golden-update"), "give --golden NAME")


def test_the_gate_is_not_switched_off_unseen(toy: Toy) -> None:
    one_line(toy.pytester.runpytest_inprocess("--golden="), "--golden is empty")
    for asked in (["--golden-required"], ["--golden-update", "--golden-reason=why"]):
        one_line(toy("--golden-samples=x.out", *asked), "--golden-samples only measures")


def test_reports_find_or_make_their_place(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the run does not start; what fails all the same hides no verdict."""
    for option in ("--golden-markdown", "--golden-samples"):
        one_line(toy(f"{option}=pytest.ini/x.out"), "pytest.ini/x.out cannot be written")
    gone = "import shutil\n\n    shutil.rmtree('new')\n    open('new', 'w')\n    found = sort()"
    assert toy("--golden-markdown=new/deep/x.out").ret == 0
    assert (toy.path / "new" / "deep" / "x.out").read_text()
    toy.edit("found = sort()", gone)
    ran = toy("--golden-markdown=new/x.out")
    assert ran.ret == 1
    said(ran, "golden: PASS (6 pass)", "NOT WRITTEN: *new/x.out: ")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "pytest.ini/x.out")
    one_line(toy(), "pytest.ini/x.out cannot be written")


@pytest.mark.parametrize("option", ["--benchmark-disable", "--benchmark-skip"])
def test_benchmarks_that_measure_nothing_are_refused(option: str, toy: Toy) -> None:
    one_line(toy(option), "would measure nothing")


def test_processes_side_by_side_are_refused(toy: Toy) -> None:
    """The option as pytest-xdist has it, which need not be here."""
    xdist = "\ndef pytest_addoption(parser):\n    group = parser.getgroup('xdist')\n"
    xdist += "    group._addoption('-n', dest='numprocesses', type=int)\n"
    xdist += "    group.addoption('--dist', default='no')\n"
    xdist += "    group.addoption('--tx', action='append', default=[])\n"
    toy.add(xdist)
    for option in ("-n2", "--dist=loadfile", "--tx=popen"):
        one_line(toy(option, "-p", "no:xdist"), "do not go together")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cut off"),
        (b'{"schema": "streamcache-golden", "version": 2, "entr', "cut off"),
        (b'{"benchmarks": []}', "not a golden file"),
        (b'{"schema": "streamcache-golden", "version": 3}', "version 3"),
        (b'{"schema": "streamcache-golden", "version": 2}', "not a valid golden"),
    ],
)
def test_a_corrupt_golden_is_a_line_and_stays(data: bytes, says: str, toy: Toy) -> None:
    toy.golden.write_bytes(data)
    one_line(toy(), says)
    ran = toy("--golden-update", "--golden-reason", "y")
    one_line(ran, says)
    ran.stdout.no_fnmatch_line("*process 1*")  # before minutes of measuring
    assert toy.golden.read_bytes() == data


# Recording


def five(toy: Toy) -> list[str]:
    """Files of five processes."""
    names = []
    for i in range(5):
        option = "--benchmark-json" if i == 0 else "--golden-samples"
        assert toy(f"{option}=s{i}.out").ret in (0, 1, 75)
        names.append(f"s{i}.out")
    return names


def test_an_update_does_not_write_entries_that_did_not_move(toy: Toy, recorded: str) -> None:
    ran = toy("--golden-reason", "again", "--golden-from", *five(toy))
    assert ran.ret == 0
    said(ran, "nothing moved by more than a third", "0 of 1 entries written")
    assert toy.unchanged(recorded)


@pytest.mark.parametrize("update", ["--golden-update", "--golden-update-new-only"])
@pytest.mark.parametrize(
    ("refused", "says"),
    [("reason", "need a reason"), ("CI", "under CI"), ("dirty", "clean tree"), ("few", "too few")],
)
def test_recording_is_refused(
    update: str, refused: str, says: str, toy: Toy, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [update, *([] if refused == "reason" else ["--golden-reason", "why"])]
    if refused == "CI":
        monkeypatch.setenv("CI", "true")
    if refused == "dirty":
        toy.edit("range(8)", "range(9)")
    if refused == "few":
        arguments.append("--golden-processes=4")
    one_line(toy(*arguments), says)
    assert toy.unchanged(recorded)


def test_only_golden_files_may_be_changed(toy: Toy) -> None:
    """Not others, not those that git does not know, not what lies beside goldens."""
    toy.commit()
    update = ["--golden-update", "--golden-reason", "why"]
    for name, more in (
        ("helper.py", []),
        ("goldens/test_it.py", []),
        ("helper.py", ["-o", "golden_dir=."]),
        ("deep/x.json", ["-o", "golden_dir=."]),
    ):
        path = toy.path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        one_line(toy(*update, *more), "clean tree")
        path.unlink()
    (toy.path / ".git" / "index").write_text("cut off")
    one_line(toy(*update), "git does not say")


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(toy: Toy) -> None:
    toy.commit()
    ran = toy("--golden-update", "--golden-reason", "why", "-o", "golden_dir=pytest.ini")
    one_line(ran, "pytest.ini")
    ran.stdout.no_fnmatch_line("*process 1*")


def test_an_interrupted_update_is_a_line(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: pytest.Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recording, "measured", interrupted)
    ran = toy("--golden-update", "--golden-reason", "why", no_reraise_ctrlc=True)
    assert ran.ret == 2
    assert ran.errlines == ["golden: interrupted, nothing was written"]


def test_nothing_measured_is_not_recorded(toy: Toy, recorded: str) -> None:
    toy.edit(*SKIPS["skipped"])
    toy.commit()
    ran = toy("--golden-update", "--golden-reason", "why")
    assert ran.ret == 5
    said(ran, f"golden: no sample of {NAME}", "golden: not recorded, nothing was measured")
    assert toy.unchanged(recorded)


def test_an_invalid_environment_is_not_recorded(
    toy: Toy, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_PROBLEM", "throttled")
    ran = toy("--golden-reason", "why", "--golden-from", *five(toy))
    assert ran.ret == 75
    said(ran, "not recorded, the environment is invalid: throttled")
    assert toy.unchanged(recorded)


def test_times_of_a_busy_machine_are_not_recorded(toy: Toy, recorded: str) -> None:
    names = five(toy)
    found = json.loads((toy.path / names[4]).read_text())
    found["samples"][0]["wait_share"] = 0.5
    (toy.path / names[4]).write_text(json.dumps(found))
    ran = toy("--golden-reason", "why", "--golden-from", *names)
    assert ran.ret == 75
    said(ran, f"{NAME}: the CPU is contended: 50 % of the time")
    assert toy.unchanged(recorded)


def test_a_process_that_fails_is_not_recorded(toy: Toy, recorded: str) -> None:
    toy.edit("found = sort()", "assert False")
    toy.commit()
    ran = toy("--golden-update", "--golden-reason", "why")
    assert ran.ret == 4 and "failed with status 1" in "\n".join(ran.errlines)
    assert toy.unchanged(recorded)


def test_recording_from_files(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SLOWDOWN", "1.5")
    names = five(toy)
    few = toy("--golden-reason", "slower", "--golden-from", *names[:4])
    one_line(few, "4 processes are too few")
    both = ["--benchmark-json=b.out", "--golden-samples=s.out"]
    assert toy(*both).ret == 0
    for twice in (["b.out", "s.out"], ["s.out"] * 2):
        ran = toy("--golden-reason", "x", "--golden-from", *names[:3], *twice)
        one_line(ran, "one process twice")
    ran = toy("--golden-reason", "slower", "--golden-from", *names)
    assert ran.ret == 0
    said(ran, f"~ {NAME}: *speedup * -> *speedup 1.33*", "1 of 1 entries written")
    found = storage.read(toy.golden)
    assert found.provenance.reason == "slower" and found.earlier[0].reason == "first"
    assert found.provenance.context == {"toys": "1"} and len(found.provenance.commit) == 40
    assert found.entries[NAME].anchor == pytest.approx(-0.6931, abs=2e-3)


def test_results_from_elsewhere_do_not_move_the_goldens(toy: Toy, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = [str((toy.path / name).rename(elsewhere / name)) for name in five(toy)]
    record = ["--golden-reason", "x", "--golden-from", *moved]
    one_line(toy(*record), "add -c INI-FILE")
    assert toy(*record, "-c", "pytest.ini").ret == 0


@pytest.mark.parametrize("data", [None, "", "{}", '{"benchmarks": []}'])
def test_files_without_samples_are_a_line(data: str | None, toy: Toy, recorded: str) -> None:
    if data is not None:
        (toy.path / "s.out").write_text(data)
    one_line(toy("--golden-reason", "x", "--golden-from", "s.out"), "s.out holds no samples")
    assert toy.unchanged(recorded)


# What it leaves behind


def test_benchmark_json_has_the_section_and_the_time_of_the_clock(toy: Toy) -> None:
    assert toy("--benchmark-json=out.out", "--golden-history=history.out").ret == 0
    line = next(line for line in history.read(toy.path / "history.out") if line.name == NAME)
    assert line.log_ratio == pytest.approx(-0.693, abs=1e-2)
    found = json.loads((toy.path / "out.out").read_text())
    section = found["streamcache"]
    assert section["version"] == goldens.VERSION
    assert [v["status"] for v in section["verdicts"]] == ["pass"] * 6
    (one,) = section["process"]["samples"]
    assert one["name"] == NAME and len(one["pairs"]) == 12
    (benchmark,) = found["benchmarks"]
    own = sorted(a for a, _ in one["pairs"])
    assert benchmark["stats"]["median"] == pytest.approx((own[5] + own[6]) / 2)
    assert benchmark["stats"]["median"] == pytest.approx(0.002, rel=0.01), "the clock's, not 0 s"
    assert benchmark["stats"]["ops"] == pytest.approx(500, rel=0.01)
    assert benchmark["extra_info"]["pairs_s"] == one["pairs"]
    assert found["machine_info"]["streamcache"]["machine"] == {"device": "toy"}


OWN = """
import pytest

@pytest.mark.benchmark(group="mine", max_time=0.01)
def test_own(benchmark, golden):
    benchmark(sum, range(10_000))
    golden.equal(one=1)
"""


def test_a_benchmark_may_be_timed_otherwise_and_keeps_its_options(toy: Toy) -> None:
    toy.add(OWN, "test_own.py")
    toy.adds_entry("test_own.py::test_own", equal={"one": 1})
    assert toy("--benchmark-json=out.out", "--golden-history=history.out").ret == 0
    line = next(line for line in history.read(toy.path / "history.out") if line.name == NAME)
    assert line.log_ratio == pytest.approx(-0.693, abs=1e-2)
    benchmark, _ = json.loads((toy.path / "out.out").read_text())["benchmarks"]
    assert benchmark["group"] == "mine"
    assert 1e-6 < benchmark["stats"]["median"] < 1e-2


QUOTED = """
import pytest

@pytest.mark.parametrize("x", ["$HOME"])
def test_own(x, golden):
    golden.equal(one=1)
    golden.metric("benchmark", 1.0, rel_tol=0)
"""


def test_advice_can_be_typed_and_retires_only_what_is_gone(toy: Toy) -> None:
    toy.add(QUOTED, "test_own.py")
    toy.adds_entry("test_own.py::test_own[$HOME]", equal={"one": 1})
    ran = toy()
    assert ran.ret == 1
    said(
        ran,
        "benchmark is new",
        "to reproduce: pytest 'test_own.py::test_own[[]$HOME]' --golden=toy",
    )
    ran.stdout.no_fnmatch_line("*to retire*")


def test_github_gets_a_summary(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = toy.path / "summary.out"
    summary.write_text("what was there\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert toy().ret == 0
    assert summary.read_text().startswith("what was there\n### golden: PASS (6 pass)\n")


def test_versions_that_differ_are_told(toy: Toy) -> None:
    toy.edit('context={"toys": "1"}', 'context={"toys": "2"}', "conftest.py")
    said(toy(), "differs from when the golden was recorded: toys is '2', not '1'")


def test_goldens_in_addopts_do_not_start_processes_without_end(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--golden=toy --golden-required")
    monkeypatch.setenv("TOY_SLOWDOWN", "1.2")
    ran = toy()
    assert ran.ret == 1
    said(ran, "a fresh process agrees")


def test_the_plugin_imports_no_torch() -> None:
    code = "import sys, streamcache.gate.plugin; print({'torch', 'transformers'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "set()", ran.stderr


def test_the_example_of_the_docs_with_a_real_clock(tmp_path: Path) -> None:
    """Recorded and judged by the commands of the docs."""
    commands = re.findall(r"^pytest (--golden=laptop.*)$", DOCS, re.MULTILINE)
    record, judge = (shlex.split(command) for command in commands)
    lay_out(tmp_path, clock="")
    ran = shell(tmp_path, *record)
    if ran.returncode == 75 and re.search("so noisy that a|the machine is busy", ran.stdout):
        pytest.skip(f"this machine is busy: {ran.stdout.splitlines()[-1]}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ran = shell(tmp_path, *judge, "--benchmark-json=a.out")
    section = json.loads((tmp_path / "a.out").read_text())["streamcache"]
    found = {v["check"]: v["status"] for v in section["verdicts"]}
    assert found["numbers"] == found["average"] == "pass"
    for check in ("speed", "mean"):
        assert found[check] in ("pass", "improved", "inconclusive", "suspect"), ran.stdout


def test_the_table_of_the_statistics_is_printed_by_the_command_of_the_docs() -> None:
    assert "python -m tests.unit.test_golden_power" in DOCS
    from tests.unit import test_golden_power

    rows = test_golden_power.table(times=20).splitlines()
    assert all(row.count("|") == 10 for row in rows)
    shown = [line.strip() for line in DOCS.splitlines()]
    start = shown.index(rows[0])
    for row, line in zip(rows, shown[start : start + len(rows)], strict=True):
        assert row.split("|")[:4] == line.split("|")[:4], "noise, pairs and processes as simulated"
