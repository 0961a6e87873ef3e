"""Commands on goldens and histories, without a run of pytest.

python -m streamcache.gate show GOLDEN
python -m streamcache.gate diff GOLDEN GOLDEN
python -m streamcache.gate check GOLDEN...
python -m streamcache.gate convert GOLDEN...
python -m streamcache.gate history FILE [--html FILE] [--export bencher|github|otava]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from streamcache.files import write_bytes
from streamcache.gate import convert, history, storage
from streamcache.gate.environment import differences
from streamcache.gate.goldens import Entry, Golden, GoldenError
from streamcache.gate.updates import shown


def main(arguments: Sequence[str] | None = None) -> int:
    """0 fine, 1 goldens that differ or are refused, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m streamcache.gate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("show", help="a golden, a line an entry").add_argument("golden", type=Path)
    diff = commands.add_parser("diff", help="what differs from the first golden to the second")
    diff.add_argument("golden", nargs=2, type=Path)
    check = commands.add_parser("check", help="whether goldens can judge")
    check.add_argument("golden", nargs="+", type=Path)
    old = commands.add_parser("convert", help="goldens of version 1 to version 2")
    old.add_argument("golden", nargs="+")
    past = commands.add_parser("history", help="trends and change points of --golden-history")
    past.add_argument("file", type=Path)
    past.add_argument("--html", type=Path, help="write a page")
    past.add_argument("--export", choices=["bencher", "github", "otava"], help="for other tools")
    options = parser.parse_args(arguments)
    try:
        if options.command == "show":
            return _print(described(storage.read(options.golden)))
        if options.command == "diff":
            found = compared(*map(storage.read, options.golden))
            return _print(found or ["no difference"]) or int(bool(found))
        if options.command == "check":
            return _check(options.golden)
        if options.command == "convert":
            return convert.main(options.golden)
        return _history(options.file, options.html, options.export)
    except (GoldenError, history.HistoryError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1


def _print(lines: Sequence[str]) -> int:
    print("\n".join(lines))
    return 0


def described(golden: Golden) -> list[str]:
    """A golden in words."""
    made = golden.provenance
    facts = {**golden.machine, **golden.host}
    lines = [
        f"{len(golden.entries)} entries, {made.date[:10]} from {made.processes} processes "
        f"at {made.commit[:9] or '?'}: {made.reason}",
        ", ".join(f"{key} {value}" for key, value in facts.items()),
    ]
    for name, entry in golden.entries.items():
        identity = ", ".join(f"{key} {value}" for key, value in entry.identity.items())
        lines.append(f"{name}: {shown(entry) or 'counts'} ({identity})")
    return lines


def compared(old: Golden, new: Golden) -> list[str]:
    """What differs from one golden to another, a line each."""
    lines = []
    for what in ("machine", "host"):
        if differs := differences(getattr(new, what), getattr(old, what)):
            lines.append(f"{what}: {differs}")
    for name in sorted(old.entries.keys() | new.entries.keys()):
        before, now = old.entries.get(name), new.entries.get(name)
        if before is None and now is not None:
            lines.append(f"+ {name}: {shown(now)}")
        elif now is None and before is not None:
            lines.append(f"- {name}: {shown(before)}")
        elif before is not None and now is not None and before != now:
            lines.append(f"~ {name}: {_change(before, now)}")
    return lines


def _change(before: Entry, now: Entry) -> str:
    parts = [differences(now.identity, before.identity), differences(now.equal, before.equal)]
    if shown(before) != shown(now):
        parts.append(f"{shown(before)} -> {shown(now)}")
    if before.anchor != now.anchor:
        parts.append(f"anchor {before.anchor} -> {now.anchor}")
    for key, metric in now.metrics.items():
        if key in before.metrics and before.metrics[key].limits != metric.limits:
            parts.append(f"the limits of {key}")
    return "; ".join(part for part in parts if part) or "recorded again"


def _check(paths: Sequence[Path]) -> int:
    refused = 0
    for path in paths:
        try:
            golden = storage.read(path)
        except GoldenError as error:
            refused += 1
            print(f"ERROR: {error}")
        else:
            print(f"{path}: {len(golden.entries)} entries can judge")
    return int(bool(refused))


def _history(path: Path, html: Path | None, export: str | None) -> int:
    found = history.read(path)
    if export:
        print(history.exported(found, export), end="")
        return 0
    if html:
        write_bytes(html, history.page(found).encode())
    return _print(history.report(found))


if __name__ == "__main__":
    sys.exit(main())
