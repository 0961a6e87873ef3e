"""Refresh, an experiment: tokens of the evicted middle are put back into the cache at prunes.

Part of the budget is set aside for them. At each prune as many tokens as fit are chosen from all
that were evicted so far, evenly spaced, the newest among them, and take the place of those chosen
before. `middle` puts them between sinks and window, in stream order. `tail`, as published, puts
them behind the newest token: a token's position is its place in the cache, so the old ones then
look nearer than the window, which looks further away than it is.

Keys are kept unrotated and turned to their places at every step, as in `mit`. What was evicted is
kept, too: memory grows with the stream, which is what a bounded cache is there to avoid.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.bounded import BoundedCache
from streamcache.configurations import Configuration
from streamcache.decode import Advance, Stream, fill, token_nll
from streamcache.policy import EvictionPolicy, PolicyError
from streamcache.reference import ReferenceCache, rotate

RefreshPolicy = Literal["tail", "middle"]


class RefreshCache(ReferenceCache):
    """A cache that holds what the policy keeps and up to `budget` evicted tokens beside.

    Args:
        policy: with the budget set aside: capacity + budget is the most that is ever held.
        budget: entries for evicted tokens, at least 1.
        where: where they are put.

    Attributes:
        places: the tokens held, by place in the cache, int64 [n].

    Raises:
        PolicyError: budget < 1, or another `where`.
    """

    def __init__(
        self, model: PreTrainedModel, policy: EvictionPolicy, budget: int, where: RefreshPolicy
    ):
        if budget < 1 or where not in get_args(RefreshPolicy):
            raise PolicyError(
                f"refresh needs a budget >= 1 and tail or middle, got {budget} and {where!r}"
            )
        self.budget, self.where = budget, where
        super().__init__(model, policy)  # whose keys and values are here of all tokens seen

    def reset(self) -> None:
        super().reset()
        self.places = torch.empty(0, dtype=torch.long)

    def _make_room(self, n_tokens: int, dropped: int, rebase: bool) -> None:
        if dropped:
            sinks = torch.arange(self.policy.n_sink)
            window = torch.arange(self.policy.n_sink + self.evicted, self.seen)
            chosen = evenly_spaced(self.evicted, self.budget) + self.policy.n_sink
            middle = self.where == "middle"
            order = (sinks, chosen, window) if middle else (sinks, window, chosen)
            self.places = torch.cat(order)
        if rebase:
            self.base = self.seen  # the next token is at position 0, what is held before it

    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rotation = self.geometry.layers[layer_idx].rotation
        n_held, n_new = len(self.places), keys.shape[2]
        # of the places 0 ... n_held + n_new - 1; the first new one is at `next_position`
        position = torch.arange(n_held + n_new, device=keys.device) + self.next_position - n_held
        places = torch.cat([self.places, torch.arange(self.seen, self.seen + n_new)])
        unrotated = rotate(keys, -position[n_held:], rotation)
        all_keys = self._stored(self._keys, layer_idx, unrotated)
        all_values = self._stored(self._values, layer_idx, values)
        if layer_idx == len(self.geometry.layers) - 1:
            self.places = places
        places = places.to(keys.device)
        held = all_keys.index_select(2, places), all_values.index_select(2, places)
        return rotate(held[0], position, rotation), held[1]

    def _stored(self, states: dict[int, Tensor], layer: int, new: Tensor) -> Tensor:
        """All states of a layer so far and the new ones, [B, H, at least seen + n, D]."""
        end = self.seen + new.shape[2]
        if layer not in states or states[layer].shape[2] < end:
            longer = new.new_empty((*new.shape[:2], 2 * end, new.shape[3]))
            if layer in states:
                longer[:, :, : self.seen] = states[layer][:, :, : self.seen]
            states[layer] = longer
        states[layer][:, :, self.seen : end] = new
        return states[layer]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        n_held = len(self.places)
        return n_held + query_length, self.seen - n_held


def evenly_spaced(n: int, budget: int) -> Tensor:
    """Of 0 ... n - 1, all or `budget` that are evenly spaced: the first and, from two on, the last.

    int64, increasing.
    """
    if n <= budget:
        return torch.arange(n)
    return torch.linspace(0, n - 1, budget, dtype=torch.float64).round().long()


@torch.inference_mode()
def nll_between_prunes(
    model: PreTrainedModel, input_ids: Tensor, cache: BoundedCache, advance: Advance | None = None
) -> Tensor:
    """`decode.sequential_nll`, from prune to prune in one forward: nothing goes inside of it."""
    head = fill(model, input_ids, cache, advance)
    rows = [head]
    begin, last = len(head), len(input_ids) - 1
    prunes = [t for t, dropped in enumerate(cache.policy.drops(last)) if dropped and t > begin]
    for end in [*prunes, last] if begin < last else []:
        for chunk in input_ids[begin:end].split(cache.policy.window_size):
            logits = model(input_ids=chunk[None], past_key_values=cache).logits[0]
            rows.append(token_nll(logits, input_ids[cache.seen - len(chunk) + 1 : cache.seen + 1]))
        if advance:
            advance(end - begin)
        begin = end
    return torch.cat(rows)


@dataclass(frozen=True)
class RefreshConfiguration(Configuration):
    """A policy with tokens put back at prunes; its PPL is decoded, not taken in one pass."""

    budget: int = 1
    where: RefreshPolicy = "middle"

    @staticmethod
    def of(policy: EvictionPolicy, budget: int, where: RefreshPolicy) -> "RefreshConfiguration":
        name = f"refresh-{where}-{budget} {policy.settings}"
        return RefreshConfiguration(name, policy, "mit", budget, where)

    @property
    def note(self) -> str:
        """What the policy alone does not say."""
        return f"besides, up to {self.budget} evicted tokens are held ({self.where})"

    def cache(self, model: PreTrainedModel) -> RefreshCache:
        return RefreshCache(model, self.policy, self.budget, self.where)

    def step(self, model: PreTrainedModel, input_ids: Tensor) -> Stream:
        return Stream(model, input_ids, self.cache(model))

    def sequential_nll(
        self, model: PreTrainedModel, input_ids: Tensor, advance: Advance | None = None
    ) -> Tensor:
        return nll_between_prunes(model, input_ids, self.cache(model), advance)
