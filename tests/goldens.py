"""Samples and goldens made up for tests."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from streamcache.gate.environment import Environment
from streamcache.gate.goldens import Golden, Provenance
from streamcache.gate.samples import Metric, Process, Sample
from streamcache.gate.updates import updated

NAME = "tests/bench/test_toy.py::test_speed"
RATIOS = (-1.002, -1.001, -1.0, -0.999, -0.998)  # of five processes; e times as fast
WIGGLE = (-0.002, -0.001, 0.0, 0.001, 0.002, 0.001, 0.0, -0.001, 0.002, -0.002)  # of ten pairs
HERE = Environment(
    machine={"device": "toy"},
    host={"cpu": "abacus"},
    context={"python": "3.12"},
    canaries={"host product": 1e-3},
)
PROVENANCE = Provenance("a first record", "2026-01-31T12:00:00+00:00", "c0ffee", 5)


def sample(log_ratio: float = -1.0, baseline_s: float = 0.1, **more: Any) -> Sample:
    """Ten pairs around a log-ratio, one figure and one count."""
    pairs = [(baseline_s * math.exp(log_ratio + w), baseline_s) for w in WIGGLE]
    fields: dict[str, Any] = {
        "name": NAME,
        "identity": {"model": "toy"},
        "pairs": pairs,
        "metrics": {"ppl": Metric(20.0, rel_tol=1e-3, max_value=20.5)},
        "equal": {"positions": 100},
    }
    return Sample(**{**fields, **more})


def samples(ratios: Sequence[float] = RATIOS, **more: Any) -> list[Sample]:
    return [sample(ratio, **more) for ratio in ratios]


def processes(
    ratios: Sequence[float] = RATIOS, where: Environment = HERE, **more: Any
) -> list[Process]:
    return [Process(where, [one]) for one in samples(ratios, **more)]


def golden(ratios: Sequence[float] = RATIOS, where: Environment = HERE, **more: Any) -> Golden:
    """As recorded from processes."""
    return updated(None, processes(ratios, where, **more), PROVENANCE)[0]


def altered(golden: Golden, **fields: Any) -> Golden:
    """The golden with other fields in its only entry."""
    entry = msgspec.structs.replace(golden.entries[NAME], **fields)
    return msgspec.structs.replace(golden, entries={NAME: entry})


def slowed(sample: Sample, factor: float) -> Sample:
    return msgspec.structs.replace(sample, pairs=[(a * factor, b) for a, b in sample.pairs])


def with_pairs(sample: Sample, pairs: list[tuple[float, float]]) -> Sample:
    return msgspec.structs.replace(sample, pairs=pairs)


def process(sample: Sample, where: Environment = HERE) -> Process:
    return Process(where, [sample])
