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
            if holds_angles(name) and not hasattr(module, _original(name))  # it switches, else
        ]
        self._dynamic = [
            (module, name)
            for module in model.modules()
            for name, _ in module.named_buffers(recurse=False)
            if holds_angles(name)
            and hasattr(module, _original(name))
            and "dynamic" in str(getattr(module, "rope_type", "dynamic"))
        ]

    def is_current(self) -> bool:
        """Whether the numbers are the same; on which device does not matter."""
        for i, (module, name, before) in enumerate(self._buffers):
            now = module._buffers.get(name)  # quicker than getattr, at every step
            if now is before:
                continue
            if not isinstance(now, Tensor) or now.dtype != before.dtype or now.is_meta:
                return False
            if not torch.equal(now.cpu(), before.cpu()):
                return False
            self._buffers[i] = module, name, now
        return True

    def undo_growth(self) -> None:
        """Give dynamic NTK tables, which another, longer input has grown, their first form again.

        The model does so itself in a forward of fewer positions than it was trained on, but not in
        one of as many.
        """
        for module, name in self._dynamic:
            longest = name.replace("inv_freq", "max_seq_len_cached")
            if isinstance(getattr(module, longest, None), Tensor):  # a number as long as not grown
                original = getattr(module, _original(name)).to(getattr(module, name).device)
                module.register_buffer(name, original, persistent=False)
                setattr(module, longest, module.original_max_seq_len)


def _original(name: str) -> str:
    return name.replace("inv_freq", "original_inv_freq") if "inv_freq" in name else ""


def holds_angles(name: str) -> bool:
    """Whether a buffer of this name holds frequencies, or angles by position (GPT-J)."""
    return "inv_freq" in name or name == "embed_positions"
