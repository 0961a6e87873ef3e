"""Processes that run one model together (torchrun): one of them prints, writes and decides."""

import atexit
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

Value = TypeVar("Value")
_state = {"together": False}
_holders: "WeakSet[HasSums]" = WeakSet()


def started_together() -> int:
    """The number of processes that torchrun has started, of which this is one; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of the processes this is, from 0 on."""
    return int(os.environ["RANK"]) if started_together() > 1 else 0


def join() -> None:
    """From now on these processes run one model: the first one writes for all."""
    if not _state["together"] and started_together() > 1:
        _state["together"] = True
        atexit.register(leave)


def is_together() -> bool:
    """Whether this is one of several processes that run one model."""
    return _state["together"]


def is_first() -> bool:
    """Whether this process is the one that writes, or is alone."""
    return not _state["together"] or rank() == 0


def of_first(make: Callable[[], Value]) -> Value:
    """What the first process makes, in all of them, which wait for it.

    Raises:
        RuntimeError: in the others, where it fails in the first.
    """
    if not _state["together"]:
        return make()
    made: list[Value | None] = [None]
    failed: Exception | None = None
    if is_first():
        try:
            made = [make()]
        except Exception as error:
            failed = error
    told: list[object] = [str(failed) if failed else None, *made]
    _distributed().broadcast_object_list(told, src=0)
    if failed is not None:
        raise failed
    if told[0] is not None:
        raise RuntimeError(f"rank 0 failed: {told[0]}")
    return told[1]  # type: ignore[return-value]


def own_path(path: Path) -> Path:
    """Where this process keeps its part of what all of them have."""
    return path if is_first() else path.with_name(f"{path.name}.{rank()}")


class HasSums(Protocol):
    """What holds sums over the processes, for which NCCL would wait: a captured CUDA graph."""

    def release(self) -> None: ...


def release_at_end(holder: HasSums) -> None:
    """Have `leave` release it before the connection ends."""
    _holders.add(holder)


def leave() -> None:
    """End what connects the processes; without it some never end.

    It is called when the program ends, too.
    """
    for holder in list(_holders):
        holder.release()
    if _state["together"] and _distributed().is_initialized():
        _distributed().destroy_process_group()
    _state["together"] = False


def _distributed() -> Any:
    """Of torch, which is imported where a model is."""
    return sys.modules["torch.distributed"]
