"""One rendering of verdicts, for people: plain text, and Markdown for summaries and comments."""

from collections import Counter
from collections.abc import Sequence

from streamcache.gate.stats import percent
from streamcache.gate.verdicts import Status, Verdict, worst
from streamcache.plain import in_markdown, plain

_MARKS = {
    Status.PASS: "ok",
    Status.IMPROVED: "up",
    Status.INCONCLUSIVE: "??",
    Status.SUSPECT: "!?",
    Status.WARNING: "warn",
    Status.INVALID: "INVALID",
    Status.MISSING: "MISSING",
    Status.FAIL: "FAIL",
}


def headline(verdicts: Sequence[Verdict], n_failed: int = 0) -> str:
    """One line: the outcome, and how many checks had which status.

    Args:
        n_failed: tests that failed otherwise: they measured nothing, and the run is no pass.
    """
    if not verdicts and not n_failed:
        return "golden: NOTHING MEASURED"
    counts = Counter(v.status for v in verdicts)
    shown = [f"{counts[s]} {s.value}" for s in reversed(Status) if counts[s]]
    if n_failed:
        shown.insert(0, f"{n_failed} {'test' if n_failed == 1 else 'tests'} failed otherwise")
    outcome = Status.FAIL if n_failed else worst(verdicts)
    return f"golden: {outcome.value.upper()} ({', '.join(shown)})"


def rows(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """Failures first: status, benchmark, check, now, golden, loss, tau, cause.

    What passed and reads as the golden does is left out, except times.
    """
    kept = [v for v in verdicts if v.status is not Status.PASS or v.now != v.golden or v.tau]
    kept.sort(key=lambda v: (-v.status.severity, v.name, v.check))
    files = Counter(_short(name) for name in {v.name for v in verdicts})
    found = [
        (
            _MARKS[v.status],
            _short(v.name) if files[_short(v.name)] == 1 else v.name,
            v.check,
            v.now,
            v.golden,
            "" if v.loss is None else f"{100 * v.loss:+.1f} %" + _bound(v),
            "" if v.tau is None else f"{percent(v.tau):.1f} %",
            v.cause,
        )
        for v in kept
    ]
    return [tuple(plain(" ".join(cell.splitlines())) for cell in row) for row in found]


def _short(name: str) -> str:
    """The test without its file."""
    return name.partition("::")[2] or name


def _bound(verdict: Verdict) -> str:
    return "" if verdict.margin is None else f" ± {percent(verdict.margin):.1f}"


HEADER = ("", "benchmark", "check", "now", "golden", "loss", "tau", "cause")


def _header(base: str) -> tuple[str, ...]:
    return tuple(base if name == "golden" else name for name in HEADER)


def text(verdicts: Sequence[Verdict], base: str = "golden", n_failed: int = 0) -> list[str]:
    """A table in plain text, line by line; `base` names what is compared with."""
    table = [_header(base), *rows(verdicts)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER) - 1)]
    lines = []
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return [*lines, headline(verdicts, n_failed)]


def markdown(verdicts: Sequence[Verdict], notes: Sequence[str] = (), n_failed: int = 0) -> str:
    """The same for `$GITHUB_STEP_SUMMARY` and pull-request comments."""
    lines = [f"### {headline(verdicts, n_failed)}", ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    for row in rows(verdicts):
        lines.append("| " + " | ".join(map(in_markdown, row)) + " |")
    return "\n".join([*lines, "", *(f"- {in_markdown(note)}" for note in notes), ""])
