"""Whether a model still takes its angles from the numbers it had when it was probed."""

import torch
from torch import Tensor, nn


class Fingerprint:
    """The buffers of a model that hold rotary frequencies, or a table of angles."""

    def __init__(self, model: nn.Module):
        self._buffers: list[tuple[nn.Module, str, Tensor]] = [
            (module, name, buffer)
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if holds_angles(name)
            # beside its original, this one is what a table that switches has switched to
            and f"original_{name}" not in dict(module.named_buffers(recurse=False))
        ]

    def is_current(self) -> bool:
        """Whether the numbers are the same; on which device does not matter."""
        for i, (module, name, before) in enumerate(self._buffers):
            now = getattr(module, name, None)
            if now is before:
                continue
            if not isinstance(now, Tensor) or now.dtype != before.dtype or now.is_meta:
                return False
            if not torch.equal(now.cpu(), before.cpu()):
                return False
            self._buffers[i] = module, name, now
        return True


def holds_angles(name: str) -> bool:
    """Whether a buffer of this name holds frequencies, or angles by position (GPT-J)."""
    return "inv_freq" in name or name == "embed_positions"
