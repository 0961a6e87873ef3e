"""What a run of the gate does around its verdicts, without processes of its own."""

import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode

from streamcache.gate import render
from streamcache.gate.environment import Environment, interpreter, tracers
from streamcache.gate.plugin import _PlainEnvironmentProbe, session
from streamcache.gate.plugin.hints import hints
from streamcache.gate.plugin.processes import Order, fresh
from streamcache.gate.plugin.session import Session
from streamcache.gate.recorder import Clock, Recorder
from streamcache.gate.samples import Process, Sample, SampleError
from streamcache.gate.torch_environment import modes
from streamcache.gate.verdicts import Status, Verdict
from streamcache.machine import cpu_model
from tests.goldens import HERE, NAME, golden, sample, slowed

SLOW = slowed(sample(), 1.2)


class Config(SimpleNamespace):
    """The part of pytest's configuration that is used."""

    def __init__(self, **options: Any):
        super().__init__(
            option=SimpleNamespace(**options),
            pluginmanager=mock.Mock(),
            hook=mock.Mock(),
            rootpath=Path("/project"),
            inipath=Path("/project/pytest.ini"),
            invocation_params=SimpleNamespace(args=["tests", "--golden=toy"], dir=Path("/project")),
        )

    def getoption(self, name: str, default: Any = None) -> Any:
        return vars(self.option).get(name, default)

    def getini(self, name: str) -> str:
        return "goldens"


def taken(one: Sample, before: list[Sample], **options: Any) -> tuple[Session, list[Verdict]]:
    """The verdicts of a session that measures a benchmark after others."""
    found = Session(Config(**options), golden())  # type: ignore[arg-type]
    found.samples += before
    recorder = Recorder(NAME, Clock(), mock.Mock(sample=lambda: HERE))
    with mock.patch.object(recorder, "sample", lambda: one):
        item = mock.Mock(config=found.config)
        return found, found._taken(item, recorder)


def again(by_number: dict[int, Sample]) -> Any:
    """Fresh processes, by how many tests they are to run."""
    calls: list[list[str]] = []

    def measured_again(config: object, tests: list[str]) -> Process:
        calls.append(tests)
        return Process(HERE, [by_number[len(tests)]])

    return mock.patch.object(session, "measured_again", measured_again), calls


def speed(verdicts: list[Verdict]) -> Status:
    return next(v.status for v in verdicts if v.check == "speed")


def test_a_loss_that_the_tests_before_cause_is_confirmed_after_the_same_tests() -> None:
    """A leak, or a cold cache: the benchmark alone is as fast as ever."""
    patch, calls = again({1: sample(), 2: SLOW})
    with patch:
        _, verdicts = taken(SLOW, [sample(name="before")])
    assert speed(verdicts) is Status.FAIL and calls == [[NAME], ["before", NAME]]


def test_a_loss_that_no_process_confirms_is_a_suspicion() -> None:
    patch, calls = again({1: sample(), 2: sample()})
    with patch:
        assert speed(taken(SLOW, [sample(name="before")])[1]) is Status.SUSPECT
        assert speed(taken(SLOW, [])[1]) is Status.SUSPECT
    assert [len(tests) for tests in calls] == [1, 2, 1]


def test_a_confirmed_loss_is_not_measured_a_third_time() -> None:
    patch, calls = again({1: SLOW})
    with patch:
        assert speed(taken(SLOW, [sample(name="before")])[1]) is Status.FAIL
    assert len(calls) == 1


def test_the_time_limit_of_a_test_does_not_count_the_process_that_confirms_it() -> None:
    patch, _ = again({1: SLOW})
    with patch:
        found, _ = taken(SLOW, [])
    hook: Any = found.config.hook
    assert hook.pytest_timeout_cancel_timer.call_count == 1


def test_where_times_must_be_judged_another_host_is_invalid() -> None:
    elsewhere = golden(where=Environment(HERE.machine, {"cpu": "slide rule"}, {}, HERE.canaries))

    def host(**options: Any) -> Status:
        found = Session(Config(**options), elsewhere)  # type: ignore[arg-type]
        recorder = Recorder(NAME, Clock(), mock.Mock(sample=lambda: HERE))
        with mock.patch.object(recorder, "sample", sample):
            verdicts = found._taken(mock.Mock(config=found.config), recorder)
        return next(v.status for v in verdicts if v.check == "host")

    assert host() is Status.INCONCLUSIVE
    assert host(golden_judged=True) is Status.INVALID


def test_a_fresh_process_has_the_root_and_settings_of_this_one() -> None:
    """A report elsewhere moves the root that pytest finds by its arguments."""
    with mock.patch.object(subprocess, "run") as run:
        run.return_value = mock.Mock(returncode=3, stdout="", stderr="")
        with pytest.raises(SampleError, match="status 3"):
            fresh(Config(), Order())  # type: ignore[arg-type]
    command = run.call_args[0][0]
    assert command[command.index("--rootdir") + 1] == "/project"
    assert command[command.index("-c") + 1] == "/project/pytest.ini"


def test_a_process_that_exits_with_success_but_leaves_no_samples_has_failed() -> None:
    """As `os._exit(0)` does."""
    with mock.patch.object(subprocess, "run") as run:
        run.return_value = mock.Mock(returncode=0, stdout="", stderr="")
        with pytest.raises(SampleError, match="status 0"):
            fresh(Config(), Order())  # type: ignore[arg-type]


def test_the_headline_is_no_pass_where_a_test_failed_otherwise() -> None:
    passed = [Verdict("a", "ppl", Status.PASS)]
    assert render.headline(passed, 1) == "golden: FAIL (1 test failed otherwise, 1 pass)"
    assert render.headline([], 2) == "golden: FAIL (2 tests failed otherwise)"
    assert render.text(passed, n_failed=1)[-1] == render.headline(passed, 1)
    assert render.headline(passed, 1) in render.markdown(passed, n_failed=1)


def test_a_failure_of_the_anchor_says_how_to_accept_it() -> None:
    config = Config(golden="toy")
    failed = [Verdict(NAME, "anchor", Status.FAIL)]
    lines = hints(config, golden(), Process(HERE, [sample()]), failed)  # type: ignore[arg-type]
    assert any("add --golden-reset-anchors" in line for line in lines)


def test_the_default_environment_tells_cpus_apart() -> None:
    assert _PlainEnvironmentProbe().sample().host == {"cpu": cpu_model()}


def test_what_slows_every_operation_down_is_a_problem() -> None:
    """It slows the canaries down as well, which would take it for a slower host."""
    assert modes() == []
    with TorchFunctionMode():
        assert modes() == ["a TorchFunctionMode is on"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anomaly = torch.autograd.detect_anomaly()
    with anomaly:
        assert modes() == ["autograd's anomaly detection is on"]
    before = sys.getprofile()
    sys.setprofile(lambda *_: None)
    try:
        assert "a tracer is on (sys.setprofile)" in tracers()
    finally:
        sys.setprofile(before)


def test_a_collector_that_is_off_makes_it_another_measurement() -> None:
    assert interpreter() == {}
    gc.disable()
    found = interpreter()
    gc.enable()
    assert found == {"gc": "off"}


def test_a_clock_that_was_replaced_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    found = tracers()
    monkeypatch.undo()
    assert any("a clock was replaced by <function" in problem for problem in found)


def test_the_fixture_of_pytest_golden_keeps_its_name(tmp_path: Path) -> None:
    """A project that has both uses `golden_recorder`."""
    (tmp_path / "pytest_golden").mkdir()
    (tmp_path / "pytest_golden" / "__init__.py").write_text("")
    (tmp_path / "conftest.py").write_text(
        "import pytest\n@pytest.fixture\ndef golden():\n    return 'theirs'\n"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_theirs(golden):\n    assert golden == 'theirs'\n"
        "def test_ours(golden_recorder):\n    golden_recorder.equal(n=1)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--golden-samples=a.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "test_it.py::test_ours" in (tmp_path / "a.json").read_text()
