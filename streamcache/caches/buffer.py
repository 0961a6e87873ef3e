"""One buffer for the keys and values of like layers, in which eviction moves no window data.

Each layer has `n_slots` slots. The live entries, sinks first, are one contiguous run that slides to
the right: a token is written behind it, and an eviction moves its start. The sinks are then written
just before the window, rotated to their new positions from copies that were never rotated.
"""

import torch
from torch import Tensor

from streamcache.caches.rope import Rotation, as_numbers
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
        self.clear()

    def begin_append(self, begin: int, end: int, n_tokens: int) -> None:
        """Look up, for all layers, where `append` writes and what it gives.

        Args:
            begin, end: the slots of what is held; the states to come are put behind.
        """
        if self.keys.numel():
            keys, values, size = self.keys, self.values, end - begin + n_tokens
            new = keys.narrow(3, end, n_tokens), values.narrow(3, end, n_tokens)
            whole = keys.narrow(3, begin, size), values.narrow(3, begin, size)
            self._layers = list(zip(*map(torch.unbind, (*new, *whole))))

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store states [B, H, n, D]; views of all that is held [B, H, size + n, D]."""
        new_keys, new_values, all_keys, all_values = self._layers[layer]
        new_keys.copy_(keys)
        new_values.copy_(values)
        return (all_keys.to(values.dtype) if self.wide else all_keys), all_values

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Store states [B, H, n, D] in the slots from `slot`."""
        end = slot + keys.shape[-2]
        self.keys[layer, :, :, slot:end] = keys
        self.values[layer, :, :, slot:end] = values

    def fit(self, states: Tensor) -> None:
        """Have memory for states [B, H, n, D] of this batch size, dtype and device."""
        if self.keys.numel() == 0 or self.keys.shape[1] != states.shape[0]:
            self._allocate(states)

    def sinks(self, layer: int) -> tuple[Tensor, Tensor]:
        """The copies that `save_sinks` has kept [B, H, S, D]."""
        return self._sink_keys[layer], self._sink_values[layer]

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
        if self.rotation is not None and self.n_sink:
            self._sink_numbers = as_numbers(self.rotation.pairs(keys))

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
            phase = self.rotation.phase(offset).to(self._sink_numbers.dtype)
            self.rotation.pairs(keys).copy_(torch.view_as_real(self._sink_numbers * phase))

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
        self._layers = []
        rows = rows.to(self.keys.device)
        self.keys = self.keys.index_select(1, rows)
        self.values = self.values.index_select(1, rows)
        if self._sink_keys.numel():
            self._sink_keys = self._sink_keys.index_select(1, rows)
            self._sink_values = self._sink_values.index_select(1, rows)
        if self._sink_numbers.numel():  # none of keys that are not rotated
            self._sink_numbers = self._sink_numbers.index_select(1, rows)

    def clear(self) -> None:
        # By layer: the slots of new keys and values, and all of both, of the current forward.
        self._layers = list[tuple[Tensor, ...]]()
        self.keys = self.values = torch.empty(0)
        self._sink_keys = self._sink_values = self._sink_numbers = torch.empty(0)
