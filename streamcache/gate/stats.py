"""The statistics of the gate, as pure functions of numbers.

The unit of sampling is the process: two processes differ by more than the pairs inside one do
(memory layout, clocks, what else runs), so the spread of a golden is that between its processes.
"""

import math
import statistics
from collections.abc import Sequence

from streamcache.measure.student import student_t

MIN_PAIRS = 4  # fewer have no quartiles


def percent(log: float) -> float:
    """A log-ratio as the change that it is, in percent; figures beyond any are shown, too."""
    return 100 * math.expm1(min(log, 700.0))


def spread(values: Sequence[float]) -> float:
    """Standard deviation between processes; NaN of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def error_of_median(values: Sequence[float]) -> float:
    """Standard error of the median, from the middle half of the values: outliers do not count.

    For normal values the quartiles are 1.349 deviations apart and a median's error is 1.253 that
    of a mean.
    """
    if len(values) < MIN_PAIRS:
        return math.nan
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return 1.253 * (quartiles[2] - quartiles[0]) / 1.349 / math.sqrt(len(values))


def threshold(golden: Sequence[float], minimum: float) -> float:
    """tau: the change that counts, at least `minimum` and three deviations between processes."""
    return max(minimum, 3 * spread(golden))


class Loss:
    """How much slower than the golden, as a log-ratio, with a one-sided 95 % bound either way.

    The error of one new process is the larger of the spread between the golden's processes and
    what its own pairs show; the golden's mean has its own error. That `lower_bound` is below a
    threshold does not mean that nothing was lost: it means that chance explains it.

    Args:
        noise: deviation between runs that is known otherwise: the spread is no less.
    """

    def __init__(self, now: float, error: float, golden: Sequence[float], noise: float = 0.0):
        self.estimate = now - statistics.fmean(golden)
        between = max(spread(golden), noise)
        own = max(between, 0.0 if math.isnan(error) else error)
        self.margin = student_t(0.95, len(golden) - 1) * math.hypot(
            own, between / math.sqrt(len(golden))
        )

    @property
    def lower_bound(self) -> float:
        return self.estimate - self.margin

    @property
    def upper_bound(self) -> float:
        return self.estimate + self.margin
