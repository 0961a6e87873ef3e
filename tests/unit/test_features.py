"""Features two at a time, as docs/features.md has them: each row gives what it gives alone.

Alone is token by token, through a cache that shares no storage with the one that is tested.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from streamcache.caches.reference import ReferenceCache
from streamcache.caches.streaming import StreamingCache
from streamcache.inputs.quantize import quantize
from streamcache.policy import EvictionPolicy
from tests.tiny import error, llama, stream, text

POLICY = EvictionPolicy(4, 12, 3, 2, 5)
N_TOKENS, N_PROMPT, N_PADDING, N_THREADS = 48, 24, 5, 3

FEATURES = ("batch", "unequal rows", "beams", "long input", "int8", "wrapped", "fork", "threads")
TOGETHER = [
    pair
    for pair in combinations(FEATURES, 2)
    if pair not in [("batch", "unequal rows"), ("beams", "fork")]  # one or the other
]


def modules(pair: tuple[str, ...]) -> tuple[Any, Any]:
    """A model, and what is called: the model, or a wrapper around it."""
    model = llama()
    if "int8" in pair:
        pytest.importorskip("torchao")
        quantize(model, "int8")
    if "wrapped" not in pair:
        return model, model
    peft = pytest.importorskip("peft")
    return model, peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def fed(model: Any, ids: Tensor, pair: tuple[str, ...]) -> Tensor:
    """Logits [B, n, V] of the last tokens of all rows."""
    cache = StreamingCache(model, POLICY)
    n_first = N_PROMPT if {"long input", "unequal rows"} & set(pair) else 1
    prompt, mask = ids[:, :n_first], None
    if "unequal rows" in pair:
        mask = torch.ones_like(prompt)
        mask[0, :N_PADDING] = 0
    logits = [model(input_ids=prompt, attention_mask=mask, past_key_values=cache).logits[:, -1:]]
    for t in range(n_first, ids.shape[1]):
        if "fork" in pair and t == N_PROMPT + 3:
            cache, original = copy.deepcopy(cache), cache
            stream(model, original, text(9, batch=len(ids), seed=7))
        logits.append(model(input_ids=ids[:, t : t + 1], past_key_values=cache).logits)
    return torch.cat(logits, dim=1)[:, -(N_TOKENS - N_PROMPT) :]


def found_by_beams(model: Any, cache: Any, ids: Tensor, mask: Tensor) -> list[list[int]]:
    settings = {"num_beams": 3, "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=mask, past_key_values=cache, **settings)
    rows: list[list[int]] = found[:, ids.shape[1] :].tolist()
    return rows


@pytest.mark.parametrize("pair", [p for p in TOGETHER if "beams" not in p], ids=" and ".join)
@torch.no_grad()
def test_two_features_give_what_a_plain_stream_gives(pair: tuple[str, str]) -> None:
    model, called = modules(pair)
    ids = text(N_TOKENS, batch=2 if {"batch", "unequal rows"} & set(pair) else 1)
    begins = [N_PADDING if "unequal rows" in pair else 0, 0]
    alone = [
        stream(model, ReferenceCache(model, POLICY), row[None, begin:])
        for row, begin in zip(ids, begins)
    ]
    expected = torch.cat([logits[:, -(N_TOKENS - N_PROMPT) :] for logits in alone])
    if "threads" in pair:
        with ThreadPoolExecutor(N_THREADS) as pool:
            results = list(pool.map(lambda _: in_thread(called, ids, pair), range(N_THREADS)))
    else:
        results = [fed(called, ids, pair)]
    for logits in results:
        assert error(logits, expected) < 1e-4


def in_thread(model: Any, ids: Tensor, pair: tuple[str, str]) -> Tensor:
    with torch.no_grad():  # which holds for a thread
        return fed(model, ids, pair)


@pytest.mark.parametrize(
    "other", [p[0] if p[1] == "beams" else p[1] for p in TOGETHER if "beams" in p]
)
def test_beams_find_what_they_find_alone(other: str) -> None:
    model, called = modules((other,))
    n_rows = 2 if other in ("batch", "unequal rows") else 1
    ids = text(N_PROMPT if other in ("long input", "unequal rows") else 10, batch=n_rows)
    begins = [N_PADDING if other == "unequal rows" else 0, 0]
    mask = torch.ones_like(ids)
    mask[0, : begins[0]] = 0
    alone = [
        found_by_beams(model, ReferenceCache(model, POLICY), row, torch.ones_like(row))[0]
        for row in (row[None, begin:] for row, begin in zip(ids, begins))
    ]

    def search(_: int = 0) -> list[list[int]]:
        return found_by_beams(called, StreamingCache(called, POLICY), ids, mask)

    if other == "threads":
        with ThreadPoolExecutor(N_THREADS) as pool:
            assert list(pool.map(search, range(N_THREADS))) == [alone] * N_THREADS
    else:
        assert search() == alone
