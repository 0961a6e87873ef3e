"""Names and messages as data: what a stranger called something is shown, never obeyed."""

from typing import Any

_MARKDOWN = {"<": "&lt;", "&": "&amp;", **{sign: f"\\{sign}" for sign in "\\|[]"}}


def plain(text: str, keep: str = "") -> str:
    r"""The text with signs that no one sees as escapes: `\n`, `\x1b`, `\u202e`.

    A terminal obeys control characters, a page reorders a line by others.
    """
    return "".join(
        sign if sign.isprintable() or sign in keep else sign.encode("unicode_escape").decode()
        for sign in text
    )


def plain_values(value: Any) -> Any:
    """The same of every string in a JSON value."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(name): plain_values(each) for name, each in value.items()}
    return [plain_values(each) for each in value] if isinstance(value, list) else value


def in_markdown(text: str) -> str:
    """As text in a line of markdown: no table, link, image or HTML of its own."""
    return "".join(_MARKDOWN.get(sign, sign) for sign in plain(text))


def in_spreadsheet(text: str) -> str:
    """As text in a cell of a CSV file: a spreadsheet would compute what begins like a formula."""
    text = plain(text)
    return f"'{text}" if len(text) > 1 and text[0] in "=+-@" else text
