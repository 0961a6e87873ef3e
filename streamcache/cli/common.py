"""What the commands share: loading what the options name, and progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
from streamcache.inputs import smollm2
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import LoadedModel, load_model
from streamcache.inputs.quantize import Quantization
from streamcache.measure.measurement import Measurement
from streamcache.measure.progress import Progress as Bars
from streamcache.measure.sweep import Load
from streamcache.measure.workload import Workload, default_window

MODEL_OPTIONS = ("model_name", "revision", "dtype", "quantization", "device")
_POSITIONS_ON_CPU = 64  # of the baseline with a full window; each is a forward over the window


def load_one(
    model_name: str,
    revision: str | None,
    dtype: str,
    quantization: Quantization | None,
    device: str | None,
) -> LoadedModel:
    """The model that the options name."""
    if model_name == smollm2.NAME and not smollm2.is_made():
        err.print(f"dequantising {model_name} into {smollm2.folder()}: once, a minute or two")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return loader(model_name, revision, dtype, quantization)(device)


def loader(
    model_name: str,
    revision: str | None,
    dtype: str,
    quantization: Quantization | None,
    device: str | None = None,
) -> Load:
    """What loads the model that the options name, on a device, also in another process."""
    return partial(_load_on, model_name, revision, dtype, quantization)


def _load_on(
    name: str, revision: str | None, dtype: str, quantization: Quantization | None, device: str
) -> LoadedModel:
    transformers.utils.logging.disable_progress_bar()  # loading takes no time worth a bar
    # Else its report of weights that do not fit prints their names as they are.
    transformers.utils.logging.set_verbosity_error()
    return load_model(
        name, revision=revision, dtype=dtype, device=device, quantization=quantization
    )


def other_cards(loaded: LoadedModel, device: str | None) -> list[str]:
    """The cards beside the model's that measure, too: all, unless a device is asked for."""
    if device is not None or not on_gpu(loaded) or loaded.n_devices > 1:
        return []
    return [
        f"cuda:{index}"
        for index in range(torch.cuda.device_count())
        if index != loaded.model.device.index
    ]


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
