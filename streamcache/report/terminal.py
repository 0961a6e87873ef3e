"""Records as a table in a terminal."""

from collections.abc import Sequence
from dataclasses import replace

import rich.table
from rich import box

from streamcache.measure.measurement import Record
from streamcache.report.tables import BRIEF, TERMINAL, Table, of_records


def table(records: Sequence[Record], brief: bool = False) -> rich.table.Table:
    """One row per configuration; `brief` leaves room for long names."""
    found = of_records(records, BRIEF if brief else TERMINAL)
    if brief:  # columns that are not shown need no note
        notes = tuple(note for note in found.notes if not note.startswith(("shared", "PPL by")))
        found = replace(found, notes=notes)
    return of_table(found)


def of_table(found: Table) -> rich.table.Table:
    """A table of text as one of rich's."""
    view = rich.table.Table(
        title=found.title,
        caption="\n".join(found.notes),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,  # fits 80 columns
    )
    first, *others = found.header
    view.add_column(first, overflow="fold")
    for header in others:
        view.add_column(header, justify="right", no_wrap=True)
    for row in found.rows:
        view.add_row(*row)
    return view
