"""`streamcache generate` and `chat`: text from a model, without end."""

import sys
import time
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from streamcache.caches.base import BoundedCache
from streamcache.caches.streaming import StreamingCache
from streamcache.cli.common import load_one
from streamcache.cli.console import err
from streamcache.decoding.text import (
    Message,
    Sampling,
    TextError,
    TextStream,
    continuation,
    continues,
    opening,
)
from streamcache.inputs.models import LoadedModel
from streamcache.measure.workload import default_window
from streamcache.plain import plain
from streamcache.policy import EvictionPolicy


def generate(prompt: str | None, max_new_tokens: int, **settings: Any) -> None:
    """Continue a text, token by token."""
    text = sys.stdin.buffer.read().decode(errors="replace") if prompt is None else prompt
    stream, sampling = _stream(**settings)
    marker = str(stream.tokenizer.bos_token or stream.tokenizer.eos_token or "")
    stream.read(text if marker and text.startswith(marker) else marker + text)
    print(plain(text, keep="\n\t"), end="", flush=True)
    _write(stream, max_new_tokens, sampling)


def chat(system: str | None, max_new_tokens: int, **settings: Any) -> None:
    """Answer each line of the input, until it ends."""
    stream, sampling = _stream(**settings)
    tokenizer = stream.tokenizer
    if not continues(tokenizer):
        raise TextError("the chat template of this model changes earlier replies: use generate")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    begin = opening
    for line in _lines():
        stream.read(begin(tokenizer, [*messages, {"role": "user", "content": line}]))
        _write(stream, max_new_tokens, sampling)
        messages, begin = [], continuation


def _stream(
    n_sink: int,
    cap_total: int | None,
    compress_every: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    **model: Any,
) -> tuple[TextStream, Sampling]:
    """A stream of the model that the options name, and how its tokens are chosen."""
    loaded = load_one(**model)
    total = default_window(loaded).floor if cap_total is None else cap_total
    policy = EvictionPolicy.from_budget(total, n_sink, compress_every=compress_every)
    cache = StreamingCache(loaded.model, policy)
    sampling = Sampling(temperature, top_p, seed)
    return TextStream(loaded.model, _tokenizer(loaded), cache), sampling


def _tokenizer(loaded: LoadedModel) -> PreTrainedTokenizerBase:
    if loaded.tokenizer is None:
        raise TextError(f"{loaded.name} has no tokenizer: give a model that has one")
    return loaded.tokenizer


def _lines() -> Iterator[str]:
    """The lines of the input without empty ones; a terminal is asked for each."""
    while True:
        if sys.stdin.isatty() and err.is_terminal:
            err.print("> ", end="")
        line = sys.stdin.buffer.readline()
        if not line:
            return
        if text := line.decode(errors="replace").strip():
            yield text


def _write(stream: TextStream, max_new_tokens: int, sampling: Sampling) -> None:
    """Print a reply as it is decoded, and below it what it took."""
    start = time.perf_counter()
    for piece in stream.write(max_new_tokens, sampling):
        print(plain(piece, keep="\n\t"), end="", flush=True)
    print(flush=True)
    err.print(_status(stream, time.perf_counter() - start))


def _status(stream: TextStream, seconds: float) -> str:
    cache = stream.cache
    assert isinstance(cache, BoundedCache)
    rate = stream.n_written / seconds if seconds else 0.0
    return (
        f"[{stream.n_written} tokens, {rate:.1f} tokens/s; stream: {cache.seen} tokens, "
        f"cache: {cache.size} of {cache.policy.capacity} entries, {cache.evicted} evicted]"
    )
