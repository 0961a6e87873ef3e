"""The command line. One line says what is wrong and what would be right; exit status 2."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import click

from streamcache.cli.console import err
from streamcache.version import VERSION

# Module, name there and help: --help is not worth the import of torch.
_COMMANDS = {
    "baseline": (
        *("measure", "baseline"),
        "Measure the fixed baseline: a sliding window encoded from scratch for every token.",
    ),
    "compare": (
        *("measure", "compare"),
        "Measure named configurations side by side, in one run, and print the table.",
    ),
    "diagnose": (
        *("diagnose", "diagnose"),
        "Compare the NLL after prunes with that before, and with shuffled boundaries.",
    ),
    "eval": (
        *("measure", "evaluate_one"),
        "Measure one configuration: perplexity, its increase over the baseline, TPOT, speedup.",
    ),
    "paper": (
        *("paper", "paper"),
        "Measure everything the paper did: baseline, methods and three ablations, on two texts.",
    ),
    "profile": (
        *("profile", "profile"),
        "Count and time a step's operators and kernels, in evictions and in the forward.",
    ),
    "summarize": (
        *("summarize", "summarize"),
        "Write summary.md, summary.tex and index.html from the records in a folder.",
    ),
}
_GO_ON = ("baseline", "compare", "eval", "paper")  # keep what an interrupted run has finished


class _Commands(click.Group):
    """Imports a command when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"streamcache.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in _COMMANDS.items()])


@click.group(cls=_Commands)
@click.version_option(VERSION)
def commands() -> None:
    """Stream language models over endless text with a KV cache of fixed size, and measure it."""


def main() -> None:
    """Entry point: runs a command and turns what a user can cause into one line."""
    try:
        with _quietly():
            status = commands.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        err.print(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except OSError as error:  # a folder that cannot be written, a full disk
        _fail(f"{error.strerror or error}: {error.filename or ''}")
    except (click.Abort, KeyboardInterrupt):
        goes_on = any(command in _GO_ON for command in sys.argv[1:2])
        more = "; the same command goes on from what it had finished" if goes_on else ""
        err.print(f"interrupted{more}")
        sys.exit(130)
    except Exception as error:
        from streamcache.cli.expected import EXPECTED  # not before: it imports torch

        if not isinstance(error, EXPECTED):
            raise
        _fail(str(error))
    sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def _quietly() -> Iterator[None]:
    """A warning is one line, once; what torchao says when it is imported is not about this run."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if (text := " ".join(str(message).split())) not in said:
            said.add(text)
            print(f"warning: {text}", file=sys.stderr)

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _fail(message: str) -> None:
    print(f"streamcache: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
