"""How the client's one core reaches the network, the clock and the disk.

The core is written once, as coroutines over a `Channel`. `AsyncChannel` awaits for real. `BlockingChannel` does the same
work before it returns and never suspends, so `run_blocking` can drive a coroutine of the core to its end in one step:
the sync client is the async one with another channel, not a second copy of its thinking.

Requests go to httpx's transports rather than to its clients: those keep no cookies, follow no redirects, and write no
log lines with URLs in them, whose queries are signatures.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import httpx

from streamkeep.client._network import Network, certificates

T = TypeVar("T")

# So much of a body is taken from its connection before anybody asks for it.
_READ_AHEAD_BYTES = 64 * 1024
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
    """The I/O that the core needs. Errors of the network are httpx's.

    A channel that was closed opens again for what is begun later, as httpx's transports do; what was under way sees by
    `times_closed` that it is not to try again.
    """

    times_closed: int

    async def send(self, request: httpx.Request) -> Reply:
        """Send a request; its timeouts stand in its extensions."""

    async def read_request(self, request: httpx.Request) -> bytes:
        """Take a request's whole body into memory."""

    def streamed(self, request: httpx.Request) -> Iterable[bytes] | AsyncIterable[bytes]:
        """A request's body as it is made, in the way that this channel sends: httpx's forms can be read in both."""

    async def sleep(self, seconds: float) -> None:
        """Pause."""

    async def run(self, work: Callable[[], T]) -> T:
        """Do short work on the disk without holding up anybody else."""

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Await work that is done to its end even when the caller is cancelled meanwhile."""

    async def close(self) -> None:
        """Close every connection."""


class BlockingChannel:
    """Everything is done when the call returns; see `run_blocking`."""

    def __init__(self, http: httpx.BaseTransport | None = None) -> None:
        self.times_closed = 0
        self._http = http
        self._lock = threading.Lock()
        self._closing = threading.Condition()
        self._replies: set[_BlockingReply] = set()

    async def send(self, request: httpx.Request) -> Reply:
        with self._lock:
            # Made when it is needed: it loads the certificates of all authorities, which takes a while.
            if self._http is None:
                self._http = Network()
        reply = _BlockingReply(self, self._http.handle_request(request))
        with self._lock:
            self._replies.add(reply)
        return reply

    def is_closed(self, reply: _BlockingReply) -> None:
        """A reply has given its connection back."""
        with self._lock:
            self._replies.discard(reply)

    async def read_request(self, request: httpx.Request) -> bytes:
        return request.read()

    def streamed(self, request: httpx.Request) -> Iterable[bytes] | AsyncIterable[bytes]:
        return request.stream

    async def sleep(self, seconds: float) -> None:
        times_closed = self.times_closed
        with self._closing:
            self._closing.wait_for(lambda: self.times_closed != times_closed, seconds)

    async def run(self, work: Callable[[], T]) -> T:
        return work()

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        await work

    async def close(self) -> None:
        with self._closing:
            self.times_closed += 1
            self._closing.notify_all()
        with self._lock:
            replies = set(self._replies)
        for reply in replies:
            reply.wake()
        if self._http is not None:
            self._http.close()


class AsyncChannel:
    """Awaits on asyncio.

    Whatever touches a connection runs in a task of its own, because httpcore loses a connection when it is
    cancelled at the wrong moment: twice, the second time while it cleans up after the first, as a timeout and its parent
    may do; or between having a new connection and using it. So the task is cancelled once at most, whatever its caller
    gets, and only where that is safe; then it ends in its own time.

    A body has one such task from its first piece to its last, since a task for each piece costs more than the piece.
    """

    def __init__(self, http: httpx.AsyncBaseTransport | None = None) -> None:
        self.times_closed = 0
        self._http = http
        self._tasks: set[asyncio.Task[Any]] = set()
        self._replies: set[_AsyncReply] = set()

    async def send(self, request: httpx.Request) -> Reply:
        if not isinstance(request.stream, httpx.AsyncByteStream):
            raise TypeError("an async client sends bytes or an async iterable, not a blocking one")
        if self._http is None:
            trust = await asyncio.to_thread(certificates)
            self._http = self._http or httpx.AsyncHTTPTransport(verify=trust, limits=_LIMITS)
        departure = _Departure()
        request.extensions = {**request.extensions, "trace": departure.trace}
        task = self.start(self._send(self._http, request))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            departure.cancel(task)
            task.add_done_callback(self._drop)
            raise

    async def _send(self, http: httpx.AsyncBaseTransport, request: httpx.Request) -> _AsyncReply:
        return _AsyncReply(self, await http.handle_async_request(request))

    def _drop(self, task: asyncio.Task[_AsyncReply]) -> None:
        """An answer that came although nobody waits for it."""
        if not task.cancelled() and task.exception() is None:
            self.start(task.result().close())

    async def read_request(self, request: httpx.Request) -> bytes:
        return await request.aread()

    def streamed(self, request: httpx.Request) -> Iterable[bytes] | AsyncIterable[bytes]:
        return aiter(request.stream) if isinstance(request.stream, AsyncIterable) else request.stream

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.shield(self.start(work))

    def is_reading(self, reply: _AsyncReply) -> None:
        """A reply has a task that `close` must end."""
        self._replies.add(reply)

    def has_read(self, reply: _AsyncReply) -> None:
        """It has none any more."""
        self._replies.discard(reply)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin work in a task of its own, which `close` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._left)
        return task

    def _left(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever still waits gets it, and nobody else needs it

    async def close(self) -> None:
        self.times_closed += 1
        for reply in self._replies:
            reply.stop()
        if self._http is not None:
            await self._http.aclose()
        # Reads that were under way have failed now; what is left cleans up.
        while self._tasks:
            await asyncio.wait(set(self._tasks))


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the core over a `BlockingChannel` to its end, in the calling thread."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    raise RuntimeError("a blocking channel waited for an event loop")


def timeouts(*, connect: float | None, read: float | None, write: float | None, pool: float | None) -> dict[str, Any]:
    """A request's extensions that bound its steps, in seconds; None is without a bound."""
    bounds: Mapping[str, float | None] = {"connect": connect, "read": read, "write": write, "pool": pool}
    return {"timeout": bounds}


class _BlockingReply:
    def __init__(self, channel: BlockingChannel, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.SyncByteStream)
        self.status = response.status_code
        self.headers = response.headers
        self._is_whole = False
        self._channel = channel
        self._response = response
        # An empty piece is not the end of the body.
        self._pieces: Iterator[bytes] = filter(None, response.stream)

    async def next_piece(self) -> bytes:
        piece = next(self._pieces, b"")
        self._is_whole = not piece
        return piece

    def wake(self) -> None:
        """End the wait of a thread that reads: closing the socket under it would not."""
        network = self._response.extensions.get("network_stream")
        found = None if network is None else network.get_extra_info("socket")
        if found is not None:
            with suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        # The connections of HTTP/2 are shared, and close a request by itself.
        if not self._is_whole and self._response.extensions.get("http_version") == b"HTTP/1.1":
            self.wake()
        self._response.close()
        self._channel.is_closed(self)


class _Departure:
    """How far a request has gone: httpcore may be cancelled once it has begun to write on a connection."""

    def __init__(self) -> None:
        self._is_under_way = False
        self._is_cancelled = False

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Told by httpcore what it does."""
        if event.endswith(".send_request_headers.started"):
            self._is_under_way = True
            if self._is_cancelled:
                raise asyncio.CancelledError

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel the task that sends, at once or as soon as that is safe."""
        self._is_cancelled = True
        if self._is_under_way:
            task.cancel()


class _AsyncReply:
    """Its body is read ahead a little by a task, which whoever asks for the next piece waits for.

    What came with one read of the network is handed over as one piece.
    """

    def __init__(self, channel: AsyncChannel, response: httpx.Response) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self.status = response.status_code
        self.headers = response.headers
        self._channel = channel
        self._response = response
        self._pieces: AsyncIterator[bytes] = aiter(response.stream)
        self._reading: asyncio.Task[None] | None = None
        self._is_stopped = False
        self._arrived: list[bytes] = []
        self._arrived_bytes = 0
        self._failure: BaseException | None = None
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    async def next_piece(self) -> bytes:
        if self._reading is None:
            self._reading = self._channel.start(self._read())
            self._reading.add_done_callback(self._has_read)
            self._channel.is_reading(self)
        if not self._arrived and not self._reading.done():
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        if self._arrived:
            piece = self._arrived[0] if len(self._arrived) == 1 else b"".join(self._arrived)
            self._arrived.clear()
            self._arrived_bytes = 0
            _wake(self._room)
            return piece
        if self._failure is not None:
            raise self._failure
        return b""

    async def _read(self) -> None:
        async for piece in self._pieces:
            if piece:
                self._arrived.append(piece)
                self._arrived_bytes += len(piece)
                _wake(self._news)
            if self._arrived_bytes >= _READ_AHEAD_BYTES:
                self._room = asyncio.get_running_loop().create_future()
                await self._room

    def _has_read(self, task: asyncio.Task[None]) -> None:
        self._channel.has_read(self)
        # Said here and not in the task, which may be cancelled before it has begun.
        if task.cancelled():
            self._failure = httpx.ReadError("the connection was closed while it was read")
        else:
            self._failure = task.exception()
        _wake(self._news)

    def stop(self) -> None:
        """End the task that reads, by its one cancellation."""
        if self._reading is not None and not self._is_stopped:
            self._is_stopped = True
            self._reading.cancel()

    async def close(self) -> None:
        await self._channel.finish(self._close())

    async def _close(self) -> None:
        self.stop()
        if self._reading is not None:
            await asyncio.wait([self._reading])
        await self._response.aclose()
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
