"""Files written all or nothing, and read only where they are files."""

import errno
import os
import stat
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


def read_bytes(path: Path, max_bytes: int | None = None) -> bytes:
    """The content of a regular file. Of a pipe or a device nothing is read: it may have no end.

    Raises:
        OSError: it cannot be read, is no file, or has more bytes.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if max_bytes is None:
            return file.read()
        data = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
        if max(status.st_size, len(data)) > max_bytes:
            raise OSError(errno.EFBIG, f"longer than {_size(max_bytes)}", str(path))
        return data


def _size(n_bytes: int) -> str:
    return f"{n_bytes >> 20} MiB" if n_bytes >= 1 << 20 else f"{n_bytes} bytes"
