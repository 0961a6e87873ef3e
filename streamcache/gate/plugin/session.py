"""A run of benchmarks with goldens: its samples, the verdicts, the report, the exit status."""

from collections.abc import Generator
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest

from streamcache.gate import goldens, history, render
from streamcache.gate.environment import Environment, merged, tracers
from streamcache.gate.goldens import Golden
from streamcache.gate.judge import judge, missing, needs_confirmation
from streamcache.gate.plugin import outputs
from streamcache.gate.plugin.git import git
from streamcache.gate.plugin.hints import hints
from streamcache.gate.plugin.missing import CollectedTests, MissingBenchmarkItem
from streamcache.gate.plugin.options import golden_path
from streamcache.gate.plugin.plain import plain_sample
from streamcache.gate.plugin.processes import Order, measured_again, strays_of, wait_for_turn
from streamcache.gate.recorder import Recorder
from streamcache.gate.samples import Process, Sample
from streamcache.gate.verdicts import Status, Verdict, as_warning, exit_status

RECORDER = pytest.StashKey[Recorder]()
FIXTURES = {"golden", "golden_recorder"}


def _cancel_timeout(item: pytest.Item) -> None:
    """pytest-timeout's limit is for the test, not for the fresh process that confirms it."""
    if cancel := getattr(item.config.hook, "pytest_timeout_cancel_timer", None):
        cancel(item=item)


def _has_times(item: pytest.Item) -> bool:
    return "benchmark" in getattr(item, "fixturenames", ())


class Session:
    """What is measured in this process, and the verdicts on it."""

    def __init__(self, config: pytest.Config, golden: Golden | None):
        self.config, self.golden = config, golden
        self.order: Order = getattr(config.option, "golden_order", None) or Order()
        self.date = datetime.now(timezone.utc).isoformat()  # to tell processes apart
        self.samples: list[Sample] = []
        self.environments: list[Environment] = []
        self.benchmarks: list[str] = []  # that use the fixture
        self.verdicts: list[Verdict] = []
        self.red: list[pytest.TestReport] = []  # failures by verdict
        self.failed: set[str] = set()
        self.left = False
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.present = CollectedTests(config)
        config.pluginmanager.register(self.present)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        """A golden without its benchmark becomes a test, unless tests were selected by name."""
        self._leave_out(items)
        uses = (item for item in items if FIXTURES & set(getattr(item, "fixturenames", ())))
        self.benchmarks = [item.nodeid for item in uses]
        if self.golden is None or any("::" in argument for argument in self.config.args):
            return
        where = golden_path(self.config)
        for name in filter(self.present.is_missing, self.golden.entries):
            gone = MissingBenchmarkItem.from_parent(session, name=name, nodeid=name, golden=where)
            items.append(gone)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """All is imported and nothing has run."""
        wait_for_turn(self.order)

    def _leave_out(self, items: list[pytest.Item]) -> None:
        """The tests with times, or those without, where only the others are asked for."""
        if self.order.timed is None:
            return
        others = [item for item in items if _has_times(item) != self.order.timed]
        self.left = any(FIXTURES & set(getattr(item, "fixturenames", ())) for item in others)
        items[:] = [item for item in items if _has_times(item) == self.order.timed]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """What passed is judged: nothing else measured what it should."""
        report = yield
        if call.when != "call" or not report.passed:
            return report
        n_verdicts = len(self.verdicts)
        judging = pytest.CallInfo.from_call(
            lambda: self._judge(item), "call", (KeyboardInterrupt, pytest.exit.Exception)
        )
        if judging.excinfo is None:
            return report
        call.excinfo = judging.excinfo
        report = pytest.TestReport.from_item_and_call(item, call)
        if len(self.verdicts) > n_verdicts:
            self.red.append(report)
        return report

    def _judge(self, item: pytest.Item) -> None:
        """Fails where a verdict is red."""
        if isinstance(item, MissingBenchmarkItem):
            cause = "it has a golden, and its benchmark no longer exists"
            verdicts = [Verdict(item.nodeid, "benchmark", Status.MISSING, cause=cause)]
        elif recorder := item.stash.get(RECORDER, None):
            verdicts = self._taken(item, recorder)
            if recorder.warn_only:
                verdicts = list(map(as_warning, verdicts))
        elif self.order.plain and (sample := plain_sample(item)):
            self.samples.append(sample)
            self.problems += tracers()
            return
        else:
            return
        if self.config.getoption("golden_warn_only"):
            verdicts = list(map(as_warning, verdicts))
        self.verdicts += verdicts
        if red := [v for v in verdicts if v.status.fails_build]:
            lines = [f"{v.status.name} {v.check}: {v.cause}" for v in red]
            pytest.fail("\n".join(lines), pytrace=False)

    def _taken(self, item: pytest.Item, recorder: Recorder) -> list[Verdict]:
        recorder.probe()
        sample, environment = recorder.sample(), merged(recorder.snapshots)
        self.samples.append(sample)
        self.environments.append(environment)
        if self.golden is None:
            return []
        if not needs_confirmation(sample, self.golden, environment):
            return self._required_to_judge(judge(sample, self.golden, environment))
        _cancel_timeout(item)
        again = measured_again(self.config, [sample.name])
        verdicts = judge(sample, self.golden, environment, again)
        before = [s.name for s in self.samples]
        if len(before) > 1 and any(v.status is Status.SUSPECT for v in verdicts):
            # Alone it is as fast as ever: what the tests before it left behind may slow it down.
            again = measured_again(self.config, before)
            verdicts = judge(sample, self.golden, environment, again)
        return self._required_to_judge(verdicts)

    def _required_to_judge(self, verdicts: list[Verdict]) -> list[Verdict]:
        """Where times must be judged, it is invalid that the golden is of another host."""
        if not self.config.getoption("golden_judged"):
            return verdicts
        return [
            msgspec.structs.replace(v, status=Status.INVALID) if v.check == "host" else v
            for v in verdicts
        ]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_report_header(self) -> str | None:
        if self.golden is None:
            return None
        made = self.golden.provenance
        name = self.config.getoption("golden")
        return (
            f"golden: {name}, {len(self.golden.entries)} entries, {made.date[:10]} "
            f"from {made.processes} processes: {made.reason}"
        )

    def process(self) -> Process:
        environment = merged(self.environments) if self.environments else Environment()
        if self.problems:
            problems = list(dict.fromkeys([*environment.problems, *self.problems]))
            environment = msgspec.structs.replace(environment, problems=problems)
        strays = strays_of(self.order)
        failed = sorted(self.failed)
        return Process(environment, self.samples, self.date, failed, self.left, strays)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        if self.environments:
            machine_info["streamcache"] = msgspec.to_builtins(self.process().environment)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        output_json["streamcache"] = self._results()

    def _results(self) -> dict[str, Any]:
        """For programs: the same in every file."""
        return {
            "version": goldens.VERSION,
            "process": msgspec.to_builtins(self.process()),
            "verdicts": msgspec.to_builtins(self.verdicts),
        }

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-benchmark writes the verdicts
    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> Generator[None, None, None]:
        ended = exitstatus in (0, 1, 5)  # and was not interrupted
        if self.golden is not None:
            if ended:
                session.exitstatus = self._status(session, self.golden) or exitstatus
            self.notes += hints(self.config, self.golden, self.process(), self.verdicts)
        elif outputs.samples(self.config):
            if not self.samples:
                session.exitstatus = exitstatus or pytest.ExitCode.NO_TESTS_COLLECTED
            if left := [name for name in self.benchmarks if name not in self._measured()]:
                self.notes.append(f"no sample of {', '.join(left)}")
        if ended and (unwritten := self._written()):
            self.notes += unwritten
            session.exitstatus = session.exitstatus or 1
        yield

    def _status(self, session: pytest.Session, golden: Golden) -> int:
        if self.config.getoption("golden_required"):
            known = self._measured() | self.failed | {v.name for v in self.verdicts}
            absent = missing(golden, known)
            warns = self.config.getoption("golden_warn_only")
            self.verdicts += map(as_warning, absent) if warns else absent
        if session.testsfailed > sum(report.failed for report in self.red):
            return 1
        # Asked to hold benchmarks against goldens, a run that measured none has no success to
        # report, whether or not each of them is required.
        return exit_status(self.verdicts, len(self.samples))

    def _written(self) -> list[str]:
        """Write what was asked for; lines that say what could not be."""
        unwritten = self._remember()
        if self.golden is None:
            path = outputs.samples(self.config)
            return unwritten + outputs.write(path, msgspec.json.encode(self.process()))
        others = self.failed - {report.nodeid for report in self.red}
        text = render.markdown(self.verdicts, self.notes, n_failed=len(others)).encode()
        unwritten += outputs.write(outputs.markdown(self.config), text)
        results = msgspec.json.encode({"streamcache": self._results()})
        unwritten += outputs.write(outputs.results(self.config), results)
        return unwritten + outputs.append(outputs.summary(), text)

    def _remember(self) -> list[str]:
        """Add to the history, where one is kept."""
        path = outputs.history(self.config)
        if path is None:
            return []
        commit = git(self.config, "rev-parse", "HEAD") or ""
        return outputs.append(path, history.encoded(history.lines(self.process(), commit)))

    def _measured(self) -> set[str]:
        return {sample.name for sample in self.samples}

    def pytest_terminal_summary(self, terminalreporter: "pytest.TerminalReporter") -> None:
        if self.golden is None:
            for note in self.notes:
                terminalreporter.line(f"golden: {note}")
            return
        name = self.config.getoption("golden")
        terminalreporter.section(f"golden {name}", sep="-")
        others = self.failed - {report.nodeid for report in self.red}
        for line in (*render.text(self.verdicts, n_failed=len(others)), *self.notes):
            terminalreporter.line(line)
