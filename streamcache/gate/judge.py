"""From samples and goldens to verdicts: pure functions.

Accuracy metrics are deterministic: one has moved or it has not, and is never tried again. Times are
not: a loss counts when even its lower 95 % bound exceeds the threshold, and is a failure only when
a fresh process agrees. `confirmed` is that rule.
"""

from collections.abc import Iterable

import msgspec

from streamcache.gate.environment import Environment, differences
from streamcache.gate.figures import check_figures
from streamcache.gate.goldens import Golden
from streamcache.gate.samples import Process, Sample
from streamcache.gate.times import check_times, ratio
from streamcache.gate.validation import validation_error
from streamcache.gate.verdicts import Status, Verdict


def judge(
    sample: Sample, golden: Golden, environment: Environment, again: Process | None = None
) -> list[Verdict]:
    """All verdicts on a benchmark.

    Args:
        again: what a fresh process measured, where `needs_confirmation` asked for it.
    """
    if wrong := _incomparable(sample, golden, environment):
        return [wrong]
    entry = golden.entries[sample.name]
    times = check_times(sample, entry, golden, environment)
    fresh = None if again is None else _fresh_times(sample.name, golden, again)
    return [*check_figures(sample, entry), *(confirmed(verdict, fresh) for verdict in times)]


def needs_confirmation(sample: Sample, golden: Golden, environment: Environment) -> bool:
    """Whether a fresh process must measure again: for what may be a failure, or only noise."""
    verdicts = judge(sample, golden, environment)
    noise = [v for v in verdicts if v.status is Status.INCONCLUSIVE and v.loss is not None]
    return bool(noise) or any(v.status is Status.SUSPECT for v in verdicts)


def missing(golden: Golden, measured: Iterable[str]) -> list[Verdict]:
    """Goldens whose benchmark was not measured."""
    cause = "the golden has it, but it was not measured"
    names = sorted(golden.entries.keys() - set(measured))
    return [Verdict(name, "benchmark", Status.MISSING, cause=cause) for name in names]


def _incomparable(sample: Sample, golden: Golden, environment: Environment) -> Verdict | None:
    """Why a sample cannot be compared with the golden at all; None where it can be."""
    name, entry = sample.name, golden.entries.get(sample.name)
    facts = environment.machine
    if golden.is_published:
        facts = {key: value for key, value in facts.items() if key in golden.machine}
    if differs := differences(facts, golden.machine):
        return Verdict(name, "machine", Status.INVALID, cause=f"another machine: {differs}")
    if entry is None and golden.is_published:
        cause = "measured, but nothing was published of it"
        return Verdict(name, "golden", Status.INCONCLUSIVE, cause=cause)
    if entry is None:
        return Verdict(name, "golden", Status.MISSING, cause="measured, but no golden has it")
    if wrong := validation_error(entry):
        return Verdict(name, "golden", Status.FAIL, cause=f"the golden cannot judge: {wrong}")
    fields = sample.identity
    if entry.published:
        fields = {k: v for k, v in fields.items() if k in golden.published_fields}
    if differs := differences(fields, entry.identity):
        cause = f"not what the golden measured: {differs}"
        return Verdict(name, "identity", Status.INVALID, cause=cause)
    if sample.pairs and entry.log_ratios and sample.host_bound != entry.host_bound:
        cause = "host times and device times do not compare"
        return Verdict(name, "identity", Status.INVALID, cause=cause)
    return None


def _fresh_times(name: str, golden: Golden, again: Process) -> list[Verdict]:
    """What a fresh process says of the times."""
    repeated = next((s for s in again.samples if s.name == name), None)
    if repeated is None:
        cause = "; ".join(again.environment.problems) or "it did not measure this"
        return [Verdict(name, "speed", Status.INVALID, cause=cause)]
    if wrong := _incomparable(repeated, golden, again.environment):
        return [wrong]
    entry = golden.entries[name]
    disturbed = repeated.cpu_contended if entry.published_range else repeated.disturbed
    times = check_times(repeated, entry, golden, again.environment)
    return [invalid_if_contended(verdict, disturbed) for verdict in times]


def invalid_if_contended(verdict: Verdict, disturbed: str) -> Verdict:
    """A fresh process that was disturbed confirms no failure."""
    if verdict.status is not Status.FAIL or verdict.check == "times" or not disturbed:
        return verdict
    cause = f"{verdict.cause}, but {disturbed}"
    return msgspec.structs.replace(verdict, status=Status.INVALID, cause=cause)


def confirmed(first: Verdict, fresh: list[Verdict] | None) -> Verdict:
    """The verdict of two processes; of the first alone where no fresh one has measured (yet)."""
    if first.status is Status.FAIL and first.check != "times":
        return require_confirmation(first, fresh)
    if first.status is Status.INCONCLUSIVE and first.loss is not None and fresh is not None:
        return resolve_inconclusive(first, fresh)
    return first


def require_confirmation(first: Verdict, fresh: list[Verdict] | None) -> Verdict:
    """What is left of a failure when a fresh process has measured again.

    A failure that nothing can confirm is no pass: what keeps a machine from measuring twice is
    itself in need of repair.
    """
    same = next((v for v in fresh or [] if v.check == first.check), None)
    if fresh is None:
        status, cause = Status.SUSPECT, "to be confirmed"
    elif same and same.status is Status.FAIL:
        status, cause = Status.FAIL, f"a fresh process agrees: {same.cause}"
    elif same and same.status in (Status.PASS, Status.IMPROVED):
        status, cause = Status.SUSPECT, f"a fresh process does not agree: {same.now}"
    else:
        status, cause = Status.INVALID, f"a fresh process could not confirm: {_causes(fresh)}"
    return msgspec.structs.replace(first, status=status, cause=f"{first.cause}; {cause}")


def resolve_inconclusive(first: Verdict, fresh: list[Verdict]) -> Verdict:
    """A verdict that noise or a slower host hid, once measured again.

    A loss seen in the fresh process alone is a suspicion. One seen in both is no pass, however far
    the times scatter, and neither is what could not be measured again.
    """
    assert first.loss is not None and first.tau is not None
    same = next((v for v in fresh if v.check == first.check), None)
    if same and same.status is Status.IMPROVED and first.loss > first.tau:  # each denies the other
        return msgspec.structs.replace(same, status=Status.PASS, cause="")
    if same and same.status in (Status.PASS, Status.IMPROVED):
        return same
    if same and same.status is Status.FAIL and not _shows_loss(first):
        cause = f"{same.cause} in a fresh process; the first was {first.cause}"
        return msgspec.structs.replace(same, status=Status.SUSPECT, cause=cause)
    in_both = (
        same is not None and same.loss is not None and _shows_loss(first) and _shows_loss(same)
    )
    if same and same.status is Status.INCONCLUSIVE and not in_both:
        return first
    cause = f"{first.cause}; a fresh process could not clear it: {_causes(fresh)}"
    return msgspec.structs.replace(first, status=Status.INVALID, cause=cause)


def _shows_loss(verdict: Verdict) -> bool:
    """Whether its estimate is a loss that counts and that no host explains, chance left aside."""
    assert verdict.loss is not None and verdict.tau is not None
    return verdict.loss > ratio(verdict.tau + verdict.host) - 1


def _causes(verdicts: list[Verdict]) -> str:
    return "; ".join(v.cause for v in verdicts if v.cause)
