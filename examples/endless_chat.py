"""A conversation without end: the cache holds 256 tokens, however long the conversation becomes.

    python examples/endless_chat.py

Each line of the input is fed to the model, which then continues it. The packaged reference model
writes prose and does not answer questions; with --model, a folder or a hub id, any other continues.
"""

import argparse
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from streamcache import BoundedCache, EvictionPolicy, StreamingCache
from streamcache.inputs.models import REFERENCE_FOLDER


@torch.inference_mode()
def reply(
    model: PreTrainedModel, cache: BoundedCache, message: torch.Tensor, n_tokens: int
) -> list[int]:
    """Feed a message [1, T] and decode the most likely continuation."""
    logits = model(input_ids=message, past_key_values=cache).logits
    tokens = []
    for _ in range(n_tokens):
        token = logits[:, -1:].argmax(-1)
        tokens.append(int(token))
        logits = model(input_ids=token, past_key_values=cache).logits
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=str(REFERENCE_FOLDER))
    parser.add_argument("--total", type=int, default=256, help="entries of the cache")
    parser.add_argument("--tokens", type=int, default=40, help="of each reply")
    given = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    cache = StreamingCache(model, EvictionPolicy.from_budget(given.total, n_sink=4))
    text = tokenizer.bos_token or tokenizer.eos_token or ""  # the first sink: see docs/semantics.md
    for line in sys.stdin:
        text += line
        message = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        print(tokenizer.decode(reply(model, cache, message, given.tokens)), flush=True)
        print(f"[{cache.seen} tokens seen, {cache.size} held]", file=sys.stderr)
        text = "\n"


if __name__ == "__main__":
    main()
