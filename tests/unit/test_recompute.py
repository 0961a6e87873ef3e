"""The fixed baseline: contexts re-encoded from scratch, and a stored one that is checked."""

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from streamcache.decoding.nll import NotFiniteError
from streamcache.decoding.recompute import context_ids, recompute_nll, recompute_step
from streamcache.measure import baseline as baselines
from streamcache.measure import records
from streamcache.measure.baseline import BaselineMismatch, Fingerprint, obtain
from streamcache.measure.records import RecordError
from streamcache.policy import EvictionPolicy
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


def wanted(**changes: object) -> Fingerprint:
    fields: dict[str, object] = {
        "model": "tiny",
        "revision": "seed0",
        "dtype": "float32",
        "text_digest": "d",
        "n_tokens": 60,
        "n_sink": S,
        "window_size": W,
        "late_positions": 5,
    }
    return Fingerprint(**{**fields, **changes})  # type: ignore[arg-type]


def test_all_early_positions_and_evenly_spread_late_ones() -> None:
    positions = wanted().positions().tolist()
    assert positions[:16] == list(range(16))
    assert len(positions) == 21 and positions[16] == 16 and positions[-1] == 58
    assert positions == sorted(set(positions))
    assert wanted(n_tokens=10).positions().tolist() == list(range(9))
    assert wanted(late_positions=43).positions().tolist() == list(range(59))


def test_a_baseline_is_made_once_and_reused(tmp_path: Path) -> None:
    model, ids, path = tiny.llama(), tiny.text(60)[0], tmp_path / "b.json"
    done: list[int] = []
    first = obtain(path, wanted(), model, ids, done.append)
    assert sum(done) == len(first.nll) == 21
    again = obtain(path, wanted(), None, ids, lambda n: None)  # type: ignore[arg-type]
    assert again == first


def test_an_interrupted_baseline_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, ids, path = tiny.llama(), tiny.text(60)[0], tmp_path / "b.json"
    whole = obtain(tmp_path / "whole.json", wanted(), model, ids, lambda n: None)
    half = msgspec.structs.replace(whole, nll=[7.0, *whole.nll[1:18]])
    records.write(path, half)
    resumed = obtain(path, wanted(), model, ids, lambda n: None)
    assert resumed.nll[0] == 7.0, "what was finished is not computed again"
    assert resumed.nll[18:] == pytest.approx(whole.nll[18:], abs=1e-5)


@pytest.mark.parametrize(
    "field, value",
    [
        ("model", "other"),
        ("revision", "seed1"),
        ("dtype", "float16"),
        ("text_digest", "e"),
        ("n_tokens", 50),
        ("n_sink", 4),
        ("window_size", 12),
        ("late_positions", 6),
    ],
)
def test_a_baseline_of_something_else_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "b.json"
    records.write(path, baselines.Baseline(wanted(), [0.0] * 21))
    with pytest.raises(BaselineMismatch, match=rf"its {field} is .*streamcache baseline") as caught:
        obtain(path, wanted(**{field: value}), None, None, lambda n: None)  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text('{"schema": "streamcache-baseline"')
    with pytest.raises(RecordError, match="not a readable streamcache baseline"):
        baselines.read(path)


def test_a_file_with_more_numbers_than_positions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    records.write(path, baselines.Baseline(wanted(), [1.0] * 22))
    with pytest.raises(RecordError, match="22 NLLs for 21 positions"):
        baselines.read(path)


def test_replaced_is_what_is_finished_and_what_is_half_done_goes_on(tmp_path: Path) -> None:
    model, ids, path = tiny.llama(), tiny.text(60)[0], tmp_path / "b.json"
    for n, kept in ((21, False), (18, True)):
        records.write(path, baselines.Baseline(wanted(), [7.0] * n))
        made = obtain(path, wanted(), model, ids, lambda n: None, replace=True)
        assert (made.nll[0] == 7.0) is kept and len(made.nll) == 21


def test_the_way_out_of_a_mismatch_is_the_command_that_makes_what_fits(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    records.write(path, baselines.Baseline(wanted(window_size=5), []))
    with pytest.raises(BaselineMismatch) as caught:
        obtain(path, wanted(), None, None, lambda n: None)  # type: ignore[arg-type]
    command = f"--n-sink {S} --window-size {W} --max-eval-tokens 60 --positions 5"
    assert f"`streamcache baseline {command} --baseline-file {path}`" in str(caught.value)


def test_a_baseline_is_of_its_device_and_libraries(tmp_path: Path) -> None:
    here = records.environment(torch.device("cpu"))
    subject = records.Subject("tiny", "seed0", "float32", "t", "file", "d", 60)
    made = [
        baselines.wanted_for(subject, EvictionPolicy(S, W), 5, where)
        for where in (
            here,
            msgspec.structs.replace(here, device="NVIDIA H100"),
            msgspec.structs.replace(here, torch="2.6"),
            msgspec.structs.replace(here, transformers="5.17"),
            msgspec.structs.replace(here, streamcache="0.0.1"),
            None,
        )
    ]
    assert len({one.digest() for one in made}) == len(made)
    path = tmp_path / "old.json"  # as written before these were kept
    old = msgspec.to_builtins(baselines.Baseline(made[-1], []))
    for name in ("device", "torch", "transformers", "streamcache"):
        del old["fingerprint"][name]
    path.write_bytes(msgspec.json.encode(old))
    with pytest.raises(BaselineMismatch, match="its device is ''"):
        obtain(path, made[0], None, None, lambda n: None)  # type: ignore[arg-type]


def test_an_interruption_keeps_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, path = tiny.llama(), tiny.text(60)[0], tmp_path / "b.json"
    fingerprint, real, calls = wanted(late_positions=40), recompute_nll, []

    def interrupted(*arguments: object, **others: object) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(baselines, "recompute_nll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        obtain(path, fingerprint, model, ids, lambda n: None)
    assert len(baselines.read(path).nll) == 16 + 16
    whole = obtain(path, fingerprint, model, ids, lambda n: None)
    assert len(whole.nll) == 56 == len(baselines.read(path).nll)


def test_a_model_that_predicts_no_numbers_is_refused(tmp_path: Path) -> None:
    model = tiny.llama()
    model.lm_head.weight.data[3, 5] = torch.nan
    with pytest.raises(NotFiniteError, match="prediction 0 of 16 is nan"):
        obtain(tmp_path / "b.json", wanted(), model, tiny.text(60)[0], lambda n: None)
