"""Goldens whose benchmark no longer exists: each becomes a test that fails."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


class CollectedTests:
    """All tests that exist, selected or not."""

    def __init__(self, config: pytest.Config):
        self._root, self._last_failed = config.rootpath, config.getoption("lf", False)
        self._seen: set[str] = set()
        self._opened: set[str] = set()

    @pytest.hookimpl(wrapper=True, trylast=True)  # inside of what leaves tests out, as --lf does
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.passed and (report.result or not self._last_failed):  # --lf does not open all
            self._opened.add(collector.nodeid)
            self._seen |= {node.nodeid for node in report.result}
        return report

    def is_missing(self, name: str) -> bool:
        """Whether a test no longer exists, though its file, if it exists, was collected."""
        if name in self._seen:
            return False
        parent = name.partition("[")[0].rpartition("::")[0]
        if not parent:
            return not (self._root / name).exists()
        return parent in self._opened or self.is_missing(parent)


class MissingBenchmarkItem(pytest.Item):
    """Stands for a benchmark that has a golden and is no more, so that it fails like others."""

    def __init__(self, *, golden: Path, **arguments: Any):
        super().__init__(**arguments)
        self._golden = golden

    def runtest(self) -> None:
        """There is nothing to run."""

    def reportinfo(self) -> tuple[Path, int, str]:
        return self._golden, 0, self.nodeid
