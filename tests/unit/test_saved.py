"""A stream saved to a file goes on where it was, bit for bit, and on nothing but its own model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.refresh import RefreshCache
from streamcache.caches.saved import StreamFileError, digest_of_weights
from streamcache.caches.streaming import RerotatingCache, StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.policy import EvictionPolicy
from tests.cases import each_cache
from tests.tiny import copy_of, llama, neox, stream, text, tiny

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


def test_what_is_no_file_is_named(model: PreTrainedModel, tmp_path: Path) -> None:
    cache = StreamingCache(model, POLICY)
    with pytest.raises(FileNotFoundError, match="missing"):
        cache.load(tmp_path / "missing")
    with pytest.raises(OSError, match=tmp_path.name):
        cache.load(tmp_path)
