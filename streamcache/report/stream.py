"""PPL of a stream of books as tables: by position, and by book with intervals over books."""

import math
from itertools import pairwise

from streamcache.measure.checked import Floats
from streamcache.measure.configurations import settings
from streamcache.measure.measurement import Record
from streamcache.measure.stream import (
    CAUSAL,
    Streamed,
    by_book,
    by_position,
    edges,
    interval,
    worse_from,
)
from streamcache.report.tables import DASH, Table, number, percent


def stream_tables(found: Streamed) -> list[Table]:
    """By position and by book, a column a configuration."""
    names = list(found.by_name)
    nll = {name: _nll(found, name) for name in names}
    return [_by_position(found, names, nll), _by_book(found, names, nll)]


def _sizes(record: Record) -> str:
    """Its policy; a rule of one's own by its fields."""
    fields = {**record.configuration}
    if record.policy is not None:
        return settings(record.policy)
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _nll(found: Streamed, name: str) -> Floats:
    values = found.by_name[name].nll
    assert values is not None
    return values


def _by_position(found: Streamed, names: list[str], nll: dict[str, Floats]) -> Table:
    record = found.by_name[names[0]].record
    marks = edges(len(found.books.text.input_ids) - 1)
    rows = tuple(
        (f"{a:,} to {b:,}", *(number(by_position(nll[name], a, b)) for name in names))
        for a, b in pairwise(marks)
    )
    worse = (worse_from(nll[name], nll[names[0]]) for name in names)
    row = ("worse from", *(DASH if token is None else f"{token:,}" for token in worse))
    n_books = len(set(found.books.names))
    w = record.workload
    return Table(
        f"{w.model} {w.dtype}: PPL by position, {n_books} books of PG19 as one stream",
        ("tokens", *names),
        (*rows, row),
        (
            *(f"{name}: {_sizes(found.by_name[name].record)}" for name in names),
            f"worse from: where the first 1,024 tokens begin whose PPL is more than 10 % above "
            f"that of {names[0]}",
        ),
    )


def _by_book(found: Streamed, names: list[str], nll: dict[str, Floats]) -> Table:
    # What covers the beginning only has no PPL of whole books.
    whole = [name for name in names if name != CAUSAL or len(nll[name]) == len(nll[names[0]])]
    parts = {name: by_book(found.books, nll[name]) for name in whole}
    first = whole[0]
    rows = [
        (book, f"{len(parts[first][book]):,}", *(_ppl([parts[n][book]]) for n in whole))
        for book in parts[first]
    ]
    books = {name: list(parts[name].values()) for name in whole}
    n_tokens = sum(map(len, books[first]))
    rows.append(("all", f"{n_tokens:,}", *(_ppl(books[name]) for name in whole)))
    rows.append(("95 %", "", *(_span(interval(books[name])) for name in whole)))
    gaps = {name: [x - y for x, y in zip(books[name], books[first])] for name in whole}
    rows.append((f"over {first}", "", *(_gap(gaps[name]) for name in whole)))
    rows.append(("95 %", "", *(_gap_span(interval(gaps[name])) for name in whole)))
    return Table(
        "PPL by book",
        ("book", "tokens", *whole),
        tuple(rows),
        ("95 %: bootstrap over books, 2,000 times; a book read again counts as the same book",),
    )


def _ppl(parts: list[Floats]) -> str:
    return number(_exp_of_mean(parts))


def _exp_of_mean(parts: list[Floats]) -> float:
    return math.exp(sum(float(p.sum()) for p in parts) / sum(map(len, parts)))


def _gap(parts: list[Floats]) -> str:
    return percent(_exp_of_mean(parts) - 1)


def _span(values: tuple[float, float] | None) -> str:
    return DASH if values is None else f"{values[0]:.2f} to {values[1]:.2f}"


def _gap_span(values: tuple[float, float] | None) -> str:
    if values is None:
        return DASH
    return f"{percent(values[0] - 1)} to {percent(values[1] - 1)}"
