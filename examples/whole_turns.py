"""A conversation whose turns are evicted whole, the oldest first, and whose system prompt stays.

    python examples/whole_turns.py --system "You answer in one sentence." --model a-folder

The usual rule cuts through turns: the cache then begins in the middle of a sentence, without the
marks of the chat template. Here the sinks are the whole system prompt, and the rule is told where
turns begin. Each line of the input is a turn.
"""

import argparse
import sys
from dataclasses import dataclass, field

from streamcache import StreamingCache
from streamcache.decoding.text import Message, TextStream, continuation, opening
from streamcache.inputs.models import load_model
from streamcache.policy import Policy


@dataclass(frozen=True)
class WholeTurns(Policy):
    """Evict the oldest turn when the cache is full; of a turn that fills it alone, single tokens.

    Args:
        n_sink: tokens of the prefix that is never evicted.
        total: the most entries ever held.
        starts: the number of the first token of each turn; to be appended to before it is fed.
    """

    n_sink: int
    total: int
    starts: list[int] = field(default_factory=list, compare=False)

    @property
    def capacity(self) -> int:
        return self.total

    @property
    def floor(self) -> int:
        return self.n_sink + 1

    def drop(self, seen: int, size: int) -> int:
        if size < self.total:
            return 0
        oldest = seen - (size - self.n_sink)
        return next((start - oldest for start in self.starts if oldest < start <= seen), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="reference")
    parser.add_argument("--system", default="It was a dark and stormy night.")
    parser.add_argument("--total", type=int, default=256, help="entries of the cache")
    parser.add_argument("--tokens", type=int, default=40, help="of each reply")
    given = parser.parse_args()
    loaded = load_model(given.model)
    model, tokenizer = loaded.model, loaded.tokenizer
    system: Message = {"role": "system", "content": given.system}
    # The prefix ends where the first turn begins: what two different turns have in common.
    first, other = (opening(tokenizer, [system, {"role": "user", "content": w}]) for w in "xy")
    prefix = first[: next(i for i, (a, b) in enumerate(zip(first, other)) if a != b)]
    n_prefix = len(tokenizer(prefix, add_special_tokens=False).input_ids)
    rule = WholeTurns(n_prefix, given.total)
    cache = StreamingCache(model, rule)
    stream = TextStream(model, tokenizer, cache)
    stream.read(prefix)
    for line in sys.stdin:
        turn: Message = {"role": "user", "content": line.strip()}
        if not rule.starts:
            text = opening(tokenizer, [system, turn]).removeprefix(prefix)
        else:
            text = continuation(tokenizer, [turn])
        rule.starts.append(cache.seen)
        stream.read(text)
        print("".join(stream.write(given.tokens)), flush=True)
        oldest = cache.seen - (cache.size - rule.n_sink)
        held = sum(start >= oldest for start in rule.starts)
        cut = "" if oldest in (*rule.starts, rule.n_sink) else ", the oldest cut"
        print(f"[{cache.size} entries: the prefix and {held} turns{cut}]", file=sys.stderr)


if __name__ == "__main__":
    main()
