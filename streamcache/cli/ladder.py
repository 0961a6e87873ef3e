"""`streamcache ladder`: the ways to decode a model, compared with the memory roofline."""

from pathlib import Path
from typing import Any

import click

from streamcache.cli.common import bars, load_one
from streamcache.cli.console import err, show
from streamcache.measure.checked import write_struct
from streamcache.measure.ladder import Ladder, Row, measure_ladder
from streamcache.measure.store import file_stem
from streamcache.policy import EvictionPolicy
from streamcache.report import terminal
from streamcache.report.tables import ladder_table


def ladder(
    n_sink: int,
    window_size: int,
    tpot_tokens: int,
    batches: str,
    data_dir: Path | None,
    output_dir: Path,
    **model: Any,
) -> None:
    """Time the ways to decode a model, from eager to captured, and the memory roofline."""
    policy, sizes = EvictionPolicy(n_sink, window_size), _batches(batches)
    loaded = load_one(**model)
    with bars() as progress, progress("ladder", 7 + len(sizes)) as advance:

        def finished(row: Row) -> None:
            advance(1)
            err.print(f"{row.name}: {row.ms:.4g} ms")

        found = measure_ladder(loaded, policy, tpot_tokens, sizes, finished)
    path = _path(output_dir, found)
    write_struct(path, found, output_dir)
    err.print(f"record: {path}")
    show(terminal.of_table(ladder_table(found)))


def _path(output_dir: Path, found: Ladder) -> Path:
    name = f"{found.model} {found.dtype} {found.environment.device}"
    return output_dir / "ladder" / f"{file_stem(name)}.json"


def _batches(text: str) -> tuple[int, ...]:
    """The sizes in a list joined by commas.

    Raises:
        click.UsageError: one of them is no number of streams.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 1 for part in parts):
        raise click.UsageError(f"--batches takes numbers from 2 on, as in 8,32, not {text!r}")
    return tuple(int(part) for part in parts)
