"""Tables as markdown and LaTeX."""

from collections.abc import Iterable

from streamcache.report.tables import Table

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
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    rule = line(["---"] + ["---:"] * (len(table.header) - 1))
    if table.prose:
        rule = line(["---"] * len(table.header))
    rows = [line(table.header), rule, *map(line, table.rows)]
    return "\n".join([*rows, "", *(f"{note}.  " for note in table.notes)]).rstrip() + "\n"


def latex(table: Table) -> str:
    """A booktabs table, its notes in the caption."""
    width = len(table.header)
    columns = "l" + ("p{3cm}" if table.prose else "r") * (width - 1)
    lines = [
        r"\begin{table}",
        r"\footnotesize",
        rf"\caption{{{'. '.join(map(_escaped, (table.title, *table.notes)))}.}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(_escaped, table.header)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_escaped, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)
