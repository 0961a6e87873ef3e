"""A memory of runs: one line a benchmark and run, and what has changed over many of them.

A pass leaves no trace in a golden, and a loss that is below the threshold in every run adds up. A
history is a file of JSON lines that grows by `--golden-history FILE`.
"""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

from streamcache.files import read_bytes
from streamcache.gate.environment import Value
from streamcache.gate.samples import Process
from streamcache.gate.stats import error_of_median
from streamcache.plain import plain_values

SPEED = "candidate / baseline"
_MIN_RUNS = 8  # fewer have no trend
_MAX_LOG = 100.0  # of a ratio of times
_MIN_EVIDENCE = 10.0  # difference of two BICs, from which on the better model is certain
_NORMAL = 1.4826  # a normal deviation over the median of the absolute values
_MIN_MAGNITUDE = 0.01  # of a change point, relative


class HistoryError(ValueError):
    """A history cannot be read, or not be analysed; the message says why."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One benchmark in one run.

    Attributes:
        machine: that, and the host: only figures of the same machine form a series.
        log_ratio, error: median of log(candidate / baseline) over the pairs, its standard error.
        candidate_s, baseline_s: seconds per unit.
        metrics: figures by name.
    """

    date: str
    commit: str
    name: str
    machine: dict[str, Value]
    log_ratio: float | None = None
    error: float | None = None
    n_pairs: int = 0
    candidate_s: float | None = None
    baseline_s: float | None = None
    metrics: dict[str, float] = {}


class Point(NamedTuple):
    """A figure in one run."""

    date: str
    commit: str
    value: float


class Trend(NamedTuple):
    """What has changed in a series.

    Attributes:
        steps: indices of the first run after each change.
        drift: relative change per run; 0 where there is none.
    """

    steps: list[int]
    drift: float


def lines(process: Process, commit: str) -> list[Line]:
    """What a process adds to a history."""
    environment = process.environment
    machine = {**environment.machine, **environment.host}
    found = []
    for sample in process.samples:
        line = Line(
            date=process.date,
            commit=commit,
            name=sample.name,
            machine=machine,
            metrics={key: metric.value for key, metric in sample.metrics.items()},
        )
        if sample.pairs and math.isfinite(sample.median_log_ratio):
            line = msgspec.structs.replace(
                line,
                log_ratio=sample.median_log_ratio,
                error=error_of_median(sample.log_ratios),
                n_pairs=len(sample.gated_pairs),
                candidate_s=sample.candidate_s,
                baseline_s=sample.baseline_s,
            )
        found.append(line)
    return found


def encoded(found: Sequence[Line]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in found)


def read(path: Path) -> list[Line]:
    """The lines of a history, oldest first. One cut off at the end is left out.

    Raises:
        HistoryError: the file cannot be read, or a line is none of a history.
    """
    try:
        rows = read_bytes(path).split(b"\n")
    except OSError as error:
        raise HistoryError(f"{path}: {error.strerror}") from error
    found = []
    for number, row in enumerate(rows[:-1], 1):  # behind the last end of line is nothing, or a half
        try:
            line = msgspec.convert(plain_values(msgspec.json.decode(row)), Line)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise HistoryError(f"{path}, line {number}: {error}") from error
        if abs(line.log_ratio or 0) > _MAX_LOG:
            raise HistoryError(f"{path}, line {number}: no time has the log-ratio {line.log_ratio}")
        found.append(line)
    return sorted(found, key=lambda line: line.date)


def series(found: Sequence[Line]) -> dict[tuple[str, str, str], list[Point]]:
    """Points by benchmark, figure and machine."""
    points: dict[tuple[str, str, str], list[Point]] = {}
    for line in found:
        machine = ", ".join(str(value) for value in line.machine.values())
        figures = dict(line.metrics)
        if line.log_ratio is not None:
            figures[SPEED] = math.exp(line.log_ratio)
        for figure, value in figures.items():
            key = line.name, figure, machine
            points.setdefault(key, []).append(Point(line.date, line.commit, value))
    return points


def trend(values: Sequence[float]) -> Trend:
    """Steps or a drift, the one that describes a series better; neither if both can be chance.

    Raises:
        HistoryError: apache-otava is not installed.
    """
    if len(values) < _MIN_RUNS or min(values) == max(values):
        return Trend([], 0.0)
    steps = change_points(values)
    bounds = [0, *steps, len(values)]
    levels = [statistics.fmean(values[a:b]) for a, b in pairwise(bounds) for _ in range(a, b)]
    fit = statistics.linear_regression(range(len(values)), values)
    line = [fit.intercept + fit.slope * i for i in range(len(values))]
    mean = statistics.fmean(values)
    by_line = _bic(values, line, 2)
    by_level = _bic(values, [mean] * len(values), 1) - _MIN_EVIDENCE
    by_steps = _bic(values, levels, 2 * len(steps) + 1)  # a level for each part, a place per step
    if by_line < min(by_level, by_steps):
        return Trend([], fit.slope / abs(mean) if mean else 0.0)
    return Trend(steps, 0.0)


def _bic(values: Sequence[float], fitted: Sequence[float], n_parameters: int) -> float:
    """Bayesian information criterion of a model with normal errors: lower is better."""
    n = len(values)
    squares = sum((value - fit) ** 2 for value, fit in zip(values, fitted))
    return n * math.log(max(squares / n, 1e-300)) + n_parameters * math.log(n)


def noise(found: Sequence[Line], machine: dict[str, Value]) -> dict[str, float]:
    """Deviation of the log-ratio between runs on a machine, by benchmark.

    From what differs from one run to the next, so that steps and drifts do not count, and by the
    median, so that single disturbed runs do not. Benchmarks with fewer than 8 runs have none.
    """
    logs: dict[str, list[float]] = {}
    for line in found:
        if line.machine == machine and line.log_ratio is not None:
            logs.setdefault(line.name, []).append(line.log_ratio)
    return {
        name: _NORMAL * statistics.median(abs(b - a) for a, b in pairwise(values)) / math.sqrt(2)
        for name, values in logs.items()
        if len(values) >= _MIN_RUNS
    }


def change_points(values: Sequence[float]) -> list[int]:
    """Indices of the first value after each step, found by apache-otava.

    Raises:
        HistoryError: it is not installed.
    """
    try:
        from otava.analysis import compute_change_points
    except ModuleNotFoundError as error:
        raise HistoryError("change points need apache-otava: pip install apache-otava") from error
    found, _ = compute_change_points(list(values), min_magnitude=_MIN_MAGNITUDE)
    return [int(point.index) for point in found]


def report(found: Sequence[Line]) -> list[str]:
    """One line a series: its figures, and the commits between which it changed.

    Raises:
        HistoryError: apache-otava is not installed.
    """
    rows = []
    for (name, figure, machine), points in series(found).items():
        values = [point.value for point in points]
        changes = trend(values)
        words = [
            f"step of {100 * (_level(values, changes.steps, i) - 1):+.1f} % "
            f"between {points[i - 1].commit[:9] or '?'} and {points[i].commit[:9] or '?'}"
            for i in changes.steps
        ]
        if changes.drift:
            words.append(f"drift of {100 * changes.drift:+.2f} % a run")
        rows.append(
            f"{sparkline(values)}  {len(values)} runs  {values[-1]:.6g}  {name}  {figure}  "
            f"({machine}): {'; '.join(words) or 'no change'}"
        )
    return rows


def _level(values: Sequence[float], steps: Sequence[int], step: int) -> float:
    """The mean after a step over that before it."""
    bounds = [0, *steps, len(values)]
    at = bounds.index(step)
    after = statistics.fmean(values[step : bounds[at + 1]])
    return after / statistics.fmean(values[bounds[at - 1] : step])


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The last values as bars of eight heights."""
    last = list(values)[-width:]
    low, high = min(last), max(last)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (value - low) / span))] for value in last)


def exported(found: Sequence[Line], form: str) -> str:
    """The last run for Bencher ("bencher") or github-action-benchmark ("github"), or all runs as a
    table for Otava ("otava")."""
    points = series(found)
    if form == "otava":
        rows = ["time,commit,benchmark,figure,machine,value"]
        rows += [
            f'{p.date},{p.commit},"{name}","{figure}","{machine}",{p.value!r}'
            for (name, figure, machine), values in points.items()
            for p in values
        ]
        return "\n".join(rows) + "\n"
    if form == "github":
        entries = [
            {"name": f"{name} {figure}", "unit": figure, "value": values[-1].value}
            for (name, figure, _), values in points.items()
        ]
        return msgspec.json.encode(entries).decode()
    measures: dict[str, dict[str, dict[str, float]]] = {}
    for (name, figure, _), values in points.items():
        measures.setdefault(name, {})[figure] = {"value": values[-1].value}
    return msgspec.json.encode(measures).decode()


def page(found: Sequence[Line]) -> str:
    """A page with a plot of every series and what changed in it.

    Raises:
        HistoryError: apache-otava is not installed.
    """
    from html import escape

    parts = ["<!doctype html><meta charset=utf-8><title>Benchmarks</title><h1>Benchmarks</h1>"]
    for text, values in zip(report(found), series(found).values()):
        parts.append(f"<p>{escape(text.split('  ', 1)[1])}<br>{_plot([p.value for p in values])}")
    return "\n".join(parts) + "\n"


def _plot(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    span, step = (high - low) or 1.0, 600 / max(1, len(values) - 1)
    points = " ".join(
        f"{i * step:.1f},{90 - 80 * (v - low) / span:.1f}" for i, v in enumerate(values)
    )
    return (
        "<svg width=640 height=100 role=img><polyline fill=none stroke=currentColor "
        f'points="{points}"/><text x=604 y=14 font-size=10>{high:.4g}</text>'
        f"<text x=604 y=94 font-size=10>{low:.4g}</text></svg>"
    )
