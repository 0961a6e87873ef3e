"""Verdicts: what a check of a benchmark says."""

import enum
from collections.abc import Iterable, Sequence

import msgspec

IDENTITY = "identity"  # the check of what is measured, and of how


class Status(enum.Enum):
    """The outcome of a check, the most severe last. Only INVALID, MISSING and FAIL are red."""

    PASS = "pass"
    IMPROVED = "improved"  # faster than the threshold: record it, or it can be lost unseen
    INCONCLUSIVE = "inconclusive"  # too noisy, or not comparable here: nothing was shown
    SUSPECT = "suspect"  # slower, but a fresh process did not agree
    WARNING = "warning"  # it would be red, but was to be warned of only
    INVALID = "invalid"  # measured where or when it means nothing
    MISSING = "missing"  # a benchmark without a golden, or a golden without a benchmark
    FAIL = "fail"

    @property
    def fails_build(self) -> bool:
        return self in (Status.FAIL, Status.MISSING, Status.INVALID)

    @property
    def severity(self) -> int:
        return list(Status).index(self)


class Verdict(msgspec.Struct, frozen=True):
    """One check of one benchmark.

    Attributes:
        check: what was compared: "speed", "baseline", "anchor", "identity", a metric's name...
        now, golden: the figures, as shown.
        loss: of speed, as a fraction.
        margin, tau, host: log-ratios: the one-sided 95 % bound of the loss, the loss that counts,
            and the loss that a slower host explains.
        cause: one line in words.
    """

    name: str
    check: str
    status: Status
    now: str = ""
    golden: str = ""
    loss: float | None = None
    margin: float | None = None
    tau: float | None = None
    host: float = 0.0
    cause: str = ""


def as_warning(verdict: Verdict) -> Verdict:
    """A verdict that fails no run: what would be red is a warning."""
    if not verdict.status.fails_build:
        return verdict
    return msgspec.structs.replace(
        verdict, status=Status.WARNING, cause=f"{verdict.status.name}: {verdict.cause}"
    )


def worst(verdicts: Iterable[Verdict]) -> Status:
    """The most severe status; of none, PASS."""
    return max((v.status for v in verdicts), key=lambda s: s.severity, default=Status.PASS)


def exit_status(verdicts: Sequence[Verdict], n_measured: int) -> int:
    """0 pass, 1 fail or missing, 5 nothing measured, 75 invalid by the environment, 76 since
    something else is measured."""
    if n_measured == 0:
        return 5
    status = worst(verdicts)
    if status in (Status.FAIL, Status.MISSING):
        return 1
    if status is not Status.INVALID:
        return 0
    return 76 if any(v.status is status and v.check == IDENTITY for v in verdicts) else 75
