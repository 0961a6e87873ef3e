"""Every operation of a decode step against float64: torch on a CPU, the Triton kernels on a GPU."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from streamcache.caches.attention_override import HeadNorms, Scores, use_attention
from streamcache.caches.ring import Step
from streamcache.caches.rope import RopeTable, Rotation
from streamcache.decoding.captured import CapturedDecoder
from streamcache.decoding.kernels import linear
from streamcache.decoding.kernels.attention import attend
from streamcache.decoding.kernels.fusion import fuse
from streamcache.decoding.kernels.quantized import QuantizedLinear
from streamcache.policy import EvictionPolicy
from tests.tiny import tiny

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def distance(result: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm; infinite where a number is none."""
    difference = result.double().cpu() - reference.double().cpu()
    return float(difference.nan_to_num(nan=torch.inf).norm() / reference.double().norm())


def attention_case(
    batch: int,
    n_kv_heads: int,
    groups: int,
    width: int,
    n_sink: int,
    run: int,
    seen: int,
    held: int,
    base: int,
    layout: Literal["half", "interleaved"] | None,
    dtype: torch.dtype,
    device: torch.device,
    seed: int = 0,
    softcap: float = 0.0,
    sliding_window: int = 0,
    offset: float | None = None,
    learned: bool = False,
) -> tuple[Tensor, Tensor]:
    """What `attend` gives for a ring in some state of its life, and what it should.

    The stream is `seen` tokens long and `held` tokens of the window are left. The reference places
    the kept keys at positions 0 ... n - 1, in float64. With an `offset`, heads are normed;
    with `learned` sinks, each head has one score more.
    """
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    evicted = max(0, seen - n_sink - held)
    base = min(base, evicted)
    tokens = [*range(min(n_sink, seen)), *range(min(n_sink + evicted, seen), seen), seen]
    k, v = random(2, batch, n_kv_heads, len(tokens), width).unbind()
    q = random(batch, n_kv_heads * groups, 1, width)
    rotation = None
    if layout is not None:
        n = width // 4
        rotation = Rotation(layout, 0, 10_000.0 ** (-torch.arange(n, dtype=torch.float64) / n))

    def turned(states: Tensor, position: Tensor | int) -> Tensor:
        return states if rotation is None else rotation.shift(states, position)

    # What the ring holds was rounded once: the reference starts from the rounded states.
    written = torch.tensor([t if t < n_sink else t - base for t in tokens])
    k_ring, v = turned(k, written).to(dtype), v.to(dtype)
    q_given, k_given = q.to(dtype), k[:, :, -1:].to(dtype)
    gains, norms = random(2, width).to(dtype), None
    if offset is not None:
        norms = HeadNorms(gains[0].to(device), gains[1].to(device), 1e-5, offset)
    kind = "rms_unit_offset" if offset else "rms"
    q, k_new = (
        _normed(x.double(), None if norms is None else gain.double(), None, kind)
        for x, gain in zip((q_given, k_given), gains)
    )
    sinks = 2 * random(n_kv_heads * groups).to(dtype)
    given_sinks = sinks.to(device) if learned else None
    k_ring[:, :, -1:] = turned(k_new, written[-1]).to(dtype)
    k = turned(k_ring.double(), -written)
    n_slots = n_sink + run
    keys = torch.full((batch, n_kv_heads, n_slots, width), 7.0, dtype=dtype)
    values = torch.full((batch, n_kv_heads, n_slots, width), 7.0, dtype=dtype)
    slots = torch.tensor([t if t < n_sink else n_sink + (t - n_sink) % run for t in tokens])
    keys[:, :, slots[:-1]], values[:, :, slots[:-1]] = k_ring[:, :, :-1], v[:, :, :-1]
    first = n_sink + evicted % run
    step = Step(seen - base, int(slots[-1]), first, len(tokens))
    turn = None if rotation is None else RopeTable.of(rotation, width, seen, device)
    keys, values = keys.to(device), values.to(device)
    out = attend(
        q_given.to(device),
        k_given.to(device),
        v[:, :, -1:].to(device),
        keys,
        values,
        torch.tensor(step, device=device),
        turn,
        n_sink,
        Scores(width**-0.5, softcap, sliding_window, given_sinks, norms),
    )
    assert distance(keys[:, :, slots], k_ring) < TOLERANCE[dtype]
    assert torch.equal(values[:, :, slots].cpu(), v)

    n = len(tokens)
    q, k = turned(q, n - 1), turned(k, torch.arange(n))
    scores = q.unflatten(1, (n_kv_heads, groups)).squeeze(3) @ k.mT * width**-0.5
    if softcap:
        scores = (scores / softcap).tanh() * softcap
    if sliding_window:
        scores[..., : max(0, n - sliding_window)] = -torch.inf
    if learned:
        further = sinks.double().view(n_kv_heads, groups, 1).expand(batch, -1, -1, 1)
        scores = torch.cat([scores, further], dim=-1)
    reference = scores.softmax(-1)[..., :n] @ v.double()
    return out, reference.flatten(1, 2)[:, None]


@given(
    batch=st.integers(1, 3),
    n_kv_heads=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 3, 4, 7, 16]),
    width=st.sampled_from([32, 64, 80, 96, 128, 256]),
    n_sink=st.integers(0, 40),
    run=st.integers(1, 300),
    seen=st.integers(0, 900),
    missing=st.integers(0, 300),
    base=st.integers(0, 900),
    layout=st.sampled_from(["half", "interleaved", None]),
    dtype=st.sampled_from(list(TOLERANCE)),
    softcap=st.sampled_from([0.0, 5.0]),
    sliding_window=st.sampled_from([0, 1, 50, 10_000]),
    offset=st.sampled_from([None, 0.0, 1.0]),
    learned=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_attention(dtype: torch.dtype, run: int, missing: int, **case: Any) -> None:
    held = max(0, run - 1 - missing)
    out, reference = attention_case(run=run, held=held, dtype=dtype, device=DEVICE, **case)
    assert out.dtype == dtype
    assert distance(out, reference) < TOLERANCE[dtype]


def test_attention_of_streams_at_different_steps() -> None:
    """A batch with a step for each row is its rows alone, each with its own step."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, 1, 32), (2, 2, 1, 32), (2, 2, 1, 32), (2, 2, 20, 32), (2, 2, 20, 32)
    states: list[Any] = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
    rotation = Rotation("half", 0, 10_000.0 ** (-torch.arange(8, dtype=torch.float64) / 8))
    turn = RopeTable.of(rotation, 32, 100, DEVICE)
    steps = torch.tensor([Step(7, 7, 4, 8), Step(40, 8, 9, 19)], device=DEVICE)
    alone = [[x[row : row + 1].clone() for x in states] for row in range(2)]
    q, k, v, keys, values = states
    out = attend(q, k, v, keys, values, steps, turn, 4, Scores(0.2))
    for row, (state, step) in enumerate(zip(alone, steps)):
        q, k, v, row_keys, row_values = state
        expected = attend(q, k, v, row_keys, row_values, step, turn, 4, Scores(0.2))
        assert torch.allclose(out[row], expected[0], atol=1e-6)
        assert torch.equal(keys[row], row_keys[0]), "the same key in the same slot"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 32, 1, 80), (1, 4, 2, 256), (32, 8, 4, 128), (2, 1, 16, 64)])
def test_attention_at_full_size(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    for seen in (0, 100, 2047, 2048, 5000):
        out, reference = attention_case(
            *shape, 4, 2044, seen, 2043, 1000, "half", dtype, torch.device("cuda"), seed=seen
        )
        assert distance(out, reference) < TOLERANCE[dtype]


def _random(*shape: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def _weight(height: int, width: int, quantised: str, **how: Any) -> tuple[Tensor, Tensor | None]:
    """A weight [N, K] and its scale [N]; None for one that is not quantised."""
    if not quantised:
        return _random(height, width, **how) * width**-0.5, None
    weight = torch.randint(-128, 128, (height, width), generator=how["generator"])
    weight = weight.to(torch.int8 if quantised == "int8" else torch.float8_e4m3fn)
    scale = (_random(height, **how).abs() + 0.5) * (width**-0.5 / 74)
    return weight.to(DEVICE), scale


def _product(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    y = x.double() @ weight.double().mT
    return y if scale is None else y * scale.double()


def _distance(result: Tensor, reference: Tensor) -> float:
    """Of results that are small by chance, the error beside what they are made of."""
    difference = result.double().cpu() - reference.double().cpu()
    norm = max(float(reference.double().norm()), 0.5)
    return float(difference.nan_to_num(nan=torch.inf).norm()) / norm


def _normed(x: Tensor, gain: Tensor | None, shift: Tensor | None, norm: str) -> Tensor:
    if gain is None:
        return x
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:], gain, shift, 1e-5)
    gain = gain + (norm == "rms_unit_offset")
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def _double(*tensors: Tensor | None) -> list[Any]:
    return [tensor if tensor is None else tensor.double() for tensor in tensors]


NORMS = st.sampled_from(["", "layer", "rms", "rms_unit_offset"])
WIDTHS = st.sampled_from([64, 80, 512, 1000, 2560])
HEIGHTS = st.sampled_from([1, 7, 64, 130])
N_TOKENS = st.sampled_from([1, 1, 2, 3, 17, 64])
QUANTISED = st.sampled_from(["", "", "int8", "fp8"])


@given(
    n_tokens=N_TOKENS,
    width=WIDTHS,
    heights=st.lists(HEIGHTS, min_size=1, max_size=3),
    norm=NORMS,
    biased=st.booleans(),
    activation=st.sampled_from(list(linear.ACTIVATIONS)),
    quantised=QUANTISED,
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**32),
)
def test_grouped_linear(
    n_tokens: int,
    width: int,
    heights: list[int],
    norm: str,
    biased: bool,
    activation: str,
    quantised: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    how: Any = {"dtype": dtype, "generator": torch.Generator().manual_seed(seed)}
    x = _random(n_tokens, 1, width, **how) + 3  # a mean that a layer norm must take away
    weights, scales = zip(*[_weight(n, width, quantised, **how) for n in heights])
    biases = [_random(n, **how) if biased else None for n in heights]
    gains = [_random(width, **how) if norm else None for _ in heights]
    shifts = [_random(width, **how) if norm == "layer" and biased else None for _ in heights]
    names = ",".join([activation, *[""] * (len(heights) - 1)])
    outs = linear.grouped_linear(x, weights, scales, biases, gains, shifts, 1e-5, norm, names)
    for i, out in enumerate(outs):
        gain, shift, bias = _double(gains[i], shifts[i], biases[i])
        y = _product(_normed(x.double(), gain, shift, norm), weights[i], scales[i])
        y = y + (0 if bias is None else bias)
        y = linear.ACTIVATIONS[activation](y) if i == 0 else y
        assert out.dtype == dtype and out.shape == y.shape
        assert _distance(out, y) < 2 * TOLERANCE[dtype]


@given(
    n_tokens=N_TOKENS,
    width=WIDTHS,
    height=HEIGHTS,
    merged=st.booleans(),
    norm=NORMS,
    biased=st.booleans(),
    activation=st.sampled_from(["gelu_tanh", "silu"]),
    quantised=QUANTISED,
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**32),
)
def test_gated_linear(
    n_tokens: int,
    width: int,
    height: int,
    merged: bool,
    norm: str,
    biased: bool,
    activation: str,
    quantised: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    how: Any = {"dtype": dtype, "generator": torch.Generator().manual_seed(seed)}
    x = _random(n_tokens, 1, width, **how)
    heights = [2 * height] if merged else [height, height]
    weights, scales = zip(*[_weight(n, width, quantised, **how) for n in heights])
    biases = [_random(n, **how) if biased else None for n in heights]
    gain = _random(width, **how) if norm else None
    shift = _random(width, **how) if norm == "layer" and biased else None
    given: Any = weights, scales, biases, gain, shift, 1e-5, norm, activation
    out = linear.gated_linear(x, *given)
    y = _normed(x.double(), _double(gain)[0], _double(shift)[0], norm)
    halves = torch.cat(
        [
            _product(y, weight, scale) + (0 if bias is None else bias.double())
            for weight, scale, bias in zip(weights, scales, biases)
        ],
        dim=-1,
    )
    gate, up = halves.chunk(2, dim=-1)
    reference = linear.ACTIVATIONS[activation](gate) * up
    assert out.dtype == dtype and out.shape == reference.shape
    assert _distance(out, reference) < 3 * TOLERANCE[dtype]


@given(
    n_tokens=N_TOKENS,
    widths=st.lists(st.sampled_from([64, 80, 512, 1000, 10240]), min_size=1, max_size=3),
    height=HEIGHTS,
    biased=st.booleans(),
    residual=st.booleans(),
    early=st.booleans(),
    quantised=st.lists(QUANTISED, min_size=3, max_size=3),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**32),
)
def test_summed_linear(
    n_tokens: int,
    widths: list[int],
    height: int,
    biased: bool,
    residual: bool,
    early: bool,
    quantised: list[str],
    dtype: torch.dtype,
    seed: int,
) -> None:
    how: Any = {"dtype": dtype, "generator": torch.Generator().manual_seed(seed)}
    xs = [_random(n_tokens, 1, width, **how) for width in widths]
    made = [_weight(height, width, how8, **how) for width, how8 in zip(widths, quantised)]
    weights, scales = zip(*made)
    biases = [_random(height, **how) if biased else None for _ in widths]
    rest = _random(n_tokens, 1, height, **how) if residual else None
    out = linear.summed_linear(xs, weights, scales, biases, rest, early)
    products = [_product(*layer) for layer in zip(xs, weights, scales)]
    y = torch.stack(
        [*products, *(b.double().expand_as(products[0]) for b in biases if b is not None)]
    )
    y = y.sum(0)
    y = y if rest is None else y + rest.double()
    assert out.dtype == dtype and out.shape == y.shape
    assert _distance(out, y) < 2 * TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("n_tokens", [1, 2, 8, 32, 64])
def test_linear_at_full_size(n_tokens: int) -> None:
    how: Any = {"dtype": torch.bfloat16, "generator": torch.Generator().manual_seed(n_tokens)}
    x, gain = _random(n_tokens, 1, 4096, **how), _random(4096, **how)
    up, gate = (_random(14336, 4096, **how) * 4096**-0.5 for _ in range(2))
    down = _random(4096, 14336, **how) * 14336**-0.5
    none: list[Tensor | None] = [None, None]
    pair = linear.grouped_linear(x, [up, gate], none, none, [gain] * 2, none, 1e-5, "rms", ",")
    y = _normed(x.double(), gain.double(), None, "rms")
    for out, weight in zip(pair, (up, gate)):
        assert _distance(out, y @ weight.double().mT) < 1e-2
    wide = linear.gated_linear(x, [gate, up], none, none, gain, None, 1e-5, "rms", "silu")
    assert _distance(wide, F.silu(y @ gate.double().mT) * (y @ up.double().mT)) < 1e-2
    out = linear.summed_linear([wide], [down], [None], [None], x)
    assert _distance(out, wide.double() @ down.double().mT + x.double()) < 1e-2


@given(
    n_tokens=N_TOKENS,
    width=WIDTHS,
    norm=st.sampled_from(["layer", "rms", "rms_unit_offset"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**32),
)
def test_summed_norm(n_tokens: int, width: int, norm: str, dtype: torch.dtype, seed: int) -> None:
    how: Any = {"dtype": dtype, "generator": torch.Generator().manual_seed(seed)}
    x, residual = (_random(n_tokens, 1, width, **how) for _ in range(2))
    gain = _random(width, **how)
    out = linear.summed_norm(x, residual, gain, 1e-5, norm)
    reference = residual.double() + _normed(x.double(), gain.double(), None, norm)
    assert out.dtype == dtype and out.shape == x.shape
    assert _distance(out, reference) < TOLERANCE[dtype]


class RMSNorm(nn.Module):
    """As transformers writes it for Llama ("rms") and Gemma ("rms_unit_offset")."""

    def __init__(self, width: int, kind: str):
        super().__init__()
        self.kind, self.weight = kind, nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        if self.kind == "rms":
            return self.weight * wide.to(x.dtype)
        return (wide * (1.0 + self.weight.float())).type_as(x)


class Block(nn.Module):
    """A parallel block, gated ones, one of integers; and a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32, bias=False)
        self.a, self.b, self.c = nn.Linear(32, 48), nn.Linear(32, 32), nn.Linear(48, 32, bias=False)
        self.drop = nn.Dropout(0.3)
        weight = torch.randint(-128, 128, (32, 32), dtype=torch.int8)
        self.small = QuantizedLinear(weight, torch.rand(32) / 400, torch.randn(32))
        self.rms, self.rms2 = RMSNorm(32, "rms"), RMSNorm(32, "rms_unit_offset")
        self.merged = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            y = self.norm(x)
            wide, deep = F.gelu(self.a(y)), self.b(self.norm2(x))
            x = self.drop(self.c(wide)) + self.b(deep) + x
            x = x + self.c(F.silu(self.a(x)) * self.a(x))
        y = self.rms(x)
        x = x + self.c(F.gelu(self.a(y), approximate="tanh") * self.a(y))
        gate, up = self.merged(self.rms2(x)).chunk(2, dim=-1)
        x = x + self.c(up * F.silu(gate))
        x = x + self.rms2(self.c(F.relu(self.a(x))))
        x = x + self.small(x) + self.a(x)[..., :32]
        x = self.b(self.norm(x)[:, 0:, :])
        return F.linear(x, self.c.weight.mT)


def _targets_after_fusing(module: nn.Module, x: Tensor) -> list[str]:
    """What a fused graph calls; its result is held against the module's."""
    torch._dynamo.reset()
    targets: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        fuse(graph)
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        assert torch.allclose(torch.compile(module, backend=backend)(x), module(x), atol=1e-5)
    return targets


def test_a_graph_means_the_same_when_it_is_fused() -> None:
    targets = _targets_after_fusing(Block().eval(), torch.randn(1, 1, 32))
    assert targets.count("streamcache.grouped_linear.default") == 2 + 2
    assert targets.count("streamcache.gated_linear.default") == 2 + 2
    assert targets.count("streamcache.summed_linear.default") == 2 * 2 + 2 + 3
    assert targets.count("streamcache.summed_norm.default") == 1
    assert sum("linear" in target for target in targets) == 4 + 4 + 9 + 1
    assert not any("rsqrt" in target for target in targets), "RMS norms are part of the layers"


@pytest.mark.parametrize("kind", ["rms", "rms_unit_offset"])
def test_an_rms_norm_of_other_numbers_is_left_alone(kind: str) -> None:
    """Between it and the layer the graph does something that the fused layer would not."""
    norm, layer = RMSNorm(32, kind), nn.Linear(32, 48)

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return layer(norm(x) * 2 + 1)

    targets = _targets_after_fusing(Other(), torch.randn(1, 1, 32))
    assert sum("rsqrt" in target for target in targets) == 1


@pytest.mark.parametrize(("family", "n_early"), [("gpt_neox", 2), ("llama", 0)])
def test_the_mlp_of_a_parallel_block_does_not_wait_for_the_attention(
    family: str, n_early: int
) -> None:
    decoder = CapturedDecoder(tiny(family), EvictionPolicy(n_sink=2, window_size=6))
    sums: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        fuse(graph)
        sums.extend(node for node in graph.graph.nodes if "summed_linear" in str(node.target))
        return graph.forward

    torch._dynamo.reset()
    with torch.inference_mode(), use_attention(decoder._attend):
        token = torch.zeros(1, 1, dtype=torch.long)
        expected = decoder._model(token)
        torch.testing.assert_close(torch.compile(decoder._model, backend=backend)(token), expected)
    early = [node for node in sums if node.args[-1] is True]
    assert len(early) == n_early
    for node in early:
        first, other = (str(x.args[0].target) for x in node.args[0])
        assert "grouped_linear" in first and "grouped_linear" not in other
