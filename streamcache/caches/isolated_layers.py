"""The layers of a decoder one by one, in float32, at any position.

Whether positions enter a layer other than by the rotation of its keys shows as a difference between
two positions. Through many layers in half precision, rounding makes as large a difference. So every
layer is given the same input at all positions, and computes in float32 on a copy of its weights
made for the moment: the verdict on a model depends neither on its depth nor on its dtype.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from streamcache.caches.layer_states import state_layers
from streamcache.caches.sharded import is_sharded
from streamcache.caches.shared_copy import shared_copy
from streamcache.caches.signatures import cache_name, parameters_of

N_TOKENS = 8  # probed at once: one may have small keys in a pair of dimensions, eight have not


class States(NamedTuple):
    """What the layers make of the same N_TOKENS tokens at some position.

    Attributes:
        embedding: [1, n, hidden], the input of the first layer.
        keys, values: by layer, [1, H, n, D], as a cache gets them.
        outputs: by layer, [1, n, hidden], what it adds to its input.
        hidden: by layer, [1, n, hidden], its input.
    """

    embedding: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    outputs: list[Tensor]
    hidden: list[Tensor]


class IsolatedLayers:
    """A decoder whose layers can be run at any position.

    Attributes:
        in_float32: whether all weights are of a kind that can be computed with in float32;
            quantised ones that cannot are computed with as the model does.
    """

    def __init__(self, decoder: PreTrainedModel):
        self._decoder = copy = shared_copy(decoder)
        for module in copy.modules():
            if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
                config._attn_implementation_internal = "eager"
                config._experts_implementation_internal = "eager"
        n_layers = copy.config.get_text_config(decoder=True).num_hidden_layers
        lists = (m for m in copy.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers)
        layers = next(lists, nn.ModuleList())
        self.in_float32 = all(_can_be_float32(p) for p in layers.parameters())
        self._layers = [_Layer(layer, self.in_float32) for layer in layers]
        for i, layer in enumerate(self._layers):
            layers[i] = layer
        embedding = copy.get_input_embeddings()
        if self.in_float32:
            copy.set_input_embeddings(_Wide(embedding))
        kept = {id(p) for m in (layers, embedding) for p in m.parameters()}
        self._others = [name for name, p in copy.named_parameters() if id(p) not in kept]

    @torch.no_grad()
    def at(self, position: int) -> States:
        """The same tokens, the first at `position`; layers are given what the first call gave."""
        probe = _ProbeCache(position, state_layers(self._decoder.config))
        self._run(probe, slice(0, N_TOKENS), position)
        return States(
            self._layers[0].given if self._layers else torch.empty(0),
            {i: k for i, (k, _) in probe.states.items()},
            {i: v for i, (_, v) in probe.states.items()},
            [layer.output for layer in self._layers],
            [layer.input for layer in self._layers],
        )

    @torch.no_grad()
    def in_two_pieces(self) -> list[Tensor]:
        """What layers add to their input, by layer [1, n, hidden], where a cache of transformers is
        fed the same tokens in two calls."""
        cache, half = DynamicCache(config=self._decoder.config), N_TOKENS // 2
        outputs: list[list[Tensor]] = []
        for part in (slice(0, half), slice(half, N_TOKENS)):
            self._run(cache, part, part.start)
            outputs.append([layer.output for layer in self._layers])
        return [torch.cat(pieces, dim=1) for pieces in zip(*outputs)]

    @torch.no_grad()
    def second_half(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By layer, keys and values of the last tokens where those before were never fed."""
        probe = _ProbeCache(N_TOKENS // 2, state_layers(self._decoder.config))
        self._run(probe, slice(N_TOKENS // 2, N_TOKENS), N_TOKENS // 2)
        return probe.states

    def _run(self, cache: Cache, part: slice, position: int) -> None:
        """Some of the tokens through all layers, the first at a position."""
        copy = self._decoder
        embedding: Any = copy.get_input_embeddings()
        device: torch.device = embedding.weight.device
        vocabulary = int(copy.config.get_text_config(decoder=True).vocab_size)
        tokens = torch.arange(N_TOKENS, device=device)[None] * (vocabulary // N_TOKENS)
        inputs: dict[str, Any] = {
            "input_ids": tokens[:, part],
            "use_cache": True,
            cache_name(type(copy).forward): cache,
        }
        if "position_ids" in parameters_of(type(copy).forward):
            positions = torch.arange(N_TOKENS, device=device)[None, : part.stop - part.start]
            inputs["position_ids"] = positions + position
        for layer in self._layers:
            layer.part = part
        with torch.autocast(device.type, enabled=False):
            if self.in_float32:
                named = dict(copy.named_parameters())
                functional_call(copy, {n: named[n].float() for n in self._others}, (), inputs)
            else:
                copy(**inputs)


class _Layer(nn.Module):
    """A layer that computes in float32 on the input it was first given."""

    def __init__(self, inner: nn.Module, in_float32: bool):
        super().__init__()
        self.inner, self.in_float32 = inner, in_float32
        self.first: Tensor | None = None
        self.part = slice(0, N_TOKENS)
        self.given = self.input = self.output = torch.empty(0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        named = "hidden_states" in kwargs
        self.given = kwargs["hidden_states"] if named else args[0]
        if self.first is None:
            here = next(self.inner.parameters()).device  # that of the layer before may be another
            self.first = (self.given.float() if self.in_float32 else self.given).to(here)
        self.input = hidden = self.first[:, self.part]
        if named:
            kwargs["hidden_states"] = hidden
        else:
            args = (hidden, *args[1:])
        if self.in_float32:
            wide = {name: _float32(p) for name, p in self.inner.named_parameters()}
            out = functional_call(self.inner, wide, args, kwargs)
        else:
            out = self.inner(*args, **kwargs)
        self.output = (out[0] if isinstance(out, tuple) else out) - hidden
        return out

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what the decoder asks of a layer: its kind
            return getattr(super().__getattr__("inner"), name)


class _Wide(nn.Module):
    """An embedding whose vectors are float32."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        vectors: Tensor = self.inner(*args, **kwargs)
        return vectors.float()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class _ProbeCache(Cache):
    """Claims to have seen `position` tokens, holds none, and notes the states it is given."""

    def __init__(self, position: int, states: list[Any]):
        super().__init__(layers=states)
        self.position = position
        self.states: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.states[layer_idx] = (key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.position

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, self.position


def _can_be_float32(weight: Tensor) -> bool:
    if _is_plain(weight):
        return weight.is_floating_point()
    return hasattr(weight, "dequantize")


def _float32(weight: Tensor) -> Tensor:
    dense: Tensor = weight if _is_plain(weight) else weight.dequantize()
    return dense.float()


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is what it says, whole or, in tensor parallel, a part of it."""
    return type(weight.data) is Tensor or is_sharded(weight)
