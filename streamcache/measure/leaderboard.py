"""Methods side by side: PPL, what is recalled in and beyond the cache, and memory."""

import math
from dataclasses import dataclass

from streamcache.inputs.corpora import TokenizedText
from streamcache.inputs.facts import LEAST_DISTANCE
from streamcache.inputs.models import LoadedModel
from streamcache.measure.configurations import Configuration
from streamcache.measure.measurement import Record
from streamcache.measure.progress import Progress, no_progress
from streamcache.measure.recall import Recalled, measure_recall
from streamcache.measure.room import bytes_per_entry
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard.

    Attributes:
        ppl: over the positions at which the caches of all rows are full.
        within, beyond: recall at half the total, and at one and a half times as much.
        cache_bytes: of keys and values, when the cache is full.
    """

    record: Record
    ppl: float
    within: Recalled
    beyond: Recalled
    cache_bytes: int


def measure_entries(
    loaded: LoadedModel,
    text: TokenizedText,
    filler: TokenizedText,
    configurations: list[Configuration],
    total: int,
    n_questions: int,
    store: Store,
    progress: Progress = no_progress,
) -> list[Entry]:
    """Measure every configuration on the same texts, or find what was measured; best PPL first.

    Args:
        text: for PPL; longer than every cache.
        filler: stands between the facts.
        total: entries, from which the two distances follow.
        n_questions: for each distance.
    """
    workload = Workload(loaded, text, window=None)
    what = What(tpot_tokens=0)
    measured = [run(each, workload, what, store, progress=progress) for each in configurations]
    first = max(each.policy.floor for each in configurations) - 1
    far = [max(LEAST_DISTANCE, total // 2), max(2 * LEAST_DISTANCE, total * 3 // 2)]
    entries = []
    for configuration, found in zip(configurations, measured):
        assert found.nll is not None
        within, beyond = measure_recall(
            loaded, filler, [configuration], far, n_questions, store, progress
        )
        ppl = math.exp(found.nll[first:].mean())
        held = configuration.policy.capacity * bytes_per_entry(loaded.model)
        entries.append(Entry(found.record, ppl, within, beyond, held))
    return sorted(entries, key=lambda entry: entry.ppl)
