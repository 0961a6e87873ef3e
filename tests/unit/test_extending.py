"""A cache of one's own: what it must define, and what it need not."""

import pytest
import torch
from torch import Tensor, nn

from streamcache.caches.base import BoundedCache
from streamcache.policy import EvictionPolicy, Policy
from tests.cases import each_cache
from tests.tiny import error, expected, stream, text, tiny

MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}


class Halfway(BoundedCache):
    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values


class Concatenating(BoundedCache):
    """For models without rotary embeddings: what is kept, in one tensor a layer."""

    def __init__(self, model: nn.Module, policy: Policy):
        self.states: dict[int, tuple[Tensor, Tensor]] = {}
        super().__init__(model, policy)

    def _make_room(self, n_tokens: int, n_evicted: int, base: int) -> None:
        n_sink = self.policy.n_sink
        for layer, held in self.states.items():
            first, second = (
                torch.cat([x[:, :, :n_sink], x[:, :, n_sink + n_evicted :]], dim=2) for x in held
            )
            self.states[layer] = first, second

    def _append(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.seen:
            held = self.states[layer_idx]
            keys = torch.cat([held[0][:, :, : self.size], keys], dim=2)
            values = torch.cat([held[1][:, :, : self.size], values], dim=2)
        self.states[layer_idx] = keys, values
        return keys, values

    def _select(self, rows: Tensor) -> None:
        self.states = {i: (k[rows], v[rows]) for i, (k, v) in self.states.items()}

    def _forget(self) -> None:
        self.states = {}

    @property
    def batch_size(self) -> int:
        return self.states[0][0].shape[0] if self.states else -1


def test_a_cache_that_is_half_done_cannot_be_made_and_the_error_says_what_is_missing() -> None:
    with pytest.raises(TypeError) as error:
        Halfway(tiny("mpt", **MPT), EvictionPolicy(2, 8))  # type: ignore[abstract]
    for name in ("_make_room", "_select", "_forget", "batch_size"):
        assert name in str(error.value)
    assert "_append" not in str(error.value)


def test_a_cache_of_five_methods_streams_exactly() -> None:
    model, policy, ids = tiny("mpt", **MPT), EvictionPolicy(2, 8, 3, 2, 4), text(60)
    assert (
        error(stream(model, Concatenating(model, policy), ids), expected(model, policy, ids)) < 1e-4
    )


@each_cache
def test_what_transformers_asks_a_cache_is_answered_for_every_layer(
    cache_type: type[BoundedCache],
) -> None:
    model = tiny("llama", num_hidden_layers=3)
    cache = cache_type(model, EvictionPolicy(2, 8))
    assert len(cache) == 3
    assert cache.is_sliding == cache.is_linear == cache.is_dummy == [False] * 3
    assert not cache.is_compileable and not cache.is_croppable and not cache.is_initialized
    assert cache.batch_size == -1 or cache.seen == 0
    assert cache.get_max_length() == cache.get_max_cache_shape() == -1
    assert not cache.has_previous_state(0) and not cache.is_recording_past(0)
    stream(model, cache, text(5, batch=2))
    assert cache.is_initialized and cache.batch_size == 2 and cache.get_seq_length(1) == 5
    with pytest.raises(NotImplementedError, match="bounded cache"):
        cache.early_initialization()
    with pytest.raises(ValueError, match="max_rollback"):
        cache.activate_past_recording()
