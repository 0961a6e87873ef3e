"""`streamcache fluency`: thousands of tokens written freely, by configuration."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from streamcache.cli.by_distance import configurations_of
from streamcache.cli.common import bars, load_one
from streamcache.cli.console import err, show
from streamcache.decoding.text import Sampling
from streamcache.files import write_bytes
from streamcache.inputs.corpora import load_tokens
from streamcache.measure.fluency import measure_fluency
from streamcache.measure.store import Store, folder_name
from streamcache.measure.stream import configuration_of, trained_context
from streamcache.measure.workload import Workload
from streamcache.report import render, terminal
from streamcache.report.fluency import fluency_table


def fluency(
    dataset_name: str,
    dataset_config: str | None,
    configs: str,
    tokens: int,
    prompt_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    cap_total: int,
    data_dir: Path | None,
    output_dir: Path,
    **model: Any,
) -> None:
    """Measure repetition and PPL of what configurations write."""
    loaded = load_one(**model)
    prompt = load_tokens(
        dataset_name,
        dataset_config,
        tokenizer=loaded.tokenizer,
        max_tokens=prompt_tokens,
        data_dir=data_dir,
    )
    workload = Workload(loaded, prompt)
    if reason := workload.ppl_unavailable_reason:
        raise click.UsageError(f"nothing to write: {reason}")
    chosen = configurations_of(configs, loaded, cap_total)
    context = trained_context(loaded) or prompt_tokens + tokens
    judge = replace(configuration_of("fast", loaded, context), label="judge")
    sampling = Sampling(temperature, top_p, seed)
    with bars() as progress:
        found = measure_fluency(
            loaded, prompt, chosen, judge, tokens, sampling, Store(output_dir), progress
        )
    title = f"{loaded.name}: {tokens:,} tokens after {prompt.name}, {cap_total} entries"
    how = f"temperature-{temperature:g}-seed-{seed}"
    path = output_dir / "fluency" / f"{folder_name(workload.record)}-{cap_total}-{how}.md"
    table = fluency_table(found, title)
    write_bytes(path, render.markdown(table).encode(), output_dir)
    err.print(f"table: {path}")
    show(terminal.of_table(table))
