"""Figures of SmolLM2-135M, a model that others trained, compared with tests/golden/smollm2.json.

    pytest tests/bench/test_smollm2.py --golden=smollm2 --golden-required

Figures only: PPL in one pass and token by token, without sinks as well. The text is the packaged
one, so that nothing is needed but the package of the model (extra `smollm2`).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from streamcache.caches.kinds import MODES
from streamcache.extras import MissingExtra
from streamcache.gate.bench import Bench, record_decoding, record_quality
from streamcache.gate.recorder import Recorder
from streamcache.gate.torch_environment import TorchEnvironmentProbe
from streamcache.inputs.corpora import TokenizedText, digest_of, document_marker, load_tokens
from streamcache.inputs.models import LoadedModel, load_model
from streamcache.inputs.smollm2 import NAME
from streamcache.measure.configurations import NAMED, Configuration, with_budget
from streamcache.policy import EvictionPolicy

TOTAL = 256  # entries
N_TOKENS = 700
FEW = EvictionPolicy(4, 60, cache_slack=5, max_drop=3, compress_every=8)


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    try:
        return load_model(NAME, device="cpu")
    except MissingExtra as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bench(smollm2: LoadedModel, one_thread: None) -> Iterator[Bench]:
    """The packaged stream as words, and from these the tokens of SmolLM2."""
    reference = load_model("reference", device="cpu")
    assert reference.tokenizer is not None and smollm2.tokenizer is not None
    packaged = load_tokens("stream", tokenizer=reference.tokenizer, max_tokens=2 * N_TOKENS)
    words = reference.tokenizer.decode(packaged.input_ids[1:])
    marker = document_marker(smollm2.tokenizer)
    ids = torch.tensor([marker, *smollm2.tokenizer.encode(words, add_special_tokens=False)])
    ids = ids[:N_TOKENS]
    assert len(ids) == N_TOKENS
    text = TokenizedText("the packaged stream, as words", ids, digest_of(ids), "words")
    window = EvictionPolicy(4, TOTAL - 4)
    yield Bench(smollm2, smollm2, text, 4, window, 8, 1, 4, rel_tol=1e-4)


@pytest.fixture(scope="session")
def golden_environment(one_thread: None) -> TorchEnvironmentProbe:
    return TorchEnvironmentProbe(torch.device("cpu"))


@pytest.mark.parametrize("name", ["fast", "window", "best"])
def test_quality(name: str, bench: Bench, measurements: Path, golden: Recorder) -> None:
    record_quality(bench, golden, with_budget(NAMED[name], TOTAL), measurements)


@pytest.mark.parametrize("mode", ["ours", "fast"])
def test_decoding(mode: str, bench: Bench, golden: Recorder) -> None:
    record_decoding(bench, golden, Configuration(FEW, *MODES[mode]))
