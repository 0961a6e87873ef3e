"""The pytest side of goldens: options, the fixture `golden`, verdicts as test failures, exit codes.

Exit status: 0 pass, 1 a failure or something missing, 4 usage, 5 nothing was measured though
goldens are required, 75 the environment is invalid.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streamcache.golden import gate, render, samples, store
from streamcache.golden.record import PARENT, Clock, Recorder, Surroundings
from streamcache.golden.samples import Environment, Process, Sample, SampleError
from streamcache.golden.store import Golden, GoldenError, Provenance

_recorder = pytest.StashKey[Recorder]()
_clock = pytest.StashKey[Clock]()
_INVALID = 75
_WRITES = ("--benchmark-json", "--junitxml", "--junit-xml", "--golden-markdown")
Usage = pytest.UsageError


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("golden", "golden baselines")
    group.addoption("--golden", metavar="NAME", help="gate against <golden_dir>/NAME.json")
    group.addoption(
        "--golden-required", action="store_true", help="what has a golden must be measured"
    )
    group.addoption("--golden-update", action="store_true", help="measure anew and record")
    group.addoption(
        "--golden-update-new-only", action="store_true", help="record only what has no golden"
    )
    group.addoption(
        "--golden-from", metavar="JSON", nargs="+", type=Path, help="record from these results"
    )
    group.addoption("--golden-reason", metavar="TEXT", help="why goldens are recorded")
    group.addoption(
        "--golden-processes", metavar="N", type=int, default=store.MIN_PROCESSES, help="to record"
    )
    group.addoption(
        "--golden-samples",
        metavar="JSON",
        type=Path,
        help="only measure, and write what was measured, whatever else is asked for",
    )
    group.addoption("--golden-markdown", metavar="FILE", type=Path, help="write the report")
    parser.addini("golden_dir", "folder of the golden files", default="tests/golden")


def _golden_path(config: pytest.Config) -> Path:
    return config.rootpath / config.getini("golden_dir") / f"{config.getoption('golden')}.json"


def _updates(config: pytest.Config) -> bool:
    names = ("golden_update", "golden_update_new_only", "golden_from")
    return not config.getoption("golden_samples") and any(map(config.getoption, names))


def _check_usage(config: pytest.Config) -> None:
    _check_measures(config)
    if config.getoption("golden_samples"):
        return
    if not config.getoption("golden"):
        if config.getoption("golden_required") or _updates(config):
            raise Usage("which goldens? give --golden NAME")
        return
    if not _updates(config):
        return
    if os.environ.get("CI"):
        raise Usage("goldens are not recorded under CI: run the update yourself and commit it")
    if not config.getoption("golden_reason"):
        raise Usage('goldens need a reason: give --golden-reason "..."')
    if found := config.getoption("golden_from"):
        if len({path.resolve() for path in found}) < len(found):
            raise Usage("--golden-from has a file twice: each must be of a process of its own")
        here = config.invocation_params.dir
        outside = any(not path.resolve().is_relative_to(here) for path in found)
        if outside and config.inipath is None:  # pytest's root is what its arguments share
            raise Usage("files from elsewhere hide the project's settings: add -c INI-FILE")
    else:
        n = config.getoption("golden_processes")
        if n < store.MIN_PROCESSES:
            raise Usage(f"{n} processes are too few: at least {store.MIN_PROCESSES}")
    if _dirty(config):
        raise Usage("goldens are recorded from a clean tree only: commit or stash your changes")


def _check_measures(config: pytest.Config) -> None:
    if not (config.getoption("golden") or config.getoption("golden_samples")):
        return
    if config.getoption("numprocesses", None) or config.getoption("tx", None):
        raise Usage("--golden and -n do not go together: processes side by side disturb times")
    if config.getoption("benchmark_disable", False) or config.getoption("benchmark_skip", False):
        raise Usage("--golden with benchmarks disabled or skipped would measure nothing")


def _dirty(config: pytest.Config) -> bool:
    """Whether the repository has changes, but for the goldens; without a repository nothing has."""
    top = _git(config, "rev-parse", "--show-toplevel")
    if not top:
        return False
    folder = _golden_path(config).parent.resolve()
    changed = _git(config, "status", "--porcelain", "-z", "--untracked-files=all", "--", ":/")
    paths = [Path(top, line[3:]).resolve() for line in changed.split("\0") if line]
    return any(folder not in path.parents for path in paths)


def _git(config: pytest.Config, *arguments: str) -> str:
    """What git says in the root folder; nothing where there is no git or no repository."""
    command = ["git", *arguments]
    try:
        ran = subprocess.run(command, cwd=config.rootpath, capture_output=True, text=True)
    except OSError:
        return ""
    return ran.stdout.rstrip("\n") if ran.returncode == 0 else ""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Recording runs no tests here: fresh processes measure, this one writes."""
    if config.option.help or not _updates(config):
        return None
    try:
        _check_usage(config)
        found = config.getoption("golden_from")
        processes = []
        for process in map(samples.read, found) if found else _measured(config):
            if problem := _problem(process):
                print(f"golden: not recorded, the environment is invalid: {problem}")
                return _INVALID
            processes.append(process)
        return _record(config, processes)
    except (Usage, GoldenError, SampleError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return int(pytest.ExitCode.USAGE_ERROR)


def _record(config: pytest.Config, processes: list[Process]) -> int:
    """Write the golden, or say why not; an exit status."""
    path = _golden_path(config)
    old = store.read(path) if path.exists() else None
    provenance = Provenance(
        reason=config.getoption("golden_reason"),
        date=_today(),
        commit=_git(config, "rev-parse", "HEAD"),
        processes=len(processes),
        context=processes[0].environment.context,
    )
    new_only = config.getoption("golden_update_new_only")
    golden, changes = store.updated(old, processes, provenance, new_only)
    if noise := store.noisy(golden):
        print(f"golden: not recorded, {noise}")
        return _INVALID
    if changes:
        store.write(path, golden)
    print("\n".join(changes or ["nothing moved by more than a third of its threshold"]))
    print(f"golden: {path}, {len(changes)} of {len(golden.entries)} entries written")
    return 0


def _today() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _problem(process: Process) -> str:
    """Why no golden is made of it; empty if nothing is known against it."""
    disturbed = (f"{s.name}: {s.disturbed}" for s in process.samples if s.disturbed)
    return next(iter([*process.environment.problems, *disturbed]), "")


def _measured(config: pytest.Config) -> Iterator[Process]:
    """The same tests in fresh processes, one after the other."""
    n = config.getoption("golden_processes")
    for i in range(n):
        print(f"golden: process {i + 1} of {n}", flush=True)
        yield _fresh(config, list(config.invocation_params.args))


def _again(config: pytest.Config, name: str) -> Process:
    """One benchmark once more, in a fresh process; what kept it from that is its problem."""
    chosen = {str(argument) for argument in config.args}
    options, left = [], iter(config.invocation_params.args)
    for argument in left:
        option, equals, _ = argument.partition("=")
        if option in _WRITES:
            if not equals:
                next(left, None)
        elif argument not in chosen:
            options.append(argument)
    test = config.rootpath / name.partition("::")[0]
    try:
        # This process, which may hold the device, does nothing meanwhile.
        return _fresh(config, [*options, f"{test}::{name.partition('::')[2]}"], {PARENT: "1"})
    except SampleError as error:
        lines = str(error).splitlines()
        problem = " ... ".join(dict.fromkeys(lines[:1] + lines[-1:]))
        return Process(Environment(problems=[problem]), [])


def _fresh(
    config: pytest.Config, arguments: list[str], environment: dict[str, str] | None = None
) -> Process:
    """What a fresh process measures.

    Raises:
        SampleError: it failed, or measured nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.json"
        command = [sys.executable, "-m", "pytest", "-q", *arguments, f"--golden-samples={path}"]
        where, variables = config.invocation_params.dir, {**os.environ, **(environment or {})}
        ran = subprocess.run(command, cwd=where, env=variables, capture_output=True, text=True)
        if ran.returncode != 0:
            tail = (ran.stdout + ran.stderr).strip()[-2000:]
            raise SampleError(f"a process failed with status {ran.returncode}:\n{tail}")
        return samples.read(path)


def pytest_configure(config: pytest.Config) -> None:
    _check_usage(config)
    golden = None
    if config.getoption("golden") and not config.getoption("golden_samples"):
        try:
            golden = store.read(_golden_path(config))
        except GoldenError as error:
            raise Usage(str(error)) from error
    config.pluginmanager.register(_Session(config, golden), "streamcache-golden")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A benchmark with goldens is timed by a clock of its own."""
    for item in items:
        if {"golden", "benchmark"} <= set(getattr(item, "fixturenames", ())):
            marker = item.get_closest_marker("benchmark")
            clock = item.stash[_clock] = Clock()
            options = {**(marker.kwargs if marker else {}), "timer": clock}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


class _Plain:
    """Any machine, by what the standard library knows of it."""

    def sample(self) -> Environment:
        machine: dict[str, str | int] = {"device": f"cpu {platform.machine()}"}
        return Environment(machine=machine, context={"python": platform.python_version()})


@pytest.fixture(scope="session")
def golden_environment() -> Surroundings:
    """A look at the machine. Override it to say more: a GPU, canaries, what is wrong."""
    return _Plain()


@pytest.fixture
def golden(request: pytest.FixtureRequest, golden_environment: Surroundings) -> Iterator[Recorder]:
    """Says what a benchmark measured; compared with the golden when the test has passed."""
    item = request.node
    recorder = Recorder(item.nodeid, item.stash.get(_clock, Clock()), golden_environment)
    item.stash[_recorder] = recorder
    yield recorder


class _Session:
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
        recorder = pyfuncitem.stash.get(_recorder, None)
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
            again = _again(self.config, sample.name)
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
        return Process(environment, self.samples, _today())

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
            lines.append(f"to retire a benchmark: delete its entry in {_golden_path(self.config)}")
        return lines


class _Gone(pytest.Item):
    """Stands for a benchmark that has a golden and is no more, so that it fails like others."""

    def __init__(self, *, owner: _Session, **arguments: Any):
        super().__init__(**arguments)
        self.owner = owner

    def runtest(self) -> None:
        cause = "it has a golden, and its benchmark is gone"
        verdict = gate.Verdict(self.nodeid, "benchmark", gate.Status.MISSING, cause=cause)
        self.owner.verdicts.append(verdict)
        pytest.fail(f"MISSING benchmark: {cause}", pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        return _golden_path(self.config), 0, self.nodeid


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
