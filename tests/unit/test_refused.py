"""Models that a bounded cache would serve silently wrong are refused by the constructor."""

import pytest
from torch import nn
from transformers import CONFIG_MAPPING, T5Config, T5ForConditionalGeneration

from streamcache.caches.base import BoundedCache
from streamcache.caches.probe import UnsupportedModelError
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.cases import REFUSED, SWITCHING, each_cache
from tests.tiny import error, expected, stream, text, tiny, tiny_config

POLICY = EvictionPolicy(n_sink=3, window_size=12, cache_slack=2, max_drop=2, compress_every=4)


@pytest.mark.parametrize("family", REFUSED)
def test_a_refused_family(family: str) -> None:
    settings, reason = REFUSED[family]
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    with pytest.raises(UnsupportedModelError, match=f"cannot stream {family} .*{reason}"):
        StreamingCache(tiny(family, **settings), POLICY)


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    with pytest.raises(UnsupportedModelError, match=r"cannot stream t5 .*encoder-decoder"):
        StreamingCache(T5ForConditionalGeneration(config), POLICY)


def test_a_config_is_refused() -> None:
    """There would be no hooks: padding would pass, and positions would grow without bound."""
    with pytest.raises(TypeError, match="pass the model itself, not its config"):
        StreamingCache(tiny_config("llama"), POLICY)  # type: ignore[arg-type]


def test_a_module_that_is_no_model_of_transformers_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear holds no model of transformers"):
        StreamingCache(nn.Linear(2, 2), POLICY)


each_switching = pytest.mark.parametrize("family", SWITCHING)


@each_switching
@each_cache
def test_a_switching_table_is_kept_within(family: str, cache_type: type[BoundedCache]) -> None:
    """Dynamic NTK and LongRoPE: the capacity fits into the 64 positions, exactly."""
    model, policy, ids = tiny(family, **SWITCHING[family]), EvictionPolicy(4, 60), text(200)
    logits = stream(model, cache_type(model, policy), ids)
    assert error(logits, expected(model, policy, ids)) < 1e-4


@each_switching
def test_a_switching_table_that_is_too_short_is_refused(family: str) -> None:
    model = tiny(family, **SWITCHING[family])
    with pytest.raises(UnsupportedModelError, match=r"holds for 64 positions .* holds 65"):
        StreamingCache(model, EvictionPolicy(4, 61))
