"""Stream language models over endless text with a KV cache of fixed size.

What is named here is imported when it is first used: the golden gate, in the same package, must not
cost every pytest run the import of torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from streamcache.version import VERSION

if TYPE_CHECKING:
    from streamcache.bounded import BoundedCache
    from streamcache.cache import RerotatingCache, StreamingCache
    from streamcache.capture import CapturedDecoder, EagerWarning
    from streamcache.onepass import OnePassUnsupported, streaming_nll
    from streamcache.policy import EvictionPolicy, PolicyError, PolicyWarning
    from streamcache.recompute import recompute_nll
    from streamcache.reference import ReferenceCache
    from streamcache.ring import RingCache
    from streamcache.rotary import UnsupportedModelError

__version__ = VERSION

_HOMES = {
    "BoundedCache": "streamcache.bounded",
    "CapturedDecoder": "streamcache.capture",
    "EagerWarning": "streamcache.capture",
    "EvictionPolicy": "streamcache.policy",
    "OnePassUnsupported": "streamcache.onepass",
    "PolicyError": "streamcache.policy",
    "PolicyWarning": "streamcache.policy",
    "ReferenceCache": "streamcache.reference",
    "RerotatingCache": "streamcache.cache",
    "RingCache": "streamcache.ring",
    "StreamingCache": "streamcache.cache",
    "UnsupportedModelError": "streamcache.rotary",
    "recompute_nll": "streamcache.recompute",
    "streaming_nll": "streamcache.onepass",
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
