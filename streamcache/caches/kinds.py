"""The caches by name, known without importing torch: a line in `KINDS` makes a cache an option."""

from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from streamcache.caches.base import BoundedCache

Engine = Literal["eager", "captured"]

#: Module of this folder, and class.
KINDS = {
    "reference": "reference.ReferenceCache",
    "rerotating": "streaming.RerotatingCache",
    "streaming": "streaming.StreamingCache",
    "ring": "ring.RingCache",
}
#: What `--streaming-mode` takes: the names as published and in earlier releases, and the kinds.
MODES: dict[str, tuple[str, Engine]] = {
    "mit": ("reference", "eager"),
    "ours": ("rerotating", "eager"),
    "fast": ("streaming", "eager"),
    "captured": ("ring", "captured"),
    **{kind: (kind, "eager") for kind in KINDS},
}


def cache_type(kind: str) -> "type[BoundedCache]":
    """The class of a kind in `KINDS`."""
    module, _, name = KINDS[kind].partition(".")
    found: type[BoundedCache] = getattr(import_module(f"streamcache.caches.{module}"), name)
    return found
