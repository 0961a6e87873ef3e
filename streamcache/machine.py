"""The computer and the source that something was measured with."""

import os
import platform
import subprocess
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


def n_cores() -> int:
    """Cores that this process may use, which are fewer than the machine's in some containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
