"""A page of which a command writes one part: what stands between two lines with marks."""

from pathlib import Path

import click


def split_at_marks(path: Path, name: str) -> tuple[str, str, str]:
    """What stands before, between and after the marks, which stay with their sides.

    A page that does not exist has the marks and nothing else.

    Raises:
        click.UsageError: the page is not text, or has no marks.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else f"{begin}\n{end}\n"
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not UTF-8 text: {error.reason}") from error
    before, found, rest = text.partition(begin)
    between, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise click.UsageError(f"{path} has no lines {begin} and {end} to put the table between")
    return before + begin, between, end + after
