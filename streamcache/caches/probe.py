"""How a model rotates its keys, measured rather than looked up.

The keys that a layer hands to the cache obey K(p) = R(p) K(0) for the same input at position p. A
few forwards show, layer by layer, which dimensions rotate, in which pairs and how fast, for any
model and without a list of names. A model for which this does not hold, whose values depend on the
position, or whose layers do more with it, is refused (see `isolated_layers`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from streamcache.caches.admission import (
    UnsupportedModelError,
    decoder_of,
    pretrained,
    refusal,
    require_admissible,
)
from streamcache.caches.fingerprint import holds_angles
from streamcache.caches.isolated_layers import N_TOKENS, IsolatedLayers, States
from streamcache.caches.layer_states import state_layers, without_attention
from streamcache.caches.rope import Rotation

__all__ = ["LayerGeometry", "ModelGeometry", "UnsupportedModelError", "probe_rope"]


@dataclass(frozen=True)
class LayerGeometry:
    """What the cache must know of one attention layer.

    Attributes:
        n_kv_heads, key_dim, value_dim: shape of the states: [batch, n_kv_heads, tokens, dim].
        rotation: how its keys are rotated; None for a layer without RoPE (NoPE, ALiBi).
        rotates_second: whether the cache is given the rotated keys in place of values (multi-head
            latent attention): those are kept as keys here, and the latents as values.
        device: where its keys and values are: the layers of a model may lie on several devices.
    """

    n_kv_heads: int
    key_dim: int
    value_dim: int
    rotation: Rotation | None
    device: torch.device
    rotates_second: bool = False


@dataclass(frozen=True)
class ModelGeometry:
    """The geometry of all layers.

    Attributes:
        layers: one entry per layer that keeps keys and values, in order.
        indices: which layers of the model these are.
        max_position: positions beyond it break the rotation (a table ends or switches); None if
            the rotation holds at any position.
        has_states: whether a layer has a state beside keys and values, or in place of them.
        continues_states: whether several tokens at once continue from such a state.
        max_entries: a layer attends to no more (the table of MPT's biases ends); None: to any.
    """

    layers: tuple[LayerGeometry, ...]
    indices: tuple[int, ...]
    max_position: int | None
    max_entries: int | None = None
    has_states: bool = False
    continues_states: bool = True

    @property
    def in_one_pass(self) -> bool:
        """Whether attention is to keys and values of the cache and nothing else has a state."""
        return not self.has_states and not any(layer.rotates_second for layer in self.layers)

    @cached_property
    def places(self) -> dict[int, int]:
        """Of a layer of the model, its place in `layers`."""
        return {index: place for place, index in enumerate(self.indices)}


_probed: WeakKeyDictionary[PreTrainedModel, tuple[object, ModelGeometry]] = WeakKeyDictionary()
_EPS = torch.finfo(torch.float32).eps


@torch.no_grad()
def probe_rope(model: nn.Module) -> ModelGeometry:
    """The rotary geometry of a model, from a few short forwards (once per model).

    Raises:
        UnsupportedModelError: the model's positions are not a rotation of its keys, or something
            else about it would make a bounded cache silently wrong.
        TypeError: it is no model of transformers, nor a wrapper around one.
    """
    require_admissible(pretrained(model))
    decoder = decoder_of(model)
    state = _angles_of(decoder)
    before, geometry = _probed.get(decoder, (None, None))
    if geometry is None or before != state:
        geometry = _Probe(decoder).geometry()
        _probed[decoder] = state, geometry
    return geometry


def _angles_of(decoder: PreTrainedModel) -> object:
    """What a geometry goes by: `.half()` rounds the frequencies that a model keeps, for good."""
    frequencies = [b.tolist() for name, b in decoder.named_buffers() if "inv_freq" in name]
    return decoder.dtype, [p.device for p in decoder.parameters()], frequencies


class _Probe:
    """The layers of a decoder at the first position, and at a few others."""

    def __init__(self, decoder: PreTrainedModel):
        self.decoder, self.config = decoder, decoder.config
        self.contexts = _contexts(self.config)
        self.layers = IsolatedLayers(decoder)
        tables = (b for n, b in decoder.named_buffers() if holds_angles(n.split(".")[-1]))
        coarse = [torch.finfo(b.dtype).eps for b in tables if b.ndim == 2]  # of angles
        computed = _EPS if self.layers.in_float32 else torch.finfo(decoder.dtype).eps
        self.rounding = max([computed, *coarse])
        self.is_exact = self.rounding == _EPS
        self.swapped: set[int] = set()  # layers whose rotated keys come second
        self.origin = self._at(0)

    def _at(self, position: int) -> States:
        try:
            return _swapped(self.layers.at(position), self.swapped)
        except Exception as error:
            reason = "its layers ask a cache for more than keys and values"
            if position:
                reason = "it cannot be run with a cache that holds fewer tokens than it has seen"
            raise refusal(self.config, reason) from error

    def _layers_that_rotate_values(self, states: States) -> set[int]:
        """Layers that give a cache what does not depend on the position, and then what does."""
        few, origin = 32 * self.rounding, self.origin
        return {
            layer
            for layer, keys in states.keys.items()
            if _distance(keys, origin.keys[layer]) <= few
            and _distance(states.values[layer], origin.values[layer]) > few
        }

    def geometry(self) -> ModelGeometry:
        n_layers = self.config.get_text_config(decoder=True).num_hidden_layers
        origin = self.origin
        indices = tuple(sorted(origin.keys))
        if not indices:
            raise refusal(self.config, "none of its layers keeps keys and values")
        others = set(range(n_layers)) - without_attention(self.config)
        if not origin.outputs:
            raise refusal(self.config, "a layer attends more than once")
        if not others <= set(indices) or len(origin.outputs) != n_layers:
            raise refusal(self.config, "some of its layers keep no keys and values of their own")
        self._require_finite()
        last = max(1, min([510, *self.contexts]) - N_TOKENS)
        self.swapped = self._layers_that_rotate_values(self._at(1))
        origin = self.origin = _swapped(origin, self.swapped)
        near = {position: self._at(position) for position in (1, min(17, last), last)}
        for position, states in near.items():
            self._require_no_other_trace(states, position)
        found: list[Rotation | None] = []
        for layer in indices:
            found.append(self._rotation_of(layer, near, found[-1] if found else None))
        layers = tuple(
            LayerGeometry(
                keys.shape[1],
                keys.shape[-1],
                origin.values[i].shape[-1],
                rotation,
                keys.device,
                i in self.swapped,
            )
            for rotation, (i, keys) in zip(found, sorted(origin.keys.items()))
        )
        text = self.config.get_text_config(decoder=True)
        longest = None if any(found) else getattr(text, "max_seq_len", None)
        limit = self._position_limit(indices, found)
        has_states = bool(state_layers(self.config))
        continues_states = not has_states or self._continues_states()
        if has_states:
            self._require_keys_of_tokens()
        return ModelGeometry(layers, indices, limit, longest, has_states, continues_states)

    def _require_finite(self) -> None:
        """Else nothing that is measured below means anything."""
        origin = self.origin
        places = [("its embedding", origin.embedding)]
        places += [(f"layer {i}", output) for i, output in enumerate(origin.outputs)]
        places += [(f"layer {i}", keys) for i, keys in sorted(origin.keys.items())]
        places += [(f"layer {i}", values) for i, values in sorted(origin.values.items())]
        for name, states in places:
            if not bool(states.isfinite().all()):
                raise refusal(
                    self.config,
                    f"{name} gives NaN or infinity: its weights are damaged, or "
                    f"{self.decoder.dtype} is too narrow for them",
                )

    def _require_no_other_trace(self, states: States, position: int) -> None:
        """Positions may show in the keys alone: not in embeddings, values or what layers add."""
        origin, few = self.origin, 8 * self.rounding
        trace = _TRACE if self.is_exact else _COARSE_TRACE * self.rounding
        if _distance(states.embedding, origin.embedding) > few:
            raise refusal(
                self.config,
                "positions enter its hidden states (learned or sinusoidal position embeddings)",
            )
        for layer, values in states.values.items():
            if _distance(values, origin.values[layer]) > few:
                raise refusal(
                    self.config,
                    "what it keeps as values depends on the position",
                )
        for now, then, hidden in zip(states.outputs, origin.outputs, origin.hidden):
            # scores are off by the rounding of angles; the sum by that of its larger part
            allowed = trace * then.norm() + few * hidden.norm()
            if (now - then).norm() > allowed:
                largest = max(float(keys.abs().max()) for keys in origin.keys.values())
                reason = "what two tokens see of each other depends on where they stand"
                if largest > _LARGE:
                    reason = (
                        f"its keys are as large as {largest:.0e}, so the rounding of its angles "
                        "to float32 changes its attention from position to position"
                    )
                raise refusal(self.config, reason)

    def _require_keys_of_tokens(self) -> None:
        """What a state goes into is of many tokens: there is no oracle for such keys and values."""
        for layer, alone in self.layers.second_half().items():
            within = self.origin.keys[layer], self.origin.values[layer]
            for now, then in zip(alone[::-1] if layer in self.swapped else alone, within):
                if _distance(now, then[:, :, -now.shape[2] :]) > 32 * self.rounding:
                    raise refusal(
                        self.config, "a state of earlier tokens enters its keys or values"
                    )

    def _continues_states(self) -> bool:
        """Whether layers give in two pieces what they give at once: some forget their state."""
        few = 32 * self.rounding
        for now, then, hidden in zip(
            self.layers.in_two_pieces(), self.origin.outputs, self.origin.hidden
        ):
            if (now - then).norm() > few * (then.norm() + hidden.norm()):
                return False
        return True

    def _rotation_of(
        self, layer: int, near: dict[int, States], before: Rotation | None
    ) -> Rotation | None:
        """What explains the keys of a layer best; `before` is that of the layer in front."""
        dim, device = self.origin.keys[layer].shape[-1], self.origin.keys[layer].device
        first: list[Rotation | None] = [None]
        if before is not None and before.start + 2 * before.inv_freq.shape[0] <= dim:
            first = [before.to(device), None]
        best, least = None, torch.inf
        for rotation in [*first, *_hypotheses(self.decoder, dim, device)]:
            errors = [self._error(rotation, layer, p, states) for p, states in near.items()]
            if sum(errors) < least:
                best, least = rotation, sum(errors)
            if self.is_exact and least < torch.inf:  # no other one comes as close
                return best
        if least == torch.inf:
            raise refusal(
                self.config, "it rotates its keys in a way that no known frequencies explain"
            )
        return best

    def _error(self, rotation: Rotation | None, layer: int, position: int, states: States) -> float:
        """By how much keys at `position` differ from those of the origin, rotated: relative to
        their size, and infinite where rounding does not explain it in every pair of dimensions."""
        before, after = self.origin.keys[layer].double(), states.keys[layer].double()
        expected = before if rotation is None else rotation.shift(before, position)
        error = (after - expected).square().sum(dim=(0, 1, 2)).sqrt()
        size = after.square().sum(dim=(0, 1, 2)).sqrt()
        slack = torch.full_like(size, (256 if self.is_exact else 4) * self.rounding)
        if rotation is not None:  # an angle in float32 is off by more, the larger it is
            angle = rotation.inv_freq.to(size).abs() * (position + N_TOKENS)
            rotation.pairs(slack).add_(4 * _EPS * angle[:, None])
            pair = rotation.pairs(size)
            pair.copy_(pair.square().sum(dim=-1, keepdim=True).sqrt().expand_as(pair))
        allowed = slack * size + (8 if self.is_exact else 1) * self.rounding * size.norm()
        if not bool((error <= allowed).all()):
            return torch.inf
        return float((error.norm() / after.norm()).nan_to_num(nan=0.0))

    def _position_limit(self, indices: Sequence[int], found: list[Rotation | None]) -> int | None:
        """None if the rotations hold far past the trained context, else the positions they do."""
        if not self.contexts or not any(found):
            return None
        least = min(self.contexts)
        # A table with a row per position (GPT-J) is not probed past its end: on a GPU that is fatal
        if any(b.ndim == 2 and b.shape[0] in self.contexts for b in self.decoder.buffers()):
            return least
        for position in {context + context // 2 for context in self.contexts}:
            states = self._at(position)
            for layer, rotation in zip(indices, found):
                if self._error(rotation, layer, position, states) == torch.inf:
                    return least
        return None


_LARGE = 3e3  # of keys: times the rounding of an angle of 1, this is above the trace
_TRACE = 5e-5  # rounding leaves 1e-6, queries scaled by position 2e-3
_COARSE_TRACE = 16  # roundings; in half precision up to 7.5 were seen, of 120 types


def _swapped(states: States, layers: set[int]) -> States:
    """The states with keys and values of these layers exchanged."""
    keys, values = dict(states.keys), dict(states.values)
    for layer in layers:
        keys[layer], values[layer] = values[layer], keys[layer]
    return states._replace(keys=keys, values=values)


def _distance(now: Tensor, then: Tensor) -> float:
    """Relative to `then`; 0 where that is not a number."""
    return float(((now - then).norm() / then.norm()).nan_to_num(nan=0.0))


def _frequencies_of(table: Tensor) -> Tensor:
    """Of a table [positions, 2 n] of sines and cosines, from its last row."""
    sine, cosine = table[1:].chunk(2, dim=-1)
    first, last = torch.atan2(sine[0], cosine[0]), torch.atan2(sine[-1], cosine[-1])
    turns = ((len(sine) * first - last) / (2 * torch.pi)).round()
    return (last + 2 * torch.pi * turns) / len(sine)


def _contexts(config: PreTrainedConfig) -> list[int]:
    """Lengths at which a model's table of angles may end or switch, tokens."""
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    lengths = (
        getattr(text, "max_position_embeddings", None),
        rope.get("original_max_position_embeddings"),
    )
    return [int(length) for length in lengths if length]


def _hypotheses(model: PreTrainedModel, head_dim: int, device: torch.device) -> Iterator[Rotation]:
    """Rotations worth trying: the model's own frequencies in every layout and place."""
    for inv_freq in _frequencies(model, head_dim):
        n = inv_freq.shape[0]
        if 2 * n > head_dim:
            continue
        for start in dict.fromkeys((0, head_dim - 2 * n)):
            for signed in (inv_freq, -inv_freq):
                yield Rotation("half", start, signed.to(device))
                yield Rotation("interleaved", start, signed.to(device))


def _frequencies(model: PreTrainedModel, head_dim: int) -> Iterator[Tensor]:
    """float64 [n] candidates: buffers the model rotates with, then what it would compute anew (as
    PhiMoE does in every forward, so that `.half()` rounds its buffers only), then the formula."""
    seen: list[Tensor] = []
    for name, buffer in model.named_buffers():
        if name.endswith("embed_positions") and buffer.ndim == 2 and len(seen) == 0:
            seen.append(_frequencies_of(buffer.double()))
            yield seen[-1]
        if "inv_freq" in name and buffer.ndim == 1 and buffer.numel() > 0:
            candidate = buffer.to(torch.float64, copy=True)  # some are overwritten in place
            if not any(torch.equal(candidate, other) for other in seen):
                seen.append(candidate)
                yield candidate
    for module in model.modules():
        if callable(compute := getattr(module, "rope_init_fn", None)):
            yield compute(module.config)[0].double()
    config = model.config.get_text_config(decoder=True)
    theta = getattr(config, "rope_theta", None) or 10000.0
    rotary_dim = getattr(config, "rotary_dim", None) or head_dim
    # In float32, as the models that keep no buffer compute it; the keys show whether it fits.
    exponents = torch.arange(0, rotary_dim, 2, device="cpu").float() / rotary_dim
    yield (1.0 / (theta**exponents)).double()
