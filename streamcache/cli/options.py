"""The options that commands share, and the files that they name. It imports no torch."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from streamcache.cli.policies import ENTRIES
from streamcache.files import require_writable
from streamcache.measure.checked import is_record

Command = Callable[..., Any]
QUANTIZATIONS = "int8", "int4", "fp8"
File = click.Path(dir_okay=False, path_type=Path)


class _Number(click.FloatRange):
    """A range of numbers, of which NaN is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a number", param, ctx)
        return found


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


class _TimedTokens(click.IntRange):
    """None at all, or enough to take a time of."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        n: int = super().convert(value, param, ctx)
        if 0 < n < 8:
            self.fail(f"{n} is neither 0 nor at least 8", param, ctx)
        return n


TimedTokens = _TimedTokens(0, 1 << 20)
OutputFile = _Output(dir_okay=False, path_type=Path)
OutputRecord = _OutputRecord(dir_okay=False, path_type=Path)
OutputFolder = _Output(file_okay=False, path_type=Path)

positions_option = click.option(
    "--positions", type=click.IntRange(1), help="of the baseline with a full window"
)
_MODEL: list[Command] = [
    click.option(
        "--model-name",
        default="reference",
        help="reference, smollm2-135m, a folder, a .gguf file, a hub id, or random:<shape>",
    ),
    click.option("--revision", help="hub commit; Pythia from 160m on has its pinned"),
    click.option("--dtype", default="auto", help="auto, float32, float16 or bfloat16"),
    click.option("--quantization", type=click.Choice(QUANTIZATIONS), help="of the weights"),
    click.option("--device", default=None, help="cpu or cuda; default: cuda where there is one"),
]
force_option = click.option("--force", is_flag=True, help="measure again what is finished")


def model_options(command: Command) -> Command:
    """The options that say which model is measured, where, and with what at hand."""
    options = [
        *_MODEL,
        click.option("--data-dir", type=Path, help="local corpora; or set STREAMCACHE_DATA"),
        click.option("--output-dir", type=OutputFolder, default=Path("runs"), show_default=True),
    ]
    return _with(options, command)


def text_options(command: Command) -> Command:
    """The options of a stream of text: which model, what is evicted, how a token is chosen."""
    options = [
        *_MODEL,
        click.option("--n-sink", type=ENTRIES, default=4, show_default=True),
        click.option(
            "--cap-total", type=ENTRIES, help="entries of the cache; default: 2048, or the context"
        ),
        click.option("--compress-every", type=ENTRIES, default=1, show_default=True),
        click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True),
        click.option(
            "--temperature",
            type=_Number(0, 100),
            default=0.0,
            show_default=True,
            help="0: the most likely token",
        ),
        click.option("--top-p", type=_Number(0, 1), default=1.0, show_default=True),
        click.option("--seed", type=click.IntRange(0, 1 << 62), help="of the random numbers"),
    ]
    return _with(options, command)


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
    return _with(options, model_options(command))


def _with(options: list[Command], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
