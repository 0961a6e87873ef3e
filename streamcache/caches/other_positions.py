"""An experiment: the same entries at other positions than those of their places in the cache.

Both exist in runtimes, and both need no rotation of what is held. They are computed in one pass, to
compare their PPL with that of StreamingLLM; no cache is built on them.
"""

from torch import Tensor

from streamcache.caches.one_pass import OnePass


class Gaps(OnePass):
    """Every token keeps its position in the text.

    Between the sinks and the window is a gap, which grows with every eviction.
    """

    def positions_for_sinks(self, tokens: Tensor, evicted: Tensor) -> Tensor:
        return tokens


class Wrap(OnePass):
    """A token has the number of its slot in a ring: behind the sinks, each round begins again.

    Tokens of the round before stand behind the query, and have larger positions.
    """

    def positions(self, tokens: Tensor) -> Tensor:
        n_sink = self.policy.n_sink
        n_slots = self.policy.capacity - n_sink
        return tokens.where(tokens < n_sink, n_sink + (tokens - n_sink) % n_slots)

    def positions_for_sinks(self, tokens: Tensor, evicted: Tensor) -> Tensor:
        return self.positions(tokens)


#: By what a configuration calls them.
ONE_PASSES: dict[str, type[OnePass]] = {"compact": OnePass, "gaps": Gaps, "wrap": Wrap}
