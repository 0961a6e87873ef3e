"""`--golden-against REV`: the benchmarks of this tree and of a commit, alternately."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from streamcache.gate import goldens, history, render
from streamcache.gate.compare import Round, changes, compare, confirmed, softened, undecided
from streamcache.gate.explain import explained
from streamcache.gate.plugin import outputs
from streamcache.gate.plugin.git import git
from streamcache.gate.plugin.noise import known_noise
from streamcache.gate.plugin.options import MERGE_BASE, Usage
from streamcache.gate.plugin.processes import Order, fresh, in_turns
from streamcache.gate.samples import Process
from streamcache.gate.verdicts import Status, Verdict, as_warning, exit_status

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
    commit = _merge_base(config) if revision == MERGE_BASE else _commit(config, revision)
    if top is None or commit is None:
        raise Usage(f"--golden-against {revision}: git finds no such commit here")
    with _worktree(config, commit) as base:
        here = Path(top).resolve()
        build = config.getoption("golden_build")
        for tree in (base, here) if build else ():
            _build(build, tree)
        rounds, verdicts = _measured(config, here, base)
        why = _explained(config, here, base, verdicts)
    if revision == MERGE_BASE:
        revision = commit[:9]
    if config.getoption("golden_warn_only"):
        verdicts = list(map(as_warning, verdicts))
    notes = [*why, *_changed(config, commit, bool(build))]
    if any(v.status.fails_build for v in verdicts):
        notes.append(f"what changed: git diff --stat {commit[:9]}")
    for line in (*render.text(verdicts, base=revision), *notes):
        print(line)
    unwritten = _write(config, verdicts, notes, rounds)
    print("\n".join(unwritten), end="\n" if unwritten else "")
    process = rounds[0].new
    n_measured = len(process.samples) + len(process.failed)
    return exit_status(verdicts, n_measured) or int(bool(unwritten))


def _commit(config: pytest.Config, revision: str) -> str | None:
    return git(config, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")


def _merge_base(config: pytest.Config) -> str | None:
    """Where this branch left the main one. On the main one itself: the last commit if the tree has
    changes that are not committed, and the one before it otherwise."""
    names = [os.environ.get("GITHUB_BASE_REF", ""), "HEAD", "main", "master"]
    branches = [f"origin/{name}" for name in names if name] + ["main", "master"]
    known = [branch for branch in branches if _commit(config, branch)]
    head = _commit(config, "HEAD")
    base = git(config, "merge-base", "HEAD", known[0]) if known else head
    if base is None or base != head or git(config, "status", "--porcelain", "-uno"):
        return base
    return _commit(config, "HEAD~1")


def _measured(config: pytest.Config, here: Path, base: Path) -> tuple[list[Round], list[Verdict]]:
    """Benchmarks with times in rounds, all others once, and what is not clear in more rounds."""
    n, ask = config.getoption("golden_rounds"), Order(plain=True, few_pairs=True, may_fail=True)
    rounds = _rounds(config, here, base, range(1), msgspec.structs.replace(ask, timed=True))
    timed = sorted({s.name for process in rounds[0] for s in process.samples if s.pairs})
    again = msgspec.structs.replace(ask, tests=timed)
    if timed:
        rounds += _rounds(config, here, base, range(1, n), again)
    if any(process.left for process in rounds[0]):
        untimed = msgspec.structs.replace(ask, timed=False)
        rounds[0] = Round(*map(_joined, rounds[0], _side_by_side(config, here, base, untimed)))
    process = rounds[0].new
    noise = known_noise(config, {**process.environment.machine, **process.environment.host})
    verdicts = compare(rounds, config.getoption("golden_required"), noise)
    if names := undecided(verdicts):
        again = msgspec.structs.replace(ask, tests=names)
        more = _rounds(config, here, base, range(n, 2 * n), again)
        verdicts = confirmed(verdicts, rounds, more, noise)
        rounds += more
    return rounds, softened(verdicts, process)


def _rounds(
    config: pytest.Config, here: Path, base: Path, which: range, order: Order
) -> list[Round]:
    """Which of the two trees comes first alternates."""
    trees = [tree for i in which for tree in ((here, base) if i % 2 else (base, here))]
    found = in_turns(config, [(order, tree) for tree in trees], here)
    benchmarks = f", {len(order.tests)} benchmarks" if order.tests else ""
    rounds = []
    for i in which:
        print(f"golden: round {i + 1}{benchmarks}", flush=True)
        first, second = next(found), next(found)
        rounds.append(Round(second, first) if i % 2 else Round(first, second))
    return rounds


def _side_by_side(config: pytest.Config, here: Path, base: Path, order: Order) -> Round:
    """Both trees at once: figures do not depend on what else runs."""
    print("golden: benchmarks without times", flush=True)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda tree: fresh(config, order, here, tree)[0], (base, here))
        return Round(*found)


def _joined(timed: Process, others: Process) -> Process:
    """What two processes of a tree measured."""
    known = {sample.name for sample in timed.samples}
    samples = [*timed.samples, *(s for s in others.samples if s.name not in known)]
    failed = sorted({*timed.failed, *others.failed})
    measured = timed if timed.samples else others
    return msgspec.structs.replace(measured, samples=samples, failed=failed)


def _explained(config: pytest.Config, here: Path, base: Path, verdicts: list[Verdict]) -> list[str]:
    """Where the time of what is slower went, by one more process of each tree."""
    bad = (Status.FAIL, Status.WARNING)
    slower = sorted({v.name for v in verdicts if v.status in bad and v.tau is not None})
    if not slower:
        return []
    order = Order(tests=slower, plain=True, few_pairs=True, may_fail=True, explain=True)
    (found,) = _rounds(config, here, base, range(1), order)
    before, now = ({s.name: s.profile for s in process.samples} for process in found)
    lines = []
    for name in slower:
        parts = explained(before.get(name, {}), now.get(name, {}))
        lines += [f"{name}, where the time goes: {part}" for part in parts]
    return lines


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
    config: pytest.Config, verdicts: list[Verdict], notes: list[str], rounds: list[Round]
) -> list[str]:
    head = git(config, "rev-parse", "HEAD") or ""
    text = render.markdown(verdicts, notes).encode()
    process = rounds[0].new
    results = {
        "version": goldens.VERSION,
        "process": process,
        "verdicts": verdicts,
        "changes": changes(rounds),
    }
    return [
        *outputs.write(outputs.markdown(config), text),
        *outputs.write(outputs.results(config), msgspec.json.encode({"streamcache": results})),
        *outputs.append(outputs.summary(), text),
        *outputs.append(outputs.history(config), history.encoded(history.lines(process, head))),
    ]
