"""What a configuration is measured on: a model, a text, and the baseline it is compared with."""

from dataclasses import dataclass

from torch import Tensor

from streamcache.inputs.corpora import TokenizedText
from streamcache.inputs.models import LoadedModel
from streamcache.measure.configurations import BASELINE
from streamcache.measure.measurement import WorkloadRecord
from streamcache.policy import EvictionPolicy


@dataclass(frozen=True, eq=False)
class Workload:
    """A model that reads a text.

    Attributes:
        loaded: PPL is taken of it.
        text: what it reads.
        timed: times are taken of this one; None: of `loaded`.
        window: S and W of the recompute baseline; None: PPL is not compared with it.
    """

    loaded: LoadedModel
    text: TokenizedText
    timed: LoadedModel | None = None
    window: EvictionPolicy | None = BASELINE

    @property
    def timed_model(self) -> LoadedModel:
        """The model whose times are taken."""
        return self.timed or self.loaded

    @property
    def record(self) -> WorkloadRecord:
        """What identifies it."""
        return WorkloadRecord(
            model=self.loaded.name,
            revision=self.loaded.revision,
            dtype=str(self.loaded.model.dtype).removeprefix("torch."),
            timed=self._timed_name,
            text=self.text.name,
            text_source=self.text.source,
            text_digest=self.text.digest,
            n_tokens=len(self.text.input_ids),
        )

    @property
    def _timed_name(self) -> str:
        """Of the model that is timed; of a folder with its digest, where it is another model."""
        name, revision = self.timed_model.name, self.timed_model.revision
        is_folder = revision.startswith("sha256:") and name != "reference"
        if is_folder and revision != self.loaded.revision:
            return f"{name}@{revision.removeprefix('sha256:')}"
        return name

    @property
    def ppl_unavailable_reason(self) -> str | None:
        """Why a PPL would mean nothing; None where it means something."""
        if self.loaded.revision == "seed0":
            return "random weights: TPOT only, a PPL would mean nothing"
        if self.text.source == "packaged" and self.loaded.name != "reference":
            return "the packaged stream is text of the reference model: TPOT only for this one"
        return None

    def ids(self, loaded: LoadedModel, at_least: int = 0) -> Tensor:
        """The text [T] on a model's device, repeated until it has `at_least` tokens."""
        ids = self.text.input_ids.to(loaded.model.device)
        return ids.repeat(max(0, at_least - 1) // len(ids) + 1)


def default_window(loaded: LoadedModel) -> EvictionPolicy:
    """The window of the recompute baseline: the published 4 + 2,044, or the model's context."""
    config = loaded.model.config.get_text_config(decoder=True)
    context = getattr(config, "max_position_embeddings", None) or BASELINE.floor
    total = min(BASELINE.floor, int(context))
    return EvictionPolicy(min(BASELINE.n_sink, total - 1), total - min(BASELINE.n_sink, total - 1))
