"""Ctrl-C while modules are imported."""

import os
import signal
from types import FrameType


def stop_at_once(on: bool) -> None:
    """End the process at Ctrl-C without an exception, or (off) with one as usual.

    Some packages swallow any exception while they are imported, and a traceback of an import says
    nothing to a user. Where Ctrl-C is ignored, or somebody handles it, it stays so.
    """
    ours = _stop if on else signal.default_int_handler
    if signal.getsignal(signal.SIGINT) is (signal.default_int_handler if on else _stop):
        signal.signal(signal.SIGINT, ours)


def _stop(_: int, __: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)
