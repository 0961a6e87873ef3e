"""Load the server with conversations at the same time, and check that nothing is lost.

    python examples/load_server.py --sessions 64
    python examples/load_server.py --sessions 64 --unbounded

Every reply is compared with that of the same conversation alone. Printed are requests per second,
the time of a request, and the memory of the server before the first request and at its peak.
"""

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from streamcache import EvictionPolicy, StreamingCache
from streamcache.decoding.text import Message, TextStream, continuation, opening
from streamcache.inputs.models import LoadedModel, load_model

WORDS = ("rain", "fell", "sea", "old", "man", "she", "opened", "letter", "find", "night", "door")


@dataclass
class Conversation:
    """What one client asks, and what it is answered."""

    questions: list[str]
    replies: list[str]
    seconds: list[float]
    cached_tokens: int = 0


def questions(n_sessions: int, n_turns: int, n_words: int) -> list[list[str]]:
    """For each session its questions, no two alike."""
    chosen = random.Random(0)
    return [
        [" ".join(chosen.choices(WORDS, k=n_words)) for _ in range(n_turns)]
        for _ in range(n_sessions)
    ]


def ask(port: int, asked: list[str], max_tokens: int) -> Conversation:
    """One client: each question with all that was said before. An error of the server raises."""
    found = Conversation(asked, [], [])
    messages: list[Message] = []
    connection = HTTPConnection("127.0.0.1", port, timeout=600)
    for question in asked:
        messages.append({"role": "user", "content": question})
        given = {"messages": messages, "max_tokens": max_tokens, "temperature": 0}
        start = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(given))
        answer = connection.getresponse()
        data: Any = json.loads(answer.read())
        found.seconds.append(time.perf_counter() - start)
        if answer.status != 200:
            raise RuntimeError(f"status {answer.status}: {data}")
        message = data["choices"][0]["message"]
        found.replies.append(message["content"])
        found.cached_tokens += data["usage"]["prompt_tokens_details"]["cached_tokens"]
        messages.append(message)
    connection.close()
    return found


def load(port: int, asked: list[list[str]], max_tokens: int) -> list[Conversation]:
    """All clients at the same time."""
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda each: ask(port, each, max_tokens), asked))


def alone(loaded: LoadedModel, asked: list[str], max_tokens: int, total: int) -> list[str]:
    """The replies of a conversation with the model for itself."""
    assert loaded.tokenizer is not None
    cache = StreamingCache(loaded.model, EvictionPolicy.from_budget(total, n_sink=4))
    stream, replies = TextStream(loaded.model, loaded.tokenizer, cache), []
    for question in asked:
        message: Message = {"role": "user", "content": question}
        begin = continuation if replies else opening
        stream.read(begin(loaded.tokenizer, [message]))
        replies.append("".join(stream.write(max_tokens)))
    return replies


@contextmanager
def server(*options: str) -> Iterator[tuple[int, int]]:
    """The server as a process of its own: its port and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("server.py")), "--port", str(port)]
    process = subprocess.Popen([*command, *options])
    try:
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def memory_mb(process: int, key: str) -> float:
    """VmRSS or VmHWM of a process (Linux)."""
    lines = (
        Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    )
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=64, help="conversations at a time")
    parser.add_argument("--turns", type=int, default=6, help="of each")
    parser.add_argument("--words", type=int, default=100, help="of each question")
    parser.add_argument("--tokens", type=int, default=8, help="of each reply")
    parser.add_argument("--total", type=int, default=128, help="entries of each cache")
    parser.add_argument("--unbounded", action="store_true", help="caches that grow, to compare")
    given = parser.parse_args()
    asked = questions(given.sessions, given.turns, given.words)
    options = ["--sessions", str(given.sessions), "--total", str(given.total)]
    with server(*options, *["--unbounded"][: given.unbounded]) as (port, process):
        before = memory_mb(process, "VmRSS")
        start = time.perf_counter()
        found = load(port, asked, given.tokens)
        seconds = time.perf_counter() - start
        peak = memory_mb(process, "VmHWM")
    n = sum(len(each.replies) for each in found)
    times = sorted(s for each in found for s in each.seconds)
    print(
        f"{n} requests of {given.sessions} conversations in {seconds:.1f} s: "
        f"{n / seconds:.1f} per second, median {statistics.median(times):.2f} s, "
        f"slowest {times[-1]:.2f} s"
    )
    print(f"memory: {before:.0f} MB at the start, {peak:.0f} MB at its peak")
    if given.unbounded:
        return
    loaded = load_model("reference")
    same = sum(
        alone(loaded, each.questions, given.tokens, given.total) == each.replies for each in found
    )
    print(f"{same} of {given.sessions} conversations are as they are alone")
    if same < given.sessions:
        sys.exit(1)


if __name__ == "__main__":
    main()
