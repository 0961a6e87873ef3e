"""Self-drafting: a bounded cache drafts, and the full cache of the same model verifies.

    python examples/self_drafting.py --total 128 --draft 4

The model decodes a few tokens with a StreamingLLM cache, which is cheap on a long text. One forward
over these tokens with the full cache tells which of them it would have chosen itself. What is
printed is exactly the greedy text of the full cache.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from streamcache import CapturedDecoder, EvictionPolicy, StreamingCache
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import load_model


def best(model: Any, ids: Tensor, cache: Any) -> Tensor:
    """The most likely token after each of some tokens [1, n]: [1, n]."""
    chosen: Tensor = model(input_ids=ids, past_key_values=cache).logits.argmax(dim=-1)
    return chosen


class SelfDrafting:
    """Greedy decoding after a prompt [1, T].

    Attributes:
        full, bounded: the cache that verifies and the one that drafts.
        n_drafted, n_accepted: tokens.
    """

    def __init__(self, model: Any, prompt: Tensor, total: int, n_draft: int):
        self.model, self.n_draft = model, n_draft
        policy = EvictionPolicy.from_budget(total, n_sink=4)
        self.full, self.bounded = DynamicCache(), StreamingCache(model, policy, n_draft + 1)
        self.n_drafted = self.n_accepted = 0
        best(model, prompt[:, :-1], self.full)
        best(model, prompt[:, :-1], self.bounded)
        self.unseen = prompt[:, -1:]  # by the full cache, and at the end of it by the bounded one

    def round(self) -> Tensor:
        """Draft, verify, take back what is wrong; the new tokens [1, 1 ... n_draft + 1]."""
        last, drafts = self.unseen, list[Tensor]()
        for _ in range(self.n_draft):
            last = best(self.model, last, self.bounded)[:, -1:]
            drafts.append(last)
        drafted = torch.cat(drafts, dim=1)
        judged = best(self.model, torch.cat([self.unseen[:, -1:], drafted], dim=1), self.full)
        agrees = (judged[:, :-1] == drafted)[0].long()
        n = int(agrees.cumprod(dim=0).sum())
        self.n_drafted, self.n_accepted = self.n_drafted + self.n_draft, self.n_accepted + n
        if n < self.n_draft:
            self.full.crop(n - self.n_draft)
        if n < self.n_draft - 1:  # it has not seen the last token that it drafted
            self.bounded.crop(n + 1 - self.n_draft)
        new = judged[:, : n + 1]
        self.unseen = new[:, -2:] if n == self.n_draft else new[:, -1:]
        return new


def captured(model: Any, prompt: Tensor, n_tokens: int) -> float | None:
    """Tokens per second of captured steps over the full cache; None where they are not captured."""
    everything = EvictionPolicy(0, prompt.shape[1] + n_tokens)
    decoder = CapturedDecoder(model, everything)
    if decoder.eager_because:
        return None
    begin = time.perf_counter()
    last = decoder.prefill(prompt)[:, -1].argmax(dim=-1)
    for _ in range(n_tokens - 1):
        last = decoder.step(last).argmax(dim=-1)
    last.tolist()
    return n_tokens / (time.perf_counter() - begin)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of the packaged text")
    parser.add_argument("--tokens", type=int, default=200, help="to decode")
    parser.add_argument("--total", type=int, default=128, help="entries of the bounded cache")
    parser.add_argument("--draft", type=int, default=4, help="tokens drafted at a time")
    parser.add_argument("--model-name", default="reference", help="as for `streamcache eval`")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="others round: the text may differ")
    given = parser.parse_args()
    loaded = load_model(given.model_name, device=given.device, dtype=given.dtype)
    model: Any = loaded.model
    text = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=given.prompt)
    prompt = text.input_ids[None].to(model.device)
    best(model, prompt, DynamicCache()).tolist()  # what the first forward of all loads is not timed

    begin = time.perf_counter()
    drafting = SelfDrafting(model, prompt, given.total, given.draft)
    drafted = list[int]()
    while len(drafted) < given.tokens:
        drafted += drafting.round()[0].tolist()
    drafted = drafted[: given.tokens]
    seconds = time.perf_counter() - begin

    begin, full = time.perf_counter(), DynamicCache()
    plain = [best(model, prompt, full)[:, -1:]]
    for _ in range(given.tokens - 1):
        plain.append(best(model, plain[-1], full))
    text_without = torch.cat(plain, dim=1)[0].tolist()
    plainly = time.perf_counter() - begin

    rate = drafting.n_accepted / drafting.n_drafted
    print(f"{rate:.0%} of {drafting.n_drafted} drafted tokens accepted, {given.draft} at a time")
    print(f"{given.tokens / seconds:.0f} tokens/s; {given.tokens / plainly:.0f} without drafts")
    if by_graph := captured(model, prompt, given.tokens):
        print(f"{by_graph:.0f} tokens/s without drafts, by captured steps")
    same = drafted == text_without
    print("the same text as without drafts" if same else "ANOTHER TEXT than without drafts")


if __name__ == "__main__":
    main()
