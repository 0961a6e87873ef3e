"""Everything the paper measured: its configurations within one budget, and what each leaves.

A finished measurement is three files: `<name>.nll.npy`, NLL of each token in nats,
`<name>.tpot.npy`, milliseconds of each timed token, and, written last, the record `<name>.json`.
"""

import dataclasses
import warnings
from pathlib import Path

from torch import Tensor

from streamcache.decoding.nll import Advance
from streamcache.inputs.corpora import TokenStream
from streamcache.inputs.models import LoadedModel
from streamcache.measure import evaluate, records
from streamcache.measure.baseline import Baseline, Fingerprint
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.measure.records import Record, RecordError
from streamcache.policy import EvictionPolicy, PolicyError, PolicyWarning

PUBLISHED_TOTAL = 2048
TEXTS = {"pg19": 20_000, "wikitext": 4096}  # tokens, as published
QUICK_TEXTS = {"pg19": 6144, "wikitext": 3072}
METHODS = ("baseline", "mit", "ours-standard", "best", "quality", "fast")
CAPTURED = ("captured", "best-captured")  # eager without a GPU, and so nothing of their own
ABLATIONS = ("lazy-", "sink-", "softlite-")


def within(named: Configuration, total: int) -> Configuration:
    """The configuration with the window that a total budget leaves, entries.

    Called `name@total` where that is not the size that goes with the name.

    Raises:
        PolicyError: the total leaves no window.
    """
    p = named.policy
    with warnings.catch_warnings():  # the ablations are here to show what it costs
        warnings.simplefilter("ignore", PolicyWarning)
        policy = EvictionPolicy.from_budget(
            total, p.n_sink, p.cache_slack, p.max_drop, p.compress_every
        )
    if policy == p:
        return named
    return dataclasses.replace(named, name=f"{named.name}@{total}", policy=policy)


def configurations(total: int, on_gpu: bool) -> list[Configuration]:
    """The baseline, the methods and the three ablations; the baseline first.

    At the published total the methods have their published sizes (`quality` is 16 entries beyond
    it). The ablations' windows are always derived, so that all of one have the same budget.

    Raises:
        PolicyError: the total leaves one of them no window; the message says what would do for all.
    """
    methods = [NAMED[name] for name in (*METHODS, *(CAPTURED if on_gpu else ()))]
    ablations = [named for name, named in NAMED.items() if name.startswith(ABLATIONS)]
    derived = ablations + (methods if total != PUBLISHED_TOTAL else [])
    least = max(named.policy.n_sink + named.policy.slack for named in derived) + 1
    if total < least:
        raise PolicyError(
            f"total={total} leaves no window in some configurations; total must be at least {least}"
        )
    if total != PUBLISHED_TOTAL:
        methods = [within(named, total) for named in methods]
    return methods + [within(named, total) for named in ablations]


def folder_of(output_dir: Path, loaded: LoadedModel, text: TokenStream) -> Path:
    """Where the records of a model and a text lie."""
    return output_dir / "paper" / evaluate.subject(loaded, text).file_name


@dataclasses.dataclass(eq=False)
class Paper:
    """The measurements of one model on one text.

    Attributes:
        n_timed: timed tokens per configuration.
        runs: timed forwards of the baseline, in turns with each configuration.
        wanted: of what the baseline is made; None where a PPL would mean nothing.
    """

    loaded: LoadedModel
    text: TokenStream
    folder: Path
    baseline: EvictionPolicy
    n_timed: int
    runs: int
    wanted: Fingerprint | None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._nll: dict[EvictionPolicy, Tensor] = {}  # one pass is a matter of the policy alone

    def path(self, configuration: Configuration) -> Path:
        return self.folder / f"{configuration.name}.json"

    def finished(self, configuration: Configuration) -> Record | None:
        """The record on disk, if it and its numbers are of the same and as thoroughly measured."""
        path = self.path(configuration)
        try:
            record = records.read(path)
            if record.speed:
                records.read_array(records.array_path(path, "tpot"), record.speed.n_tokens)
            if record.quality and configuration.mode:
                records.read_array(records.array_path(path, "nll"), record.subject.n_tokens - 1)
        except RecordError:
            return None
        same = (
            record.subject == evaluate.subject(self.loaded, self.text)
            and record.mode == (configuration.mode or "recompute")
            and record.policy == evaluate.as_recorded(configuration.policy)
            and record.environment == records.environment(self.loaded.model.device)
        )
        n_timed = self.runs if configuration.mode is None else self.n_timed
        timed = record.speed is not None and record.speed.n_tokens >= n_timed
        n_compared = 0 if record.quality is None else record.quality.n_compared
        return record if same and timed and n_compared >= self._n_compared(configuration) else None

    def seconds(self, configuration: Configuration, window_s: float, token_s: float) -> float:
        """About what `measure` takes, seconds; the factors are those of the reference model.

        Args:
            window_s: what recomputing a window takes.
            token_s: what decoding a token with the `fast` cache takes.
        """
        if configuration.mode is None:
            n_late = 0 if self.wanted is None else self.wanted.late_positions
            return (n_late + self.runs + 2) * window_s
        factor = {"mit": 2.6, "ours": 1.3, "captured": 0.2}.get(configuration.mode, 1)
        capture_s = 15 if configuration.mode == "captured" else 0
        found = (self.runs + 4) * window_s + 1.3 * self.n_timed * factor * token_s + capture_s
        if self.wanted is not None:
            found += 3.5 * self.text.input_ids.shape[0] / configuration.policy.capacity * window_s
        return found

    def _n_compared(self, configuration: Configuration) -> int:
        if self.wanted is None:
            return 0
        return int(evaluate.compared_at(self.wanted, configuration.policy.floor).sum())

    def measure(
        self, configuration: Configuration, made: Baseline | None, advance: Advance | None = None
    ) -> Record:
        """Measure a configuration and write its three files.

        Args:
            made: the baseline of `wanted`; None where that is None.
            advance: called with the number of tokens just finished in the one pass.
        """
        quality, path = None, self.path(configuration)
        if made is not None and configuration.mode is None:
            quality = evaluate.baseline_quality(made)
        elif made is not None:
            nll = self._one_pass(configuration, advance)
            quality = evaluate.quality(nll, configuration.policy.floor, "one-pass", made)
            records.write_array(records.array_path(path, "nll"), nll.numpy())
        timed = [configuration] if configuration.mode else []
        laps = evaluate.lap_times(
            self.loaded, self.text, self.baseline, timed, self.n_timed, self.runs
        )
        own = laps[configuration.name] if timed else laps["baseline"]
        records.write_array(records.array_path(path, "tpot"), own.token_ms)
        speed = evaluate.speed(self.loaded.name, own, laps["baseline"])
        record = evaluate.record(configuration, self.loaded, self.text, quality, speed, self.notes)
        records.write(path, record)
        return record

    def _one_pass(self, configuration: Configuration, advance: Advance | None) -> Tensor:
        policy = configuration.policy
        if policy not in self._nll:
            self._nll[policy] = evaluate.stream_nll(
                self.loaded, self.text, configuration, "one-pass", advance
            )
        return self._nll[policy]
