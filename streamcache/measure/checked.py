"""Records and arrays on disk with checksums: read back as they were written, or refused.

A JSON file holds the fields of a struct and `checksum`, the sha256 of its canonical JSON. The
sha256 of an array's file stands in the record that it belongs to.
"""

from streamcache.extras import require

require("measure", "streamcache.measure")

# ruff: noqa: E402 (what is missing is named before it is imported)
import hashlib
import io
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import numpy
from numpy.typing import ArrayLike, NDArray

from streamcache.files import read_bytes, write_bytes

SCHEMA_VERSION = 2
MAX_BYTES = 1 << 25  # of a JSON file; a longer one is a trace
_MAX_ARRAY_BYTES = 1 << 28  # of 67 million tokens

Floats = NDArray[numpy.float64]


class _Versioned(Protocol):
    @property
    def version(self) -> int: ...


_Kind = TypeVar("_Kind", bound=_Versioned)


class RecordError(ValueError):
    """A file is not a record of the expected kind and version; the message says what is wrong."""


def sha256(data: bytes) -> str:
    """The digest (hex) of a file's content."""
    return hashlib.sha256(data).hexdigest()


def with_checksum(value: msgspec.Struct) -> dict[str, Any]:
    """The fields of a struct and its checksum, as JSON has them.

    Raises:
        RecordError: a number in it is infinite or none, which JSON has no sign for.
    """
    try:
        # A float that is given as 3 is read back as 3.0.
        same = msgspec.json.decode(msgspec.json.encode(value), type=type(value))
    except msgspec.MsgspecError as error:
        raise RecordError(f"a record that could not be read back: {error}") from error
    return {**msgspec.to_builtins(same), "checksum": _checksum(same)}


def checked(content: object, kind: type[_Kind]) -> _Kind:
    """The struct of what `with_checksum` made.

    Raises:
        RecordError: of another kind or version, or changed since; the message has no file name.
    """
    if not isinstance(content, dict):
        raise RecordError("not an object")
    if content.get("version") == 1:
        raise RecordError(
            "schema version 1, which has no checksum: damage would not be seen, so measure it again"
        )
    if content.get("version") != SCHEMA_VERSION:
        raise RecordError(
            f"schema version {content.get('version')}, this release reads {SCHEMA_VERSION}"
        )
    try:
        found = msgspec.convert(content, kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordError(f"damaged: {error}") from error
    if content.get("checksum") != _checksum(found):
        raise RecordError("damaged or edited: its checksum is another one")
    return found


def _checksum(value: object) -> str:
    return sha256(msgspec.json.encode(value, order="sorted"))


def write_struct(path: Path, value: msgspec.Struct, within: Path | None = None) -> None:
    """Write as JSON; a reader sees the old file or the new one, never half.

    Args:
        within: a folder that no link may lead out of.
    """
    write_bytes(path, struct_bytes(value), within)


def struct_bytes(value: msgspec.Struct) -> bytes:
    """The JSON of a struct and its checksum."""
    data = msgspec.json.encode(with_checksum(value))
    return msgspec.json.format(data, indent=1) + b"\n"


def read_struct(kind: type[_Kind], path: Path, called: str) -> _Kind:
    """Read what `write_struct` wrote of a kind that has a version, named as people call it.

    Raises:
        RecordError: no such file, of another kind or version, or damaged.
    """
    try:
        return checked(read_json(path), kind)
    except RecordError as error:
        raise RecordError(f"{path} is not a readable streamcache {called}: {error}") from error


def read_json(path: Path) -> object:
    """The content of a JSON file.

    Raises:
        RecordError: it cannot be read; the message has no file name.
    """
    try:
        return msgspec.json.decode(read_bytes(path, MAX_BYTES))
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RecordError(getattr(error, "strerror", None) or str(error)) from error


def is_record(path: Path) -> bool:
    """Whether a file is a record of this package, of any kind, version and state."""
    try:
        content = read_json(path)
    except RecordError:
        return False
    return isinstance(content, dict) and str(content.get("schema")).startswith("streamcache-")


def array_bytes(values: ArrayLike) -> bytes:
    """Numbers as a .npy file."""
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.asarray(values, dtype=numpy.float32))
    return buffer.getvalue()


def read_array(path: Path, n: int, digest: str | None) -> Floats:
    """The `n` numbers of a .npy file whose sha256 is `digest`; None: that is not known.

    Raises:
        RecordError: it cannot be read, has another number of them, or is damaged.
    """
    try:
        data = read_bytes(path, min(8 * n + 1024, _MAX_ARRAY_BYTES))
        if digest is not None and sha256(data) != digest:
            raise ValueError("damaged, or not of this record: its checksum is another one")
        values: Floats = numpy.load(io.BytesIO(data), allow_pickle=False).astype(numpy.float64)
    except Exception as error:  # numpy has no class of errors
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RecordError(f"{path} cannot be read: {reason}") from error
    if values.shape != (n,):
        raise RecordError(f"{path} has the shape {values.shape}, not {(n,)}")
    return values
