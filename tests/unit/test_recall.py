"""Facts that are asked for later: where they stand, and what a window has lost of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from streamcache import EvictionPolicy, StreamingCache, streaming_nll
from streamcache.decoding.loop import sequential_nll
from streamcache.decoding.nll import nll_and_rank
from streamcache.inputs.corpora import CorpusError, TokenizedText, digest_of, load_tokens
from streamcache.inputs.facts import Question, facts_text, tokens_needed
from streamcache.inputs.models import LoadedModel, load_model
from streamcache.measure.configurations import Configuration
from streamcache.measure.measurement import Measurement, read
from streamcache.measure.recall import measure_recall, recalled, wilson
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.workload import Workload
from tests import made
from tests.shell import Run
from tests.tiny import llama, text

DISTANCES = [60, 150]


def packaged(n_tokens: int) -> tuple[LoadedModel, TokenizedText]:
    loaded = load_model("reference")
    assert loaded.tokenizer is not None
    ids = torch.arange(1000, 1000 + n_tokens)
    return loaded, TokenizedText("n", ids, "0", "file")


def test_each_fact_is_asked_for_once_at_its_distance() -> None:
    loaded, book = packaged(2000)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    stream, asked = facts_text(book, tokenizer, DISTANCES, 5)
    ids = stream.input_ids
    assert ids[0] == book.input_ids[0]
    assert stream.digest == digest_of(ids)
    for question in asked:
        told = slice(question.told, question.told + question.end - question.start)
        here = slice(question.start, question.end)
        assert torch.equal(ids[told], ids[here]), "the number, where the fact says it"
        name = str(tokenizer.decode(ids[: question.start])).rpartition("\n")[2]
        before = str(tokenizer.decode(ids[: told.start])).rpartition("\n")[2]
        assert name == before and name.startswith("The number of the ") and name.endswith(" is")
        assert str(tokenizer.decode(ids[here])).strip().isdecimal()
    for distance in DISTANCES:
        late = [q.start - q.told - distance for q in asked if q.distance == distance]
        assert len(late) == 5 and min(late) == 0 and max(late) < 30
    fillers = [i for i in ids.tolist() if 1000 <= i < 3000]
    assert (
        stream.input_ids.tolist() == facts_text(book, tokenizer, DISTANCES, 5)[0].input_ids.tolist()
    )
    assert len(fillers) <= tokens_needed(DISTANCES, 5)


def test_what_does_not_fit_is_refused() -> None:
    loaded, book = packaged(100)
    assert loaded.tokenizer is not None
    with pytest.raises(CorpusError, match="take a longer text"):
        facts_text(book, loaded.tokenizer, DISTANCES, 5)
    with pytest.raises(ValueError, match="at least 48"):
        facts_text(book, loaded.tokenizer, [20], 1)


@torch.no_grad()
def test_a_rank_is_the_number_of_likelier_tokens_in_one_pass_and_token_by_token() -> None:
    model, ids, policy = llama(), text(60)[0], EvictionPolicy(2, 12)
    once = streaming_nll(model, ids, policy, score=nll_and_rank)
    stepwise = sequential_nll(model, ids, StreamingCache(model, policy), score=nll_and_rank)
    assert torch.equal(once[:, 1], stepwise[:, 1])
    torch.testing.assert_close(once[:, 0], streaming_nll(model, ids, policy))
    logits = model(input_ids=ids[None, :5]).logits[0]
    order = logits.argsort(dim=-1, descending=True)
    expected = [order[t].tolist().index(int(ids[t + 1])) for t in range(5)]
    assert once[:5, 1].tolist() == expected


def test_an_answer_is_right_if_all_its_tokens_are_the_likeliest() -> None:
    ranks = np.zeros(100)
    ranks[[9, 31]] = 1  # entry t is of token t + 1: 10 is in the first answer, 32 behind the second
    asked = [Question(60, 1, 8, 11), Question(60, 5, 28, 32), Question(150, 9, 60, 63)]
    nll = np.full(100, 0.5)
    measurement = Measurement(made.record(Configuration(EvictionPolicy(4, 60), "streaming")), nll)
    measured = Measurement(measurement.record, nll, ranks=ranks)
    near, far = recalled("x", measured, asked, DISTANCES)
    assert (near.distance, near.n_right, near.n_asked) == (60, 1, 2)
    assert (far.distance, far.n_right, far.n_asked) == (150, 1, 1)
    assert near.nll == pytest.approx(0.5)


def test_the_interval_is_that_of_wilson() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 16)[0] == 0.0 and wilson(16, 16)[1] == 1.0


def test_ranks_are_kept_with_the_measurement_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = text(60)[0]
    words = TokenizedText("words", ids, digest_of(ids), "file")
    workload = Workload(LoadedModel(llama(), None, "tiny", "sha256:0"), words, window=None)
    configuration, store = Configuration(EvictionPolicy(2, 12), "streaming"), Store(tmp_path)
    without = run(configuration, workload, What(tpot_tokens=0), store)
    assert without.ranks is None
    measured = run(configuration, workload, What(tpot_tokens=0, ranks=True), store)
    expected = streaming_nll(workload.loaded.model, ids, configuration.policy, score=nll_and_rank)
    assert measured.path is not None and measured.ranks is not None
    again = read(measured.path)
    assert again.ranks is not None and again.ranks.tolist() == expected[:, 1].tolist()
    monkeypatch.setattr("streamcache.measure.run.streaming_nll", None)
    for what in (What(tpot_tokens=0, ranks=True), What(tpot_tokens=0)):
        assert run(configuration, workload, what, store).record.date == again.record.date


def test_what_has_left_the_window_is_not_known() -> None:
    """The packaged model is too small to say a number; what it still sees makes it likelier."""
    loaded = load_model("reference")
    assert loaded.tokenizer is not None
    book = load_tokens("stream", tokenizer=loaded.tokenizer, max_tokens=tokens_needed([200], 8))
    chosen = [Configuration(EvictionPolicy(4, n), "streaming", label=str(n)) for n in (120, 400)]
    small, large = measure_recall(loaded, book, chosen, [200], 8)
    assert small.n_asked == large.n_asked == 8
    assert large.nll < small.nll - 0.3


def test_the_command_writes_a_table_and_a_plot(run: Run, tmp_path: Path) -> None:
    ran = run("recall", "--cap-total", "96", "--distances", "128,64", "--questions", "2")
    assert ran.status == 0, ran.err
    assert "right answers" in ran.out and "fast, 2,048 entries" in ran.out
    files = sorted(path.suffix for path in (tmp_path / "runs" / "recall").iterdir())
    assert files == [".md", ".svg"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--distances", "8"], "--distances"),
        (["--configs", "baseline"], "no configuration"),
        (["--questions", "5000"], "--questions"),
    ],
)
def test_what_cannot_be_gets_one_line(run: Run, given: list[str], said: str) -> None:
    ran = run("recall", *given)
    assert ran.status == 2 and ran.err.count("\n") == 1 and said in ran.err
