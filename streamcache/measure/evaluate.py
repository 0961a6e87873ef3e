"""From a configuration to a record: perplexity, speed, prunes, memory."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from streamcache.decoding.nll import Advance, require_finite
from streamcache.decoding.onepass import streaming_nll
from streamcache.decoding.recompute import recompute_step
from streamcache.inputs.corpora import TokenStream
from streamcache.inputs.models import LoadedModel
from streamcache.measure import records
from streamcache.measure.baseline import Baseline, Fingerprint
from streamcache.measure.configurations import Configuration
from streamcache.measure.memory import peak_memory_bytes
from streamcache.measure.records import Quality, Record, Speed
from streamcache.measure.timing import Laps, time_tokens
from streamcache.policy import EvictionPolicy, count_evictions

Method = Literal["one-pass", "sequential"]

_ROUNDS = 8  # in which configurations take turns, so that a drift of the machine hits all alike
_WARM_UP = 32  # tokens
_SETTLE = 4  # untimed tokens of each block: the first find the processor's caches full of another's


def subject(loaded: LoadedModel, text: TokenStream) -> records.Subject:
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    return records.Subject(
        model=loaded.name,
        revision=loaded.revision,
        dtype=" ".join([dtype, loaded.quantization] if loaded.quantization else [dtype]),
        text=text.name,
        text_source=text.source,
        text_digest=text.digest,
        n_tokens=text.input_ids.shape[0],
    )


def stream_nll(
    loaded: LoadedModel,
    text: TokenStream,
    configuration: Configuration,
    method: Method,
    advance: Advance | None = None,
) -> Tensor:
    """NLL of the stream under a configuration, float32 [T - 1] on the CPU."""
    ids = text.input_ids.to(loaded.model.device)
    if method == "one-pass":
        return streaming_nll(loaded.model, ids, configuration.policy, advance).cpu()
    return configuration.sequential_nll(loaded.model, ids, advance).cpu()


def quality(
    nll: Tensor, policy_floor: int, method: str, baseline: Baseline | None = None
) -> Quality:
    """Perplexities of a stream's NLL [T - 1], compared with a baseline where there is one."""
    steady = nll[policy_floor - 1 :]  # after token floor - 1 the cache is full for the first time
    compared, increase, error, n_compared = None, None, None, 0
    if baseline is not None:
        full = compared_at(baseline.fingerprint, policy_floor)
        if n_compared := int(full.sum()):
            mine = nll[baseline.fingerprint.positions()[full]].double()
            more = mine - torch.tensor(baseline.nll, dtype=torch.float64)[full]
            compared = ppl(mine)
            increase = math.exp(require_finite(more).mean()) - 1
            if n_compared > 1:
                error = float(math.exp(more.mean()) * more.std() / math.sqrt(n_compared))
    return Quality(
        method=method,
        ppl=ppl(nll),
        ppl_steady=ppl(steady) if len(steady) else None,
        n_positions=len(nll),
        n_steady=len(steady),
        ppl_compared=compared,
        ppl_increase=increase,
        n_compared=n_compared,
        ppl_increase_error=error,
    )


def compared_at(made_from: Fingerprint, policy_floor: int) -> Tensor:
    """Which of a baseline's positions a policy is compared at, where both windows are full."""
    return made_from.positions() >= max(policy_floor - 1, made_from.n_sink + made_from.window_size)


def baseline_quality(baseline: Baseline) -> Quality:
    """Perplexities of the baseline itself, over the positions it was evaluated at."""
    nll = torch.tensor(baseline.nll)
    floor = baseline.fingerprint.n_sink + baseline.fingerprint.window_size
    late = nll[baseline.fingerprint.positions() >= floor]
    steady = ppl(late) if len(late) else None
    return Quality(
        method="recompute",
        ppl=ppl(nll),
        ppl_steady=steady,
        n_positions=len(nll),
        n_steady=len(late),
        ppl_compared=steady,
        ppl_increase=0.0 if len(late) else None,
        n_compared=len(late),
    )


def ppl(nll: Tensor) -> float:
    """exp of the mean NLL.

    Raises:
        NotFiniteError: an NLL is no number.
    """
    return math.exp(require_finite(nll).double().mean())


def lap_times(
    loaded: LoadedModel,
    text: TokenStream,
    baseline: EvictionPolicy,
    configurations: Iterable[Configuration],
    n_tokens: int,
    baseline_runs: int,
    advance: Advance | None = None,
) -> dict[str, Laps]:
    """What each token took, by configuration and for "baseline", all in one run.

    The configurations take turns in blocks; the baseline is timed between the blocks. A text
    shorter than a cache is repeated: what a token costs does not depend on which token it is.
    Blocks are whole rounds of R, so that each has its share of the evictions.

    Args:
        baseline: its floor is the length of the baseline's context.
        n_tokens: timed tokens per configuration, at least.
        baseline_runs: timed forwards of the baseline.
        advance: called with 1 for each finished block.
    """
    model, device = loaded.model, loaded.model.device
    configurations = list(configurations)
    longest = max(c.policy.floor for c in [*configurations, Configuration("", baseline)])
    ids = text.input_ids.to(device)
    ids = ids.repeat(longest // ids.shape[0] + 1)
    recompute = recompute_step(model, ids, baseline.n_sink, baseline.window_size)
    streams = {c.name: c.step(model, ids) for c in configurations if c.mode}
    for configuration in configurations:
        if configuration.mode:  # a whole period: no length of the cache is new then
            n_warm = max(_WARM_UP, configuration.policy.compress_every)
            time_tokens(streams[configuration.name], n_warm, device)
    time_tokens(recompute, 2, device)
    blocks: dict[str, list[Laps]] = {name: [] for name in (*streams, "baseline")}
    for i in range(_ROUNDS):
        if due := _due(baseline_runs, i):
            blocks["baseline"].append(time_tokens(recompute, due, device))
        for configuration in configurations:
            if configuration.mode and _due(n_blocks(configuration, n_tokens), i):
                name, length = configuration.name, _block(configuration, n_tokens)
                time_tokens(streams[name], _SETTLE, device)
                blocks[name].append(time_tokens(streams[name], length, device))
                if advance:
                    advance(1)
    return {name: Laps.join(parts) for name, parts in blocks.items()}


def _due(n: int, i: int) -> int:
    """How many of n things are done in round i, so that all are done in the end."""
    return (i + 1) * n // _ROUNDS - i * n // _ROUNDS


def _block(configuration: Configuration, n_tokens: int) -> int:
    """Tokens timed at a time."""
    return whole_rounds(configuration.policy, math.ceil(n_tokens / _ROUNDS))


def whole_rounds(policy: EvictionPolicy, n_tokens: int) -> int:
    """At least so many tokens, in rounds of R: wherever a round starts, it has all evictions."""
    return math.ceil(n_tokens / policy.compress_every) * policy.compress_every


def n_blocks(configuration: Configuration, n_tokens: int) -> int:
    """How many blocks `lap_times` times of a configuration, and so how often it calls `advance`."""
    return math.ceil(n_tokens / _block(configuration, n_tokens)) if configuration.mode else 0


def speed(model: str, laps: Laps, baseline: Laps) -> Speed:
    """The TPOT of `model`, and its speedup over the baseline's laps of the same run."""
    mean, base, n = _mean(laps), _mean(baseline), len(laps.token_ms)
    return Speed(
        model=model,
        tpot_mean_ms=mean,
        tpot_p50_ms=_percentile(laps.token_ms, 50),
        tpot_p99_ms=_percentile(laps.token_ms, 99),
        tpot_device_ms=sum(laps.token_ms) / n if laps.on_device else None,
        n_tokens=n,
        speedup=base / mean,
        baseline_mean_ms=base,
    )


def _mean(laps: Laps) -> float:
    return laps.wall_ms / len(laps.token_ms)


def _percentile(values: list[float], percent: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(percent / 100))


def as_recorded(policy: EvictionPolicy) -> records.Policy:
    return records.Policy(
        policy.n_sink,
        policy.window_size,
        policy.cache_slack,
        policy.max_drop,
        policy.compress_every,
        policy.capacity,
    )


def record(
    configuration: Configuration,
    loaded: LoadedModel,
    text: TokenStream,
    quality: Quality | None,
    speed: Speed | None,
    notes: tuple[str, ...] = (),
) -> Record:
    policy = configuration.policy
    fed = text.input_ids.shape[0] - 1
    counted = records.Prunes(0, 0, 0)
    if configuration.mode is not None:
        counted = records.Prunes(*count_evictions(policy, fed))
    return Record(
        configuration=configuration.name,
        mode=configuration.mode or "recompute",
        policy=as_recorded(policy),
        subject=subject(loaded, text),
        environment=records.environment(loaded.model.device),
        quality=quality,
        speed=speed,
        prunes=counted,
        peak_memory_bytes=peak_memory(loaded.model.device),
        notes=notes,
    )


def peak_memory(device: torch.device) -> int | None:
    """The high-water mark so far, bytes: of the device, or of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory_bytes()
