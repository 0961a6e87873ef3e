"""The books of PG19's test split, one after the other, as one stream."""

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from streamcache.inputs.corpora import (
    CorpusError,
    TokenizedText,
    digest_of,
    document_marker,
    encode,
    pg19_books,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Books:
    """A stream of books.

    Attributes:
        text: the stream. The document marker stands at its beginning only: a marker between two
            books would be a second attention sink.
        names: of the books in their order; after the last comes the first again.
        starts: the first token of each.
    """

    text: TokenizedText
    names: list[str]
    starts: list[int]


def load_books(
    *,
    tokenizer: "PreTrainedTokenizerBase | None",
    max_tokens: int,
    book_tokens: int | None = None,
    data_dir: str | Path | None = None,
) -> Books:
    """The first `max_tokens` tokens of all books in order of their numbers, around and around.

    Args:
        tokenizer: of the model to be fed.
        max_tokens: T >= 2, the document marker counted in.
        book_tokens: the first tokens of each book that are taken; None: all.
        data_dir: folder with `pg19/<id>.txt`; None: STREAMCACHE_DATA, else the hub.

    Raises:
        MissingExtra: the books are on the hub only, and `datasets` is not installed.
        CorpusError: the model has no tokenizer, there are no books, or they cannot be read.
    """
    if tokenizer is None:
        raise CorpusError("books are text, and this model has no tokenizer")
    books, source = pg19_books(data_dir)
    marker = document_marker(tokenizer)
    ids: list[int] = [] if marker is None else [marker]
    names: list[str] = []
    starts: list[int] = []
    encoded: list[list[int]] = []
    for name, read in books:  # only as many as are needed
        encoded.append(encode(tokenizer, read(), book_tokens))
        names.append(name)
        starts.append(len(ids))
        ids += encoded[-1]
        if len(ids) >= max_tokens:
            break
    if not any(encoded):
        raise CorpusError("the books have no tokens")
    around = cycle(list(zip(names, encoded)))
    while len(ids) < max_tokens:
        name, book = next(around)
        names.append(name)
        starts.append(len(ids))
        ids += book
    stream = torch.tensor(ids[:max_tokens], dtype=torch.int64)
    return Books(TokenizedText("pg19", stream, digest_of(stream), source), names, starts)
