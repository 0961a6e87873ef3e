"""`streamcache diagnose`: the effect of a policy's evictions on the tokens right after them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich import box
from rich.table import Table

from streamcache.cli.common import bars, load
from streamcache.cli.console import err, show
from streamcache.extras import require
from streamcache.files import write_bytes
from streamcache.measure.checked import Floats, write_struct
from streamcache.measure.configurations import NAMED, Configuration, label_of, settings
from streamcache.measure.diagnose import (
    CacheState,
    Diagnosis,
    EvictionEffect,
    cache_states,
    difference,
    eviction_effect,
    per_token_eviction,
    small_window_control,
    span_of,
    tokens_csv,
)
from streamcache.measure.measurement import environment
from streamcache.measure.run import What, run
from streamcache.measure.store import Store, file_stem, folder_name
from streamcache.measure.workload import Workload
from streamcache.plain import in_spreadsheet
from streamcache.policy import EvictionPolicy, count_evictions


def diagnose(
    policy: EvictionPolicy,
    overlap: int,  # it is in the policy's window already
    against: str | None,
    span: int | None,
    shuffles: int,
    seed: int,
    plot: bool,
    output_dir: Path,
    **where: Any,
) -> None:
    """Compare the NLL after evictions with that before, and with shuffled boundaries."""
    if plot:
        require("plots", "the plot", "--no-plot")
    other = _other(policy, against)
    workload = replace(load(**where), window=None)
    if reason := workload.ppl_unavailable_reason:
        raise click.UsageError(f"nothing to diagnose: {reason}")
    weights = workload.loaded.quantization
    only_ppl, store = What(tpot_tokens=0), Store(output_dir)
    found = []
    with bars() as progress:
        for each in (policy, other.policy, small_window_control(policy)):
            configuration = label_of(Configuration(each, "streaming", weights=weights))
            measured = run(configuration, workload, only_ppl, store, progress=progress)
            assert measured.nll is not None
            found.append(measured.nll)
    nll, nll_other, nll_control = found
    first = max(policy.capacity, other.policy.capacity)
    states = list(cache_states(policy, len(nll)))
    boundaries = np.flatnonzero([state.evicted for state in states])
    boundaries = boundaries[boundaries >= first] - first

    def around_evictions(series: Floats) -> EvictionEffect:
        return eviction_effect(
            series[first:], boundaries, span or span_of(boundaries), shuffles, seed
        )

    name = settings(policy)
    diagnosis = Diagnosis(
        configuration=name,
        against=other.name,
        workload=workload.record,
        environment=environment(workload.loaded.model.device, workload.loaded.n_devices),
        evictions=count_evictions(policy, len(nll)),
        first_position=first + 1,
        difference=difference((nll - nll_other)[first:]),
        effect=around_evictions(nll - nll_other),
        control=around_evictions(nll_control - nll_other),
        raw=around_evictions(nll),
    )
    folder = output_dir / "diagnose" / folder_name(workload.record)
    path = folder / file_stem(f"{name} vs {other.name}")
    _write(path, output_dir, diagnosis, workload, states, nll, nll_other, plot)
    show(_table(diagnosis))


def _other(policy: EvictionPolicy, against: str | None) -> Configuration:
    """The configuration to compare with.

    Raises:
        click.UsageError: no such name, or the same policy, or one without a cache.
    """
    if against is None:
        other = per_token_eviction(policy)
        return Configuration(other, "streaming", label=settings(other))
    if against not in NAMED:
        raise click.UsageError(f"no configuration {against!r}: choose one of {', '.join(NAMED)}")
    if NAMED[against].recomputes:
        raise click.UsageError(f"{against} has no cache: give a configuration that evicts")
    if NAMED[against].policy == policy:
        raise click.UsageError(f"{against} has the same policy: the difference would be zero")
    return NAMED[against]


def _write(
    path: Path,
    output_dir: Path,
    diagnosis: Diagnosis,
    workload: Workload,
    states: list[CacheState],
    nll: Floats,
    nll_other: Floats,
    plot: bool,
) -> None:
    ids, tokenizer = workload.text.input_ids.tolist(), workload.loaded.tokenizer
    words = [""] * len(ids)
    if tokenizer is not None:
        words = [in_spreadsheet(word) for word in tokenizer.batch_decode([[i] for i in ids])]
    files = {".csv": tokens_csv(ids, words, states, nll, nll_other)}
    if plot:
        from streamcache.report.diagnosis_plot import svg

        files[".svg"] = svg(diagnosis, states, nll, nll_other)
    for suffix, data in files.items():
        write_bytes(Path(f"{path}{suffix}"), data, output_dir)
    write_struct(Path(f"{path}.json"), diagnosis, output_dir)
    err.print(f"{path}.json{', '.join(['', *files])}")


def _table(found: Diagnosis) -> Table:
    gap = found.difference
    view = Table(
        title=f"{found.workload.model}, {found.workload.text}: {found.configuration} against "
        f"{found.against}",
        caption=(
            f"{gap.mean:+.4f} nats per token on average ({gap.low:+.4f} … {gap.high:+.4f}, 95 %), "
            f"PPL {100 * math.expm1(gap.mean):+.2f} %, {gap.n_tokens} tokens from position "
            f"{found.first_position}\n"
            f"around {found.effect.n_boundaries} evictions, {found.effect.span} tokens on each "
            f"side; p: share of {found.effect.shuffles} shuffled boundaries with an effect as large"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    view.add_column("nats per token", no_wrap=True)
    for header in ("excess", "p", "shuffled 95 %", "peak", "p", "area", "width"):
        view.add_column(header, justify="right", no_wrap=True)
    rows = {"after evictions": found.effect, "control": found.control, "NLL as it is": found.raw}
    for name, effect in rows.items():
        low, high = effect.shuffled_excess
        view.add_row(
            name,
            f"{effect.excess:+.4f}",
            f"{effect.excess_p:.4f}",
            f"{low:+.4f} … {high:+.4f}",
            f"{effect.peak:+.4f}",
            f"{effect.peak_p:.4f}",
            f"{effect.area:+.3f}",
            f"{effect.width:.1f}",
        )
    return view
