"""Raising at a line of the package that is executed."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import streamcache

ROOT = str(Path(streamcache.__file__).parent)


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
    def lines_of(cls, call: Callable[[], object], n: int | None) -> list[int]:
        """The numbers of all lines that a call executes, or of `n` of them from first to last."""
        counter = cls(10**9, BaseException)
        counter.run(call)
        n_lines = 10**9 - counter.left
        return list(range(1, n_lines + 1, max(1, n_lines // n) if n else 1))

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
