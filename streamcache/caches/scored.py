"""Rules that look at content: of the entries that may go, the one with the lowest score goes.

A `Policy` decides by counts alone, so all layers and heads keep the same tokens. A `ScoredPolicy`
gives every entry a score, from its key or from the attention that it receives, and each layer and
head keeps its own. What is kept stands at the positions of its places in the cache, in order of the
stream, as in StreamingLLM.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from streamcache.caches.admission import UnsupportedModelError
from streamcache.caches.attention_override import eager_attention, set_attention
from streamcache.caches.reference import ReferenceCache
from streamcache.caches.saved import BATCH, Form, Layout
from streamcache.caches.shared_copy import shared_copy
from streamcache.policy import Policy, PolicyError

_NAME = "streamcache_scored"


class Entries(NamedTuple):
    """What a layer holds, n entries in order of the stream.

    Attributes:
        keys: [B, H, n, D], unrotated; H: heads of keys and values.
        values: [B, H, n, D].
        attention: [B, H, n], what the last query has put on them, mean over the query heads that
            share a key; sums to at most 1.
    """

    keys: Tensor
    values: Tensor
    attention: Tensor


@dataclass(frozen=True)
class ScoredPolicy(Policy, ABC):
    """Evict, before a token is appended to a full cache, the entry with the lowest score.

    A subclass defines `scores`, and may have more fields.

    Args:
        n_sink: the first tokens of the stream, never evicted.
        total: entries, the most ever held.
    """

    n_sink: int
    total: int
    by_content: ClassVar[bool] = True

    @abstractmethod
    def scores(self, entries: Entries) -> Tensor:
        """A score of each entry, [B, H, n] or [B, 1, n] for one decision of all heads."""

    @property
    def n_recent(self) -> int:
        """The newest entries that are never evicted."""
        return 1

    @property
    def capacity(self) -> int:
        return self.total

    @property
    def floor(self) -> int:
        return self.total

    def drop(self, seen: int, size: int) -> int:
        return max(0, size + 1 - self.total)


class ScoredCache(ReferenceCache):
    """A cache for a `ScoredPolicy`: each head of each layer evicts by itself.

    Plain and slow: keys are rotated at every step, and attention is computed in full. Feed it
    through `cache.model`, a copy that shares the weights of the model and reports its attention.

    Raises:
        UnsupportedModelError, AttentionOverrideError: the model cannot be streamed so.
        TypeError: the policy is no `ScoredPolicy`.
    """

    takes_long_inputs = False
    looks_at_content = True
    policy: ScoredPolicy

    def __init__(self, model: nn.Module, policy: Policy):
        if not isinstance(policy, ScoredPolicy):
            raise TypeError(f"{type(policy).__name__} is not a ScoredPolicy: use StreamingCache")
        if not 0 <= policy.n_sink < policy.total - policy.n_recent:
            raise PolicyError(
                f"total={policy.total} leaves no entry to evict besides {policy.n_sink} sinks and "
                f"the {policy.n_recent} newest"
            )
        self.model: PreTrainedModel = shared_copy(model)  # type: ignore[assignment]
        set_attention(self.model, _NAME)
        self._received: dict[int, Tensor] = {}  # by layer, [B, H, size], of the last query
        super().__init__(self.model, policy)
        if any(layer.rotates_second for layer in self.geometry.layers):
            raise UnsupportedModelError(
                f"{self.model.config.model_type} attends to other keys than it keeps (multi-head "
                "latent attention), so no entry has a score"
            )

    def _make_room(self, n_tokens: int, n_evicted: int, base: int) -> None:
        if n_evicted:  # one: a full cache holds `total` entries
            for layer in self._keys:
                self._evict_one(layer)

    def _evict_one(self, layer: int) -> None:
        keys, values = self._keys[layer], self._values[layer]
        n_entries, n_sink = keys.shape[2], self.policy.n_sink
        entries = Entries(keys, values, self._received[layer])
        scores = self.policy.scores(entries).float().expand(keys.shape[:3]).clone()
        scores[..., :n_sink] = scores[..., n_entries - self.policy.n_recent :] = torch.inf
        kept = torch.arange(n_entries, device=keys.device).expand(scores.shape)
        kept = kept[kept != scores.argmin(dim=-1, keepdim=True)].view(*keys.shape[:2], -1, 1)
        for states in (self._keys, self._values):
            whole = states[layer]
            states[layer] = whole.gather(2, kept.expand(-1, -1, -1, whole.shape[-1]))

    def _count(self, n_tokens: int) -> None:
        for module in self.model.modules():
            if (received := vars(module).pop("received", None)) is not None:
                layer = int(module.layer_idx)  # type: ignore[arg-type]
                self._received[self.geometry.places[layer]] = received

    def _state(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        numbers, states = super()._state()
        received = {f"received.{layer}": each for layer, each in self._received.items()}
        return numbers, {**states, **received}

    def _layout(self, numbers: dict[str, int]) -> Layout:
        states = super()._layout(numbers)
        n = numbers["seen"] - numbers["evicted"] + numbers["_ahead"]
        for layer in range(len(self) if numbers["seen"] else 0):
            heads = self.geometry.layers[layer].n_kv_heads
            states[f"received.{layer}"] = Form((BATCH, heads, n))
        return states

    def _restore(self, numbers: dict[str, int], states: dict[str, Tensor]) -> None:
        devices = self._devices()
        for name in [name for name in states if name.startswith("received.")]:
            layer = int(name.partition(".")[2])
            self._received[layer] = states.pop(name).to(devices[layer])
        super()._restore(numbers, states)

    def _select(self, rows: Tensor) -> None:
        super()._select(rows)
        for layer, received in self._received.items():
            self._received[layer] = received[rows.to(received.device)]

    def _forget(self) -> None:
        super()._forget()
        self._received.clear()


def _attention(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """An attention function of transformers that reports what the last query attended to."""
    output, weights = eager_attention(module, *args, **kwargs)
    n_kv_heads = args[1].shape[1]
    last = weights[:, :, -1, :-1]  # without a learned sink
    vars(module)["received"] = last.unflatten(1, (n_kv_heads, -1)).mean(dim=2)
    return output, weights


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, eager_mask)
