"""Any mixture of threads on one model gives what one thread gives, and the model stays as it is."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from streamcache import (
    CapturedDecoder,
    EvictionPolicy,
    ReferenceCache,
    RerotatingCache,
    RingCache,
    StreamingCache,
    streaming_nll,
)
from tests.tiny import llama, text

POLICY = EvictionPolicy(4, 12, 3, 2, 5)
IDS = text(30)  # evicted are some, and positions re-based
Task = Callable[[PreTrainedModel], Tensor]


def forward(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS).logits


def unbounded(model: PreTrainedModel) -> Tensor:
    cache = DynamicCache()
    model(input_ids=IDS[:, :20], past_key_values=cache)
    return model(input_ids=IDS[:, 20:], past_key_values=cache).logits


def bounded(kind: type[Any]) -> Task:
    def task(model: PreTrainedModel) -> Tensor:
        cache = kind(model, POLICY)
        parts = [model(input_ids=part, past_key_values=cache).logits for part in IDS.split(1, 1)]
        return torch.cat(parts, dim=1)

    return task


def one_pass(model: PreTrainedModel) -> Tensor:
    return streaming_nll(model, IDS[0], POLICY)


def decoder(model: PreTrainedModel) -> Tensor:
    decoder = CapturedDecoder(model, POLICY)
    return torch.cat([decoder.prefill(IDS[:, :9])[0], *map(decoder.step, IDS[0, 9:, None])])


CACHES = [bounded(kind) for kind in (StreamingCache, RerotatingCache, ReferenceCache, RingCache)]
TASKS: list[Task] = [forward, unbounded, *CACHES, one_pass, decoder]
N_THREADS = 8


@torch.no_grad()
def run(task: Task, model: PreTrainedModel, start: threading.Barrier | None = None) -> Tensor:
    if start:
        start.wait()
    return task(model)


def state(model: PreTrainedModel) -> Any:
    """All that a model's modules and configs hold, but for what its caches leave on it."""
    held = [
        (type(module), module.training, list(module._buffers.values()), config_of(module))
        for module in model.modules()
    ]
    return repr(held)


def config_of(module: Any) -> Any:
    config = getattr(module, "config", None)
    return config and (id(config), sorted(vars(config).items(), key=str))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("rope", ["default", "dynamic"])
@pytest.mark.parametrize("n_rounds", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_threads_give_what_one_thread_gives(implementation: str, rope: str, n_rounds: int) -> None:
    """Each round has a new model, so that what is built once is built by all of them at once."""
    parameters = {"rope_type": rope, "rope_theta": 10000.0, "factor": 2.0}
    shape = {"rope_parameters": parameters, "max_position_embeddings": 64, "num_hidden_layers": 1}
    original = llama(**shape)
    original.set_attn_implementation(implementation)
    expected = {task: run(task, original) for task in TASKS}
    random, start = Random(0), threading.Barrier(N_THREADS)
    with ThreadPoolExecutor(N_THREADS) as pool:
        for _ in range(n_rounds):
            model = llama(**shape)
            model.set_attn_implementation(implementation)
            before = state(model)
            tasks = [random.choice(TASKS) for _ in range(N_THREADS)]
            running = [pool.submit(run, task, model, start) for task in tasks]
            for task, result in zip(tasks, (thread.result() for thread in running)):
                assert torch.equal(result, expected[task]), task
            assert state(model) == before


def test_measuring_does_not_take_a_model_out_of_training() -> None:
    """While others train it, dropout and all."""
    model = llama(attention_dropout=0.5)
    expected = run(one_pass, model), run(decoder, model)
    model.train()
    before, stop = state(model), threading.Event()

    def train() -> int:
        steps = 0
        while not stop.is_set():
            steps += 1
            model(input_ids=IDS).logits.sum().backward()
            assert all(module.training for module in model.modules())
        return steps

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train)
        try:
            for _ in range(5):
                assert torch.equal(run(one_pass, model), expected[0])
                assert torch.equal(run(decoder, model), expected[1])
        finally:
            stop.set()
        assert training.result() > 0
    assert state(model) == before
