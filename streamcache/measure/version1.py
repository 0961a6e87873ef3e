"""Files of version 1, which the release before wrote, under the names of this version.

They have no checksums, so damage cannot be detected; each says so in its notes. Of baselines see
`version1_baseline`.
"""

import re
from typing import Any

import msgspec

from streamcache.caches.kinds import MODES
from streamcache.measure.checked import RecordError
from streamcache.measure.diagnose import Diagnosis, Difference, EvictionEffect
from streamcache.measure.measurement import (
    Environment,
    Fields,
    Quality,
    Record,
    Sizes,
    Speed,
    WorkloadRecord,
)
from streamcache.measure.profile import EvictedEntries, Kernel, Operator, Part, Profile, StepProfile
from streamcache.measure.version1_baseline import SCHEMA, baseline_of
from streamcache.policy import Evictions

NOTE = "a file of schema version 1, which has no checksum: damage would not be seen"


class _Environment(msgspec.Struct, frozen=True):
    device: str
    torch: str
    transformers: str
    python: str
    streamcache: str
    threads: int

    def new(self) -> Environment:
        return Environment(cpu="", **msgspec.structs.asdict(self))


class _Subject(msgspec.Struct, frozen=True):
    model: str
    revision: str
    dtype: str  # "float16", or "float16 int8" with quantised weights
    text: str
    text_source: str
    text_digest: str
    n_tokens: int

    def new(self, timed: str | None = None) -> WorkloadRecord:
        fields = msgspec.structs.asdict(self) | {"dtype": self.dtype.split(" ")[0]}
        return WorkloadRecord(timed=timed or self.model, **fields)

    @property
    def weights(self) -> str:
        return self.dtype.partition(" ")[2]


class _Policy(msgspec.Struct, frozen=True):
    n_sink: int
    window_size: int
    cache_slack: int | None
    max_drop: int | None
    compress_every: int
    capacity: int

    def fields(self) -> Fields:
        found = {k: v for k, v in msgspec.structs.asdict(self).items() if v is not None}
        del found["capacity"]
        if self.compress_every == 1:
            del found["compress_every"]
        return found


class _Prunes(msgspec.Struct, frozen=True):
    scheduled: int
    forced: int
    evicted: int

    def new(self) -> Evictions:
        return Evictions(self.scheduled, self.forced, self.evicted)


class _Speed(msgspec.Struct, frozen=True):
    model: str
    tpot_mean_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    tpot_device_ms: float | None
    n_tokens: int
    speedup: float | None
    baseline_mean_ms: float | None

    def new(self) -> Speed:
        """Of the pairs there is only one, that of the means."""
        baseline_ms = self.baseline_mean_ms or self.tpot_mean_ms
        return Speed(
            tpot_mean_ms=self.tpot_mean_ms,
            tpot_p50_ms=self.tpot_p50_ms,
            tpot_p99_ms=self.tpot_p99_ms,
            tpot_device_ms=self.tpot_device_ms,
            n_tokens=self.n_tokens,
            baseline_ms=baseline_ms,
            speedup=baseline_ms / self.tpot_mean_ms,
            speedup_error=None,
            pairs=[(self.tpot_mean_ms / 1e3, baseline_ms / 1e3)],
        )


class _Record(msgspec.Struct, frozen=True, tag="streamcache-eval", tag_field="schema"):
    configuration: str
    mode: str
    policy: _Policy
    subject: _Subject
    environment: _Environment
    quality: Quality | None
    speed: _Speed | None
    prunes: _Prunes
    peak_memory_bytes: int
    notes: tuple[str, ...]

    def new(self) -> Record:
        policy, refresh = self.policy, re.match(r"refresh-(tail|middle)-(\d+) ", self.configuration)
        fields = _configuration(self.mode, policy, self.subject)
        n_refresh = 0
        if refresh is not None:
            n_refresh = int(refresh[2])
            fields["refresh"] = n_refresh
            fields |= {"refresh_at": "tail"} if refresh[1] == "tail" else {}
        floor = policy.n_sink + policy.window_size
        return Record(
            label=self.configuration,
            configuration=fields,
            sizes=Sizes(policy.n_sink, floor, policy.capacity, refresh=n_refresh),
            workload=self.subject.new(self.speed.model if self.speed else None),
            environment=self.environment.new(),
            quality=self.quality,
            speed=self.speed.new() if self.speed else None,
            evictions=self.prunes.new(),
            peak_memory_bytes=self.peak_memory_bytes,
            date="",
            notes=(*self.notes, NOTE),
            version=1,
        )


class _Diagnosis(msgspec.Struct, frozen=True, tag="streamcache-diagnosis", tag_field="schema"):
    configuration: str
    against: str
    subject: _Subject
    environment: _Environment
    prunes: _Prunes
    first_position: int
    difference: Difference
    spike: EvictionEffect
    control: EvictionEffect
    raw: EvictionEffect

    def new(self) -> Diagnosis:
        return Diagnosis(
            configuration=self.configuration,
            against=self.against,
            workload=self.subject.new(),
            environment=self.environment.new(),
            evictions=self.prunes.new(),
            first_position=self.first_position,
            difference=self.difference,
            effect=self.spike,
            control=self.control,
            raw=self.raw,
            notes=(NOTE,),
            version=1,
        )


class _Evicted(msgspec.Struct, frozen=True):
    prunes: int
    entries: int


class _Step(msgspec.Struct, frozen=True):
    n_tokens: int
    evicted: _Evicted
    step_ms: float
    profiled_ms: float
    outside_ms: float
    operators_per_token: float
    launches_per_token: float
    kernels_per_token: float
    device_ms: float
    device_busy: float
    eviction: Part
    forward: Part
    operators: tuple[Operator, ...]
    kernels: tuple[Kernel, ...]

    def new(self) -> StepProfile:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        evicted, python_ms = fields.pop("evicted"), fields.pop("outside_ms")
        entries = EvictedEntries(evicted.prunes, evicted.entries)
        return StepProfile(evicted=entries, python_ms=python_ms, **fields)


class _Profile(msgspec.Struct, frozen=True, tag="streamcache-profile", tag_field="schema"):
    configuration: str
    mode: str
    policy: _Policy
    subject: _Subject
    environment: _Environment
    measured: _Step

    def new(self) -> Profile:
        return Profile(
            label=self.configuration,
            configuration=_configuration(self.mode, self.policy, self.subject),
            workload=self.subject.new(),
            environment=self.environment.new(),
            step=self.measured.new(),
            version=1,
        )


def _configuration(mode: str, policy: _Policy, subject: _Subject) -> Fields:
    cache, engine = ("recompute", "eager") if mode == "recompute" else MODES[mode]
    fields: Fields = {"cache": cache, **policy.fields()}
    fields |= {"engine": engine} if engine != "eager" else {}
    return fields | ({"weights": subject.weights} if subject.weights else {})


_KINDS = {
    "streamcache-eval": _Record,
    "streamcache-diagnosis": _Diagnosis,
    "streamcache-profile": _Profile,
}


def is_version_1(content: dict[str, Any]) -> bool:
    """Whether an object of a JSON file is of version 1, intact or not."""
    return content.get("version") == 1 and content.get("schema") in [SCHEMA, *_KINDS]


def from_version_1(content: dict[str, Any]) -> Record | Diagnosis | Profile | None:
    """What a file of version 1 is in this version; None for a baseline, which is no row of a table.

    Raises:
        RecordError: it lacks a field, or one has another type.
    """
    if content["schema"] == SCHEMA:
        baseline_of(content)
        return None
    try:
        old: Any = msgspec.convert(content, _KINDS[content["schema"]])
        new: Record | Diagnosis | Profile = old.new()
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordError(f"damaged: {error}") from error
    except (KeyError, ValueError, ArithmeticError) as error:
        raise RecordError(f"damaged: no measurement has such values ({error})") from error
    return new
