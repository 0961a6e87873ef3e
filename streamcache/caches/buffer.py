"""One buffer for the keys and values of like layers, in which eviction moves no window data.

Each layer has `n_slots` slots. The live entries, sinks first, are one contiguous run that slides to
the right: a token is written behind it, and an eviction moves its start. The sinks are then written
just before the window, rotated to their new positions from copies that were never rotated.
"""

import torch
from torch import Tensor

from streamcache.caches.rope import Rotation, rotate
from streamcache.caches.saved import BATCH, Form, Layout


class Arena:
    """Storage of `n_layers` layers of one shape.

    Args:
        n_layers, n_kv_heads, key_dim, value_dim: keys are [n_layers, B, n_kv_heads, n_slots,
            key_dim] with the batch size B, the dtype and the device of the first states.
        wide: keep bfloat16 keys in float32.
        n_sink, n_slots: entries.
        rotation: how the layers rotate their keys, inv_freq [n_layers, 1, 1, 1, n]; None: not.
    """

    def __init__(
        self,
        n_layers: int,
        n_kv_heads: int,
        key_dim: int,
        value_dim: int,
        rotation: Rotation | None,
        n_sink: int,
        n_slots: int,
        wide: bool = False,
    ):
        self.shape = (n_layers, n_kv_heads, n_slots, key_dim, value_dim)
        self.rotation = rotation
        self.n_sink = n_sink
        self.wide = wide
        self.keys = self.values = torch.empty(0)
        self._sink_keys = self._sink_values = self._sink_pairs = torch.empty(0)

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Store states [B, H, n, D] in the slots from `slot`."""
        if slot == 0 and (self.keys.numel() == 0 or self.keys.shape[1] != keys.shape[0]):
            self._allocate(keys)
        end = slot + keys.shape[-2]
        self.keys[layer, :, :, slot:end] = keys
        self.values[layer, :, :, slot:end] = values

    def fill(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store states [B, H, n, D] in the first slots, and overwrite what they hold."""
        if self.keys.numel() == 0 or self.keys.shape[1] != values.shape[0]:
            self._allocate(values)
        self.keys[layer, :, :, : keys.shape[2]] = keys
        self.values[layer, :, :, : values.shape[2]] = values

    def sinks(self, layer: int) -> tuple[Tensor, Tensor]:
        """The copies that `save_sinks` has kept [B, H, S, D]."""
        return self._sink_keys[layer], self._sink_values[layer]

    def read(self, layer: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Views [B, H, end - begin, D]."""
        keys, values = self.keys[layer, :, :, begin:end], self.values[layer, :, :, begin:end]
        return (keys.to(values.dtype) if self.wide else keys), values

    def _allocate(self, like: Tensor) -> None:
        n_layers, n_heads, n_slots, key_dim, value_dim = self.shape
        lead = (n_layers, like.shape[0], n_heads, n_slots)
        with torch.inference_mode(False):  # so that the stream may leave inference mode later
            dtype = torch.float32 if self.wide and like.dtype is torch.bfloat16 else like.dtype
            keys = like.new_empty((*lead, key_dim), dtype=dtype)
            self.keys, self.values = keys, like.new_empty((*lead, value_dim))
        if self.rotation is not None:
            self.rotation = self.rotation.to(like.device)

    def save_sinks(self) -> None:
        """Keep copies of the sinks, which are at the positions they came with."""
        self._keep_sinks(
            self.keys[..., : self.n_sink, :].clone(), self.values[..., : self.n_sink, :].clone()
        )

    def _keep_sinks(self, keys: Tensor, values: Tensor) -> None:
        self._sink_keys, self._sink_values = keys, values
        if self.rotation is not None:
            pairs = self.rotation.pairs(keys)
            self._sink_pairs = pairs.to(torch.promote_types(pairs.dtype, torch.float32))

    def state(self, begin: int, end: int) -> dict[str, Tensor]:
        """What the slots begin ... end - 1 hold, and the copies of the sinks."""
        held = {"keys": self.keys[..., begin:end, :], "values": self.values[..., begin:end, :]}
        if self._sink_keys.numel():
            held |= {"sink_keys": self._sink_keys, "sink_values": self._sink_values}
        return held

    def layout(self, n: int, with_sinks: bool) -> Layout:
        """Names and forms of the `state` of `n` slots."""
        n_layers, n_heads, _, *dims = self.shape
        lengths = {"": n, "sink_": self.n_sink if with_sinks else 0}
        return {
            f"{prefix}{kind}": Form((n_layers, BATCH, n_heads, length, dim))
            for prefix, length in lengths.items()
            if length
            for kind, dim in zip(("keys", "values"), dims)
        }

    @torch.inference_mode(False)  # so that the stream may leave inference mode later
    def restore(self, begin: int, state: dict[str, Tensor]) -> None:
        """Hold a `state` in the slots from `begin`."""
        keys, values = state["keys"], state["values"]
        self._allocate(values[0])
        end = begin + keys.shape[-2]
        self.keys[..., begin:end, :], self.values[..., begin:end, :] = keys, values
        if "sink_keys" in state:
            self._keep_sinks(state["sink_keys"], state["sink_values"])

    def place_sinks(self, begin: int, offset: int) -> None:
        """Write the sinks to the slots from `begin`, moved by `offset` positions."""
        if self.n_sink == 0:
            return
        sinks = slice(begin, begin + self.n_sink)
        keys = self.keys[..., sinks, :]
        keys.copy_(self._sink_keys)
        self.values[..., sinks, :] = self._sink_values
        if self.rotation is not None and offset:
            phase = self.rotation.phase(offset)
            self.rotation.pairs(keys).copy_(rotate(self._sink_pairs, phase))

    def move(self, begin: int, end: int, to: int) -> None:
        """Copy the slots begin ... end - 1 to `to` onwards; the two may not overlap."""
        target = slice(to, to + end - begin)
        self.keys[..., target, :] = self.keys[..., begin:end, :]
        self.values[..., target, :] = self.values[..., begin:end, :]

    def rotate(self, begin: int, end: int, offset: int) -> None:
        """Move the keys in the slots begin ... end - 1 by `offset` positions, in place."""
        if self.rotation is not None and begin < end:
            self.rotation.rotate_(self.keys[..., begin:end, :], offset)

    @torch.inference_mode(False)
    def select(self, rows: Tensor) -> None:
        """Make the batch consist of these rows of the present one."""
        if self.keys.numel() == 0:
            return
        rows = rows.to(self.keys.device)
        self.keys = self.keys.index_select(1, rows)
        self.values = self.values.index_select(1, rows)
        if self._sink_keys.numel():
            self._sink_keys = self._sink_keys.index_select(1, rows)
            self._sink_values = self._sink_values.index_select(1, rows)
        if self._sink_pairs.numel():  # none of keys that are not rotated
            self._sink_pairs = self._sink_pairs.index_select(1, rows)

    def clear(self) -> None:
        self.keys = self.values = torch.empty(0)
        self._sink_keys = self._sink_values = self._sink_pairs = torch.empty(0)
