"""A long stream: memory stays flat, and the last logits are as right as the first.

Outside the default run: pytest -m slow tests/unit/test_soak.py
"""

from pathlib import Path

import pytest
import torch

from streamcache import EvictionPolicy, StreamingCache
from tests import tiny
from tests.oracle import Oracle, kept_after_each

N_TOKENS = 200_000
POLICY = EvictionPolicy(4, 60, cache_slack=5, max_drop=3, compress_every=7)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
def test_two_hundred_thousand_tokens() -> None:
    model = tiny.llama()
    n_layers = model.config.num_hidden_layers
    ids = tiny.text(N_TOKENS, seed=3)[0]
    cache = StreamingCache(model, POLICY)
    # What a token is computed from reaches back one cache per layer, beside the sinks: the oracle
    # may start that much before the tokens that are compared.
    n_compared, horizon = 50, (n_layers + 1) * POLICY.capacity
    tail, memory = [], {}
    with torch.inference_mode():
        for t in range(N_TOKENS):
            logits = model(input_ids=ids[None, t : t + 1], past_key_values=cache).logits[0]
            if t >= N_TOKENS - n_compared:
                tail.append(logits)
            if t + 1 in (20_000, N_TOKENS):
                memory[t + 1] = resident_bytes()
    assert cache.next_position <= POLICY.capacity, "positions start anew"
    assert memory[N_TOKENS] - memory[20_000] < 2**20, "memory is flat after warm-up"

    start = N_TOKENS - n_compared - horizon
    kept = kept_after_each(N_TOKENS, *tiny.rule(POLICY))[start:]
    fed = [*range(POLICY.n_sink), *range(start, N_TOKENS)]
    place = {token: i for i, token in enumerate(fed)}
    seen = [list(range(i + 1)) for i in range(POLICY.n_sink)]
    seen += [[place[token] for token in tokens if token in place] for tokens in kept]
    plain = tiny.build(model.config).double()
    plain.load_state_dict(model.state_dict())
    reference = Oracle(plain).logits(ids[fed], seen)[-n_compared:]
    assert tiny.error(torch.cat(tail), reference) < 1e-3
