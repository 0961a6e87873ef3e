"""The command line. One line says what is wrong and what would be right; exit status 2."""

import sys

import click

from streamcache import baseline as baselines
from streamcache import records
from streamcache.attach import PaddingError
from streamcache.cli import diagnose, measure, paper, profile, summarize
from streamcache.cli.common import err
from streamcache.corpora import CorpusError
from streamcache.decode import NotFiniteError
from streamcache.diagnose import DiagnosisError
from streamcache.models import ModelError
from streamcache.onepass import OnePassUnsupported
from streamcache.policy import PolicyError
from streamcache.quantize import QuantizationError
from streamcache.rotary import UnsupportedModelError
from streamcache.summary.plots import PlotsMissing

EXPECTED = (
    PolicyError,
    CorpusError,
    DiagnosisError,
    ModelError,
    PaddingError,
    NotFiniteError,
    OnePassUnsupported,
    PlotsMissing,
    QuantizationError,
    UnsupportedModelError,
    baselines.BaselineMismatch,
    records.RecordError,
)


@click.group()
@click.version_option(package_name="streamcache")
def commands() -> None:
    """Stream language models over endless text with a KV cache of fixed size, and measure it."""


for command in (
    measure.baseline,
    measure.evaluate_one,
    measure.compare,
    diagnose.diagnose,
    profile.profile,
    paper.paper,
    summarize.summarize,
):
    commands.add_command(command)


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
