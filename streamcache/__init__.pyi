# The public names and where they are: for type checkers, and read by `__init__.py`.
from streamcache.caches.base import BoundedCache as BoundedCache
from streamcache.caches.probe import UnsupportedModelError as UnsupportedModelError
from streamcache.caches.reference import ReferenceCache as ReferenceCache
from streamcache.caches.ring import RingCache as RingCache
from streamcache.caches.saved import StreamFileError as StreamFileError
from streamcache.caches.streaming import RerotatingCache as RerotatingCache
from streamcache.caches.streaming import StreamingCache as StreamingCache
from streamcache.decoding.captured import CapturedDecoder as CapturedDecoder
from streamcache.decoding.captured import EagerWarning as EagerWarning
from streamcache.decoding.generate import CapturedGeneration as CapturedGeneration
from streamcache.decoding.onepass import OnePassUnsupported as OnePassUnsupported
from streamcache.decoding.onepass import streaming_nll as streaming_nll
from streamcache.decoding.recompute import recompute_nll as recompute_nll
from streamcache.policy import EvictionPolicy as EvictionPolicy
from streamcache.policy import PolicyError as PolicyError
from streamcache.policy import PolicyWarning as PolicyWarning

__all__: list[str]
__version__: str
