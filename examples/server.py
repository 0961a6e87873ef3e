"""An OpenAI-compatible server whose conversations need a fixed amount of memory each.

    pip install "streamcache[serve]"
    python examples/server.py --sessions 64 --total 512

A client sends the whole conversation with each request, as the protocol has it. The server keeps
a cache for each conversation that it has answered, and feeds it only what is new. There are never
more than --sessions caches: the one that was idle longest makes room. Its conversation is not
lost: with its next request the whole of it is read again.
"""

import argparse
import asyncio
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers.cache_utils import Cache, DynamicCache

from streamcache import EvictionPolicy, StreamingCache
from streamcache.decoding.text import (
    Message,
    Sampling,
    TextError,
    TextStream,
    continuation,
    continues,
    opening,
)
from streamcache.inputs.models import LoadedModel, load_model

CHANGES_THE_REPLY = ("tools", "functions", "response_format", "logit_bias", "logprobs", "stop")


class Refused(Exception):
    """A request that gets an error: its status and what would be right."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    sessions: int = 64  # caches at a time
    body_bytes: int = 1 << 20  # of a request
    max_tokens: int = 1024  # of a reply


@dataclass(frozen=True)
class Asked:
    """A request, checked."""

    messages: list[Message]
    max_tokens: int
    sampling: Sampling
    stream: bool

    @property
    def seen(self) -> int:
        """Messages up to the last reply: what a session may have read already."""
        replies = [i for i, each in enumerate(self.messages) if each["role"] == "assistant"]
        return replies[-1] + 1 if replies else 0


class Sessions:
    """The caches, by the conversation that each holds.

    A session at work belongs to its request and has no key, so no two requests can share it.
    """

    def __init__(self, new: Callable[[], TextStream], n: int):
        self._new, self._n_free = new, asyncio.Semaphore(n)
        self._idle: OrderedDict[str, TextStream] = OrderedDict()  # the longest idle first
        self._left = n  # that may still be made
        self.n_evicted = 0

    async def take(self, key: str | None) -> tuple[TextStream, bool]:
        """The session of a conversation, or an empty one; and whether it was there."""
        await self._n_free.acquire()
        if key in self._idle:
            return self._idle.pop(key), True
        if self._left:
            self._left -= 1
        else:
            self._idle.popitem(last=False)
            self.n_evicted += 1
        try:
            return self._new(), False
        except BaseException:
            self.drop()
            raise

    def keep(self, key: str, stream: TextStream) -> None:
        """Keep a session for the next request of its conversation."""
        if key in self._idle:  # two clients had the same conversation: one of them is enough
            self.drop()
            return
        self._idle[key] = stream
        self._n_free.release()

    def drop(self) -> None:
        """Forget a session that was taken."""
        self._left += 1
        self._n_free.release()

    @property
    def held(self) -> list[TextStream]:
        """The sessions that wait for their next request."""
        return list(self._idle.values())


class Server:
    """The endpoints. Requests take turns at the model, token by token."""

    def __init__(self, loaded: LoadedModel, new_cache: Callable[[], Cache], limits: Limits):
        assert loaded.tokenizer is not None
        self.loaded, self.tokenizer, self.limits = loaded, loaded.tokenizer, limits
        self.sessions = Sessions(
            lambda: TextStream(loaded.model, self.tokenizer, new_cache()), limits.sessions
        )
        self.continues = continues(self.tokenizer)
        self._turn = asyncio.Lock()  # first come, first served

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/health", self.health),
            ],
            exception_handlers={Refused: refuse, TextError: refuse},
        )

    async def models(self, _: Request) -> Response:
        model = {"id": self.loaded.name, "object": "model", "owned_by": "streamcache"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, _: Request) -> Response:
        held = self.sessions.held
        return JSONResponse(
            {
                "sessions": len(held),
                "evicted": self.sessions.n_evicted,
                "tokens": sum(stream.n_tokens for stream in held),
            }
        )

    async def chat(self, request: Request) -> Response:
        asked = checked(await body(request, self.limits.body_bytes), self.limits.max_tokens)
        reply = Reply(self, asked)
        if asked.stream:
            return StreamingResponse(reply.events(), media_type="text/event-stream")
        text = "".join([piece async for piece in reply.pieces()])
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        return JSONResponse(reply.outline("chat.completion") | {"choices": [choice]})

    async def work(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Run a step of a model in a thread, when it is this request's turn."""
        async with self._turn:
            return await asyncio.to_thread(call, *arguments)


class Reply:
    """One reply, from taking a session to keeping it."""

    def __init__(self, server: Server, asked: Asked):
        self.server, self.asked = server, asked
        self.id, self.created = f"chatcmpl-{uuid4().hex}", int(time.time())
        self.finish_reason, self.n_known, self.n_read, self.n_written = "", 0, 0, 0

    async def pieces(self) -> AsyncIterator[str]:
        """The text, as it is decoded. What ends early, or fails, keeps no session."""
        server, asked, finished = self.server, self.asked, False
        key = digest(asked.messages[: asked.seen]) if asked.seen and server.continues else None
        stream, known = await server.sessions.take(key)
        try:
            if known:
                new = continuation(server.tokenizer, asked.messages[asked.seen :])
            else:
                new = opening(server.tokenizer, asked.messages)
            self.n_known = stream.n_tokens
            self.n_read = await server.work(stream.read, new)
            steps, text = stream.write(asked.max_tokens, asked.sampling), ""
            while (piece := await server.work(next, steps, None)) is not None:
                text += piece
                yield piece
            self.finish_reason, self.n_written = stream.finish_reason, stream.n_written
            reply = {"role": "assistant", "content": text}
            finished = True
            server.sessions.keep(digest([*asked.messages, reply]), stream)
        finally:
            if not finished:
                server.sessions.drop()

    async def events(self) -> AsyncIterator[str]:
        """The pieces as server-sent events."""
        outline = self.outline("chat.completion.chunk")
        del outline["usage"]

        def event(delta: dict[str, str], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return f"data: {json.dumps(outline | {'choices': [choice]} | more)}\n\n"

        yield event({"role": "assistant", "content": ""})
        try:
            async for piece in self.pieces():
                yield event({"content": piece})
        except TextError as error:  # the status is sent already
            yield f"data: {json.dumps(problem(str(error)))}\n\n"
            return
        yield event({}, self.finish_reason, usage=self.outline("")["usage"])
        yield "data: [DONE]\n\n"

    def outline(self, kind: str) -> dict[str, Any]:
        """What every answer has besides its choices."""
        usage = {
            "prompt_tokens": self.n_known + self.n_read,
            "completion_tokens": self.n_written,
            "total_tokens": self.n_known + self.n_read + self.n_written,
            "prompt_tokens_details": {"cached_tokens": self.n_known},
        }
        name = self.server.loaded.name
        made = {"id": self.id, "object": kind, "created": self.created, "model": name}
        return made | {"usage": usage}


async def body(request: Request, most: int) -> Any:
    """The JSON of a request."""
    data = b""
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                raise Refused(413, f"a request has at most {most} bytes: send fewer messages")
        return json.loads(data)
    except ClientDisconnect as error:
        raise Refused(400, "the client went away") from error
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the request is not JSON") from error


def checked(given: Any, most_tokens: int) -> Asked:
    """A request of which every field that matters is right."""
    if not isinstance(given, dict):
        raise Refused(400, "the request must be a JSON object")
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages or not all(map(is_message, messages)):
        raise Refused(400, 'messages must be a list of {"role": text, "content": text}')
    if messages[-1]["role"] == "assistant":
        raise Refused(400, "the last message must not be a reply")
    if unknown := [name for name in CHANGES_THE_REPLY if given.get(name)]:
        raise Refused(400, f"{unknown[0]} is not supported")
    if given.get("n", 1) != 1:
        raise Refused(400, "n must be 1")
    limit = given.get("max_completion_tokens", given.get("max_tokens"))
    return Asked(
        [{"role": each["role"], "content": each["content"]} for each in messages],
        number("max_tokens", limit, int, 256, 1, most_tokens),
        Sampling(
            number("temperature", given.get("temperature"), float, 1.0, 0, 100),
            number("top_p", given.get("top_p"), float, 1.0, 0, 1),
            number("seed", given.get("seed"), int, None, 0, (1 << 63) - 1),
        ),
        given.get("stream") is True,
    )


def is_message(given: Any) -> bool:
    return isinstance(given, dict) and all(is_text(given.get(name)) for name in ("role", "content"))


def is_text(given: Any) -> bool:
    """Whether it is text that a tokenizer can read: JSON has halves of characters, too."""
    return isinstance(given, str) and given.encode(errors="ignore").decode() == given


def number(name: str, given: Any, kind: type, default: Any, least: float, most: float) -> Any:
    if given is None:
        return default
    kinds = (int, float) if kind is float else (int,)
    if isinstance(given, bool) or not isinstance(given, kinds) or not least <= given <= most:
        raise Refused(400, f"{name} must be a number from {least} to {most}")
    return kind(given)


def digest(messages: list[Message]) -> str:
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


def problem(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


async def refuse(_: Request, error: Exception) -> Response:
    return JSONResponse(problem(str(error)), getattr(error, "status", 400))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="reference", help="a folder, or reference")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--total", type=int, default=512, help="entries of each cache")
    parser.add_argument("--sessions", type=int, default=64, help="caches at a time")
    parser.add_argument("--requests", type=int, default=256, help="at a time; more get status 503")
    parser.add_argument("--unbounded", action="store_true", help="caches that grow, to compare")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    loaded = load_model(given.model, device=given.device)
    policy = EvictionPolicy.from_budget(given.total, n_sink=4)

    def new_cache() -> Cache:
        if given.unbounded:
            return DynamicCache(config=loaded.model.config)
        return StreamingCache(loaded.model, policy)

    app = Server(loaded, new_cache, Limits(sessions=given.sessions)).app()
    most = {"limit_concurrency": given.requests}
    uvicorn.run(app, host=given.host, port=given.port, log_level="warning", **most)


if __name__ == "__main__":
    main()
