"""Writing files all or nothing."""

import os
import tempfile
from pathlib import Path
from uuid import uuid4


def write_bytes(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one, never half; a link goes on pointing at its file.

    Raises:
        OSError: it cannot be written; the error has the name of the file asked for.
    """
    target = path.resolve()
    # No other thread or machine has this name, and unlike tempfile's the file is as open to others
    # as any.
    unfinished = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        if target.parent.is_dir():
            unfinished.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Try whether a file could be written at `path`, and leave nothing behind.

    Raises:
        OSError: it could not; the error has the name of the file asked for.
    """
    try:
        folder = path.resolve().parent
        while not folder.exists():  # would be made, too
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        error.filename = str(path)
        raise
