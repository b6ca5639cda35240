"""Serving: uvicorn with signals of our own (design, traps in the core, 14).

uvicorn closes its listener first and then waits for every reader. We want the reverse: on the first SIGTERM or SIGINT
readiness goes off and nothing new starts, live readers are told to reconnect, reads go on while relays finish, and only
then does the server exit. A second signal skips the waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import httptools
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from streamkeep.proxy.app import create_app
from streamkeep.proxy.asgi import ChunkWriter
from streamkeep.proxy.service import Service
from streamkeep.proxy.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 3
_MAX_HEAD_BYTES = 64 * 1024
_PEER_TIMEOUT_MS = 30_000
_KEEP_ALIVE_SECONDS = 75
_COLLECTION_THRESHOLDS = (5_000, 2, 100)
_HEAD_SECONDS = 30.0
# As often the server ticks.
_TICKS_PER_SECOND = 10
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: 71\r\n\r\n"
    b'{"error":"head_too_large","message":"the request\'s head is too large"}\n'
)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with bounds for what it leaves open, and two ways out for routes: a cut, behind what was sent
    and without the end of the answer, and an abort for a peer that takes no bytes, since a cut waits to flush. A third thing
    for routes is a way to write a part of an answer without awaiting it.

    Bounded are the time for a request's head, and the bytes that are neither body nor complete anything: heads, trailers
    and chunk extensions without end. Trailers are dropped: they are not headers. What another server in front of this
    one could read differently is refused, beyond what the parser refuses by itself: see `_is_plain`. No refusal is
    written where it would be read as a part of another request's answer.
    """

    _is_in_head = True
    _is_replaying = False
    _has_progress = False
    _idle_bytes = 0
    _head_bytes = 0
    _patient_until = float("inf")
    _answered: RequestResponseCycle | None = None
    _writer: ChunkWriter | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The application logs its answers itself.
        self.access_log = False
        self._await_head()
        _notice_dead_peers(transport.get_extra_info("socket"))
        app = self.app

        async def app_with_abort(scope: Any, receive: Any, send: Any) -> None:
            cycle: RequestResponseCycle = send.__self__
            self._answered = cycle
            scope["streamkeep.chunk_writer"] = functools.partial(self._chunk_writer, cycle)
            scope["streamkeep.abort"] = transport.abort
            scope["streamkeep.cut"] = self._close
            if scope["http_version"] == "1.0":
                send = AnswerInHttp10(cycle)
            try:
                await app(scope, Arrival(receive), send)
            except asyncio.CancelledError:
                if not cycle.response_started:
                    raise
                # The server stops, and waits no longer for a peer that takes nothing.
                cycle.disconnected = True
                transport.abort()
            finally:
                # They lead back to who holds the scope, and no collection has to find that out.
                for name in ("exchange", "chunk_writer", "cut"):
                    scope.pop(f"streamkeep.{name}", None)

        self.app = app_with_abort

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn does it, which tells the last request of it alone: of several that came at once that is not the one
        that is being answered."""
        answered = self._answered
        if answered is not None and not answered.response_complete:
            answered.disconnected = True
            answered.message_event.set()
        self._tell_writer()
        super().connection_lost(exc)
        # They lead back here. A connection that was open for long would wait for a full collection, which is rare, and with
        # it the bodies of requests that waited for their turn.
        self.app = self.cycle = self._answered = self._writer = None  # type: ignore[assignment]
        self.pipeline.clear()

    def eof_received(self) -> None:
        # The transport closes behind this.
        self._tell_writer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._tell_writer()

    def close_if_overdue(self, now: float) -> None:
        """Close a connection that has been idle for too long, or whose request's head does not come to its end."""
        if now > self._patient_until:
            self._close()

    def _close(self) -> None:
        """Close behind what waits to be sent."""
        self.transport.close()
        self._tell_writer()

    def _chunk_writer(self, cycle: RequestResponseCycle) -> ChunkWriter | None:
        """As `ChunkWriter.of`."""
        self._writer = ChunkWriter(cycle.transport, cycle.flow) if cycle.chunked_encoding else None
        return self._writer

    def _tell_writer(self) -> None:
        if self._writer is not None:
            self._writer.tell_unready()

    def data_received(self, data: bytes) -> None:
        self._has_progress = False
        try:
            self._parse(data)
        except httptools.HttpParserError:
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse_head()
            elif self._may_refuse():
                self.send_400_response("Invalid HTTP request received.")
            else:
                self._close()
            return
        self._idle_bytes = 0 if self._has_progress else self._idle_bytes + len(data)
        if self._idle_bytes > _MAX_HEAD_BYTES:
            self._refuse_head()

    def _parse(self, data: bytes) -> None:
        """Feed the parser. Offers to upgrade are ignored; the parser takes what follows one for another protocol's
        bytes, so a fresh one goes on with the body."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            framing = [header for header in self.headers if header[0] in (b"content-length", b"transfer-encoding")]
            head = b"".join(b"%b: %b\r\n" % header for header in framing)
            self.parser = httptools.HttpRequestParser(self)
            self._is_replaying = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % head)
            self._is_replaying = False
            self._parse(data[offer.args[0] :])

    def on_message_begin(self) -> None:
        if self._is_replaying:
            return
        super().on_message_begin()
        self._is_in_head = self._has_progress = True
        self._head_bytes = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        if not self._is_replaying:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """As uvicorn does it. A request may have a dozen, so it is not asked each time."""
        if self._is_in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._is_replaying:
            return
        # A head may come whole, in one read.
        self._head_bytes = len(self.url) + sum([len(name) + len(value) for name, value in self.headers])
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise httptools.HttpParserInvalidURLError("the head is too large")
        version = self.parser.get_http_version()
        if not _is_plain(version, self.headers):
            raise httptools.HttpParserInvalidMethodError("the head can be read in several ways")
        if version == "1.0":
            # Its clients take the first head for the answer's (RFC 9110, 10.1.1).
            self.expect_100_continue = False
        self._is_in_head = False
        self._has_progress = True
        self._patient_until = float("inf")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_progress = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progress = True
        # Behind an offer to upgrade, the body is yet to come.
        if not self.parser.should_upgrade():
            self._is_in_head = True
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn does it, without a timer of its own for each connection."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._patient_until = min(self._patient_until, self.loop.time() + _KEEP_ALIVE_SECONDS)

    def _await_head(self) -> None:
        self._patient_until = self.loop.time() + _HEAD_SECONDS

    def _refuse_head(self) -> None:
        if self._may_refuse():
            self.transport.write(_HEAD_TOO_LARGE)
        self._close()

    def _may_refuse(self) -> bool:
        """Whether what is written now is the answer to the request that is being read, and to no earlier one."""
        cycle = self.cycle
        if self.pipeline or cycle is None or cycle.response_complete:
            return not self.pipeline
        return not self._is_in_head and not cycle.response_started


class Arrival:
    """`receive` of a request, which also tells whether there is anything to wait for: see `asgi.is_here`."""

    __slots__ = ("_receive", "is_here")

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self.is_here: Callable[[], bool] = receive.__self__.message_event.is_set

    def __call__(self) -> Any:
        return self._receive()


class AnswerInHttp10:
    """`send` of an answer to a client that knows no chunks. An answer without a length ends with its connection then; and one
    that breaks off does so with a reset, or it would look whole."""

    __slots__ = ("_cycle", "_has_length")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._has_length = True

    async def __call__(self, message: Any) -> None:
        cycle = self._cycle
        is_start = message["type"] == "http.response.start"
        if is_start:
            self._has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
        if self._has_length:
            await cycle.send(message)
        elif is_start:
            cycle.chunked_encoding = False
            self._reset_when_closed(True)
            await cycle.send(message)
        else:
            body: bytes = message.get("body", b"")
            cycle.expected_content_length = len(body)
            await cycle.send({"type": "http.response.body", "body": body, "more_body": True})
            if not message.get("more_body"):
                await self._end()

    async def _end(self) -> None:
        if not self._is_cut:
            # What still waits in memory would be lost if it were cut now.
            self._cycle.transport.set_write_buffer_limits(0)
            await self._cycle.flow.drain()
        self._reset_when_closed(False)
        await self._cycle.send({"type": "http.response.body", "body": b""})

    @property
    def _is_cut(self) -> bool:
        return self._cycle.disconnected or self._cycle.transport.is_closing()

    def _reset_when_closed(self, is_wanted: bool) -> None:
        # What is closed may have given its number to another connection's socket.
        if not self._is_cut:
            peer: socket.socket = self._cycle.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", is_wanted, 0))


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to us and drains before it stops."""

    def __init__(self, config: uvicorn.Config, service: Service, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Drain, then exit; when called again, exit."""
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        else:
            self._draining.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()

    @property
    def has_failed(self) -> bool:
        return self._service.failure is not None

    async def on_tick(self, counter: int) -> bool:
        if self.has_failed:
            return True
        if counter % _TICKS_PER_SECOND == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                assert isinstance(connection, Connection)
                connection.close_if_overdue(now)
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        try:
            if self._service.generations.running:
                logger.info("waiting for %d generations; stop again to skip this", self._service.generations.running)
            await self._service.drain()
        finally:
            self._service.readers.close()
            self.should_exit = True


def make_server(app: FastAPI, announce: Callable[[], None] = lambda: None) -> Server:
    """A server for the application; `announce` is called once requests are served."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    return Server(config, app.state.service, announce)


def serve_proxy(settings: Settings, listener: socket.socket, *, announce: Callable[[], None]) -> int:
    """Make the application and `serve` it, with traces where they are wanted."""
    with _traces(settings) as tracer_provider:
        return serve(create_app(settings=settings, tracer_provider=tracer_provider), listener, announce=announce)


def _traces(settings: Settings) -> AbstractContextManager[TracerProvider | None]:
    if not settings.traces:
        return nullcontext()
    try:
        from streamkeep.proxy.tracing import exporting
    except ImportError:
        logger.warning("traces are wanted, and nothing is traced: install streamkeep[otel]")
        return nullcontext()
    return exporting()


def serve(app: FastAPI, listener: socket.socket, *, announce: Callable[[], None]) -> int:
    """Serve on a bound socket until a signal. Returns the process's exit code: 0, or 1 when the service failed."""

    def ready() -> None:
        # A collection stalls every stream. What the frameworks built stays for ever and need not be walked; neither the hot
        # path nor what ends leaves cycles, so the rest is walked rarely, and what is new by a few thousand objects at a time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_COLLECTION_THRESHOLDS)
        announce()

    server = make_server(app, ready)
    server.run(sockets=[listener])
    return 0 if server.started and not server.has_failed else 1


def bind(host: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """An address to listen on; a shared one may be bound by other processes too. Raises: OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Where the protocol is not named, asyncio takes it for something else and leaves Nagle's algorithm on: 40 ms a frame.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener


def _is_plain(version: str, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a head says in one way only whom it is for and where its body ends (RFC 9112, 2.3, 3.2 and 6.1)."""
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if version not in ("1.0", "1.1") or hosts > 1 or (version == "1.1" and not hosts):
        return False
    if b"transfer-encoding" not in names:
        return True
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    return version == "1.1" and codings == [b"chunked"]


def _notice_dead_peers(peer: socket.socket | None) -> None:
    """A peer that vanished without a word is noticed once a heartbeat stays unacknowledged."""
    if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _PEER_TIMEOUT_MS)
