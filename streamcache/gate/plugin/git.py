"""The repository that goldens are recorded from."""

import subprocess
from pathlib import Path

import pytest


def require_clean_worktree(config: pytest.Config, goldens: Path) -> None:
    """Refuse changes, except of golden files. Where there is no repository there are none.

    Raises:
        pytest.UsageError: something was changed, or git does not say.
    """
    root = config.rootpath.resolve()
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return
    top = git(config, "rev-parse", "--show-toplevel")
    status = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ":/")
    changed = git(config, *status)
    if top is None or changed is None:
        raise pytest.UsageError("git does not say whether the tree is clean: see `git status`")
    paths = [Path(top, line[3:]) for line in changed.split("\0") if line]
    others = [p for p in paths if p.parent.resolve() != goldens.resolve() or p.suffix != ".json"]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise pytest.UsageError(
            "goldens are recorded from a clean tree only: commit or stash "
            f"{others[0].relative_to(top)}{more}"
        )


def git(config: pytest.Config, *arguments: str) -> str | None:
    """What git says in the root folder; None where it fails."""
    command, where = ["git", *arguments], config.rootpath
    try:
        ran = subprocess.run(
            command, cwd=where, capture_output=True, text=True, errors="surrogateescape"
        )
    except OSError:
        return None
    return ran.stdout.rstrip("\n") if ran.returncode == 0 else None
