"""What the commands share that measure what is lost by distance."""

from dataclasses import replace
from pathlib import Path

import click

from streamcache.cli.console import err, show
from streamcache.files import write_bytes
from streamcache.inputs.models import LoadedModel
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.measure.stream import configuration_of, trained_context
from streamcache.report import render, terminal
from streamcache.report.tables import Table


def distances_of(text: str | None, total: int, least: int) -> list[int]:
    """In increasing order; by default from a quarter of the cache to four times as much.

    Raises:
        click.UsageError: one of them is no number of tokens, or less than `least`.
    """
    if text is None:
        return sorted({max(least, total * n // 8) for n in (2, 4, 6, 7, 9, 12, 16, 32)})
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) >= least for part in parts):
        raise click.UsageError(f"--distances takes numbers from {least} on, not {text!r}")
    return sorted({int(part) for part in parts})


def configurations_of(configs: str, loaded: LoadedModel, total: int) -> list[Configuration]:
    """Those that are named, and sinks in a cache of the trained context: the bound above.

    Raises:
        click.UsageError: a name is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in configs.split(",")))
    known = [name for name, named in NAMED.items() if not named.recomputes]
    if unknown := [name for name in names if name not in known and ":" not in name]:
        raise click.UsageError(f"no configuration {unknown[0]!r}: choose one of {', '.join(known)}")
    chosen = [configuration_of(name, loaded, total) for name in names]
    context = trained_context(loaded)
    if context is not None and context > total:
        full = configuration_of("fast", loaded, context)
        chosen.append(replace(full, label=f"fast, {context:,} entries"))
    return chosen


def write(path: Path, table: Table, plot: bytes | None, output_dir: Path) -> None:
    """Write a table, and beside it its plot (SVG) where there is one; print the table."""
    write_bytes(path, render.markdown(table).encode(), output_dir)
    err.print(f"table: {path}")
    if plot is not None:
        write_bytes(path.with_suffix(".svg"), plot, output_dir)
        err.print(f"plot: {path.with_suffix('.svg')}")
    show(terminal.of_table(table))
