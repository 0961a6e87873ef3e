"""Where the time of a decode step goes: kernels alone, then whole steps, then streams.

Run on a GPU as `python -m tests.bench.ladder --out FOLDER`. Prints a table and writes ladder.json.
Every row is measured by itself: one that fails says so and the rest goes on. Kernels run over the
weights of all layers under a CUDA graph, so that nothing stays in the L2 cache.
"""

import argparse
import json
import statistics
import time
import traceback
import unittest.mock
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from streamcache.caches.ring import RingCache
from streamcache.caches.streaming import RerotatingCache, StreamingCache
from streamcache.decoding.captured import CapturedDecoder
from streamcache.decoding.loop import SteadyDecode
from streamcache.decoding.onepass import streaming_nll
from streamcache.decoding.recompute import recompute_step
from streamcache.inputs.models import load_model
from streamcache.inputs.quantize import Quantization
from streamcache.measure.timing import time_tokens
from streamcache.policy import EvictionPolicy

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
POLICY = EvictionPolicy(4, 2044)
STARTED = time.monotonic()


class Ladder:
    """Rows of the table, in the order in which they were measured."""

    def __init__(self, out: Path, seconds: float):
        self.out, self.seconds = out, seconds
        self.rows: dict[str, dict[str, Any]] = {}
        self.roofline = float("nan")  # bytes/s

    def left(self) -> float:
        return self.seconds - (time.monotonic() - STARTED)

    def note(self, name: str, **values: Any) -> None:
        self.rows[name] = values
        shown = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
        )
        print(f"[{time.monotonic() - STARTED:5.0f} s] {name:44} {shown}", flush=True)
        (self.out / "ladder.json").write_text(json.dumps(self.rows, indent=1))

    def time(self, name: str, run: Callable[[], Any], n_bytes: float, **more: Any) -> float:
        """Milliseconds of a call, its reads `n_bytes`."""
        ms = replay_ms(run)
        self.note(
            name, ms=ms, tb_s=n_bytes / ms / 1e9, share=n_bytes / ms / 1e-3 / self.roofline, **more
        )
        return ms

    def attempt(self, needs_s: float, step: Callable[..., Any], *args: Any) -> Any:
        name = step.__name__
        if self.left() < needs_s:
            print(f"--- {name} skipped: {self.left():.0f} s left", flush=True)
            return None
        print(f"--- {name} {[a for a in args if isinstance(a, str)]}", flush=True)
        try:
            return step(*args)
        except Exception:
            traceback.print_exc()
            return None


def replay_ms(run: Callable[[], Any], n: int = 15) -> float:
    """Median time of a call, as a CUDA graph."""
    if not CUDA:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    laps = time_tokens(graph.replay, n, DEVICE)
    return statistics.median(laps.token_ms)


def roofline(ladder: Ladder, n: int) -> None:
    source = torch.randn(n, device=DEVICE)
    target = torch.empty_like(source)
    ladder.roofline = float("inf")
    copies = {
        "copy": lambda: target.copy_(source),
        "x + 0": lambda: torch.add(source, 0, out=target),
    }
    times = [ladder.time(f"{name}, device to device", run, 8 * n) for name, run in copies.items()]
    ladder.roofline = 8 * n / min(times) * 1e3
    total = torch.empty((), device=DEVICE)
    ladder.time("sum (reads only)", lambda: torch.sum(source, 0, out=total), 4 * n)


class Parts:
    """The parts of a GPT-NeoX model that a step reads."""

    def __init__(self, model: Any):
        self.layers = list(model.gpt_neox.layers)
        self.cache = RingCache(model, POLICY)
        self.cache.allocate(1, model.dtype, DEVICE)
        for states in (*self.cache.keys, *self.cache.values):
            states.normal_()
        self.cache.seen = 3 * POLICY.capacity
        self.cache.evicted = self.cache.seen - POLICY.floor
        self.step = torch.tensor(self.cache.plan(1)[0], device=DEVICE)
        width = model.config.hidden_size
        n_heads = model.config.num_attention_heads
        self.x = torch.randn(1, 1, width, device=DEVICE, dtype=model.dtype)
        self.wide = torch.randn(1, 1, 4 * width, device=DEVICE, dtype=model.dtype)
        self.states = torch.randn(
            3, 1, n_heads, 1, width // n_heads, device=DEVICE, dtype=model.dtype
        )
        self.bytes = {
            "qkv": size(self.layers, "attention.query_key_value"),
            "up": size(self.layers, "mlp.dense_h_to_4h"),
            "down": size(self.layers, "mlp.dense_4h_to_h"),
            "dense": size(self.layers, "attention.dense"),
            "attention": sum(2 * k.numel() * k.element_size() for k in self.cache.keys),
        }


def size(layers: list[Any], name: str) -> int:
    weights = [layer.get_submodule(name).weight for layer in layers]
    return sum(w.numel() * w.element_size() for w in weights)


def first(layer: Any, x: Tensor, side_by_side: Any, **tuned: int) -> Any:
    norms = layer.input_layernorm, layer.post_attention_layernorm
    linears = layer.attention.query_key_value, layer.mlp.dense_h_to_4h
    return side_by_side(
        x,
        [m.weight for m in linears],
        [None, None],
        [m.bias for m in linears],
        [m.weight for m in norms],
        [m.bias for m in norms],
        1e-5,
        ["", "gelu"],
        **tuned,
    )


def last(layer: Any, wide: Tensor, mixed: Tensor, x: Tensor, added: Any, **tuned: int) -> Any:
    linears = layer.mlp.dense_4h_to_h, layer.attention.dense
    weights, biases = [m.weight for m in linears], [m.bias for m in linears]
    return added([wide, mixed], weights, [None, None], biases, x, **tuned)


def correctness(ladder: Ladder) -> None:
    from streamcache.decoding.kernels import linear
    from tests.unit import test_kernels as tests

    half = torch.float16
    for shape in ((1, 32, 1, 80), (3, 2, 4, 128), (2, 2, 3, 96), (1, 3, 1, 256), (5, 32, 1, 64)):
        for seen in (0, 3, 900, 5000):
            out, reference = tests.attention_case(
                *shape, 4, 1000, seen, 990, 3000, "half", half, DEVICE, seed=seen
            )
            d = tests.distance(out, reference)
            if not d < 2e-3 or seen == 5000:
                ladder.note(f"attention {shape} after {seen}", relative_error=d)
    x = torch.randn(1, 1, 2560, device=DEVICE, dtype=half) + 2
    generator = torch.Generator().manual_seed(0)
    how: Any = {"dtype": half, "generator": generator}
    sizes = [770, 1025]
    w = [tests._random(n, 2560, **how) * 2560**-0.5 for n in sizes]
    b = [tests._random(n, **how) for n in sizes]
    g, s = ([tests._random(2560, **how) for _ in sizes] for _ in range(2))
    outs = linear.side_by_side(x, w, [None, None], b, g, s, 1e-5, ",gelu")
    for i, out in enumerate(outs):
        y = F.layer_norm(x.double(), (2560,), g[i].double(), s[i].double(), 1e-5)
        y = F.linear(y, w[i].double(), b[i].double())
        ladder.note(f"side by side {i}", relative_error=tests.distance(out, F.gelu(y) if i else y))
    wide = tests._random(1, 1, 10240, **how)
    w2 = [tests._random(770, 10240, **how) * 0.01, tests._random(770, 2560, **how) * 0.02]
    rest = tests._random(1, 1, 770, **how)
    out = linear.added([wide, x], w2, [None, None], [b[0], None], rest)
    y = wide.double() @ w2[0].double().mT + x.double() @ w2[1].double().mT + b[0] + rest
    ladder.note("added", relative_error=tests.distance(out, y))


def vendor(ladder: Ladder, parts: Parts) -> None:
    for name, path, x in (
        ("qkv", "attention.query_key_value", parts.x),
        ("up", "mlp.dense_h_to_4h", parts.x),
        ("down", "mlp.dense_4h_to_h", parts.wide),
        ("dense", "attention.dense", parts.x),
    ):
        modules = [layer.get_submodule(path) for layer in parts.layers]
        run = partial(lambda modules, x: [module(x) for module in modules], modules, x)
        ladder.time(f"cuBLAS {name}", run, parts.bytes[name])
    q = parts.states[0]
    ring = list(zip(parts.cache.keys, parts.cache.values))
    attend = F.scaled_dot_product_attention
    ladder.time("SDPA", lambda: [attend(q, k, v) for k, v in ring], parts.bytes["attention"])


def kernels(ladder: Ladder, parts: Parts, model: Any) -> None:
    """Each kernel by itself, over all layers, and all of them in turn."""
    from streamcache.decoding.kernels import attention_triton, linear_triton

    b, (q, k, v), cache = parts.bytes, parts.states, parts.cache

    def attention() -> None:
        for i, (keys, values) in enumerate(zip(cache.keys, cache.values)):
            turn = cache.rope_tables[i]
            attention_triton.attend(q, k, v, keys, values, parts.step, turn, POLICY.n_sink, 0.1)

    side_by_side, added = linear_triton.side_by_side, linear_triton.added
    ladder.time(
        "qkv + up",
        lambda: [first(y, parts.x, side_by_side) for y in parts.layers],
        b["qkv"] + b["up"],
    )
    ladder.time(
        "down + dense",
        lambda: [last(y, parts.wide, parts.x, parts.x, added) for y in parts.layers],
        b["down"] + b["dense"],
    )
    ladder.time("attention", attention, b["attention"])
    run, n_bytes = chain(parts, model)
    for pdl in (False, True):
        linear_triton.USE_PDL = pdl
        ladder.time(f"all kernels in turn, PDL {pdl}", run, n_bytes)


def chain(parts: Parts, model: Any) -> tuple[Callable[[], None], int]:
    """All kernels of a step, each waiting for the one before, and the bytes they read."""
    from streamcache.decoding.kernels import attention_triton, linear_triton

    cache = parts.cache
    head, norm = model.get_output_embeddings(), model.gpt_neox.final_layer_norm
    n_heads = model.config.num_attention_heads

    def run() -> None:
        x = parts.x
        for i, layer in enumerate(parts.layers):
            qkv, wide = first(layer, x, linear_triton.side_by_side)
            q, k, v = qkv.view(1, n_heads, 1, -1).chunk(3, dim=-1)
            turn = cache.rope_tables[i]
            mixed = attention_triton.attend(
                q, k, v, cache.keys[i], cache.values[i], parts.step, turn, POLICY.n_sink, 0.1
            )
            x = last(layer, wide, mixed.view(x.shape), x, linear_triton.added)
        linear_triton.side_by_side(
            x, [head.weight], [None], [None], [norm.weight], [norm.bias], 1e-5, [""]
        )

    return run, sum(parts.bytes.values()) + head.weight.numel() * head.weight.element_size()


def decode(ladder: Ladder, name: str, decoder: CapturedDecoder, ids: Tensor, n: int) -> None:
    """Steps of a stream in its steady state, evictions included."""
    batch = decoder.batch
    decoder.reset()
    fill = decoder.cache.policy.capacity + 5
    decoder.prefill(ids[:, : fill - 5].expand(batch, -1))
    at = iter(range(fill, 10**9))

    def step() -> Tensor:
        return decoder.step(ids[0, next(at) % ids.shape[1]].expand(batch))

    for _ in range(5):
        step()
    laps = time_tokens(step, n, DEVICE)
    ms = sorted(laps.token_ms)
    model: Any = decoder.model
    weights = sum(map(held_bytes, model.parameters()))
    weights -= held_bytes(model.get_input_embeddings().weight)
    ring = sum(2 * k.numel() * k.element_size() for k in decoder.cache.keys)
    floor = (weights + ring) / ladder.roofline * 1e3
    p50, p99 = ms[n // 2], ms[int(n * 0.99)]
    ladder.note(
        name, ms=p50, wall_ms=laps.wall_ms / n, p99_p50=p99 / p50, roofline_ms=floor,
        over=p50 / floor, tokens_s=batch / p50 * 1e3, evicted=decoder.cache.evicted,
        eager=str(decoder.eager_because),
    )  # fmt: skip


def held_bytes(tensor: Any) -> int:
    """Of a tensor, or of the tensors that a quantised one is made of."""
    if is_traceable_wrapper_subclass(tensor):
        return sum(held_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return int(tensor.numel() * tensor.element_size())


def captured(
    ladder: Ladder, name: str, model: Any, ids: Tensor, policy: EvictionPolicy, n: int = 300,
    batch: int = 1, compile: bool = True,
) -> CapturedDecoder:  # fmt: skip
    start = time.perf_counter()
    decoder = CapturedDecoder(model, policy, batch, compile)
    seconds = time.perf_counter() - start
    ladder.note(f"{name}: to the first step", seconds=seconds, eager=str(decoder.eager_because))
    decode(ladder, name, decoder, ids, n)
    return decoder


def agreement(ladder: Ladder, model: Any, ids: Tensor, decoder: CapturedDecoder) -> None:
    """Captured steps against the drop-in cache's eager ones, over evictions."""
    policy = decoder.cache.policy
    decoder.reset()
    cache = StreamingCache(model, policy)
    n = policy.capacity - 3
    decoder.prefill(ids[:, :n])
    worst = 0.0
    with torch.inference_mode():
        model(input_ids=ids[:, :n], past_key_values=cache, logits_to_keep=1)
        for t in range(n, n + 12):
            expected = model(input_ids=ids[:, t : t + 1], past_key_values=cache).logits[0, -1]
            logits = decoder.step(ids[:, t])[0]
            worst = max(worst, float((logits - expected).abs().max() / expected.std()))
    ladder.note("captured against eager logits", worst_in_std=worst)


def profile(ladder: Ladder, decoder: CapturedDecoder, ids: Tensor, n: int = 10) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as prof:
        for t in range(n):
            decoder.step(ids[:, t])
        if CUDA:
            torch.cuda.synchronize()
    times: defaultdict[str, list[float]] = defaultdict(list)
    events = [e for e in prof.events() if not CUDA or e.device_type.name == "CUDA"]
    for event in events:
        times[event.name[:90]].append(event.time_range.elapsed_us())
    rows = sorted(times.items(), key=lambda row: -sum(row[1]))
    total = sum(sum(t) for t in times.values()) / n
    print(f"profile: {total:.0f} us in {sum(map(len, times.values())) / n:.0f} kernels a step")
    lines = []
    for name, us in rows[:25]:
        lines.append(
            f"{sum(us) / n:8.1f} us  {len(us) / n:6.1f} x {statistics.median(us):7.2f} us  {name}"
        )
    print("\n".join(lines), flush=True)
    with (ladder.out / "profile.txt").open("a") as file:
        file.write("\n".join([f"{total:.0f} us", *lines, ""]))
    ladder.note("profile", busy_us=total)


def slow_ones(ladder: Ladder, model: Any, ids: Tensor) -> None:
    step = recompute_step(model, ids[0], POLICY.n_sink, POLICY.window_size)
    step()
    laps = time_tokens(step, 8, DEVICE)
    ladder.note("recompute baseline", ms=statistics.median(laps.token_ms))
    stream = SteadyDecode(model, ids[0], RerotatingCache(model, POLICY))
    for _ in range(3):
        stream()
    laps = time_tokens(stream, 24, DEVICE)
    ladder.note("ours, eager, R=1", ms=statistics.median(laps.token_ms))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--model", default="random:pythia-2.8b")
    parser.add_argument("--only", default="", help="steps, joined by commas")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments.out.mkdir(parents=True, exist_ok=True)
    ladder = Ladder(arguments.out, arguments.seconds)
    global POLICY
    model: Any = load_model(arguments.model, device=DEVICE).model
    if not CUDA:
        POLICY = EvictionPolicy(4, 60)
    n = 300 if CUDA else 8
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (1, 3 * POLICY.capacity), device=DEVICE)
    with torch.inference_mode():
        for step in plan(ladder, arguments.model, model, ids, n):
            if not arguments.only or step[1].__name__ in arguments.only.split(","):
                ladder.attempt(*step)
    if CUDA:
        ladder.note("peak memory", gb=torch.cuda.max_memory_allocated() / 1e9)


def one_pass(ladder: Ladder, model: Any, n_tokens: int) -> None:
    """Exact NLL of a whole text: seconds, and memory beyond the weights."""
    ids = torch.randint(0, model.config.vocab_size, (n_tokens,), device=DEVICE)
    streaming_nll(model, ids, POLICY)
    held = 0
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    start = time.perf_counter()
    float(streaming_nll(model, ids, POLICY).mean())
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() - held if CUDA else 0
    ladder.note(f"one pass over {n_tokens} tokens", seconds=seconds, gib_beyond=peak / 2**30)


def quantised(ladder: Ladder, name: str, how: Quantization, dtype: str, n: int) -> None:
    """Integer weights: eagerly, as torchao computes with them, and captured."""
    model: Any = load_model(name, device=DEVICE, dtype=dtype, quantization=how).model
    ids = torch.randint(0, model.config.vocab_size, (1, 3 * POLICY.capacity), device=DEVICE)
    stream = SteadyDecode(model, ids[0], StreamingCache(model, POLICY))
    for _ in range(3):
        stream()
    laps = time_tokens(stream, 16, DEVICE)
    ladder.note(f"{how}, fast, eager", ms=statistics.median(laps.token_ms))
    decoder = captured(ladder, f"{how}, captured, compiled", model, ids, POLICY, n)
    agreement(ladder, model, ids, decoder)
    profile(ladder, decoder, ids)


def plan(ladder: Ladder, name: str, model: Any, ids: Tensor, n: int) -> Iterator[tuple[Any, ...]]:
    """The steps, the most telling first: (seconds needed, step, arguments)."""
    yield 5, roofline, ladder, 1 << (30 if CUDA else 20)
    yield 10, correctness, ladder
    parts = Parts(model)
    if CUDA:
        yield 15, kernels, ladder, parts, model
    del parts
    decoders: list[CapturedDecoder] = []

    def compiled() -> None:
        decoders.append(captured(ladder, "captured, compiled", model, ids, POLICY, n))

    yield 30, compiled
    for decoder in decoders:
        yield 5, agreement, ladder, model, ids, decoder
        yield 5, profile, ladder, decoder, ids
    yield 5, slow_ones, ladder, model, ids
    total = POLICY.capacity
    lazy = EvictionPolicy.from_budget(total, 4, compress_every=64 if CUDA else 32)
    yield 15, captured, ladder, "the same, R=64", model, ids, lazy, n
    yield 10, captured, ladder, "captured, not compiled", model, ids, POLICY, n, 1, False

    def without_pdl() -> None:
        from streamcache.decoding.kernels import linear_triton

        linear_triton.USE_PDL = False
        decoder = captured(ladder, "captured, compiled, no PDL", model, ids, POLICY, n)
        profile(ladder, decoder, ids)
        linear_triton.USE_PDL = True

    if CUDA:
        yield 12, without_pdl
    yield 10, captured, ladder, "not compiled, batch 8", model, ids, POLICY, n // 4, 8, False
    yield 10, captured, ladder, "not compiled, batch 32", model, ids, POLICY, n // 4, 32, False
    yield 10, one_pass, ladder, model, 20_000 if CUDA else 300
    yield 30, quantised, ladder, name, "int8", "auto", n
    yield 30, captured, ladder, "captured, compiled, batch 8", model, ids, POLICY, n // 4, 8
    yield 30, captured, ladder, "captured, compiled, batch 32", model, ids, POLICY, n // 4, 32
    if CUDA:
        yield 10, vendor, ladder, Parts(model)
    yield 80, quantised, ladder, name, "int4", "bfloat16" if CUDA else "auto", n

    def inductor_alone() -> None:
        from streamcache.decoding import captured as capture

        torch._dynamo.reset()
        inductor = torch._dynamo.lookup_backend("inductor")
        with unittest.mock.patch.object(capture, "fused", inductor):
            captured(ladder, "captured, inductor with cuBLAS", model, ids, POLICY, n)

    yield 120, inductor_alone


if __name__ == "__main__":
    main()
