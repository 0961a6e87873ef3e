"""Your own benchmark, compared with a golden: see docs/gate.md.

pytest examples/test_sort.py --golden=laptop --golden-update --golden-reason "first record"
pytest examples/test_sort.py --golden=laptop --golden-required
"""

import heapq
import random
import statistics

from streamcache.gate import Stopwatch

_random = random.Random(0)
RUNS = [sorted(_random.random() for _ in range(500)) for _ in range(8)]


def sort():
    return sorted(x for run in RUNS for x in run)


def merge():
    return list(heapq.merge(*RUNS))


def seconds(work):
    with Stopwatch() as watch:
        for _ in range(10):
            work()
    return watch.seconds / 10


def test_sort(benchmark, golden):
    found = sort()
    golden.identity(runs=8, length=500)  # what is measured: figures of other sizes do not compare
    golden.equal(numbers=len(found))  # must be equal
    golden.metric("average", statistics.fmean(found), rel_tol=1e-9)  # equal except for rounding
    golden.time(benchmark, lambda: seconds(sort), lambda: seconds(merge))
