"""How the client's one core reaches the network, the clock and the disk.

The core is written once, as coroutines over a `Channel`. `AsyncChannel` awaits for real. `BlockingChannel` does the same
work before it returns and never suspends, so `run_blocking` can drive a coroutine of the core to its end in one step:
the sync client is the async one with another channel, not a second copy of its thinking.

Requests go to httpx's transports rather than to its clients: those keep no cookies, follow no redirects, and write no
log lines with URLs in them, whose queries are signatures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar, cast

import anyio
import anyio.to_thread
import httpx

T = TypeVar("T")

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=30)


class Reply(Protocol):
    """An answer whose body is still on its way."""

    status: int
    headers: httpx.Headers

    async def next_piece(self) -> bytes:
        """What came next of the body, as it is on the wire; empty at its end."""

    async def close(self) -> None:
        """Give the connection back, or drop it when the body is not read to its end. May be called again."""


class Channel(Protocol):
    """The I/O that the core needs. Errors of the network are httpx's."""

    async def send(self, request: httpx.Request) -> Reply:
        """Send a request; its timeouts stand in its extensions."""

    async def read_request(self, request: httpx.Request) -> bytes:
        """Take a request's whole body into memory."""

    async def sleep(self, seconds: float) -> None:
        """Pause."""

    async def run(self, work: Callable[[], T]) -> T:
        """Do short work on the disk without holding up anybody else."""

    def shield(self) -> AbstractContextManager[object]:
        """What is awaited inside is finished even when the caller is cancelled."""

    async def close(self) -> None:
        """Close every connection."""


class BlockingChannel:
    """Everything is done when the call returns; see `run_blocking`."""

    def __init__(self, http: httpx.BaseTransport | None = None) -> None:
        self._http = http
        self._lock = threading.Lock()

    async def send(self, request: httpx.Request) -> Reply:
        with self._lock:
            # Made when it is needed: it loads the certificates of all authorities, which takes a while.
            if self._http is None:
                self._http = httpx.HTTPTransport(limits=_LIMITS)
        return _BlockingReply(self._http.handle_request(request))

    async def read_request(self, request: httpx.Request) -> bytes:
        return request.read()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # nobody else runs in this coroutine's thread

    async def run(self, work: Callable[[], T]) -> T:
        return work()

    def shield(self) -> AbstractContextManager[object]:
        return nullcontext()

    async def close(self) -> None:
        if self._http is not None:
            self._http.close()


class AsyncChannel:
    """asyncio or trio, whichever runs."""

    def __init__(self, http: httpx.AsyncBaseTransport | None = None) -> None:
        self._http = http

    async def send(self, request: httpx.Request) -> Reply:
        if not isinstance(request.stream, httpx.AsyncByteStream):
            raise TypeError("an async client sends bytes or an async iterable, not a blocking one")
        if self._http is None:
            made = await anyio.to_thread.run_sync(lambda: httpx.AsyncHTTPTransport(limits=_LIMITS))
            self._http = self._http or made
        return _AsyncReply(await self._http.handle_async_request(request))

    async def read_request(self, request: httpx.Request) -> bytes:
        return await request.aread()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def run(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work)

    def shield(self) -> AbstractContextManager[object]:
        return anyio.CancelScope(shield=True)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.aclose()


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the core over a `BlockingChannel` to its end, in the calling thread."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    coroutine.close()
    raise RuntimeError("a blocking channel waited for an event loop")


def timeouts(*, connect: float | None, read: float | None, write: float | None, pool: float | None) -> dict[str, Any]:
    """A request's extensions that bound its steps, in seconds; None is without a bound."""
    bounds: Mapping[str, float | None] = {"connect": connect, "read": read, "write": write, "pool": pool}
    return {"timeout": bounds}


class _BlockingReply:
    def __init__(self, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._pieces: Iterator[bytes] = iter(response.stream)

    async def next_piece(self) -> bytes:
        # An empty piece is not the end of the body.
        return next(filter(None, self._pieces), b"")

    async def close(self) -> None:
        self._response.close()


class _AsyncReply:
    def __init__(self, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._pieces: AsyncIterator[bytes] = aiter(response.stream)

    async def next_piece(self) -> bytes:
        async for piece in self._pieces:
            if piece:
                return piece
        return b""

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._response.aclose()
            if isinstance(self._pieces, AsyncGenerator):
                await self._pieces.aclose()
