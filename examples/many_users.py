"""Many users in one batch: one cache, one forward per token for all of them.

    python examples/many_users.py --users 8

Prompts are padded on the left; the padding never enters the cache. Each row is what a stream of its
own would be.
"""

import argparse
from typing import Any

import torch

from streamcache import EvictionPolicy, StreamingCache
from streamcache.inputs.models import load_model

PROMPTS = (
    "It was a dark and stormy night; the rain fell in torrents",
    "The old man looked at the sea and said nothing for a while",
    "When the train had left the station, she opened the letter",
    "My dear friend, I have not forgotten what you told me then",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=100, help="of each user")
    parser.add_argument("--total", type=int, default=64, help="entries of the cache, per user")
    given = parser.parse_args()
    loaded = load_model("reference")
    model: Any = loaded.model  # the types of generate are those of no real model
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(given.users)]
    ids = [[tokenizer.bos_token_id, *tokenizer(prompt).input_ids] for prompt in prompts]
    longest = max(map(len, ids))
    padding = [longest - len(row) for row in ids]
    batch = torch.tensor([[0] * n + row for n, row in zip(padding, ids)])
    mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
    cache = StreamingCache(model, EvictionPolicy.from_budget(given.total, n_sink=4))
    written = model.generate(
        input_ids=batch,
        attention_mask=mask,
        past_key_values=cache,
        max_new_tokens=given.tokens,
        min_new_tokens=given.tokens,
        do_sample=False,
    )
    for i, (n, row) in enumerate(zip(padding, written)):
        print(f"user {i}: {tokenizer.decode(row[n:], skip_special_tokens=True)!r}")
    print(f"{given.users} streams of {cache.lengths} tokens, at most {cache.size} held of each")


if __name__ == "__main__":
    main()
