"""How kernels follow each other, so that memory traffic does not pause between them.

With programmatic dependent launch (Hopper and later) a kernel starts before the one in front of it
has ended: what it reads and no kernel writes, weights, can be on the way meanwhile.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

USE_PDL = True


@triton.jit
def wait(PDL: tl.constexpr):
    """Until here a program may run before the kernels in front of it have ended."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def launch(like: Tensor) -> dict[str, Any]:
    """Launch options for the device of a tensor."""
    return {"PDL": True, "launch_pdl": True} if USE_PDL and _is_hopper(like) else {"PDL": False}


def _is_hopper(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (9, 0)
