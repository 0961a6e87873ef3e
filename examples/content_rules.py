"""Two rules of eviction that decide by content, close to how they were published.

    streamcache eval --policy examples/content_rules.py:KeyDiff --cap-total 256

`KeyDiff` looks at keys (Park et al. 2025, arXiv 2504.15364): an entry whose key resembles the mean
of all keys says little that others do not. `Tova` looks at attention (Oren et al. 2024, arXiv
2401.06104): the entry that the last query has used least is evicted, in all heads of a layer.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from streamcache.caches.scored import Entries, ScoredPolicy


@dataclass(frozen=True)
class KeyDiff(ScoredPolicy):
    """Evict the entry whose key is nearest to the mean direction of all keys of its head."""

    def scores(self, entries: Entries) -> Tensor:
        mean = normalize(entries.keys.float(), dim=-1).mean(dim=2, keepdim=True)
        return -cosine_similarity(entries.keys.float(), mean, dim=-1)


@dataclass(frozen=True)
class Tova(ScoredPolicy):
    """Evict the entry that received the least attention from the last query."""

    def scores(self, entries: Entries) -> Tensor:
        return entries.attention.mean(dim=1, keepdim=True)
