"""Two processes that torchrun starts have a part of a model each, and give what one gives."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from streamcache import CapturedDecoder, ranks, streaming_nll
from streamcache.inputs.corpora import load_tokens
from streamcache.inputs.models import load_model
from streamcache.measure.measurement import read
from streamcache.policy import EvictionPolicy
from tests.tiny import llama, tiny
from tests.two_processes import FAMILIES, FUSED, nlls, saved_stream

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or torch.cuda.is_available(),
    reason="needs gloo; with GPUs the processes take a card each",
)

SETTINGS: dict[str, dict[str, Any]] = {"gpt_neox": {"hidden_size": 64}}


class Ran(NamedTuple):
    folder: Path
    found: dict[str, Any]
    output: str
    errors: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("two")
    for family in FAMILIES:
        settings = SETTINGS.get(family, {"num_key_value_heads": 2, "head_dim": 8})
        tiny(family, **settings).save_pretrained(folder / family)
    page = (Path(__file__).parents[2] / "docs" / "several_gpus.md").read_text(encoding="utf-8")
    (documented,) = [
        shlex.split(line)[5:] for line in page.splitlines() if line.startswith("torchrun ")
    ]
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone"), "--nproc-per-node"]
    done = subprocess.run(
        [*command, "2", "-m", "tests.two_processes", str(folder), *documented],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Ran(folder, json.loads((folder / "found.json").read_text()), done.stdout, done.stderr)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_give_the_nlls_of_one(family: str, ran: Ran) -> None:
    alone = nlls(load_model(str(ran.folder / family), dtype="float32").model)
    found = dict(ran.found[family])
    found.pop("operations")
    if family in FUSED:
        assert found.pop("fused") == pytest.approx(alone["decoder"], abs=1e-5)
    assert found == {name: pytest.approx(values, abs=1e-5) for name, values in alone.items()}


def test_a_residual_is_summed_within_the_sum_over_the_processes(ran: Ran) -> None:
    """So that a layer, its residual and the next norm take the launches that they take in one
    process; GPT-NeoX has one sum for attention and MLP."""
    for family, n_sums in {"llama": 2 * 2 + 1, "gpt_neox": 2}.items():
        operations = ran.found[family]["operations"]
        sums = operations["streamcache.sum_over_ranks.default"]
        embeds = any("embedding" in name for name in operations)
        assert sums in (n_sums, n_sums - embeds), operations  # newer transformers: the embedding
        assert operations["streamcache.gather_from_ranks.default"] == 1
        assert "<built-in function add>" not in operations
        assert not any("linear at" in name for name in operations), operations


def test_each_process_saves_its_part_of_a_stream(ran: Ran, tmp_path: Path) -> None:
    assert (ran.folder / "stream").is_file() and (ran.folder / "stream.1").is_file()
    model = load_model(str(ran.folder / "llama"), dtype="float32").model
    assert ran.found["saved"] == pytest.approx(saved_stream(model, tmp_path), abs=1e-4)


def test_one_process_prints_and_writes(ran: Ran) -> None:
    assert ran.output.count("PPL steady") == 1
    assert ran.errors.count("record: ") == 1
    records = sorted(path for path in (ran.folder / "runs").glob("*/*.json"))
    assert [path.name.partition("-")[0] for path in records] == ["baseline", "streaming"]
    measured = read(records[1])
    assert measured.record.environment.device.startswith("2 x cpu")
    loaded = load_model("reference")
    ids = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=300).input_ids
    alone = streaming_nll(loaded.model, ids, EvictionPolicy(4, 60))
    assert measured.nll == pytest.approx(alone.double().numpy(), abs=1e-4)


def test_graphs_with_sums_are_released_before_the_processes_part() -> None:
    """NCCL waits for them, and a process would not end."""
    released: list[str] = []

    class Graph:
        def reset(self) -> None:
            released.append("graph")

    decoder: Any = CapturedDecoder(llama(), EvictionPolicy(4, 16))
    decoder._graph = Graph()
    ranks.release_at_end(decoder)
    ranks.leave()
    assert released == ["graph"]
    assert decoder.eager_because == "its CUDA graph was released"
