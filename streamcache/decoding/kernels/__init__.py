"""What one decode step spends its time in, as operations that run at the speed of the memory.

Each operation has a definition in plain torch, which is what runs on a CPU and what the kernels are
tested against, and a Triton kernel, which is imported when it is first used on a GPU.
"""

from importlib.util import find_spec

from torch import Tensor

_TRITON = find_spec("triton") is not None


def has_kernels(tensor: Tensor) -> bool:
    """Whether there are Triton kernels for the device of a tensor."""
    return _TRITON and tensor.is_cuda
