"""Attention to what a stream holds: by every way of computing it, as written out in float64."""

import random
from typing import Literal

import pytest
import torch
from torch import Tensor

from streamcache.caches import retained_attention as ways
from streamcache.caches.attention_override import Scores
from streamcache.caches.one_pass import angles, rotate
from streamcache.caches.retained_attention import Band, States, retained_attention
from streamcache.caches.rope import RopeTable, Rotation
from streamcache.policy import EvictionPolicy, checked_drop


class Case:
    """Random states of a stream under a random policy, and how a layer scores them."""

    def __init__(self, seed: int, width: int = 40):
        draw, torch_draw = random.Random(seed), torch.Generator().manual_seed(seed)
        self.n_sink = draw.choice([0, 1, 4, 20])
        rest = draw.choice([None, 0, 5]), draw.choice([None, 3]), draw.choice([1, 4])
        policy = EvictionPolicy(self.n_sink, draw.choice([1, 17, 60]), *rest)
        self.n_before, n = draw.choice([0, 30, 90]), draw.choice([5, 70, 150])
        counts, evicted = list[int](), 0
        for seen in range(self.n_before + n):
            evicted += checked_drop(policy, seen, seen - evicted)
            counts.append(evicted)
        self.counts = counts[self.n_before :]
        batch, groups, n_kv_heads = draw.choice([1, 2]), draw.choice([1, 3]), draw.choice([1, 2])

        def states(n_heads: int, n_tokens: int) -> Tensor:
            return torch.randn(batch, n_heads, n_tokens, width, generator=torch_draw)

        self.query = states(n_kv_heads * groups, n)
        self.key = states(n_kv_heads, self.n_before + n)
        self.value = states(n_kv_heads, self.n_before + n)
        frequencies = torch.rand(5, generator=torch_draw, dtype=torch.float64)
        layout: Literal["half", "interleaved"] = "half" if seed % 2 else "interleaved"
        self.rotation = Rotation(layout, draw.choice([0, 4]), frequencies)
        learned = torch.randn(n_kv_heads * groups, generator=torch_draw)
        softcap, window = draw.choice([0.0, 5.0]), draw.choice([0, 9])
        self.scores = Scores(width**-0.5, softcap, window, draw.choice([None, learned]))

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Case":
        self.query, self.key, self.value = (
            states.to(device, dtype) for states in (self.query, self.key, self.value)
        )
        if self.scores.learned_sinks is not None:
            learned = self.scores.learned_sinks.to(device, dtype)
            self.scores = self.scores._replace(learned_sinks=learned)
        self.rotation = self.rotation.to(torch.device(device))
        return self

    @property
    def band(self) -> Band:
        return Band(self.n_before, self.counts, self.n_sink, self.query.device)

    def keys(self) -> Tensor:
        positions = torch.arange(self.key.shape[2], device=self.key.device)
        return rotate(self.key, self.rotation, angles(self.rotation, positions))

    def computed(self) -> Tensor:
        band, keys = self.band, self.keys()
        token, evicted = band.queries()
        here, to_sinks = (
            rotate(self.query, self.rotation, angles(self.rotation, positions))
            for positions in (token, token - evicted)
        )
        run = States(*(s[:, :, band.first_key :] for s in (keys, self.value)))
        sinks = States(*(s[:, :, : self.n_sink] for s in (keys, self.value)))
        return retained_attention(here, to_sinks, run, sinks, band, self.scores)

    def by_kernels(self) -> Tensor:
        from streamcache.caches import retained_attention_triton as kernels

        band, keys = self.band, self.keys()
        token, evicted = band.queries()
        width, n_held = self.query.shape[-1], self.n_before - band.first_key
        table = RopeTable.at(self.rotation, width, token)
        in_cache = RopeTable.at(self.rotation, width, token - evicted)
        run = States(*(s[:, :, band.first_key :].clone() for s in (keys, self.value)))
        for states in run:  # what `append` has to write
            states[:, :, n_held:] = torch.nan
        new = self.key[:, :, self.n_before :], self.value[:, :, self.n_before :]
        kernels.append(*new, *run, n_held, table)
        sinks = States(*(s[:, :, : self.n_sink].contiguous() for s in (keys, self.value)))
        limits = band.limits(self.scores.sliding_window)
        return kernels.attend(self.query, run, sinks, *limits, (table, in_cache), self.scores)


@pytest.mark.parametrize("seed", range(12))
def test_the_kernel_of_the_cpu_is_the_softmax_written_out(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "_TILE", 12)
    fused = Case(seed).computed()
    monkeypatch.setattr(ways, "_fused", ways._plain)
    written_out = Case(seed).to(torch.float64).computed()
    assert (fused - written_out).abs().max() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("width", [40, 64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernels_of_a_gpu_are_the_softmax_written_out(
    seed: int, width: int, dtype: torch.dtype
) -> None:
    rounded = Case(seed, width).to(dtype, "cuda")
    exact = Case(seed, width).to(dtype, "cuda").to(torch.float64, "cuda").computed()
    error = (rounded.by_kernels().double() - exact).norm() / exact.norm()
    assert error < (1e-2 if dtype is torch.bfloat16 else 2e-3)
