"""How much memory this process has held at most."""

import sys
from pathlib import Path


def peak_memory_bytes() -> int | None:
    """The largest resident set of this process so far; None where the system does not report it."""
    try:
        import resource  # of Unix only
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def reset_peak_rss() -> int:
    """Reset the high-water mark of the resident set; the bytes resident now.

    Raises:
        OSError: the system has no such mark (it is Linux's).
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_rss_bytes() -> int:
    """The largest resident set since `reset_peak_rss`."""
    return _status("VmHWM")


def _status(key: str) -> int:
    """A figure of this process in bytes, which Linux gives in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
