"""The models and texts of the benchmarks, loaded once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from streamcache.corpora import CorpusError, load_tokens
from streamcache.models import ModelError, load_model
from tests.bench.harness import Bench


@pytest.fixture(scope="session")
def baseline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baselines")


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other turn a busy core into a twentyfold time for all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cpu_bench(one_thread: None) -> Bench:
    loaded = load_model("reference", device="cpu")
    text = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=4096)
    return Bench(loaded, loaded, text, late_positions=16, block=32, pairs=12, drift=2e-5)


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
    n_late = len(text.input_ids)
    return Bench(timed, read, text, n_late, block=8, pairs=10, drift=5e-4, notes=notes)
