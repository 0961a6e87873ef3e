"""From eager decoding down to the memory roofline: a row for each way to decode one model.

The roofline of a step is the time to read its weights and its cache once, at the rate at which the
device copies memory. MBU (model bandwidth utilisation) is the roofline over the measured time.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel, StaticCache

from streamcache.decoding.captured import CapturedDecoder
from streamcache.decoding.onepass import streaming_nll
from streamcache.inputs.models import LoadedModel
from streamcache.measure.checked import SCHEMA_VERSION
from streamcache.measure.configurations import BASELINE, RECOMPUTE, Configuration
from streamcache.measure.measurement import Environment, environment
from streamcache.measure.steps import steady_step
from streamcache.measure.timing import time_tokens, whole_rounds
from streamcache.policy import EvictionPolicy

_COPY_BYTES = 1 << 32  # read and written, on a GPU; more than any cache holds
_COPY_BYTES_CPU = 1 << 26
_PROMPT = 16_384  # tokens


class Row(msgspec.Struct, frozen=True):
    """One way to decode, or to read a prompt.

    Attributes:
        ms: median per token of each stream, or of the whole prompt.
        roofline_ms: the bytes of a step over the copy rate; None where no step is decoded.
        batch: streams side by side.
        seconds: until the first token, where something is compiled or captured.
        eager_because: why nothing was captured; None where it was, or was not asked for.
    """

    name: str
    ms: float
    roofline_ms: float | None = None
    batch: int = 1
    seconds: float | None = None
    eager_because: str | None = None

    @property
    def mbu(self) -> float | None:
        """Share of the copy rate at which the bytes of a step are read."""
        return self.roofline_ms / self.ms if self.roofline_ms else None

    @property
    def tokens_per_s(self) -> float:
        """Of all streams together."""
        return self.batch / self.ms * 1e3


class Ladder(msgspec.Struct, frozen=True, tag="streamcache-ladder", tag_field="schema"):
    """The rows of one model on one device."""

    model: str
    dtype: str
    environment: Environment
    copy_tb_s: float  # bytes read and written, 10^12 per second
    rows: tuple[Row, ...]
    version: int = SCHEMA_VERSION


Step = tuple[str, Callable[[], Row]]


def copy_rate(device: torch.device, n_bytes: int | None = None) -> float:
    """Bytes per second that a large copy on a device reads and writes: the median of some."""
    n = (n_bytes or (_COPY_BYTES if device.type == "cuda" else _COPY_BYTES_CPU)) // 2
    source = torch.ones(n, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    ms = statistics.median(time_tokens(lambda: target.copy_(source), 15, device).token_ms)
    return 2 * n / ms * 1e3


def steps(
    loaded: LoadedModel,
    policy: EvictionPolicy,
    n_tokens: int,
    rate: float,
    batches: tuple[int, ...],
) -> Iterator[Step]:
    """The rows to be measured, each by its name, slow ones last.

    Args:
        n_tokens: timed tokens of each row.
        rate: see `copy_rate`.
        batches: of captured rows beyond one stream.
    """
    weights = loaded.quantization
    captured = Configuration(policy, "ring", "captured", weights=weights)

    def of(configuration: Configuration, name: str, n: int = n_tokens) -> Step:
        return name, lambda: decode_row(loaded, configuration, name, n, rate)

    yield of(captured, "captured")
    for batch in batches:
        yield of(replace(captured, batch=batch), f"captured, batch {batch}", n_tokens // 4)
    lazy = EvictionPolicy.from_budget(policy.capacity, policy.n_sink, compress_every=32)
    yield of(replace(captured, policy=lazy), "captured, R=32")
    few = max(8, n_tokens // 8)
    yield of(Configuration(policy, "streaming", weights=weights), "streaming, eager", few)
    yield of(Configuration(policy, "rerotating", weights=weights), "rerotating, eager", few)
    yield of(Configuration(policy, RECOMPUTE, weights=weights), "recompute baseline", 4)
    yield "transformers, static cache, compiled", lambda: static_row(loaded, policy, few, rate)
    n_prompt = _PROMPT if loaded.model.device.type == "cuda" else 2 * policy.capacity
    yield "streaming NLL", lambda: nll_row(loaded, policy, n_prompt)


def measure_ladder(
    loaded: LoadedModel,
    policy: EvictionPolicy = BASELINE,
    n_tokens: int = 256,
    batches: tuple[int, ...] = (8, 32),
    finished: Callable[[Row], None] = lambda row: None,
) -> Ladder:
    """Measure every row; a row that fails gives a warning, and the others continue."""
    device = loaded.model.device
    rate, rows = copy_rate(device), []
    for name, measure in steps(loaded, policy, n_tokens, rate, batches):
        try:
            rows.append(measure())
        except Exception as error:  # torch and transformers have no class of errors in common
            reason = str(error).partition("\n")[0] or type(error).__name__
            warnings.warn(f"{name} was not measured: {reason}", stacklevel=2)
            continue
        finished(rows[-1])
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    described = f"{dtype} {loaded.quantization}" if loaded.quantization else dtype
    return Ladder(
        loaded.name, described, environment(device, loaded.n_devices), rate / 1e12, tuple(rows)
    )


def decode_row(
    loaded: LoadedModel, configuration: Configuration, name: str, n_tokens: int, rate: float
) -> Row:
    """Steps of a configuration in the steady state, evictions included."""
    model, policy = loaded.model, configuration.policy
    ids = _random_ids(model, policy.capacity + 1)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the row says why it is eager
        step: Any = steady_step(configuration, model, ids)
        step()
    _wait(model.device)
    seconds = time.perf_counter() - start
    time_tokens(step, whole_rounds(policy, 8), model.device)
    timed = time_tokens(step, whole_rounds(policy, n_tokens), model.device)
    decoder: CapturedDecoder | None = getattr(step, "decoder", None)
    roofline = None
    if not configuration.recomputes:
        n_bytes = weight_bytes(model) + _cache_bytes(model, policy.capacity, configuration.batch)
        roofline = n_bytes / rate * 1e3
    return Row(
        name,
        statistics.median(timed.token_ms),
        roofline,
        configuration.batch,
        seconds if decoder else None,
        decoder.eager_because if decoder else None,
    )


def static_row(loaded: LoadedModel, policy: EvictionPolicy, n_tokens: int, rate: float) -> Row:
    """The peer in transformers: its static cache and torch.compile, without evictions.

    The last tokens that fit the cache are timed: it reads all of its entries at every step.
    """
    model, held = loaded.model, policy.capacity
    cache = StaticCache(config=model.config, max_cache_len=held)
    forward = model.forward
    if model.device.type == "cuda":
        forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    warm_up = 4
    n_tokens = min(n_tokens, held // 2)
    ids = _random_ids(model, held)

    @torch.inference_mode()
    def step() -> Tensor:
        logits: Tensor = forward(input_ids=ids[None, -1:], past_key_values=cache).logits
        return logits.clone()

    start = time.perf_counter()
    with torch.inference_mode():
        filled = ids[None, : held - n_tokens - warm_up]
        model(input_ids=filled, past_key_values=cache, logits_to_keep=1)
    for _ in range(warm_up):
        step()
    _wait(model.device)
    seconds = time.perf_counter() - start
    timed = time_tokens(step, n_tokens, model.device)
    roofline = (weight_bytes(model) + _cache_bytes(model, held, 1)) / rate * 1e3
    name = "transformers, static cache, compiled"
    return Row(name, statistics.median(timed.token_ms), roofline, seconds=seconds)


def nll_row(loaded: LoadedModel, policy: EvictionPolicy, n_tokens: int) -> Row:
    """The exact NLL of a whole text in one pass: the first call in seconds, a later one in ms."""
    ids = _random_ids(loaded.model, n_tokens)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        float(streaming_nll(loaded.model, ids, policy).mean())
        seconds.append(time.perf_counter() - start)
    return Row(f"streaming NLL of {n_tokens} tokens", seconds[1] * 1e3, seconds=seconds[0])


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights that a step reads: all except a token embedding that is looked up."""
    embedding: Any = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings()
    tied = head is not None and head.weight is embedding
    total = sum(map(held_bytes, model.parameters()))
    return total if tied else total - held_bytes(embedding)


def held_bytes(tensor: Any) -> int:
    """Bytes of a tensor, or of the tensors that a quantised one is made of."""
    if is_traceable_wrapper_subclass(tensor):
        return sum(held_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return int(tensor.numel() * tensor.element_size())


def _cache_bytes(model: PreTrainedModel, n_entries: int, batch: int) -> int:
    """Bytes of the keys and values of so many entries."""
    text = model.config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    itemsize = torch.empty((), dtype=model.dtype).element_size()
    return 2 * text.num_hidden_layers * heads * width * n_entries * batch * itemsize


def _random_ids(model: PreTrainedModel, n_tokens: int) -> Tensor:
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (n_tokens,), generator=generator).to(model.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
