"""Does the gate catch what is broken? Defects are planted one at a time in a copy of the tree, and
the command that CI runs must give the verdict that names each.

    python tests/golden/defects.py [--list] [--only NAME ...] [--gpu --golden h100]
    python tests/golden/defects.py --against --cores 0-47
    pytest -m slow tests/golden
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from streamcache.gate.verdicts import IDENTITY, Status, Verdict  # noqa: E402
from tests.golden.cores import groups, parsed, spread  # noqa: E402
from tests.golden.mutations import DEFECTS, Defect  # noqa: E402

CORES_EACH = 2  # that a run of the gate uses

TREE = ("pyproject.toml", "conftest.py", "streamcache", "tests")


class Outcome(NamedTuple):
    """What the gate said of a defect."""

    caught: bool
    exit_status: int
    verdicts: list[Verdict]
    output: str

    @property
    def shown(self) -> Verdict:
        """The verdict asked for if it came, else the most severe of all."""
        none = Verdict("-", "-", Status.PASS, cause=self.output.strip()[-200:])
        return self.verdicts[0] if self.verdicts else none


def copied(folder: Path) -> Path:
    """A copy of what the gate needs of the tree."""
    for name in TREE:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def committed(root: Path) -> Path:
    """The same as the only commit of a repository, which `--golden-against` can compare with."""
    identity = ["-c", "user.name=gate", "-c", "user.email=gate@example.org"]
    for arguments in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "base"]):
        subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)
    return root


def environment_of(root: Path) -> dict[str, str]:
    """Of a process that measures the tree in `root`."""
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("GITHUB_STEP_SUMMARY", None)
    return environment


def planted(defect: Defect, golden: str | None, cores: str = "") -> Outcome:
    """Plant a defect and run the gate.

    Args:
        golden: its name; None: against the commit without the defect.
        cores: to run on, as for `taskset -c`; empty: any.

    Raises:
        AssertionError: a text to replace is not there once, or another tree would be measured.
    """
    with tempfile.TemporaryDirectory() as name:
        root = copied(Path(name).resolve())
        if golden is None:
            committed(root)
        for edit in defect.edits:
            edit(root)
        environment = environment_of(root)

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            command = (*(("taskset", "-c", cores) if cores else ()), sys.executable, *command)
            return subprocess.run(
                command, cwd=root, env=environment, capture_output=True, text=True
            )

        imported = run("-c", "import streamcache; print(streamcache.__file__)").stdout.strip()
        assert imported == str(root / "streamcache/__init__.py"), f"measures {imported}"
        if defect.where == "unit":
            ran = run("-m", "pytest", *defect.benchmarks, "-p", "no:cacheprovider", "-q")
            failed = [Verdict(name, "unit test", Status.FAIL) for name in defect.benchmarks]
            caught = ran.returncode == 1
            return Outcome(caught, ran.returncode, failed * caught, ran.stdout + ran.stderr)
        results = root / "results.json"
        gate = f"--golden={golden}" if golden else "--golden-against=HEAD"
        command = ["-m", "pytest", *_selection(defect), gate]
        ran = run(*command, f"--golden-json={results}", "-p", "no:cacheprovider", "-q")
        verdicts = read(results) if results.exists() else []
    if golden is None and defect.against is not None:
        defect = replace(defect, status=defect.against)
    return judged(defect, ran.returncode, verdicts, ran.stdout + ran.stderr)


def _selection(defect: Defect) -> list[str]:
    file = f"tests/bench/test_{defect.where}.py"
    marks = ["-m", "gpu"] if defect.where == "gpu" else []
    if defect.whole:
        return [*marks, file, "--golden-required"]
    return [*marks, *(f"{file}::{name}" for name in defect.benchmarks)]


def _is_timed(defect: Defect) -> bool:
    return defect.whole or any(name.startswith("test_speed") for name in defect.benchmarks)


def read(path: Path) -> list[Verdict]:
    """The verdicts in a file of `--golden-json`, the most severe first."""
    found = json.loads(path.read_bytes())["streamcache"]["verdicts"]
    verdicts = msgspec.convert(found, list[Verdict])
    return sorted(verdicts, key=lambda v: -v.status.severity)


def judged(defect: Defect, exit_status: int, verdicts: list[Verdict], output: str) -> Outcome:
    """Caught: the status and the check that were asked for, at the benchmarks that must have it."""
    if defect.status is Status.PASS:
        others = [v for v in verdicts if v.status is not Status.PASS]
        return Outcome(exit_status == 0, exit_status, others, output)
    named = [v for v in verdicts if v.status is defect.status and defect.check in ("", v.check)]
    found = {test_of(v) for v in named} & set(defect.benchmarks)
    enough = bool(found) if defect.any_of else found == set(defect.benchmarks)
    not_judged = 76 if defect.check == IDENTITY else 75
    red = exit_status == (not_judged if defect.status is Status.INVALID else 1)
    others = [v for v in verdicts if v not in named]
    return Outcome(enough and red, exit_status, named + others, output)


def test_of(verdict: Verdict) -> str:
    """The test of a verdict, without its file."""
    return verdict.name.rpartition("::")[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="of these names, or parts of them"
    )
    parser.add_argument("--gpu", action="store_true", help="those that a GPU shows")
    parser.add_argument("--golden", default="cpu", help="the golden (default: cpu)")
    parser.add_argument(
        "--against", action="store_true", help="against the commit without the defect, not a golden"
    )
    parser.add_argument(
        "--cores",
        help="run several at once, each on cores of its own: 0-47 (default: one, anywhere)",
    )
    options = parser.parse_args()
    chosen = [d for d in DEFECTS if options.list or (d.where == "gpu") == options.gpu]
    if options.only:
        chosen = [d for d in chosen if any(part in d.name for part in options.only)]
    if not chosen:
        parser.error("no such defect: see --list")
    if options.list:
        for d in chosen:
            print(f"{d.where}  {d.status.name:7}  {d.check or 'any':14}  {d.name}")
        return 0
    golden = None if options.against else options.golden

    def caught(defect: Defect, cores: str) -> bool:
        began = time.monotonic()
        outcome = planted(defect, golden, cores)
        shown = outcome.shown
        line = (
            f"{'caught' if outcome.caught else 'MISSED':6}  {defect.name:58}  "
            f"{shown.status.name:12}  {test_of(shown):28}  {shown.check:14}  "
            f"{time.monotonic() - began:3.0f} s  {shown.cause}"
        )
        print(line if outcome.caught else f"{line}\n{outcome.output}", flush=True)
        return outcome.caught

    places = groups(parsed(options.cores), CORES_EACH) if options.cores else [""]
    chosen.sort(
        key=_is_timed, reverse=True
    )  # these take longest, and must not be the last to begin
    found = list(spread(caught, chosen, places))
    print(f"{sum(found)} of {len(found)} as they must be")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
