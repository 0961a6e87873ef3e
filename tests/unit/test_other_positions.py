"""Positions with gaps, and positions that wrap: the same entries, seen from elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamcache import EvictionPolicy, streaming_nll
from streamcache.caches import one_pass
from streamcache.caches.other_positions import ONE_PASSES
from streamcache.decoding.checkpoint import Checkpoint
from streamcache.inputs.corpora import TokenizedText, digest_of
from streamcache.inputs.models import LoadedModel
from streamcache.measure.configurations import NAMED, Configuration, identity
from streamcache.measure.run import What, run
from streamcache.measure.steps import cache_of
from streamcache.measure.workload import Workload
from streamcache.testing import kept_tokens
from tests.tiny import copy_of, llama, neox, text

POLICIES = [EvictionPolicy(2, 10), EvictionPolicy(3, 8, cache_slack=3, compress_every=7)]


@torch.no_grad()
def by_mask(model: Any, policy: EvictionPolicy, ids: Tensor, positions: list[int]) -> Tensor:
    """NLL [T - 1] of one ordinary forward in float64: what a token sees is a mask, and its position
    one of the model's own arguments."""
    mask = torch.full((len(ids), len(ids)), -torch.inf, dtype=torch.float64)
    for query, kept in enumerate(kept_tokens(policy, len(ids))):
        mask[query, kept] = 0
    logits = copy_of(model, torch.float64)(
        input_ids=ids[None],
        attention_mask=mask[None, None],
        position_ids=torch.tensor([positions]),
    ).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")


def positions_of(kind: str, policy: EvictionPolicy, n_tokens: int) -> list[int]:
    n_sink, n_slots = policy.n_sink, policy.capacity - policy.n_sink
    if kind == "gaps":
        return list(range(n_tokens))
    return [t if t < n_sink else n_sink + (t - n_sink) % n_slots for t in range(n_tokens)]


@pytest.mark.parametrize("policy", POLICIES, ids=["one at a time", "lazy"])
@pytest.mark.parametrize("family", [llama, neox])
@pytest.mark.parametrize("kind", ["gaps", "wrap"])
def test_they_are_those_of_a_forward_that_is_given_them(
    kind: str, family: Any, policy: EvictionPolicy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(one_pass._BLOCK, "cpu", 16)
    model, ids = family(), text(60)[0]
    expected = by_mask(model, policy, ids, positions_of(kind, policy, len(ids)))
    found = streaming_nll(model, ids, policy, kind=ONE_PASSES[kind])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    compact = streaming_nll(model, ids, policy)
    assert (found - compact).abs().max() > 0.01, "other positions than those of places"

    checkpoint = Checkpoint(tmp_path / "state", every_s=0.0)
    head = streaming_nll(model, ids[:33], policy, None, checkpoint, kind=ONE_PASSES[kind])
    resumed = streaming_nll(model, ids, policy, None, checkpoint, kind=ONE_PASSES[kind])
    assert torch.equal(resumed[:32], head)
    torch.testing.assert_close(resumed, found, rtol=0, atol=1e-4)


def test_without_sinks_gaps_change_nothing() -> None:
    model, ids, policy = llama(), text(50)[0], EvictionPolicy(0, 12)
    found = streaming_nll(model, ids, policy, kind=ONE_PASSES["gaps"])
    torch.testing.assert_close(found, streaming_nll(model, ids, policy), rtol=0, atol=1e-5)


def test_they_are_named_configurations_that_have_a_ppl_and_no_cache() -> None:
    assert identity(NAMED["gaps"]) == {**identity(NAMED["fast"]), "positions": "gaps"}
    ids = text(40)[0]
    words = TokenizedText("words", ids, digest_of(ids), "file")
    workload = Workload(LoadedModel(llama(), None, "tiny", "sha256:0"), words, window=None)
    wrap = Configuration(EvictionPolicy(2, 10), "streaming", positions="wrap", label="wrap")
    measured = run(wrap, workload, What(tpot_tokens=0))
    expected = streaming_nll(workload.loaded.model, ids, wrap.policy, kind=ONE_PASSES["wrap"])
    assert measured.nll is not None
    assert torch.equal(torch.tensor(measured.nll), expected.double())
    with pytest.raises(ValueError, match="wrap is computed in one pass only"):
        cache_of(wrap, workload.loaded.model)
    with pytest.raises(ValueError, match="one pass only"):
        run(wrap, workload, What("sequential", tpot_tokens=0))
    with pytest.raises(ValueError, match="one pass only"):
        Configuration(EvictionPolicy(2, 10), "ring", positions="wrap")
    with pytest.raises(ValueError, match="give one of compact, gaps, wrap"):
        Configuration(EvictionPolicy(2, 10), "streaming", positions="else")
