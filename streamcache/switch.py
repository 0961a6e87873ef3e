"""Switching a model to a registered attention function for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedConfig, PreTrainedModel


@contextmanager
def attention_named(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Have the model's layers attend by the function registered as `name`; then as before.

    Not by transformers' public setter, which sets configs that belong to no module as well.
    """
    found = (getattr(module, "config", None) for module in model.modules())
    configs = {id(c): c for c in found if isinstance(c, PreTrainedConfig)}.values()
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation
