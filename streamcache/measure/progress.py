"""Progress of long work, shown by whoever calls."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from streamcache.decoding.nll import Advance

Progress = Callable[[str, int], AbstractContextManager[Advance]]  # description, total


@contextmanager
def no_progress(description: str, total: int) -> Iterator[Advance]:
    """Progress that nobody sees."""
    yield lambda n: None
