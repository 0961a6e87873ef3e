"""How much memory this process has held at most."""

import sys


def peak_memory_bytes() -> int | None:
    """The largest resident set of this process so far; None where the system does not tell."""
    try:
        import resource  # of Unix only
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
