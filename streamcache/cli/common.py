"""What the commands share: options that name model and text, loading, progress, consoles."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, get_args

import click
import torch
import transformers
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from streamcache.cli.console import err
from streamcache.decoding.nll import Advance
from streamcache.files import require_writable
from streamcache.inputs.corpora import TokenStream, load_tokens
from streamcache.inputs.models import LoadedModel, load_model
from streamcache.inputs.quantize import Quantization
from streamcache.measure import baseline as baselines
from streamcache.measure import evaluate, records
from streamcache.policy import EvictionPolicy

Command = Callable[..., Any]
Bar = Callable[[str, int], AbstractContextManager[Advance]]  # description, total
File = click.Path(dir_okay=False, path_type=Path)
_LATE_ON_CPU = 64  # baseline positions with a full window; each is a forward over the window


class _Output(click.Path):
    """What will be written: refused before the work where it cannot be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            require_writable(path if self.file_okay else path / "a file")
        except OSError as error:
            self.fail(f"cannot write {path}: {error.strerror}", param, ctx)
        return path


OutputFile = _Output(dir_okay=False, path_type=Path)
OutputFolder = _Output(file_okay=False, path_type=Path)

positions_option = click.option(
    "--positions", type=click.IntRange(1), help="of the baseline with a full window"
)


def model_options(command: Command) -> Command:
    """The options that say which model is measured, where, and with what at hand."""
    options = [
        click.option(
            "--model-name",
            default="reference",
            help="reference (packaged), a hub id, a local folder, or random:<shape>",
        ),
        click.option("--revision", help="hub commit; Pythia from 160m on has its pinned"),
        click.option("--dtype", default="auto", help="auto, float32, float16 or bfloat16"),
        click.option(
            "--quantization", type=click.Choice(get_args(Quantization)), help="of the weights"
        ),
        click.option(
            "--device", default=None, help="cpu or cuda; default: cuda where there is one"
        ),
        click.option("--data-dir", type=Path, help="local corpora; or set STREAMCACHE_DATA"),
        click.option("--output-dir", type=OutputFolder, default=Path("runs"), show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def subject_options(command: Command) -> Command:
    """The options that say which model reads which text, where."""
    options = [
        click.option(
            "--dataset-name",
            default="stream",
            show_default=True,
            help="stream (packaged), pg19, wikitext, or a text file",
        ),
        click.option("--dataset-config", help="wikitext: wikitext-103-v1; pg19: a Gutenberg id"),
        click.option("--max-eval-tokens", type=click.IntRange(2), default=4096, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return model_options(command)


def load_one(
    model_name: str,
    revision: str | None,
    dtype: str,
    quantization: Quantization | None,
    device: str | None,
) -> LoadedModel:
    transformers.utils.logging.disable_progress_bar()  # loading takes no time worth a bar
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_model(
        model_name, revision=revision, dtype=dtype, device=device, quantization=quantization
    )


def load(
    dataset_name: str,
    dataset_config: str | None,
    data_dir: Path | None,
    max_eval_tokens: int,
    **model: Any,
) -> tuple[LoadedModel, TokenStream]:
    loaded = load_one(**model)
    text = load_tokens(
        dataset_name,
        dataset_config,
        tokenizer=loaded.tokenizer,
        max_tokens=max_eval_tokens,
        data_dir=data_dir,
    )
    return loaded, text


@contextmanager
def bars() -> Iterator[Bar]:
    """Several progress bars at a time: each call of what is yielded is one more."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    hidden = not err.is_terminal
    with Progress(*columns, console=err, transient=True, disable=hidden) as shown:

        @contextmanager
        def bar(description: str, total: int) -> Iterator[Advance]:
            task = shown.add_task(description, total=total)
            yield lambda n: shown.advance(task, n)
            shown.remove_task(task)

        yield bar


@contextmanager
def progress(description: str, total: int) -> Iterator[Advance]:
    with bars() as bar, bar(description, total) as advance:
        yield advance


def on_gpu(loaded: LoadedModel) -> bool:
    return loaded.model.device.type == "cuda"


def wanted_baseline(
    loaded: LoadedModel, text: TokenStream, policy: EvictionPolicy, positions: int | None
) -> baselines.Fingerprint:
    """Of what the baseline is made; without `positions`, at all on a GPU, at a few on a CPU."""
    late = positions or (len(text.input_ids) if on_gpu(loaded) else _LATE_ON_CPU)
    where = records.environment(loaded.model.device)
    return baselines.wanted_for(evaluate.subject(loaded, text), policy, late, where)


def baseline_path(
    output_dir: Path, loaded: LoadedModel, text: TokenStream, wanted: baselines.Fingerprint
) -> Path:
    """Where a baseline is kept that no file is named for."""
    stem = f"{loaded.name}-{text.name}".replace("/", "_").replace(":", "_")
    return output_dir / "baselines" / f"{stem}-{wanted.digest()}.json"


def obtain_baseline(
    loaded: LoadedModel,
    text: TokenStream,
    policy: EvictionPolicy,
    positions: int | None,
    path: Path | None,
    output_dir: Path,
    replace: bool = False,
    bar: Bar | None = None,
) -> baselines.Baseline:
    wanted = wanted_baseline(loaded, text, policy, positions)
    path = path or baseline_path(output_dir, loaded, text, wanted)
    with (bar or progress)("baseline", len(wanted.positions())) as advance:
        ids = text.input_ids.to(loaded.model.device)
        made = baselines.obtain(path, wanted, loaded.model, ids, advance, replace)
    err.print(f"baseline: {path}")
    return made


def no_quality(loaded: LoadedModel, text: TokenStream) -> str | None:
    """Why a PPL would mean nothing; None where it means something."""
    if loaded.name.startswith("random:"):
        return "random weights: TPOT only, a PPL would mean nothing"
    if text.source == "packaged" and loaded.name != "reference":
        return "the packaged stream is text of the reference model: TPOT only for this one"
    return None
