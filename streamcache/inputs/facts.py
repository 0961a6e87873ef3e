"""A text with facts in it, each asked for once, a number of tokens later.

StreamEval (Xiao et al. 2023, section 4.5) asks for a line that stands a fixed number of lines back,
and a needle in a haystack is a fact in a long text that is asked for at its end. Here a book stands
between the facts: both are one text then, and a small model can do it.
"""

import heapq
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from streamcache.inputs.corpora import CorpusError, TokenizedText, digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACING = 64  # tokens of the book between two facts
LEAST_DISTANCE = 48  # tokens: a fact and the question about it do not overlap
_FACT = "\nThe number of the {} is"  # and a number
_ADJECTIVES = (
    "amber brave calm dusty early fancy gentle hollow icy jolly keen lively mellow narrow odd pale "
    "quick rusty silent tall urban vivid warm young bitter clever distant eager faint golden"
)
_NOUNS = (
    "otter bridge candle desert engine forest garden hammer island jacket kettle ladder mirror "
    "needle orchard pencil quarry river saddle tunnel valley window yard anchor barrel castle "
    "dragon eagle feather goblet"
)
MOST_FACTS = len(_ADJECTIVES.split()) * len(_NOUNS.split())  # each has another name


@dataclass(frozen=True)
class Question:
    """Where a fact is asked for.

    Attributes:
        distance: wanted, in tokens from the number where the fact says it to where it is asked for.
            A question that waits for another fact or question stands some tokens farther away.
        told: the first token of the number in the fact.
        start, end: the tokens of the number in the answer.
    """

    distance: int
    told: int
    start: int
    end: int


def facts_text(
    text: TokenizedText,
    tokenizer: "PreTrainedTokenizerBase",
    distances: list[int],
    n_questions: int,
    seed: int = 0,
) -> tuple[TokenizedText, list[Question]]:
    """A stream of the text with facts, of which each is asked for at one of the distances.

    A question is the beginning of the fact: a model that still sees it can go on with the number,
    which is the next of the stream in any case.

    Args:
        text: its first token is the document marker.
        distances: in tokens, each at least `LEAST_DISTANCE`.
        n_questions: for each distance.

    Raises:
        ValueError: a distance is too short, or there are more questions than `MOST_FACTS`.
        CorpusError: the text ends too early.
    """
    n_facts = n_questions * len(distances)
    if min(distances) < LEAST_DISTANCE or n_facts > MOST_FACTS:
        raise ValueError(
            f"distances are at least {LEAST_DISTANCE} tokens, and questions at most {MOST_FACTS}"
        )
    rng = random.Random(seed)
    names = [f"{adjective} {noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()]
    rng.shuffle(names)
    order: list[int] = []
    for _ in range(n_questions):
        order += rng.sample(distances, len(distances))
    end = _encode(tokenizer, ".\n")
    book = iter(text.input_ids.tolist())
    ids, asked = [next(book)], []
    due: list[tuple[int, int, int, list[int], list[int]]] = []  # token, and a question's contents
    next_fact = 1
    while order or due:
        if due and due[0][0] <= len(ids):
            _, told, distance, said, number = heapq.heappop(due)
            start = len(ids) + len(said)
            asked.append(Question(distance, told, start, start + len(number)))
            ids += [*said, *number, *end]
        elif order and next_fact <= len(ids):
            said = _encode(tokenizer, _FACT.format(names.pop()))
            number = _encode(tokenizer, f" {rng.randrange(10_000, 100_000)}")
            told = len(ids) + len(said)
            distance = order.pop()
            heapq.heappush(due, (told + distance - len(said), told, distance, said, number))
            ids += [*said, *number, *end]
            next_fact = len(ids) + SPACING
        else:
            token = next(book, None)
            if token is None:
                raise CorpusError(f"{text.name} ends before all is asked: take a longer text")
            ids.append(token)
    stream = torch.tensor(ids, dtype=torch.int64)
    name = f"{text.name}, facts {','.join(map(str, distances))} back"
    return TokenizedText(name, stream, digest_of(stream), text.source), asked


def tokens_needed(distances: list[int], n_questions: int) -> int:
    """Tokens of a text that `facts_text` uses at most."""
    return 2 + n_questions * len(distances) * SPACING + max(distances)


def _encode(tokenizer: "PreTrainedTokenizerBase", words: str) -> list[int]:
    return list(tokenizer.encode(words, add_special_tokens=False))
