"""Processes that run one model together (torchrun): one of them prints, writes and decides."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")
_state = {"together": False}


def started_together() -> int:
    """The number of processes that torchrun has started, of which this is one; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of the processes this is, from 0 on."""
    return int(os.environ["RANK"]) if started_together() > 1 else 0


def join() -> None:
    """From now on these processes run one model: the first one writes for all."""
    _state["together"] = started_together() > 1


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


def leave() -> None:
    """End what connects the processes; without it some never end.

    A CUDA graph with sums in it must be gone before: NCCL waits for it.
    """
    gc.collect()
    if _state["together"] and _distributed().is_initialized():
        _distributed().destroy_process_group()
    _state["together"] = False


def _distributed() -> Any:
    """Of torch, which is imported where a model is."""
    return sys.modules["torch.distributed"]
