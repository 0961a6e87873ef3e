"""A long stream: memory stays flat, a token costs the same, and the last logits are right.

Outside the default run: pytest -m slow tests/unit/test_soak.py
"""

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache import CapturedDecoder, EvictionPolicy, StreamingCache
from tests import tiny
from tests.oracle import Oracle, kept_by_rule

POLICY = EvictionPolicy(4, 60, cache_slack=5, max_drop=3, compress_every=7)
N_COMPARED = 50


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def last_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """What the float64 oracle says of the last tokens of a stream [T]: [N_COMPARED, V].

    What a token is computed from reaches back one cache per layer, beside the sinks: the oracle may
    start that much before the tokens that are compared.
    """
    n_tokens = len(ids)
    horizon = (model.config.num_hidden_layers + 1) * POLICY.capacity
    start = n_tokens - N_COMPARED - horizon
    kept = islice(kept_by_rule(n_tokens, *tiny.rule(POLICY)), start, None)
    fed = [*range(POLICY.n_sink), *range(start, n_tokens)]
    place = {token: i for i, token in enumerate(fed)}
    seen = [list(range(i + 1)) for i in range(POLICY.n_sink)]
    seen += [[place[token] for token in tokens if token in place] for tokens in kept]
    plain = tiny.copy_of(model.cpu(), torch.float64)
    return Oracle(plain).logits(ids.cpu()[fed], seen)[-N_COMPARED:]


@pytest.mark.slow
def test_two_hundred_thousand_tokens() -> None:
    model, n_tokens = tiny.llama(), 200_000
    ids = tiny.text(n_tokens, seed=3)[0]
    cache = StreamingCache(model, POLICY)
    tail, memory = [], {}
    with torch.inference_mode():
        for t in range(n_tokens):
            logits = model(input_ids=ids[None, t : t + 1], past_key_values=cache).logits[0]
            if t >= n_tokens - N_COMPARED:
                tail.append(logits)
            if t + 1 in (20_000, n_tokens):
                memory[t + 1] = resident_bytes()
    assert cache.next_position <= POLICY.capacity, "positions are re-based"
    assert memory[n_tokens] - memory[20_000] < 2**20, "memory is flat after warm-up"
    assert tiny.error(torch.cat(tail), last_logits(model, ids)) < 1e-3


def device_us(decoder: CapturedDecoder, tokens: Sequence[Tensor]) -> float:
    """Microseconds a step takes the GPU: it first waits, so that the host is ahead of it.

    A step of a tiny model takes the GPU less time than the host, whose pace is not the decoder's.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(60_000_000)  # cycles: some 30 ms
    start.record()
    for token in tokens:
        decoder.step(token)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / len(tokens)


@pytest.mark.slow
@pytest.mark.gpu
def test_four_million_tokens_captured() -> None:
    model: Any = tiny.neox()
    model, n_tokens, n_blocks = model.to("cuda"), 4_000_000, 40
    ids = tiny.text(n_tokens, seed=3)[0].to("cuda")
    decoder = CapturedDecoder(model, POLICY)
    assert decoder.eager_because is None
    tail = torch.empty(N_COMPARED, model.config.vocab_size, device="cuda")
    times, wall, memory = [], [], []
    for block in ids.split(n_tokens // n_blocks):
        tokens = block.unbind()
        times.append(device_us(decoder, tokens[:500]))
        start = time.perf_counter()
        for token in tokens[500:-N_COMPARED]:
            decoder.step(token)
        torch.cuda.synchronize()
        wall.append((time.perf_counter() - start) * 1e6 / (len(tokens) - 500 - N_COMPARED))
        for i, token in enumerate(tokens[-N_COMPARED:]):
            tail[i] = decoder.step(token)[0]
        memory.append(torch.cuda.memory_allocated())
    first, last = (median(times[1:5]), median(times[-4:]))  # tenths, but for the first block
    print(f"device: {first:.2f} us a token, at the end {100 * (last / first - 1):+.2f} %")
    first_wall, last_wall = median(wall[1:5]), median(wall[-4:])
    print(
        f"wall: {first_wall:.2f} us a token, at the end {100 * (last_wall / first_wall - 1):+.2f} %"
    )
    assert memory[-1] == memory[1], "memory is flat to the byte after warm-up"
    assert abs(last / first - 1) < 0.01
    assert decoder.cache.next_position <= decoder.cache.largest_position
    error = tiny.error(tail[None].cpu(), last_logits(model, ids)[None])
    print(f"error of the last {N_COMPARED} logits: {error:.1e} of their deviation")
    assert error < 1e-3
