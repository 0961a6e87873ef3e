"""Where the streams of a left-padded batch begin, read from their attention mask."""

from typing import Any

import torch
from torch import Tensor


class PaddingError(ValueError):
    """The batch is padded where a bounded cache cannot leave the padding out."""


def padding_of(attention_mask: Any, padded: list[int], seen: int, n_tokens: int) -> list[int]:
    """Columns of padding before the first token of each row; none where no row has new padding.

    Args:
        attention_mask: [B, width], of the new columns, or of all.
        padded: what was found at the beginning of the streams, if any row was padded then.
        seen: columns fed before.
        n_tokens: new columns.

    Raises:
        PaddingError: there is padding behind a stream's first token, or a row holds no token.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        raise PaddingError("a bounded cache makes its own mask; pass a 2-D attention_mask or none")
    is_token = attention_mask.bool()
    if bool(is_token.all()):
        return []
    width = is_token.shape[1]
    lead = (~is_token).sum(dim=1, keepdim=True)
    if not bool((is_token == (torch.arange(width, device=lead.device) >= lead)).all()):
        raise PaddingError(
            "the attention_mask has zeros after a stream's first token: pad on the left only "
            "(without a mask, `generate` treats pad_token_id in a prompt as padding)"
        )
    found: list[int] = lead[:, 0].tolist()
    if width in found:
        raise PaddingError("a row of the batch has no tokens: remove it")
    if seen and (found != padded or width != seen + n_tokens):
        raise PaddingError(
            "only the beginning of a stream can be padded, and these streams have begun: feed the "
            "same number of tokens to each, or end a stream and let another join"
        )
    return [] if seen else found
