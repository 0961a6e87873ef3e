"""Which facts of a stream can still be told when they are asked for: right answers by distance."""

import math
from dataclasses import dataclass

from streamcache.inputs.corpora import TokenizedText
from streamcache.inputs.facts import Question, facts_text
from streamcache.inputs.models import LoadedModel
from streamcache.measure.configurations import Configuration
from streamcache.measure.measurement import Measurement
from streamcache.measure.progress import Progress, no_progress
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload


@dataclass(frozen=True)
class Recalled:
    """One configuration at one distance.

    Attributes:
        distance: tokens from a fact to the question about it.
        n_right, n_asked: answers that greedy decoding would give right, whole; of how many.
        nll: mean over the answers, nats a token.
    """

    configuration: str
    distance: int
    n_right: int
    n_asked: int
    nll: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the share of right answers, by Wilson 1927."""
        return wilson(self.n_right, self.n_asked)


def measure_recall(
    loaded: LoadedModel,
    text: TokenizedText,
    configurations: list[Configuration],
    distances: list[int],
    n_questions: int,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> list[Recalled]:
    """Measure every configuration on one stream with questions at all distances."""
    assert loaded.tokenizer is not None
    stream, asked = facts_text(text, loaded.tokenizer, distances, n_questions)
    workload = Workload(loaded, stream, window=None)
    found = []
    for configuration in configurations:
        what = What(tpot_tokens=0, ranks=True)
        measured = run(configuration, workload, what, store, progress=progress)
        found += recalled(configuration.name, measured, asked, distances)
    return found


def recalled(
    name: str, measured: Measurement, asked: list[Question], distances: list[int]
) -> list[Recalled]:
    """What a measurement of the stream says, by distance."""
    nll, ranks = measured.nll, measured.ranks
    assert nll is not None and ranks is not None
    found = []
    for distance in distances:
        # Entry t is of token t + 1.
        answers = [slice(q.start - 1, q.end - 1) for q in asked if q.distance == distance]
        n_right = sum(not ranks[answer].any() for answer in answers)
        mean = sum(float(nll[answer].mean()) for answer in answers) / len(answers)
        found.append(Recalled(name, distance, n_right, len(answers), mean))
    return found


def wilson(n_right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of which `n_right` of `n` were seen."""
    share = n_right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
