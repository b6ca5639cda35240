"""A gateway between clients and a server that does one thing badly: a real HTTP server on 127.0.0.1, over httpx."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from streamkeep.proxy.server import bind
from tests.serving import CERTIFICATES

_OF_ONE_CONNECTION = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
_GZIP = 16 + zlib.MAX_WBITS


@dataclass(slots=True)
class Gateway:
    """Passes everything on, but for its faults."""

    client: httpx.AsyncClient
    target: str
    buffers: bool = False  # an answer goes on when all of it is there
    compresses: bool = False  # events, as nobody can see them before there are many
    compresses_all: bool = False
    cuts_after_seconds: float | None = (
        None  # without a byte, what is read live: all else may take long on a busy machine
    )
    drops: frozenset[str] = frozenset()  # headers of answers
    caches: bool = False  # for everybody, whatever they show
    refuses: frozenset[str] = frozenset()  # methods
    hides: str = "//"  # paths that begin with it
    _kept: dict[str, Response] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._answer(request, await request.body())
        await response(scope, receive, send)

    async def _answer(self, request: Request, body: bytes) -> Response:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        if request.method in self.refuses:
            return Response("no", 405)
        if path.startswith(self.hides):
            return Response("no", 404)
        if request.method == "GET" and path in self._kept:
            return self._kept[path]
        headers = [(name, value) for name, value in request.headers.items() if name not in _OF_ONE_CONNECTION]
        headers.append(("host", request.headers["host"]))
        asked = self.client.build_request(request.method, self.target + path, headers=headers, content=body)
        patience = self.cuts_after_seconds if "live" in request.query_params else None
        try:
            async with asyncio.timeout(patience):
                answer = await self.client.send(asked, stream=True)
        except TimeoutError:
            return Response("too late", 504)
        shown = {
            name: value
            for name, value in answer.headers.items()
            if name not in _OF_ONE_CONNECTION and name.lower() not in self.drops
        }
        is_live = "text/event-stream" in shown.get("content-type", "")
        has_body = request.method == "GET" and answer.status_code == 200
        squeezes = has_body and (self.compresses_all or (self.compresses and is_live))
        if squeezes:
            shown["content-encoding"] = "gzip"
        if self.caches and request.method == "GET" and not is_live:
            self._kept[path] = Response(await answer.aread(), answer.status_code, shown)
            return self._kept[path]
        pieces = self._pieces(answer, patience, is_live=is_live, squeezes=squeezes)
        return StreamingResponse(pieces, answer.status_code, shown)

    async def _pieces(
        self, answer: httpx.Response, patience: float | None, *, is_live: bool, squeezes: bool
    ) -> AsyncIterator[bytes]:
        packer = zlib.compressobj(wbits=_GZIP) if squeezes else None
        held = b""
        async with aclosing(answer):
            async with asyncio.timeout(patience) as clock:
                async for piece in answer.aiter_raw():
                    if patience is not None:
                        clock.reschedule(asyncio.get_running_loop().time() + patience)
                    data = piece if packer is None else packer.compress(piece)
                    if self.buffers and is_live:
                        held += data
                    else:
                        yield data
            yield held + (b"" if packer is None else packer.flush())


@asynccontextmanager
async def gateway(target: str, **faults: object) -> AsyncIterator[str]:
    """The URL of a gateway with these faults before the server at `target`."""
    listener = bind("127.0.0.1", 0)
    client = httpx.AsyncClient(verify=CERTIFICATES, timeout=None, limits=httpx.Limits(max_connections=None))
    app = Gateway(client, target, **faults)  # type: ignore[arg-type]  # a test that names no fault is told so at once
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(30):
            while not server.started:
                await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        await client.aclose()
