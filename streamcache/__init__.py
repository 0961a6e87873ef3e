"""Stream language models over endless text with a KV cache of fixed size."""

from streamcache.bounded import BoundedCache
from streamcache.cache import RerotatingCache, StreamingCache
from streamcache.capture import CapturedDecoder, EagerWarning
from streamcache.onepass import OnePassUnsupported, streaming_nll
from streamcache.policy import EvictionPolicy, PolicyError, PolicyWarning
from streamcache.recompute import recompute_nll
from streamcache.reference import ReferenceCache
from streamcache.ring import RingCache
from streamcache.rotary import UnsupportedModelError
from streamcache.version import VERSION

__version__ = VERSION

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
