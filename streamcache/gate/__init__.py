"""Goldens: what a benchmark was, what it is now, and whether that is a regression.

Data flows one way: a process takes `samples`, a `store` keeps those of several processes, `gate`
compares and gives verdicts, `render` shows them. Nothing here knows pytest or torch, and nothing
here is about KV caches.
"""

from streamcache.gate.goldens import Golden, GoldenError
from streamcache.gate.samples import Environment, Sample
from streamcache.gate.verdicts import Status, Verdict

__all__ = ["Environment", "Golden", "GoldenError", "Sample", "Status", "Verdict"]
