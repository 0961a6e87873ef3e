"""Stream language models over endless text with a KV cache of fixed size.

What is named here is imported when it is first used: the golden gate, in the same package, must not
cost every pytest run the import of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from streamcache.version import VERSION

if TYPE_CHECKING:
    from streamcache.caches.base import BoundedCache
    from streamcache.caches.probe import UnsupportedModelError
    from streamcache.caches.reference import ReferenceCache
    from streamcache.caches.ring import RingCache
    from streamcache.caches.streaming import RerotatingCache, StreamingCache
    from streamcache.decoding.captured import CapturedDecoder, EagerWarning
    from streamcache.decoding.onepass import OnePassUnsupported, streaming_nll
    from streamcache.decoding.recompute import recompute_nll
    from streamcache.policy import EvictionPolicy, PolicyError, PolicyWarning

__version__ = VERSION

_HOMES = {
    "BoundedCache": "streamcache.caches.base",
    "CapturedDecoder": "streamcache.decoding.captured",
    "EagerWarning": "streamcache.decoding.captured",
    "EvictionPolicy": "streamcache.policy",
    "OnePassUnsupported": "streamcache.decoding.onepass",
    "PolicyError": "streamcache.policy",
    "PolicyWarning": "streamcache.policy",
    "ReferenceCache": "streamcache.caches.reference",
    "RerotatingCache": "streamcache.caches.streaming",
    "RingCache": "streamcache.caches.ring",
    "StreamingCache": "streamcache.caches.streaming",
    "UnsupportedModelError": "streamcache.caches.probe",
    "recompute_nll": "streamcache.decoding.recompute",
    "streaming_nll": "streamcache.decoding.onepass",
}

__all__ = [
    "BoundedCache",
    "CapturedDecoder",
    "EagerWarning",
    "EvictionPolicy",
    "OnePassUnsupported",
    "PolicyError",
    "PolicyWarning",
    "ReferenceCache",
    "RerotatingCache",
    "RingCache",
    "StreamingCache",
    "UnsupportedModelError",
    "recompute_nll",
    "streaming_nll",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
