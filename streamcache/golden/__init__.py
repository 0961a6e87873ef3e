"""Goldens: what a benchmark was, what it is now, and whether that is a regression.

Data flows one way: a process takes `samples`, a `store` keeps those of several processes, `gate`
compares and gives verdicts, `render` shows them. Nothing here knows pytest or torch, and nothing
here is about KV caches.
"""

from streamcache.golden.gate import Status, Verdict
from streamcache.golden.samples import Environment, Sample
from streamcache.golden.store import Golden, GoldenError

__all__ = ["Environment", "Golden", "GoldenError", "Sample", "Status", "Verdict"]
