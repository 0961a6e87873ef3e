"""What `streamcache sinks` found, as tables."""

from streamcache.measure.sinks import ENOUGH, Sinks
from streamcache.report.tables import Table, number, percent


def sinks_tables(found: Sinks) -> list[Table]:
    """PPL by the number of sinks, and attention by layer where it could be taken."""
    w = found.workload
    rows = tuple(
        (
            str(row.n_sink),
            str(row.window_size),
            number(row.ppl),
            f"{percent(row.increase)} ± {100 * row.error:.2f} %",
        )
        for row in found.rows
    )
    ppl = Table(
        f"{w.model} {w.dtype}: {w.text}, {w.n_tokens} tokens, {found.total} entries",
        ("S", "W", "PPL", "increase"),
        rows,
        (
            "PPL: of the steady state, the same positions in all rows; increase: over the lowest, "
            "± its standard error",
            f"choose S = {found.chosen}: the fewest with an increase of at most {100 * ENOUGH:g} %",
        ),
    )
    return [ppl, _attention(found)] if found.n_attended else [ppl]


def _attention(found: Sinks) -> Table:
    has_learned = any(share for layer in found.learned for share in layer)
    rows = []
    for layer, (heads, learned) in enumerate(zip(found.attention, found.learned)):
        firsts = [head[0] for head in heads]
        four = [sum(head) for head in heads]
        cells = [_mean(firsts), max(firsts), _mean(four), max(four)]
        cells += [_mean(learned), max(learned)] if has_learned else []
        rows.append((str(layer), *(f"{100 * cell:.1f} %" for cell in cells)))
    n_first = len(found.attention[0][0])
    header = ["layer", "first token", "most of a head", f"first {n_first}", "most of a head"]
    header += ["learned sink", "most of a head"] if has_learned else []
    return Table(
        "attention by layer, mean over heads",
        tuple(header),
        tuple(rows),
        (
            f"share of the attention of tokens {found.n_attended // 2} to {found.n_attended - 1}; "
            f"spread evenly, a token would have {100 * found.uniform:.2f} %",
        ),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
