"""What the forward of a model takes: transformers calls the cache by different names."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

#: What transformers calls the cache: the latter from 5.24 on.
CACHE_NAMES = ("past_key_values", "cache")


@cache
def parameters_of(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters of a model class's forward, without self."""
    return tuple(inspect.signature(forward).parameters)[1:]


@cache
def cache_name(forward: Callable[..., Any]) -> str:
    """What a forward calls the cache."""
    names = parameters_of(forward)
    return next((name for name in CACHE_NAMES if name in names), CACHE_NAMES[0])


def takes_cache(module: object) -> bool:
    """Whether a module's forward knows a cache by one of the names."""
    return isinstance(module, nn.Module) and any(
        name in parameters_of(type(module).forward) for name in CACHE_NAMES
    )
