"""`streamcache summarize`: tables, a page with plots, and the audit, from records on disk."""

from pathlib import Path

import click

from streamcache.cli.console import err, out
from streamcache.cli.marks import split_at_marks
from streamcache.files import remove_leftovers, write_bytes
from streamcache.plain import in_markdown
from streamcache.report import audit, collect, page, render, tables
from streamcache.report.sinks import sinks_tables
from streamcache.report.tables import Table

_NOT_RUN = f"| {audit.NOT_RUN} |"


def summarize(output_dir: Path, audit_file: Path | None) -> None:
    """Write summary.md, summary.tex and index.html from the records in a folder."""
    remove_leftovers(output_dir, older_than_s=3600)  # a younger one may be another run's
    found = collect.collect(output_dir)
    for line in found.bad:
        err.print(f"left out: {line}")
    if not found.groups:
        raise click.UsageError(f"no records below {output_dir}: `streamcache paper` makes them")
    verdicts = audit.table(found.groups)
    audited = _replaced(audit_file, verdicts) if audit_file else ""
    sections = [
        (f"{group.title}: {group.text}", [*tables.tables_for(group).values()])
        for group in found.groups
    ]
    if diagnoses := tables.diagnoses(found.diagnoses):
        sections.append(("Diagnosis", [diagnoses]))
    if profiles := tables.profiles(found.profiles):
        sections.append(("Profile", [profiles, *map(tables.most_expensive, found.profiles)]))
    sections += [("Ways to decode", [tables.ladder_table(each)]) for each in found.ladders]
    sections += [("Sinks", sinks_tables(each)) for each in found.sinks]
    markdown = ["# Summary\n", "## Audit\n", render.markdown(verdicts)]
    latex = [render.latex(verdicts)]
    for title, shown in sections:
        markdown.append(f"## {in_markdown(title)}\n")
        for table in shown:
            markdown += [f"### {in_markdown(table.title)}\n", render.markdown(table)]
            latex.append(render.latex(table))
    write(output_dir / "summary.md", "\n".join(markdown), output_dir)
    write(output_dir / "summary.tex", "\n".join(latex), output_dir)
    if audit_file:
        write(audit_file, audited)
    html = page.page(found, verdicts)
    write(output_dir / "index.html", html, output_dir)


def write(path: Path, text: str, within: Path | None = None) -> None:
    write_bytes(path, text.encode(), within)
    out.print(str(path), soft_wrap=True)


def _replaced(path: Path, verdicts: Table) -> str:
    """The page with these verdicts. Those that the records say nothing of stay as they were."""
    before, rest, after = split_at_marks(path, "audit")
    old = {line.split(" | ")[0]: line for line in rest.splitlines() if line.startswith("| ")}
    lines, kept = render.markdown(verdicts).splitlines(), 0
    for i, line in enumerate(lines):
        before_it = old.get(line.split(" | ")[0], line)
        if line.endswith(_NOT_RUN) and not before_it.endswith(_NOT_RUN):
            lines[i], kept = before_it, kept + 1
    if kept:
        err.print(f"{path}: {kept} verdicts are kept, since no record here is about them")
    table = "\n".join(lines)
    return f"{before}\n\n{table}\n\n{after}"
