"""Stream language models over endless text with a KV cache of fixed size."""

from streamcache.bounded import BoundedCache
from streamcache.cache import RerotatingCache, StreamingCache
from streamcache.policy import EvictionPolicy, PolicyError, PolicyWarning
from streamcache.reference import ReferenceCache
from streamcache.rotary import UnsupportedModelError

__version__ = "0.1.0"

__all__ = [
    "BoundedCache",
    "EvictionPolicy",
    "PolicyError",
    "PolicyWarning",
    "ReferenceCache",
    "RerotatingCache",
    "StreamingCache",
    "UnsupportedModelError",
]
