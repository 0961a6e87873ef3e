"""The command line. One line says what is wrong and what would be right; exit status 2."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy
import torch
import transformers
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from streamcache import baseline as baselines
from streamcache import evaluate, records, report
from streamcache.attach import PaddingError
from streamcache.configurations import BASELINE, NAMED, Configuration, Mode
from streamcache.corpora import CorpusError, TokenStream, load_tokens
from streamcache.decode import NotFiniteError
from streamcache.models import LoadedModel, ModelError, load_model
from streamcache.onepass import OnePassUnsupported
from streamcache.policy import EvictionPolicy, PolicyError
from streamcache.records import Quality, Record, Speed
from streamcache.rotary import UnsupportedModelError
from streamcache.unfinished import Unfinished

EXPECTED = (
    PolicyError,
    CorpusError,
    ModelError,
    PaddingError,
    NotFiniteError,
    OnePassUnsupported,
    UnsupportedModelError,
    baselines.BaselineMismatch,
    records.RecordError,
)
Command = Callable[..., Any]
File = click.Path(dir_okay=False, path_type=Path)
DEFAULT_TABLE = "baseline,mit,ours-standard,best,fast"
_LATE_ON_CPU = 64  # baseline positions with a full window; each is a forward over the window

out, err = Console(), Console(stderr=True)


def main() -> None:
    """Entry point: runs a command and turns what a user can cause into one line."""
    try:
        status = commands.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        err.print(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except EXPECTED as error:
        _fail(str(error))
    except OSError as error:  # a folder that cannot be written, a full disk
        _fail(f"{error.strerror or error}: {error.filename or ''}")
    except (click.Abort, KeyboardInterrupt):
        err.print("interrupted; the same command goes on from what baseline and compare finished")
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    print(f"streamcache: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


@click.group()
@click.version_option(package_name="streamcache")
def commands() -> None:
    """Stream language models over endless text with a KV cache of fixed size, and measure it."""


def subject_options(command: Command) -> Command:
    """The options that say which model reads which text, where."""
    options = [
        click.option(
            "--model-name",
            default="reference",
            help="reference (packaged), a hub id, a local folder, or random:<shape>",
        ),
        click.option("--revision", help="hub commit; the Pythia models have theirs pinned"),
        click.option("--dtype", default="auto", help="auto, float32, float16 or bfloat16"),
        click.option(
            "--device", default=None, help="cpu or cuda; default: cuda where there is one"
        ),
        click.option(
            "--dataset-name",
            default="stream",
            show_default=True,
            help="stream (packaged), pg19, wikitext, or a text file",
        ),
        click.option("--dataset-config", help="wikitext: wikitext-103-v1; pg19: a Gutenberg id"),
        click.option("--data-dir", type=Path, help="local corpora; or set STREAMCACHE_DATA"),
        click.option("--max-eval-tokens", type=click.IntRange(2), default=4096, show_default=True),
        click.option(
            "--positions", type=click.IntRange(1), help="of the baseline with a full window"
        ),
        click.option("--output-dir", type=Path, default=Path("runs"), show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _load(
    model_name: str,
    revision: str | None,
    dtype: str,
    device: str | None,
    dataset_name: str,
    dataset_config: str | None,
    data_dir: Path | None,
    max_eval_tokens: int,
) -> tuple[LoadedModel, TokenStream]:
    transformers.utils.logging.disable_progress_bar()  # loading takes no time worth a bar
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(model_name, revision=revision, dtype=dtype, device=device)
    text = load_tokens(
        dataset_name,
        dataset_config,
        tokenizer=loaded.tokenizer,
        max_tokens=max_eval_tokens,
        data_dir=data_dir,
    )
    return loaded, text


@contextmanager
def _progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    hidden = not err.is_terminal
    with Progress(*columns, console=err, transient=True, disable=hidden) as progress:
        task = progress.add_task(description, total=total)
        yield lambda n: progress.advance(task, n)


def on_gpu(loaded: LoadedModel) -> bool:
    return loaded.model.device.type == "cuda"


def _baseline(
    loaded: LoadedModel,
    text: TokenStream,
    policy: EvictionPolicy,
    late_positions: int | None,
    path: Path | None,
    output_dir: Path,
    replace: bool = False,
) -> baselines.Baseline:
    if late_positions is None:
        late_positions = len(text.input_ids) if on_gpu(loaded) else _LATE_ON_CPU
    wanted = baselines.wanted_for(evaluate.subject(loaded, text), policy, late_positions)
    if path is None:
        stem = f"{loaded.name}-{text.name}".replace("/", "_").replace(":", "_")
        path = output_dir / "baselines" / f"{stem}-{wanted.digest()}.json"
    with _progress("baseline", len(wanted.positions())) as advance:
        ids = text.input_ids.to(loaded.model.device)
        made = baselines.obtain(path, wanted, loaded.model, ids, advance, replace)
    err.print(f"baseline: {path}")
    return made


def _no_quality(loaded: LoadedModel, text: TokenStream) -> str | None:
    """Why a PPL would mean nothing; None where it means something."""
    if loaded.name.startswith("random:"):
        return "random weights: TPOT only, a PPL would mean nothing"
    if text.source == "packaged" and loaded.name != "reference":
        return "the packaged stream is text of the reference model: TPOT only for this one"
    return None


@commands.command()
@subject_options
@click.option("--n-sink", type=int, default=4, show_default=True)
@click.option("--window-size", type=int, default=2044, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=8, show_default=True, help="timed forwards")
@click.option("--baseline-file", type=File, help="where to keep it; default: in --output-dir")
@click.option("--output-file", type=File, help="write the record (JSON)")
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
    loaded, text = _load(**where)
    quality = None
    if not _no_quality(loaded, text):
        policy, replace = configuration.policy, True
        made = _baseline(loaded, text, policy, positions, baseline_file, output_dir, replace)
        quality = evaluate.baseline_quality(made)
    _measure_speed(loaded, text, configuration, quality, runs, output_file)


@commands.command(name="eval")
@subject_options
@click.option("--n-sink", type=int, default=4, show_default=True)
@click.option("--window-size", type=int, help="default: 2044, or what --cap-total leaves")
@click.option("--compress-every", type=int, default=1, show_default=True)
@click.option("--cache-slack", type=int, help="default: compress-every - 1")
@click.option("--max-drop", type=int, default=0, show_default=True, help="0: no limit")
@click.option("--cap-total", type=int, help="total budget the window is derived from")
@click.option("--overlap", type=int, default=0, show_default=True, help="set aside of --cap-total")
@click.option("--streaming-mode", type=click.Choice(["mit", "ours", "fast"]), default="fast")
@click.option("--mode", type=click.Choice(["streaming", "baseline"]), default="streaming")
@click.option("--ppl-method", type=click.Choice(["one-pass", "sequential"]), default="one-pass")
@click.option("--tpot-tokens", type=click.IntRange(8), default=256, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=8, show_default=True, help="timed forwards")
@click.option("--baseline-file", type=File, help="a stored baseline; default: in --output-dir")
@click.option("--output-file", type=File, help="write the record (JSON) and NLLs (.nll.npy)")
def evaluate_one(
    n_sink: int,
    window_size: int | None,
    compress_every: int,
    cache_slack: int | None,
    max_drop: int,
    cap_total: int | None,
    overlap: int,
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
    if window_size is not None and cap_total is not None:
        raise click.UsageError("give --window-size or --cap-total, not both")
    if mode == "baseline" and (compress_every > 1 or cache_slack is not None or max_drop):
        raise click.UsageError("the baseline evicts nothing: give --n-sink and --window-size only")
    if overlap and cap_total is None:
        raise click.UsageError("--overlap is set aside of a budget; give --cap-total with it")
    rest = (cache_slack, max_drop or None, compress_every)
    if cap_total is not None:
        policy = EvictionPolicy.from_budget(cap_total, n_sink, *rest, overlap=overlap)
    else:
        policy = EvictionPolicy(n_sink, 2044 if window_size is None else window_size, *rest)
    loaded, text = _load(**where)
    if mode == "baseline":
        policy = EvictionPolicy(n_sink, policy.window_size)
        configuration = Configuration("baseline", policy, None)
    else:
        configuration = Configuration(_name_of(policy, streaming_mode), policy, streaming_mode)
    quality = None
    if not _no_quality(loaded, text):
        against = policy if mode == "baseline" else BASELINE
        made = _baseline(loaded, text, against, positions, baseline_file, output_dir)
        if mode == "baseline":
            quality = evaluate.baseline_quality(made)
        else:
            nll = _nll(loaded, text, configuration, ppl_method)
            if output_file is not None:
                _write_nll(output_file.with_suffix(".nll.npy"), nll)
            quality = evaluate.quality(nll, policy.floor, ppl_method, made)
    _measure_speed(loaded, text, configuration, quality, runs, output_file, tpot_tokens)


@commands.command()
@subject_options
@click.option("--configs", default=DEFAULT_TABLE, show_default=True, help="named configurations")
@click.option("--ppl-method", type=click.Choice(["one-pass", "sequential"]), default="one-pass")
@click.option("--tpot-tokens", type=click.IntRange(8), default=256, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=8, show_default=True, help="timed forwards")
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
    loaded, text = _load(**where)
    qualities: dict[str, Quality | None] = dict.fromkeys(names)
    unfinished = None
    if not _no_quality(loaded, text):
        made = _baseline(loaded, text, BASELINE, positions, None, output_dir)
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
    with _progress("TPOT", evaluate.n_blocks(chosen)) as advance:
        speeds = evaluate.speeds(loaded, text, BASELINE, chosen, tpot_tokens, runs, advance)
    rows = []
    for configuration in chosen:
        quality, speed = qualities[configuration.name], speeds[configuration.name]
        rows.append(_record(configuration, loaded, text, quality, speed))
        records.write(output_dir / "compare" / f"{configuration.name}.json", rows[-1])
    if unfinished:
        unfinished.finish()
    err.print(f"records: {output_dir / 'compare'}")
    out.print(report.table(rows))


def _name_of(policy: EvictionPolicy, mode: Mode) -> str:
    """The name of a named configuration, or the settings."""
    for configuration in NAMED.values():
        if (configuration.policy, configuration.mode) == (policy, mode):
            return configuration.name
    slack = "" if policy.cache_slack is None else f" σ={policy.cache_slack}"
    drop = "" if policy.max_drop is None else f" δ={policy.max_drop}"
    sizes = f"S={policy.n_sink} W={policy.window_size} R={policy.compress_every}"
    return f"{mode} {sizes}{slack}{drop}"


def _nll(
    loaded: LoadedModel, text: TokenStream, configuration: Configuration, method: evaluate.Method
) -> Tensor:
    with _progress(configuration.name, len(text.input_ids) - 1) as advance:
        return evaluate.stream_nll(loaded, text, configuration, method, advance)


def _write_nll(path: Path, nll: Tensor) -> None:
    buffer = io.BytesIO()
    numpy.save(buffer, nll.numpy())
    records.write_bytes(path, buffer.getvalue())
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
    with _progress("TPOT", evaluate.n_blocks([configuration])) as advance:
        speeds = evaluate.speeds(loaded, text, against, [configuration], tpot_tokens, runs, advance)
    row = _record(configuration, loaded, text, quality, speeds[configuration.name])
    if output_file is not None:
        records.write(output_file, row)
        err.print(f"record: {output_file}")
    out.print(report.table([row]))


def _record(
    configuration: Configuration,
    loaded: LoadedModel,
    text: TokenStream,
    quality: Quality | None,
    speed: Speed,
) -> Record:
    reason = _no_quality(loaded, text)
    notes = (reason,) if reason else ()
    return evaluate.record(configuration, loaded, text, quality, speed, notes)
