"""The fixed baseline: contexts encoded from scratch for every token."""

import pytest
import torch
from transformers import PreTrainedModel

from streamcache.decoding.recompute import context_ids, recompute_nll, recompute_step
from tests import tiny

S, W = 3, 13


def by_hand(model: PreTrainedModel, ids: torch.Tensor, t: int) -> float:
    """The definition: context = first S and last W tokens up to t, at positions 0 ... n - 1."""
    kept = [i for i in range(t + 1) if i < S or i > t - W]
    with torch.no_grad():
        logits = model(input_ids=ids[kept][None], use_cache=False).logits[0, -1]
    return float(-torch.log_softmax(logits.double(), -1)[ids[t + 1]])


def test_every_position_is_predicted_from_its_own_context() -> None:
    model, ids = tiny.llama(), tiny.text(60)[0]
    positions = torch.tensor([40, 0, 15, 16, 58, 17, 2])
    nll = recompute_nll(model, ids, S, W, positions)
    assert nll.tolist() == pytest.approx([by_hand(model, ids, int(t)) for t in positions], abs=1e-4)


def test_the_context_is_the_whole_text_until_it_exceeds_the_window() -> None:
    ids = torch.arange(30)
    assert context_ids(ids, S, W, 15).tolist() == list(range(16))
    assert context_ids(ids, S, W, 16).tolist() == [0, 1, 2, *range(4, 17)]


def test_positions_without_a_next_token_are_refused() -> None:
    with pytest.raises(ValueError, match=r"0 \.\.\. 8"):
        recompute_nll(tiny.llama(), tiny.text(10)[0], S, W, torch.tensor([9]))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"n_sink": -1}, "n_sink must be an integer >= 0"),
        ({"window_size": 0}, "window_size must be an integer >= 1"),
        ({"positions": torch.tensor([1.5])}, "positions must be integers"),
        ({"positions": torch.tensor(3)}, "positions must be integers"),
        ({"positions": [-1]}, r"positions must lie in 0 \.\.\. 8"),
        ({"input_ids": torch.zeros(1, 10, dtype=torch.long)}, r"input_ids must be \[T\]"),
        ({"input_ids": [3, -100, 4]}, "input_ids has -100"),
        ({"input_ids": [3, 64, 4]}, "input_ids has 64: the model knows the tokens 0 ... 63"),
        ({"input_ids": torch.ones(10)}, "input_ids must be integers"),
    ],
)
def test_arguments_of_the_recompute_baseline_are_checked(
    arguments: dict[str, object], reason: str
) -> None:
    valid = {"input_ids": tiny.text(10)[0], "n_sink": S, "window_size": W, "positions": [1]}
    with pytest.raises(ValueError, match=reason):
        recompute_nll(tiny.llama(), **{**valid, **arguments})  # type: ignore[arg-type]


def test_lists_and_int32_are_the_same_text() -> None:
    model, ids = tiny.llama(), tiny.text(30)[0]
    expected = recompute_nll(model, ids, S, W, torch.tensor([3, 20]))
    assert torch.equal(recompute_nll(model, ids.int(), S, W, [3, 20]), expected)
    assert torch.equal(
        recompute_nll(model, ids.tolist(), S, W, torch.tensor([3, 20]).int()), expected
    )


def test_a_model_in_training_is_measured_without_dropout() -> None:
    model, ids = tiny.llama(attention_dropout=0.5), tiny.text(30)[0]
    expected = recompute_nll(model, ids, S, W, [3, 20])
    model.train()
    assert torch.equal(recompute_nll(model, ids, S, W, [3, 20]), expected)
    assert model.training


def test_a_timed_step_needs_a_full_window() -> None:
    model = tiny.llama()
    assert recompute_step(model, tiny.text(40)[0], S, W)().shape == (1, 1, tiny.VOCABULARY)
    with pytest.raises(ValueError, match="16 tokens"):
        recompute_step(model, tiny.text(10)[0], S, W)
