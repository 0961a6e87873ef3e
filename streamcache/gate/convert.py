"""Golden files of version 1 become ones of version 2: the same figures, under the new names.

    python -m streamcache.gate.convert FILE...

An identity of version 1 has a policy as the `repr` of a dataclass; one of version 2 has its fields
that are set, each by its own name.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamcache.gate import storage
from streamcache.gate.goldens import VERSION, GoldenError

_POLICY = ("n_sink", "window_size", "cache_slack", "max_drop", "compress_every")
_DEFAULTS = {"cache_slack": "None", "max_drop": "None", "compress_every": "1"}
_ENTRY = {
    "contestants_s": "candidates_s",
    "numbers": "metrics",
    "exact": "equal",
    "band": "published_range",
}
_CACHES = {"mit": "reference", "ours": "rerotating", "fast": "streaming"}
_METRIC = {"drift": "rel_tol", "at_most": "max_value"}


def converted(found: dict[str, Any]) -> dict[str, Any]:
    """A golden of version 1, as JSON, in version 2. One of version 2 stays as it is.

    Raises:
        GoldenError: it is of neither version, or lacks a field.
    """
    if found.get("version") == VERSION:
        return found
    if found.get("version") != 1:
        raise GoldenError(f"version {found.get('version')!r} cannot be converted")
    try:
        published = found["provenance"]["processes"] == 0
        entries = {name: _entry(entry, published) for name, entry in found["entries"].items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise GoldenError(f"it is no valid golden of version 1 ({error!r})") from error
    return {**found, "version": VERSION, "entries": entries}


def _entry(entry: dict[str, Any], published: bool) -> dict[str, Any]:
    new = {_ENTRY.get(key, key): value for key, value in entry.items()}
    new["identity"] = identity(entry.get("identity", {}))
    new["metrics"] = {name: _metric(metric) for name, metric in entry.get("numbers", {}).items()}
    return {**new, "published": True} if published else new


def _metric(metric: dict[str, Any]) -> dict[str, Any]:
    return {_METRIC.get(key, key): value for key, value in metric.items() if value is not None}


def identity(old: dict[str, str | int]) -> dict[str, str | int]:
    """The fields that are set, each a key of its own.

    A `policy` becomes its fields, one named otherwise (`beside`) those with its name in front; a
    `mode` becomes the name of its `cache`.
    """
    new: dict[str, str | int] = {}
    for key, value in old.items():
        fields = _policy_fields(str(value))
        prefix = "" if key == "policy" else f"{key}_"
        new.update((f"{prefix}{name}", number) for name, number in fields.items())
        if key == "mode":
            new["cache"] = _CACHES.get(str(value), value)
        elif not fields:
            new[key] = value
    return new


def _policy_fields(text: str) -> dict[str, int]:
    """Of `EvictionPolicy(n_sink=4, ...)`, or of `(4, 124)`; empty where the text is neither."""
    if plain := re.fullmatch(r"\((\d+), (\d+)\)", text):
        return dict(zip(_POLICY, map(int, plain.groups())))
    if not re.fullmatch(r"EvictionPolicy\((\w+=\w+(, )?)*\)", text):
        return {}
    given = dict(re.findall(r"(\w+)=(\w+)", text))
    return {k: int(given[k]) for k in _POLICY if k in given and given[k] != _DEFAULTS.get(k)}


def main(arguments: Sequence[str]) -> int:
    """Convert files in place; an exit status."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if arguments else 2
    for path in map(Path, arguments):
        try:
            golden = storage.validated(converted(storage.decoded(path)), path)
        except GoldenError as error:
            named = "" if str(path) in str(error) else f"{path}: "
            print(f"ERROR: {named}{error}", file=sys.stderr)
            return 2
        storage.write(path, golden)
        print(f"{path}: version {VERSION}, {len(golden.entries)} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
