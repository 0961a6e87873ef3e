"""A stream saved to a file goes on where it was, bit for bit, and on nothing but its own model."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from streamcache.caches import saved
from streamcache.caches.base import BoundedCache
from streamcache.caches.refresh import RefreshCache
from streamcache.caches.saved import StreamFileError, digest_of_weights
from streamcache.caches.scored import Entries, ScoredCache, ScoredPolicy
from streamcache.caches.streaming import RerotatingCache, StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.policy import EvictionPolicy
from tests.cases import CACHES, each_cache
from tests.tiny import copy_of, error, expected, llama, neox, stream, text, tiny

POLICY = EvictionPolicy(3, 13, 4, 3, 5)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "stream.safetensors"


@each_cache
@pytest.mark.parametrize("n_tokens", [0, 2, 11, 60])
def test_it_goes_on_bit_for_bit(
    model: PreTrainedModel, cache_type: type[BoundedCache], n_tokens: int, file: Path
) -> None:
    ids = text(n_tokens + 40, batch=2)
    saved, loaded = cache_type(model, POLICY), cache_type(model, POLICY)
    if n_tokens:
        stream(model, saved, ids[:, :n_tokens])
    saved.save(file)
    stream(model, loaded, text(7, batch=3, seed=1))  # what it held before is gone
    loaded.load(file)
    assert (loaded.seen, loaded.evicted) == (saved.seen, saved.evicted)
    rest = [stream(model, cache, ids[:, n_tokens:]) for cache in (saved, loaded)]
    assert torch.equal(*rest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_cache
def test_it_goes_on_bit_for_bit_in_half_precision(
    cache_type: type[BoundedCache], dtype: torch.dtype, file: Path
) -> None:
    half, ids = copy_of(neox(), dtype), text(90)
    saved, loaded = cache_type(half, POLICY), cache_type(half, POLICY)
    stream(half, saved, ids[:, :50])
    saved.save(file)
    loaded.load(file)
    assert torch.equal(*(stream(half, cache, ids[:, 50:]) for cache in (saved, loaded)))


def test_it_goes_on_in_another_process(model: PreTrainedModel, file: Path) -> None:
    ids, cache = text(70), StreamingCache(model, POLICY)
    stream(model, cache, ids[:, :40])
    cache.save(file)
    expected = stream(model, cache, ids[:, 40:])
    code = (
        "import sys, torch; from tests.tiny import llama, stream, text;"
        "from streamcache import StreamingCache; from streamcache.policy import EvictionPolicy;"
        "model = llama(); cache = StreamingCache(model, EvictionPolicy(3, 13, 4, 3, 5));"
        "cache.load(sys.argv[1]);"
        "torch.save(stream(model, cache, text(70)[:, 40:]), sys.argv[1] + '.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, capture_output=True)
    assert torch.equal(torch.load(f"{file}.pt"), expected)


def test_the_cache_of_a_decoder(model: PreTrainedModel, file: Path) -> None:
    ids, decoder = text(70), CapturedDecoder(model, POLICY)
    decoder.prefill(ids[:, :40])
    decoder.cache.save(file)
    expected = [decoder.step(ids[:, t]).clone() for t in range(40, 70)]
    decoder.reset()
    decoder.cache.load(file)
    assert all(torch.equal(decoder.step(ids[:, t]), expected[t - 40]) for t in range(40, 70))


def test_what_was_put_back_is_saved_too(model: PreTrainedModel, file: Path) -> None:
    saved, loaded = (RefreshCache(model, POLICY, 4, "middle") for _ in range(2))
    ids = text(80)
    stream(model, saved, ids[:, :50])
    saved.save(file)
    loaded.load(file)
    assert torch.equal(*(stream(model, cache, ids[:, 50:]) for cache in (saved, loaded)))


def test_tokens_of_before_cannot_be_taken_back(model: PreTrainedModel, file: Path) -> None:
    cache = StreamingCache(model, POLICY, max_rollback=5)
    stream(model, cache, text(30))
    cache.save(file)
    cache.load(file)
    with pytest.raises(ValueError, match="cannot be taken back"):
        cache.crop(-2)
    stream(model, cache, text(3))
    cache.crop(-2)


@each_cache
def test_a_file_may_be_cut_off_once_it_is_loaded(
    model: PreTrainedModel, cache_type: type[BoundedCache], file: Path
) -> None:
    """Reading it where it lies would then end the process."""
    ids, cache = text(60), cache_type(model, POLICY)
    stream(model, cache, ids[:, :30])
    cache.save(file)
    cache.load(file)
    file.write_bytes(b"")
    assert error(stream(model, cache, ids[:, 30:]), expected(model, POLICY, ids)[:, 30:]) < 1e-4


def test_two_streams_from_one_file_share_nothing(model: PreTrainedModel, file: Path) -> None:
    ids, cache = text(60), StreamingCache(model, POLICY)
    stream(model, cache, ids[:, :30])
    cache.save(file)
    forks = StreamingCache(model, POLICY), StreamingCache(model, POLICY)
    for fork in forks:
        fork.load(file)
    stream(model, forks[0], text(25, seed=3))
    assert torch.equal(stream(model, forks[1], ids[:, 30:]), stream(model, cache, ids[:, 30:]))


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (lambda model: StreamingCache(model, EvictionPolicy(3, 12, 4, 3, 5)), "another policy"),
        (lambda model: RerotatingCache(model, POLICY), "another cache"),
        (lambda model: StreamingCache(llama(num_hidden_layers=1), POLICY), "another model"),
        (lambda model: StreamingCache(copy_of(model, torch.float64), POLICY), "another model"),
        (lambda model: StreamingCache(tiny("mistral", num_key_value_heads=2), POLICY), ""),
    ],
)
def test_another_owner_is_refused_and_its_stream_stays(
    model: PreTrainedModel, file: Path, other: "type[StreamingCache]", word: str
) -> None:
    cache = StreamingCache(model, POLICY)
    stream(model, cache, text(30))
    cache.save(file)
    refused = other(model)  # type: ignore[call-arg]
    if not word:  # equal weights under another name: the same stream
        refused.load(file)
        return
    with pytest.raises(StreamFileError, match=word):
        refused.load(file)
    assert refused.seen == 0


def test_one_changed_weight_is_another_model(model: PreTrainedModel) -> None:
    other = copy_of(model, torch.float32)
    assert digest_of_weights(other) == digest_of_weights(model)
    with torch.no_grad():
        other.get_output_embeddings().weight[17, 5] += 1e-3
    assert digest_of_weights(other) != digest_of_weights(model)


def in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight[17, 5] += 1e-3


def by_data(weight: nn.Parameter) -> None:
    weight.data.mul_(1.01)


def other_data(weight: nn.Parameter) -> None:
    changed = weight.data.clone()
    changed[17, 5] += 1e-3
    weight.data = changed


@pytest.mark.parametrize("change", [in_place, by_data, other_data])
def test_a_weight_that_changed_after_the_save_is_another_model(
    change: Callable[[nn.Parameter], None], file: Path
) -> None:
    model = llama()
    cache = StreamingCache(model, POLICY)
    stream(model, cache, text(30))
    cache.save(file)
    cache.load(file)
    change(model.get_output_embeddings().weight)
    with pytest.raises(StreamFileError, match="another model"):
        cache.load(file)


def test_a_weight_that_was_replaced_is_another_model() -> None:
    model = llama()
    before = digest_of_weights(model)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().flip(0).clone())
    assert digest_of_weights(model) != before
    head.weight = nn.Parameter(head.weight.detach().flip(0).clone())
    assert digest_of_weights(model) == before


def test_unchanged_weights_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for some values of each; what PyTorch counts no changes of is read again."""
    model, n_read = llama(), 0
    whole = saved._sum_of_bytes

    def count(stored: Tensor) -> int:
        nonlocal n_read
        n_read += 1
        return whole(stored)

    monkeypatch.setattr(saved, "_sum_of_bytes", count)
    digests = [digest_of_weights(model) for _ in range(3)]
    assert len(set(digests)) == 1 and n_read == len(model.state_dict())
    with torch.inference_mode():
        uncounted = llama()
    n_read = 0
    assert {digest_of_weights(uncounted) for _ in range(2)} == set(digests)
    assert n_read == 2 * len(model.state_dict())


def test_a_flipped_bit_or_a_missing_end_is_refused(model: PreTrainedModel, file: Path) -> None:
    cache = StreamingCache(model, POLICY)
    stream(model, cache, text(30))
    cache.save(file)
    data = file.read_bytes()
    for position in range(0, len(data), len(data) // 150):
        file.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
        with pytest.raises(StreamFileError, match="stream"):
            cache.load(file)
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(StreamFileError, match="is not a stream"):
        cache.load(file)
    assert cache.seen == 30


# Files of strangers, whose checksum is right


def forged(file: Path, described: dict[str, str], states: dict[str, Tensor]) -> None:
    described = {name: each for name, each in described.items() if name != "digest"}
    digest = saved._digest(described, states)
    file.write_bytes(safetensors.torch.save(states, {**described, "digest": digest}))


def opened(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safetensors.safe_open(file, framework="pt") as stored:
        states = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
        return stored.metadata(), states


def without(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


def odd_numbers(numbers: dict[str, int]) -> Iterator[str]:
    """The counts as JSON, each of them missing or replaced, and what is no object of counts."""
    yield from ("", "[", "null", "[1]", "3", '"x"', "{}", "[" * 100_000, '{"seen": ' * 99)
    yield json.dumps({**numbers, "more": 1})
    for name in numbers:
        yield json.dumps(without(numbers, name))
        for value in (-1, 1 << 40, 1 << 70, 10**400, 1.5, math.nan, math.inf, "3", None, True):
            yield json.dumps({**numbers, name: value})
        yield json.dumps({**numbers, name: [[1]]})


def odd_states(states: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The states with one missing, too much, or of another dtype or shape."""
    yield {}
    for odd in ("more", "keys", "0.", "x.keys", "keys.99", "keys.x", "0.keys.0"):
        yield {**states, odd: torch.zeros(2)}
    for name, held in states.items():
        yield without(states, name)
        for dtype in (torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn):
            yield {**states, name: held.to(dtype)} if held.dtype != dtype else {}
        for shape in ((), (0,), (1 << 40, 0), (1 << 40, *held.shape[1:-1], 0)):
            yield {**states, name: torch.zeros(shape)}
        for axis in range(held.ndim if held.numel() else 0):
            yield {**states, name: held.narrow(axis, 0, held.shape[axis] - 1).contiguous()}
            yield {**states, name: torch.cat([held, held], dim=axis)}
        yield {**states, name: held[None]}


def refresh(model: PreTrainedModel, policy: EvictionPolicy) -> RefreshCache:
    return RefreshCache(model, policy, 4, "tail")


def scored(model: PreTrainedModel, policy: EvictionPolicy) -> ScoredCache:
    return ScoredCache(model, LeastAttended(policy.n_sink, policy.floor))


@dataclass(frozen=True)
class LeastAttended(ScoredPolicy):
    """Evicts the entry that a head has attended to least."""

    def scores(self, entries: Entries) -> Tensor:
        return entries.attention


@pytest.mark.parametrize("build", [*CACHES, refresh, scored])
@pytest.mark.parametrize("n_tokens", [0, 60])
def test_a_stream_that_a_stranger_made_is_refused_in_one_line(
    model: PreTrainedModel, build: Callable[..., BoundedCache], n_tokens: int, file: Path
) -> None:
    """Or goes on, where every count and every state is one that a stream may have."""
    cache, other = build(model, POLICY), build(model, POLICY)
    fed = getattr(cache, "model", model), getattr(other, "model", model)
    stream(fed[0], cache, text(n_tokens)) if n_tokens else None
    before = (cache.seen, cache.evicted, cache.base)
    cache.save(file)
    described, states = opened(file)
    numbers = json.loads(described["numbers"])
    cases = [
        *((without(described, name), states) for name in described),
        *(({**described, name: odd}, states) for name in described for odd in ("", "\x1b[2J\n")),
        *(({**described, "numbers": odd}, states) for odd in odd_numbers(numbers)),
        *((described, odd) for odd in odd_states(states)),
    ]
    n_refused = 0
    for odd_description, odd in cases:
        if "digest" in odd_description and odd is states and odd_description == described:
            continue
        forged(file, odd_description, odd)
        try:
            other.load(file)
        except StreamFileError as error:
            assert str(error).startswith(f"{file} is ") and str(error).isprintable()
            n_refused += 1
        else:
            stream(fed[1], other, text(3))
    assert n_refused > 60
    assert (cache.seen, cache.evicted, cache.base) == before


def test_a_refused_file_leaves_the_stream_as_it_was(model: PreTrainedModel, file: Path) -> None:
    ids, cache = text(60), StreamingCache(model, POLICY)
    stream(model, cache, ids[:, :40])
    cache.save(file)
    described, states = opened(file)
    forged(file, described, without(states, "0.values"))
    with pytest.raises(StreamFileError, match="it holds other states"):
        cache.load(file)
    logits = stream(model, cache, ids[:, 40:])
    assert error(logits, expected(model, POLICY, ids)[:, 40:]) < 1e-4


def test_what_is_no_file_is_named(model: PreTrainedModel, tmp_path: Path) -> None:
    cache = StreamingCache(model, POLICY)
    with pytest.raises(FileNotFoundError, match="missing"):
        cache.load(tmp_path / "missing")
    with pytest.raises(OSError, match=tmp_path.name):
        cache.load(tmp_path)
