"""Every planted defect is caught by the verdict that names it: minutes, see `defects.py`."""

import shutil
from pathlib import Path

import pytest

from streamcache.gate.verdicts import Status, Verdict
from tests.golden.defects import ROOT, copied, judged, planted
from tests.golden.mutations import DEFECTS, Defect

FILE = "tests/bench/test_cpu.py::"
BROKEN = Defect("broken", (lambda root: None,), Status.FAIL, "ppl", ("test_a", "test_b"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("tree"))


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_can_be_planted(defect: Defect, tree: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*") if path.is_file()}
    try:
        for edit in defect.edits:
            edit(tree)
        changed = [path for path, then in before.items() if path.stat().st_mtime_ns != then]
        assert bool(changed) == bool(defect.edits)
        for path in changed:
            if path.suffix == ".py":
                compile(path.read_text(encoding="utf-8"), str(path), "exec")
    finally:
        for path, then in before.items():
            if path.stat().st_mtime_ns != then:
                shutil.copy2(ROOT / path.relative_to(tree), path)


@pytest.mark.parametrize(
    ("exit_status", "failing", "caught"),
    [
        (1, {"test_a": "ppl", "test_b": "ppl"}, True),
        (1, {"test_a": "ppl", "test_b": "text"}, False),  # red, but not for this
        (1, {"test_a": "ppl"}, False),
        (0, {"test_a": "ppl", "test_b": "ppl"}, False),  # said, and passed nevertheless
        (1, {}, False),
    ],
)
def test_caught_is_named(exit_status: int, failing: dict[str, str], caught: bool) -> None:
    verdicts = [
        Verdict(FILE + name, check, Status.FAIL, "3", "2", cause="3 | 2")
        for name, check in failing.items()
    ]
    verdicts.append(Verdict(FILE + "test_c", "ppl", Status.PASS, "1", "2"))
    assert judged(BROKEN, exit_status, verdicts, "").caught is caught


@pytest.mark.slow
@pytest.mark.parametrize(
    "defect", [d for d in DEFECTS if d.where != "gpu"], ids=lambda defect: defect.name
)
def test_is_caught(defect: Defect) -> None:
    outcome = planted(defect, "cpu")
    assert outcome.caught, outcome.output
