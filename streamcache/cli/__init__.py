"""The command line. One line says what is wrong and what would be right; exit status 2."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click

from streamcache import ranks
from streamcache.cli.console import err, out, print_in_any_encoding, show
from streamcache.cli.declarations import COMMANDS
from streamcache.plain import plain
from streamcache.policy import PolicyError
from streamcache.version import VERSION

# These keep what an interrupted run has finished.
_GO_ON = (
    *("baseline", "compare", "copying", "eval", "fluency", "leaderboard", "paper", "recall"),
    *("sinks", "stream"),
)


@click.group(commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def commands() -> None:
    """Stream language models over endless text with a KV cache of fixed size, and measure it."""


def main() -> None:
    """Entry point: runs a command and prints an error that a user can cause as one line."""
    print_in_any_encoding()
    if ranks.rank():  # of the processes that torchrun has started the first one prints
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        out.quiet = err.quiet = True
    try:
        with _quietly():
            status = commands.main(standalone_mode=False)
        ranks.leave()
    except click.exceptions.NoArgsIsHelpError as error:
        err.print(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # for what is not yet flushed
        sys.exit(1)
    except OSError as error:  # a folder that cannot be written, a full disk
        _show_what_was_not_kept(error)
        _fail(f"{error.strerror or error}: {error.filename or ''}")
    except PolicyError as error:
        _fail(str(error))
    except MemoryError:
        _fail("out of memory: give smaller sizes, or a smaller model")
    except (click.Abort, KeyboardInterrupt):
        goes_on = any(command in _GO_ON for command in sys.argv[1:2])
        more = "; the same command continues from there" if goes_on else ""
        err.print(f"interrupted{more}")
        sys.exit(130)
    except Exception as error:
        from streamcache.cli.expected import EXPECTED  # not before: it imports torch

        if "not enough memory" in str(error) or "out of memory" in str(error):  # torch's errors
            _fail("out of memory: give smaller sizes, or a smaller model")
        if not isinstance(error, EXPECTED) and "Symlink loop" not in str(error):  # Python < 3.13
            raise
        _fail(str(error))
    sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def _quietly() -> Iterator[None]:
    """A warning is one line, once; what packages log when imported is not about this run."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if (text := " ".join(str(message).split())) not in said and not ranks.rank():
            said.add(text)
            print(f"warning: {plain(text)}", file=sys.stderr)

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes when it starts
    for name in ("torchao", "torch.utils._pytree", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _show_what_was_not_kept(error: OSError) -> None:
    """The measurement that an error of the store brings, so that its figures are not lost."""
    if (measurement := getattr(error, "measurement", None)) is not None:
        from streamcache.report import terminal  # not before: it imports numpy

        show(terminal.table([measurement.record]))


def _fail(message: str) -> None:
    if not ranks.rank():
        print(f"streamcache: {plain(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)
