"""The command line. One line says what is wrong and what would be right; exit status 2."""

import ast
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

import click

from streamcache.cli.console import err, print_in_any_encoding
from streamcache.interrupt import stop_at_once
from streamcache.report.plain import plain
from streamcache.version import VERSION

_COMMANDS = {  # the module and the name of the function in it
    "baseline": ("measure", "baseline"),
    "compare": ("measure", "compare"),
    "diagnose": ("diagnose", "diagnose"),
    "eval": ("measure", "evaluate_one"),
    "ladder": ("ladder", "ladder"),
    "paper": ("paper", "paper"),
    "profile": ("profile", "profile"),
    "summarize": ("summarize", "summarize"),
}
_GO_ON = ("baseline", "compare", "eval", "paper")  # keep what an interrupted run has finished


class _Commands(click.Group):
    """Imports a command when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        shown = err.is_terminal and not ctx.resilient_parsing  # not while a shell completes a word
        with err.status("loading PyTorch and transformers") if shown else nullcontext():
            command: click.Command = getattr(import_module(f"streamcache.cli.{module}"), name)
        stop_at_once(False)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(*where)) for name, where in _COMMANDS.items()])


def _summary(module: str, name: str) -> str:
    """The first line of a command's docstring, read without importing the command, or torch."""
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    found = next(node for node in functions if node.name == name)
    return (ast.get_docstring(found) or "").partition("\n")[0]


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def commands() -> None:
    """Stream language models over endless text with a KV cache of fixed size, and measure it."""


def main() -> None:
    """Entry point: runs a command and turns what a user can cause into one line."""
    print_in_any_encoding()
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
    except MemoryError:
        _fail("out of memory: give smaller sizes, or a smaller model")
    except (click.Abort, KeyboardInterrupt):
        goes_on = any(command in _GO_ON for command in sys.argv[1:2])
        more = "; the same command goes on from what it had finished" if goes_on else ""
        err.print(f"interrupted{more}")
        sys.exit(130)
    except Exception as error:
        from streamcache.cli.expected import EXPECTED  # not before: it imports torch

        if "not enough memory" in str(error) or "out of memory" in str(error):  # torch's errors
            _fail("out of memory: give smaller sizes, or a smaller model")
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
            print(f"warning: {plain(text)}", file=sys.stderr)

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _fail(message: str) -> None:
    print(f"streamcache: {plain(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)
