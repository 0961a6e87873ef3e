"""The models and texts of the benchmarks, loaded once."""

import os
from pathlib import Path

import pytest

from streamcache.configurations import NAMED
from streamcache.corpora import CorpusError, load_tokens
from streamcache.models import ModelError, load_model
from tests.bench.harness import CPU_CONFIGURATIONS, Bench


@pytest.fixture(scope="session")
def baseline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baselines")


@pytest.fixture(scope="session")
def cpu_bench() -> Bench:
    loaded = load_model("reference", device="cpu")
    text = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=8192)
    return Bench(loaded, loaded, text, CPU_CONFIGURATIONS, 32, 128, ())


@pytest.fixture(scope="session")
def gpu_bench() -> Bench:
    notes: tuple[str, ...] = ()
    try:
        timed = read = load_model("EleutherAI/pythia-2.8b", device="cuda")
        text = load_tokens("pg19", tokenizer=read.tokenizer, max_tokens=20_000)
    except (ModelError, CorpusError) as error:
        timed = load_model("random:pythia-2.8b", device="cuda")
        read = load_model("reference", device="cuda")
        name = "pg19" if "STREAMCACHE_DATA" in os.environ else "stream"
        text = load_tokens(name, tokenizer=read.tokenizer, max_tokens=20_000)
        notes = (
            "TPOT on random:pythia-2.8b, PPL on the packaged reference model, since "
            f"EleutherAI/pythia-2.8b on PG19 is out of reach: {error}",
        )
    return Bench(timed, read, text, list(NAMED), text.input_ids.shape[0], 128, notes)
