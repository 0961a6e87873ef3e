"""Which tokens a stream holds, from the rule of the specification, in plain lists."""

from collections.abc import Iterator

from streamcache.testing.oracle import Oracle as Oracle


def kept_after_each(
    n_tokens: int, n_sink: int, window: int, slack: int, max_drop: int | None, every: int
) -> list[list[int]]:
    """The tokens held after each append, from the rule of the specification, as plain lists."""
    return list(kept_by_rule(n_tokens, n_sink, window, slack, max_drop, every))


def kept_by_rule(
    n_tokens: int, n_sink: int, window: int, slack: int, max_drop: int | None, every: int
) -> Iterator[list[int]]:
    held: list[int] = []
    for t in range(1, n_tokens + 1):
        need = len(held) + 1 - (n_sink + window)
        if need > 0 and (t % every == 0 or len(held) + 1 > n_sink + window + slack):
            for _ in range(need if max_drop is None else min(need, max_drop)):
                held.remove(next(token for token in held if token >= n_sink))
        held.append(t - 1)
        yield list(held)
