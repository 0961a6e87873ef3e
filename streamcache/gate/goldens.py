"""The golden of a device: what several processes measured there, and why it was recorded."""

import math

import msgspec

from streamcache.gate import stats
from streamcache.gate.environment import Value
from streamcache.gate.samples import PROTOCOL, Metric

VERSION = 2
SCHEMA = "streamcache-golden"
MIN_TAU = 0.03
MIN_GUARD = 0.15  # of the baseline's own time
MIN_MEAN_TAU = 0.15  # of the mean over the pairs, which rare slow blocks move
ANCHOR_BUDGET = 0.05


class GoldenError(ValueError):
    """A golden file cannot be used or written; the message says why."""


class PublishedRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A speedup that somebody published lies between; nothing else is known."""

    low: float
    high: float


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The golden of one benchmark.

    Attributes:
        identity, host_bound, metrics, equal: as of the samples. An identity has the fields that are
            set: a default is absent. The tolerances are the golden's, so that a test cannot loosen
            them unseen.
        log_ratios: one a process, log(candidate / baseline).
        baselines_s, candidates_s: seconds, one a process; of the same processes as the log-ratios
            or of others, since an update replaces what moved and nothing else.
        mean_log_ratios: one a process, log(sum of candidates / sum of baselines), where rare slow
            blocks show; empty where it was recorded without.
        anchor: the log-ratio at the last release; losses since then add up against a budget.
        published: figures of a publication: only these are compared, not all that is measured.
        published_range: instead of times, a published speedup.
        recorded: the date of the provenance that this entry is of; empty where that is not known.
        min_tau: the loss that counts, as a fraction; 0: the test gave none, and it is `MIN_TAU`.
        noise: deviation between runs that a history shows, as a log-ratio.
    """

    identity: dict[str, Value] = {}
    host_bound: bool = True
    log_ratios: list[float] = []
    baselines_s: list[float] = []
    candidates_s: list[float] = []
    mean_log_ratios: list[float] = []
    anchor: float | None = None
    metrics: dict[str, Metric] = {}
    equal: dict[str, Value] = {}
    published: bool = False
    published_range: PublishedRange | None = None
    recorded: str = ""
    min_tau: float = 0.0
    noise: float = 0.0

    @property
    def tau(self) -> float:
        """The loss of speed that counts, as a log-ratio."""
        least = math.log1p(self.min_tau) or MIN_TAU
        return max(stats.threshold(self.log_ratios, least), 3 * self.noise)

    @property
    def mean_tau(self) -> float:
        """The same of the mean over the pairs."""
        return stats.threshold(self.mean_log_ratios, MIN_MEAN_TAU)

    @property
    def anchor_budget(self) -> float:
        """What may be lost since the anchor, all steps together, as a log-ratio."""
        return max(ANCHOR_BUDGET, self.tau)

    @property
    def guard(self) -> float:
        """The same of the baseline's own time."""
        return stats.threshold([math.log(s) for s in self.baselines_s], MIN_GUARD)


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where figures come from; of 0 processes: from a publication, which says so."""

    reason: str
    date: str
    commit: str
    processes: int
    context: dict[str, Value] = {}


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The goldens of one device.

    Attributes:
        provenance, earlier: of the last update and of those before, whose entries may still stand.
        canaries: of the first update; the `baselines_s` of later ones are converted to them.
    """

    provenance: Provenance
    machine: dict[str, Value]
    host: dict[str, Value]
    canaries: dict[str, float]
    entries: dict[str, Entry]
    earlier: list[Provenance] = []
    protocol: int = PROTOCOL
    version: int = VERSION
    schema: str = SCHEMA

    @property
    def published_fields(self) -> set[str]:
        """The fields of an identity that the publication names anywhere: only these compare."""
        return {key for entry in self.entries.values() if entry.published for key in entry.identity}

    @property
    def is_published(self) -> bool:
        """Whether nothing in it was measured by this gate."""
        return self.provenance.processes == 0
