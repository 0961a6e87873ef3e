"""The negative log-likelihood (NLL) of tokens, and the check that it is a number."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Advance = Callable[[int], None]  # called with the number of tokens just finished
# Of each token: from logits [n, V] and targets [n] to float32 [n], or [n, k] of k figures.
Score = Callable[[Tensor, Tensor], Tensor]


def integers(name: str, values: object) -> Tensor:
    """Integers as a tensor, which stays where it is if it is one.

    Raises:
        ValueError: they are something else.
    """
    if isinstance(values, Tensor):
        return values
    try:
        return torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError):  # torch's words for it name none of the arguments
        kind = type(values).__name__
        raise ValueError(f"{name} must be integers, a tensor or a list, got {kind}") from None


def require_causal_lm(model: PreTrainedModel) -> None:
    """
    Raises:
        TypeError: the model has no output embedding, and predicts no tokens.
    """
    if model.get_output_embeddings() is None:
        raise TypeError(
            f"{type(model).__name__} predicts no tokens: load the model with AutoModelForCausalLM"
        )


def token_ids(input_ids: Tensor | Sequence[int], model: PreTrainedModel) -> Tensor:
    """A text as int64 [T] on the device of the model's embedding.

    Raises:
        TypeError: the model predicts no tokens.
        ValueError: it is not one row of at least two integers, or one is not in the vocabulary of
            the model: no number stands for a token to leave out.
    """
    require_causal_lm(model)
    embedding: Any = model.get_input_embeddings()
    ids = integers("input_ids", input_ids)
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(f"input_ids must be [T] with T >= 2, got {list(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"input_ids must be integers, got {ids.dtype}")
    least, most = int(ids.min()), int(ids.max())
    n_tokens = embedding.weight.shape[0]
    if least < 0 or most >= n_tokens:
        wrong = least if least < 0 else most
        raise ValueError(f"input_ids has {wrong}: the model knows the tokens 0 ... {n_tokens - 1}")
    return ids.to(embedding.weight.device, torch.long)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood [n] (float32) of targets [n] under logits [n, vocabulary]."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def nll_and_rank(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL and rank [n, 2] (float32) of targets [n] under logits [n, vocabulary].

    The rank is the number of tokens that the model finds likelier: 0 where greedy decoding would
    choose the target, or one that is as likely.
    """
    likelier = logits > logits.gather(1, targets[:, None])
    return torch.stack([token_nll(logits, targets), likelier.sum(dim=1).float()], dim=1)


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
