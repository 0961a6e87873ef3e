"""Where the commands print: tables to one, everything else to the other."""

import codecs
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamcache.plain import plain

_FIXED = "\N{NO-BREAK SPACE}"  # within a cell: no line ends there
_NAME = 13  # columns that a name has at least
_ASCII = {
    **{"–": "-", "−": "-", "±": "+-", "×": "x", "…": "...", "→": "->", "≥": ">=", "≤": "<="},
    **{"σ": "slack", "δ": "max_drop", "µ": "u", "─": "-", "━": "-"},
}


class _Console(Console):
    """Strings are text: no markup in brackets, no emoji codes, no control characters."""

    def __init__(self, **settings: Any):
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(plain(text, keep="\n"), **settings)


out, err = _Console(), _Console(stderr=True, soft_wrap=True)


def print_in_any_encoding() -> None:
    """Where the output cannot encode one of these signs, print it in ASCII: nothing is lost."""

    def replaced(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        missing = error.object[error.start : error.end]
        return "".join(_ASCII.get(sign, "?") for sign in missing), error.end

    codecs.register_error("streamcache", replaced)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="streamcache")


def show(table: Table) -> None:
    """Print a table with all its numbers.

    A file or a pipe gets it as wide as it is. A terminal folds the names in the first column; where
    that is not enough, each row is printed as its name and a paragraph of its cells.
    """
    width = out.measure(table, options=out.options.update(max_width=1000)).maximum
    if out.is_terminal:
        longest = max((len(str(name)) for name in table.columns[0].cells), default=0)
        width -= max(0, longest - _NAME)
        if width > out.width:
            out.print("\n".join(_paragraphs(table, out.width)), highlight=False)
            return
    if width > out.width:
        table.width = width
    out.print(table, crop=False)


def _paragraphs(table: Table, width: int) -> Iterator[str]:
    """The title, the rows and the notes of a table, in lines of at most this width."""
    first, *others = table.columns
    headers = [str(column.header) for column in others]
    yield from (str(table.title), "") if table.title else ()
    for name, *cells in zip(*(column.cells for column in (first, *others))):
        yield str(name)
        pairs = (f"{header} {cell}".replace(" ", _FIXED) for header, cell in zip(headers, cells))
        for line in textwrap.wrap(", ".join(pairs), width - 2, break_long_words=False):
            yield f"  {line.replace(_FIXED, ' ')}"
    if table.caption:
        yield f"\n{table.caption}"
