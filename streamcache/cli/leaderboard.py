"""`streamcache leaderboard`: named configurations and rules of one's own in one table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from streamcache.cli.common import bars, load_one
from streamcache.cli.console import err, show
from streamcache.cli.marks import split_at_marks
from streamcache.files import write_bytes
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.facts import LEAST_DISTANCE, tokens_needed
from streamcache.inputs.models import LoadedModel
from streamcache.measure.configurations import NAMED, Configuration
from streamcache.measure.leaderboard import measure_entries
from streamcache.measure.store import Store, folder_name
from streamcache.measure.stream import configuration_of
from streamcache.measure.workload import Workload
from streamcache.report import render, terminal
from streamcache.report.leaderboard import leaderboard_table

ALL = "all"


def leaderboard(
    dataset_name: str,
    dataset_config: str | None,
    max_eval_tokens: int,
    configs: str,
    questions: int,
    cap_total: int,
    page: Path | None,
    data_dir: Path | None,
    output_dir: Path,
    **model: Any,
) -> None:
    """Measure methods at one total, and write the table."""
    marks = split_at_marks(page, "leaderboard") if page else None
    loaded = load_one(**model)
    chosen = _chosen(configs, loaded, cap_total)
    if max_eval_tokens <= cap_total + 1:
        raise click.UsageError(
            f"{max_eval_tokens} tokens do not fill {cap_total} entries: give a smaller "
            "--cap-total, or more --max-eval-tokens"
        )
    far = [max(2 * LEAST_DISTANCE, cap_total * 3 // 2)] * 2
    text, filler = (
        load_tokens(
            dataset_name,
            dataset_config,
            tokenizer=loaded.tokenizer,
            max_tokens=n_tokens,
            data_dir=data_dir,
        )
        for n_tokens in (max_eval_tokens, tokens_needed(far, questions))
    )
    workload = Workload(loaded, text)
    if reason := workload.ppl_unavailable_reason:
        raise click.UsageError(f"nothing to compare: {reason}")
    with bars() as progress:
        entries = measure_entries(
            *(loaded, text, filler, chosen, cap_total, questions, Store(output_dir), progress)
        )
    table = leaderboard_table(entries, f"{loaded.name}: {cap_total:,} entries")
    path = output_dir / "leaderboard" / f"{folder_name(workload.record)}-{cap_total}.md"
    write_bytes(path, render.markdown(table).encode(), output_dir)
    err.print(f"table: {path}")
    if page and marks:
        before, _, after = marks
        write_bytes(page, f"{before}\n\n{render.markdown(table)}\n{after}".encode())
        err.print(f"page: {page}")
    show(terminal.of_table(table))


def _chosen(configs: str, loaded: LoadedModel, total: int) -> list[Configuration]:
    """Those that are named; of `all` one for each rule, as all caches give the same.

    Raises:
        click.UsageError: a name is not known.
    """
    names = list(dict.fromkeys(name.strip() for name in configs.split(",")))
    every = [n for n, c in NAMED.items() if not c.recomputes and c.engine == "eager"]
    names = [each for name in names for each in (every if name == ALL else [name])]
    if unknown := [name for name in names if name not in every and ":" not in name]:
        known = ", ".join([ALL, *every])
        raise click.UsageError(f"no configuration {unknown[0]!r}: choose one of {known}")
    found: list[Configuration] = []
    for each in (configuration_of(name, loaded, total) for name in dict.fromkeys(names)):
        for i, same in enumerate(found):
            if (same.policy, same.positions) == (each.policy, each.positions):
                found[i] = replace(same, label=f"{same.label}, {each.label}")
                break
        else:
            found.append(each)
    return found
