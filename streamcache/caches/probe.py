"""How a model rotates its keys, measured rather than looked up, and shifting keys by an offset.

A one-token forward attends to itself alone: its softmax is 1 whatever the position. So with rotary
embeddings the hidden states of every layer are the same at every position, and the keys a layer
hands to the cache obey K(p) = R(p) K(0). A few such forwards show, layer by layer, which
dimensions turn, in which pairs and how fast, for any model and without a list of names; a model
whose keys do not obey it (learned positions, tables that switch with the length) is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from streamcache.caches.hooks import cache_name, takes_cache
from streamcache.caches.rope import Rotation
from streamcache.caches.shared_copy import shared_copy

_BATCH = 8  # tokens probed at once: one may have small keys in a plane, eight have not


class UnsupportedModelError(ValueError):
    """Streaming this model with a bounded cache would be silently wrong; the message says why."""


@dataclass(frozen=True)
class LayerGeometry:
    """What the cache must know of one attention layer.

    Attributes:
        n_kv_heads, key_dim, value_dim: shape of the states: [batch, n_kv_heads, tokens, dim].
        rotation: how its keys turn; None for a layer without RoPE (NoPE, ALiBi).
    """

    n_kv_heads: int
    key_dim: int
    value_dim: int
    rotation: Rotation | None


@dataclass(frozen=True)
class ModelGeometry:
    """The geometry of all layers.

    Attributes:
        layers: one entry per attention layer, in order.
        max_position: positions beyond it break the rotation (a table ends or switches); None if
            the rotation holds at any position.
    """

    layers: tuple[LayerGeometry, ...]
    max_position: int | None


_measured: WeakKeyDictionary[PreTrainedModel, tuple[object, ModelGeometry]] = WeakKeyDictionary()


def pretrained(model: nn.Module) -> PreTrainedModel:
    """The model of transformers that a wrapper is around: `torch.compile`, PEFT, data parallel.

    Raises:
        TypeError: there is none.
    """
    inner = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    if inner is None:
        raise TypeError(f"{type(model).__name__} holds no model of transformers")
    return inner


def decoder_of(model: nn.Module) -> PreTrainedModel:
    """The part of a model that has its layers, and is fed a cache."""
    inner = pretrained(model)
    candidates = (inner.get_decoder(), inner.base_model)
    found: Any = next((m for m in candidates if takes_cache(m)), inner)
    return found


def probe_rope(wrapped: nn.Module) -> ModelGeometry:
    """The rotary geometry of a model, from a few one-token forwards (once per model).

    Raises:
        UnsupportedModelError: the model's positions are not a rotation of its keys, or something
            else about it would make a bounded cache silently wrong.
    """
    model = pretrained(wrapped)
    state = _turns_by(model)
    found, geometry = _measured.get(model, (None, None))
    if geometry is None or found != state:
        _refuse_by_config(model.config)
        with torch.no_grad():
            geometry = _measure(shared_copy(model))
        _measured[model] = state, geometry
    return geometry


def _turns_by(model: PreTrainedModel) -> object:
    """What a geometry goes by: `.half()` rounds the frequencies that a model keeps, for good."""
    frequencies = [b.tolist() for name, b in model.named_buffers() if "inv_freq" in name]
    return model.dtype, model.device, frequencies


def _refuse_by_config(config: PreTrainedConfig) -> None:
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    tables = [rope, *(v for v in rope.values() if isinstance(v, dict))]
    kinds = getattr(text, "layer_types", None) or []
    stateful = ("conv", "linear", "mamba", "recurrent")
    reasons = {
        "some of its layers keep a state other than keys and values": any(
            word in kind for kind in kinds for word in stateful
        ),
        "it is an encoder-decoder": getattr(config, "is_encoder_decoder", False),
        "multi-head latent attention (MLA) rebuilds its keys from a shared latent": getattr(
            text, "kv_lora_rank", None
        ),
        "chunked attention masks by absolute position": getattr(text, "attention_chunk_size", None),
        "it scales its queries by absolute position": getattr(text, "attn_temperature_tuning", None)
        or any(table.get("llama_4_scaling_beta") for table in tables),
    }
    for reason, applies in reasons.items():
        if applies:
            raise _refusal(config, reason)


def _refusal(config: PreTrainedConfig, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"cannot stream {config.model_type} with a bounded cache: {reason}"
    )


class _Probe(Cache):
    """Claims to have seen `position` tokens, holds none, and notes the states it is given."""

    def __init__(self, position: int):
        super().__init__(layers=[])
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


def _states_at(model: PreTrainedModel, position: int) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys and values of every layer for single tokens at `position`: {layer: [B, H, 1, D]}."""
    probe = _Probe(position)
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    ids = torch.arange(_BATCH, device=model.device)[:, None] * (vocabulary // _BATCH)
    model(input_ids=ids, use_cache=True, **{cache_name(type(model).forward): probe})
    return probe.states


def _two_tokens(model: PreTrainedModel, position: int) -> Tensor:
    """Logits [2, V] of two tokens, the first at `position`: a single one tells nothing of queries,
    which some models scale by position."""
    ids = torch.arange(2, device=model.device)[None]
    passed: Any = {cache_name(type(model).forward): _Probe(position)}
    logits: Tensor = model(input_ids=ids, use_cache=True, **passed).logits
    return logits[0].double()


def _measure(model: PreTrainedModel) -> ModelGeometry:
    config = model.config
    contexts = _contexts(config)
    last = min([510, *contexts]) - 1
    try:
        origin = _states_at(model, 0)
        near = {p: _states_at(model, p) for p in (1, 17, last)}
    except Exception as error:
        raise _refusal(config, f"a one-token forward failed ({error})") from error
    n_layers = config.get_text_config(decoder=True).num_hidden_layers
    if sorted(origin) != list(range(n_layers)):
        missing = sorted(set(range(n_layers)) - set(origin))
        raise _refusal(config, f"layers {missing} keep no keys and values of their own")

    def fits(layer: int, rotation: Rotation | None, at: dict[int, Any], tolerance: float) -> bool:
        before = origin[layer][0]
        for position, states in at.items():
            after = states[layer][0]
            expected = before if rotation is None else rotation.shift(before, position)
            error = (after.double() - expected.double()).norm() / after.double().norm()
            if not error <= tolerance:
                return False
        return True

    half = origin[0][0].dtype in (torch.float16, torch.bfloat16)
    tolerance = 3e-2 if half else 1e-3
    found: list[Rotation | None] = []
    for layer in range(n_layers):
        keys = origin[layer][0]
        # most models turn every layer alike: try the last one's rotation first
        dim = keys.shape[-1]
        before = [r for r in found[-1:] if r and r.start + 2 * r.inv_freq.shape[0] <= dim]
        for rotation in [*before, None, *_hypotheses(model, dim, keys.device)]:
            if fits(layer, rotation, near, tolerance):
                found.append(rotation)
                break
        else:
            raise _refusal(config, _why_not(origin[layer][0], near[1][layer][0], layer))
    layers = tuple(
        LayerGeometry(keys.shape[1], keys.shape[-1], values.shape[-1], rotation)
        for (keys, values), rotation in zip((origin[i] for i in range(n_layers)), found)
    )
    first, later = _two_tokens(model, 0), _two_tokens(model, last - 1)
    # Nothing but rounding may differ: in float32 2e-6 at most, of scaled queries 1e-4 and more.
    # A model that says NaN is broken otherwise, and what reads its logits says so.
    if (later - first).norm() > (tolerance if half else 2e-5) * first.norm():
        raise _refusal(config, "what two tokens see of each other depends on where they stand")
    return ModelGeometry(layers, _position_limit(model, found, fits))


def _why_not(before: Tensor, after: Tensor, layer: int) -> str:
    norms = before.double().norm(dim=-1), after.double().norm(dim=-1)
    if not torch.allclose(*norms, rtol=1e-2):
        return "positions enter its hidden states (learned or sinusoidal position embeddings)"
    return f"layer {layer} turns its keys in a way that no known rotary frequencies explain"


def _position_limit(model: PreTrainedModel, found: list[Rotation | None], fits: Any) -> int | None:
    """None if the rotations hold far past the trained context, else that context."""
    contexts = _contexts(model.config)
    if not contexts or not any(found):
        return None
    # A table with a row per position (GPT-J) is not probed past its end: on a GPU that is fatal.
    if any(b.ndim == 2 and b.shape[0] in contexts for _, b in model.named_buffers()):
        return min(contexts)
    far = {p: _states_at(model, p) for p in (context + context // 2 for context in contexts)}
    _states_at(model, 0)  # a dynamic table goes back to its short form
    # float32 angles lose digits with the position: near 1e5 radians they are good to 1e-2
    return None if all(fits(i, r, far, 0.2) for i, r in enumerate(found)) else min(contexts)


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
    """float64 [n] candidates: buffers the model rotates with, then the textbook formula."""
    seen: list[Tensor] = []
    for name, buffer in model.named_buffers():
        if "inv_freq" in name and buffer.ndim == 1 and buffer.numel() > 0:
            candidate = buffer.double()
            if not any(torch.equal(candidate, other) for other in seen):
                seen.append(candidate)
                yield candidate
    config = model.config.get_text_config(decoder=True)
    theta = getattr(config, "rope_theta", None) or 10000.0
    rotary_dim = getattr(config, "rotary_dim", None) or head_dim
    # In float32, as the models that keep no buffer compute it; the keys tell if it fits.
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    yield (1.0 / (theta**exponents)).double()
