"""Texts written freely: what they are, how much of them is repeated, and that they are kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

from streamcache import EvictionPolicy, StreamingCache, streaming_nll
from streamcache.decoding.text import Sampling
from streamcache.inputs.models import LoadedModel, load_model
from streamcache.measure import fluency
from streamcache.measure.checked import read_struct
from streamcache.measure.configurations import Configuration
from streamcache.measure.fluency import distinct, repeated, write_on
from tests.shell import Run
from tests.tiny import llama, text


def test_different_ngrams_are_counted_within_blocks() -> None:
    assert distinct([1, 2, 3, 4], 1) == 1.0 and distinct([1, 1, 1, 1], 1) == 0.25
    assert distinct([1, 2, 1, 2, 1], 2) == 0.5
    assert distinct([*range(256), *range(256)], 1) == 1.0, "other blocks do not count"


def test_a_loop_is_repeated_from_its_second_round_on() -> None:
    loop = list(range(20))
    found = repeated([99, *loop, *loop, *loop])
    assert not any(found[: 1 + 20 + 15]) and all(found[1 + 20 + 15 :])
    assert not any(repeated(list(range(100))))


@torch.no_grad()
def test_what_is_written_is_what_generate_writes_but_for_the_end() -> None:
    model: Any = llama()
    prompt = text(6)
    written = write_on(
        LoadedModel(model, None, "tiny", "sha256:0"),
        Configuration(EvictionPolicy(2, 12), "streaming"),
        *(prompt[0], 40, Sampling()),
    )
    cache = StreamingCache(model, EvictionPolicy(2, 12))
    given = {"past_key_values": cache, "max_new_tokens": 40, "do_sample": False}
    assert written == model.generate(prompt, **given)[0].tolist()
    model.generation_config.eos_token_id = written[20]
    other = write_on(
        LoadedModel(model, None, "tiny", "sha256:0"),
        Configuration(EvictionPolicy(2, 12), "streaming"),
        *(prompt[0], 40, Sampling()),
    )
    first = written.index(written[20], 6)
    assert len(other) == 46 and written[20] not in other[6:] and other[:first] == written[:first]


def test_the_command_keeps_the_texts_and_judges_them_with_all_in_sight(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (
        *("fluency", "--cap-total", "48", "--tokens", "80", "--configs", "fast"),
        *("--temperature", "1", "--seed", "3"),
    )
    ran = run(*command)
    assert ran.status == 0, ran.err
    rows = [line for line in ran.out.splitlines() if "60 to 80" in line]
    assert len(rows) == 2 and "fast, 2,048 entries" in ran.out and "distinct-4" in ran.out
    kept = sorted((tmp_path / "runs" / "fluency").iterdir())
    assert [path.suffix for path in kept] == [".json", ".json", ".md"]
    loaded = load_model("reference")
    tokens = torch.tensor(read_struct(fluency.Written, kept[1], "text").tokens)
    assert len(tokens) == 64 + 80
    nll = streaming_nll(loaded.model, tokens, EvictionPolicy(0, 2048))
    assert f"{nll[64 + 60 - 1 :].mean().exp():.2f}" in "".join(rows)

    def refuse(*given: object, **others: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(fluency, "write_on", refuse)
    assert run(*command).out == ran.out
    assert run("summarize").status == 0


def test_what_no_cache_carries_out_writes_nothing(run: Run) -> None:
    ran = run("fluency", "--configs", "gaps")
    assert ran.status == 2 and ran.err.count("\n") == 1 and "in one pass only" in ran.err
