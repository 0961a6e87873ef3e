"""Write the address of the repository into what the package index shows.

    python .ci/prepare_release.py https://forge.example/owner/streamcache v0.1.0

It refuses a tag of another version, and one whose changelog has not been collected from `changes`.
The README's links to files become absolute, and the project gets its URLs: in a clone links are
relative, so that they lead to the files of the clone. It changes the working tree and is run by the
release workflow only.
"""

import posixpath
import re
import sys
from pathlib import Path

from streamcache.version import VERSION

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")
NAMES = {  # of the index: what each stands for
    "Homepage": "",
    "Documentation": "/tree/{tag}/docs",
    "Source": "/tree/{tag}",
    "Changelog": "/blob/{tag}/CHANGELOG.md",
    "Issues": "/issues",
}


def absolute(readme: str, repository: str, tag: str) -> str:
    """The README with absolute links; pictures to the files themselves."""

    def link(match: re.Match[str]) -> str:
        picture, label, target = match.groups()
        kind = "raw" if picture else "blob"
        return f"{picture}[{label}]({repository}/{kind}/{tag}/{posixpath.normpath(target)})"

    return LINK.sub(link, readme)


def with_urls(project: str, repository: str, tag: str) -> str:
    """The project file with its URLs."""
    lines = [f'{name} = "{repository}{path.format(tag=tag)}"' for name, path in NAMES.items()]
    head, mark, rest = project.partition("[project.optional-dependencies]")
    return head + "\n".join(["[project.urls]", *lines, "", ""]) + mark + rest


def require_changelog(root: Path) -> None:
    left = [path.name for path in sorted((root / "changes").glob("*.*.md"))]
    if left:
        sys.exit(
            f"changes/{left[0]} is not in the changelog: run towncrier build, see changes/README.md"
        )
    if f"\n## {VERSION} " not in (root / "CHANGELOG.md").read_text(encoding="utf-8"):
        sys.exit(f"CHANGELOG.md has no section {VERSION}: see changes/README.md")


def main(repository: str, tag: str, root: Path) -> None:
    if tag != f"v{VERSION}":
        sys.exit(f"the tag is {tag} and the version {VERSION}: the tag must be v{VERSION}")
    require_changelog(root)
    for name, change in (("README.md", absolute), ("pyproject.toml", with_urls)):
        path = root / name
        text = change(path.read_text(encoding="utf-8"), repository.rstrip("/"), tag)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(__file__).parents[1])
