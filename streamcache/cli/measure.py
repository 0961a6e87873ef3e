"""`streamcache baseline`, `eval` and `compare`: perplexity and speed of configurations."""

from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource
from torch import Tensor

from streamcache.caches.refresh import RefreshPolicy
from streamcache.cli.common import (
    File,
    OutputFile,
    load,
    no_quality,
    obtain_baseline,
    positions_option,
    progress,
    subject_options,
)
from streamcache.cli.console import err, show
from streamcache.cli.policies import name_of, policy_options
from streamcache.inputs.corpora import TokenStream
from streamcache.inputs.models import LoadedModel
from streamcache.measure import evaluate, records
from streamcache.measure.configurations import (
    BASELINE,
    NAMED,
    Configuration,
    Mode,
    RefreshConfiguration,
)
from streamcache.measure.records import Quality, Record, Speed
from streamcache.measure.unfinished import Unfinished
from streamcache.policy import EvictionPolicy
from streamcache.report import terminal as report

DEFAULT_TABLE = "baseline,mit,ours-standard,best,fast"

runs_option = click.option(
    "--runs", type=click.IntRange(1), default=8, show_default=True, help="timed forwards"
)
ppl_method_option = click.option(
    "--ppl-method", type=click.Choice(["one-pass", "sequential"]), default="one-pass"
)
tpot_tokens_option = click.option(
    "--tpot-tokens", type=click.IntRange(8), default=256, show_default=True
)


@click.command()
@subject_options
@positions_option
@click.option("--n-sink", type=int, default=4, show_default=True)
@click.option("--window-size", type=int, default=2044, show_default=True)
@runs_option
@click.option("--baseline-file", type=OutputFile, help="to keep it; default: in --output-dir")
@click.option("--output-file", type=OutputFile, help="write the record (JSON)")
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
    configuration = Configuration("baseline", EvictionPolicy(n_sink, window_size), None)
    loaded, text = load(**where)
    quality = None
    if not no_quality(loaded, text):
        policy, replace = configuration.policy, True
        made = obtain_baseline(loaded, text, policy, positions, baseline_file, output_dir, replace)
        quality = evaluate.baseline_quality(made)
    _measure_speed(loaded, text, configuration, quality, runs, output_file)


@click.command(name="eval")
@subject_options
@positions_option
@policy_options
@click.option(
    "--refresh-budget",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="of --cap-total, for evicted tokens put back at prunes",
)
@click.option(
    "--refresh-policy",
    type=click.Choice(get_args(RefreshPolicy)),
    default="middle",
    show_default=True,
    help="where they are put: behind the newest token as published, or in stream order",
)
@click.option("--streaming-mode", type=click.Choice(get_args(Mode)), default="fast")
@click.option("--mode", type=click.Choice(["streaming", "baseline"]), default="streaming")
@ppl_method_option
@tpot_tokens_option
@runs_option
@click.option("--baseline-file", type=File, help="a stored baseline; default: in --output-dir")
@click.option("--output-file", type=OutputFile, help="write the record (JSON) and NLLs (.nll.npy)")
def evaluate_one(
    policy: EvictionPolicy,
    refresh_budget: int,
    refresh_policy: RefreshPolicy,
    positions: int | None,
    streaming_mode: Mode,
    mode: str,
    ppl_method: evaluate.Method,
    tpot_tokens: int,
    runs: int,
    baseline_file: Path | None,
    output_file: Path | None,
    output_dir: Path,
    **where: Any,
) -> None:
    """Measure one configuration: perplexity, its increase over the baseline, TPOT, speedup."""
    _refuse_contradictions(policy, mode, refresh_budget, ppl_method)
    if baseline_file and not baseline_file.exists():
        OutputFile.convert(baseline_file, None, None)  # made first, and kept there
    loaded, text = load(**where)
    configuration: Configuration
    if mode == "baseline":
        configuration = Configuration("baseline", policy, None)
    elif refresh_budget:
        configuration = RefreshConfiguration.of(policy, refresh_budget, refresh_policy)
        ppl_method = "sequential"
    else:
        configuration = Configuration(name_of(policy, streaming_mode), policy, streaming_mode)
    quality = None
    if not no_quality(loaded, text):
        against = policy if mode == "baseline" else BASELINE
        made = obtain_baseline(loaded, text, against, positions, baseline_file, output_dir)
        if mode == "baseline":
            quality = evaluate.baseline_quality(made)
        else:
            nll = _nll(loaded, text, configuration, ppl_method)
            if output_file is not None:
                _write_nll(records.array_path(output_file, "nll"), nll)
            quality = evaluate.quality(nll, policy.floor, ppl_method, made)
    _measure_speed(loaded, text, configuration, quality, runs, output_file, tpot_tokens)


@click.command()
@subject_options
@positions_option
@click.option("--configs", default=DEFAULT_TABLE, show_default=True, help="named configurations")
@ppl_method_option
@tpot_tokens_option
@runs_option
def compare(
    configs: str,
    ppl_method: evaluate.Method,
    tpot_tokens: int,
    runs: int,
    positions: int | None,
    output_dir: Path,
    **where: Any,
) -> None:
    """Measure named configurations side by side, in one run, and print the table."""
    names = list(dict.fromkeys(name.strip() for name in configs.split(",")))
    if unknown := [name for name in names if name not in NAMED]:
        raise click.UsageError(f"no configuration {unknown[0]!r}; there are {', '.join(NAMED)}")
    chosen = [NAMED[name] for name in names]
    loaded, text = load(**where)
    qualities: dict[str, Quality | None] = dict.fromkeys(names)
    unfinished = None
    if not no_quality(loaded, text):
        made = obtain_baseline(loaded, text, BASELINE, positions, None, output_dir)
        where_made = records.environment(loaded.model.device)
        unfinished = Unfinished(output_dir, where_made, made.fingerprint, ppl_method)
        for configuration in chosen:
            if configuration.mode is None:
                qualities[configuration.name] = evaluate.baseline_quality(made)
                continue
            quality = unfinished.get(configuration)
            if quality is None:
                nll = _nll(loaded, text, configuration, ppl_method)
                quality = evaluate.quality(nll, configuration.policy.floor, ppl_method, made)
                unfinished.put(configuration, quality)
            qualities[configuration.name] = quality
    n_blocks = sum(evaluate.n_blocks(each, tpot_tokens) for each in chosen)
    with progress("TPOT", n_blocks) as advance:
        laps = evaluate.lap_times(loaded, text, BASELINE, chosen, tpot_tokens, runs, advance)
    folder, rows = output_dir / "compare" / evaluate.subject(loaded, text).file_name, []
    for configuration in chosen:
        quality = qualities[configuration.name]
        speed = evaluate.speed(loaded.name, laps[configuration.name], laps["baseline"])
        rows.append(_record(configuration, loaded, text, quality, speed))
        records.write(folder / f"{configuration.name}.json", rows[-1])
    if unfinished:
        unfinished.finish()
    err.print(f"records: {folder}")
    show(report.table(rows))


def _refuse_contradictions(
    policy: EvictionPolicy, mode: str, refresh_budget: int, ppl_method: evaluate.Method
) -> None:
    """Of `eval`: what would be left undone without a word."""
    source = click.get_current_context().get_parameter_source
    options = ("streaming_mode", "ppl_method", "refresh_policy")
    given = {name for name in options if source(name) is ParameterSource.COMMANDLINE}
    wrong = None
    if mode == "baseline" and policy != EvictionPolicy(policy.n_sink, policy.window_size):
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


def _nll(
    loaded: LoadedModel, text: TokenStream, configuration: Configuration, method: evaluate.Method
) -> Tensor:
    with progress(configuration.name, len(text.input_ids) - 1) as advance:
        return evaluate.stream_nll(loaded, text, configuration, method, advance)


def _write_nll(path: Path, nll: Tensor) -> None:
    records.write_array(path, nll.numpy())
    err.print(f"NLL per token: {path}")


def _measure_speed(
    loaded: LoadedModel,
    text: TokenStream,
    configuration: Configuration,
    quality: Quality | None,
    runs: int,
    output_file: Path | None,
    tpot_tokens: int = 0,
) -> None:
    against = BASELINE if configuration.mode else configuration.policy
    with progress("TPOT", evaluate.n_blocks(configuration, tpot_tokens)) as advance:
        laps = evaluate.lap_times(
            loaded, text, against, [configuration], tpot_tokens, runs, advance
        )
    speed = evaluate.speed(loaded.name, laps[configuration.name], laps["baseline"])
    row = _record(configuration, loaded, text, quality, speed)
    if output_file is not None:
        records.write(output_file, row)
        err.print(f"record: {output_file}")
    show(report.table([row]))


def _record(
    configuration: Configuration,
    loaded: LoadedModel,
    text: TokenStream,
    quality: Quality | None,
    speed: Speed,
) -> Record:
    reason = no_quality(loaded, text)
    notes = [reason] if reason else []
    if isinstance(configuration, RefreshConfiguration):
        notes.append(configuration.note)
    return evaluate.record(configuration, loaded, text, quality, speed, tuple(notes))
