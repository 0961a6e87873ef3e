"""Corpora by name: which text, how many tokens, from where, and what a user is told otherwise."""

import hashlib
import random
import struct
from functools import partial
from pathlib import Path

import datasets
import pytest
import safetensors.numpy
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from streamcache.inputs import corpora
from streamcache.inputs.corpora import CorpusError, load_tokens

BOOK = "The everlasting mill turns by the heronry.\nThe miller and a heron wait.\n\n" * 40
ARTICLE = " \n = Heron = \n \n The heron is a <unk> bird . \n It waits 1 @,@ 000 times . \n \n"
RAW_ARTICLE = ARTICLE.replace("<unk>", "grey")
BOTH = {"bos_token": "<start>", "eos_token": "<end>"}


def make_tokenizer(family: str, markers: dict[str, str]) -> PreTrainedTokenizerFast:
    """A small BPE that splits text as the tokenizers of a well-known family do."""
    inner = Tokenizer(models.BPE())
    words = r" ?[^\s\p{L}\p{N}]+[\r\n]*| ?\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+"  # a stop takes its \n
    as_llama3 = [
        pre_tokenizers.Split(Regex(words), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    as_neox = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    inner.pre_tokenizer = pre_tokenizers.Sequence(as_llama3 if family == "llama3" else as_neox)
    special = ["<start>", "<end>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([BOOK], trainer)
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=list(zip(special, (0, 1), strict=True))
    )
    if family == "neox":
        inner.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **markers)


TOKENIZERS = {family: make_tokenizer(family, BOTH) for family in ("neox", "llama3")}
TOKENIZER = TOKENIZERS["neox"]


def own_tokens(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


@pytest.fixture(autouse=True)
def no_folder_and_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STREAMCACHE_DATA", raising=False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    texts = {
        "pg19/4047.txt": BOOK,
        "pg19/12.txt": "A heron.\n",
        "wikitext-103/wiki.test.tokens": ARTICLE,
        "wikitext-2-raw/wiki.test.raw": RAW_ARTICLE,
    }
    for path, text in texts.items():
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).write_text(text, encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture
def note(tmp_path: Path) -> str:
    (tmp_path / "note.txt").write_text(BOOK, encoding="utf-8")
    return str(tmp_path / "note.txt")


def test_a_stream_is_the_marker_and_then_the_texts_own_tokens(note: str) -> None:
    stream = load_tokens(note, tokenizer=TOKENIZER)
    assert stream.input_ids.dtype == torch.int64
    assert stream.input_ids.tolist() == [0, *own_tokens(BOOK)]
    assert (stream.name, stream.source) == ("note.txt", "file")


@pytest.mark.parametrize(
    ("markers", "first"), [(BOTH, [0]), ({"eos_token": "<end>"}, [1]), ({}, [])]
)
def test_the_marker_is_bos_else_eos_else_none(
    note: str, markers: dict[str, str], first: list[int]
) -> None:
    stream = load_tokens(note, tokenizer=make_tokenizer("neox", markers))
    assert stream.input_ids.tolist() == first + own_tokens(BOOK)


def test_max_tokens_counts_the_marker(note: str) -> None:
    stream = load_tokens(note, tokenizer=TOKENIZER, max_tokens=3)
    assert stream.input_ids.tolist() == [0, *own_tokens(BOOK)[:2]]


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("seed", range(20))
def test_fewer_tokens_are_the_first_of_all(family: str, seed: int, tmp_path: Path) -> None:
    # With long tokens little is encoded beyond need, and the cut decides over the last of them.
    pieces = 3 * [" heronry", " everlasting"] + ["heronry.", ".\n\n", ".\n\n", "    ", " "]
    text = "".join(random.Random(seed).choices(pieces, k=80))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    load = partial(load_tokens, str(tmp_path / "text.txt"), tokenizer=TOKENIZERS[family])
    everything = load().input_ids.tolist()
    for count in range(1, len(everything) + 1):
        assert load(max_tokens=count).input_ids.tolist() == everything[:count]


def test_a_long_text_is_not_encoded_beyond_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []

    def encode(text: str, **rest: bool) -> list[int]:
        encoded.append(len(text))
        return TOKENIZER.encode(text, **rest)

    tokenizer = make_tokenizer("neox", BOTH)
    monkeypatch.setattr(tokenizer, "encode", encode)
    (tmp_path / "long.txt").write_text(BOOK * 100, encoding="utf-8")
    load_tokens(str(tmp_path / "long.txt"), tokenizer=tokenizer, max_tokens=100)
    assert sum(encoded) < 3_000


def test_the_digest_is_of_little_endian_int64(note: str) -> None:
    stream = load_tokens(note, tokenizer=TOKENIZER, max_tokens=50)
    numbers = struct.pack("<50q", *stream.input_ids.tolist())
    assert stream.digest == hashlib.sha256(numbers).hexdigest()


def test_a_text_too_short_is_refused_with_both_lengths(note: str) -> None:
    length = 1 + len(own_tokens(BOOK))
    assert len(load_tokens(note, tokenizer=TOKENIZER, max_tokens=length).input_ids) == length
    with pytest.raises(CorpusError, match=rf"has {length} tokens, {length + 1} were asked for"):
        load_tokens(note, tokenizer=TOKENIZER, max_tokens=length + 1)


def test_the_packaged_stream_needs_no_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(9).numpy().astype("uint16")
    (tmp_path / "reference_model").mkdir()
    stored = tmp_path / "reference_model" / "stream.safetensors"
    safetensors.numpy.save_file({"input_ids": ids}, stored)
    monkeypatch.setattr(corpora, "files", lambda package: tmp_path)
    stream = load_tokens(tokenizer=None, max_tokens=5)
    assert stream.input_ids.dtype == torch.int64
    assert stream.input_ids.tolist() == [0, 1, 2, 3, 4]
    assert (stream.name, stream.source) == ("stream", "packaged")
    with pytest.raises(CorpusError, match="stream has 9 tokens, 10 were asked for"):
        load_tokens(tokenizer=None, max_tokens=10)


def test_the_packaged_stream_has_24k_tokens_of_a_small_vocabulary() -> None:
    ids = load_tokens("stream", tokenizer=None, max_tokens=24_000).input_ids
    assert 0 <= int(ids.min()) <= int(ids.max()) < 4096


@pytest.mark.parametrize(
    ("name", "config", "called", "text"),
    [
        ("pg19", None, "pg19/4047", BOOK),
        ("pg19", "12", "pg19/12", "A heron.\n"),
        ("wikitext", None, "wikitext/wikitext-103-v1", ARTICLE),
        ("wikitext", "wikitext-2-raw-v1", "wikitext/wikitext-2-raw-v1", RAW_ARTICLE),
        ("wikitext", "wikitext-103-raw-v1", "wikitext/wikitext-103-raw-v1", RAW_ARTICLE),
    ],
)
def test_texts_in_the_data_folder(
    data_dir: Path, name: str, config: str | None, called: str, text: str
) -> None:
    stream = load_tokens(name, config, tokenizer=TOKENIZER, data_dir=data_dir)
    assert stream.input_ids.tolist() == [0, *own_tokens(text)]
    assert (stream.name, stream.source) == (called, "folder")


def test_the_folder_is_named_by_the_environment_unless_by_the_argument(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMCACHE_DATA", str(data_dir))
    assert load_tokens("pg19", tokenizer=TOKENIZER).source == "folder"
    with pytest.raises(CorpusError, match=r"elsewhere.pg19.4047\.txt; books there: none"):
        load_tokens("pg19", tokenizer=TOKENIZER, data_dir=data_dir / "elsewhere")


def save_like_the_hub(folder: Path, config: str, rows: dict[str, list[str]], features: str) -> None:
    """A dataset repository: its card announces three splits; only the test split is readable."""
    (folder / config).mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / config / f"{split}-00000-of-00001.parquet").write_bytes(b"never to be read")
    datasets.Dataset.from_dict(rows).to_parquet(folder / config / "test-00000-of-00001.parquet")
    sizes = "num_bytes: 1, num_examples: 1"
    splits = ", ".join(f"{{name: {name}, {sizes}}}" for name in ("train", "validation", "test"))
    card = f"{{features: [{features}], splits: [{splits}], download_size: 1, dataset_size: 1}}"
    (folder / "README.md").write_text(f"---\ndataset_info: {card}\n---\n", encoding="utf-8")


def test_wikitext_rows_of_the_hub_make_the_very_text_of_the_file(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ARTICLE.splitlines(keepends=True)
    rows = {"text": ["" if line == " \n" else line for line in lines]}
    save_like_the_hub(tmp_path / "hub", "wikitext-103-v1", rows, "{name: text, dtype: string}")
    monkeypatch.setattr(corpora, "_WIKITEXT_HUB", f"{tmp_path / 'hub'}@pinned")
    stream = load_tokens("wikitext", tokenizer=TOKENIZER)
    local = load_tokens("wikitext", tokenizer=TOKENIZER, data_dir=data_dir)
    assert (stream.name, stream.digest) == (local.name, local.digest)
    assert stream.source == f"hub {tmp_path / 'hub'}@pinned"


def test_a_book_on_the_hub_is_found_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "url": [f"http://www.gutenberg.org/ebooks/{book}" for book in (14047, 4047, 7)],
        "text": ["A mill.", BOOK, "A heron."],
    }
    columns = "{name: url, dtype: string}, {name: text, dtype: string}"
    save_like_the_hub(tmp_path / "hub", "data", rows, columns)
    monkeypatch.setattr(corpora, "_PG19_HUB", f"{tmp_path / 'hub'}@pinned")
    stream = load_tokens("pg19", tokenizer=TOKENIZER)
    assert stream.input_ids.tolist() == [0, *own_tokens(BOOK)]
    assert (stream.name, stream.source) == ("pg19/4047", f"hub {tmp_path / 'hub'}@pinned")
    with pytest.raises(CorpusError, match="no book 47; books: 14047, 4047, 7"):
        load_tokens("pg19", "47", tokenizer=TOKENIZER)


@pytest.mark.parametrize("name", ["pg19", "wikitext"])
def test_the_hub_is_asked_for_a_pinned_revision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def load_dataset(repository: str, **rest: object) -> dict[str, list[str]]:
        asked.update(rest, repository=repository)
        return {"url": [], "text": ["A heron.\n"]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    if name == "wikitext":
        source = load_tokens(name, tokenizer=TOKENIZER).source
        assert source == f"hub {asked['repository']}@{asked['revision']}"
    else:
        with pytest.raises(CorpusError, match="no book 4047"):
            load_tokens(name, tokenizer=TOKENIZER)
    assert len(str(asked["revision"])) == 40


@pytest.mark.parametrize("environment", [None, ""])
def test_without_folder_and_hub_the_user_is_told_what_else_there_is(
    environment: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is not None:
        monkeypatch.setenv("STREAMCACHE_DATA", environment)
    with pytest.raises(CorpusError, match=r"^cannot load emozilla/pg19 from the hub.*$") as caught:
        load_tokens("pg19", tokenizer=TOKENIZER)
    for remedy in ("--data-dir", "STREAMCACHE_DATA", "pg19/4047.txt", "--dataset-name stream"):
        assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("nowhere", None, "'nowhere': give stream, wikitext, pg19 or the path of a UTF-8 text"),
        (".", None, "cannot read .: Is a directory"),
        ("wikitext", None, "data/wikitext-103/wiki.test.tokens: No such file"),
        ("wikitext", "wikitext-9", "'wikitext-9': give one of wikitext-103-v1, wikitext-103-raw"),
        ("pg19", "99", "pg19/99.txt; books there: 12, 4047"),
        ("pg19", "../12", "a Project Gutenberg id such as 4047, got '../12'"),
        ("stream", "12", "stream has no configs, got '12'"),
    ],
)
def test_unknown_corpora_and_missing_files_are_named(
    data_dir: Path, name: str, config: str | None, message: str
) -> None:
    (data_dir / "wikitext-103" / "wiki.test.tokens").unlink()
    with pytest.raises(CorpusError) as caught:
        load_tokens(name, config, tokenizer=TOKENIZER, data_dir=data_dir)
    assert message in str(caught.value)


def test_corpora_that_cannot_be_read_are_named(note: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="max_tokens must be at least 1, got 0"):
        load_tokens(note, tokenizer=TOKENIZER, max_tokens=0)
    with pytest.raises(CorpusError, match=r"no tokenizer: .*--dataset-name stream"):
        load_tokens(note, tokenizer=None)
    (tmp_path / "picture").write_bytes(b"ab\xff\xfe")
    with pytest.raises(CorpusError, match="picture is not UTF-8 text: invalid start byte at 2"):
        load_tokens(str(tmp_path / "picture"), tokenizer=TOKENIZER)
