"""Does the gate catch what is broken? Defects are planted one at a time in a copy of the tree, and
the command that CI runs must give the verdict that names each.

    python tests/golden/defects.py [--list] [--only NAME ...] [--gpu --golden h100]
    pytest -m slow tests/golden
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.golden.mutations import DEFECTS, Defect  # noqa: E402

TREE = ("pyproject.toml", "conftest.py", "streamcache", "tests")


class Row(NamedTuple):
    """A verdict, as the report shows it."""

    status: str
    benchmark: str
    check: str
    cause: str


class Outcome(NamedTuple):
    """What the gate said of a defect."""

    caught: bool
    exit_status: int
    rows: list[Row]
    output: str

    @property
    def shown(self) -> Row:
        """The verdict asked for if it came, else the first of all."""
        return self.rows[0] if self.rows else Row("-", "-", "-", self.output.strip()[-200:])


def copied(folder: Path) -> Path:
    """A copy of what the gate needs of the tree."""
    for name in TREE:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def planted(defect: Defect, golden: str) -> Outcome:
    """Plant a defect and run the gate.

    Raises:
        AssertionError: a text to replace is not there once, or another tree would be measured.
    """
    with tempfile.TemporaryDirectory() as name:
        root = copied(Path(name).resolve())
        for edit in defect.edits:
            edit(root)
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("GITHUB_STEP_SUMMARY", None)

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            command = (sys.executable, *command)
            return subprocess.run(
                command, cwd=root, env=environment, capture_output=True, text=True
            )

        imported = run("-c", "import streamcache; print(streamcache.__file__)").stdout.strip()
        assert imported == str(root / "streamcache/__init__.py"), f"measures {imported}"
        report = root / "report.md"
        command = ["-m", "pytest", *_selection(defect), f"--golden={golden}"]
        ran = run(*command, f"--golden-markdown={report}", "-p", "no:cacheprovider", "-q")
        text = report.read_text(encoding="utf-8") if report.exists() else ""
    return judged(defect, ran.returncode, parsed(text), ran.stdout + ran.stderr)


def _selection(defect: Defect) -> list[str]:
    file = f"tests/bench/test_{defect.where}.py"
    marks = ["-m", "gpu"] if defect.where == "gpu" else []
    if defect.whole:
        return [*marks, file, "--golden-required"]
    return [*marks, *(f"{file}::{name}" for name in defect.benchmarks)]


def parsed(report: str) -> list[Row]:
    """The rows of a report in Markdown, without its header."""
    lines = [line for line in report.splitlines() if line.startswith("| ")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [Row(c[0], c[1], c[2], c[-1]) for c in cells if c[0] not in ("", "---")]


def judged(defect: Defect, exit_status: int, rows: list[Row], output: str) -> Outcome:
    """Caught: the status and the check that were asked for, at the benchmarks that must have it."""
    if not defect.edits:
        return Outcome(exit_status == 0, exit_status, [r for r in rows if r.status != "ok"], output)
    names = [row for row in rows if row.status == defect.status and defect.check in ("", row.check)]
    found = {row.benchmark for row in names} & set(defect.benchmarks)
    enough = bool(found) if defect.any_of else found == set(defect.benchmarks)
    red = exit_status == (75 if defect.status == "INVALID" else 1)
    others = [row for row in rows if row not in names]
    return Outcome(enough and red, exit_status, names + others, output)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="of these names, or parts of them"
    )
    parser.add_argument("--gpu", action="store_true", help="those that a GPU shows")
    parser.add_argument("--golden", default="cpu", help="the golden (default: cpu)")
    parser.add_argument("--verbose", action="store_true", help="and what pytest printed")
    options = parser.parse_args()
    where = "gpu" if options.gpu else "cpu"
    chosen = [d for d in DEFECTS if options.list or d.where == where]
    if options.only:
        chosen = [d for d in chosen if any(part in d.name for part in options.only)]
    if not chosen:
        parser.error("no such defect: see --list")
    if options.list:
        for d in chosen:
            print(f"{d.where}  {d.status:7}  {d.check or 'any':14}  {d.name}")
        return 0
    missed = 0
    for defect in chosen:
        began = time.monotonic()
        outcome = planted(defect, options.golden)
        missed += not outcome.caught
        row = outcome.shown
        print(
            f"{'caught' if outcome.caught else 'MISSED':6}  {defect.name:58}  {row.status:7}  "
            f"{row.benchmark:28}  {row.check:14}  {time.monotonic() - began:3.0f} s  {row.cause}",
            flush=True,
        )
        if options.verbose or not outcome.caught:
            print(outcome.output)
    print(f"{len(chosen) - missed} of {len(chosen)} as they must be")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
