"""Has a model attention sinks? Attention on the first tokens, and PPL by the number kept."""

import math
from dataclasses import replace

import msgspec
import numpy

from streamcache.caches.attention_override import AttentionOverrideError
from streamcache.decoding.attention_mass import attention_mass
from streamcache.measure.checked import SCHEMA_VERSION
from streamcache.measure.configurations import Configuration
from streamcache.measure.measurement import Environment, WorkloadRecord, environment
from streamcache.measure.progress import Progress, no_progress
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy

N_SINKS = (0, 1, 2, 4, 8, 16)
ENOUGH = 0.005  # of the PPL: fewer sinks are chosen where they cost less
_N_FIRST = 4  # tokens
_N_ATTENDED = 512  # of the text


class SinkRow(msgspec.Struct, frozen=True):
    """PPL with the first tokens kept, in a cache whose total is the same for all rows.

    Attributes:
        ppl: of the steady state, which begins at the same position in all rows.
        increase: of it over the lowest of all rows, a fraction; error: its standard error over the
            positions, 0 for the lowest itself.
    """

    n_sink: int
    window_size: int
    ppl: float
    increase: float
    error: float


class Sinks(msgspec.Struct, frozen=True, tag="streamcache-sinks", tag_field="schema"):
    """What `streamcache sinks` found of a model on a text.

    Attributes:
        total: entries of the cache.
        rows: by the number of sinks.
        n_attended: tokens of the text in whose second half attention was taken; 0: it could not be.
        attention: by layer and head, the share on each of the first tokens.
        learned: by layer and head, the share on a learned sink.
        why_not: why attention could not be taken.
    """

    workload: WorkloadRecord
    environment: Environment
    total: int
    rows: tuple[SinkRow, ...]
    n_attended: int
    attention: list[list[list[float]]]
    learned: list[list[float]]
    why_not: str | None = None
    version: int = SCHEMA_VERSION

    @property
    def chosen(self) -> int:
        """The fewest sinks whose PPL is within `ENOUGH` of the lowest."""
        return min(row.n_sink for row in self.rows if row.increase <= ENOUGH)

    @property
    def uniform(self) -> float:
        """The share of one token, if attention were spread evenly over all before the query."""
        late = range(self.n_attended // 2, self.n_attended)
        return sum(1 / (t + 1) for t in late) / len(late) if late else 0.0


def measure_sinks(
    workload: Workload, total: int, store: Store | None = None, progress: Progress = no_progress
) -> Sinks:
    """Measure a model on a text.

    Args:
        total: entries of the cache, more than the most sinks.

    Raises:
        PolicyError: the total leaves no window.
        ValueError: the text ends before the cache is full.
    """
    workload = replace(workload, window=None)
    n_tokens = len(workload.text.input_ids)
    if n_tokens <= total + 1:
        raise ValueError(f"a text of {n_tokens} tokens does not fill a cache of {total} entries")
    weights = workload.loaded.quantization
    steady = []
    policies = [EvictionPolicy.from_budget(total, n_sink) for n_sink in N_SINKS]
    for policy in policies:
        configuration = Configuration(policy, "streaming", weights=weights)
        what = What(tpot_tokens=0)
        measured = run(configuration, workload, what, store, progress=progress)
        assert measured.nll is not None
        steady.append(measured.nll[total - 1 :])
    lowest = min(steady, key=lambda nll: float(nll.mean()))
    rows = []
    for policy, nll in zip(policies, steady):
        gap = nll - lowest
        ratio = math.exp(gap.mean())
        error = ratio * float(numpy.std(gap)) / math.sqrt(len(gap))
        rows.append(
            SinkRow(policy.n_sink, policy.window_size, math.exp(nll.mean()), ratio - 1, error)
        )
    first, learned, why_not = [], [], None
    n_attended = min(_N_ATTENDED, n_tokens)
    try:
        found = attention_mass(
            workload.loaded.model, workload.text.input_ids[:n_attended], _N_FIRST
        )
        first, learned = found.first.tolist(), found.learned.tolist()
    except AttentionOverrideError as error:
        n_attended, why_not = 0, str(error)
    return Sinks(
        workload.record,
        environment(workload.loaded.model.device, workload.loaded.n_devices),
        total,
        tuple(rows),
        n_attended,
        first,
        learned,
        why_not,
    )
