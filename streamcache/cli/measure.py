"""`streamcache baseline`, `eval` and `compare`: perplexity and speed of configurations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from streamcache.caches.kinds import MODES
from streamcache.caches.refresh import RefreshPolicy
from streamcache.caches.scored import ScoredPolicy
from streamcache.cli.common import (
    MODEL_OPTIONS,
    bars,
    load,
    loader,
    other_cards,
    positions_for,
    say_where,
)
from streamcache.cli.console import show
from streamcache.cli.options import OutputRecord
from streamcache.measure.configurations import (
    NAMED,
    RECOMPUTE,
    SCORED,
    Configuration,
    label_of,
)
from streamcache.measure.imported import imported_configuration
from streamcache.measure.measurement import Measurement, write
from streamcache.measure.run import Method, What, run
from streamcache.measure.store import Store
from streamcache.measure.sweep import Job, sweep
from streamcache.policy import EvictionPolicy, Policy
from streamcache.report import terminal


def baseline(
    n_sink: int,
    window_size: int,
    runs: int,
    positions: int | None,
    baseline_file: Path | None,
    output_file: Path | None,
    output_dir: Path,
    **where: Any,
) -> None:
    """Measure the fixed baseline: a sliding window encoded from scratch for every token."""
    policy = EvictionPolicy(n_sink, window_size)
    workload = replace(load(**where), window=policy)
    weights = workload.loaded.quantization
    configuration = Configuration(policy, RECOMPUTE, weights=weights, label="baseline")
    if baseline_file is not None:
        baseline_file.unlink(missing_ok=True)
    what = What(positions=positions_for(workload.loaded, positions), pairs=runs)
    with bars() as progress:
        measured = run(
            configuration,
            workload,
            what,
            Store(output_dir),
            progress=progress,
            baseline_file=baseline_file,
        )
    _hand_over(measured, output_file)


def evaluate_one(
    policy: Policy,
    overlap: int,
    refresh_budget: int,
    refresh_policy: RefreshPolicy,
    positions: int | None,
    streaming_mode: str,
    mode: str,
    batch: int,
    ppl_method: Method,
    tpot_tokens: int,
    runs: int,
    baseline_file: Path | None,
    output_file: Path | None,
    output_dir: Path,
    force: bool,
    **where: Any,
) -> None:
    """Measure one configuration: perplexity, its increase over the baseline, TPOT, speedup."""
    _refuse_contradictions(policy, mode, refresh_budget, ppl_method)
    if output_file and baseline_file and output_file.resolve() == baseline_file.resolve():
        raise click.UsageError("--output-file would overwrite --baseline-file: give another name")
    if baseline_file and not baseline_file.exists():
        OutputRecord.convert(baseline_file, None, None)  # measured first, and kept there
    workload = load(**where)
    weights = workload.loaded.quantization
    if mode == "baseline":
        configuration = Configuration(policy, RECOMPUTE, weights=weights)
        assert isinstance(policy, EvictionPolicy)
        workload = replace(workload, window=policy)
    else:
        cache, engine = MODES["mit" if refresh_budget else streaming_mode]
        cache = SCORED if isinstance(policy, ScoredPolicy) else cache
        configuration = Configuration(
            policy,
            cache,
            engine,
            overlap,
            refresh_budget,
            refresh_policy if refresh_budget else "middle",
            weights,
            batch,
        )
    method: Method = "sequential" if refresh_budget else ppl_method
    late = positions_for(workload.loaded, positions)
    with bars() as progress:
        measured = run(
            label_of(configuration),
            workload,
            What(method, late, tpot_tokens, runs),
            Store(output_dir),
            progress=progress,
            baseline_file=baseline_file,
            force=force,
        )
    _hand_over(measured, output_file)


def compare(
    configs: str,
    ppl_method: Method,
    tpot_tokens: int,
    runs: int,
    positions: int | None,
    output_dir: Path,
    force: bool,
    **where: Any,
) -> None:
    """Measure named configurations side by side and print the table."""
    names = list(dict.fromkeys(name.strip() for name in configs.split(",")))
    if unknown := [name for name in names if name not in NAMED and ":" not in name]:
        raise click.UsageError(f"no configuration {unknown[0]!r}: choose one of {', '.join(NAMED)}")
    workload = load(**where)
    late = positions_for(workload.loaded, positions)
    what = What(ppl_method, late, tpot_tokens, runs)
    store, chosen = Store(output_dir), []
    for name in names:
        named = NAMED[name] if name in NAMED else imported_configuration(name, 4, 2048)
        configuration = replace(named, weights=workload.loaded.quantization)
        if configuration.recomputes and workload.window is not None:
            configuration = replace(configuration, policy=workload.window)
        chosen.append(configuration)
    with bars() as progress, progress("configurations", len(names)) as advance:
        sweep(
            [Job(configuration, 0) for configuration in chosen],
            [workload],
            what,
            store,
            lambda job, error: advance(1),
            others=other_cards(workload.loaded, where["device"]),
            load=loader(**{name: where[name] for name in MODEL_OPTIONS}),
            stop_at=(Exception,),
            force=force,
            progress=progress,
        )
    rows = []
    for name, configuration in zip(names, chosen):
        measured = run(configuration, workload, what, store)
        say_where(measured)
        rows.append(msgspec.structs.replace(measured.record, label=name))
    show(terminal.table(rows))


def _refuse_contradictions(
    policy: Policy, mode: str, refresh_budget: int, ppl_method: Method
) -> None:
    """Refuse options of `eval` that would be ignored without a word."""
    source = click.get_current_context().get_parameter_source
    options = ("streaming_mode", "ppl_method", "refresh_policy")
    given = {name for name in options if source(name) is ParameterSource.COMMANDLINE}
    wrong = None
    if not isinstance(policy, EvictionPolicy):
        if mode == "baseline":
            wrong = "the baseline evicts nothing: leave out --policy"
        elif isinstance(policy, ScoredPolicy) and "streaming_mode" in given:
            wrong = "a rule that looks at content has its own cache: leave out --streaming-mode"
        elif isinstance(policy, ScoredPolicy) and "ppl_method" in given:
            wrong = "a rule that looks at content has no one pass: leave out --ppl-method"
    elif mode == "baseline" and policy != EvictionPolicy(policy.n_sink, policy.window_size):
        wrong = "the baseline evicts nothing: give --n-sink and --window-size only"
    elif mode == "baseline" and refresh_budget:
        wrong = "the baseline evicts nothing that could be refreshed"
    elif mode == "baseline" and given & {"streaming_mode", "ppl_method"}:
        wrong = "the baseline has no cache: leave out --streaming-mode and --ppl-method"
    elif refresh_budget and "streaming_mode" in given:
        wrong = "refresh has a cache of its own: leave out --streaming-mode"
    elif refresh_budget and "ppl_method" in given and ppl_method == "one-pass":
        wrong = "refresh has no one pass: leave out --ppl-method, or give sequential"
    elif "refresh_policy" in given and not refresh_budget:
        wrong = "--refresh-policy is for a --refresh-budget: give both"
    if wrong:
        raise click.UsageError(wrong)


def _hand_over(measured: Measurement, output_file: Path | None) -> None:
    """Write a measurement to a file that the user has named, and show it."""
    if output_file is not None:
        write(output_file, measured)
    say_where(measured)
    show(terminal.table([measured.record]))
