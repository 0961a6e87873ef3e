"""Every planted defect is caught by the verdict that names it: minutes, see `defects.py`."""

import tempfile
from pathlib import Path

import pytest

from tests.golden.defects import copied, planted
from tests.golden.planted import DEFECTS, Defect


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_can_be_planted(defect: Defect) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = copied(Path(folder))
        for edit in defect.edits:
            edit(root)
        for path in root.rglob("*.py"):
            compile(path.read_text(encoding="utf-8"), str(path), "exec")


@pytest.mark.slow
@pytest.mark.parametrize(
    "defect", [d for d in DEFECTS if d.where == "cpu"], ids=lambda defect: defect.name
)
def test_is_caught(defect: Defect) -> None:
    outcome = planted(defect, "cpu")
    assert outcome.caught, outcome.output
