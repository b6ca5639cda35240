"""An ASGI application of this process, as the server of an httpx client, with answers that are streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self

import httpx
from starlette.applications import Starlette
from starlette.types import Message


class InProcess(httpx.AsyncBaseTransport):
    """Requests go to `app` instead of to the network. Whoever asks counts as a process on this machine.

    Entering it starts the application, leaving it stops the application. An answer is taken as it is read: at most one
    message of it waits in memory.
    """

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._running: AbstractAsyncContextManager[Any] | None = None

    async def __aenter__(self) -> Self:
        self._running = self._app.router.lifespan_context(self._app)
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running.__aexit__(kind, error, traceback)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        call = _Call(request, await request.aread())
        call.task = asyncio.create_task(call.run(self._app))
        try:
            return await call.response()
        except BaseException:
            await call.aclose()
            raise


class _Call(httpx.AsyncByteStream):
    """One request to the application, and the body of its answer."""

    task: asyncio.Task[None]

    def __init__(self, request: httpx.Request, body: bytes) -> None:
        self._request = request
        self._body: bytes | None = body
        self._left = asyncio.Event()
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue(1)

    async def run(self, app: Starlette) -> None:
        url = self._request.url
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self._request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "client": ("127.0.0.1", 0),
            "server": (url.host, url.port or {"http": 80, "https": 443}[url.scheme]),
            "state": {},
        }
        try:
            await app(scope, self._receive, self._messages.put)
        except Exception:
            await self._messages.put(None)
            raise
        await self._messages.put(None)

    async def response(self) -> httpx.Response:
        """Raises: httpx.RemoteProtocolError: the application ended without an answer."""
        start = await self._messages.get()
        if start is None:
            raise httpx.RemoteProtocolError("the application gave no answer", request=self._request)
        return httpx.Response(start["status"], headers=start["headers"], stream=self, request=self._request)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._messages.get()) is not None:
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return
        raise httpx.RemoteProtocolError("the application broke its answer off", request=self._request)

    async def aclose(self) -> None:
        """The application is told that its caller left, and stopped if it is not done."""
        self._left.set()
        self.task.cancel()
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            self.task.exception()  # what went wrong in an answer is the application's to tell

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}
