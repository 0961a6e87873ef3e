"""Everything the paper measured: its configurations within one budget, and its texts."""

from streamcache.measure.configurations import (
    ABLATIONS,
    NAMED,
    Configuration,
    with_budget,
)
from streamcache.measure.run import What, positions_of
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy, PolicyError

PUBLISHED_TOTAL = 2048
TEXTS = {"pg19": 20_000, "wikitext": 4096}  # tokens, as published
QUICK_TEXTS = {"pg19": 6144, "wikitext": 3072}
METHODS = ("baseline", "mit", "ours-standard", "best", "quality", "fast")
CAPTURED = ("captured", "best-captured")  # without a GPU they decode eagerly, like `fast`


def configurations(total: int, on_gpu: bool) -> list[Configuration]:
    """The baseline, the methods and the three ablations; the baseline first.

    At the published total the methods have their published sizes (`quality` is 16 entries beyond
    it). The ablations' windows are always derived, so that all of one have the same budget. A
    configuration that is in two ablations is in the list twice, under two labels.

    Raises:
        PolicyError: the total leaves one of them no window; the message says what would do for all.
    """
    methods = [NAMED[name] for name in (*METHODS, *(CAPTURED if on_gpu else ()))]
    ablations = [NAMED[name] for names in ABLATIONS.values() for name in names]
    derived = ablations + (methods if total != PUBLISHED_TOTAL else [])
    policies = [named.policy for named in derived if isinstance(named.policy, EvictionPolicy)]
    least = max(policy.n_sink + policy.slack for policy in policies) + 1
    if total < least:
        raise PolicyError(
            f"total={total} leaves no window in some configurations; total must be at least {least}"
        )
    if total != PUBLISHED_TOTAL:
        methods = [with_budget(named, total) for named in methods]
    return methods + [with_budget(named, total) for named in ablations]


def estimated_seconds(
    configuration: Configuration, workload: Workload, what: What, window_s: float, token_s: float
) -> float:
    """About how long a measurement takes; the factors are those of the reference model.

    Args:
        window_s: what recomputing a window takes.
        token_s: what decoding a token with the `streaming` cache takes.
    """
    n_late = 0 if workload.ppl_unavailable_reason else positions_of(what, workload)
    if configuration.recomputes:
        return (n_late + 2 * what.pairs + 3) * window_s
    factor = {"reference": 2.6, "rerotating": 1.3, "ring": 0.2}.get(configuration.cache, 1)
    capture_s = 15 if configuration.engine == "captured" else 0
    found = (what.pairs + 3) * window_s + 1.5 * what.tpot_tokens * factor * token_s + capture_s
    if workload.ppl_unavailable_reason is None:
        n_tokens = len(workload.text.input_ids)
        found += 3.5 * n_tokens / configuration.policy.capacity * window_s
    return found
