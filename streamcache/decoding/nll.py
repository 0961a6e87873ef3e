"""The negative log-likelihood (NLL) of tokens, and the check that it is a number."""

from collections.abc import Callable

import torch
from torch import Tensor

Advance = Callable[[int], None]  # told how many tokens were just finished


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood [n] (float32) of targets [n] under logits [n, vocabulary]."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


class NotFiniteError(ValueError):
    """A model predicts something that is no number; the message says where."""


def require_finite(nll: Tensor) -> Tensor:
    """The NLLs [n] as they are.

    Raises:
        NotFiniteError: one of them is NaN or infinite.
    """
    if not bool((good := nll.isfinite()).all()):
        first = int((~good).nonzero()[0])
        raise NotFiniteError(
            f"the NLL of prediction {first} of {len(nll)} is {float(nll[first])}: the model is "
            "broken or its dtype too narrow"
        )
    return nll
