"""Corpora by name: text in, tokens out.

| name       | config (default first)                      | local file                         |
|------------|---------------------------------------------|------------------------------------|
| `stream`   |                                             | packaged, sampled from `reference` |
| `wikitext` | `wikitext-103-v1`                           | `wikitext-103/wiki.test.tokens`    |
|            | `wikitext-103-raw-v1`, `wikitext-2-raw-v1`  | `wikitext-2-raw/wiki.test.raw`     |
| `pg19`     | Project Gutenberg id of a test book, `4047` | `pg19/<id>.txt`                    |
| a path     |                                             | the UTF-8 text file itself         |

Local files lie in a data folder; without one, the test splits come from the hub, pinned.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.numpy
import torch

from streamcache.extras import require
from streamcache.files import read_bytes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_Text = tuple[str, str, str]  # name, text, source
_Books = list[tuple[str, Callable[[], str]]]  # names, and what reads them

_WIKITEXT_HUB = "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3"
_PG19_HUB = "emozilla/pg19@c021754c8e01c5b1cc83a1f549c1f97fbbb756b8"

_WIKITEXT_FILES = {
    "wikitext-103-v1": "wikitext-103/wiki.test.tokens",
    "wikitext-103-raw-v1": "wikitext-2-raw/wiki.test.raw",  # both sizes test on the same articles
    "wikitext-2-raw-v1": "wikitext-2-raw/wiki.test.raw",
}


class CorpusError(ValueError):
    """The text asked for cannot be had; the message says why and what would do."""


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of one text, ready to be fed to a model.

    Attributes:
        name: what was loaded, the same on every machine: "stream", "pg19/4047", "notes.txt".
        input_ids: int64 [T], on the CPU; the document marker first, if the tokenizer has one.
        digest: sha256 (hex) of `input_ids` as little-endian int64 bytes.
        source: "packaged", "folder", "file" or "hub <repository>@<revision>".
    """

    name: str
    input_ids: torch.Tensor
    digest: str
    source: str


def load_tokens(
    dataset_name: str = "stream",
    dataset_config: str | None = None,
    *,
    tokenizer: "PreTrainedTokenizerBase | None",
    max_tokens: int | None = None,
    data_dir: str | Path | None = None,
) -> TokenizedText:
    """The first `max_tokens` tokens of a corpus, the document marker counted in.

    The marker is the tokenizer's BOS, else its EOS; the text itself gets no special tokens.

    Args:
        dataset_name: "stream", "wikitext", "pg19" or the path of a UTF-8 text file.
        dataset_config: which text of "wikitext" or "pg19"; None is the default of each.
        tokenizer: of the model to be fed; unused for "stream", which is stored as token ids of
            the packaged reference model and says nothing about the quality of any other.
        max_tokens: T, tokens; None takes the whole text.
        data_dir: folder of local texts; None: the environment variable STREAMCACHE_DATA, and
            where that is not set either, the hub. A folder that is given is never bypassed.

    Raises:
        MissingExtra: the text is on the hub only, and `datasets` is not installed.
        CorpusError: an unknown name or config, a missing or unreadable text, an unreachable hub,
            or a text shorter than `max_tokens`.
    """
    if max_tokens is not None and max_tokens < 1:
        raise CorpusError(f"max_tokens must be at least 1, got {max_tokens}")
    if dataset_config is not None and dataset_name not in ("wikitext", "pg19"):
        raise CorpusError(f"{dataset_name} has no configs, got {dataset_config!r}")
    if dataset_name == "stream":
        name, source = "stream", "packaged"
        stored = files("streamcache") / "reference_model" / "stream.safetensors"
        numbers = safetensors.numpy.load(stored.read_bytes())["input_ids"].tolist()
    elif tokenizer is None:
        raise CorpusError(
            f"{dataset_name} is text and this model has no tokenizer: use a model that has one, "
            "or --dataset-name stream"
        )
    else:
        name, text, source = _read(dataset_name, dataset_config, data_dir)
        marker = document_marker(tokenizer)
        start = [] if marker is None else [marker]
        numbers = [*start, *encode(tokenizer, text, max_tokens)]
    if max_tokens is not None and len(numbers) < max_tokens:
        raise CorpusError(
            f"{name} has {len(numbers)} tokens, {max_tokens} were asked for: ask for fewer, "
            "or take a longer text"
        )
    ids = torch.tensor(numbers[:max_tokens], dtype=torch.int64)
    return TokenizedText(name, ids, digest_of(ids), source)


def digest_of(input_ids: torch.Tensor) -> str:
    """sha256 (hex) of token ids [T] as little-endian int64 bytes."""
    return hashlib.sha256(input_ids.numpy().astype("<i8").tobytes()).hexdigest()


def document_marker(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token that a stream starts with: BOS, else EOS; None where there is neither."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return eos if bos is None else bos


def encode(tokenizer: "PreTrainedTokenizerBase", text: str, limit: int | None) -> list[int]:
    """The first `limit` token ids of a text, or all.

    Books have millions of characters, so only a head of the text is encoded. It is cut between a
    word and the space after it: words start with their space (" word"), none ends with one, so
    no token crosses the cut and the head's tokens are the first tokens of the whole. A line break
    would not do, as some tokenizers join it to the full stop before it.
    """
    length = len(text) if limit is None else 8 * limit  # English has 3 to 5 characters a token
    while True:
        cut = re.match(r".*\S(?= )", text[:length], re.DOTALL) if length < len(text) else None
        head = cut.group() if cut else text
        ids: list[int] = tokenizer.encode(head, add_special_tokens=False, verbose=False)
        if not cut or limit is None or len(ids) >= limit:
            return ids[:limit]
        length *= 2


def _read(name: str, config: str | None, data_dir: str | Path | None) -> _Text:
    given = data_dir or os.environ.get("STREAMCACHE_DATA")
    folder = Path(given) if given else None
    if name == "wikitext":
        return _wikitext(config or "wikitext-103-v1", folder)
    if name == "pg19":
        return _pg19(config or "4047", folder)
    if not name or not Path(name).exists():
        raise CorpusError(
            f"no dataset and no file is called {name!r}: give stream, wikitext, pg19 or the path "
            "of a UTF-8 text file"
        )
    return Path(name).name, _read_file(Path(name)), "file"


def _wikitext(config: str, folder: Path | None) -> _Text:
    name, path = f"wikitext/{config}", _WIKITEXT_FILES.get(config)
    if path is None:
        known = ", ".join(_WIKITEXT_FILES)
        raise CorpusError(f"wikitext has no config {config!r}: give one of {known}")
    if folder:
        return name, _read_file(folder / path), "folder"
    rows = _hub_rows(_WIKITEXT_HUB, f"{config}/test-*.parquet", path)
    # A row is a line of the file with its line break, but blank lines, " \n" in the file, were
    # stored as "". Put back, they make the text the file's, character by character.
    return name, "".join(line or " \n" for line in rows["text"]), f"hub {_WIKITEXT_HUB}"


def _pg19(book: str, folder: Path | None) -> _Text:
    if not re.fullmatch(r"[0-9]+", book):
        raise CorpusError(f"a pg19 config is a Project Gutenberg id such as 4047, got {book!r}")
    name, path = f"pg19/{book}", f"pg19/{book}.txt"
    if folder:
        if not (folder / path).is_file():
            books = sorted(file.stem for file in (folder / "pg19").glob("*.txt"))
            raise CorpusError(f"no file {folder / path}; books there: {', '.join(books) or 'none'}")
        return name, _read_file(folder / path), "folder"
    rows = _hub_rows(_PG19_HUB, "data/test-*.parquet", path)
    books = [url.rstrip("/").rpartition("/")[2] for url in rows["url"]]  # …/ebooks/<id>
    if book not in books:
        raise CorpusError(f"the pg19 test split has no book {book}; books: {', '.join(books)}")
    return name, rows[books.index(book)]["text"], f"hub {_PG19_HUB}"


def pg19_books(data_dir: str | Path | None) -> tuple[_Books, str]:
    """All books of the test split, in order of their numbers: names and what reads them; a source.

    Raises:
        MissingExtra, CorpusError: see `load_tokens`.
    """
    given = data_dir or os.environ.get("STREAMCACHE_DATA")
    if given:
        files = [path for path in Path(given, "pg19").glob("*.txt") if path.stem.isdecimal()]
        files.sort(key=lambda path: int(path.stem))
        if not files:
            raise CorpusError(f"no books in {Path(given, 'pg19')}: it needs files <id>.txt")
        books: _Books = [(f"pg19/{path.stem}", partial(_read_file, path)) for path in files]
        return books, "folder"
    rows = _hub_rows(_PG19_HUB, "data/test-*.parquet", "pg19/<id>.txt")
    numbers = [url.rstrip("/").rpartition("/")[2] for url in rows["url"]]
    order = sorted(range(len(numbers)), key=lambda i: int(numbers[i]))

    def read(row: int) -> str:
        return str(rows[row]["text"])

    books = [(f"pg19/{numbers[i]}", partial(read, i)) for i in order]
    return books, f"hub {_PG19_HUB}"


def _read_file(path: Path) -> str:
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text: {error.reason} at {error.start}") from error
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error
    if not text.strip():
        raise CorpusError(f"{path} is empty: give a file with text in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads text


def _hub_rows(hub: str, test_files: str, local: str) -> "Dataset":
    repository, _, revision = hub.partition("@")
    remedy = (
        f"set --data-dir or STREAMCACHE_DATA to a folder that has {local}, "
        "or use --dataset-name stream"
    )
    require("datasets", f"loading {repository} from the hub", remedy)
    try:
        from datasets import load_dataset

        # Naming the test split's files keeps the gigabytes of the others from being downloaded.
        only = {"test": test_files}
        return load_dataset(repository, data_files=only, split="test", revision=revision)
    except Exception as error:  # datasets, hub client and HTTP client share no class of errors
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CorpusError(f"cannot load {repository} from the hub ({reason}): {remedy}") from error
