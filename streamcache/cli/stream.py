"""`streamcache stream`: the books of PG19 as one stream, configurations side by side."""

from pathlib import Path
from typing import Any

import click

from streamcache.cli.common import bars, load_one, say_where
from streamcache.cli.console import err, show
from streamcache.files import write_bytes
from streamcache.inputs.books import load_books
from streamcache.measure.configurations import NAMED
from streamcache.measure.store import Store, folder_name
from streamcache.measure.stream import CAUSAL, configuration_of, measure_stream
from streamcache.measure.workload import Workload
from streamcache.report import render, terminal
from streamcache.report.stream import stream_tables


def stream(
    configs: str,
    max_eval_tokens: int,
    book_tokens: int | None,
    cap_total: int,
    data_dir: Path | None,
    output_dir: Path,
    **model: Any,
) -> None:
    """Stream all books of PG19 one after the other: PPL by position and by book."""
    names = list(dict.fromkeys(name.strip() for name in configs.split(",")))
    known = [*(name for name, named in NAMED.items() if not named.recomputes), CAUSAL]
    if unknown := [name for name in names if name not in known and ":" not in name]:
        raise click.UsageError(f"no configuration {unknown[0]!r}: choose one of {', '.join(known)}")
    loaded = load_one(**model)
    try:
        chosen = [configuration_of(name, loaded, cap_total) for name in names]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    books = load_books(
        tokenizer=loaded.tokenizer,
        max_tokens=max_eval_tokens,
        book_tokens=book_tokens,
        data_dir=data_dir,
    )
    if reason := Workload(loaded, books.text).ppl_unavailable_reason:
        raise click.UsageError(f"nothing to stream: {reason}")
    with bars() as progress:
        found = measure_stream(loaded, books, chosen, Store(output_dir), progress)
    for measured in found.by_name.values():
        say_where(measured)
    tables = stream_tables(found)
    workload = next(iter(found.by_name.values())).record.workload
    path = output_dir / "stream" / f"{folder_name(workload)}-{cap_total}.md"
    write_bytes(path, "\n".join(map(render.markdown, tables)).encode(), output_dir)
    err.print(f"tables: {path}")
    for table in tables:
        show(terminal.of_table(table))
