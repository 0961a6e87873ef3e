"""Books as one stream: their tokens, PPL by position and by book, and going on where it stopped."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcache import EvictionPolicy, streaming_nll
from streamcache.caches import one_pass
from streamcache.decoding.checkpoint import Checkpoint
from streamcache.inputs.books import Books, load_books
from streamcache.inputs.corpora import CorpusError, TokenizedText
from streamcache.inputs.models import load_model
from streamcache.measure import stream
from streamcache.measure.configurations import Configuration
from streamcache.measure.run import What, run
from streamcache.measure.store import Store
from streamcache.measure.stream import (
    by_book,
    by_position,
    configuration_of,
    edges,
    interval,
    worse_from,
)
from streamcache.measure.workload import Workload
from tests.shell import Run
from tests.tiny import llama, neox, text

POLICY = EvictionPolicy(2, 20, cache_slack=3, compress_every=7)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(one_pass._BLOCK, "cpu", 8)


class Stopped(Exception):
    pass


def stop_after(n_tokens: int) -> Any:
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if done >= n_tokens:
            raise Stopped

    return advance


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("family", [llama, neox])
@pytest.mark.parametrize("stopped_at", [8, 16, 64])  # before the first eviction, and after many
def test_a_pass_goes_on_from_its_checkpoint(family: Any, stopped_at: int, tmp_path: Path) -> None:
    model, ids = family(), text(100)[0]
    whole = streaming_nll(model, ids, POLICY)
    checkpoint = Checkpoint(tmp_path / "x.state", every_s=0.0)
    with pytest.raises(Stopped):
        streaming_nll(model, ids, POLICY, stop_after(stopped_at + 8), checkpoint)
    steps: list[int] = []
    resumed = streaming_nll(model, ids, POLICY, steps.append, checkpoint)
    assert steps[0] == stopped_at and sum(steps) == 99
    torch.testing.assert_close(resumed, whole, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("small_blocks")
def test_a_damaged_checkpoint_is_not_used(tmp_path: Path) -> None:
    model, ids, path = llama(), text(60)[0], tmp_path / "x.state"
    whole = streaming_nll(model, ids, POLICY)
    with pytest.raises(Stopped):
        streaming_nll(model, ids, POLICY, stop_after(40), Checkpoint(path, every_s=0.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    steps: list[int] = []
    assert torch.equal(streaming_nll(model, ids, POLICY, steps.append, Checkpoint(path)), whole)
    assert steps[0] == 8


@pytest.mark.usefixtures("small_blocks")
def test_a_measurement_goes_on_and_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model("reference")
    ids = text(80)[0]
    workload = Workload(loaded, TokenizedText("x", ids, "0", "file"), window=None)
    configuration, store = Configuration(POLICY, "streaming"), Store(tmp_path)
    monkeypatch.setattr(Checkpoint.__init__, "__defaults__", (0.0, None))
    real, fed = one_pass.OnePass.feed, []

    def feed(self: Any, tokens: torch.Tensor, **options: Any) -> Any:
        fed.append(self.seen)
        if len(fed) == 4:
            raise Stopped
        return real(self, tokens, **options)

    monkeypatch.setattr(one_pass.OnePass, "feed", feed)
    with pytest.raises(Stopped):
        run(configuration, workload, What(tpot_tokens=0), store)
    assert len(list(tmp_path.rglob("*.state"))) == 1
    run(configuration, workload, What(tpot_tokens=0), store)
    assert fed == [0, 8, 16, 24, 24, 32, 40, 48, 56, 64, 72]
    assert not list(tmp_path.rglob("*.state"))


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    folder = tmp_path / "corpora" / "pg19"
    folder.mkdir(parents=True)
    for number, words in (("30", "the mill turns. "), ("4", "a heron waits. "), ("200", "no. ")):
        (folder / f"{number}.txt").write_text(words * 40)
    (folder / "notes.txt").write_text("no book")
    return folder.parent


def test_books_follow_each_other_in_order_of_their_numbers(corpora: Path) -> None:
    tokenizer = load_model("reference").tokenizer
    assert tokenizer is not None
    books = load_books(tokenizer=tokenizer, max_tokens=1200, data_dir=corpora)
    assert books.names[:4] == ["pg19/4", "pg19/30", "pg19/200", "pg19/4"]
    assert len(books.text.input_ids) == 1200 and books.text.source == "folder"
    ids = books.text.input_ids.tolist()
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[0] == tokenizer.eos_token_id
    first, second, third, again = books.starts[:4]
    assert tokenizer.decode(ids[first:second]) == "a heron waits. " * 40
    assert tokenizer.decode(ids[second:third]) == "the mill turns. " * 40
    assert ids[again : again + 50] == ids[first : first + 50]


def test_of_each_book_the_first_tokens_can_be_taken(corpora: Path) -> None:
    tokenizer = load_model("reference").tokenizer
    whole = load_books(tokenizer=tokenizer, max_tokens=100, data_dir=corpora)
    books = load_books(tokenizer=tokenizer, max_tokens=61, book_tokens=20, data_dir=corpora)
    assert books.starts == [1, 21, 41]
    assert books.text.input_ids[:21].tolist() == whole.text.input_ids[:21].tolist()
    assert whole.names == ["pg19/4"]


def test_a_folder_without_books_and_a_model_without_tokenizer_are_named(tmp_path: Path) -> None:
    tokenizer = load_model("reference").tokenizer
    with pytest.raises(CorpusError, match="no books in"):
        load_books(tokenizer=tokenizer, max_tokens=10, data_dir=tmp_path)
    with pytest.raises(CorpusError, match="has no tokenizer"):
        load_books(tokenizer=None, max_tokens=10, data_dir=tmp_path)


def two_books() -> Books:
    """A marker, 3 tokens of a, 2 of b, and 2 of a again."""
    tokens = TokenizedText("pg19", torch.arange(8), "0", "folder")
    return Books(tokens, ["a", "b", "a"], [1, 4, 6])


def test_a_token_is_of_the_book_that_it_stands_in() -> None:
    nll = np.array([1.0, 2, 3, 10, 20, 4, 5])  # of tokens 1 ... 7
    found = by_book(two_books(), nll)
    assert {name: part.tolist() for name, part in found.items()} == {
        "a": [1, 2, 3, 4, 5],
        "b": [10, 20],
    }
    assert list(by_book(two_books(), nll[:3])) == ["a"], "measured at the beginning only"


def test_positions_double_and_need_all_their_predictions() -> None:
    assert edges(5000) == [0, 1024, 2048, 4096, 5000]
    assert edges(1024) == [0, 1024]
    nll = np.full(100, math.log(7.0))
    assert by_position(nll, 10, 100) == pytest.approx(7)
    assert by_position(nll, 10, 101) is None


def test_a_configuration_is_worse_from_its_first_bad_piece() -> None:
    reference, nll = np.ones(5 * 1024 + 9), np.ones(5 * 1024 + 9)
    assert worse_from(nll, reference) is None
    nll[5 * 1024 :] = 9.0
    assert worse_from(nll, reference) is None, "no whole piece"
    nll[3 * 1024 : 4 * 1024] += 0.1
    assert worse_from(nll, reference) == 3 * 1024, "though the next is better again"
    nll[1024:2048] += 0.09  # 9.4 %
    assert worse_from(nll, reference) == 3 * 1024
    nll[1024:2048] += 0.01
    assert worse_from(nll, reference) == 1024
    assert worse_from(nll[:1000], reference) is None


def test_the_interval_is_over_books() -> None:
    rng = np.random.default_rng(0)
    books = [rng.normal(mean, 0.01, size=50) for mean in (2.0, 2.2, 2.4, 2.6)]
    found = interval(books)
    assert found is not None
    low, high = np.log(found)
    assert low < 2.3 < high and 0.25 < high - low < 0.5, "of books, not of tokens"
    assert interval(books) == found, "seeded"
    assert interval(books[:1]) is None


def test_causal_evicts_nothing_within_the_trained_context() -> None:
    loaded = load_model("reference")
    policy = configuration_of("causal", loaded, 64).policy
    assert (policy.n_sink, policy.capacity) == (0, 2048)
    assert configuration_of("window", loaded, 64).policy == EvictionPolicy(0, 64)
    assert configuration_of("fast", loaded, 64).policy == EvictionPolicy(4, 60)


def test_the_command_prints_both_tables_and_measures_once(
    run: Run, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "trained_context", lambda loaded: 128)
    command = (
        *("stream", "--max-eval-tokens", "300", "--book-tokens", "60", "--cap-total", "48"),
        *("--data-dir", str(corpora)),
    )
    ran = run(*command)
    assert ran.status == 0, ran.err
    for words in ("fast: S=4 W=44", "window: S=0 W=48", "causal: S=0 W=128", "pg19/200", "95 %"):
        assert words in ran.out
    (written,) = (tmp_path / "runs" / "stream").iterdir()
    assert "| pg19/4 |" in written.read_text()
    assert run("summarize").status == 0

    def refuse(*given: object, **others: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("streamcache.measure.run.streaming_nll", refuse)
    assert run(*command).out == ran.out


@pytest.mark.parametrize("configs", ["fast,none", "baseline"])
def test_what_is_no_configuration_of_a_stream_gets_one_line(run: Run, configs: str) -> None:
    ran = run("stream", "--configs", configs)
    assert ran.status == 2 and ran.err.count("\n") == 1 and "causal" in ran.err
