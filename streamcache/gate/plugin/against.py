"""`--golden-against REV`: the benchmarks of this tree and of a commit, in turns."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from streamcache.gate import goldens, history, render
from streamcache.gate.compare import Round, compare, confirmed, undecided
from streamcache.gate.plugin import outputs
from streamcache.gate.plugin.git import git
from streamcache.gate.plugin.options import Usage
from streamcache.gate.plugin.processes import Order, fresh
from streamcache.gate.samples import Process
from streamcache.gate.verdicts import Verdict, exit_status

_INSTALLED = (  # what decides the environment, which both trees are measured in
    *("pyproject.toml", "setup.py", "setup.cfg", "*requirements*.txt", "constraints*.txt"),
    *("*.c", "*.cc", "*.cpp", "*.cu", "*.pyx", "*.rs", "Cargo.toml", "CMakeLists.txt"),
)


def run(config: pytest.Config) -> int:
    """Measure both, print the report; an exit status.

    Raises:
        pytest.UsageError: the revision is not known, or its tree cannot be laid out.
        SampleError: a process failed.
    """
    revision = config.getoption("golden_against")
    top = git(config, "rev-parse", "--show-toplevel")
    commit = git(config, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if top is None or commit is None:
        raise Usage(f"--golden-against {revision}: git knows no such commit here")
    with _worktree(config, commit) as base:
        here = Path(top).resolve()
        build = config.getoption("golden_build")
        for tree in (base, here) if build else ():
            _build(build, tree)
        rounds, verdicts = _measured(config, here, base)
    notes = _changed(config, commit, bool(build))
    process = rounds[0].new
    for line in (*render.text(verdicts, base=revision), *notes):
        print(line)
    unwritten = _write(config, verdicts, notes, process)
    print("\n".join(unwritten), end="\n" if unwritten else "")
    n_measured = len(process.samples) + len(process.failed)
    return exit_status(verdicts, n_measured) or int(bool(unwritten))


def _measured(config: pytest.Config, here: Path, base: Path) -> tuple[list[Round], list[Verdict]]:
    """All benchmarks once, those with times in further rounds, and what is not clear in more."""
    n = config.getoption("golden_rounds")
    rounds = [_round(config, here, base, 0, [])]
    timed = sorted({s.name for process in rounds[0] for s in process.samples if s.pairs})
    if timed:
        rounds += [_round(config, here, base, i, timed) for i in range(1, n)]
    verdicts = compare(rounds, config.getoption("golden_required"))
    if names := undecided(verdicts):
        more = [_round(config, here, base, i, names) for i in range(n, 2 * n)]
        verdicts = confirmed(verdicts, rounds, more)
    return rounds, verdicts


def _round(config: pytest.Config, here: Path, base: Path, index: int, tests: list[str]) -> Round:
    """Which of the two trees comes first alternates."""
    print(f"golden: round {index + 1}{f', {len(tests)} benchmarks' if tests else ''}", flush=True)
    found: dict[Path, Process] = {}
    for tree in (here, base) if index % 2 else (base, here):
        order = Order(tests=tests, plain=True, few_pairs=True, may_fail=True)
        found[tree] = fresh(config, order, here, tree)[0]
    return Round(found[base], found[here])


@contextmanager
def _worktree(config: pytest.Config, commit: str) -> Iterator[Path]:
    """The tree of a commit, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "base"
        if git(config, "worktree", "add", "--detach", str(tree), commit) is None:
            raise Usage(f"git worktree add {tree} {commit} failed")
        try:
            yield tree
        finally:
            git(config, "worktree", "remove", "--force", str(tree))


def _build(command: str, tree: Path) -> None:
    ran = subprocess.run(
        command, shell=True, cwd=tree, capture_output=True, text=True, errors="replace"
    )
    if ran.returncode:
        raise Usage(f"--golden-build failed in {tree}:\n{(ran.stdout + ran.stderr)[-2000:]}")


def _changed(config: pytest.Config, commit: str, built: bool) -> list[str]:
    """Files that may make another environment, which the comparison does not."""
    found = git(
        config, "diff", "--name-only", commit, "--", *(f":(glob)**/{p}" for p in _INSTALLED)
    )
    if not found or built:
        return []
    return [
        f"changed since the base: {', '.join(found.splitlines())}; both trees were measured in the "
        "environment that is installed (--golden-build COMMAND builds each)"
    ]


def _write(
    config: pytest.Config, verdicts: list[Verdict], notes: list[str], process: Process
) -> list[str]:
    head = git(config, "rev-parse", "HEAD") or ""
    text = render.markdown(verdicts, [f"- {line}" for line in notes]).encode()
    results = {"version": goldens.VERSION, "process": process, "verdicts": verdicts}
    return [
        *outputs.write(outputs.markdown(config), text),
        *outputs.write(outputs.results(config), msgspec.json.encode({"streamcache": results})),
        *outputs.append(outputs.summary(), text),
        *outputs.append(outputs.history(config), history.encoded(history.lines(process, head))),
    ]
