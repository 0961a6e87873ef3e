"""`streamcache copying`: what a bounded cache has lost, by distance."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from streamcache.cli.common import bars, load_one
from streamcache.cli.console import err, show
from streamcache.extras import require
from streamcache.files import write_bytes
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import LoadedModel
from streamcache.measure.configurations import Configuration
from streamcache.measure.copying import PASSAGE, copying_text, measure_copying
from streamcache.measure.store import Store, folder_name
from streamcache.measure.stream import configuration_of, trained_context
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy
from streamcache.report import render, terminal
from streamcache.report.copying import copying_table, svg


def copying(
    dataset_name: str,
    dataset_config: str | None,
    distances: str | None,
    passages: int,
    cap_total: int,
    plot: bool,
    data_dir: Path | None,
    output_dir: Path,
    **model: Any,
) -> None:
    """Measure how well a passage is predicted when it comes again, by distance."""
    if plot:
        require("plots", "the plot", "--no-plot")
    far = _distances(distances, cap_total)
    loaded = load_one(**model)
    text = load_tokens(
        dataset_name,
        dataset_config,
        tokenizer=loaded.tokenizer,
        max_tokens=1 + passages * far[-1],
        data_dir=data_dir,
    )
    if reason := Workload(loaded, text).ppl_unavailable_reason:
        raise click.UsageError(f"nothing to copy: {reason}")
    chosen = _configurations(loaded, cap_total)
    with bars() as progress:
        found = measure_copying(loaded, text, chosen, far, passages, Store(output_dir), progress)
    longest = Workload(loaded, copying_text(text, far[-1], passages)).record
    title = f"{loaded.name}: copying of {text.name}, {cap_total} entries"
    path = output_dir / "copying" / f"{folder_name(longest)}-{cap_total}.md"
    table = copying_table(found, title)
    write_bytes(path, render.markdown(table).encode(), output_dir)
    err.print(f"table: {path}")
    if plot:
        write_bytes(path.with_suffix(".svg"), svg(found, title), output_dir)
        err.print(f"plot: {path.with_suffix('.svg')}")
    show(terminal.of_table(table))


def _configurations(loaded: LoadedModel, total: int) -> list[Configuration]:
    """With sinks, without, and with sinks in a cache of the trained context: the bound above."""
    chosen = [configuration_of(name, loaded, total) for name in ("fast", "window")]
    context = trained_context(loaded)
    if context is not None and context > total:
        most = EvictionPolicy.from_budget(context, n_sink=4)
        chosen.append(replace(chosen[0], policy=most, label=f"fast, {context:,} entries"))
    return chosen


def _distances(text: str | None, total: int) -> list[int]:
    """In increasing order; by default from a quarter of the cache to four times as much.

    Raises:
        click.UsageError: one of them is no number of tokens, or shorter than a passage.
    """
    if text is None:
        return [max(PASSAGE, total * n // 8) for n in (2, 4, 6, 7, 9, 12, 16, 32)]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) >= PASSAGE for part in parts):
        raise click.UsageError(f"--distances takes numbers from {PASSAGE} on, not {text!r}")
    return sorted({int(part) for part in parts})
