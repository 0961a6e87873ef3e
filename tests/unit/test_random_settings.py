"""Random policies, families, inputs, batches, dtypes and interruptions against the oracle.

    pytest -m slow tests/unit/test_random_settings.py

tries 10,200 settings. An interruption is an exception at a random line of the package; afterwards
the same input is fed again, or the stream is begun anew where the next call says so.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from hypothesis import HealthCheck, given, reject, seed, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from streamcache.caches.base import BoundedCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.decoding.onepass import OnePassUnsupported, streaming_nll
from streamcache.policy import EvictionPolicy
from tests.cases import ADMITTED, CACHES
from tests.interrupt import Interrupted, Oom, RaiseAtLine
from tests.tiny import copy_of, error, expected, text, tiny

DTYPES = (torch.float32, torch.float32, torch.float32, torch.float16, torch.bfloat16)
TIGHT = 1e-4  # of the logits' standard deviation, in float32
#: The choice of experts is not continuous: rounding changes it, and then everything.
ROUTED = {name for name, shape in ADMITTED.items() if "num_experts_per_tok" in shape} | {
    "mixtral",
    "phimoe",
}


@dataclass(frozen=True)
class Setting:
    family: str
    policy: EvictionPolicy
    dtype: torch.dtype
    batch: int
    lengths: tuple[int, ...]  # of the inputs, tokens
    seed: int
    interrupted: int  # the number of the input that is; negative: none
    line: int  # at the how many-th line
    kind: type[BaseException]


@st.composite
def any_setting(draw: st.DrawFn) -> Setting:
    policy = EvictionPolicy(
        draw(st.integers(0, 6)),
        draw(st.integers(1, 14)),
        draw(st.none() | st.integers(0, 6)),
        draw(st.none() | st.integers(1, 6)),
        draw(st.integers(1, 10)),
    )
    lengths = draw(st.lists(st.just(1) | st.integers(1, 24), min_size=1, max_size=10))
    family = draw(st.sampled_from(sorted(ADMITTED)))
    return Setting(
        family,
        policy,
        torch.float32 if family in ROUTED else draw(st.sampled_from(DTYPES)),
        draw(st.integers(1, 3)),
        tuple(lengths),
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(-len(lengths), len(lengths) - 1)),
        draw(st.integers(1, 600)),
        draw(st.sampled_from([Interrupted, Oom])),
    )


@cache
def model_of(family: str, dtype: torch.dtype) -> PreTrainedModel:
    model = tiny(family, **ADMITTED[family])
    return model if dtype is torch.float32 else copy_of(model, dtype)


class CacheStream:
    """A stream by plain forwards."""

    def __init__(self, make: type[BoundedCache], model: PreTrainedModel, setting: Setting):
        self.model, self.cache = model, make(model, setting.policy)

    def reset(self) -> None:
        self.cache.reset()

    def feed(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, past_key_values=self.cache).logits


class DecoderStream:
    """A stream by a decoder: single tokens are steps."""

    def __init__(self, model: PreTrainedModel, setting: Setting):
        self.decoder = CapturedDecoder(model, setting.policy, setting.batch)
        self.cache = self.decoder.cache

    def reset(self) -> None:
        self.decoder.reset()

    def feed(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > 1:
            return self.decoder.prefill(ids)
        return self.decoder.step(ids).clone()[:, None]


Stream = CacheStream | DecoderStream
WAYS: dict[str, Callable[[PreTrainedModel, Setting], Stream]] = {
    **{each.__name__: partial(CacheStream, each) for each in CACHES},
    "CapturedDecoder": DecoderStream,
}


@torch.no_grad()
def logits_of(setting: Setting, stream: Stream, ids: Tensor, counts: Counter[str]) -> Tensor:
    """[B, T, V], of a stream that is interrupted at most once, and begun anew where it must be."""
    inputs = list(ids.split(list(setting.lengths), dim=1))
    found = [stream.feed(piece) for piece in inputs[: max(0, setting.interrupted)]]
    if setting.interrupted >= 0:
        piece, seen = inputs[len(found)], stream.cache.seen
        interruption = RaiseAtLine(setting.line, setting.kind)
        was = interruption.run(lambda: found.append(stream.feed(piece)))
        counts["interrupted"] += was
        if was and stream.cache.seen != seen:  # fed, but its logits are lost: go on with the next
            found.append(torch.full((*piece.shape, found[0].shape[-1] if found else 1), torch.nan))
    try:
        found += [stream.feed(piece) for piece in inputs[len(found) :]]
    except RuntimeError as refusal:
        assert counts["interrupted"] and "reset()" in str(refusal)
        counts["refused"] += 1
        stream.reset()
        found = [stream.feed(piece) for piece in inputs]
    vocabulary = max(logits.shape[-1] for logits in found)
    return torch.cat([logits.expand(-1, -1, vocabulary) for logits in found], dim=1)


def require_right(setting: Setting, ids: Tensor, logits: Tensor, lost: Tensor) -> None:
    """Compare logits [B, T, V] with the oracle, as it rounds in that dtype.

    In float32 it rounds to less than TIGHT, but for a rare token at which a model is steep.
    """
    model = model_of(setting.family, setting.dtype)
    reference = expected(model, setting.policy, ids)
    largest = error(logits[:, ~lost], reference[:, ~lost])
    if setting.dtype is torch.float32 and largest < TIGHT:
        return
    rounded = expected(model, setting.policy, ids, dtype=setting.dtype)
    if setting.dtype is torch.float32:
        assert largest < 10 * error(rounded, reference)
        return
    off, allowed = (logits - reference)[:, ~lost].abs().mean(), (rounded - reference).abs().mean()
    assert off < 3 * allowed + 0.005 * reference.std()  # 1.2 x were seen of 135 settings


def check_settings(
    n_settings: int, check: Callable[[Setting], None], counts: Counter[str], way: str
) -> None:
    @seed(way)
    @settings(
        max_examples=n_settings,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(setting=any_setting())
    def checked(setting: Setting) -> None:
        check(setting)
        counts["settings"] += 1

    checked()
    assert counts["settings"] >= n_settings


each_number = pytest.mark.parametrize("n_settings", [4, pytest.param(1700, marks=pytest.mark.slow)])


@pytest.mark.parametrize("way", WAYS)
@each_number
def test_any_setting_gives_what_the_oracle_gives(
    way: str, n_settings: int, record_property: Callable[[str, object], None]
) -> None:
    counts = Counter[str]()

    def check(setting: Setting) -> None:
        ids = text(sum(setting.lengths), setting.batch, setting.seed)
        stream = WAYS[way](model_of(setting.family, setting.dtype), setting)
        logits = logits_of(setting, stream, ids, counts)
        lost = logits.isnan().all(dim=-1).all(dim=0)
        assert lost.sum() <= max(setting.lengths)
        if not lost.all():
            require_right(setting, ids, logits, lost)

    check_settings(n_settings, check, counts, way)
    for name, count in counts.items():
        record_property(name, count)


@each_number
def test_the_one_pass_of_any_setting_gives_what_the_oracle_gives(
    n_settings: int, record_property: Callable[[str, object], None]
) -> None:
    counts = Counter[str]()

    def check(setting: Setting) -> None:
        ids = text(1 + sum(setting.lengths), seed=setting.seed)
        model = model_of(setting.family, torch.float32)
        reference = expected(model, setting.policy, ids)
        nll = torch.nn.functional.cross_entropy(reference[0, :-1], ids[0, 1:], reduction="none")

        def measure() -> Tensor:
            return streaming_nll(model, ids[0], setting.policy)

        try:
            if setting.interrupted >= 0:
                counts["interrupted"] += RaiseAtLine(setting.line, setting.kind).run(measure)
            assert (measure() - nll).abs().max() < 1e-3
        except OnePassUnsupported:
            reject()

    check_settings(n_settings, check, counts, "one pass")
    for name, count in counts.items():
        record_property(name, count)
