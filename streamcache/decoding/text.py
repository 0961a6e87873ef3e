"""Text in and text out of a model, on one cache: what a chat and a server have in common."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

Message = dict[str, str]  # "role" and "content", as chat templates have them

_A_TURN: list[Message] = [
    {"role": "user", "content": "question"},
    {"role": "assistant", "content": "answer"},
]

_LEAST_TEMPERATURE = 0.01  # below it logits over temperature leave the range of float32


class TextError(ValueError):
    """A text or a conversation that this model cannot continue; the message says why."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: below 0.01 the most likely token is taken.
        top_p: the least probability that the tokens to choose from have together.
        seed: of the random numbers; None: another one each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def chooser(self, device: torch.device) -> "Chooser":
        """One that begins with the seed."""
        return Chooser(self, device)


class Chooser:
    """Chooses tokens from logits, with random numbers of its own."""

    def __init__(self, sampling: Sampling, device: torch.device):
        self._warp = LogitsProcessorList()
        self._random: torch.Generator | None = None
        if sampling.temperature >= _LEAST_TEMPERATURE:
            self._warp.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_p < 1:
                self._warp.append(TopPLogitsWarper(sampling.top_p))
            self._random = torch.Generator(device)
            if sampling.seed is None:
                self._random.seed()
            else:
                self._random.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """The next token [1, 1] from logits [1, V]."""
        if self._random is None:
            return logits.argmax(-1, keepdim=True)
        nothing: Any = torch.empty(1, 0, dtype=torch.long)  # of the text; neither warper reads it
        scores = self._warp(nothing, logits.float())
        return scores.softmax(-1).multinomial(1, generator=self._random)


class TextStream:
    """One stream of text, read and written alternately.

    Args:
        model: in evaluation mode.
        tokenizer: the model's; a fast one.
        cache: the stream's own, empty.

    Attributes:
        n_written: tokens of the last reply.
        finish_reason: why the last reply ended: "stop" (the model ended it) or "length".

    Raises:
        TextError: the tokenizer has no fast form.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache):
        if not tokenizer.is_fast:
            raise TextError("streaming text needs a fast tokenizer (tokenizer.json)")
        self.model, self.tokenizer, self.cache = model, tokenizer, cache
        self.n_written, self.finish_reason = 0, ""
        self._logits: Tensor | None = None  # [1, V] after the last token
        self._ends = end_tokens(model, tokenizer)

    @property
    def n_tokens(self) -> int:
        """Tokens that the stream has had."""
        return int(self.cache.get_seq_length())

    def read(self, text: str) -> int:
        """Feed a text as it is, without markers of the tokenizer; the number of its tokens.

        What is no character, such as an undecodable byte of an argument, is read as "?".
        """
        text = text.encode(errors="replace").decode()
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if ids:
            self._feed(torch.tensor([ids], device=self.model.device))
        return len(ids)

    def write(self, max_tokens: int, sampling: Sampling = Sampling()) -> Iterator[str]:
        """Decode a reply of at most `max_tokens`, token by token.

        Yields:
            The text that each token adds; "" where it ends inside a character.

        Raises:
            TextError: nothing has been read yet.
        """
        if self._logits is None:
            raise TextError("there is no text to continue: give one of at least one token")
        choose, detokenize = sampling.chooser(self._logits.device), DecodeStream(ids=[])
        backend: Any = self.tokenizer
        self.n_written, self.finish_reason = 0, "length"
        while self.n_written < max_tokens:
            token = choose(self._logits)
            if int(token) in self._ends:
                self.finish_reason = "stop"
                return
            self._feed(token)
            self.n_written += 1
            yield detokenize.step(backend.backend_tokenizer, int(token)) or ""

    @torch.inference_mode()
    def _feed(self, ids: Tensor) -> None:
        """Append tokens [1, T]."""
        given: Any = {"input_ids": ids, "past_key_values": self.cache, "logits_to_keep": 1}
        self._logits = self.model(**given).logits[:, -1]


def opening(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The text of a conversation up to the place where the reply begins.

    Without a chat template it is the document marker and a line for each message.

    Raises:
        TextError: the template refuses the messages.
    """
    if tokenizer.chat_template is None:
        marker = str(tokenizer.bos_token or tokenizer.eos_token or "")
        return marker + "".join(f"{message['content']}\n" for message in messages)
    try:
        given: Any = {"tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(list(messages), **given))
    except Exception as error:  # a template raises what it likes
        raise TextError(f"the chat template refuses these messages: {error}") from error


def continuation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The text that follows a reply: its end, further messages, and the beginning of the next.

    It does not depend on what was said before, so nothing of it need be kept.

    Raises:
        TextError: the template writes a past reply in another way than it was decoded.
    """
    if tokenizer.chat_template is None:
        return "\n" + "".join(f"{message['content']}\n" for message in messages)
    whole = opening(tokenizer, [*_A_TURN, *messages])
    before = opening(tokenizer, _A_TURN[:1]) + _A_TURN[1]["content"]
    if not whole.startswith(before):
        raise TextError(
            "the chat template changes earlier replies: a stream cannot continue with it"
        )
    return whole.removeprefix(before)


def continues(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a conversation can continue without its beginning: see `continuation`."""
    try:
        return bool(continuation(tokenizer, _A_TURN[:1]))
    except TextError:
        return False


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> set[int]:
    """The tokens that end a reply."""
    config: Any = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    found = set(ends if isinstance(ends, list) else [ends])
    if tokenizer is not None:
        found.add(tokenizer.eos_token_id)
    return found - {None}
