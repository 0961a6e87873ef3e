"""A regression gate for benchmarks: what one was, what it is now, and whether that is a loss.

Data flows one way: a process takes `samples`, an update makes a `golden` of those of several
processes, `judge` compares and gives verdicts, `render` shows them. Nothing here knows pytest (but
`plugin`) or torch (but `torch_environment`), and nothing here is about KV caches.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamcache.gate.environment import Environment, EnvironmentProbe
    from streamcache.gate.goldens import Golden, GoldenError
    from streamcache.gate.recorder import Recorder
    from streamcache.gate.samples import Metric, Sample
    from streamcache.gate.verdicts import Status, Verdict
    from streamcache.measure.pairs import Stopwatch

_HOMES = {
    "Environment": "streamcache.gate.environment",
    "EnvironmentProbe": "streamcache.gate.environment",
    "Golden": "streamcache.gate.goldens",
    "GoldenError": "streamcache.gate.goldens",
    "Metric": "streamcache.gate.samples",
    "Recorder": "streamcache.gate.recorder",
    "Sample": "streamcache.gate.samples",
    "Status": "streamcache.gate.verdicts",
    "Stopwatch": "streamcache.measure.pairs",
    "Verdict": "streamcache.gate.verdicts",
}

__all__ = [
    "Environment",
    "EnvironmentProbe",
    "Golden",
    "GoldenError",
    "Metric",
    "Recorder",
    "Sample",
    "Status",
    "Stopwatch",
    "Verdict",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
