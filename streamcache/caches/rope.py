"""Rotary position embeddings (RoPE) as a cache needs them: moving keys by a number of positions."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """Which pairs of dimensions of a key rotate with the position, and how fast.

    Attributes:
        layout: the partner of dimension i is i + n ("half") or i + 1 ("interleaved").
        start: first rotated dimension; the 2 n from there rotate, the others do not.
        inv_freq: float64 [n], radians per position (negative where a model rotates backwards).
    """

    layout: Literal["half", "interleaved"]
    start: int
    inv_freq: Tensor

    def pairs(self, keys: Tensor) -> Tensor:
        """A view [..., n, 2] of keys [..., head_dim]: one row a pair of dimensions."""
        n = self.inv_freq.shape[-1]
        rotated = keys[..., self.start : self.start + 2 * n]
        if self.layout == "half":
            return rotated.unflatten(-1, (2, n)).transpose(-1, -2)
        return rotated.unflatten(-1, (n, 2))

    def shift(self, keys: Tensor, offset: int | Tensor) -> Tensor:
        """Keys [..., head_dim] moved by `offset` positions: a new tensor of the same dtype.

        The angle is taken in float64 and the rotation in float32 (float64 for float64 keys), so
        one shift costs one rounding. `offset` is a number or broadcasts over keys[..., 0].
        """
        shifted = keys.clone()
        self.pairs(shifted).copy_(rotate(self.pairs(keys), self.phase(offset)))
        return shifted

    def rotate_(self, keys: Tensor, offset: int) -> None:
        """Move keys by `offset` positions in place, on their device, with the same rounding."""
        pairs = self.pairs(keys)
        pairs.copy_(rotate(pairs, self.to(keys.device).phase(offset)))

    def phase(self, offset: int | Tensor) -> Tensor:
        """The complex rotation by `offset` positions: complex128 [..., n]."""
        angle = self.inv_freq * (offset[..., None] if isinstance(offset, Tensor) else offset)
        return torch.polar(torch.ones_like(angle), angle)

    def to(self, device: torch.device) -> "Rotation":
        if self.inv_freq.device == device:  # as at every eviction: no copy
            return self
        return Rotation(self.layout, self.start, self.inv_freq.to(device))


def rotate(pairs: Tensor, phase: Tensor) -> Tensor:
    """Rotate pairs [..., n, 2] by a complex phase [..., n], in at least float32."""
    numbers = as_numbers(pairs)
    return torch.view_as_real(numbers * phase.to(numbers.dtype))


def as_numbers(pairs: Tensor) -> Tensor:
    """Pairs [..., n, 2] as complex numbers [..., n], in at least float32."""
    real = pairs.to(torch.promote_types(pairs.dtype, torch.float32)).contiguous()
    return torch.view_as_complex(real)


class RopeTable(NamedTuple):
    """How to rotate states of any layout: x * cos[position] + x[partner] * sin[position].

    Attributes:
        cos, sin: float32 [positions, D], from angles in float64; 1 and 0 where nothing rotates. The
            sine has the sign of the dimension.
        partner: int32 [D], the other dimension of the pair.
    """

    cos: Tensor
    sin: Tensor
    partner: Tensor

    @staticmethod
    def of(rotation: Rotation, width: int, largest: int, device: torch.device) -> "RopeTable":
        """The table for positions 0 ... largest and states of `width` dimensions."""
        positions = torch.arange(largest + 1, device=rotation.inv_freq.device)
        cos, sin, partner = RopeTable.at(rotation, width, positions)
        return RopeTable(cos.to(device), sin.to(device), partner.to(device))

    @staticmethod
    def at(rotation: Rotation, width: int, positions: Tensor) -> "RopeTable":
        """The table whose rows are for these positions: int64 [n], on the device to be used."""
        phase = rotation.to(positions.device).phase(positions)
        cos = torch.ones(len(positions), width, dtype=torch.float32, device=phase.device)
        sin = torch.zeros_like(cos)
        partner = torch.arange(width, device=phase.device)
        rotation.pairs(cos).copy_(phase.real[..., None].expand(*phase.shape, 2))
        rotation.pairs(sin).copy_(torch.stack([-phase.imag, phase.imag], dim=-1))
        rotation.pairs(partner).copy_(rotation.pairs(partner.clone()).flip(-1))
        return RopeTable(cos, sin, partner.to(torch.int32))

    def __call__(self, states: Tensor, position: Tensor) -> Tensor:
        """States [..., D], as at position 0, rotated to a position: int64 []."""
        row = position[None]
        cos, sin = self.cos.index_select(0, row)[0], self.sin.index_select(0, row)[0]
        return states * cos + states[..., self.partner.long()] * sin
