"""Connection: one socket to an upstream, and the response that comes over it.

The event loop calls in from below (`buffer_updated`, `eof_received`, `connection_lost`), one task asks from above
(`exchange`, then `read` until it gives nothing). Between them stands a `ResponseDecoder` and one future, `_progress`,
on which the task waits when there is nothing to take. A chunk costs neither a task nor a timer nor a lock; to one who
pours, it does not even cost a wake-up.

*Buffered bytes first.* A failure is kept until everything before it has been taken. That includes what the transport
had not handed over when it died: see `_take_rest`.

*Back-pressure.* When `max_buffered_bytes` of the body wait, the socket is not read until they are taken. Reads never ask
for more than there is room for, so the bound is exact for plain sockets; TLS holds up to some 300 KiB more, undecrypted.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from copy import copy
from typing import cast

import httpx

from streamkeep.proxy.http1 import MalformedResponse, ResponseDecoder, ResponseHead
from streamkeep.proxy.rules.allowlist import Origin

# What may be saved from a socket that failed while it was written to. More can only wait there when we did not read.
_MAX_SAVED_BYTES = 1024 * 1024
# How long an upstream that has begun to answer may take none of the rest of a request, before it is not sent any more.
_STUCK_SECONDS = 5.0
_KEEPALIVE_OPTIONS = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}


class Connection(asyncio.BufferedProtocol):
    """One exchange at a time: `exchange`, `read` until it gives nothing, then `rest` or `abort`.

    `scratch` is where sockets are read into; all connections of a loop may share it, since whatever is read is taken out
    in the same call. `lost` is done once the socket is closed.
    """

    __slots__ = (
        "_decoder",
        "_failure",
        "_is_read_paused",
        "_is_sent",
        "_is_write_paused",
        "_loop",
        "_max_buffered_bytes",
        "_on_lost",
        "_progress",
        "_receiver",
        "_receivers_failure",
        "_scratch",
        "_stuck_at",
        "_tls",
        "_transport",
        "_writable",
        "lost",
        "origin",
    )

    def __init__(self, origin: Origin, scratch: memoryview, on_lost: Callable[[Connection], None]) -> None:
        self.origin = origin
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._scratch = scratch
        self._max_buffered_bytes = len(scratch)
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._tls: ssl.SSLObject | None = None
        self._decoder: ResponseDecoder | None = None
        self._failure: httpx.TransportError | None = None
        self._progress: asyncio.Future[None] | None = None
        self._receiver: Callable[[bytes], bool] | None = None
        self._receivers_failure: Exception | None = None
        self._writable: asyncio.Future[None] | None = None
        self._is_write_paused = False
        self._stuck_at: float | None = None
        self._is_read_paused = False
        self._is_sent = True

    def __repr__(self) -> str:
        origin = f"{self.origin.scheme}://{self.origin.host}:{self.origin.port}"
        state = "closed" if self.is_closed else "busy" if self._decoder is not None else "idle"
        return f"Connection({origin}, {state})"

    # For the task that owns the exchange

    @property
    def is_closed(self) -> bool:
        return self._transport.is_closing() or self._failure is not None

    @property
    def peer_address(self) -> str | None:
        """The address at the other end, None when there is no other end any more."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else None

    @property
    def has_whole_response(self) -> bool:
        """Whether the response has ended and nothing of it waits to be read."""
        decoder = self._decoder
        return decoder is not None and decoder.is_complete and not decoder.buffered_bytes

    async def exchange(
        self,
        prelude: bytes,
        upload: AsyncGenerator[bytes, None] | None,
        *,
        is_head_request: bool,
        read_seconds: float | None,
        write_seconds: float | None,
    ) -> ResponseHead:
        """Send a request and return the head of its answer. After any exception the connection is to be aborted.

        `prelude` is the request's head with as much of its body as there is, `upload` the rest, framed for the wire. A
        refusal, or a whole answer, that comes before all of it was sent ends the sending. An answer that has only begun
        does not, while upstream takes the rest: it may need all of it to go on.

        Raises:
            httpx.ConnectError: nothing was sent, the connection was closed already.
            httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError: the request may have been received.
            httpx.ReadTimeout, httpx.WriteTimeout: likewise.
        """
        if self.is_closed:
            raise httpx.ConnectError("upstream closed the connection before a request was sent")
        self._decoder = ResponseDecoder(is_head_request=is_head_request)
        self._is_sent = False
        self._transport.write(prelude)
        if upload is None and not self._is_write_paused:
            self._is_sent = True
        else:
            await self._send_while_wanted(upload, write_seconds)
        try:
            async with asyncio.timeout(read_seconds):
                return await self._head()
        except TimeoutError:
            raise httpx.ReadTimeout("upstream did not answer in time") from None

    async def read(self) -> bytes:
        """All of the body that has come, at least one byte; nothing at its end.

        Raises:
            httpx.RemoteProtocolError: the body broke off, or is malformed; all bytes before that have been returned.
            httpx.ReadError: the connection was aborted from our side meanwhile.
        """
        decoder = self._in_exchange()
        while not decoder.buffered_bytes:
            if decoder.is_complete:
                return b""
            self._check()
            await self._wait()
        data = decoder.take()
        if self._is_read_paused:
            self._resume_reading()
        return data

    async def pour(self, receiver: Callable[[bytes], bool]) -> bool:
        """Give the body to `receiver` as it comes, within the event loop's own calls, for as long as it answers True.

        Returns whether all of the body was given; what was not can be poured or read later.

        Raises:
            httpx.RemoteProtocolError, httpx.ReadError: as `read` does, behind all bytes that came before.
            Exception: whatever `receiver` raised.
        """
        decoder = self._in_exchange()
        self._receiver = receiver
        try:
            self._give(decoder)
            if not (decoder.is_complete or self.is_closed):
                self._acknowledge(at_once=False)
            while self._receiver is not None and not decoder.is_complete:
                self._check()
                await self._wait()
            if self._receivers_failure is not None:
                raise self._receivers_failure
            return self._receiver is not None
        finally:
            self._receiver = None

    def rest(self) -> bool:
        """The exchange is over; return whether the connection can carry another one. If not, it is to be aborted."""
        decoder, self._decoder = self._decoder, None
        can_go_on = (
            decoder is not None
            and decoder.is_complete
            and decoder.head is not None
            and decoder.head.is_persistent
            and not decoder.has_surplus
            and self._is_sent
            and not self.is_closed
            and not self._transport.get_write_buffer_size()
        )
        if decoder is not None:
            decoder.stop()
        if can_go_on:
            self._acknowledge(at_once=True)
            if self._is_read_paused:
                self._resume_reading()
        return can_go_on

    def is_quiet(self) -> bool:
        """Whether an idle connection is still open and nothing has arrived on it, not even what the loop has yet to see."""
        if self.is_closed:
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def abort(self) -> None:
        """Close the socket now, whatever is under way. Safe to repeat."""
        self._fail(httpx.ReadError("the connection was closed from this side"))
        if self._decoder is not None:
            self._decoder.stop()
        self._transport.abort()

    async def _send_while_wanted(self, upload: AsyncGenerator[bytes, None] | None, write_seconds: float | None) -> None:
        """Send the rest of a request; return when it is sent, or upstream does not want it any more.

        Raises: what the upload raises, if there is neither an answer nor a failure of the connection to report;
            httpx.WriteError when the upload fails behind the beginning of an answer.
        """
        decoder = self._in_exchange()
        sending = asyncio.create_task(self._send(upload, write_seconds))
        sending.add_done_callback(lambda _: self._wake())
        try:
            while not sending.done() and self._failure is None and not self._is_unwanted(decoder):
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(self._stuck_at if decoder.head is not None else None):
                        await self._wait()
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            failed = None if sending.cancelled() else sending.exception()
        if failed is None or self._failure is not None or self._is_unwanted(decoder):
            return
        if decoder.head is None:
            raise failed
        # Whatever went wrong here, upstream has begun to act on the request.
        raise httpx.WriteError("the request's body broke off") from failed

    def _is_unwanted(self, decoder: ResponseDecoder) -> bool:
        """Whether the rest of a request is of no more use to an upstream that has answered, or begun to."""
        head = decoder.head
        if head is None:
            return False
        is_stuck = self._stuck_at is not None and self._loop.time() >= self._stuck_at
        return head.status >= 300 or decoder.is_complete or is_stuck

    async def _send(self, upload: AsyncGenerator[bytes, None] | None, write_seconds: float | None) -> None:
        await self._drained(write_seconds)
        if upload is not None:
            async with aclosing(upload):
                async for piece in upload:
                    # Let the loop read first: an answer that has come is worth more than another piece, and writing to
                    # a connection that upstream has reset would destroy it.
                    await asyncio.sleep(0)
                    self._transport.write(piece)
                    await self._drained(write_seconds)
        self._is_sent = True

    async def _drained(self, seconds: float | None) -> None:
        if not self._is_write_paused:
            return
        self._writable = self._loop.create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._writable
        except TimeoutError:
            raise httpx.WriteTimeout("upstream did not take the request in time") from None
        finally:
            self._writable = None

    async def _head(self) -> ResponseHead:
        decoder = self._in_exchange()
        while decoder.head is None:
            self._check()
            await self._wait()
        return decoder.head

    def _check(self) -> None:
        """Raises: the failure, if there is one, as a copy: a traceback would lead back here, for the collector to find."""
        if self._failure is not None:
            raise copy(self._failure) from self._failure.__cause__

    def _in_exchange(self) -> ResponseDecoder:
        if self._decoder is None:
            raise RuntimeError("no exchange is under way")
        return self._decoder

    async def _wait(self) -> None:
        """Wait for the loop to change something."""
        if self._progress is not None:
            raise RuntimeError("two tasks read one response")
        self._progress = self._loop.create_future()
        try:
            await self._progress
        finally:
            self._progress = None

    # For the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._tls = transport.get_extra_info("ssl_object")
        options: socket.socket = transport.get_extra_info("socket")
        # The connection may be gone already; then the exchange will tell.
        with suppress(OSError):
            options.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            options.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE_OPTIONS.items():
                if hasattr(socket, name):
                    options.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def get_buffer(self, sizehint: int) -> memoryview:
        decoder = self._decoder
        if decoder is None or not decoder.buffered_bytes:
            return self._scratch
        return self._scratch[: max(1, self._max_buffered_bytes - decoder.buffered_bytes)]

    def buffer_updated(self, nbytes: int) -> None:
        decoder = self._decoder
        if decoder is None:
            # Nobody asked: whoever would be given this as an answer would get somebody else's.
            self.abort()
            return
        self._feed(decoder, self._scratch[:nbytes])
        if decoder.buffered_bytes >= self._max_buffered_bytes and not decoder.is_complete and not self.is_closed:
            self._is_read_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._finish(is_in_order=self._take_rest() if self._tls is not None else True)

    def connection_lost(self, exc: Exception | None) -> None:
        decoder = self._decoder
        if decoder is not None and self._failure is None and not decoder.is_complete:
            self._finish(is_in_order=self._take_rest(), cause=exc)
        self._fail(httpx.ReadError("the connection is closed"))
        if not self.lost.done():
            self.lost.set_result(None)
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._stuck_at = self._loop.time() + _STUCK_SECONDS
        self._wake()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._stuck_at = None
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # Between the two

    def _feed(self, decoder: ResponseDecoder, data: bytes | memoryview) -> None:
        try:
            decoder.feed(data)
        except MalformedResponse as exc:
            self._fail(httpx.RemoteProtocolError(f"upstream {exc}"), exc)
            self._transport.abort()
            return
        if decoder.has_surplus:
            self._transport.abort()
        if self._receiver is None:
            self._wake()
            return
        self._give(decoder)
        if self._receiver is None or decoder.is_complete:
            self._wake()

    def _give(self, decoder: ResponseDecoder) -> None:
        """Give what waits to the receiver, and forget the receiver when it wants no more, or fails."""
        receiver = self._receiver
        if receiver is None or not decoder.buffered_bytes:
            return
        data = decoder.take()
        if self._is_read_paused:
            self._resume_reading()
        try:
            wants_more = receiver(data)
        except Exception as exc:  # noqa: BLE001  # `pour` raises it: here it would take the connection for broken
            self._receivers_failure = exc
            wants_more = False
        if not wants_more:
            self._receiver = None

    def _take_rest(self) -> bool:
        """Feed what the transport did not hand over before it died; return whether upstream had ended its side in order.

        A TLS transport keeps decrypted and undecrypted bytes to itself while we do not read, and drops them with the
        connection. Ending in order means `close_notify` there: a bare end of file may be an attacker's. A plain socket
        that failed under a write still holds what upstream sent before it closed, often the reason why; that it shows
        an end of file behind that proves nothing, since its error has been reported already.
        """
        decoder = self._decoder
        saved_bytes = 0
        try:
            while decoder is not None and self._failure is None and saved_bytes < _MAX_SAVED_BYTES:
                data = self._read_directly()
                if not data:
                    return self._tls is not None
                saved_bytes += len(data)
                self._feed(decoder, data)
        except ssl.SSLZeroReturnError:
            return True
        except OSError:
            return False
        return False

    def _read_directly(self) -> bytes:
        if self._tls is not None:
            return self._tls.read(self._max_buffered_bytes)
        return os.read(self._transport.get_extra_info("socket").fileno(), self._max_buffered_bytes)

    def _finish(self, *, is_in_order: bool, cause: Exception | None = None) -> None:
        """Upstream sends no more."""
        decoder = self._decoder
        if decoder is None or decoder.is_complete or self._failure is not None:
            return
        if is_in_order:
            try:
                decoder.finish()
            except MalformedResponse as exc:
                self._fail(httpx.RemoteProtocolError(f"upstream {exc}"), exc)
        elif decoder.head is not None:
            self._fail(httpx.RemoteProtocolError("upstream broke off the connection within the body"), cause)
        elif self._is_sent:
            self._fail(httpx.ReadError("upstream broke off the connection without an answer"), cause)
        else:
            self._fail(httpx.WriteError("upstream broke off the connection while the request was sent"), cause)
        self._wake()

    def _fail(self, failure: httpx.TransportError, cause: Exception | None = None) -> None:
        """Keep the first failure for whoever reads; it is raised behind all bytes that came before it."""
        if self._failure is None:
            failure.__cause__ = cause and cause.with_traceback(None)
            self._failure = failure
        self.resume_writing()
        self._wake()

    def _acknowledge(self, *, at_once: bool) -> None:
        """Whether the kernel acknowledges each chunk once it is read, which costs this process time, or two at once that come
        within 40 ms. Where they come more slowly it goes back to the former by itself: a peer that sends no more until
        it has that (Nagle's algorithm) waits for it once."""
        if hasattr(socket, "TCP_QUICKACK"):
            peer: socket.socket = self._transport.get_extra_info("socket")
            with suppress(OSError):
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, at_once)

    def _wake(self) -> None:
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)

    def _resume_reading(self) -> None:
        self._is_read_paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()


class ResponseBody(httpx.AsyncByteStream):
    """The body of one response, as pieces of whatever size; `release` gets the connection when nothing is left to read.

    It iterates over itself once. After its end or failure it says the same again; after `aclose` it raises
    `httpx.StreamClosed`.
    """

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        self._connection: Connection | None = connection
        self._release = release
        self._outcome: Exception = httpx.StreamClosed()
        if connection.has_whole_response:
            self._settle(StopAsyncIteration())

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        connection = self._connection
        if connection is None:
            raise self._outcome
        try:
            data = await connection.read()
        except httpx.TransportError as exc:
            self._settle(exc)
            raise
        if not data:
            self._settle(StopAsyncIteration())
            raise StopAsyncIteration
        return data

    async def pour(self, receiver: Callable[[bytes], bool]) -> bool:
        """Give what is left to `receiver`, as it comes, for as long as it answers True; return whether that was all.

        Raises: as iterating does, or what `receiver` raised.
        """
        connection = self._connection
        if connection is None:
            if isinstance(self._outcome, StopAsyncIteration):
                return True
            raise self._outcome
        try:
            is_over = await connection.pour(receiver)
        except httpx.TransportError as exc:
            self._settle(exc)
            raise
        if is_over:
            self._settle(StopAsyncIteration())
        return is_over

    async def aclose(self) -> None:
        """Let go of the connection; before the end of the body its socket is closed, in this very call."""
        self._settle(httpx.StreamClosed())

    def _settle(self, outcome: Exception) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._outcome = outcome
            self._release(connection)
