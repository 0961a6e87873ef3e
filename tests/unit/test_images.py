"""Models that see: text streams as in any model, images are streamed right or refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from streamcache.caches.reference import ReferenceCache
from streamcache.caches.streaming import StreamingCache
from streamcache.policy import EvictionPolicy
from tests.tiny import error, tiny_config

POLICY = EvictionPolicy(4, 16, 4, 3, 5)  # capacity 24
IMAGE, VIDEO, BEGIN, END = 60, 61, 62, 63


@pytest.fixture(scope="module")
def qwen() -> Any:
    """Its images have positions in three dimensions."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    language = tiny_config("llama", num_key_value_heads=2, rope_parameters=rope).to_dict()
    language = {k: v for k, v in language.items() if k not in ("model_type", "head_dim")}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    patches = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1}
    config = Qwen2VLConfig(
        text_config=language,
        vision_config={**vision, **patches},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(config).eval()


def words(n_tokens: int) -> Tensor:
    return torch.randint(0, IMAGE, (1, n_tokens), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_text_of_a_model_that_sees_is_streamed(qwen: Any) -> None:
    ids, logits = words(80), []
    for cache in (StreamingCache(qwen, POLICY), ReferenceCache(qwen, POLICY)):
        steps = [qwen(input_ids=token, past_key_values=cache).logits for token in ids.split(1, 1)]
        logits.append(torch.cat(steps, dim=1))
        assert cache.base > 0
    assert error(*logits) < 1e-4
    cache = StreamingCache(qwen, POLICY)
    qwen.generate(ids, past_key_values=cache, max_new_tokens=30, do_sample=False)
    assert cache.seen == 80 + 29


CALLS: dict[str, Callable[..., Any]] = {
    "a forward": lambda model, cache, inputs: model(**inputs, past_key_values=cache),
    "generate": lambda model, cache, inputs: model.generate(
        **inputs, past_key_values=cache, max_new_tokens=3
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("n_tokens", [12, 40])
@torch.no_grad()
def test_images_with_positions_of_their_own_are_refused_by_name(
    qwen: Any, call: str, n_tokens: int
) -> None:
    """Also where the prompt is longer than the window; and nothing is fed."""
    ids = words(n_tokens)
    ids[0, 3:9] = torch.tensor([BEGIN, *[IMAGE] * 4, END])
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(16, 3 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (ids == IMAGE).int(),
    }
    cache = StreamingCache(qwen, POLICY)
    with pytest.raises(ValueError, match="images and videos cannot be streamed with this model"):
        CALLS[call](qwen, cache, inputs)
    assert cache.seen == 0


@torch.no_grad()
def test_images_that_are_tokens_like_others_are_streamed() -> None:
    """In LLaVA an image is a row of embeddings; its prompt is longer than the window here."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    language = tiny_config("llama", num_key_value_heads=2)
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=language, image_token_index=IMAGE)
    ).eval()
    ids, pixels = words(40), torch.randn(1, 3, 16, 16)
    ids[0, 3:19] = IMAGE
    seen: list[Tensor] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(input_ids=ids, pixel_values=pixels)
    hook.remove()
    whole, alone = StreamingCache(model, POLICY), StreamingCache(model, POLICY)
    logits = model(input_ids=ids, pixel_values=pixels, past_key_values=whole).logits
    pieces = seen[0].split([16] + [2] * 12, dim=1)
    steps = [model(inputs_embeds=piece, past_key_values=alone).logits for piece in pieces]
    assert whole.seen == alone.seen == 40
    assert error(logits, torch.cat(steps, dim=1)) < 1e-4
