"""Does the gate stay green on an unchanged tree? It is run again and again, every second time
beside a process that keeps a core busy.

    python tests/golden/repeat_gate.py [--runs 20] [--golden cpu] [--to runs/repeat_gate.jsonl]

Runs are appended to a file, so that what was interrupted goes on. At the end each entry's figures
over all runs: from their spread between processes thresholds are calibrated. Exit status 1 if more
than one run was red, or one for another reason than an invalid environment.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from streamcache.gate import samples, stats, storage  # noqa: E402
from streamcache.gate.goldens import MIN_TAU, Golden  # noqa: E402
from streamcache.gate.verdicts import Status, Verdict, worst  # noqa: E402


class Timing(msgspec.Struct, frozen=True):
    """A timed benchmark in one run: what the golden has of each of its processes, too."""

    log_ratio: float
    error: float  # of the log-ratio, by its own pairs
    baseline_s: float


class Run(msgspec.Struct, frozen=True):
    """One run of the gate.

    Attributes:
        golden: when the golden was recorded: runs against different ones are not mixed.
        busy: whether another process kept a core busy.
        verdicts: all but those that passed and have no loss to tell.
    """

    golden: str
    busy: bool
    exit_status: int
    worst: str
    seconds: float
    timings: dict[str, Timing]
    canaries: dict[str, float]
    verdicts: list[Verdict]


@contextmanager
def core_kept_busy(wanted: bool, placed: Sequence[str] = ()) -> Iterator[None]:
    """Beside a process that never rests.

    Args:
        placed: the command that says where it runs, as `taskset` does.
    """
    command = [*placed, sys.executable, "-c", "while True: pass"]
    process = subprocess.Popen(command) if wanted else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def run(golden: str, recorded: str, busy: bool) -> Run:
    """The command that CI runs, in this tree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.json"
        command = [sys.executable, "-m", "pytest", "tests/bench/test_cpu.py", "-q"]
        command += [f"--golden={golden}", "--golden-required", f"--benchmark-json={path}"]
        began = time.monotonic()
        with core_kept_busy(busy):
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        seconds = time.monotonic() - began
        if not path.exists():
            raise SystemExit(f"nothing was measured:\n{ran.stdout}{ran.stderr}")
        found = json.loads(path.read_bytes())["streamcache"]
        process = samples.read(path)
    verdicts = msgspec.convert(found["verdicts"], list[Verdict])
    return Run(
        golden=recorded,
        busy=busy,
        exit_status=ran.returncode,
        worst=worst(verdicts).name,
        seconds=seconds,
        timings={
            s.name: Timing(s.median_log_ratio, stats.error_of_median(s.log_ratios), s.baseline_s)
            for s in process.samples
            if s.pairs
        },
        canaries=process.environment.canaries,
        verdicts=[v for v in verdicts if v.loss is not None or v.status is not Status.PASS],
    )


def shown(index: int, run: Run) -> str:
    """One line: the run, its losses of speed in percent, and what was not a pass."""
    losses = [
        f"{_short(v.name)} {100 * v.loss:+.1f}"
        for v in run.verdicts
        if v.check == "speed" and v.loss is not None
    ]
    causes = [
        f"\n      {v.status.name} {_short(v.name)} {v.check}: {v.cause}"
        for v in run.verdicts
        if v.status is not Status.PASS
    ]
    return (
        f"{index + 1:3}  {'busy' if run.busy else 'quiet':5}  exit {run.exit_status}  "
        f"{run.worst:12}  {run.seconds:4.0f} s  {', '.join(losses)}{''.join(causes)}"
    )


def _short(name: str) -> str:
    return name.rpartition("::")[2].removeprefix("test_speed")


def summary(runs: list[Run], golden: Golden) -> list[dict[str, object]]:
    """Per entry and kind of run: how far from the golden on average, how far from run to run.

    All log-ratios. `sigma` is between processes; `tau` what three of them would make it, and
    `golden tau` what is in force.
    """
    rows: list[dict[str, object]] = []
    for name, entry in golden.entries.items():
        if not entry.log_ratios:
            continue
        for kind in ("quiet", "busy", "all"):
            timings = [
                r.timings[name]
                for r in runs
                if name in r.timings and kind in ("all", "busy" if r.busy else "quiet")
            ]
            if not timings:
                continue
            ratios = [t.log_ratio for t in timings]
            baselines = [math.log(t.baseline_s) for t in timings]
            own = statistics.fmean(math.log(s) for s in entry.baselines_s)
            rows.append(
                {
                    "name": _short(name),
                    "runs": f"{kind} ({len(ratios)})",
                    "loss": statistics.fmean(ratios) - statistics.fmean(entry.log_ratios),
                    "sigma": stats.spread(ratios),
                    "own error": statistics.fmean(t.error for t in timings),
                    "tau": stats.threshold(ratios, MIN_TAU),
                    "golden tau": entry.tau,
                    "baseline": statistics.fmean(baselines) - own,
                    "baseline sigma": stats.spread(baselines),
                }
            )
    return rows


def acceptable(runs: list[Run]) -> bool:
    """At most one red, and that for its environment (75)."""
    red = [r.exit_status for r in runs if r.exit_status]
    return red in ([], [75])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="in all (default: 20)")
    parser.add_argument("--golden", default="cpu", help="the golden (default: cpu)")
    parser.add_argument("--to", type=Path, default=ROOT / "runs/repeat_gate.jsonl", help="the file")
    options = parser.parse_args()
    golden = storage.read(ROOT / f"tests/golden/{options.golden}.json")
    recorded = golden.provenance.date
    lines = options.to.read_bytes().splitlines() if options.to.exists() else []
    runs = [msgspec.json.decode(line, type=Run) for line in lines]
    if any(r.golden != recorded for r in runs):
        parser.error(f"{options.to} has runs against another golden: give another file")
    options.to.parent.mkdir(parents=True, exist_ok=True)
    for index, done in enumerate(runs):
        print(shown(index, done))
    for index in range(len(runs), options.runs):
        done = run(options.golden, recorded, busy=index % 2 == 1)
        with options.to.open("ab") as file:
            file.write(msgspec.json.encode(done) + b"\n")
        runs.append(done)
        print(shown(index, done), flush=True)
    print()
    rows = summary(runs, golden)
    for row in rows:
        print(
            "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{v:14}" for k, v in row.items())
        )
    print(json.dumps(rows))
    red = [r for r in runs if r.exit_status]
    print(f"{len(runs)} runs, {len(red)} red: {', '.join(r.worst for r in red) or 'none'}")
    return 0 if acceptable(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
