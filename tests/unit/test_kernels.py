"""Every operation of a decode step against float64: torch on a CPU, the Triton kernels on a GPU."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from streamcache.caches.ring import Step
from streamcache.caches.rope import RopeTable, Rotation
from streamcache.decoding.kernels import linear
from streamcache.decoding.kernels.attention import attend
from streamcache.decoding.kernels.fusion import fuse
from streamcache.decoding.kernels.int8 import Int8Linear

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
    **how: Any,
) -> tuple[Tensor, Tensor]:
    """What `attend` gives for a ring in some state of its life, and what it should.

    The stream is `seen` tokens long and `held` tokens of the window are left. The reference places
    the kept keys at positions 0 ... n - 1, in float64.
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
    k_ring[:, :, -1:] = turned(k_given.to(torch.float32), written[-1]).to(dtype)
    k, q = turned(k_ring.double(), -written), q_given.double()
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
        width**-0.5,
        **how,
    )
    assert distance(keys[:, :, slots], k_ring) < TOLERANCE[dtype]
    assert torch.equal(values[:, :, slots].cpu(), v)

    n = len(tokens)
    q, k = turned(q, n - 1), turned(k, torch.arange(n))
    scores = q.unflatten(1, (n_kv_heads, groups)).squeeze(3) @ k.mT * width**-0.5
    if softcap := how.get("softcap"):
        scores = (scores / softcap).tanh() * softcap
    if reach := how.get("reach"):
        scores[..., : max(0, n - reach)] = -torch.inf
    reference = scores.softmax(-1) @ v.double()
    return out, reference.flatten(1, 2)[:, None]


@given(
    batch=st.integers(1, 3),
    n_kv_heads=st.integers(1, 3),
    groups=st.integers(1, 4),
    width=st.sampled_from([32, 64, 80, 96, 128, 256]),
    n_sink=st.integers(0, 40),
    run=st.integers(1, 300),
    seen=st.integers(0, 900),
    missing=st.integers(0, 300),
    base=st.integers(0, 900),
    layout=st.sampled_from(["half", "interleaved", None]),
    dtype=st.sampled_from(list(TOLERANCE)),
    softcap=st.sampled_from([0.0, 5.0]),
    reach=st.sampled_from([0, 1, 50, 10_000]),
    seed=st.integers(0, 2**32),
)
def test_attention(dtype: torch.dtype, run: int, missing: int, **case: Any) -> None:
    held = max(0, run - 1 - missing)
    out, reference = attention_case(run=run, held=held, dtype=dtype, device=DEVICE, **case)
    assert out.dtype == dtype
    assert distance(out, reference) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 32, 1, 80), (32, 32, 1, 80), (8, 8, 4, 128), (2, 1, 16, 64)])
def test_attention_at_full_size(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    for seen in (0, 100, 2047, 2048, 5000):
        out, reference = attention_case(
            *shape, 4, 2044, seen, 2043, 1000, "half", dtype, torch.device("cuda"), seed=seen
        )
        assert distance(out, reference) < TOLERANCE[dtype]


def _random(*shape: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def _weight(height: int, width: int, quantised: bool, **how: Any) -> tuple[Tensor, Tensor | None]:
    """A weight [N, K] and its scale [N]; None for one that is not of 8-bit integers."""
    if not quantised:
        return _random(height, width, **how) * width**-0.5, None
    weight = torch.randint(-128, 128, (height, width), generator=how["generator"]).to(torch.int8)
    scale = (_random(height, **how).abs() + 0.5) * (width**-0.5 / 74)
    return weight.to(DEVICE), scale


def _product(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    y = x.double() @ weight.double().mT
    return y if scale is None else y * scale.double()


@given(
    n_tokens=st.integers(1, 3),
    width=st.sampled_from([64, 80, 512, 1000, 2560]),
    heights=st.lists(st.sampled_from([1, 7, 64, 130]), min_size=1, max_size=3),
    normed=st.sampled_from([None, "gain", "both"]),
    biased=st.booleans(),
    activation=st.sampled_from(list(linear.ACTIVATIONS)),
    quantised=st.booleans(),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**32),
)
def test_layers_side_by_side(
    n_tokens: int,
    width: int,
    heights: list[int],
    normed: str | None,
    biased: bool,
    activation: str,
    quantised: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    how: Any = {"dtype": dtype, "generator": torch.Generator().manual_seed(seed)}
    x = _random(1, n_tokens, width, **how) + 3  # a mean that a norm must take away
    weights, scales = zip(*[_weight(n, width, quantised, **how) for n in heights])
    biases = [_random(n, **how) if biased else None for n in heights]
    gains = [_random(width, **how) if normed else None for _ in heights]
    shifts = [_random(width, **how) if normed == "both" else None for _ in heights]
    names = ",".join([activation, *[""] * (len(heights) - 1)])
    outs = linear.side_by_side(x, weights, scales, biases, gains, shifts, 1e-5, names)
    affine = list(zip(gains, shifts, biases))
    for i, out in enumerate(outs):
        y = x.double()
        gain, shift, bias = (p if p is None else p.double() for p in affine[i])
        if gain is not None:
            y = F.layer_norm(y, (width,), gain, shift, 1e-5)
        y = _product(y, weights[i], scales[i]) + (0 if bias is None else bias)
        y = linear.ACTIVATIONS[activation](y) if i == 0 else y
        assert out.dtype == dtype and out.shape == y.shape
        assert distance(out, y) < 2 * TOLERANCE[dtype] or float(y.norm()) < 0.5


@given(
    n_tokens=st.integers(1, 3),
    widths=st.lists(st.sampled_from([64, 80, 512, 1000, 10240]), min_size=1, max_size=3),
    height=st.sampled_from([1, 7, 64, 130]),
    biased=st.booleans(),
    residual=st.booleans(),
    quantised=st.lists(st.booleans(), min_size=3, max_size=3),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 2**32),
)
def test_layers_added(
    n_tokens: int,
    widths: list[int],
    height: int,
    biased: bool,
    residual: bool,
    quantised: list[bool],
    dtype: torch.dtype,
    seed: int,
) -> None:
    how: Any = {"dtype": dtype, "generator": torch.Generator().manual_seed(seed)}
    xs = [_random(1, n_tokens, width, **how) for width in widths]
    made = [_weight(height, width, how8, **how) for width, how8 in zip(widths, quantised)]
    weights, scales = zip(*made)
    biases = [_random(height, **how) if biased else None for _ in widths]
    rest = _random(1, n_tokens, height, **how) if residual else None
    out = linear.added(xs, weights, scales, biases, rest)
    products = [_product(*layer) for layer in zip(xs, weights, scales)]
    y = torch.stack(
        [*products, *(b.double().expand_as(products[0]) for b in biases if b is not None)]
    )
    y = y.sum(0)
    y = y if rest is None else y + rest.double()
    assert out.dtype == dtype and out.shape == y.shape
    assert distance(out, y) < 2 * TOLERANCE[dtype] or float(y.norm()) < 0.5


class Block(nn.Module):
    """A parallel block, a gated one, one of integers; and a weight that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32, bias=False)
        self.a, self.b, self.c = nn.Linear(32, 48), nn.Linear(32, 32), nn.Linear(48, 32, bias=False)
        self.drop = nn.Dropout(0.3)
        weight = torch.randint(-128, 128, (32, 32), dtype=torch.int8)
        self.small = Int8Linear(weight, torch.rand(32) / 400, torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            y = self.norm(x)
            wide, deep = F.gelu(self.a(y)), self.b(self.norm2(x))
            x = self.drop(self.c(wide)) + self.b(deep) + x
            x = x + self.c(F.silu(self.a(x)) * self.a(x))
        x = x + self.small(x) + self.a(x)[..., :32]
        x = self.b(self.norm(x)[:, 0:, :])
        return F.linear(x, self.c.weight.mT)


def test_a_graph_means_the_same_when_it_is_fused() -> None:
    torch._dynamo.reset()
    block, x = Block().eval(), torch.randn(1, 1, 32)
    targets: list[str] = []

    def backend(module: Any, inputs: Any) -> Any:
        fuse(module)
        targets.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    with torch.no_grad():
        assert torch.allclose(torch.compile(block, backend=backend)(x), block(x), atol=1e-5)
    assert targets.count("streamcache.side_by_side.default") == 2 * 2 + 2
    assert targets.count("streamcache.added.default") == 2 * 2 + 1
    assert sum("linear" in target for target in targets) == 1
