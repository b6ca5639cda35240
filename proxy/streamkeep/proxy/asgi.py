"""The little that raw ASGI routes need: one-shot answers, error answers, and the guard around each route."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from streamkeep.proxy.errors import Problem, problem_of

logger = logging.getLogger(__name__)

Headers = Iterable[tuple[str, str]]

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"cross-origin"),
)
NO_STORE = ("Cache-Control", "no-store")
# What streams hold came from elsewhere and is served from our origin: nothing in it may run.
SANDBOX = ("Content-Security-Policy", "sandbox; default-src 'none'")


def raw_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI wants them, with those that stand on every answer."""
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return [*raw, *SECURITY_HEADERS]


async def answer(send: Send, status: int, body: bytes, headers: Headers) -> None:
    """Send a whole answer; 204 and 304 carry no length."""
    fields = list(headers)
    if status not in (204, 304):
        fields.append(("Content-Length", str(len(body))))
    await send({"type": "http.response.start", "status": status, "headers": raw_headers(fields)})
    await send({"type": "http.response.body", "body": body})


async def answer_json(send: Send, status: int, value: object, headers: Headers = ()) -> None:
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    await answer(send, status, body, [("Content-Type", "application/json"), NO_STORE, *headers])


async def answer_problem(send: Send, problem: Problem) -> None:
    await answer_json(send, problem.status, problem.body(), [*problem.headers, SANDBOX])


def chunk(body: bytes) -> bytes:
    """A part of a body, not empty, as it goes on the wire in an answer without a length (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


class Flow(Protocol):
    """Says whether a peer is slow: what it was sent waits in memory."""

    write_paused: bool


@dataclass(slots=True)
class ChunkWriter:
    """A way to write chunks of an answer that has started, without awaiting it, while it `is_ready`. Who holds `write` need not
    look each time: when the peer is gone, or slow, so that what it is sent waits in memory, `on_unready` is called; within
    `write`, too."""

    transport: asyncio.Transport
    flow: Flow
    on_unready: Callable[[], object] | None = None

    @property
    def is_ready(self) -> bool:
        return not (self.flow.write_paused or self.transport.is_closing())

    @property
    def write(self) -> Callable[[bytes], object]:
        return self.transport.write

    def tell_unready(self) -> None:
        """For the server: the peer is gone, going or slow from now on."""
        if self.on_unready is not None:
            self.on_unready()

    @staticmethod
    def of(scope: Scope) -> ChunkWriter | None:
        """None where the server has no such way, or the answer has no chunks."""
        make: Callable[[], ChunkWriter | None] | None = scope.get("streamkeep.chunk_writer")
        return None if make is None else make()


def is_here(receive: Receive) -> bool:
    """Whether `receive` gives its next message without waiting. A server that does not tell is waited for."""
    tell: Callable[[], bool] | None = getattr(receive, "is_here", None)
    return tell is not None and tell()


@dataclass(slots=True)
class Exchange:
    """One request and its answer, for whoever stands around the routes: `of(scope)` finds it. `send` is the server's own:
    once an answer has started nobody around the routes looks at what follows, and a stream's body may go there directly."""

    request_id: str
    send: Send
    has_started: bool = False
    error: str | None = None

    @staticmethod
    def of(scope: Scope) -> Exchange:
        exchange: Exchange = scope["streamkeep.exchange"]
        return exchange


class RawRoutes:
    """ASGI middleware: what a route takes whole goes to its application, and all else on to the next. Nothing of a
    framework then stands between a route and the server. What the routes' paths hold are texts, which nothing converts."""

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app = app
        # Most routes are told apart by how their paths begin, which is far cheaper to see than whether they match.
        self._routes = [(route.path.partition("{")[0], route) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            for beginning, route in self._routes:
                if not path.startswith(beginning):
                    continue
                found = route.path_regex.match(path)
                if found is not None and scope["method"] in (route.methods or ()):
                    scope["path_params"] = found.groupdict()
                    await route.app(scope, receive, send)
                    return
        await self._app(scope, receive, send)


class Guarded:
    """An ASGI application whose exceptions become error answers; the unknown is 500, logged once, without detail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange.of(scope)
        try:
            await self._app(scope, receive, send)
        except Exception as exc:
            problem = problem_of(exc)
            if problem is None:
                logger.exception("unexpected failure in %s", scope["path"])
                problem = Problem(500, "internal_error", "something failed here that should not have")
            if exchange.has_started:
                raise
            exchange.error = problem.code
            await answer_problem(send, problem)


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a request header."""
    for raw_name, raw_value in scope["headers"]:
        if raw_name == name:
            value: bytes = raw_value
            return value.decode("latin-1")
    return None


def base_url(scope: Scope, public_url: str | None) -> str:
    """The absolute base of the URLs that we hand out: as configured, else as the request came in."""
    if public_url is not None:
        return public_url
    host = header(scope, b"host") or ""
    if not host or not all(c.isalnum() or c in ".:-[]_" for c in host):
        address, port = scope.get("server") or ("127.0.0.1", 80)
        host = f"{address}:{port}"
    return f"{scope['scheme']}://{host}{scope.get('root_path', '')}"
