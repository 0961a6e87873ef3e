"""What the commands share: options that name model and text, loading, progress."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import LoadedModel, load_model
from streamcache.inputs.quantize import Quantization
from streamcache.measure.checked import is_record
from streamcache.measure.measurement import Measurement
from streamcache.measure.progress import Progress as Bars
from streamcache.measure.workload import Workload, default_window

Command = Callable[..., Any]
File = click.Path(dir_okay=False, path_type=Path)
_POSITIONS_ON_CPU = 64  # of the baseline with a full window; each is a forward over the window


class _Output(click.Path):
    """What will be written: refused before the work where it cannot be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            require_writable(path if self.file_okay else path / "a file")
        except OSError as error:
            self.fail(f"cannot write {path}: {error.strerror}", param, ctx)
        return path


class _OutputRecord(_Output):
    """A record that will be written: over another record, never over a text or a config."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = super().convert(value, param, ctx)
        if path.exists() and not is_record(path):
            self.fail(f"{path} exists and is no record: it is not overwritten", param, ctx)
        return path


OutputFile = _Output(dir_okay=False, path_type=Path)
OutputRecord = _OutputRecord(dir_okay=False, path_type=Path)
OutputFolder = _Output(file_okay=False, path_type=Path)

positions_option = click.option(
    "--positions", type=click.IntRange(1), help="of the baseline with a full window"
)
force_option = click.option("--force", is_flag=True, help="measure again what is finished")


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


def workload_options(command: Command) -> Command:
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
    """The model that the options name."""
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
) -> Workload:
    """The workload that the options name, compared with a window that fits the model."""
    loaded = load_one(**model)
    text = load_tokens(
        dataset_name,
        dataset_config,
        tokenizer=loaded.tokenizer,
        max_tokens=max_eval_tokens,
        data_dir=data_dir,
    )
    return Workload(loaded, text, window=default_window(loaded))


def positions_for(loaded: LoadedModel, positions: int | None) -> int | None:
    """Positions of the baseline: as asked; else all on a GPU, and a few on a CPU."""
    return positions or (None if on_gpu(loaded) else _POSITIONS_ON_CPU)


@contextmanager
def bars() -> Iterator[Bars]:
    """Several progress bars at a time: each call of the yielded function shows one more."""
    columns = (
        TextColumn("{task.description}", markup=False),
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


def say_where(measurement: Measurement) -> None:
    """Name the record of a measurement."""
    if measurement.path is not None:
        err.print(f"record: {measurement.path}")


def on_gpu(loaded: LoadedModel) -> bool:
    """Whether a model is on a CUDA device."""
    return loaded.model.device.type == "cuda"
