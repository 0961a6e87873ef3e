"""The ladder: bytes of a step, rows that are measured, and the command."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from streamcache.inputs.models import LoadedModel, load_model
from streamcache.measure import ladder as ladders
from streamcache.measure.ladder import Ladder, Row, copy_rate, measure_ladder, weight_bytes
from streamcache.policy import EvictionPolicy
from tests.shell import Run
from tests.tiny import llama

POLICY = EvictionPolicy(4, 60)


def test_a_row_relates_its_time_to_the_roofline() -> None:
    row = Row("captured", ms=2.0, roofline_ms=1.5, batch=8)
    assert row.mbu == 0.75 and row.tokens_per_s == 4000
    assert Row("recompute baseline", ms=2.0).mbu is None


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_reads_all_weights_but_an_embedding_that_is_looked_up(tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    embedding: Any = model.get_input_embeddings().weight
    total = sum(p.numel() * 4 for p in model.parameters())
    assert weight_bytes(model) == total - (0 if tied else embedding.numel() * 4)


def test_quantised_weights_count_as_what_they_hold() -> None:
    plain, int8 = (load_model("reference", quantization=how).model for how in (None, "int8"))
    assert weight_bytes(int8) < 0.45 * weight_bytes(plain)


def test_the_cache_counts_keys_and_values_of_all_streams() -> None:
    model = llama()  # two layers, two KV heads of 8 dimensions, float32
    assert ladders._cache_bytes(model, 64, 3) == 2 * 2 * 2 * 8 * 64 * 3 * 4


def test_a_copy_has_a_rate() -> None:
    assert 1e8 < copy_rate(torch.device("cpu"), 1 << 22) < 1e13


def test_a_row_that_fails_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Row:
        raise RuntimeError("out of luck\nwith details")

    monkeypatch.setattr(ladders, "static_row", broken)
    loaded = LoadedModel(llama(), None, "tiny", "seed0")
    seen: list[Row] = []
    with pytest.warns(UserWarning, match="static cache, compiled was not measured: out of luck"):
        found = measure_ladder(loaded, POLICY, 8, (2,), seen.append)
    assert [row.name for row in found.rows] == [
        *("captured", "captured, batch 2", "captured, R=32", "streaming, eager"),
        *("rerotating, eager", "recompute baseline", "streaming NLL of 128 tokens"),
    ]
    assert list(found.rows) == seen and found.rows[1].batch == 2
    assert all(row.ms > 0 for row in found.rows)
    assert found.rows[0].eager_because and "CUDA graphs" in found.rows[0].eager_because


def test_the_command_writes_a_record_and_prints_it(run: Run, tmp_path: Path) -> None:
    ran = run(
        *("ladder", "--model-name", "random:4x128", "--window-size", "60"),
        *("--tpot-tokens", "8", "--batches", "2"),
    )
    assert ran.status == 0, ran.err
    (path,) = (tmp_path / "runs" / "ladder").iterdir()
    found = msgspec.json.decode(path.read_bytes(), type=Ladder)
    assert found.model == "random:4x128" and len(found.rows) == 8
    assert "transformers, static cache" in ran.out and "MBU" in ran.out
    assert "captured rows ran eagerly" in ran.out


@pytest.mark.parametrize("batches", ["1", "8;32", "x"])
def test_bad_batches_get_one_line(run: Run, batches: str) -> None:
    ran = run("ladder", "--batches", batches)
    assert ran.status == 2 and ran.err.count("\n") == 1 and "8,32" in ran.err
