"""Read a file as it grows, and print how much each new line surprises the model.

    python examples/follow_file.py /var/log/syslog

The figure of a line is the mean NLL of its tokens, in nats. It is high for a line that differs from
those before.
Memory stays the same for as long as the file grows. Ctrl-C ends it, or a pause of --idle seconds.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

from streamcache import BoundedCache, EvictionPolicy, StreamingCache
from streamcache.inputs.models import load_model


def lines(path: Path, idle_s: float) -> Iterator[str]:
    """The lines of a file, and those that are appended, until nothing came for `idle_s`."""
    with path.open(encoding="utf-8", errors="replace") as file:
        line, last = "", time.monotonic()
        while True:
            if part := file.readline():
                line += part
                if line.endswith("\n"):
                    yield line
                    line = ""
                last = time.monotonic()  # what was done with the line does not count
            elif time.monotonic() - last < idle_s:
                time.sleep(0.05)
            else:
                return


class Reader:
    """A model that reads a stream of text."""

    def __init__(self, model: PreTrainedModel, cache: BoundedCache, marker: int):
        self.model, self.cache = model, cache
        self._logits = self._feed([marker])

    @torch.inference_mode()
    def _feed(self, ids: list[int]) -> torch.Tensor:
        found = self.model(input_ids=torch.tensor([ids]), past_key_values=self.cache).logits
        logits: torch.Tensor = found[0]
        return logits

    def surprise(self, ids: list[int]) -> float:
        """Mean NLL of the next tokens, nats."""
        logits = torch.cat([self._logits[-1:], self._feed(ids)])
        self._logits = logits[-1:]
        nll = torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids))
        return nll.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--total", type=int, default=512, help="entries of the cache")
    parser.add_argument("--idle", type=float, default=math.inf, help="seconds without a line")
    given = parser.parse_args()
    loaded = load_model("reference")
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    cache = StreamingCache(loaded.model, EvictionPolicy.from_budget(given.total, n_sink=4))
    reader = Reader(loaded.model, cache, tokenizer.bos_token_id)
    for line in lines(given.file, given.idle):
        ids = tokenizer(line, add_special_tokens=False).input_ids
        print(f"{reader.surprise(ids):6.2f}  {line.rstrip()}", flush=True)


if __name__ == "__main__":
    main()
