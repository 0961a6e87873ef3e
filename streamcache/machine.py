"""The computer and the source that something was measured with."""

import os
import platform
import re
import subprocess
import time
from functools import cache
from pathlib import Path


@cache
def cpu_model() -> str:
    """Name, family, model and stepping: in virtual machines unlike CPUs share a name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or "unknown"
    first = [line.partition(":") for line in text.partition("\n\n")[0].splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in first}
    numbers = [facts.get(key, "?") for key in ("cpu family", "model", "stepping")]
    return f"{facts.get('model name', 'unknown')} ({'.'.join(numbers)})"


def idle_cores(seconds: float = 0.5) -> float:
    """How many of the cores that this process may use nobody used meanwhile.

    Where the system does not say, all of them.
    """
    try:
        cores = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        cores = set()
    before = _core_times()
    if not cores or not cores <= before.keys():
        return len(cores) or os.cpu_count() or 1
    time.sleep(seconds)
    after = _core_times()
    changes = [[b - a for a, b in zip(before[core], after[core])] for core in cores]
    if not any(map(any, changes)):
        return len(cores)
    return sum(sum(change[3:5]) / max(1, sum(change)) for change in changes)


def _core_times(path: Path = Path("/proc/stat")) -> dict[int, list[int]]:
    """Ticks of each core so far: user, nice, system, idle, waiting for a disk, and others."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines if re.match(r"cpu\d", line))
    return {int(name[3:]): [int(ticks) for ticks in times[:8]] for name, *times in rows}


@cache
def source_commit(package: Path = Path(__file__).parent) -> str | None:
    """The commit of the git checkout that the package lies in, with "+" where files differ from it.

    None where the package is installed: a repository around it is then another project's.
    """
    init = package / "__init__.py"
    if _git(package, "ls-files", "--error-unmatch", "--", str(init)) is None:
        return None
    commit = _git(package, "rev-parse", "--short=12", "HEAD")
    changed = _git(package, "status", "--porcelain", "--", str(package))
    return f"{commit}+" if commit and changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.decode(errors="replace").strip()
