"""Golden files: read as a whole or refused, written all or nothing, with a checksum."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from streamcache.files import read_bytes, write_bytes
from streamcache.gate.goldens import SCHEMA, VERSION, Golden, GoldenError
from streamcache.gate.validation import golden_error
from streamcache.plain import plain_values

_CHECKSUM = "checksum"
_MAX_BYTES = 1 << 25


def checksum(golden: Golden) -> str:
    """The sha256 of its canonical JSON."""
    same = msgspec.convert(msgspec.to_builtins(golden), Golden)  # a float given as 3 is 3.0
    return hashlib.sha256(msgspec.json.encode(same, order="sorted")).hexdigest()


def read(path: Path) -> Golden:
    """Read a golden file.

    Raises:
        GoldenError: it is missing, cut off, no golden, of another version, or could hold nothing.
    """
    found = decoded(path)
    if found.get("version") != VERSION:
        known = found.get("version") == 1
        convert = f": python -m streamcache.gate.convert {path}" if known else ""
        raise GoldenError(
            f"{path} has version {found.get('version')!r}, this release reads {VERSION}{convert}"
        )
    return validated(found, path)


def decoded(path: Path) -> dict[str, Any]:
    """The JSON of a golden file of any version.

    Raises:
        GoldenError: it is missing, cut off, or no golden.
    """
    try:
        data = read_bytes(path, _MAX_BYTES)
        found: Any = msgspec.json.decode(data)
        duplicates = duplicate_keys(data)
    except OSError as error:
        raise GoldenError(
            f"no golden {path}: {error.strerror}; record one with --golden-update"
        ) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise GoldenError(f"{path} is not JSON, or cut off: {error}") from error
    if duplicates:
        raise GoldenError(f"{path}: duplicate key {min(duplicates)!r} in one JSON object")
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise GoldenError(f"{path} is not a golden file: it has no schema {SCHEMA!r}")
    return found


def validated(found: dict[str, Any], path: Path) -> Golden:
    """A golden from its JSON, with escapes in place of signs that no one sees in its names.

    A file without a checksum was written by hand, or by a release that wrote none.

    Raises:
        GoldenError: a field is unknown or of another type, it could hold nothing, or it was
            changed after it was written.
    """
    fields = {name: value for name, value in found.items() if name != _CHECKSUM}
    try:
        golden = msgspec.convert(fields, Golden)
        shown = msgspec.convert(plain_values(fields), Golden)
    except msgspec.ValidationError as error:
        raise GoldenError(f"{path} is not a valid golden file: {error}") from error
    if wrong := golden_error(golden):
        raise GoldenError(f"{path}: {wrong}")
    if _CHECKSUM in found and found[_CHECKSUM] != checksum(golden):
        raise GoldenError(
            f"{path} was damaged or edited: its checksum is another one; after an edit that is "
            'meant, remove the line "checksum"'
        )
    return shown


def duplicate_keys(data: bytes) -> set[str]:
    """Keys that one object has twice: readers of JSON keep the last and say nothing."""
    found: set[str] = set()

    def look(pairs: list[tuple[str, object]]) -> None:
        counts = Counter(key for key, _ in pairs)
        found.update(key for key, n in counts.items() if n > 1)

    json.loads(data, object_pairs_hook=look)
    return found


def write(path: Path, golden: Golden) -> None:
    """Write a golden file, keys in order, all or nothing."""
    entries = dict(sorted(golden.entries.items()))
    golden = msgspec.structs.replace(golden, entries=entries)
    fields = {**msgspec.to_builtins(golden), _CHECKSUM: checksum(golden)}
    plain = msgspec.json.encode(fields, order="sorted")
    write_bytes(path, msgspec.json.format(plain, indent=1) + b"\n")
