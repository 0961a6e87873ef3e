"""Everything on one page that needs nothing else: no script, no request, light or dark."""

import re
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from streamcache.measure.diagnose import Diagnosis
from streamcache.report import plots, tables
from streamcache.report.collect import Found, Group
from streamcache.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --ink: #1d2127; --soft: #5b6470;
  --line: #dde1e6; --band: #f4f6f8; --link: #1f63b5; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --ink: #e4e7eb;
  --soft: #9aa3ad; --line: #2c323a; --band: #1b2026; --link: #7db4f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem .8rem 4rem; max-width: 66rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { margin: 3rem 0 .5rem; padding-top: .6rem;
  border-top: 1px solid var(--line); font-size: 1.3rem; } h3 { margin: 2rem 0 .4rem; }
p, figcaption, .notes { color: var(--soft); max-width: 48rem; } a { color: var(--link); }
.notes { font-size: .85rem; margin: .4rem 0 0; padding-left: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .78rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .3rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child, .prose th, .prose td { text-align: left; }
@media (max-width: 1100px) { table { font-size: .74rem; } }
.prose { font-size: .85rem; }
.prose td { white-space: normal; min-width: 9rem; vertical-align: top; }
tbody tr:hover { background: var(--band); }
figure { margin: 1.2rem 0 2rem; } figcaption { font-size: .9rem; margin-top: .3rem; }
figure svg { display: block; width: 100%; min-width: 40rem; height: auto; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", sans-serif !important; }
nav ul { columns: 2 20rem; padding-left: 1.1rem; }
"""


def page(found: Found, audit: Table) -> str:
    """The whole page.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    sections = [("Published and measured", _table(audit, heading=False))]
    with plots.style():
        for i, group in enumerate(found.groups):
            title = f"{group.title}: {group.text}"
            sections.append((title, "\n".join(_group(group, f"g{i}"))))
        if diagnoses := tables.diagnoses(found.diagnoses):
            content = [_table(diagnoses, heading=False), *map(_diagnosis, found.diagnoses)]
            sections.append((diagnoses.title, "\n".join(content)))
        if profiles := tables.profiles(found.profiles):
            content = [_table(profiles, heading=False)]
            content += [_table(tables.most_expensive(profile)) for profile in found.profiles]
            sections.append((profiles.title, "\n".join(content)))
        for i, each in enumerate(found.ladders):
            table = tables.ladder_table(each)
            about = "From eager decoding down to reading the weights and the cache once."
            picture = _figure(plots.ladder(each), f"ladder{i}", about)
            sections.append((table.title, f"{_table(table, heading=False)}\n{picture}"))
    links = "\n".join(
        f'<li><a href="#s{i}">{escape(title)}</a></li>' for i, (title, _) in enumerate(sections)
    )
    body = "\n".join(
        f'<section id="s{i}"><h2>{escape(title)}</h2>\n{content}</section>'
        for i, (title, content) in enumerate(sections)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>streamcache: published and measured</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>streamcache: published and measured</h1>
<p>Streaming a language model with a KV cache of fixed size: what the paper printed, what its
configurations do here, and every number from a record in this folder.</p>
<nav><ul>
{links}
</ul></nav>
{body}
</body>
</html>
"""


def _group(group: Group, name: str) -> Iterator[str]:
    shown = tables.tables_for(group)
    if "methods" in shown:
        yield _table(shown["methods"])
    if drawing := plots.tail(group):
        yield _figure(
            drawing,
            f"{name}-tail",
            "Each timed token, nothing averaged (left), and the share of tokens that take at least "
            "as long (right); evictions are among the slowest tokens.",
        )
    if drawing := plots.nll(group):
        yield _figure(
            drawing,
            f"{name}-nll",
            "PPL over the stream (each point 256 tokens), and single tokens around evictions.",
        )
    for ablation, by in (("lazy", "compress_every"), ("sink", "n_sink"), ("softlite", "")):
        if found := shown.get(ablation):
            yield _table(found)
            if drawing := plots.ablation(group, ablation, by):
                yield _figure(
                    drawing, f"{name}-{ablation}-plot", f"{found.title}: quality and speed."
                )


def _diagnosis(diagnosis: Diagnosis) -> str:
    workload = diagnosis.workload
    where = f"{workload.model}, {workload.text}, {workload.n_tokens:,} tokens"
    title = f"{where}: {diagnosis.configuration} against {diagnosis.against}."
    return _figure(plots.diagnosis(diagnosis), re.sub(r"\W+", "-", title).lower(), title)


def _figure(drawing: "Figure", name: str, caption: str) -> str:
    element = plots.svg(drawing, name).replace(
        "<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1
    )
    return (
        f'<figure id="{name}"><div class="scroll">{element}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def _table(table: Table, heading: bool = True) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        inner = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
        return f"<tr>{inner}</tr>\n"

    title = f"<h3>{escape(table.title)}</h3>\n" if heading else ""
    kind = ' class="prose"' if table.prose else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'{title}<div class="scroll"><table{kind}><thead>{row(table.header, "th")}</thead>\n'
        f"<tbody>{''.join(row(cells, 'td') for cells in table.rows)}</tbody></table></div>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
    )
