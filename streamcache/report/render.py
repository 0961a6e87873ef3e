"""Tables as markdown and LaTeX."""

from collections.abc import Iterable

from streamcache.plain import in_markdown, plain
from streamcache.report.tables import Table

# A table is made smaller where it is wider than the page.
_AT_MOST_A_LINE = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
_LATEX = {
    **{sign: f"\\{sign}" for sign in "%&#_$"},
    **{"σ": r"$\sigma$", "δ": r"$\delta$", "×": r"$\times$", "–": "--", "≥": r"$\geq$"},
    **{
        "≤": r"$\leq$",
        "±": r"$\pm$",
        "µ": r"$\mu$",
        "−": "$-$",
        "→": r"$\to$",
        "\\": r"\textbackslash{}",
    },
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "{": r"\{", "}": r"\}"},
}


def markdown(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(in_markdown, cells)) + " |"

    rule = line(["---"] + ["---:"] * (len(table.header) - 1))
    if table.prose:
        rule = line(["---"] * len(table.header))
    rows = [line(table.header), rule, *map(line, table.rows)]
    notes = (f"{_in_own_line(note)}.  " for note in table.notes)
    return "\n".join([*rows, "", *notes]).rstrip() + "\n"


def _in_own_line(text: str) -> str:
    """As text that begins a line: no heading, list, quotation or block of code, either."""
    begins_a_block = text.startswith(tuple("`~#>-+*=_"))
    return f"\\{text[0]}{in_markdown(text[1:])}" if begins_a_block else in_markdown(text)


def latex(table: Table) -> str:
    """A table for the packages booktabs and graphicx, its notes in the caption."""
    width = len(table.header)
    columns = "l" + ("p{3cm}" if table.prose else "r") * (width - 1)
    lines = [
        r"\begin{table}",
        r"\footnotesize",
        rf"\caption{{{'. '.join(map(_escaped, (table.title, *table.notes)))}.}}",
        rf"{_AT_MOST_A_LINE}\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(_escaped, table.header)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_escaped, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    signs = (_LATEX.get(sign, sign) for sign in plain(text))
    return "".join(sign if sign.isascii() else "?" for sign in signs)
