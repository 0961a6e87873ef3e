"""`streamcache recall`: how far back a stream still knows what it was told."""

from pathlib import Path
from typing import Any

import click

from streamcache.cli.by_distance import configurations_of, distances_of, write
from streamcache.cli.common import bars, load_one
from streamcache.extras import require
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.facts import LEAST_DISTANCE, MOST_FACTS, tokens_needed
from streamcache.measure.recall import measure_recall
from streamcache.measure.store import Store, folder_name
from streamcache.measure.workload import Workload
from streamcache.report.recall import recall_table, svg


def recall(
    dataset_name: str,
    dataset_config: str | None,
    configs: str,
    distances: str | None,
    questions: int,
    cap_total: int,
    plot: bool,
    data_dir: Path | None,
    output_dir: Path,
    **model: Any,
) -> None:
    """Measure the share of facts that are answered right, by distance."""
    if plot:
        require("plots", "the plot", "--no-plot")
    far = distances_of(distances, cap_total, LEAST_DISTANCE)
    if questions * len(far) > MOST_FACTS:
        raise click.UsageError(f"at most {MOST_FACTS} questions in all: give fewer --questions")
    loaded = load_one(**model)
    text = load_tokens(
        dataset_name,
        dataset_config,
        tokenizer=loaded.tokenizer,
        max_tokens=tokens_needed(far, questions),
        data_dir=data_dir,
    )
    workload = Workload(loaded, text)
    if reason := workload.ppl_unavailable_reason:
        raise click.UsageError(f"nothing to recall: {reason}")
    chosen = configurations_of(configs, loaded, cap_total)
    with bars() as progress:
        found = measure_recall(loaded, text, chosen, far, questions, Store(output_dir), progress)
    title = f"{loaded.name}: facts in {text.name}, {cap_total} entries"
    path = output_dir / "recall" / f"{folder_name(workload.record)}-{cap_total}.md"
    table = recall_table(found, title)
    write(path, table, svg(found, title, cap_total) if plot else None, output_dir)
