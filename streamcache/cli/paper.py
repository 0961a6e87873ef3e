"""`streamcache paper`: every measurement of the paper, in one command that can be interrupted."""

import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from streamcache.cli.common import (
    bars,
    baseline_path,
    load_one,
    model_options,
    no_quality,
    obtain_baseline,
    on_gpu,
    positions_option,
    wanted_baseline,
)
from streamcache.cli.console import err, out, show
from streamcache.inputs.corpora import load_tokens
from streamcache.measure import baseline as baselines
from streamcache.measure.configurations import Configuration
from streamcache.measure.paper import (
    PUBLISHED_TOTAL,
    QUICK_TEXTS,
    TEXTS,
    Paper,
    configurations,
    folder_of,
)
from streamcache.measure.timing import time_tokens
from streamcache.policy import PolicyWarning
from streamcache.report import terminal as report

Job = tuple[Paper, Configuration]


@click.command()
@model_options
@positions_option
@click.option(
    "--dataset-name",
    "datasets",
    default=",".join(TEXTS),
    show_default=True,
    help="texts: pg19, wikitext, stream (packaged) or files",
)
@click.option("--max-eval-tokens", type=click.IntRange(2), help="default: as published, by text")
@click.option("--cap-total", type=int, default=PUBLISHED_TOTAL, show_default=True, help="entries")
@click.option("--tpot-tokens", type=click.IntRange(8), help="default: 256, quick: 128")
@click.option("--runs", type=click.IntRange(1), help="timed forwards; default: 8, quick: 4")
@click.option("--quick", is_flag=True, help="shorter texts and timings: minutes on two CPU cores")
@click.option("--dry-run", is_flag=True, help="print what would be measured, and stop")
@click.option("--force", is_flag=True, help="measure again what is finished")
def paper(
    datasets: str,
    max_eval_tokens: int | None,
    cap_total: int,
    tpot_tokens: int | None,
    runs: int | None,
    quick: bool,
    dry_run: bool,
    force: bool,
    data_dir: Path | None,
    positions: int | None,
    output_dir: Path,
    **model: Any,
) -> int:
    """Measure everything the paper did: baseline, methods and three ablations, on two texts.

    A finished measurement is kept, so the same command goes on where an interrupted one stopped.
    """
    loaded = load_one(**model)
    chosen = configurations(cap_total, on_gpu(loaded))
    lengths = QUICK_TEXTS if quick else TEXTS
    papers = []
    names = [name.strip() for name in datasets.split(",")]
    for name in dict.fromkeys(filter(None, names)):
        n_tokens = max_eval_tokens or lengths.get(name, 4096)
        text = load_tokens(name, tokenizer=loaded.tokenizer, max_tokens=n_tokens, data_dir=data_dir)
        reason, policy = no_quality(loaded, text), chosen[0].policy
        wanted = wanted_baseline(loaded, text, policy, positions)
        papers.append(
            Paper(
                loaded,
                text,
                folder_of(output_dir, loaded, text),
                policy,
                tpot_tokens or (128 if quick else 256),
                runs or (4 if quick else 8),
                None if reason else wanted,
                (reason,) if reason else (),
            )
        )
    jobs = [(paper, configuration) for paper in papers for configuration in chosen]
    due = [job for job in jobs if force or not job[0].finished(job[1])]
    if dry_run:
        _print_plan(papers, chosen, due)
        return 0
    err.print(f"{len(jobs) - len(due)} of {len(jobs)} measurements are finished")
    started, failed = time.monotonic(), _run(due, positions, output_dir, force)
    for one in papers:
        rows = [row for configuration in chosen if (row := one.finished(configuration))]
        if rows:
            show(report.table(rows, brief=True))
        err.print(f"records: {one.folder}")
    err.print(f"measured {len(due) - failed} in {time.monotonic() - started:.0f} s")
    if failed:
        err.print(f"{failed} of {len(jobs)} measurements failed; the same command tries them again")
    return 1 if failed else 0


def _run(due: list[Job], positions: int | None, output_dir: Path, force: bool) -> int:
    """Measure; how many failed."""
    failed = 0
    made: dict[baselines.Fingerprint, baselines.Baseline] = {}
    with bars() as bar, bar("paper", len(due)) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyWarning)  # what it warns of is what is measured
        for paper, configuration in due:
            name = f"{configuration.name} on {paper.text.name}"
            trace = paper.folder / f"{configuration.name}.failed.txt"
            try:
                if paper.wanted and paper.wanted not in made:
                    subject = paper.loaded, paper.text
                    path = baseline_path(output_dir, *subject, paper.wanted)
                    if force:  # not even half of it is kept
                        path.unlink(missing_ok=True)
                    made[paper.wanted] = obtain_baseline(
                        *subject, paper.baseline, positions, path, output_dir, bar=bar
                    )
                with bar(name, paper.text.input_ids.shape[0] - 1) as tokens:
                    against = made[paper.wanted] if paper.wanted else None
                    paper.measure(configuration, against, tokens)
                trace.unlink(missing_ok=True)
            except Exception as error:  # does not keep the others from being measured
                failed += 1
                trace.parent.mkdir(parents=True, exist_ok=True)
                trace.write_text(traceback.format_exc())
                reason = str(error).partition("\n")[0] or type(error).__name__
                err.print(f"{name} failed: {reason} ({trace})")
            advance(1)
    return failed


def _print_plan(papers: list[Paper], chosen: list[Configuration], due: list[Job]) -> None:
    """A row per configuration: its sizes, and what it takes on each text."""
    pace = _pace(papers[0])
    view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    view.add_column("configuration", overflow="fold")
    for header in ("S", "W", "σ", "δ", "R", "total", *(paper.text.name for paper in papers)):
        view.add_column(header, justify="right", no_wrap=True)
    total_s = 0.0
    for configuration in chosen:
        p = configuration.policy
        sizes = (p.n_sink, p.window_size, p.slack, p.max_drop or "–", p.compress_every, p.capacity)
        cells = ["finished"] * len(papers)
        for i, paper in enumerate(papers):
            if (paper, configuration) in due:
                takes = paper.seconds(configuration, *pace)
                total_s += takes
                cells[i] = f"{takes:.1f} s"
        view.add_row(configuration.name, *map(str, sizes), *cells)
    show(view)
    n = len(papers) * len(chosen)
    out.print(f"{len(due)} of {n} measurements to make, about {total_s / 60:.1f} minutes")


def _pace(paper: Paper) -> tuple[float, float]:
    """What recomputing a window and decoding a token take here, seconds: units of the estimates."""
    model, policy = paper.loaded.model, paper.baseline
    ids = paper.text.input_ids.to(model.device)
    ids = ids.repeat(policy.floor // ids.shape[0] + 1)
    window = Configuration("", policy, None).step(model, ids)
    token = Configuration("", policy, "fast").step(model, ids)
    window_ms = min(time_tokens(window, 1, model.device).wall_ms for _ in range(3))
    time_tokens(token, 8, model.device)
    return window_ms / 1e3, time_tokens(token, 8, model.device).wall_ms / 8e3
