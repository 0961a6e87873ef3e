"""Rules that look at content: what is kept, each against a decode written out by hand."""

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from examples.content_rules import KeyDiff, Tova
from streamcache import EvictionPolicy, StreamingCache, streaming_nll
from streamcache.caches.scored import Entries, ScoredCache, ScoredPolicy
from streamcache.inputs.corpora import TokenizedText, digest_of
from streamcache.inputs.models import LoadedModel
from streamcache.measure.configurations import SCORED, Configuration
from streamcache.measure.imported import imported_configuration
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload
from streamcache.policy import PolicyError
from streamcache.testing import check_cache, check_policy, logit_error
from tests.shell import Run
from tests.tiny import llama, neox, text

ROOT = Path(__file__).parents[2]
RULES = ROOT / "examples" / "content_rules.py"


@dataclass(frozen=True)
class Oldest(ScoredPolicy):
    """Content that says the same as age."""

    def scores(self, entries: Entries) -> Tensor:
        return torch.arange(entries.keys.shape[2]).expand(entries.keys.shape[:3])


@pytest.mark.parametrize("model", [llama, neox])
def test_the_oldest_entry_has_the_lowest_score_of_a_window(model: Any) -> None:
    check_cache(ScoredCache, model(), Oldest(n_sink=2, total=12))


class ByHand:
    """A Llama in float64, token by token: each head of each layer keeps its own list of entries."""

    def __init__(self, model: Any, n_sink: int, total: int, looks_at: str):
        self.model, self.n_sink, self.total, self.looks_at = model.double(), n_sink, total, looks_at
        self.heads = range(model.config.num_key_value_heads)
        self.kept: list[list[list[tuple[Tensor, Tensor]]]] = [
            [[] for _ in self.heads] for _ in model.model.layers
        ]
        self.attention: dict[tuple[int, int], Tensor] = {}

    def evict(self, layer: int) -> None:
        if len(self.kept[layer][0]) < self.total:
            return
        used = sum(self.attention[layer, head] for head in self.heads)
        for head in self.heads:
            entries = self.kept[layer][head]
            values = [float(x) for x in used]  # type: ignore[union-attr]
            if self.looks_at == "keys":
                unit = torch.stack([k / k.norm() for k, _ in entries])
                mean = unit.mean(dim=0)
                values = [-float(x) for x in unit @ (mean / mean.norm())]
            candidates = range(self.n_sink, len(entries) - 1)
            del entries[min(candidates, key=values.__getitem__)]

    def turn(self, x: Tensor, position: Tensor) -> Tensor:
        """Vectors [n, D] at positions [n]."""
        half = x.shape[-1] // 2
        angle = position[:, None] * 10000.0 ** (-torch.arange(half).double() / half)
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], 1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.evict(layer)
        outputs = []
        per_group = len(q) // len(self.heads)
        for head in self.heads:
            entries = self.kept[layer][head]
            entries.append((k[head], v[head]))
            places = torch.arange(len(entries)).double()
            keys = self.turn(torch.stack([key for key, _ in entries]), places)
            values = torch.stack([value for _, value in entries])
            used = torch.zeros(len(entries)).double()
            for query in q[head * per_group : (head + 1) * per_group]:
                turned = self.turn(query[None], places[-1:])[0]
                weights = (keys @ turned / math.sqrt(len(query))).softmax(0)
                used += weights
                outputs.append(weights @ values)
            self.attention[layer, head] = used
        return torch.cat(outputs)

    @torch.no_grad()
    def step(self, token: int) -> Tensor:
        x = self.model.model.embed_tokens.weight[token]
        for i, layer in enumerate(self.model.model.layers):
            a, h = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (
                linear(h, p.weight).view(-1, a.head_dim) for p in (a.q_proj, a.k_proj, a.v_proj)
            )
            x = x + linear(self.attend(i, q, k, v), a.o_proj.weight)
            m, h = layer.mlp, layer.post_attention_layernorm(x)
            gated = silu(linear(h, m.gate_proj.weight)) * linear(h, m.up_proj.weight)
            x = x + linear(gated, m.down_proj.weight)
        return linear(self.model.model.norm(x), self.model.lm_head.weight)


@torch.no_grad()
@pytest.mark.parametrize(
    "total", [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (256, 512, 1024))]
)
@pytest.mark.parametrize(("rule", "looks_at"), [(KeyDiff, "keys"), (Tova, "attention")])
def test_the_worked_examples_agree_with_a_decode_by_hand(
    rule: Any, looks_at: str, total: int
) -> None:
    model, ids = llama(max_position_embeddings=2048), text(total + 40)
    cache = ScoredCache(model, rule(n_sink=1, total=total))
    found = torch.cat(
        [cache.model(input_ids=t, past_key_values=cache).logits[0] for t in ids.split(1, dim=1)]
    )
    hand = ByHand(llama(max_position_embeddings=2048), 1, total, looks_at)
    expected = torch.stack([hand.step(int(token)) for token in ids[0]])
    assert logit_error(found, expected) < 1e-4
    fifo = streaming_nll(model, ids[0], EvictionPolicy(1, total - 1))
    own = torch.nn.functional.cross_entropy(found[:-1], ids[0, 1:], reduction="none")
    assert (own - fifo).abs().max() > 0.01, "it keeps something else than the newest"


@torch.no_grad()
def test_a_saved_stream_goes_on_with_the_attention_that_decides(tmp_path: Path) -> None:
    model, ids, rule = llama(), text(30), Tova(n_sink=1, total=8)
    cache, other = ScoredCache(model, rule), ScoredCache(model, rule)

    def feed(to: ScoredCache, tokens: Tensor) -> Tensor:
        pieces = tokens.split(1, dim=1)
        return torch.cat([to.model(input_ids=t, past_key_values=to).logits for t in pieces])

    feed(cache, ids[:, :15])
    cache.save(tmp_path / "stream")
    other.load(tmp_path / "stream")
    assert torch.equal(feed(other, ids[:, 15:]), feed(cache, ids[:, 15:]))


@pytest.mark.parametrize("rule", [KeyDiff, Tova])
def test_the_worked_examples_pass_the_checks_of_the_kit(rule: Any) -> None:
    check_policy(rule(n_sink=4, total=32))


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (lambda self, entries: entries.attention[0], "scores are"),
        (lambda self, entries: entries.attention * float("nan"), "no finite number"),
        (lambda self, entries: torch.rand(entries.attention.shape), "two answers"),
        (lambda self, entries: entries.attention.mul_(2).clone(), "two answers|changed"),
    ],
)
def test_the_kit_finds_what_is_wrong_with_scores(scores: Any, said: str) -> None:
    wrong: Any = dataclass(frozen=True)(type("Wrong", (ScoredPolicy,), {"scores": scores}))
    with pytest.raises(AssertionError, match=said):
        check_policy(wrong(n_sink=1, total=8))


def test_where_counts_decide_content_is_refused_and_the_reverse() -> None:
    model, rule = llama(), KeyDiff(n_sink=1, total=10)
    with pytest.raises(PolicyError, match="KeyDiff decides by content"):
        StreamingCache(model, rule)
    with pytest.raises(PolicyError, match="has no one pass"):
        streaming_nll(model, text(20)[0], rule)
    with pytest.raises(TypeError, match="is not a ScoredPolicy"):
        ScoredCache(model, EvictionPolicy(1, 9))
    with pytest.raises(PolicyError, match="leaves no entry to evict"):
        ScoredCache(model, KeyDiff(n_sink=9, total=10))
    with pytest.raises(ValueError, match="rules that look at content"):
        Configuration(rule, "streaming")


def test_a_measurement_is_sequential_says_so_and_is_found_again(tmp_path: Path) -> None:
    ids = text(60)[0]
    words = TokenizedText("words", ids, digest_of(ids), "file")
    workload = Workload(LoadedModel(llama(), None, "tiny", "sha256:0"), words, window=None)
    configuration, store = Configuration(KeyDiff(1, 10), SCORED), Store(tmp_path)
    measured = run(configuration, workload, What(tpot_tokens=0), store)
    record = measured.record
    assert record.quality is not None and record.quality.method == "sequential"
    assert record.configuration == {
        "rule": "KeyDiff",
        "n_sink": 1,
        "total": 10,
        "cache": "scored",
    }
    assert record.evictions.entries == 49
    again = run(configuration, workload, What(tpot_tokens=0), store)
    assert again.record.date == record.date and again.path == measured.path


QUICK = ("--max-eval-tokens", "140", "--cap-total", "64", "--positions", "1", "--tpot-tokens", "0")


def test_commands_take_a_rule_by_its_path(run: Run) -> None:
    ran = run("eval", *QUICK, "--policy", f"{RULES}:KeyDiff")
    assert ran.status == 0, ran.err
    assert "scored KeyDiff" in ran.out and "PPL by sequential" in ran.out
    ran = run("eval", *QUICK, "--policy", f"{ROOT}/examples/own_rule.py:HalveWhenFull")
    assert ran.status == 0, ran.err
    assert "HalveWhenFull" in ran.out and "PPL by one-pass" in ran.out


def test_a_rule_is_found_in_a_module_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine.py").write_text(RULES.read_text())
    found = imported_configuration("mine:Tova", 2, 16)
    assert (found.cache, found.label, found.policy.capacity) == (SCORED, "Tova", 16)
    halving = imported_configuration(f"{ROOT}/examples/own_rule.py:HalveWhenFull", 2, 16)
    assert (halving.cache, halving.policy.floor) == ("streaming", 9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--policy", "KeyDiff"], "module:Class or file.py:Class"),
        (["--policy", "no_such_module:X"], "cannot import"),
        (["--policy", f"{RULES}:Nothing"], "cannot import"),
        (["--policy", "collections:Counter"], "is not a policy"),
        (["--policy", "pathlib:Path"], "called with n_sink and total"),
        (["--policy", f"{RULES}:KeyDiff", "--window-size", "9"], "leave out --window-size"),
        (["--policy", f"{RULES}:KeyDiff", "--streaming-mode", "mit"], "its own cache"),
        (["--policy", f"{RULES}:KeyDiff", "--mode", "baseline"], "leave out --policy"),
    ],
)
def test_what_cannot_be_gets_one_line(run: Run, given: list[str], said: str) -> None:
    ran = run("eval", *given)
    assert ran.status == 2 and ran.err.count("\n") == 1 and re.search(said, ran.err), ran.err
