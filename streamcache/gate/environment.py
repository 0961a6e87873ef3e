"""Where samples are taken: the machine, and what disturbs it."""

import gc
import math
import statistics
import sys
import time
from types import BuiltinFunctionType
from typing import Protocol

import msgspec

Value = str | int

PARENT = "STREAMCACHE_GOLDEN_PARENT"  # set where a process that measures waits for this one


class Environment(msgspec.Struct, frozen=True):
    """One snapshot of a machine, or several merged.

    Attributes:
        machine: must be the same for anything to compare: device, memory, power limit, threads.
        host: must be the same for host-bound times to compare: the model of the CPU.
        context: recorded, and shown where it differs: versions, driver.
        canaries: seconds of fixed pieces of work, by name.
        problems: why times taken here are invalid: a throttled GPU, a foreign process.
        readings: what else was seen, one a snapshot: clock rates, temperature.
    """

    machine: dict[str, Value] = {}
    host: dict[str, Value] = {}
    context: dict[str, Value] = {}
    canaries: dict[str, float] = {}
    problems: list[str] = []
    readings: list[str] = []


class EnvironmentProbe(Protocol):
    """Takes snapshots: before, during and after each benchmark."""

    def sample(self) -> Environment: ...


def differences(now: dict[str, Value], golden: dict[str, Value]) -> str:
    """The keys that differ, with both values; empty where none does."""
    keys = [k for k in sorted(now.keys() | golden.keys()) if now.get(k) != golden.get(k)]
    return ", ".join(f"{k} is {now.get(k)!r}, not {golden.get(k)!r}" for k in keys)


def merged(snapshots: list[Environment]) -> Environment:
    """Snapshots of one run: canaries at their median, all problems and readings.

    Snapshots of two machines are a problem, too.
    """
    first = snapshots[0]
    canaries = {
        name: statistics.median(e.canaries.get(name, math.nan) for e in snapshots)
        for name in first.canaries
    }
    place = {**first.machine, **first.host}
    found = (differences({**e.machine, **e.host}, place) for e in snapshots)
    problems = [p for e in snapshots for p in e.problems]
    problems += [f"one run, two machines: {differs}" for differs in found if differs]
    readings = [r for e in snapshots for r in e.readings]
    return msgspec.structs.replace(
        first, canaries=canaries, problems=list(dict.fromkeys(problems)), readings=readings
    )


def interpreter() -> dict[str, Value]:
    """What of Python's own is not as usual and changes times: part of what is measured."""
    return {} if gc.isenabled() and gc.get_threshold()[0] else {"gc": "off"}


def tracers() -> list[str]:
    """What watches every line or call of this process and slows it down, and replaced clocks."""
    found = {"sys.settrace": sys.gettrace(), "sys.setprofile": sys.getprofile()}
    on = [f"a tracer is on ({name})" for name, tracer in found.items() if tracer is not None]
    clocks = (time.perf_counter, time.process_time, time.thread_time)
    replaced = [clock for clock in clocks if not isinstance(clock, BuiltinFunctionType)]
    return on + [f"a clock was replaced by {clock!r}" for clock in replaced]
