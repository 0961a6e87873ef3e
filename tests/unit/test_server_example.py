"""The server of the examples: an OpenAI client's requests, limits, and nothing lost under load."""

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streamcache import EvictionPolicy, StreamingCache
from streamcache.decoding.text import TextStream
from streamcache.inputs.models import LoadedModel, load_model

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

EXAMPLES = Path(__file__).parents[2] / "examples"
TOTAL, SESSIONS, MOST_TOKENS = 64, 3, 400


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for names
    spec.loader.exec_module(module)
    return module


server, load_server = example("server"), example("load_server")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("reference")


@pytest.fixture
def port(loaded: LoadedModel) -> Iterator[int]:
    """A server with room for three conversations."""

    def cache() -> StreamingCache:
        return StreamingCache(loaded.model, EvictionPolicy.from_budget(TOTAL, n_sink=4))

    limits = server.Limits(sessions=SESSIONS, body_bytes=20_000, max_tokens=MOST_TOKENS)
    app = server.Server(loaded, cache, limits).app()
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield running.servers[0].sockets[0].getsockname()[1]
    running.should_exit = True
    thread.join()


def send(port: int, given: Any, path: str = "/v1/chat/completions") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    data = given if isinstance(given, bytes) else json.dumps(given)
    connection.request("GET" if given is None else "POST", path, None if given is None else data)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def question(*contents: str, **more: Any) -> dict[str, Any]:
    """Contents of user and assistant in turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return {"messages": messages, "max_tokens": 6, "temperature": 0, **more}


def health(port: int) -> dict[str, int]:
    found: dict[str, int] = json.loads(send(port, None, "/health")[1])
    return found


def test_a_conversation_goes_on_in_its_cache(port: int) -> None:
    status, text = send(port, question("It was a dark night"))
    first = json.loads(text)
    assert (status, first["object"], first["model"]) == (200, "chat.completion", "reference")
    assert first["choices"][0]["finish_reason"] == "length"
    assert first["usage"]["completion_tokens"] == 6
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    reply = first["choices"][0]["message"]["content"]
    second = json.loads(send(port, question("It was a dark night", reply, "And then?"))[1])
    n = first["usage"]["total_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == n
    assert n < second["usage"]["prompt_tokens"] < n + 8
    assert health(port)["sessions"] == 1
    again = json.loads(send(port, question("It was a dark night", "Another reply", "So?"))[1])
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0, "it was not said here"


def test_pieces_are_sent_as_they_come_and_are_the_same_text(port: int) -> None:
    given = question("The old man and the sea", max_tokens=12)
    whole = json.loads(send(port, given)[1])["choices"][0]["message"]["content"]
    _, text = send(port, given | {"stream": True})
    *events, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert last == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == whole
    assert len(chunks) == 1 + 12 + 1 and chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 12


def test_the_conversation_idle_longest_makes_room_and_is_read_again(port: int) -> None:
    replies = []
    for i in range(SESSIONS + 1):
        answer = json.loads(send(port, question(f"Question {i}"))[1])
        replies.append(answer["choices"][0]["message"]["content"])
    assert health(port)["sessions"] == SESSIONS and health(port)["evicted"] == 1
    for i, cached in ((SESSIONS, True), (0, False)):
        answer = json.loads(send(port, question(f"Question {i}", replies[i], "More"))[1])
        assert bool(answer["usage"]["prompt_tokens_details"]["cached_tokens"]) == cached
        assert answer["usage"]["completion_tokens"] == 6


def test_two_clients_of_one_conversation_do_not_share_a_cache(port: int) -> None:
    found = load_server.load(port, [["The same question", "The same again"]] * SESSIONS, 8)
    assert len({tuple(each.replies) for each in found}) == 1
    assert health(port)["sessions"] <= SESSIONS


BAD: list[tuple[Any, int, str]] = [
    (b"{", 400, "not JSON"),
    (b"[" * 19_000, 400, "not JSON"),
    (b"x" * 30_000, 413, "at most 20000 bytes"),
    ([], 400, "JSON object"),
    ({}, 400, "messages must be a list"),
    (question("a") | {"messages": [{"role": "user", "content": [1]}]}, 400, "messages"),
    (question("\ud800"), 400, "messages"),
    (question("a", "b"), 400, "must not be a reply"),
    (question("a", tools=[{}]), 400, "tools is not supported"),
    (question("a", n=2), 400, "n must be 1"),
    (question("a", max_tokens=MOST_TOKENS + 1), 400, "max_tokens must be a number from 1 to"),
    (question("a", max_tokens=True), 400, "max_tokens"),
    (question("a", temperature="hot"), 400, "temperature"),
    (question("a", temperature=float("nan")), 400, "temperature"),
    (question("a", top_p=1.5), 400, "top_p"),
    (question("a", seed=-1), 400, "seed"),
]


def test_a_bad_request_gets_an_error_and_keeps_nothing(port: int) -> None:
    for given, status, words in BAD:
        found, text = send(port, given)
        assert (found, words in json.loads(text)["error"]["message"]) == (status, True), text
    assert health(port)["sessions"] == 0


def test_a_client_that_goes_away_keeps_no_session(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    given = question("It was night", max_tokens=MOST_TOKENS, stream=True)
    connection.request("POST", "/v1/chat/completions", json.dumps(given))
    answer = connection.getresponse()
    assert answer.read(10)
    answer.close()
    connection.close()
    found = load_server.load(port, [[f"Others go on {i}"] for i in range(SESSIONS)], 4)
    assert len(found) == SESSIONS, "its place is free again"
    assert health(port) == {"sessions": SESSIONS, "evicted": 0, "tokens": health(port)["tokens"]}


def test_sampling_repeats_with_its_seed(port: int) -> None:
    given = question("The sea", temperature=0.9, top_p=0.9, seed=7, max_tokens=12)
    one, two = (json.loads(send(port, given)[1])["choices"] for _ in range(2))
    other = json.loads(send(port, given | {"seed": 8})[1])["choices"]
    assert one == two != other
    assert send(port, given | {"temperature": 1e-300, "top_p": 0})[0] == 200


def test_what_fails_gives_its_place_back(loaded: LoadedModel) -> None:
    def broken() -> TextStream:
        raise MemoryError

    async def twice() -> None:
        sessions = server.Sessions(broken, 1)
        for _ in range(2):  # the second would wait for ever
            with pytest.raises(MemoryError):
                await asyncio.wait_for(sessions.take(None), 1)

    asyncio.run(twice())


def test_under_load_every_reply_is_that_of_the_conversation_alone(
    port: int, loaded: LoadedModel
) -> None:
    asked = load_server.questions(SESSIONS, 3, 40)
    found = load_server.load(port, asked, 6)
    for each in found:
        assert each.replies == load_server.alone(loaded, each.questions, 6, TOTAL)
        assert each.cached_tokens > TOTAL
    assert health(port) == {"sessions": SESSIONS, "evicted": 0, "tokens": health(port)["tokens"]}


def test_more_conversations_than_caches_are_all_answered(port: int) -> None:
    found = load_server.load(port, load_server.questions(3 * SESSIONS, 2, 10), 4)
    assert all(len(each.replies) == 2 for each in found)
    assert health(port)["sessions"] == SESSIONS and health(port)["evicted"] > 0


@pytest.mark.slow
def test_64_conversations_lose_nothing_and_need_less_memory_than_without_a_bound() -> None:
    def peak(*options: str) -> float:
        command = [sys.executable, str(EXAMPLES / "load_server.py"), "--sessions", "64", *options]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        if not options:
            assert "64 of 64 conversations are as they are alone" in ran.stdout
        before, most = re.findall(r"(\d+) MB", ran.stdout)
        return float(most) - float(before)

    assert peak() < peak("--unbounded") / 2
