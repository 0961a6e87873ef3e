"""What must be known of a model of which each process has a part (tensor parallel)."""

import sys

from torch import Tensor


def is_sharded(weight: Tensor) -> bool:
    """Whether a weight is one of which this process may have a part only (a DTensor)."""
    module = sys.modules.get("torch.distributed.tensor")  # not imported for nothing
    return module is not None and isinstance(weight.data, module.DTensor)
