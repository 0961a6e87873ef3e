"""Where the commands print: tables to one, everything else to the other."""

from rich.console import Console
from rich.table import Table

out, err = Console(), Console(stderr=True, soft_wrap=True)

_NAME = 13  # columns that a name has at least


def show(table: Table) -> None:
    """Print a table with all its numbers, wider than the console where need be.

    A terminal folds the names in the first column, a file or a pipe gets them whole.
    """
    width = out.measure(table, options=out.options.update(max_width=1000)).maximum
    if out.is_terminal:
        longest = max(len(str(name)) for name in table.columns[0].cells)
        width -= max(0, longest - _NAME)
    if width > out.width:
        table.width = width
    out.print(table, crop=False)
