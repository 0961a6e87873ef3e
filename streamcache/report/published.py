"""The published figures: numbers as printed, and what they were measured on."""

from dataclasses import dataclass

from streamcache.measure.configurations import NAMED, identity
from streamcache.measure.measurement import Fields, Record, WorkloadRecord

ON = "A800 80 GB, pythia-2.8b float16, PG19, 20,000 tokens"

Range = tuple[float, float]


@dataclass(frozen=True)
class Figures:
    """What was printed about a configuration; a range where several numbers were.

    Attributes:
        speedup: baseline TPOT over TPOT.
        tpot_ms: milliseconds per token.
        increase: of PPL over the baseline, as a fraction.
    """

    speedup: Range | None = None
    tpot_ms: Range | None = None
    increase: Range | None = None


def _one(value: float) -> Range:
    return (value, value)


PG19 = {
    "baseline": Figures(_one(1.0), _one(100.5), _one(0.0)),
    "mit": Figures((6.2, 7.3), _one(14.6), (0.01, 0.03)),
    "best": Figures((7.03, 7.11), _one(14.1), (0.0219, 0.0282)),
    "quality": Figures((6.94, 7.07), _one(14.2), (0.0218, 0.0219)),
    # Three speedups, three times and two increases were printed for R = 4, 16, 32; the gaps of
    # the former are at 32, so the increases are taken to be those of 4 and 16.
    "lazy-R4": Figures(_one(6.62), _one(15.76), _one(0.0545)),
    "lazy-R16": Figures(_one(7.09), _one(14.72), _one(0.0552)),
    "softlite-none": Figures(_one(6.94), _one(14.5), _one(0.0648)),
    "softlite-slack": Figures(_one(7.03), _one(14.3), _one(0.0601)),
    "softlite-maxdrop": Figures(_one(6.88), _one(14.6), _one(0.0594)),
    "softlite-full": Figures(_one(7.07), _one(14.2), _one(0.0219)),
}
WIKITEXT = {"mit": Figures((3, 5), None, (0.02, 0.04))}


_CORPORA = {
    "pg19": PG19,
    "wikitext": WIKITEXT,
}
# With the published sizes, or those that another total leaves: nothing else was printed of R = 4.
_NAMES = {name: NAMED[name] for name in PG19 if name in NAMED}


def of_record(record: Record) -> Figures:
    """The figures of a record's configuration on its text, all None where none were printed.

    A configuration counts as the published one with any window, if all else is the same.
    """
    corpus = next((c for name, c in _CORPORA.items() if is_of(record.workload, name)), {})
    own = _besides_window(record.configuration)
    for name, figures in corpus.items():
        if name in _NAMES and _besides_window(identity(_NAMES[name])) == own:
            return figures
    return Figures()


def is_of(workload: WorkloadRecord, corpus: str) -> bool:
    """Whether a text is of a corpus: "pg19/4047" is of "pg19"."""
    return workload.text.split("/")[0] == corpus


def _besides_window(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if name not in ("window_size", "weights")}
