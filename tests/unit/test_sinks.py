"""Attention on the first tokens, PPL by the number of sinks, and what to choose."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from streamcache import EvictionPolicy, streaming_nll
from streamcache.caches.attention_override import AttentionOverrideError
from streamcache.decoding.attention_mass import attention_mass
from streamcache.inputs.corpora import TokenizedText, digest_of
from streamcache.inputs.models import LoadedModel
from streamcache.measure import sinks
from streamcache.measure.sinks import SinkRow, Sinks, measure_sinks
from streamcache.measure.workload import Workload
from streamcache.report.sinks import sinks_tables
from tests.cases import ADMITTED
from tests.shell import Run
from tests.tiny import llama, text, tiny

T = 40


def eager_weights(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Attention weights [L, H, T, T] as transformers gives them."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.cat(model(input_ids=ids, output_attentions=True).attentions)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "qwen3", "gpt_oss"])
def test_attention_is_that_of_the_model(family: str) -> None:
    model, ids = tiny(family, **ADMITTED[family]), text(T)
    found = attention_mass(model, ids[0], 3)
    weights = eager_weights(model, ids)
    late = weights[:, :, T // 2 :]
    torch.testing.assert_close(found.first, late[..., :3].mean(dim=2), rtol=0, atol=1e-5)
    # What is left of the weights of a layer is on its learned sinks.
    torch.testing.assert_close(found.learned, 1 - late.sum(-1).mean(2), rtol=0, atol=1e-5)
    assert (found.learned > 0.001).any() == (family == "gpt_oss")


def test_the_model_is_left_as_it_was() -> None:
    model, ids = llama(), text(T)
    before = model(ids).logits
    attention_mass(model, ids[0], 2)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)


def test_a_model_with_attention_of_its_own_is_refused() -> None:
    with pytest.raises(AttentionOverrideError):
        attention_mass(tiny("mpt", **ADMITTED["mpt"]), text(T)[0], 2)


def workload_of(model: Any, n_tokens: int) -> Workload:
    ids = text(n_tokens)[0]
    words = TokenizedText("words", ids, digest_of(ids), "file")
    return Workload(LoadedModel(model, None, "tiny", "sha256:0"), words)


def test_rows_are_of_one_total_and_of_the_same_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "N_SINKS", (0, 4))
    workload = workload_of(llama(), 100)
    found = measure_sinks(workload, 30)
    for row in found.rows:
        policy = EvictionPolicy(row.n_sink, row.window_size)
        assert policy.capacity == 30
        nll = streaming_nll(workload.loaded.model, workload.text.input_ids, policy)
        assert row.ppl == pytest.approx(nll[29:].mean().exp().item(), rel=1e-5)
    lowest, other = sorted(found.rows, key=lambda row: row.ppl)
    assert (lowest.increase, lowest.error) == (0, 0)
    assert other.increase == pytest.approx(other.ppl / lowest.ppl - 1, rel=1e-4)
    assert other.error > 0
    with pytest.raises(ValueError, match="does not fill"):
        measure_sinks(workload, 99)


def test_ppl_is_measured_where_attention_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise AttentionOverrideError("for a reason")

    monkeypatch.setattr(sinks, "attention_mass", refuse)
    monkeypatch.setattr(sinks, "N_SINKS", (0, 1))
    found = measure_sinks(workload_of(llama(), 60), 20)
    assert (found.n_attended, found.why_not, len(found.rows)) == (0, "for a reason", 2)
    assert len(sinks_tables(found)) == 1


def rows(*increases: float) -> tuple[SinkRow, ...]:
    pairs = zip((0, 1, 2, 4), increases)
    return tuple(SinkRow(n, 64 - n, 10.0 * (1 + x), x, 0.0) for n, x in pairs)


@pytest.mark.parametrize(
    ("increases", "chosen"),
    [
        ((0.7, 0.02, 0.004, 0.0), 2),  # as Pythia: the fewest that are enough
        ((0.001, 0.0, 0.001, 0.003), 0),  # learned sinks, or gated attention: none is needed
        ((0.7, 0.3, 0.1, 0.0), 4),
    ],
)
def test_the_fewest_sinks_that_are_enough_are_chosen(
    increases: tuple[float, ...], chosen: int
) -> None:
    found = SimpleNamespace(rows=rows(*increases))
    assert Sinks.chosen.fget(found) == chosen  # type: ignore[attr-defined]


def test_the_command_finds_the_sinks_of_the_reference_model(run: Run, tmp_path: Path) -> None:
    ran = run("sinks", "--max-eval-tokens", "400", "--cap-total", "64")
    assert ran.status == 0, ran.err
    (path,) = (tmp_path / "runs" / "sinks").iterdir()
    found = msgspec.json.decode(path.read_bytes(), type=Sinks)
    assert 1 <= found.chosen <= 16 and found.rows[0].increase > 0.05
    assert f"choose S = {found.chosen}" in ran.out
    first = [max(head[0] for head in layer) for layer in found.attention]
    assert max(first) > 20 * found.uniform
    assert "first token" in ran.out and "learned sink" not in ran.out
    ran = run("summarize")
    assert ran.status == 0 and not ran.err
    assert "choose S" in (tmp_path / "runs" / "summary.md").read_text()


def test_a_text_that_is_too_short_and_random_weights_get_one_line(run: Run) -> None:
    for arguments in (["--max-eval-tokens", "500"], ["--model-name", "random:4x128"]):
        ran = run("sinks", *arguments)
        assert ran.status == 2 and ran.err.count("\n") == 1
