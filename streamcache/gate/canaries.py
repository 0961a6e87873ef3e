"""Canaries: fixed pieces of work whose times show the state and the speed of a machine."""

import math

NOISE = 0.05  # log; single snapshots of a host may be off by 15 %, their medians by 1
BAND = {"host": 1.0, "device": 0.10}  # log; by what a canary is about


def kind(canary: str) -> str:
    """What a canary is about, by the first word of its name: "host" or "device"."""
    return canary.partition(" ")[0]


def pace(now: float | None, golden: float) -> float:
    """Log of a canary's time in units of its golden time; NaN where there is no such time."""
    return math.log(now) - math.log(golden) if now and now > 0 and golden > 0 else math.nan


def paces(now: dict[str, float], golden: dict[str, float]) -> list[float]:
    """How much slower a machine is as a whole: of the device where there is one, or of the host."""
    decides = "device" if any(kind(name) == "device" for name in golden) else "host"
    found = [pace(now.get(name), golden[name]) for name in sorted(golden) if kind(name) == decides]
    return [change for change in found if math.isfinite(change)]


def slower_host(now: dict[str, float], golden: dict[str, float]) -> float:
    """How much slower the host is than the golden's, as a log-ratio, where that is a loss of speed.

    A host-bound candidate beside a baseline that a GPU is bound by loses what the host loses: on
    one kind of GPU, eager decoding was measured to take a third more from host to host. Where both
    are on the host, it is what small operations lose and products do not.
    """
    operations, product = (
        pace(now.get(name), golden.get(name, 0.0)) for name in ("host operations", "host product")
    )
    on_gpu = any(kind(name) == "device" for name in golden)
    change = operations if on_gpu else operations - product
    return change if change > NOISE else 0.0


def out_of_band(now: dict[str, float], golden: dict[str, float], host_bound: bool) -> str:
    """Canaries out of their band, in words; those of the host matter to what is host-bound."""
    found = []
    for name in sorted(golden):
        if kind(name) == "host" and not host_bound:
            continue
        change = pace(now.get(name), golden[name])
        if not math.isfinite(change):
            found.append(f"canary {name!r} has no time")
        elif abs(change) > BAND.get(kind(name), BAND["host"]):
            took = math.exp(min(change, 700.0))
            found.append(f"canary {name!r} took {took:.2f} x its reference")
    return "; ".join(found)
