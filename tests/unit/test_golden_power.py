"""How often the gate is wrong: simulated processes of a known noise, judged as real ones are.

`python -m tests.unit.test_golden_power` prints the table of docs/gate.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from streamcache.gate.compare import Round, compare, confirmed, undecided
from streamcache.gate.environment import Environment
from streamcache.gate.goldens import Golden, Provenance
from streamcache.gate.judge import judge
from streamcache.gate.plugin.options import ROUNDS
from streamcache.gate.samples import Process, Sample
from streamcache.gate.updates import updated
from streamcache.gate.verdicts import Status, worst

HERE = Environment(machine={"device": "simulated"})
SUITE = 25  # timed benchmarks


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log-ratios: of a pair, and of what a process adds to all its pairs.

    `disturbed` is the share of pairs that something else made up to twice as slow.
    """

    name: str
    pair: float
    process: float
    n_pairs: int
    n_processes: int
    disturbed: float = 0.02


# As measured: docs/gate.md, "Calibration".
GPU = Noise("GPU", pair=0.002, process=0.0015, n_pairs=5, n_processes=6)
WORST = Noise("GPU, recomputing", pair=0.0056, process=0.0066, n_pairs=5, n_processes=6)
CPU = Noise("CPU", pair=0.015, process=0.008, n_pairs=40, n_processes=10)
AGAINST = Noise("CPU, against a commit", pair=0.015, process=0.008, n_pairs=10, n_processes=4)


class Machine:
    """Measures a benchmark that takes 10 ms beside a baseline of 100 ms."""

    def __init__(self, noise: Noise, seed: int):
        self.noise, self.random = noise, np.random.default_rng(seed)

    def sample(self, slowdown: float = 0.0) -> Sample:
        noise, n = self.noise, self.noise.n_pairs
        moved = math.log1p(slowdown) + self.random.normal(0, noise.process)
        disturbed = self.random.random(n) < noise.disturbed
        slower = disturbed * self.random.uniform(0, math.log(2), n)
        logs = moved + self.random.normal(0, noise.pair, n) + slower
        pairs = [(0.01 * float(r), 0.1) for r in np.exp(logs)]
        return Sample("a", pairs=pairs)

    def golden(self) -> Golden:
        n = self.noise.n_processes
        processes = [Process(HERE, [self.sample()]) for _ in range(n)]
        return updated(None, processes, Provenance("", "", "", n))[0]

    def gated(self, slowdown: float, times: int) -> Iterator[Status]:
        """What the gate says of a benchmark; every tenth time a golden is recorded anew."""
        golden = self.golden()
        for i in range(1, times + 1):
            first = self.sample(slowdown)
            status = worst(judge(first, golden, HERE))
            if status in (Status.SUSPECT, Status.INCONCLUSIVE):
                again = Process(HERE, [self.sample(slowdown)])
                status = worst(judge(first, golden, HERE, again))
            yield status
            if i % 10 == 0:
                golden = self.golden()

    def failing(self, slowdown: float, times: int) -> float:
        """The share of benchmarks that fail."""
        return sum(s is Status.FAIL for s in self.gated(slowdown, times)) / times


class TwoTrees(Machine):
    """The same machine where two trees are compared, in 4 rounds, and in 4 more if need be."""

    def rounds(self, slowdown: float) -> list[Round]:
        return [
            Round(Process(HERE, [self.sample()]), Process(HERE, [self.sample(slowdown)]))
            for _ in range(ROUNDS)
        ]

    def gated(self, slowdown: float, times: int) -> Iterator[Status]:
        for _ in range(times):
            first = self.rounds(slowdown)
            verdicts = compare(first)
            if undecided(verdicts):
                verdicts = confirmed(verdicts, first, self.rounds(slowdown))
            yield worst(verdicts)


def suites_failing(benchmarks_failing: float) -> float:
    return 1 - (1 - benchmarks_failing) ** SUITE


@pytest.mark.parametrize("noise", [GPU, CPU], ids=lambda noise: noise.name)
def test_an_unchanged_suite_fails_at_most_once_in_a_hundred_runs(noise: Noise) -> None:
    """None of 8,000 benchmarks: with 95 % confidence fewer than 3 in 8,000."""
    found = list(Machine(noise, seed=1).gated(0.0, times=8000))
    assert suites_failing(3 / len(found)) <= 0.01
    assert not any(status.fails_build for status in found)
    assert found.count(Status.PASS) >= 0.98 * len(found), "nor are they all inconclusive"


@pytest.mark.parametrize(
    ("noise", "slowdown"), [(GPU, 0.05), (CPU, 0.10)], ids=lambda x: getattr(x, "name", None)
)
def test_a_slowdown_fails_nine_times_of_ten(noise: Noise, slowdown: float) -> None:
    assert Machine(noise, seed=2).failing(slowdown, times=1000) >= 0.9


def test_half_of_what_counts_is_no_failure() -> None:
    """tau is what counts: the gate's power is not bought with alarms about less."""
    assert Machine(GPU, seed=3).failing(0.015, times=500) == 0


@pytest.mark.parametrize(("slowdown", "least"), [(0.05, 0.8), (0.10, 1.0)])
def test_two_trees_show_a_slowdown_without_a_golden(slowdown: float, least: float) -> None:
    assert TwoTrees(AGAINST, seed=5).failing(slowdown, times=200) >= least


def test_two_trees_that_are_one_fail_at_most_once_in_a_hundred_runs() -> None:
    found = list(TwoTrees(AGAINST, seed=6).gated(0.0, times=600))
    assert not any(status.fails_build for status in found)


def table(times: int = 2000) -> str:
    """Shares of benchmarks that fail, by slowdown, and of suites where nothing changed."""
    machines = [(Machine(noise, seed=4), times) for noise in (GPU, WORST, CPU)]
    machines += [(TwoTrees(AGAINST, seed=4), times // 4)]  # which takes many samples each time
    slowdowns = (0.03, 0.05, 0.1, 0.15, 0.2)
    head = ["noise", "pairs", "processes", "false, of suites", *(f"{s:.0%}" for s in slowdowns)]
    rows = [head, ["---"] * len(head)]
    for machine, n in machines:
        noise = machine.noise
        false = suites_failing(machine.failing(0.0, n))
        found = [machine.failing(s, n) for s in slowdowns]
        what = f"{noise.name}: pairs {noise.pair:.2%}, processes {noise.process:.2%}"
        counts = [str(noise.n_pairs), str(noise.n_processes)]
        rows.append([what, *counts, f"{false:.1%}", *(f"{x:.1%}" for x in found)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table())
