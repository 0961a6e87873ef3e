"""What `torchrun --nproc-per-node 2` runs for tests/unit/test_two_processes.py.

python -m torch.distributed.run --nproc-per-node 2 -m tests.two_processes FOLDER COMMAND ...
"""

import json
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from streamcache import CapturedDecoder, ranks, recompute_nll, streaming_nll
from streamcache.caches.streaming import StreamingCache
from streamcache.decoding.kernels.fusion import fuse
from streamcache.decoding.loop import captured_nll, sequential_nll
from streamcache.inputs.models import load_model
from streamcache.policy import EvictionPolicy
from tests.tiny import text

POLICY = EvictionPolicy(4, 16, 4, 3, 5)
N_TOKENS = 60
FAMILIES = ("llama", "gpt_neox", "qwen3")
FUSED = ("llama", "gpt_neox")


def nlls(model: Any, fusing: list[str] | None = None) -> dict[str, list[float]]:
    """The same stream in every way: see the keys. `fusing` gets the operations of a fused step."""
    ids = text(N_TOKENS)[0]
    decoder = CapturedDecoder(model, POLICY)
    found = {
        "token by token": sequential_nll(model, ids, StreamingCache(model, POLICY)),
        "one pass": streaming_nll(model, ids, POLICY),
        "baseline": recompute_nll(model, ids, 4, 16, [3, 40]),
        "decoder": captured_nll(decoder, ids),
    }
    assert decoder.eager_because == "CUDA graphs do not run on cpu"
    if fusing is not None:

        def backend(graph: Any, inputs: Any) -> Any:
            fuse(graph)
            fusing.extend(str(node.target) for node in graph.graph.nodes)
            return graph.forward

        decoder._forward = torch.compile(decoder._model, backend=backend, fullgraph=True)
        found["fused"] = captured_nll(decoder, ids)
    return {name: values.tolist() for name, values in found.items()}


def saved_stream(model: Any, folder: Path) -> list[float]:
    """A stream that is saved halfway, each process its part, and goes on in another cache."""
    ids = text(N_TOKENS)
    with torch.no_grad():
        first, second = (StreamingCache(model, POLICY) for _ in range(2))
        model(input_ids=ids[:, :40], past_key_values=first)
        first.save(folder / "stream")
        second.load(folder / "stream")
        logits = model(input_ids=ids[:, 40:], past_key_values=second).logits
    last: list[float] = logits[0, -1].tolist()
    return last


def main(folder: Path, command: list[str]) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for family in FAMILIES:
        model = load_model(str(folder / family), dtype="float32").model
        operations: list[str] = []
        found[family] = nlls(model, operations if family in FUSED else None)
        found[family]["operations"] = Counter(operations)
        if family == "llama":
            found["saved"] = saved_stream(model, folder)
    if ranks.is_first():
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    sys.argv = ["streamcache", *command, "--output-dir", str(folder / "runs")]
    runpy.run_module("streamcache", run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
