"""From NLLs to the figures of a record, by hand."""

import math

import pytest
import torch

from streamcache.baseline import Baseline, Fingerprint
from streamcache.evaluate import quality


def test_the_increase_and_its_error_are_over_the_positions_in_common() -> None:
    made_from = Fingerprint("m", "r", "float32", "d", 20, 2, 6, 4)
    positions = made_from.positions()
    assert positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 15, 18]
    nll = torch.full((19,), 2.0)
    nll[[8, 11, 15, 18]] = torch.tensor([2.1, 2.3, 2.1, 2.3])
    found = quality(nll, 8, "one-pass", Baseline(made_from, [2.0] * 12))
    assert found.n_compared == 4
    assert found.ppl_compared == pytest.approx(math.exp(2.2))
    assert found.ppl_increase == pytest.approx(math.exp(0.2) - 1)
    deviation = math.sqrt(4 * 0.1**2 / 3)
    assert found.ppl_increase_error == pytest.approx(math.exp(0.2) * deviation / 2)


def test_without_positions_in_common_there_is_no_increase() -> None:
    made_from = Fingerprint("m", "r", "float32", "d", 20, 2, 6, 0)
    found = quality(torch.full((19,), 2.0), 8, "one-pass", Baseline(made_from, [2.0] * 8))
    assert found.n_compared == 0 and found.ppl_increase is found.ppl_increase_error is None
    assert found.ppl == pytest.approx(math.exp(2.0)) and found.n_steady == 12
