"""The models and texts of the benchmarks, loaded once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import try_to_load_from_cache
from transformers import LlamaConfig, LlamaForCausalLM

from streamcache.gate.bench import Bench
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import PINNED, LoadedModel, load_model
from streamcache.measure.configurations import BASELINE
from streamcache.policy import EvictionPolicy

PYTHIA = "EleutherAI/pythia-2.8b"


@pytest.fixture(scope="session")
def measurements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the run: the baseline is measured once."""
    return tmp_path_factory.mktemp("measurements")


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other turn a busy core into a twentyfold time for all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cpu_bench(one_thread: None) -> Bench:
    """What a step of the timed model touches fits a core's own cache (2 MiB). A model of any use
    does not, and takes up to a fourth longer while others use the cache that all cores share."""
    loaded = load_model("reference", device="cpu")
    text = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=4096)
    return Bench(
        load_model("random:4x128", device="cpu"),
        loaded,
        text,
        positions=16,
        window=EvictionPolicy(4, 252),
        block=48,
        baseline_forwards=8,
        pairs=40,
        rel_tol=2e-5,
    )


@pytest.fixture(scope="session")
def small_llama(one_thread: None) -> LoadedModel:
    """Unlike the reference model in all that a cache must know: grouped heads, turned whole.

    Weights larger than a new model's: then attention looks at some entries more than at others.
    """
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return LoadedModel(model.eval().requires_grad_(False), None, "llama 2x128", "seed0")


@pytest.fixture(scope="session")
def gpu_bench() -> Bench:
    """Pythia where its weights have been downloaded: a benchmark waits for no network."""
    notes: tuple[str, ...] = ()
    if isinstance(try_to_load_from_cache(PYTHIA, "config.json", revision=PINNED[PYTHIA]), str):
        timed = read = load_model(PYTHIA, device="cuda")
    else:
        timed = load_model("random:pythia-2.8b", device="cuda")
        read = load_model("reference", device="cuda")
        notes = (
            "TPOT on random:pythia-2.8b, PPL on the packaged reference model: "
            f"{PYTHIA} is not in the hub's cache",
        )
    name = "pg19" if read is timed else "stream"  # which is packaged, as the model is
    text = load_tokens(name, tokenizer=read.tokenizer, max_tokens=20_000)
    return Bench(
        timed,
        read,
        text,
        positions=None,
        window=BASELINE,
        block=8,
        baseline_forwards=2,
        pairs=10,
        rel_tol=5e-4,
        notes=notes,
    )
