"""Batches of unequal length: each row gives what its stream gives alone."""

import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache import CapturedGeneration
from streamcache.caches.base import BoundedCache
from streamcache.caches.padding import PaddingError
from streamcache.caches.refresh import RefreshCache
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.inputs.models import load_model
from streamcache.policy import EvictionPolicy
from tests.cases import ADMITTED, CACHES, POLICIES, each_cache
from tests.interrupt import Choice, Interrupted, RaiseAtLine, each_choice_of_lines
from tests.tiny import error, expected, llama, stream, text, tiny

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24
TIGHT = 1e-4
PADDING = [5, 0, 31]  # columns before each row, whose prompt ends in column 32


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama()


def mask_of(padding: list[int], width: int) -> Tensor:
    return torch.stack([(torch.arange(width) >= lead).long() for lead in padding])


def padded(model: Any, cache: BoundedCache, ids: Tensor, padding: list[int]) -> Tensor:
    """Logits [B, T, V]: a left-padded prompt, tokens, several tokens at once, tokens."""
    with torch.no_grad():
        mask = mask_of(padding, 32)
        prompt = model(input_ids=ids[:, :32], attention_mask=mask, past_key_values=cache).logits
    n_rest = ids.shape[1] - 52
    return torch.cat([prompt, stream(model, cache, ids[:, 32:], [1] * 12 + [8] + [1] * n_rest)], 1)


def alone(model: PreTrainedModel, cache: BoundedCache, row: Tensor) -> Tensor:
    """Logits [1, T, V] of one stream [T]."""
    return stream(model, cache, row[None], [len(row)])


def assert_as_alone(
    model: PreTrainedModel, make: Callable[[], BoundedCache], ids: Tensor, padding: list[int]
) -> None:
    cache = make()
    logits = padded(model, cache, ids, padding)
    assert cache.lengths == [ids.shape[1] - lead for lead in padding] and cache.padding == padding
    assert cache.size <= cache.policy.capacity
    for row, own, lead in zip(ids, logits, padding):
        assert error(own[None, lead:], alone(model, make(), row[lead:])) < TIGHT


CASES: list[tuple[type[BoundedCache], str]] = [(StreamingCache, name) for name in POLICIES]
CASES += [(cache_type, name) for cache_type in CACHES for name in ("lazy", "softlite")]


@pytest.mark.parametrize("cache_type, policy", dict.fromkeys(CASES))
def test_rows_padded_on_the_left(
    model: PreTrainedModel, cache_type: type[BoundedCache], policy: str
) -> None:
    ids = text(62, batch=3)
    assert_as_alone(model, lambda: cache_type(model, POLICIES[policy]), ids, PADDING)


FAMILIES = ["gpt_neox", "mistral", "phi", "gemma2", "gpt_oss", "cohere2", "gptj", "mpt", "mixtral"]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_other_families(family: str) -> None:
    """Layers that see less than the cache holds, ALiBi, learned sinks, layers without positions."""
    model = tiny(family, **ADMITTED[family])
    assert_as_alone(model, lambda: StreamingCache(model, POLICY), text(70, batch=3), PADDING)


def test_rows_agree_with_the_oracle(model: PreTrainedModel) -> None:
    ids = text(70, batch=3)
    logits = padded(model, StreamingCache(model, POLICY), ids, PADDING)
    for row, own, lead in zip(ids, logits, PADDING):
        assert error(own[None, lead:], expected(model, POLICY, row[None, lead:])) < TIGHT


@pytest.mark.parametrize("where", ["middle", "tail"])
def test_rows_with_refresh(model: PreTrainedModel, where: Any) -> None:
    assert_as_alone(model, lambda: RefreshCache(model, POLICY, 4, where), text(70, 3), PADDING)


def generated(model: Any, ids: Tensor, **how: Any) -> Tensor:
    how = {"attention_mask": torch.ones_like(ids), **how}
    out: Tensor = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0, **how)
    return out[:, ids.shape[1] :]


@each_cache
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_left_padding(
    model: PreTrainedModel, cache_type: type[BoundedCache], beams: int
) -> None:
    ids, how = text(32, batch=3), {"num_beams": beams}
    mask, cache = mask_of(PADDING, 32), cache_type(model, POLICY)
    together = generated(model, ids, attention_mask=mask, past_key_values=cache, **how)
    for row, own, lead in zip(ids, together, PADDING):
        cache = cache_type(model, POLICY)
        assert torch.equal(
            own[None], generated(model, row[None, lead:], past_key_values=cache, **how)
        )


def test_generate_goes_on_with_the_whole_text(model: PreTrainedModel) -> None:
    """A second turn, as long in each row: the mask says again where the rows began."""
    ids, cache = text(32, batch=3), StreamingCache(model, POLICY)
    how = {"past_key_values": cache}
    first = generated(model, ids, attention_mask=mask_of(PADDING, 32), **how)
    whole = torch.cat([ids, first, text(6, batch=3, seed=1)], dim=1)
    second = generated(model, whole, attention_mask=mask_of(PADDING, whole.shape[1]), **how)
    for row, own, lead in zip(whole, second, PADDING):
        cache = StreamingCache(model, POLICY)
        assert torch.equal(own[None], generated(model, row[None, lead:], past_key_values=cache))


def test_a_row_that_ends_does_not_change_the_others(model: PreTrainedModel) -> None:
    ids, mask = text(32, batch=3), mask_of(PADDING, 32)
    free = generated(model, ids, attention_mask=mask, past_key_values=StreamingCache(model, POLICY))
    end = int(free[0, 4])
    cache = StreamingCache(model, POLICY)
    ended = generated(model, ids, attention_mask=mask, past_key_values=cache, eos_token_id=end)
    for own, before in zip(ended, free):
        n = (before.tolist() + [end]).index(end)
        assert torch.equal(own[:n], before[:n])


@each_cache
def test_rows_that_join_leave_and_go_on_alone(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    """Two streams, a third that has seen more, the first leaves, and the last goes on alone."""
    a, b, c = text(90, batch=3)
    caches = [cache_type(model, POLICY) for _ in range(2)]
    stream(model, caches[0], torch.stack([a, b])[:, :20], [20])
    stream(model, caches[1], c[None, :40], [40])
    batch = caches[0]
    batch.join(caches[1])
    assert batch.lengths == [20, 20, 40]
    rows = torch.stack([a[20:50], b[20:50], c[40:70]])
    first = stream(model, batch, rows)
    batch.batch_select_indices(torch.tensor([2, 1]))
    second = stream(model, batch, torch.stack([c[70:80], b[50:60]]))
    lone = batch.row(0)
    third = stream(model, lone, c[None, 80:])
    assert batch.lengths == [80, 60] and lone.lengths == [90]
    whole = [alone(model, cache_type(model, POLICY), row) for row in (a, b, c)]
    for own, row in zip(first, (whole[0][:, 20:50], whole[1][:, 20:50], whole[2][:, 40:70])):
        assert error(own[None], row) < TIGHT
    assert error(second[:1], whole[2][:, 70:80]) < TIGHT
    assert error(second[1:], whole[1][:, 50:60]) < TIGHT
    assert error(third, whole[2][:, 80:]) < TIGHT
    assert caches[1].seen == 40, "what joined was a fork"


def test_a_cache_that_cannot_join(model: PreTrainedModel) -> None:
    cache, other = StreamingCache(model, POLICY), llama()
    stream(model, cache, text(5))
    with pytest.raises(ValueError, match="holds no stream"):
        cache.join(StreamingCache(model, POLICY))
    with pytest.raises(ValueError, match="another cache or policy"):
        cache.join(StreamingCache(model, EvictionPolicy(4, 16)))
    with pytest.raises(ValueError, match="of another model"):
        cache.join(StreamingCache(other, POLICY))
    assert cache.lengths == [5]


def test_forks_and_roll_back_of_unequal_rows(model: PreTrainedModel) -> None:
    ids = text(80, batch=3)
    cache = StreamingCache(model, POLICY, max_rollback=8)
    padded(model, cache, ids[:, :60], PADDING)
    fork = copy.deepcopy(cache)
    first = stream(model, cache, ids[:, 60:])
    assert torch.equal(stream(model, fork, ids[:, 60:]), first)
    fork.crop(75)
    cache.crop(-7)
    assert cache.lengths == [68, 73, 42] and fork.lengths == [70, 75, 44]
    for own, n in ((cache, 7), (fork, 5)):
        logits = stream(model, own, ids[:, -n:])
        assert error(logits, first[:, -n:]) < TIGHT


def test_a_mask_of_every_token_is_not_cut(model: PreTrainedModel) -> None:
    ids, cache = text(32, batch=3), StreamingCache(model, POLICY)
    with pytest.raises(ValueError, match="token_type_ids needs the input in one forward"):
        model.get_decoder()(
            input_ids=ids,
            token_type_ids=ids,
            attention_mask=mask_of(PADDING, 32),
            past_key_values=cache,
        )
    assert cache.seen == 0 and cache.parts == []


def test_rows_are_saved_one_by_one(model: PreTrainedModel, tmp_path: Path) -> None:
    ids, cache = text(70, batch=3), StreamingCache(model, POLICY)
    padded(model, cache, ids, PADDING)
    with pytest.raises(ValueError, match=r"cache.row\(i\).save"):
        cache.save(tmp_path / "rows")
    cache.row(-1).save(tmp_path / "row")
    loaded = StreamingCache(model, POLICY)
    loaded.load(tmp_path / "row")
    more = text(5, seed=4)
    assert torch.equal(stream(model, loaded, more), stream(model, cache.row(2), more))


def test_equal_rows_are_held_together(model: PreTrainedModel) -> None:
    """A mask without padding, and rows of one length behind padding."""
    ids, cache = text(40, batch=3), StreamingCache(model, POLICY)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache)
        assert cache.parts == [] and cache.lengths == [40] * 3
        cache.reset()
        model(input_ids=ids, attention_mask=mask_of([3, 3, 0], 40), past_key_values=cache)
    assert [part.n_rows for part in cache.parts] == [2, 1]
    cache.reset()
    assert cache.parts == [] and cache.seen == 0


def test_padding_of_streams_under_way_is_refused(model: PreTrainedModel) -> None:
    ids, cache = text(32, batch=3), StreamingCache(model, POLICY)
    padded(model, cache, text(60, batch=3), PADDING)
    for padding, width in (([1, 0, 0], 4), ([5, 0, 30], 64), (PADDING, 63)):
        mask = mask_of(padding, width)
        with pytest.raises(PaddingError, match="these streams have begun"), torch.no_grad():
            model(input_ids=ids[:, :4], attention_mask=mask, past_key_values=cache)
    with pytest.raises(ValueError, match="a batch of 3 streams and was given 2"):
        stream(model, cache, ids[:2, :1])
    assert cache.seen == 60


@pytest.mark.parametrize(
    "begin, end", [(0, 12), (16, 17), (16, 21)], ids=["a prompt", "a step", "several tokens"]
)
@each_choice_of_lines
def test_an_exception_at_any_line_leaves_no_row_silently_wrong(
    model: PreTrainedModel, begin: int, end: int, chosen: Choice
) -> None:
    ids, policy = text(end + 3, batch=2), EvictionPolicy(2, 6, 2, 2, 3)

    def feed(cache: BoundedCache, begin: int, end: int) -> Tensor:
        with torch.no_grad():
            mask = mask_of([4, 0], end) if begin == 0 else None
            out: Any = model(
                input_ids=ids[:, begin:end], attention_mask=mask, past_key_values=cache
            )
        return out.logits

    before = StreamingCache(model, policy)
    if begin:
        feed(before, 0, begin)
    whole = copy.deepcopy(before)
    feed(whole, begin, end)
    reference = feed(whole, end, end + 3)
    lines = RaiseAtLine.lines_of(partial(feed, copy.deepcopy(before), begin, end))
    n_continued = 0
    for line in chosen(lines):
        cache = copy.deepcopy(before)
        if not RaiseAtLine(line, Interrupted).run(partial(feed, cache, begin, end)):
            break
        try:
            if cache.seen != end:
                feed(cache, begin, end)
            logits = feed(cache, end, end + 3)
        except RuntimeError as refusal:
            assert "reset()" in str(refusal)
        else:
            n_continued += 1
            assert error(logits, reference) < TIGHT, f"silently wrong after line {line}"
    assert n_continued > 0


def steps(decoder: CapturedDecoder, ids: Tensor) -> Tensor:
    return torch.stack([decoder.step(token).clone() for token in ids.unbind(dim=1)], dim=1)


@pytest.mark.parametrize("name", ["vanilla", "softlite"])
def test_a_decoder_of_unequal_rows(model: PreTrainedModel, name: str) -> None:
    """Padded prompts, steps over many evictions, more tokens at once; then a row begins anew."""
    ids, new, policy = text(150, batch=3), text(90, seed=1), POLICIES[name]
    decoder = CapturedDecoder(model, policy, 3)
    for _ in range(2):
        mask = mask_of(PADDING, 32)
        logits = [decoder.prefill(ids[:, :32], attention_mask=mask), steps(decoder, ids[:, 32:90])]
        logits += [decoder.prefill(ids[:, 90:110])]
        first = decoder.replace(1, new[:, :50])
        rest = ids[:, 110:150].clone()
        rest[1] = new[0, 50:]
        last = steps(decoder, rest)
        whole = torch.cat([*logits, last], dim=1)
        for i in (0, 2):
            own, row = whole[i : i + 1, PADDING[i] :], ids[i, PADDING[i] : 150]
            assert error(own, alone(model, StreamingCache(model, policy), row)) < TIGHT
        begun = torch.cat([first, last[1:2]], dim=1)
        assert error(begun, alone(model, StreamingCache(model, policy), new[0])) < TIGHT
        decoder.reset()


def test_rows_of_an_equal_decoder_begin_anew(model: PreTrainedModel) -> None:
    """One after the other, the last before its first token; what was replaced is not read again."""
    ids, decoder = text(80, batch=3), CapturedDecoder(model, POLICY, 3)
    steps(decoder, ids[:, :30])
    for row in range(2):
        decoder.replace(row, ids[row : row + 1, :10])
    assert decoder.cache.lengths == [10, 10, 30]
    rest = torch.stack([ids[0, 10:50], ids[1, 10:50], ids[2, 30:70]])
    for i, own in enumerate(steps(decoder, rest)):
        n = 70 if i == 2 else 50
        whole = alone(model, StreamingCache(model, POLICY), ids[i, :n])
        assert error(own[None], whole[:, -40:]) < TIGHT
    with pytest.raises(IndexError):
        decoder.replace(3, ids[:1])
    with pytest.raises(ValueError, match="this decoder has batch=1 and was given 3"):
        decoder.replace(0, ids)


def test_a_decoder_whose_rows_are_no_longer_its_own_refuses(model: PreTrainedModel) -> None:
    ids, decoder = text(40, batch=2), CapturedDecoder(model, POLICY, 2)
    decoder.prefill(ids[:, :20], attention_mask=mask_of([4, 0], 20))
    decoder.cache.batch_select_indices(torch.tensor([1, 0]))
    with pytest.raises(RuntimeError, match=r"reset\(\) the decoder"):
        decoder.step(ids[:, 20])
    decoder.reset()
    decoder.prefill(ids[:, :20], attention_mask=mask_of([4, 0], 20))
    assert decoder.cache.lengths == [16, 20]


def test_captured_generation_with_left_padding(model: PreTrainedModel) -> None:
    ids, mask = text(32, batch=3), mask_of(PADDING, 32)
    captured = CapturedGeneration(model, POLICY)
    together = generated(model, ids, attention_mask=mask, custom_generate=captured)
    assert captured.eager_because is None
    for row, own, lead in zip(ids, together, PADDING):
        single = generated(model, row[None, lead:], custom_generate=captured)
        assert torch.equal(own[None], single)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vanilla", "lazy", "softlite"])
def test_captured_rows_on_a_gpu(name: str) -> None:
    """Padded prompts, many captured steps, and rows that begin anew, against streams alone."""
    model: Any = llama(hidden_size=64)
    model, policy = model.cuda(), POLICIES[name]
    ids, new = text(400, batch=3).cuda(), text(250, seed=1).cuda()
    decoder = CapturedDecoder(model, policy, 3)
    assert decoder.eager_because is None
    logits = [decoder.prefill(ids[:, :32], attention_mask=mask_of(PADDING, 32).cuda())]
    logits += [steps(decoder, ids[:, 32:200])]
    first = decoder.replace(1, new[:, :50])
    rest = ids[:, 200:400].clone()
    rest[1] = new[0, 50:]
    last = steps(decoder, rest)
    whole = torch.cat([*logits, last], dim=1)
    for i in (0, 2):
        own, row = whole[i : i + 1, PADDING[i] :], ids[i, PADDING[i] :]
        assert error(own, alone(model, StreamingCache(model, policy), row)) < TIGHT
    begun = torch.cat([first, last[1:2]], dim=1)
    assert error(begun, alone(model, StreamingCache(model, policy), new[0])) < TIGHT


@pytest.mark.gpu
def test_unequal_captured_rows_are_as_fast_as_equal_ones() -> None:
    """Tokens per second of 32 streams of a 1B model, in turns; the machine must be quiet."""
    model = load_model("random:llama-3.2-1b", device="cuda", dtype="bfloat16").model
    policy, n = EvictionPolicy(4, 252, 16, 32, 32), 32
    ids = text(600, batch=n).cuda()
    padding = [7 * i for i in range(n)]
    equal, unequal = (CapturedDecoder(model, policy, n) for _ in range(2))
    assert equal.eager_because is None and unequal.eager_because is None
    mask = mask_of(padding, 300).cuda()
    equal.prefill(ids[:, :300], logits_to_keep=1)
    unequal.prefill(ids[:, :300], logits_to_keep=1, attention_mask=mask)
    assert unequal.cache.lengths == [300 - lead for lead in padding]

    def seconds(decoder: CapturedDecoder) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for token in ids[:, 300:].unbind(dim=1):
            decoder.step(token)
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    for decoder in (equal, unequal):
        seconds(decoder)
    times = [(seconds(equal), seconds(unequal)) for _ in range(7)]
    ratio = sorted(of_equal / of_unequal for of_equal, of_unequal in times)[3]
    first, second = (n * 300 / sorted(each)[3] for each in zip(*times))
    print(f"{first:.0f} tokens/s equal, {second:.0f} unequal: {ratio:.3f}")
    assert ratio >= 0.95
