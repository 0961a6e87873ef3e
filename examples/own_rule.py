"""Your own rule of eviction: let the cache fill up, then halve its window.

    python examples/own_rule.py

Any object with these members is a policy. Every cache, the one pass and the measurements accept it;
they refuse a rule that would evict what must be kept.
"""

import argparse
from dataclasses import dataclass

from streamcache import EvictionPolicy, streaming_nll
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import load_model
from streamcache.policy import Policy, count_evictions
from streamcache.testing import check_policy


@dataclass(frozen=True)
class HalveWhenFull(Policy):
    """Evict nothing until the cache is full, then keep the sinks and half of the window.

    Args:
        n_sink: the first tokens of the stream, never evicted.
        total: the most entries ever held.
    """

    n_sink: int
    total: int

    @property
    def capacity(self) -> int:
        return self.total

    @property
    def floor(self) -> int:
        return self.n_sink + (self.total - self.n_sink) // 2

    def drop(self, seen: int, size: int) -> int:
        return size + 1 - self.floor if size == self.capacity else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--total", type=int, default=128, help="entries of the cache")
    given = parser.parse_args()
    loaded = load_model("reference")
    text = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=given.tokens)
    rules: dict[str, Policy] = {
        "halve when full": HalveWhenFull(4, given.total),
        "one at a time": EvictionPolicy.from_budget(given.total, n_sink=4),
    }
    for name, rule in rules.items():
        check_policy(rule)
        ppl = streaming_nll(loaded.model, text.input_ids, rule).mean().exp().item()
        found = count_evictions(rule, given.tokens - 1)
        n_evictions = found.scheduled + found.forced
        print(f"{name:16} PPL {ppl:.2f}, {found.entries} entries in {n_evictions} evictions")


if __name__ == "__main__":
    main()
