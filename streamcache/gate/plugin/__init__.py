"""The pytest plugin: options, the fixture `golden`, verdicts as test failures, exit codes.

Exit status: 0 pass, 1 a failure or something missing, 4 usage, 5 nothing was measured, 75 the
environment is invalid, 76 something else is measured than before.
"""

import platform
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from streamcache.gate import storage
from streamcache.gate.environment import Environment, EnvironmentProbe, tracers
from streamcache.gate.goldens import GoldenError
from streamcache.gate.plugin.clock import BenchmarkClock, WaitlessClock
from streamcache.gate.plugin.marks import MARKER, limits_of
from streamcache.gate.plugin.noise import known_noise, with_noise
from streamcache.gate.plugin.options import Usage, golden_path, pytest_addoption
from streamcache.gate.plugin.plain import times_are_compared
from streamcache.gate.plugin.processes import Order
from streamcache.gate.plugin.recording import pytest_cmdline_main
from streamcache.gate.plugin.session import FIXTURES, RECORDER, Session
from streamcache.gate.plugin.usage import check_usage
from streamcache.gate.recorder import Clock, Recorder
from streamcache.machine import cpu_model

__all__ = ["pytest_addoption", "pytest_cmdline_main"]

_clock = pytest.StashKey[Clock]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    check_usage(config)
    golden = None
    if config.getoption("golden") and not config.getoption("golden_samples"):
        try:
            golden = storage.read(golden_path(config))
            golden = with_noise(golden, known_noise(config, {**golden.machine, **golden.host}))
        except GoldenError as error:
            raise Usage(str(error)) from error
    config.pluginmanager.register(Session(config, golden), "streamcache-golden")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A benchmark with a golden is timed by a clock of its own; one without, where two trees are
    compared, by the wall clock less the waits for a core, if it does not name another."""
    waitless = WaitlessClock()
    for item in items:
        limits_of(item)  # before minutes of measuring, see that they make sense
        names = set(getattr(item, "fixturenames", ()))
        if FIXTURES & names and "benchmark" in names:
            marker = item.get_closest_marker("benchmark")
            clock = item.stash[_clock] = BenchmarkClock()
            options = {**(marker.kwargs if marker else {}), "timer": clock}
            item.add_marker(pytest.mark.benchmark(**options), append=False)
        elif "benchmark" in names and times_are_compared(item):
            marker = item.get_closest_marker("benchmark")
            options = {"timer": waitless, **(marker.kwargs if marker else {})}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


class _PlainEnvironmentProbe:
    """Any machine, by what the standard library knows of it."""

    def sample(self) -> Environment:
        return Environment(
            machine={"device": f"cpu {platform.machine()}"},
            host={"cpu": cpu_model()},
            context={"python": platform.python_version()},
            problems=tracers(),
        )


@pytest.fixture(scope="session")
def golden_environment() -> EnvironmentProbe:
    """Takes snapshots of the machine. Override it to say more: a GPU, canaries, what is wrong."""
    return _PlainEnvironmentProbe()


@pytest.fixture
def golden_recorder(
    request: pytest.FixtureRequest, golden_environment: EnvironmentProbe
) -> Iterator[Recorder]:
    """Records what a benchmark measured; compared with the golden when the test has passed."""
    item = request.node
    clock = item.stash.get(_clock, Clock())
    order = getattr(request.config.option, "golden_order", None) or Order()
    limits = limits_of(item)
    recorder = Recorder(item.nodeid, clock, golden_environment, order.few_pairs)
    recorder.tau, recorder.warn_only = limits
    recorder.explains = order.explain
    item.stash[RECORDER] = recorder
    yield recorder
    del item.stash[RECORDER]  # a test that is run again measures again


if find_spec("pytest_golden") is None:  # which has a fixture of this name

    @pytest.fixture
    def golden(golden_recorder: Recorder) -> Recorder:
        """The same by its short name."""
        return golden_recorder
