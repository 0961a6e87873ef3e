"""The published claims beside what was measured here, and a verdict by a rule that is stated.

A figure of pythia-2.8b's perplexity can be checked with its weights only, a time in milliseconds on
an A800 only. A speedup needs the shape on a GPU, whatever its weights; a claim about what helps and
what hurts can be put to any model.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

from streamcache.measure.records import Policy, Record
from streamcache.report import published
from streamcache.report.collect import Group, Measured
from streamcache.report.published import Range
from streamcache.report.tables import METHODS, Table, increase, percent, span
from streamcache.report.terminal import DASH, number

SHAPE = "pythia-2.8b"
NEEDS_WEIGHTS = "cannot be tested here: needs Pythia's weights; ready, not run"
READY = "streamcache paper --model-name EleutherAI/pythia-2.8b"
NEEDS_A800 = "cannot be tested here: needs an A800"
NOT_RUN = "not run"
TOLERANCE = 0.1  # of a speedup
PERCENT = 0.005  # of a PPL increase: half a percentage point
BREAKS, HELPS = 0.05, -0.01  # PPL relative to the other: by how much a claim must show
GAIN = -0.001  # PPL relative to the same total undivided: what would be worth it
FASTER = 1.03  # TPOT over TPOT


@dataclass(frozen=True)
class Finding:
    """What was measured about a claim."""

    measured: str
    on: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """What was published, and how it is put to the test."""

    text: str
    published: str
    test: Callable[["Evidence"], Finding | None]


@dataclass(frozen=True)
class Evidence:
    """The records of all groups, looked through in order of what they prove."""

    groups: list[Group] = field(default_factory=list)

    def quality(self, corpus: str) -> Group | None:
        """The group to take PPL from: Pythia's weights first, then most positions compared."""
        found = [
            group
            for group in self.groups
            if group.first.subject.text.startswith(corpus)
            and any(row.record.quality for row in group.rows)
        ]
        return max(
            found,
            key=lambda group: (
                SHAPE in group.first.subject.model,
                max(row.record.quality.n_compared for row in group.rows if row.record.quality),
                group.first.subject.n_tokens,
            ),
            default=None,
        )

    def speed(self, *names: str) -> tuple[Measured, ...] | None:
        """Timed records of all the names, from one group: the shape first, then a GPU."""
        found = []
        for group in self.groups:
            rows = [group.get(name) for name in names]
            timed = tuple(row for row in rows if row and row.record.speed)
            if len(timed) == len(names):
                found.append(timed)
        return max(
            found, key=lambda rows: (shape(rows[0].record), gpu(rows[0].record)), default=None
        )

    def noise(self, row: Measured) -> float:
        """How far apart the speedups of one configuration are that is measured under two names."""
        group = next(group for group in self.groups if row in group.rows)
        speedups: dict[object, list[float]] = defaultdict(list)
        for record in (row.record for row in group.rows):
            if record.speed and record.speed.speedup:
                speedups[record.mode, record.policy].append(record.speed.speedup)
        return max((max(twins) / min(twins) - 1 for twins in speedups.values()), default=0.0)

    def quantised(self, how: str, name: str) -> tuple[Measured, Measured] | None:
        """Timed records of a configuration, with the weights as they came and quantised."""
        rows = [row for group in self.groups if (row := group.get(name)) and row.record.speed]
        found = []
        for plain, row in product(rows, rows):
            same = _timed(plain.record) == _timed(row.record)
            if same and row.record.subject.dtype == f"{plain.record.subject.dtype} {how}":
                found.append((plain, row))
        return max(
            found, key=lambda rows: (shape(rows[0].record), gpu(rows[0].record)), default=None
        )


def _timed(record: Record) -> tuple[str | None, str]:
    return record.speed.model if record.speed else None, record.environment.device


def shape(record: Record) -> bool:
    """Whether what was timed has the published model's shape."""
    return record.speed is not None and SHAPE in record.speed.model


def gpu(record: Record) -> bool:
    return not record.environment.device.startswith("cpu")


def claims() -> list[Claim]:
    rows: list[Claim] = []
    for name in ("mit", "best", "quality"):
        figures = published.PG19[name]
        rows.append(Claim(f"{_title(name)}: speedup", f"{span(figures.speedup)}×", _speedup(name)))
        rows.append(
            Claim(f"{_title(name)}: PPL", percent(figures.increase), _increase(name, "pg19"))
        )
    times = [
        f"{name} {span(published.PG19[name].tpot_ms)}"
        for name in ("baseline", "mit", "best", "quality")
    ]
    rows.append(Claim("TPOT, ms", ", ".join(times), _times))
    wikitext = published.WIKITEXT["mit"]
    rows.append(
        Claim("WikiText, MIT: PPL", percent(wikitext.increase), _increase("mit", "wikitext"))
    )
    cells = [f"{cell} {percent(published.PG19[f'softlite-{cell}'].increase)}" for cell in _CELLS]
    rows += [
        Claim(
            "Lazy Pruning is faster than pruning at every token",
            "R = 4 6.62×, R = 16 7.09×",
            _faster("lazy-R1", "lazy-R16"),
        ),
        Claim(
            "Ours (Best) is faster than MIT StreamingLLM",
            "14.1 ms, 14.6 ms",
            _faster("mit", "best"),
        ),
        Claim(f"R ≥ 128 breaks PPL (here: {BREAKS:.0%} or more over R = 1)", "yes", _breaks),
        Claim(
            f"S = 32 or 64 beats S = 4 by far (here: by {-HELPS:.0%} of PPL or more)", "yes", _sinks
        ),
        Claim("slack and max_drop only help together", ", ".join(cells), _together),
        Claim(
            "torch.compile, CUDA graphs and a static cache bring nothing",
            "yes",
            _faster("ours-standard", "captured", negative=True),
        ),
        Claim("Refresh fails, as published (tail)", "yes", _set_aside("refresh-tail-")),
        Claim("Refresh fails, in stream order (middle)", "yes", _set_aside("refresh-middle-")),
        Claim("Overlap fails", "yes", _set_aside("overlap-")),
        Claim("INT8 weights bring nothing (eager)", "yes", _quantised("int8", "fast")),
        Claim("INT8 weights bring nothing (captured)", "yes", _quantised("int8", "captured")),
    ]
    return rows


def table(groups: list[Group]) -> Table:
    """A row per claim."""
    evidence = Evidence(groups)
    rows = []
    for claim in claims():
        found = claim.test(evidence) or Finding(DASH, DASH, NOT_RUN)
        rows.append((claim.text, claim.published, found.measured, found.on, found.verdict))
    notes = (
        f"published on {published.ON}",
        f"a speedup counts as reproduced within {TOLERANCE:.0%} of the published range, a PPL "
        f"increase within {100 * PERCENT:g} percentage points, a faster configuration from "
        f"{FASTER - 1:.0%} on, or from more than one configuration timed twice is apart",
        f"entries put to another use fail where PPL is not at least {-GAIN:.1%} below that of the "
        "same total undivided",
        f"Pythia's weights: `{READY}`",
        "the ablations have one total budget each; their PPLs are over the positions in common",
    )
    header = ("claim", "published", "measured here", "on", "verdict")
    return Table("Audit", header, tuple(rows), notes, prose=True)


def _title(name: str) -> str:
    return METHODS.get(name, name)


def _verdict(holds: bool) -> str:
    return "reproduced" if holds else "not reproduced"


def _within(value: float, values: Range, slack: float) -> bool:
    return values[0] - slack <= value <= values[1] + slack


def _on(record: Record, text: bool = True) -> str:
    if not text and record.speed:
        return f"{record.speed.model} {record.subject.dtype}, {record.environment.device}"
    subject = record.subject
    place = f"{subject.model} {subject.dtype}, {record.environment.device}"
    return f"{place}: {subject.text}, {subject.n_tokens:,} tokens"


def _speedup(name: str) -> Callable[[Evidence], Finding | None]:
    def test(evidence: Evidence) -> Finding | None:
        rows = evidence.speed(name)
        if not rows:
            return None
        record = rows[0].record
        speed, figures = record.speed, published.PG19[name].speedup
        if not speed or not speed.speedup or not figures:
            return None
        verdict = "cannot be tested here: needs the shape on a GPU"
        if shape(record) and gpu(record):
            slack = TOLERANCE * figures[1]
            verdict = _verdict(_within(speed.speedup, figures, slack))
        return Finding(f"{number(speed.speedup)}×", _on(record, text=False), verdict)

    return test


def _increase(name: str, corpus: str) -> Callable[[Evidence], Finding | None]:
    def test(evidence: Evidence) -> Finding | None:
        group = evidence.quality(corpus)
        row = group.get(name) if group else None
        quality = row.record.quality if row else None
        if not row or not quality or quality.ppl_increase is None:
            return None
        value = quality.ppl_increase
        verdict = NEEDS_WEIGHTS
        printed = published.of(corpus, name).increase
        if SHAPE in row.record.subject.model and printed:
            verdict = _verdict(_within(value, printed, PERCENT))
        measured = f"{increase(quality)} at {quality.n_compared:,} positions"
        return Finding(measured, _on(row.record), verdict)

    return test


def _times(evidence: Evidence) -> Finding | None:
    rows = evidence.speed("baseline", "mit", "best", "quality")
    if not rows:
        return None
    times = [
        f"{row.name} {number(row.record.speed.tpot_mean_ms)}" for row in rows if row.record.speed
    ]
    verdict = NEEDS_A800
    if "A800" in rows[0].record.environment.device and shape(rows[0].record):
        near = [
            _within(row.record.speed.tpot_mean_ms, printed, TOLERANCE * printed[1])
            for row in rows
            if row.record.speed and (printed := published.PG19[row.name].tpot_ms)
        ]
        verdict = _verdict(all(near))
    return Finding(", ".join(times), _on(rows[0].record, text=False), verdict)


def _faster(slow: str, fast: str, negative: bool = False) -> Callable[[Evidence], Finding | None]:
    """Whether one is faster than the other beyond noise; or, `negative`, whether it fails to be.

    Speedups are compared, each over the baseline that was timed in turns with it: what slows the
    machine down for a while slows both.
    """

    def test(evidence: Evidence) -> Finding | None:
        if not (rows := evidence.speed(slow, fast)):
            return None
        first, second = (row.record.speed for row in rows)
        if not first or not second or not first.speedup or not second.speedup:
            return None
        noise = evidence.noise(rows[0])
        measured = ", ".join(
            f"{_title(name)} {number(speed.tpot_mean_ms)} ms ({number(speed.speedup)}×)"
            for name, speed in ((slow, first), (fast, second))
        )
        if noise >= FASTER - 1:
            measured += f"; one configuration timed twice is {noise:.0%} apart"
        faster = second.speedup / first.speedup >= max(FASTER, 1 + noise)
        return Finding(measured, _on(rows[0].record, text=False), _verdict(faster is not negative))

    return test


def _quantised(how: str, name: str) -> Callable[[Evidence], Finding | None]:
    def test(evidence: Evidence) -> Finding | None:
        rows = evidence.quantised(how, name)
        if not rows:
            return None
        first, second = (row.record.speed.tpot_mean_ms for row in rows if row.record.speed)
        plain = rows[0].record
        measured = f"{plain.subject.dtype} {number(first)} ms, {how} {number(second)} ms"
        return Finding(measured, _on(plain, text=False), _verdict(first / second < FASTER))

    return test


def _set_aside(prefix: str) -> Callable[[Evidence], Finding | None]:
    """Whether entries put to another use than the window bring nothing at the same total.

    The configurations are called by their use and the entries it takes: "refresh-tail-64 S=4 …".
    """

    def test(evidence: Evidence) -> Finding | None:
        for group in sorted(evidence.groups, key=lambda g: -g.first.subject.n_tokens):
            changes = {}
            for row in group.rows:
                name, quality = row.record.configuration, row.record.quality
                if name.startswith(prefix) and quality:
                    n = int(name.removeprefix(prefix).split()[0])
                    total = row.record.policy.capacity + n
                    if plain := _undivided(group, row.record, total):
                        changes[total, n] = quality.ppl / plain - 1
            if changes:
                each = (f"{n} of {total} entries {percent(c)}" for (total, n), c in changes.items())
                verdict = _verdict(min(changes.values()) > GAIN)
                return Finding(f"PPL {', '.join(each)}", _on(group.first), verdict)
        return None

    return test


def _undivided(group: Group, other: Record, total: int) -> float | None:
    """PPL of the same policy with the whole of a budget for its window."""
    for row in group.rows:
        policy, quality = row.record.policy, row.record.quality
        same = _beside_window(policy) == _beside_window(other.policy)
        whole = quality is not None and quality.n_positions == row.record.subject.n_tokens - 1
        divided = row.name.startswith(("refresh-", "overlap-"))
        if same and whole and quality and policy.capacity == total and not divided:
            return quality.ppl
    return None


def _beside_window(p: Policy) -> tuple[int, int, int, int | None]:
    return p.n_sink, p.compress_every, p.capacity - p.n_sink - p.window_size, p.max_drop


def _common(evidence: Evidence, *names: str) -> tuple[list[float], Record] | None:
    """PPLs of configurations on PG19 over the positions in common, and one of the records.

    None where one is missing, or their totals are not one: sizes would be compared with it.
    """
    group = evidence.quality("pg19")
    if group is None:
        return None
    common = group.common()
    rows = [next((row for row in group.starting(name) if row.name == name), None) for name in names]
    values = [common.get(row.record.configuration) if row else None for row in rows]
    totals = {row.record.policy.capacity for row in rows if row}
    if any(value is None for value in values) or len(totals) > 1:
        return None
    return [value for value in values if value is not None], group.first


def _breaks(evidence: Evidence) -> Finding | None:
    if not (found := _common(evidence, "lazy-R1", "lazy-R128")):
        return None
    (every, rarely), record = found
    change = rarely / every - 1
    measured = f"R = 128 {percent(change)} over R = 1"
    return Finding(measured, _on(record), _verdict(change >= BREAKS))


def _sinks(evidence: Evidence) -> Finding | None:
    if not (found := _common(evidence, "sink-4", "sink-32", "sink-64")):
        return None
    (few, *many), record = found
    changes = [value / few - 1 for value in many]
    measured = ", ".join(f"S = {n} {percent(c)}" for n, c in zip((32, 64), changes))
    return Finding(f"{measured} over S = 4", _on(record), _verdict(min(changes) <= HELPS))


_CELLS = ("none", "slack", "maxdrop", "full")


def _together(evidence: Evidence) -> Finding | None:
    if not (found := _common(evidence, *(f"softlite-{cell}" for cell in _CELLS))):
        return None
    (none, *others), record = found
    changes = [value / none - 1 for value in others]
    measured = ", ".join(f"{cell} {percent(c)}" for cell, c in zip(_CELLS[1:], changes))
    holds = changes[2] <= HELPS and min(changes[:2]) > HELPS
    return Finding(f"{measured} over none", _on(record), _verdict(holds))
