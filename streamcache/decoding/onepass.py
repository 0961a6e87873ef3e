"""The exact streaming NLL of a whole text in one pass: see `caches.one_pass`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from streamcache.caches.admission import pretrained
from streamcache.caches.attention_override import AttentionOverrideError, with_override
from streamcache.caches.one_pass import OnePass, block_size
from streamcache.caches.probe import probe_rope
from streamcache.decoding.checkpoint import Checkpoint, Finished
from streamcache.decoding.nll import Score, token_ids, token_nll
from streamcache.policy import Policy, require_counts, require_policy, warn_beyond

_ROWS = 1024  # logits that are in float32 at a time


class OnePassUnsupported(ValueError):
    """The model's attention cannot be computed in one pass; the message says why.

    Decoding the text token by token may work nevertheless.
    """


@torch.no_grad()
def streaming_nll(
    model: nn.Module,
    input_ids: Tensor | Sequence[int],
    policy: Policy,
    advance: Callable[[int], None] | None = None,
    checkpoint: Checkpoint | None = None,
    score: Score = token_nll,
    kind: type[OnePass] = OnePass,
) -> Tensor:
    """NLL of each token of a teacher-forced stream, predicted from what the cache then holds.

    Agrees with feeding the text token by token to the model and a cache with this policy. The text
    goes through the model in blocks, and a layer keeps what the next block sees: beside the result
    and a count a token (some 50 bytes), memory grows with the policy's capacity, not with the text.

    Args:
        model: a causal language model whose attention goes through transformers' registry, or a
            wrapper around it (`torch.compile`, PEFT).
        input_ids: integers [T], T >= 2, on any device.
        policy: what to evict and when.
        advance: called with the number of tokens just finished.
        checkpoint: the pass continues from it, and saves its progress in it from time to time.
        score: what is taken of each token in place of its NLL.
        kind: which positions the tokens have (see `caches.other_positions`).

    Returns:
        float32 [T - 1], nats, on the model's device: entry t is -log p(token t + 1) after token t
        was appended.

    Raises:
        UnsupportedModelError: no bounded cache fits the model (see `caches.probe.probe_rope`).
        OnePassUnsupported: a bounded cache may, one pass does not.
        TypeError: the model predicts no tokens, or the policy is none.
        ValueError: input_ids is not [T] with T >= 2, or has an id that the model does not know.
    """
    model = pretrained(model)
    text = token_ids(input_ids, model)
    require_policy(policy)
    require_counts(policy)
    n_queries = len(text) - 1  # the last token predicts nothing
    config = model.config.get_text_config(decoder=True)
    warn_beyond(policy, getattr(config, "max_position_embeddings", None))
    block = block_size(text.device)
    nll: Tensor | None = None  # [n_queries], made when the form of a score is known
    try:
        finished = checkpoint.load(text.device) if checkpoint else None
        one_pass = _begin(model, policy, n_queries, finished, kind)
        if finished is not None:
            nll = finished.nll.new_empty(n_queries, *finished.nll.shape[1:])
            nll[: one_pass.seen] = finished.nll
            if advance:
                advance(one_pass.seen)
        for begin in range(one_pass.seen, n_queries, block):
            end = min(begin + block, n_queries)
            logits = one_pass.feed(text[None, begin:end]).logits[0]
            rows = zip(logits.split(_ROWS), text[begin + 1 : end + 1].split(_ROWS))
            found = torch.cat([score(*few) for few in rows])
            if nll is None:
                nll = found.new_empty(n_queries, *found.shape[1:])
            nll[begin:end] = found
            if advance:
                advance(end - begin)
            if checkpoint:
                checkpoint.save_if_due(nll[:end], one_pass, len(one_pass.layers))
    except AttentionOverrideError as error:
        reason = f"cannot run {model.config.model_type} in one pass: {error}"
        raise OnePassUnsupported(reason) from error
    assert nll is not None
    return nll


def _begin(
    model: PreTrainedModel,
    policy: Policy,
    n_tokens: int,
    finished: Finished | None,
    kind: type[OnePass],
) -> OnePass:
    geometry = probe_rope(model)
    limit = geometry.max_position
    if limit is not None and min(policy.capacity, n_tokens) > limit:
        raise AttentionOverrideError(f"its table of angles holds for {limit} positions")
    copy = with_override(model)
    if finished is None:
        return kind(copy, geometry, policy)
    seen = len(finished.nll)
    return kind(copy, geometry, policy, seen, finished.evicted, 0, finished.held)
