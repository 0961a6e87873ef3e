"""Passages that come again: where they stand, and what a window has lost of them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from streamcache.inputs.corpora import TokenizedText, load_tokens
from streamcache.inputs.models import load_model
from streamcache.measure import copying
from streamcache.measure.configurations import Configuration
from streamcache.measure.copying import PASSAGE, copying_text, measure_copying
from streamcache.policy import EvictionPolicy
from tests.shell import Run


def numbers(n: int) -> TokenizedText:
    return TokenizedText("n", torch.arange(n), "0", "file")


def test_each_passage_comes_again_after_the_distance() -> None:
    stream = copying_text(numbers(101), 50, 2).input_ids.tolist()
    assert stream[0] == 0 and len(stream) == 1 + 2 * (50 + PASSAGE)
    for begin in (1, 1 + 50 + PASSAGE):
        assert stream[begin : begin + PASSAGE] == stream[begin + 50 : begin + 50 + PASSAGE]
    assert sorted(set(stream)) == list(range(101)), "the filler is the text that follows"
    with pytest.raises(ValueError, match="do not fit"):
        copying_text(numbers(100), 50, 2)
    with pytest.raises(ValueError, match="do not fit"):
        copying_text(numbers(101), PASSAGE - 1, 2)


def test_ppl_is_of_the_same_tokens_both_times() -> None:
    distance, n_passages = 40, 3
    nll = np.full(n_passages * (distance + PASSAGE), 9.0)
    for begin in range(0, len(nll), distance + PASSAGE):
        nll[begin + copying._CUE : begin + PASSAGE] = 2.0
        nll[begin + distance + copying._CUE : begin + distance + PASSAGE] = 0.5
    found = copying._copied("x", distance, n_passages, nll)
    assert (found.first, found.again) == pytest.approx((math.exp(2.0), math.exp(0.5)))
    assert found.error == 0


def test_what_has_left_the_window_is_lost() -> None:
    loaded = load_model("reference")
    text = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=1 + 6 * 100)
    chosen = [Configuration(EvictionPolicy(4, n), "streaming", label=str(n)) for n in (60, 200)]
    small, large = measure_copying(loaded, text, chosen, [100], 6)
    assert large.again < 0.7 * large.first, "still held"
    assert small.again > 0.8 * small.first, "evicted"


def test_the_command_writes_a_table_and_a_plot(run: Run, tmp_path: Path) -> None:
    ran = run("copying", "--cap-total", "48", "--distances", "64,32", "--passages", "2")
    assert ran.status == 0, ran.err
    assert "PPL again" in ran.out and "fast, 2,048 entries" in ran.out
    files = sorted(path.suffix for path in (tmp_path / "runs" / "copying").iterdir())
    assert files == [".md", ".svg"]


@pytest.mark.parametrize("distances", ["8", "x", "", "64;32"])
def test_bad_distances_get_one_line(run: Run, distances: str) -> None:
    ran = run("copying", "--distances", distances)
    assert ran.status == 2 and ran.err.count("\n") == 1 and "--distances" in ran.err
