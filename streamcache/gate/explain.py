"""Why a benchmark is slower: where its time went before, and where it goes now."""

from collections.abc import Mapping

N_SHOWN = 5  # parts
_MIN_SHARE = 0.01  # of the time before; less is not worth a line


def explained(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """The kernels, operators or functions whose time has changed most, a line each.

    Args:
        before, now: milliseconds by part.
    """
    total = sum(before.values())
    changes = {name: now.get(name, 0.0) - before.get(name, 0.0) for name in {*before, *now}}
    most = sorted(changes, key=lambda name: (-abs(changes[name]), name))[:N_SHOWN]
    return [
        f"{name}: {before.get(name, 0.0):.3f} -> {now.get(name, 0.0):.3f} ms ({changes[name]:+.3f})"
        for name in most
        if abs(changes[name]) > _MIN_SHARE * total
    ]
