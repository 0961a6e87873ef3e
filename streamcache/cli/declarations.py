"""The commands and their options. What a command does is imported when it is run: help, completion
and typing errors need no torch.
"""

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from streamcache.caches.kinds import MODES
from streamcache.cli.console import err
from streamcache.cli.options import (
    File,
    OutputFile,
    OutputFolder,
    OutputRecord,
    TimedTokens,
    force_option,
    model_options,
    positions_option,
    text_options,
    workload_options,
)
from streamcache.cli.policies import ENTRIES, policy_options
from streamcache.interrupt import stop_at_once

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

DEFAULT_TABLE = "baseline,mit,ours-standard,best,fast"


_entries: Any = {"type": ENTRIES, "show_default": True}
_runs: Any = {
    "type": click.IntRange(1, 10_000),
    "help": "timed blocks of configuration and baseline, alternating",
}
_tpot_tokens: Any = {"type": TimedTokens}
runs_option = click.option("--runs", default=8, show_default=True, **_runs)
tpot_tokens_option = click.option(
    *("--tpot-tokens", "tpot_tokens"),
    default=256,
    show_default=True,
    help="timed; 0: no times",
    **_tpot_tokens,
)
ppl_method_option = click.option(
    "--ppl-method",
    type=click.Choice(["one-pass", "sequential"]),
    default="one-pass",
    show_default=True,
)
streaming_mode_option = click.option(
    "--streaming-mode", type=click.Choice(list(MODES)), default="fast", show_default=True
)


class _Command(click.Command):
    """A command whose options are never empty: that is a shell variable that is not set."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for option, value in zip(args, [*args[1:], None]):
            if option.startswith("--") and (value == "" or option.endswith("=")):
                raise click.UsageError(f"{option.rstrip('=')} is empty: give a value", ctx)
        return super().parse_args(ctx, args)


def _count(name: str, default: int, what: str, least: int, most: int | None = None) -> Decorator:
    """An option that is a whole number, and whose default the help shows."""
    number = click.IntRange(least, most)
    return click.option(name, type=number, default=default, show_default=True, help=what)


def _command(name: str, where: str, what: str, *options: Decorator) -> click.Command:
    """A command that calls `module.function` of this folder with the values of its options."""
    module, _, function = where.partition(".")

    def call(**values: Any) -> Any:
        with err.status("loading PyTorch and transformers") if err.is_terminal else nullcontext():
            found = import_module(f"streamcache.cli.{module}")
        stop_at_once(False)
        return getattr(found, function)(**values)

    with_options: Callable[..., Any] = call
    for option in reversed(options):
        with_options = option(with_options)
    return click.command(name, cls=_Command, help=what, short_help=what.partition("\n")[0])(
        with_options
    )


COMMANDS = (
    _command(
        "baseline",
        "measure.baseline",
        "Measure the fixed baseline: a sliding window encoded from scratch for every token.",
        workload_options,
        positions_option,
        click.option("--n-sink", default=4, **_entries),
        click.option("--window-size", default=2044, **_entries),
        runs_option,
        click.option(
            "--baseline-file", type=OutputRecord, help="to keep it; default: in --output-dir"
        ),
        click.option("--output-file", type=OutputRecord, help="write the record here as well"),
    ),
    _command(
        "chat",
        "chat.chat",
        """Answer each line of the input, for as long as there are lines.

        The cache keeps its size, and each reply is followed by a line with its speed.
        """,
        text_options,
        click.option("--system", help="a message that stands before the first line"),
    ),
    _command(
        "compare",
        "measure.compare",
        "Measure named configurations side by side and print the table.",
        workload_options,
        positions_option,
        click.option(
            "--configs", default=DEFAULT_TABLE, show_default=True, help="named configurations"
        ),
        ppl_method_option,
        tpot_tokens_option,
        runs_option,
        force_option,
    ),
    _command(
        "copying",
        "copying.copying",
        "Measure how well a passage is predicted when it comes again, by distance.",
        model_options,
        click.option("--dataset-name", default="stream", show_default=True, help="as in eval"),
        click.option("--dataset-config", help="as in eval"),
        click.option(
            "--distances", help="tokens, joined by commas; default: 1/4 to 4 times the cache"
        ),
        click.option("--passages", type=click.IntRange(2, 10_000), default=8, show_default=True),
        click.option("--cap-total", default=256, help="entries of the caches", **_entries),
        click.option(
            "--plot/--no-plot", default=True, help="with matplotlib, an SVG next to the table"
        ),
    ),
    _command(
        "diagnose",
        "diagnose.diagnose",
        "Compare the NLL after evictions with that before, and with shuffled boundaries.",
        workload_options,
        policy_options,
        click.option(
            "--against", help="a named configuration; default: same capacity, one entry a token"
        ),
        click.option(
            "--span", type=click.IntRange(1), help="tokens before and after; default: up to 64"
        ),
        click.option(
            "--shuffles", type=click.IntRange(19, 100_000), default=1999, show_default=True
        ),
        _count("--seed", 0, "of the shuffles", 0, 1 << 62),
        click.option(
            "--plot/--no-plot", default=True, help="with matplotlib, an SVG next to the CSV"
        ),
    ),
    _command(
        "eval",
        "measure.evaluate_one",
        "Measure one configuration: perplexity, its increase over the baseline, TPOT, speedup.",
        workload_options,
        positions_option,
        policy_options,
        _count(
            "--refresh-budget", 0, "of --cap-total, for evicted tokens put back at evictions", 0
        ),
        click.option(
            "--refresh-policy",
            type=click.Choice(["middle", "tail"]),
            default="middle",
            show_default=True,
            help="where they stand: behind the newest token as published, or in stream order",
        ),
        streaming_mode_option,
        click.option("--mode", type=click.Choice(["streaming", "baseline"]), default="streaming"),
        _count("--batch", 1, "for times", 1),
        ppl_method_option,
        tpot_tokens_option,
        runs_option,
        click.option(
            "--baseline-file", type=File, help="a stored baseline; default: in --output-dir"
        ),
        click.option(
            "--output-file", type=OutputRecord, help="write record and arrays here as well"
        ),
        force_option,
    ),
    _command(
        "fluency",
        "fluency.fluency",
        """Have configurations write on from a text: repetition, and the PPL of what they write.

        A text that was written is kept, so the same command continues with the next one.
        """,
        model_options,
        click.option("--dataset-name", default="stream", show_default=True, help="as in eval"),
        click.option("--dataset-config", help="as in eval"),
        click.option("--configs", default="fast,window", show_default=True, help="as in recall"),
        _count("--tokens", 2048, "written by each", 64),
        _count("--prompt-tokens", 64, "the beginning of the text", 1),
        click.option(
            "--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True
        ),
        click.option("--top-p", type=click.FloatRange(0, 1), default=1.0, show_default=True),
        _count("--seed", 0, "of the random numbers", 0, 1 << 62),
        click.option("--cap-total", default=256, help="entries of the caches", **_entries),
    ),
    _command(
        "generate",
        "chat.generate",
        """Continue a text, token by token, in a cache of fixed size.

        PROMPT is the text; without it the input is read to its end.
        """,
        click.argument("prompt", required=False),
        text_options,
    ),
    _command(
        "ladder",
        "ladder.ladder",
        "Time the ways to decode a model, from eager to captured, and the memory roofline.",
        model_options,
        click.option("--n-sink", default=4, **_entries),
        click.option("--window-size", default=2044, **_entries),
        click.option(
            *("--tpot-tokens", "tpot_tokens"),
            type=click.IntRange(8, 1 << 20),
            default=256,
            show_default=True,
            help="timed",
        ),
        click.option(
            "--batches", default="8,32", show_default=True, help="of captured decoding, too"
        ),
    ),
    _command(
        "leaderboard",
        "leaderboard.leaderboard",
        """Measure methods at one total: PPL, recall in and beyond the cache, memory.

        A finished measurement is kept, so the same command continues where an interrupted one
        stopped.
        """,
        workload_options,
        click.option(
            "--configs",
            default="all",
            show_default=True,
            help="named configurations, or rules by their path; all: every named one",
        ),
        _count("--questions", 16, "for each distance", 1, 400),
        click.option("--cap-total", default=256, help="entries of the caches", **_entries),
        click.option("--page", type=OutputFile, help="replace the table between this page's marks"),
    ),
    _command(
        "paper",
        "paper.paper",
        """Measure everything the paper did: baseline, methods and three ablations, on two texts.

        A finished measurement is kept, so the same command continues where an interrupted one
        stopped.
        """,
        model_options,
        positions_option,
        click.option(
            *("--dataset-name", "datasets"),
            default="pg19,wikitext",
            show_default=True,
            help="texts: pg19, wikitext, stream (packaged) or files",
        ),
        click.option(
            "--max-eval-tokens", type=click.IntRange(2), help="default: as published, by text"
        ),
        click.option("--cap-total", default=2048, help="entries", **_entries),
        click.option("--tpot-tokens", help="default: 256, quick: 128; 0: no times", **_tpot_tokens),
        click.option(
            "--runs", type=click.IntRange(1, 10_000), help="timed blocks; default: 8, quick: 4"
        ),
        click.option(
            "--quick", is_flag=True, help="shorter texts and timings: minutes on two CPU cores"
        ),
        click.option("--dry-run", is_flag=True, help="print what would be measured, and stop"),
        force_option,
    ),
    _command(
        "profile",
        "profile.profile",
        "Count and time a step's operators and kernels, in evictions and in the forward.",
        workload_options,
        policy_options,
        streaming_mode_option,
        _count("--tokens", 64, "profiled", 1),
        _count("--rows", 12, "printed", 1),
        click.option(
            "--trace", type=OutputFile, help="write a trace for Perfetto (.json or .json.gz)"
        ),
    ),
    _command(
        "recall",
        "recall.recall",
        "Measure which facts of a long text are still known when they are asked for, by distance.",
        model_options,
        click.option("--dataset-name", default="stream", show_default=True, help="as in eval"),
        click.option("--dataset-config", help="as in eval"),
        click.option(
            "--configs",
            default="fast,window",
            show_default=True,
            help="named configurations, or rules by their path",
        ),
        click.option(
            "--distances", help="tokens, joined by commas; default: 1/4 to 4 times the cache"
        ),
        _count("--questions", 16, "for each distance", 1),
        click.option("--cap-total", default=256, help="entries of the caches", **_entries),
        click.option(
            "--plot/--no-plot", default=True, help="with matplotlib, an SVG next to the table"
        ),
    ),
    _command(
        "sinks",
        "sinks.sinks",
        "Measure the attention on the first tokens, and PPL by the number of sinks.",
        workload_options,
        click.option("--cap-total", default=512, help="entries of the cache", **_entries),
    ),
    _command(
        "stream",
        "stream.stream",
        """Stream all books of PG19 one after the other: PPL by position and by book.

        What an interrupted run has finished is kept, so the same command continues from there.
        """,
        model_options,
        click.option(
            "--configs",
            default="fast,window,causal",
            show_default=True,
            help="named configurations; causal: no eviction, up to the trained context",
        ),
        _count("--max-eval-tokens", 65_536, "the books are read again after the last", 2),
        click.option(
            "--book-tokens", type=click.IntRange(1), help="the first of each book; default: all"
        ),
        click.option("--cap-total", default=1024, help="entries of the caches", **_entries),
    ),
    _command(
        "summarize",
        "summarize.summarize",
        "Write summary.md, summary.tex and index.html from the records in a folder.",
        click.option("--output-dir", type=OutputFolder, default=Path("runs"), show_default=True),
        click.option(
            *("--audit", "audit_file"),
            type=OutputFile,
            help="replace the table between this page's audit marks",
        ),
    ),
)
