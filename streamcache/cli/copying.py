"""`streamcache copying`: what a bounded cache has lost, by distance."""

from pathlib import Path
from typing import Any

import click

from streamcache.cli.by_distance import configurations_of, distances_of, write
from streamcache.cli.common import bars, load_one
from streamcache.extras import require
from streamcache.inputs.corpora import load_tokens
from streamcache.measure.copying import PASSAGE, copying_text, measure_copying
from streamcache.measure.store import Store, folder_name
from streamcache.measure.workload import Workload
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
    far = distances_of(distances, cap_total, PASSAGE)
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
    chosen = configurations_of("fast,window", loaded, cap_total)
    with bars() as progress:
        found = measure_copying(loaded, text, chosen, far, passages, Store(output_dir), progress)
    longest = Workload(loaded, copying_text(text, far[-1], passages)).record
    title = f"{loaded.name}: copying of {text.name}, {cap_total} entries"
    path = output_dir / "copying" / f"{folder_name(longest)}-{cap_total}.md"
    table = copying_table(found, title)
    write(path, table, svg(found, title) if plot else None, output_dir)
