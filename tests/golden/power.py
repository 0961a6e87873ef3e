"""How often is `--golden-against` wrong on this machine, and how long does it take? The CPU suite
of this tree, unchanged and with decoding slower by a share, is compared with its own commit again
and again, several runs at once, each on two cores of its own.

    python -m tests.golden.power --cores 0-47 --to runs/power.jsonl
    python -m tests.golden.power --runs 10 --case unchanged --case "captured, slower by 3 %" \\
        -- tests/bench/captured.py

Every second run of the unchanged tree has a busy process on its cores. Runs are appended to a file,
so that what was interrupted goes on. Exit status 1 unless the unchanged tree was never red, 10 %
were always caught and 5 % in four runs of five.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import msgspec

from streamcache.gate import stats
from streamcache.gate.verdicts import Status, Verdict, worst
from tests.golden.cores import groups, parsed, spread
from tests.golden.defects import CORES_EACH, ROOT, committed, copied, environment_of
from tests.golden.mutations import Edit, slower, slower_on_device
from tests.golden.repeat_gate import core_kept_busy

UNCHANGED = "unchanged"
EDITS: dict[str, tuple[Edit, ...]] = {
    UNCHANGED: (),
    "slower by 10 %": (slower(0.10),),
    "slower by 5 %": (slower(0.05),),
    "captured, slower by 3 %": (slower_on_device(0.03),),
}
ON_A_CPU = list(EDITS)[:3]
MIN_CAUGHT = {  # of the runs
    "slower by 10 %": 1.0,
    "slower by 5 %": 0.8,
    "captured, slower by 3 %": 1.0,
}


class Job(NamedTuple):
    """One run of the gate."""

    case: str
    number: int

    @property
    def busy(self) -> bool:
        """Whether another process keeps its cores busy."""
        return self.case == UNCHANGED and self.number % 2 == 1


class Run(msgspec.Struct, frozen=True):
    """What the gate said.

    Attributes:
        changes: by benchmark and check, the log of this tree's figure over the base's, by round.
        verdicts: of times, and all others that did not pass.
    """

    case: str
    number: int
    busy: bool
    exit_status: int
    seconds: float
    rounds: int
    changes: dict[str, list[float]]
    verdicts: list[Verdict]
    output: str = ""

    @property
    def caught(self) -> bool:
        """A failure of speed, and red by it."""
        failed = any(v.status is Status.FAIL and v.check == "speed" for v in self.verdicts)
        return self.exit_status == 1 and failed


def measured(job: Job, cores: str, tests: Sequence[str]) -> Run:
    """Compare a copy of the tree, slower as the case says, with its commit."""
    with tempfile.TemporaryDirectory() as folder:
        root = committed(copied(Path(folder).resolve()))
        for edit in EDITS[job.case]:
            edit(root)
        results = root / "results.json"
        placed = ["taskset", "-c", cores] if cores else []
        command = [*placed, sys.executable, "-m", "pytest", *tests, "-p", "no:cacheprovider"]
        command += ["--golden-against=HEAD", "--golden-required", f"--golden-json={results}"]
        with core_kept_busy(job.busy, placed):
            began = time.monotonic()
            ran = subprocess.run(
                command, cwd=root, env=environment_of(root), capture_output=True, text=True
            )
            seconds = time.monotonic() - began
        found = json.loads(results.read_bytes())["streamcache"] if results.exists() else {}
    verdicts = msgspec.convert(found.get("verdicts", []), list[Verdict])
    return Run(
        *job,
        job.busy,
        ran.returncode,
        seconds,
        ran.stdout.count("golden: round"),
        found.get("changes", {}),
        [v for v in verdicts if v.margin is not None or v.status is not Status.PASS],
        "" if found else (ran.stdout + ran.stderr)[-2000:],
    )


def shown(run: Run) -> str:
    """One line, and one for each verdict that is no pass."""
    losses = [
        f"{_short(v.name)} {100 * v.loss:+.1f}±{100 * math.expm1(v.margin):.1f}"
        for v in run.verdicts
        if v.check == "speed" and v.loss is not None and v.margin is not None
    ]
    others = [
        f"\n      {v.status.name} {_short(v.name)} {v.check}: {v.cause}"
        for v in run.verdicts
        if v.status is not Status.PASS
    ]
    return (
        f"{run.case:15}  {run.number + 1:3}  {'busy' if run.busy else 'quiet':5}  "
        f"exit {run.exit_status:2}  {worst(run.verdicts).name:12}  {run.rounds:2} rounds  "
        f"{run.seconds:4.0f} s  {', '.join(losses)}{''.join(others)}{run.output}"
    )


def _short(name: str) -> str:
    return name.rpartition("::")[2]


def table(runs: Sequence[Run]) -> str:
    """A row a case: how many runs were red, and why; and how long they took."""
    head = ("case", "runs", "red", "failed by speed", "invalid", "inconclusive", "median s", "most")
    rows: list[tuple[object, ...]] = [head, ("---",) * len(head)]
    for case in EDITS:
        for busy in (False, True):
            found = [r for r in runs if (r.case, r.busy) == (case, busy)]
            if not found:
                continue
            with_status = [
                sum(any(v.status is s for v in r.verdicts) for r in found)
                for s in (Status.INVALID, Status.INCONCLUSIVE)
            ]
            rows.append(
                (
                    case + ", beside a busy process" * busy,
                    len(found),
                    sum(r.exit_status != 0 for r in found),
                    sum(r.caught for r in found),
                    *with_status,
                    f"{statistics.median(r.seconds for r in found):.0f}",
                    f"{max(r.seconds for r in found):.0f}",
                )
            )
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def noise(runs: Sequence[Run]) -> str:
    """A row a benchmark and check: what the unchanged tree's rounds scatter, in percent."""
    head = ("benchmark", "check", "rounds", "mean", "deviation", "beside a busy process")
    rows: list[tuple[object, ...]] = [head, ("---",) * len(head)]
    unchanged = [r for r in runs if r.case == UNCHANGED]
    for key in sorted({key for run in unchanged for key in run.changes}):
        quiet, busy = (
            [c for r in unchanged if r.busy is wanted for c in r.changes.get(key, [])]
            for wanted in (False, True)
        )
        name, _, check = key.rpartition(" ")
        mean = statistics.fmean(quiet or busy)
        deviations = (f"{100 * stats.spread(found):.2f}" for found in (quiet, busy))
        rows.append((_short(name), check, len(quiet + busy), f"{100 * mean:+.2f}", *deviations))
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def acceptable(runs: Sequence[Run]) -> bool:
    """Never red where nothing changed, and as often caught as must be."""
    if any(r.exit_status for r in runs if r.case == UNCHANGED):
        return False
    return all(
        sum(r.caught for r in runs if r.case == case) >= least * sum(r.case == case for r in runs)
        for case, least in MIN_CAUGHT.items()
    )


def remaining(runs: Sequence[Run], cases: Sequence[str], n: int) -> list[Job]:
    """The runs to do, the cases in turns, so that all of them have some when time is up."""
    done = {(run.case, run.number) for run in runs}
    by_case = [[Job(case, i) for i in range(n) if (case, i) not in done] for case in cases]
    return [job for turn in zip_longest(*by_case) for job in turn if job is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cores", default="", help="0-47: several at once (default: one run)")
    parser.add_argument("--runs", type=int, default=20, help="of each case (default: 20)")
    parser.add_argument("--case", action="append", choices=EDITS, help="(default: those of a CPU)")
    parser.add_argument("--to", type=Path, default=ROOT / "runs/power.jsonl", help="the file")
    parser.add_argument(
        "tests",
        nargs="*",
        default=["tests/bench/test_cpu.py"],
        help="and after -- options of pytest",
    )
    options = parser.parse_args()
    lines = options.to.read_bytes().splitlines() if options.to.exists() else []
    runs = [msgspec.json.decode(line, type=Run) for line in lines]
    for run in runs:
        print(shown(run))
    options.to.parent.mkdir(parents=True, exist_ok=True)
    places = groups(parsed(options.cores), CORES_EACH) if options.cores else [""]
    one = partial(measured, tests=options.tests)
    jobs = remaining(runs, options.case or ON_A_CPU, options.runs)
    for run in spread(one, jobs, places):
        with options.to.open("ab") as file:
            file.write(msgspec.json.encode(run) + b"\n")
        runs.append(run)
        print(shown(run), flush=True)
    print(f"\n{table(runs)}\n\n{noise(runs)}")
    return 0 if acceptable(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
