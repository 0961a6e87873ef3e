"""Hooks of mkdocs: pages that stand outside of docs, and links to them.

On the forge a page links to files of the repository. On the site the same links lead to the pages
that are made of these files; a link to any other file becomes its path.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {  # of the site: their files in the repository
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "reference_model.md": "streamcache/reference_model/README.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand outside of docs."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at pages of the site."""
    name = page.file.src_uri
    folder = posixpath.dirname(PAGES.get(name, f"docs/{name}"))

    def linked(match: re.Match[str]) -> str:
        image, label, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        by_source = {source: page for page, source in PAGES.items()}
        if path in by_source:
            return f"{image}[{label}]({by_source[path]}{anchor or ''})"
        if path.startswith("docs/"):
            return f"{image}[{label}]({path.removeprefix('docs/')}{anchor or ''})"
        return f"{label} (`{path}`)"

    return _LINK.sub(linked, markdown)
