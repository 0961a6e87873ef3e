"""Two trees measured alternately on one machine: verdicts without a golden.

A round is a fresh process of each tree. Figures are those of the first round, judged as against a
golden. Times are compared round by round: what differs from process to process, memory layout and
other work on the machine, shows in the spread of the rounds.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from streamcache.gate.environment import differences
from streamcache.gate.figures import check_figures
from streamcache.gate.goldens import MIN_MEAN_TAU, MIN_TAU, Entry
from streamcache.gate.samples import Process, Sample
from streamcache.gate.stats import MIN_PAIRS, error_of_median, percent
from streamcache.gate.times import MAX_GAIN, MIN_NOISE, ratio
from streamcache.gate.verdicts import Status, Verdict, as_warning
from streamcache.measure.pairs import log_ratios
from streamcache.measure.student import student_t

MIN_ROUNDS = 3
BASELINE_TAU = math.log(1.10)  # of the baseline's own time
CHECKS = ("speed", "mean", "baseline")
MAX_SCATTER = 4.0  # of deviations of 8 rounds; chance gives more once in 1,000 times


class Round(NamedTuple):
    """A fresh process of the base and one of this tree, one after the other."""

    base: Process
    new: Process


def compare(
    rounds: Sequence[Round], required: bool = False, noise: Mapping[str, float] | None = None
) -> list[Verdict]:
    """All verdicts on what either tree measured.

    Args:
        required: whether a benchmark of the base that this tree does not measure is missing.
        noise: deviations between runs that are known otherwise, by benchmark.
    """
    noise = noise or {}
    base = {sample.name: sample for sample in rounds[0].base.samples}
    new = {sample.name: sample for sample in rounds[0].new.samples}
    broken, failed = ({name for r in rounds for name in tree(r).failed} for tree in (_new, _base))
    verdicts = [_failed(name) for name in sorted(broken - failed)]
    for name in sorted((base.keys() | new.keys()) - broken - failed):
        if name not in base:
            cause = "new here: there is nothing to compare it with"
            verdicts.append(Verdict(name, "benchmark", Status.INCONCLUSIVE, cause=cause))
        elif name not in new:
            status = Status.MISSING if required else Status.INCONCLUSIVE
            cause = "the base measures it, and this tree does not"
            verdicts.append(Verdict(name, "benchmark", status, cause=cause))
        elif differs := differences(new[name].identity, base[name].identity):
            cause = f"not what the base measures: {differs}"
            verdicts.append(Verdict(name, "identity", Status.INVALID, cause=cause))
        elif differs := differences(
            rounds[0].new.environment.machine, rounds[0].base.environment.machine
        ):
            cause = f"not measured as the base is: {differs}"
            verdicts.append(Verdict(name, "identity", Status.INVALID, cause=cause))
        else:
            golden = Entry(metrics=base[name].metrics, equal=base[name].equal)
            times = compare_times(name, rounds, noise.get(name, 0.0))
            verdicts += [*check_figures(new[name], golden), *times]
    return verdicts


def softened(verdicts: Iterable[Verdict], process: Process) -> list[Verdict]:
    """The verdicts, but what tests ask to be warned of only fails nothing."""
    names = {sample.name for sample in process.samples if sample.warn_only}
    return [as_warning(v) if v.name in names else v for v in verdicts]


def _base(pair: Round) -> Process:
    return pair.base


def _new(pair: Round) -> Process:
    return pair.new


def _failed(name: str) -> Verdict:
    cause = "the test fails here, and not at the base"
    return Verdict(name, "test", Status.FAIL, cause=cause)


def undecided(verdicts: Iterable[Verdict]) -> list[str]:
    """Benchmarks whose times need more rounds: what may be a failure or only noise, losses that
    chance still explains, and times that were disturbed."""
    open_ = (Status.FAIL, Status.INCONCLUSIVE, Status.INVALID)
    times = filter(_of_times, verdicts)
    return sorted({v.name for v in times if v.status in open_ or _shows_loss(v)})


def _of_times(verdict: Verdict) -> bool:
    """Whether more rounds may change it."""
    disturbed = verdict.check == "speed" and verdict.status in (Status.FAIL, Status.INVALID)
    return verdict.margin is not None or disturbed


def confirmed(
    verdicts: Iterable[Verdict],
    rounds: Sequence[Round],
    more: Sequence[Round],
    noise: Mapping[str, float] | None = None,
) -> list[Verdict]:
    """Verdicts after more rounds of what was `undecided`.

    A failure is one where all rounds together show the loss, and the new ones by themselves have it
    on average. A loss that both have on average is no pass, however far the times scatter: it is
    INVALID, or a failure where this tree alone scatters.
    """
    noise = noise or {}
    verdicts = list(verdicts)
    first = {(v.name, v.check): v for v in verdicts}
    names = undecided(verdicts)
    kept = [v for v in verdicts if v.name not in names or not _of_times(v)]
    for name in names:
        known = noise.get(name, 0.0)
        again = {v.check: v for v in compare_times(name, more, known)}
        for verdict in compare_times(name, [*rounds, *more], known):
            parts = first.get((name, verdict.check)), again.get(verdict.check)
            scatter = _scatter(name, verdict.check, [*rounds, *more])
            kept.append(_confirmed(verdict, *parts, scatter))
    return kept


def _confirmed(
    verdict: Verdict, first: Verdict | None, second: Verdict | None, scatter: float
) -> Verdict:
    if second is None or second.loss is None or not _shows_loss(second):
        if verdict.status is not Status.FAIL or second is None or second.loss is None:
            return verdict
        cause = f"{verdict.cause}; further rounds do not agree: {second.now}"
        return msgspec.structs.replace(verdict, status=Status.SUSPECT, cause=cause)
    if verdict.status is Status.INCONCLUSIVE and first is not None and _shows_loss(first):
        cause = f"{verdict.cause}, and slower on average, in the first rounds and in further ones"
        if scatter > MAX_SCATTER:
            cause = f"{cause}; it scatters {scatter:.0f} x as much as the base"
            return msgspec.structs.replace(verdict, status=Status.FAIL, cause=cause)
        return msgspec.structs.replace(verdict, status=Status.INVALID, cause=cause)
    return verdict


def _scatter(name: str, check: str, rounds: Sequence[Round]) -> float:
    """How much more this tree's figure differs from round to round than the base's."""
    found = [(_sample(r.base, name), _sample(r.new, name)) for r in rounds]
    both = [(b, n) for b, n in found if b and n and b.gated_pairs and n.gated_pairs]
    if check not in CHECKS or len(both) < 2 * MIN_ROUNDS:
        return 1.0
    base, new = (statistics.stdev(_figure(check, s) for s in side) for side in zip(*both))
    return new / base if base else math.inf if new else 1.0


def _shows_loss(verdict: Verdict) -> bool:
    """Whether it is a loss that counts, chance left aside."""
    if verdict.loss is None or verdict.tau is None:
        return False
    return verdict.loss > ratio(verdict.tau) - 1


def compare_times(name: str, rounds: Sequence[Round], noise: float = 0.0) -> list[Verdict]:
    """The times of one benchmark over the rounds that measured it undisturbed."""
    found = [(_sample(r.base, name), _sample(r.new, name), r) for r in rounds]
    both = [(base, new, r) for base, new, r in found if base and new]
    timed = [(base, new, r) for base, new, r in both if base.pairs or new.pairs]
    if not timed:
        return []
    samples = [sample for base, new, _ in timed for sample in (base, new)]
    if not all(sample.pairs for sample in samples):
        cause = "one of the two trees has no times"
        return [Verdict(name, "speed", Status.MISSING, cause=cause)]
    if len({sample.host_bound for sample in samples}) > 1:
        cause = "host times and device times do not compare"
        return [Verdict(name, "identity", Status.INVALID, cause=cause)]
    if not all(math.isfinite(log) for sample in samples for log in log_ratios(sample.gated_pairs)):
        return [Verdict(name, "times", Status.FAIL, cause="a time is zero or not a number")]
    if min(len(sample.gated_pairs) for sample in samples) < MIN_PAIRS:
        cause = f"too few pairs of times, {MIN_PAIRS} are needed"
        return [Verdict(name, "speed", Status.INVALID, cause=cause)]
    disturbed = [(_disturbed(r.base, base), _disturbed(r.new, new)) for base, new, r in timed]
    calm = [(base, new) for (base, new, _), why in zip(timed, disturbed) if not any(why)]
    if len(calm) < MIN_ROUNDS:
        of_base, of_new = zip(*disturbed)
        why = "; ".join(dict.fromkeys(w for both in disturbed for w in both if w))
        if len(timed) >= MIN_ROUNDS and all(of_new) and not any(of_base):
            cause = f"in each round, and never at the base: {why}"
            return [Verdict(name, "speed", Status.FAIL, cause=cause)]
        cause = (
            f"{len(calm)} rounds undisturbed, {MIN_ROUNDS} are needed: {why or 'too few rounds'}"
        )
        return [Verdict(name, "speed", Status.INVALID, cause=cause)]
    own = min(_tau(sample) for sample in samples)  # of both, so that none is loosened unseen
    taus = {
        "speed": own,
        "mean": max(own, MIN_MEAN_TAU),  # rare slow blocks move it, but not the median
        "baseline": max(own, BASELINE_TAU),
    }
    if _is_plain(samples[0]):
        del taus["baseline"]
    return [_check(name, check, tau, calm, noise) for check, tau in taus.items()]


def _is_plain(sample: Sample) -> bool:
    """Whether a second stands in place of a baseline."""
    return all(b == 1.0 for _, b in sample.gated_pairs)


def _disturbed(process: Process, sample: Sample) -> str:
    """Why the times of a process mean nothing; empty where nothing is known."""
    return "; ".join(filter(None, [*process.environment.problems, sample.disturbed]))


def _tau(sample: Sample) -> float:
    return math.log1p(sample.tau) or MIN_TAU


def _sample(process: Process, name: str) -> Sample | None:
    return next((s for s in process.samples if s.name == name), None)


def _figure(check: str, sample: Sample) -> float:
    """What a check compares, as a log."""
    if check == "speed":
        return sample.median_log_ratio
    if check == "baseline":
        return math.log(statistics.median(b for _, b in sample.gated_pairs))
    return sample.mean_log_ratio


def changes(rounds: Sequence[Round]) -> dict[str, list[float]]:
    """By benchmark and check, the log of this tree's figure over the base's, round by round."""
    found: dict[str, list[float]] = {}
    for base, new in rounds:
        for sample in new.samples:
            before = _sample(base, sample.name)
            if before is None or not (before.gated_pairs and sample.gated_pairs):
                continue
            if not all(map(math.isfinite, (*before.log_ratios, *sample.log_ratios))):
                continue
            for check in CHECKS:
                change = _figure(check, sample) - _figure(check, before)
                found.setdefault(f"{sample.name} {check}", []).append(change)
    return found


def _check(
    name: str, check: str, tau: float, calm: list[tuple[Sample, Sample]], noise: float
) -> Verdict:
    base = [_figure(check, b) for b, _ in calm]
    new = [_figure(check, n) for _, n in calm]
    changes = [n - b for b, n in zip(base, new)]
    # Few rounds may agree by chance: their spread is at least what the pairs show by themselves.
    own = [
        math.hypot(error_of_median(b.log_ratios), error_of_median(n.log_ratios)) for b, n in calm
    ]
    spread = max(statistics.stdev(changes), statistics.fmean(own), math.sqrt(2) * noise)
    margin = student_t(0.95, len(changes) - 1) * spread / math.sqrt(len(changes))
    estimate = statistics.fmean(changes)
    unit = _milliseconds if check == "baseline" or _is_plain(calm[0][0]) else _speedup
    shown: dict[str, Any] = {
        "now": unit(statistics.fmean(new)),
        "golden": unit(statistics.fmean(base)),
        "loss": ratio(estimate) - 1,
        "margin": margin,
        "tau": tau,
    }
    if estimate - margin > tau:
        slower = "slower" if check == "speed" else f"{check} slower"
        cause = f"{slower} by {percent(estimate):.1f} ± {percent(margin):.1f} %"
        return Verdict(name, check, Status.FAIL, cause=cause, **shown)
    if check != "mean" and estimate + margin < -max(MAX_GAIN, tau):
        faster = "" if check == "speed" else f"{check} "
        cause = f"{faster}{ratio(-estimate):.1f} x as fast: does it still do its work?"
        return Verdict(name, check, Status.FAIL, cause=cause, **shown)
    if check == "speed" and estimate + margin < -tau:
        cause = f"faster by {-percent(estimate):.1f} %"
        return Verdict(name, check, Status.IMPROVED, cause=cause, **shown)
    if margin > max(tau, MIN_NOISE):
        cause = f"too noisy: the bound is {percent(margin):.0f} % wide"
        return Verdict(name, check, Status.INCONCLUSIVE, cause=cause, **shown)
    return Verdict(name, check, Status.PASS, **shown)


def _speedup(log: float) -> str:
    return f"{ratio(-log):.3f}x"


def _milliseconds(log: float) -> str:
    return f"{1e3 * ratio(log):.4g} ms"
