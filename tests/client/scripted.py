"""A proxy that misbehaves as the test says, for what the real one does only on a bad day."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

from tests.upstream import Exchange, Upstream, upstream

SESSION, REQUEST = "chat", "1"

Step = Callable[[Exchange], Awaitable[None]]


def offset(position: int) -> str:
    return f"{0:016d}_{position:016d}"


def data_event(data: bytes, end: int) -> bytes:
    return f"event: data\nid: {offset(end)}\ndata: {base64.b64encode(data).decode()}\n\n".encode()


def control_event(position: int, *, is_closed: bool = False) -> bytes:
    closed = ',"streamClosed":true' if is_closed else ""
    return f'event: control\ndata: {{"streamNextOffset":"{offset(position)}","upToDate":true{closed}}}\n\n'.encode()


class ScriptedProxy:
    """Each list holds what the next requests of that kind meet; the last step stays. Without any, all is well."""

    def __init__(self, body: bytes = b"0123456789") -> None:
        self.body = body
        self.creations: list[Step] = [self.create]
        self.found: list[Step] = [self.create]
        self.data: list[Step] = [self.serve]
        self.control: list[Step] = [self.end]
        self.state = "running"
        self.server: Upstream | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    def paths(self, prefix: str) -> list[str]:
        """The requests so far whose path begins so."""
        assert self.server is not None
        return [call.path for call in self.server.calls if call.path.startswith(prefix)]

    def reads(self) -> list[tuple[str, int]]:
        """The data reads so far: mode, and the position that they began at."""
        queries = [parse_qs(urlsplit(path).query) for path in self.paths("/stream/data")]
        return [(query["live"][0], int(query["offset"][0][17:])) for query in queries]

    async def play(self, exchange: Exchange) -> None:
        if exchange.path.startswith("/stream/data"):
            steps = self.data
        elif exchange.path.startswith("/stream/control"):
            steps = self.control
        else:
            steps = self.creations if exchange.method == "POST" else self.found
        await (steps.pop(0) if len(steps) > 1 else steps[0])(exchange)

    async def create(self, exchange: Exchange) -> None:
        found = {
            "sessionId": SESSION,
            "requestId": REQUEST,
            "streamUrl": f"{self.url}/stream/data?signature=secret",
            "controlUrl": f"{self.url}/stream/control?signature=secret",
            "state": self.state,
            "contentType": "text/plain",
            "upstreamStatus": 200,
            "upstreamHeaders": {},
        }
        await exchange.answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    async def serve(self, exchange: Exchange) -> None:
        """All of the body from where the read begins, then its end."""
        query = parse_qs(urlsplit(exchange.path).query)
        start, live = int(query["offset"][0][17:]), query["live"][0]
        if live == "long-poll":
            await self.poll(exchange, self.body[start:], len(self.body), is_closed=True)
            return
        await self.begin(exchange)
        await exchange.chunk(data_event(self.body[start:], len(self.body)))
        await exchange.chunk(control_event(len(self.body), is_closed=True))
        await exchange.end()

    async def begin(self, exchange: Exchange) -> None:
        # One request for each connection; a client that did not know might send the next one on it, into a reset.
        head = {"Content-Type": "text/event-stream", "Stream-SSE-Data-Encoding": "base64", "Connection": "close"}
        await exchange.head(200, head)

    async def poll(self, exchange: Exchange, data: bytes, end: int, *, is_closed: bool = False) -> None:
        head = {
            "Content-Type": "text/plain",
            "Stream-Next-Offset": offset(end),
            "Stream-Cursor": "7",
            "Connection": "close",
        }
        if is_closed:
            head["Stream-Closed"] = "true"
        await exchange.answer(200, data, head)

    async def end(self, exchange: Exchange) -> None:
        await self.end_as(exchange, "done", "complete")

    async def end_as(self, exchange: Exchange, event: str, code: str, position: int | None = None) -> None:
        ending = {"event": event, "code": code, "offset": offset(len(self.body) if position is None else position)}
        await exchange.answer(200, json.dumps([ending]).encode(), {"Content-Type": "application/json"})

    def answering(self, status: int, body: bytes = b"", **headers: str) -> Step:
        """A step that answers so."""
        named = {"Connection": "close", **{name.replace("_", "-"): value for name, value in headers.items()}}

        async def step(exchange: Exchange) -> None:
            await exchange.answer(status, body, named)

        return step

    def failing(self, status: int, code: str, **headers: str) -> Step:
        """A step that answers with an error of the proxy's."""
        body = json.dumps({"error": code, "message": "said the proxy"}).encode()
        return self.answering(status, body, Content_Type="application/json", **headers)

    def sending(self, *pieces: bytes, then: str = "end") -> Step:
        """A step that sends pieces of a live read, and then: end, reset, or stay silent until the reader goes."""

        async def step(exchange: Exchange) -> None:
            await self.begin(exchange)
            for piece in pieces:
                await exchange.chunk(piece)
            if then == "reset":
                exchange.reset()
            elif then == "silence":
                await exchange.is_gone.wait()
            else:
                await exchange.end()

        return step


async def reset(exchange: Exchange) -> None:
    """Break the connection before any answer."""
    exchange.reset()


async def silence(exchange: Exchange) -> None:
    """Answer nothing until the reader goes."""
    await exchange.is_gone.wait()


@asynccontextmanager
async def scripted_proxy(body: bytes = b"0123456789") -> AsyncIterator[ScriptedProxy]:
    proxy = ScriptedProxy(body)
    async with upstream(proxy.play) as server:
        proxy.server = server
        yield proxy
