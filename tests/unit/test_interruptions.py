"""An exception at every line of the caches: the next call continues exactly, or refuses.

A refusal is a RuntimeError that names `reset()`, after which the cache is as good as new. What must
never happen is a stream that goes on and is silently wrong.
"""

import copy
import random
import signal
import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.cases import each_cache
from tests.interrupt import Choice, Interrupted, Oom, RaiseAtLine, each_choice_of_lines
from tests.tiny import error, expected, llama, text

POLICY = EvictionPolicy(2, 6, 2, 2, 3)  # capacity 10

#: Tokens fed before, and the length of the input that is interrupted.
INPUTS = {
    "the first token": (0, 1),
    "a prompt": (0, 5),
    "a prompt longer than the window": (0, 14),
    "a step that evicts": (24, 1),
    "a chunk that evicts and starts positions anew": (19, 5),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return llama(num_hidden_layers=2)


def feed(model: PreTrainedModel, cache: BoundedCache, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, past_key_values=cache).logits


@each_cache
@pytest.mark.parametrize("case", INPUTS)
@each_choice_of_lines
def test_an_exception_at_any_line_leaves_nothing_silently_wrong(
    model: PreTrainedModel,
    cache_type: type[BoundedCache],
    case: str,
    chosen: Choice,
    record_property: Callable[[str, object], None],
) -> None:
    n_before, n_tokens = INPUTS[case]
    before, at_work, after = text(n_before + n_tokens + 4).split([n_before, n_tokens, 4], dim=1)
    fresh = cache_type(model, POLICY)
    for token in before.split(1, dim=1) if n_before else ():
        feed(model, fresh, token)
    whole = copy.deepcopy(fresh)
    feed(model, whole, at_work)
    reference = feed(model, whole, after)
    n_continued = n_refused = 0
    lines = RaiseAtLine.lines_of(partial(feed, model, copy.deepcopy(fresh), at_work))
    for i, line in enumerate(chosen(lines)):
        cache = copy.deepcopy(fresh)
        interruption = RaiseAtLine(line, Interrupted if i % 2 else Oom)
        if not interruption.run(partial(feed, model, cache, at_work)):
            break
        try:
            if cache.seen != n_before + n_tokens:
                feed(model, cache, at_work)
            logits = feed(model, cache, after)
        except RuntimeError as refusal:
            assert "reset()" in str(refusal)
            n_refused += 1
            if n_refused % 8 == 0:
                cache.reset()
                assert torch.equal(
                    feed(model, cache, after), feed(model, cache_type(model, POLICY), after)
                )
        else:
            n_continued += 1
            assert error(logits, reference) < 1e-4, f"silently wrong after line {line}"
    record_property("continued", n_continued)
    record_property("refused", n_refused)
    assert line > 60 and n_continued > 0


@each_cache
def test_a_forward_that_failed_in_the_output_embedding_can_be_run_again(
    cache_type: type[BoundedCache],
) -> None:
    """The token is in every layer by then, but not counted."""
    model, ids = llama(), text(40)
    cache = cache_type(model, POLICY)
    head = torch.cat([feed(model, cache, ids[:, t : t + 1]) for t in range(20)], dim=1)

    def fail(*_: object) -> None:
        raise Oom

    for _ in range(3):
        handle = model.get_output_embeddings().register_forward_pre_hook(fail)
        with pytest.raises(Oom):
            feed(model, cache, ids[:, 20:21])
        handle.remove()
        assert cache.seen == 20
    rest = torch.cat([feed(model, cache, ids[:, t : t + 1]) for t in range(20, 40)], dim=1)
    reference = expected(model, POLICY, ids)
    assert error(torch.cat([head, rest], dim=1), reference) < 1e-4


def test_another_thread_never_waits_for_one_that_was_interrupted(model: PreTrainedModel) -> None:
    """The lock around the hooks of a model is released."""

    def build_and_drop() -> None:
        StreamingCache(model, POLICY)

    line = 1
    while RaiseAtLine(line, Interrupted, "hooks.py").run(build_and_drop):
        other = threading.Thread(target=build_and_drop, daemon=True)
        other.start()
        other.join(20)
        assert not other.is_alive(), f"waits for ever after line {line}"
        line += 1
    assert line > 20


@each_cache
def test_a_bad_token_id_changes_nothing(
    model: PreTrainedModel, cache_type: type[BoundedCache]
) -> None:
    ids, cache = text(40), cache_type(model, POLICY)
    for t in range(20):
        feed(model, cache, ids[:, t : t + 1])
    bad = torch.full((1, 5), 10_000)
    with pytest.raises(IndexError):
        feed(model, cache, bad)
    assert (cache.seen, cache.evicted) == (20, cache.evicted)
    rest = torch.cat([feed(model, cache, ids[:, t : t + 1]) for t in range(20, 40)], dim=1)
    assert error(rest, expected(model, POLICY, ids)[:, 20:]) < 1e-4


@each_cache
def test_a_longer_input_may_follow_an_interrupted_shorter_one(
    cache_type: type[BoundedCache],
) -> None:
    """What was evicted for the first is a part of what is evicted for the second."""
    model, ids = llama(), text(40)
    cache = cache_type(model, POLICY)
    for t in range(20):
        feed(model, cache, ids[:, t : t + 1])

    def fail(*_: object) -> None:
        raise Oom

    handle = model.get_decoder().layers[1].register_forward_pre_hook(fail)
    with pytest.raises(Oom):
        feed(model, cache, ids[:, 20:22])
    handle.remove()
    logits = feed(model, cache, ids[:, 20:26])
    assert error(logits, expected(model, POLICY, ids[:, :26])[:, 20:]) < 1e-4


@each_cache
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
@pytest.mark.parametrize("n_signals", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_a_signal_at_any_time_leaves_nothing_silently_wrong(
    model: PreTrainedModel,
    cache_type: type[BoundedCache],
    n_signals: int,
    record_property: Callable[[str, object], None],
) -> None:
    """As Ctrl-C sends it: also between lines, in torch and in transformers."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    rng, ids = random.Random(0), text(400)
    cache, whole = cache_type(model, POLICY), cache_type(model, POLICY)
    previous = signal.signal(signal.SIGALRM, interrupt)
    n_sent = n_refused = 0
    try:
        while n_sent < n_signals:
            n = rng.choice([1, 1, 1, 3, 6, 9])
            if cache.seen + n + 4 > ids.shape[1]:
                cache.reset()
                whole.reset()
            seen = cache.seen
            at_work = ids[:, seen : seen + n]
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-3))
                feed(model, cache, at_work)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                n_sent += 1
            feed(model, whole, at_work)
            try:
                if cache.seen != seen + n:
                    feed(model, cache, at_work)
                logits = feed(model, cache, ids[:, seen + n : seen + n + 4])
            except RuntimeError as refusal:
                assert "reset()" in str(refusal)
                n_refused += 1
                cache.reset()
                whole.reset()
                continue
            reference = feed(model, whole, ids[:, seen + n : seen + n + 4])
            assert error(logits, reference) < 1e-4
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    record_property("signals", n_sent)
    record_property("refused", n_refused)
    assert n_refused < n_sent, "some interruptions are harmless"
