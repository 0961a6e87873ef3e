"""What a long pass over a text has finished, in one file from which it continues."""

import hashlib
import time
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from streamcache.caches.one_pass import OnePass
from streamcache.caches.retained_attention import States
from streamcache.files import read_bytes, write_bytes

_DIGEST = 32  # bytes of sha256, before all others


class Finished(NamedTuple):
    """The beginning of a pass.

    Attributes:
        nll: [seen], of the tokens that are through.
        evicted: of those tokens.
        held: by layer, as `OnePass.held` gives it.
    """

    nll: Tensor
    evicted: int
    held: list[States]


class Checkpoint:
    """A file that belongs to one pass: of one model, text and policy.

    Args:
        path: of the file; whoever ends the pass removes it.
        every_s: seconds between two writes.
        within: a folder that no link may lead out of.
    """

    def __init__(self, path: Path, every_s: float = 60.0, within: Path | None = None):
        self.path, self.every_s, self.within = path, every_s, within
        self._written = time.monotonic()

    def save_if_due(self, nll: Tensor, one_pass: OnePass, n_layers: int) -> None:
        """Write the NLL [seen] of the tokens that are through, and what is held, now and then."""
        if time.monotonic() - self._written < self.every_s:
            return
        tensors = {"nll": nll, "evicted": torch.tensor([one_pass.evicted])}
        for layer in range(n_layers):
            held = one_pass.held(layer)
            tensors |= {f"keys.{layer}": held.keys, f"values.{layer}": held.values}
        data = safetensors.torch.save({name: t.contiguous().cpu() for name, t in tensors.items()})
        write_bytes(self.path, hashlib.sha256(data).digest() + data, self.within)
        self._written = time.monotonic()

    def load(self, device: torch.device) -> Finished | None:
        """What was written last; None where nothing is, or it is damaged or something else."""
        try:
            data = read_bytes(self.path)
            if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
                return None
            found = {k: t.to(device) for k, t in safetensors.torch.load(data[_DIGEST:]).items()}
            n_layers = sum(name.startswith("keys.") for name in found)
            held = [States(found[f"keys.{i}"], found[f"values.{i}"]) for i in range(n_layers)]
            return Finished(found["nll"], int(found["evicted"]), held)
        except (OSError, safetensors.SafetensorError, KeyError, ValueError):
            return None
