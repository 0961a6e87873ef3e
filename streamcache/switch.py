"""A model in another state for a while, and then as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
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


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; then each module is in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in before:
            module.training = training
