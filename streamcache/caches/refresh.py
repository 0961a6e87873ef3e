"""Refresh, an experiment: some evicted tokens are put back into the cache at each eviction.

A part of the budget is reserved for them. At each eviction as many tokens as fit are chosen from
all evicted so far, evenly spaced, the newest among them; they replace those chosen before.
`middle` puts them between sinks and window, in stream order. `tail`, as published, puts them
behind the newest token. A token's position is its place in the cache, so with `tail` the old tokens
appear nearer than the window, and the window appears further away than it is.

Keys are stored unrotated and rotated to their places at every step, as in `ReferenceCache`. Evicted
tokens stay in memory, which therefore grows with the stream: this cache is not bounded.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.reference import ReferenceCache, rotate
from streamcache.caches.saved import Form, Layout
from streamcache.policy import Policy, PolicyError

RefreshPolicy = Literal["tail", "middle"]


class RefreshCache(ReferenceCache):
    """A cache that holds what the policy keeps, and up to `budget` evicted tokens.

    Args:
        policy: without the budget: at most capacity + budget entries are held.
        budget: entries for evicted tokens, at least 1.
        where: where they are put.

    Attributes:
        places: the tokens held, by place in the cache, int64 [n].

    Raises:
        PolicyError: budget < 1, or another `where`.
    """

    takes_long_inputs = False  # it holds more than the policy keeps

    def __init__(self, model: PreTrainedModel, policy: Policy, budget: int, where: RefreshPolicy):
        if budget < 1 or where not in get_args(RefreshPolicy):
            raise PolicyError(
                f"refresh needs budget >= 1 and where=tail or middle, got {budget} and {where!r}"
            )
        self.budget, self.where = budget, where
        super().__init__(model, policy)  # whose keys and values are here of all tokens seen

    def _forget(self) -> None:
        super()._forget()
        self.places = torch.empty(0, dtype=torch.long)

    def _make_room(self, n_tokens: int, n_evicted: int, base: int) -> None:
        if n_evicted:
            self.places = self._places_after(self.evicted)

    def _places_after(self, evicted: int) -> Tensor:
        """The tokens held, in order, once so many have been evicted in all."""
        sinks = torch.arange(self.policy.n_sink)
        window = torch.arange(self.policy.n_sink + evicted, self.seen)
        chosen = evenly_spaced(evicted, self.budget) + self.policy.n_sink
        middle = self.where == "middle"
        return torch.cat((sinks, chosen, window) if middle else (sinks, window, chosen))

    def _n_stored(self, seen: int, evicted: int) -> int:
        return seen

    def _state(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        numbers, states = super()._state()
        return numbers, {**states, "places": self.places}

    def _layout(self, numbers: dict[str, int]) -> Layout:
        n_held = numbers["seen"] - numbers["evicted"] + min(numbers["evicted"], self.budget)
        return {**super()._layout(numbers), "places": Form((n_held,), ("I64",))}

    def _restore(self, numbers: dict[str, int], states: dict[str, Tensor]) -> None:
        self.places = states.pop("places").clamp(0, max(0, self.seen - 1))  # whoever wrote them
        super()._restore(numbers, states)

    def _count(self, n_tokens: int) -> None:
        self.places = torch.cat([self.places, torch.arange(self.seen, self.seen + n_tokens)])

    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rotation = self.geometry.layers[layer_idx].rotation
        n_held, n_new = len(self.places), keys.shape[2]
        # of the places 0 ... n_held + n_new - 1; the first new one is at `next_position`
        position = torch.arange(n_held + n_new, device=keys.device) + self.next_position - n_held
        places = torch.cat([self.places, torch.arange(self.seen, self.seen + n_new)])
        unrotated = rotate(keys, -position[n_held:], rotation)
        all_keys = self._stored(self._keys, layer_idx, unrotated)
        all_values = self._stored(self._values, layer_idx, values)
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
        places = self.places
        forward = self._forward
        if forward and forward.n_evicted and not forward.has_room:  # before its first layer
            places = self._places_after(self.evicted + forward.n_evicted)
        return len(places) + query_length, self.seen - len(places)


def evenly_spaced(n: int, budget: int) -> Tensor:
    """Of 0 ... n - 1, all or `budget` that are evenly spaced: the first and, from two on, the last.

    int64, increasing.
    """
    if n <= budget:
        return torch.arange(n)
    return torch.linspace(0, n - 1, budget, dtype=torch.float64).round().long()
