"""Raising at a line of the package that is executed."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import streamcache

ROOT = str(Path(streamcache.__file__).parent)

_N_PARTS = 8
Choice = Callable[[list[int]], list[int]]


def _some(lines: list[int]) -> list[int]:
    return lines[:: max(1, len(lines) // 20)]


def _part(i: int) -> Choice:
    return lambda lines: lines[i::_N_PARTS]


#: Some lines of what is interrupted, from first to last; and, slow, all of them, in parts that can
#: run in parallel: `pytest -n 16 --dist worksteal -m slow -k at_any_line`.
each_choice_of_lines = pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(_some, id="some lines"),
        *(
            pytest.param(
                _part(i), id=f"all lines, part {i + 1} of {_N_PARTS}", marks=pytest.mark.slow
            )
            for i in range(_N_PARTS)
        ),
    ],
)


class Interrupted(BaseException):
    """Neither an Exception, like KeyboardInterrupt, nor one that anybody handles."""


class Oom(Exception):
    """An Exception, like the one of a full GPU."""


class RaiseAtLine:
    """Raises at the n-th line of `streamcache`, or of one file of it, that is executed."""

    def __init__(self, line: int, kind: type[BaseException], file: str = ""):
        self.left, self.kind, self.file = line, kind, file

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = frame.f_code.co_filename
        if not (path.startswith(ROOT) and path.endswith(self.file)):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise self.kind
        return self

    @classmethod
    def lines_of(cls, call: Callable[[], object]) -> list[int]:
        """The numbers of all lines that a call executes: 1, 2 ..."""
        counter = cls(10**9, BaseException)
        counter.run(call)
        return list(range(1, 10**9 - counter.left + 1))

    def run(self, call: Callable[[], object]) -> bool:
        """Whether it came to that."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except self.kind:
            return True
        finally:
            sys.settrace(before)
        return False
