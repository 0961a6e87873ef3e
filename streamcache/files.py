"""Files written all or nothing, and read only where they are files."""

import errno
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from streamcache.ranks import is_first

_UNFINISHED = ".streamcache-"  # how the names of files begin that are being written


def write_bytes(
    path: Path, data: bytes, within: Path | None = None, by_every_rank: bool = False
) -> None:
    """A reader sees the old file or the new one, never half; a link still points at its file.

    Args:
        within: a folder that no link may lead out of, since others may have put it there.
        by_every_rank: of processes that run one model together; else the first writes for all.

    Raises:
        OSError: it cannot be written; the error has the name of the file asked for.
    """
    if by_every_rank or is_first():
        _write([(path, data)], within)


def write_files(contents: Sequence[tuple[Path, bytes]], within: Path | None = None) -> None:
    """`write_bytes` of files that belong together: where one has no room, none is changed.

    All of them are on the disk before the first gets its name; they get them in this order.
    """
    if is_first():
        _write(contents, within)


def _write(contents: Sequence[tuple[Path, bytes]], within: Path | None) -> None:
    written: list[tuple[Path, Path, Path]] = []
    try:
        for path, data in contents:
            written.append((path, *_write_unfinished(path, data, within)))
        for path, unfinished, target in written:
            with _naming(path):
                unfinished.replace(target)
    finally:
        for _, unfinished, target in written:
            if target.parent.is_dir():
                unfinished.unlink(missing_ok=True)


def _write_unfinished(path: Path, data: bytes, within: Path | None) -> tuple[Path, Path]:
    """A temporary file next to the one that `path` leads to, which it will replace."""
    target = path.resolve()
    if within is not None and not target.is_relative_to(within.resolve()):
        raise OSError(errno.EPERM, f"not written: a link leads out of {within}", str(path))
    # No other thread or machine has this name, and unlike tempfile's the file is as open to others
    # as any.
    unfinished = target.with_name(f"{_UNFINISHED}{uuid4().hex}.tmp")
    is_finished = False
    try:
        with _naming(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        is_finished = True
    finally:
        if not is_finished and target.parent.is_dir():
            unfinished.unlink(missing_ok=True)
    return unfinished, target


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error has the name of the file asked for, not of the one being written."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def remove_leftovers(folder: Path, older_than_s: float = 0.0) -> None:
    """Remove what writers that were killed have left in a folder, not below it."""
    for path in folder.glob(f"{_UNFINISHED}*.tmp"):
        with suppress(OSError):
            if not path.is_symlink() and time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def require_writable(path: Path) -> None:
    """Try whether a file could be written at `path`, and leave nothing behind.

    Raises:
        OSError: it could not; the error has the name of the file asked for.
    """
    try:
        folder = path.resolve().parent
        longest = path.with_name(f"{path.name}.tpot.npy")  # of the names that are made of it
        with suppress(FileNotFoundError):
            longest.lstat()
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


def sha256_of(paths: Iterable[Path]) -> str:
    """The digest (hex) of files, one after the other, of any size."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
    return digest.hexdigest()


def _size(n_bytes: int) -> str:
    return f"{n_bytes >> 20} MiB" if n_bytes >= 1 << 20 else f"{n_bytes} bytes"
