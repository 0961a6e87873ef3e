"""`streamcache paper`: every measurement of the paper, in one command that can be interrupted."""

import dataclasses
import time
import warnings
from pathlib import Path
from typing import Any

import click
import msgspec
from rich import box
from rich.table import Table

from streamcache.caches.admission import UnsupportedModelError
from streamcache.cli.common import bars, load_one, loader, on_gpu, other_cards, positions_for
from streamcache.cli.console import err, out, show
from streamcache.files import write_bytes
from streamcache.inputs.corpora import load_tokens
from streamcache.measure.configurations import Configuration
from streamcache.measure.measurement import Record
from streamcache.measure.paper import (
    QUICK_TEXTS,
    TEXTS,
    configurations,
    estimated_seconds,
)
from streamcache.measure.run import What, is_finished
from streamcache.measure.steps import steady_step
from streamcache.measure.store import Store, folder_name
from streamcache.measure.sweep import Job, sweep, trace_of
from streamcache.measure.timing import time_tokens
from streamcache.measure.workload import Workload
from streamcache.policy import EvictionPolicy, PolicyWarning
from streamcache.report import terminal


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

    A finished measurement is kept, so the same command continues where an interrupted one stopped.
    """
    loaded = load_one(**model)
    chosen = [
        dataclasses.replace(configuration, weights=loaded.quantization)
        for configuration in configurations(cap_total, on_gpu(loaded))
    ]
    window = chosen[0].policy
    assert isinstance(window, EvictionPolicy)
    lengths = QUICK_TEXTS if quick else TEXTS
    workloads = []
    names = [name.strip() for name in datasets.split(",")]
    for name in dict.fromkeys(filter(None, names)):
        n_tokens = max_eval_tokens or lengths.get(name, 4096)
        text = load_tokens(name, tokenizer=loaded.tokenizer, max_tokens=n_tokens, data_dir=data_dir)
        workloads.append(Workload(loaded, text, window=window))
    if not workloads:
        raise click.UsageError("--dataset-name is empty: name a text")
    what = What(
        positions=positions_for(loaded, positions),
        tpot_tokens=(128 if quick else 256) if tpot_tokens is None else tpot_tokens,
        pairs=runs or (4 if quick else 8),
    )
    store = Store(output_dir)
    jobs = [Job(c, index) for index in range(len(workloads)) for c in chosen]
    due = [
        job
        for job in jobs
        if force or not is_finished(job.configuration, workloads[job.workload], what, store)
    ]
    if dry_run:
        _print_plan(workloads, chosen, due, what)
        return 0
    err.print(f"{len(jobs) - len(due)} of {len(jobs)} measurements are finished")
    started, failures = time.monotonic(), _Failures(store)
    others = other_cards(loaded, model["device"])
    if others:
        err.print(f"{1 + len(others)} cards measure")
    with bars() as progress, progress("paper", len(due)) as advance, warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyWarning)  # it warns of what is measured here

        def finished(job: Job, error: Exception | None) -> None:
            failures.note(job.configuration, workloads[job.workload], error)
            advance(1)

        sweep(
            due,
            workloads,
            what,
            store,
            finished,
            others=others,
            load=loader(**model),
            stop_at=(UnsupportedModelError,),  # nothing of this model can be measured
            force=force,
            progress=progress,
        )
    failed = failures.n
    for workload in workloads:
        rows = _finished(workload, chosen, what, store)
        if rows:
            show(terminal.table(rows, brief=True))
        err.print(f"records: {output_dir / folder_name(workload.record)}")
    err.print(f"measured {len(due) - failed} in {time.monotonic() - started:.0f} s")
    if failed:
        err.print(f"{failed} of {len(jobs)} measurements failed; the same command tries them again")
    return 1 if failed else 0


class _Failures:
    """What could not be measured, each in a line and its traceback in a file.

    Attributes:
        n: their number.
    """

    def __init__(self, store: Store):
        self.n, self._store = 0, store

    def note(
        self, configuration: Configuration, workload: Workload, error: Exception | None
    ) -> None:
        """A configuration was measured, or failed."""
        name = f"{configuration.name} on {workload.text.name}"
        folder = self._store.folder / folder_name(workload.record)
        trace = folder / f"{configuration.name}.failed.txt"
        if error is None:
            if not err.is_terminal:  # there is no bar
                err.print(f"measured {name}")
            trace.unlink(missing_ok=True)
            return
        self.n += 1
        write_bytes(trace, trace_of(error).encode(), self._store.folder)
        reason = str(error).partition("\n")[0] or type(error).__name__
        err.print(f"{name} failed: {reason} ({trace})")


def _finished(
    workload: Workload, chosen: list[Configuration], what: What, store: Store
) -> list[Record]:
    """The records of what is finished, by the labels of this command."""
    found = [(c.name, is_finished(c, workload, what, store)) for c in chosen]
    return [msgspec.structs.replace(m.record, label=name) for name, m in found if m is not None]


def _print_plan(
    workloads: list[Workload], chosen: list[Configuration], due: list[Job], what: What
) -> None:
    """A row per configuration: its sizes, and what it takes on each text."""
    pace = _pace(workloads[0])
    view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    view.add_column("configuration", overflow="fold")
    for header in ("S", "W", "total", *(workload.text.name for workload in workloads)):
        view.add_column(header, justify="right", no_wrap=True)
    total_s = 0.0
    for configuration in chosen:
        p = configuration.policy
        sizes = (p.n_sink, p.floor - p.n_sink, configuration.total)
        cells = ["finished"] * len(workloads)
        for i, workload in enumerate(workloads):
            if Job(configuration, i) in due:
                takes = estimated_seconds(configuration, workload, what, *pace)
                total_s += takes
                cells[i] = f"{takes:.1f} s"
        view.add_row(configuration.name, *map(str, sizes), *cells)
    show(view)
    n = len(workloads) * len(chosen)
    out.print(f"{len(due)} of {n} measurements to make, about {total_s / 60:.1f} minutes")


def _pace(workload: Workload) -> tuple[float, float]:
    """Seconds that recomputing a window and decoding a token take here: units of the estimates."""
    loaded, policy = workload.timed_model, workload.window
    assert policy is not None
    model, ids = loaded.model, workload.ids(loaded, policy.floor)
    window = steady_step(Configuration(policy, "recompute"), model, ids)
    token = steady_step(Configuration(policy, "streaming"), model, ids)
    window_ms = min(time_tokens(window, 1, model.device).wall_ms for _ in range(3))
    time_tokens(token, 8, model.device)
    return window_ms / 1e3, time_tokens(token, 8, model.device).wall_ms / 8e3
