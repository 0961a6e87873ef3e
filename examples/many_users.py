"""Many users in one batch: one cache, one forward per token for all of them.

    python examples/many_users.py --users 8

The streams of a batch have the same length, so prompts are cut to the shortest. Each row is what a
stream of its own would be.
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
    shortest = min(map(len, ids))
    batch = torch.tensor([row[:shortest] for row in ids])
    cache = StreamingCache(model, EvictionPolicy.from_budget(given.total, n_sink=4))
    written = model.generate(
        input_ids=batch,
        attention_mask=torch.ones_like(batch),
        past_key_values=cache,
        max_new_tokens=given.tokens,
        min_new_tokens=given.tokens,
        do_sample=False,
    )
    for i, row in enumerate(written):
        print(f"user {i}: {tokenizer.decode(row, skip_special_tokens=True)!r}")
    print(f"{cache.batch_size} streams of {cache.seen} tokens, {cache.size} held of each")


if __name__ == "__main__":
    main()
