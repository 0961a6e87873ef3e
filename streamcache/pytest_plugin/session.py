"""A run of benchmarks with goldens: what is measured, the verdicts, the report, the exit status."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamcache.golden import gate, render, samples, store
from streamcache.golden.record import Recorder
from streamcache.golden.samples import Environment, Process, Sample
from streamcache.golden.store import Golden
from streamcache.pytest_plugin.options import golden_path
from streamcache.pytest_plugin.processes import measured_again
from streamcache.pytest_plugin.recording import today

RECORDER = pytest.StashKey[Recorder]()


class Session:
    """What is measured in this process, and the verdicts on it."""

    def __init__(self, config: pytest.Config, golden: Golden | None):
        self.config, self.golden = config, golden
        self.samples: list[Sample] = []
        self.looks: list[Environment] = []
        self.tried: set[str] = set()
        self.deselected: set[str] = set()
        self.verdicts: list[gate.Verdict] = []
        self.others_failed = False

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.deselected |= {item.nodeid for item in items}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        """A golden whose benchmark is gone becomes a test that fails."""
        if self.golden is None:
            return
        known = {item.nodeid for item in items} | self.deselected
        for name in self.golden.entries:
            if name not in known and _asked_for(self.config, name):
                items.append(_Gone.from_parent(session, name=name, nodeid=name, owner=self))

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
        recorder = pyfuncitem.stash.get(RECORDER, None)
        try:
            result = yield
        except pytest.skip.Exception:
            raise
        except BaseException:
            self.tried.add(pyfuncitem.nodeid)
            raise
        if recorder is not None:
            self.tried.add(recorder.name)
            recorder.look()
            self._take(recorder.sample(), samples.merged(recorder.looks))
        return result

    def _take(self, sample: Sample, environment: Environment) -> None:
        self.samples.append(sample)
        self.looks.append(environment)
        if self.golden is None:
            return
        again = None
        if gate.needs_confirmation(sample, self.golden, environment):
            again = measured_again(self.config, sample.name)
        verdicts = gate.judge(sample, self.golden, environment, again)
        self.verdicts += verdicts
        if red := [v for v in verdicts if v.status.is_red]:
            lines = [f"{v.status.name} {v.check}: {v.cause}" for v in red]
            pytest.fail("\n".join(lines), pytrace=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        judged = {v.name for v in self.verdicts if _red(v)} if report.when == "call" else set()
        if report.failed and report.nodeid not in judged:
            self.others_failed = True

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
        environment = samples.merged(self.looks) if self.looks else Environment()
        return Process(environment, self.samples, today())

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        if self.looks:
            machine_info["streamcache"] = msgspec.to_builtins(samples.merged(self.looks))

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        output_json["streamcache"] = {
            "version": store.VERSION,
            "process": msgspec.to_builtins(self.process()),
            "verdicts": msgspec.to_builtins(self.verdicts),
        }

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if path := self.config.getoption("golden_samples"):
            path.write_bytes(msgspec.json.encode(self.process()))
        if self.golden is None or exitstatus not in (0, 1, 5):
            return
        if self.config.getoption("golden_required"):
            known = self.tried | {v.name for v in self.verdicts}
            self.verdicts += gate.missing(self.golden, known)
        # Asked to hold benchmarks against goldens, a run that measured none has no success to
        # report, whether or not each of them is required.
        status = gate.exit_status(self.verdicts, len(self.samples), required=True)
        session.exitstatus = 1 if self.others_failed or status is None else status
        self._report()

    def _report(self) -> None:
        text = render.markdown(self.verdicts, [f"- {line}" for line in self._advice()])
        if path := self.config.getoption("golden_markdown"):
            path.write_text(text, encoding="utf-8")
        if path := os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(text)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.golden is None:
            return
        name = self.config.getoption("golden")
        terminalreporter.section(f"golden {name}", sep="-")
        for line in (*render.text(self.verdicts), *self._advice()):
            terminalreporter.line(line)

    def _advice(self) -> list[str]:
        """What else a reader needs: what was not measured, what differs, what to type."""
        assert self.golden is not None
        name, lines = self.config.getoption("golden"), []
        if left := self.golden.entries.keys() - self.tried:
            lines.append(f"NOT MEASURED: {len(left)} of {len(self.golden.entries)} goldens")
        if self.looks:
            context = self.looks[-1].context
            differs = gate.differences(context, self.golden.provenance.context)
            if differs:
                lines.append(f"differs from when the golden was recorded: {differs}")
        red = list(dict.fromkeys(v.name for v in self.verdicts if _red(v)))
        gone = {v.name for v in self.verdicts if v.check == "benchmark"}
        if red:
            lines.append(f'to reproduce: pytest "{red[0]}" --golden={name}')
        if there := [n for n in red if n not in gone]:
            lines.append(
                "to accept, from a clean tree: pytest "
                + " ".join(f'"{n}"' for n in there)
                + f' --golden={name} --golden-update --golden-reason "..."'
            )
        if gone:
            lines.append(f"to retire a benchmark: delete its entry in {golden_path(self.config)}")
        return lines


class _Gone(pytest.Item):
    """Stands for a benchmark that has a golden and is no more, so that it fails like others."""

    def __init__(self, *, owner: Session, **arguments: Any):
        super().__init__(**arguments)
        self.owner = owner

    def runtest(self) -> None:
        cause = "it has a golden, and its benchmark is gone"
        verdict = gate.Verdict(self.nodeid, "benchmark", gate.Status.MISSING, cause=cause)
        self.owner.verdicts.append(verdict)
        pytest.fail(f"MISSING benchmark: {cause}", pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        return golden_path(self.config), 0, self.nodeid


def _asked_for(config: pytest.Config, name: str) -> bool:
    """Whether pytest was called for a test of this id, would there be one."""
    if config.getoption("lf", False):  # only what failed is collected
        return config.cache is not None and name in config.cache.get("cache/lastfailed", {})
    file, _, test = name.partition("::")
    path = (config.rootpath / file).resolve()
    for argument in config.args:
        where, _, wanted = argument.partition("::")
        place = (config.invocation_params.dir / where).resolve()
        if place != path and place not in path.parents:
            continue
        if not wanted or test == wanted or test.startswith((f"{wanted}::", f"{wanted}[")):
            return True
    return False


def _red(verdict: gate.Verdict) -> bool:
    return verdict.status.is_red
