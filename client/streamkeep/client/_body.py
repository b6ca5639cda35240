"""The body of one generation, read from the proxy as the caller asks for it.

`next_chunk` gives what `Reassembly` has; when that has nothing, one read at a time is made, as `ReadPlan` says, and fed
to it. Every read starts at the byte after the last one received, so it does not matter how often, or where, a connection
ends: bytes that come twice are cut off, and a gap is refused. Between two calls nothing runs, so a caller that does not
ask holds up nobody but its own connection, and the proxy cuts that loose when it must.

Three clocks watch over it. The caller's read timeout runs from its asking until a byte of the body. The stall clock runs
on a connection that gives nothing at all, not even a heartbeat. The silence clock runs while the proxy cannot be heard.
"""

from __future__ import annotations

import binascii
import time
from collections.abc import Awaitable
from typing import Protocol

import httpx
from tenacity import RetryCallState

from streamkeep.client._bookmark import Bookmark
from streamkeep.client._channel import Channel, Reply
from streamkeep.client._errors import BodyConsumed, ConnectionFailed, ProtocolError, ServerError, generation_error
from streamkeep.client._retry import Interrupted, Patience, repeats
from streamkeep.client._rules import reassembly, wire
from streamkeep.client._rules.frames import take_frames
from streamkeep.client._rules.outages import LONG_ATTEMPT_SECONDS
from streamkeep.client._rules.position import Read, ReadPlan
from streamkeep.client._rules.reassembly import Reassembly
from streamkeep.client._rules.sse import Event, EventDecoder
from streamkeep.client._rules.wire import ControlEvent, Creation
from streamkeep.client._server import Server, Timeouts, interrupted, next_piece

# Timers of the socket and ours do not tick together.
_CLOCK_SLACK_SECONDS = 0.05
_MAX_ENCODED_PIECE_BYTES = 4096
_MAX_POLL_BYTES = 4 * 1024 * 1024


class Body(Protocol):
    """What an answer's bytes are read from; see `GenerationBody`."""

    async def next_chunk(self) -> bytes | None: ...

    async def close(self) -> None: ...


class GenerationBody(Body):
    """The bytes of a generation from `start` on, then its end. Not for two callers at once.

    `bookmark` is None where nothing is to be kept, as for a bare stream URL.
    """

    def __init__(
        self,
        channel: Channel,
        server: Server,
        creation: Creation,
        *,
        start: int,
        within: Timeouts,
        patience: Patience,
        bookmark: Bookmark | None = None,
    ) -> None:
        self._channel = channel
        self._times_closed = channel.times_closed
        self._server = server
        self._creation = creation
        self._within = within
        self._patience = patience
        self._bookmark = bookmark
        # Whoever decodes an encoded body does so piece by piece: of a small piece no decoder makes more than some MiB.
        max_piece_bytes = None if creation.content_encoding is None else _MAX_ENCODED_PIECE_BYTES
        self._reassembly = Reassembly(start, max_piece_bytes=max_piece_bytes)
        self._taken = start
        self._plan = ReadPlan()
        self._connection: _EventConnection | None = None
        self._cursor: str | None = None
        self._deadline = float("inf")
        self._heard_at = time.monotonic()
        self._reconnects = 0
        self._is_renewed = False
        self._is_closed = False
        self._is_finished = False
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        ids = f"{self._creation.session_id}/{self._creation.request_id}"
        return f"<GenerationBody {ids} at {self._reassembly.given}>"

    async def next_chunk(self) -> bytes | None:
        """The next bytes, or None at the end of a generation that is done. Asking says that those before are taken.

        A cancelled call loses nothing: the next one goes on where it was.

        Raises:
            GenerationError: it ended badly; everything before the end was given.
            httpx.ReadTimeout: no byte came within the caller's read timeout.
            ConnectionFailed, ServerError, ProtocolError: the rest cannot be had now.
            BodyConsumed: the body was closed.
        """
        if self._failure is not None:
            raise self._failure
        if self._is_finished:
            return None
        self._check_open()
        self._taken = self._reassembly.given
        self._heard_at = time.monotonic()
        self._deadline = float("inf") if self._within.read is None else self._heard_at + self._within.read
        try:
            if self._bookmark is not None and self._bookmark.is_due(self._taken, now=self._heard_at):
                await self._bookmark.taken(self._taken)
            while not self._reassembly.has_event:
                try:
                    await self._read_once()
                except Interrupted:
                    self._check_open()
                    await self._read_on_patiently()
        except GeneratorExit:  # the event loop is gone, and nothing can be awaited any more
            raise
        except BaseException as exc:
            await self._channel.finish(self._pause())
            if isinstance(exc, ProtocolError | ServerError):
                self._failure = exc
            raise
        data = self._reassembly.take()
        if data:
            return data
        await self._end()
        return None

    async def close(self) -> None:
        """Stop reading; the generation goes on, and can be resumed. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._channel.finish(self._leave())

    async def _end(self) -> None:
        """Everything was given: return, or raise how the generation failed."""
        self._is_finished = True
        ending = self._reassembly.next_event()
        if isinstance(ending, reassembly.Failed):
            self._failure = self._generation_error(ending.event)
        await self._channel.finish(self._finish())
        if self._failure is not None:
            raise self._failure

    async def _read_on_patiently(self) -> None:
        """Try again at once, then after growing pauses, for as long as patience lasts."""
        try:
            async for attempt in repeats(self._patience, self._sleep, self._is_hopeless):
                with attempt:
                    self._reconnects += 1
                    await self._read_on()
        except Interrupted as exc:
            if isinstance(exc.__cause__, ServerError):
                raise exc.__cause__ from None
            raise ConnectionFailed(f"the body was cut off and cannot be read on: {exc}") from exc.__cause__

    def _check_open(self) -> None:
        if self._is_closed or self._channel.times_closed != self._times_closed:
            raise BodyConsumed("the body or its client was closed; resume the generation to read on")

    def _is_hopeless(self, state: RetryCallState) -> bool:
        self._check_open()
        silence_seconds = time.monotonic() - self._heard_at + state.upcoming_sleep
        return silence_seconds > self._patience.silence_seconds or self._reconnects >= self._patience.max_reconnects

    async def _sleep(self, seconds: float) -> None:
        await self._channel.sleep(max(0.0, min(seconds, self._deadline - time.monotonic())))
        self._check_deadline()

    async def _read_on(self) -> None:
        """Read until there is something to give, or until a good connection is over. Raises: Interrupted."""
        while not self._reassembly.has_event:
            if await self._read_once():
                return

    def _read_once(self) -> Awaitable[bool]:
        """Make one read, or take one piece from the live connection; True when that is over after a good life.

        Raises:
            Interrupted: a connection failed, or ended too soon to be called good.
        """
        if self._connection is not None and not self._plan.is_data_closed:
            return self._read_live(self._connection)
        return self._read_next()

    async def _read_next(self) -> bool:
        """`_read_once` where no connection is there, or none that has more."""
        self._check_deadline()
        try:
            match self._plan.next:
                case Read.DATA_BY_EVENTS:
                    self._connection = await self._connect()
                case Read.DATA_BY_LONG_POLL:
                    await self._read_by_long_poll()
                case Read.CONTROL:
                    await self._read_control()
            self._is_renewed = False
        except ServerError as exc:
            await self._renew(exc)
        except httpx.ReadTimeout as exc:
            self._check_deadline()
            raise Interrupted("nothing came, not even a heartbeat") from exc
        return False

    async def _read_live(self, connection: _EventConnection) -> bool:
        """`_read_once` where a connection is there. Most pieces are frames, and all that they cost is paid for each of them."""
        try:
            piece = await connection.reply.next_piece()
        except httpx.TransportError as exc:
            return await self._lost(connection, exc)
        if not piece:
            return await self._lost(connection, None)
        if connection.decoder.is_between_events:
            frames, taken = take_frames(piece)
            if frames:
                connection.is_barren = False
                for data, offset, cursor, _ in frames:
                    self._reassembly.receive_data(data, int(offset[17:]))
                    self._cursor = cursor or self._cursor
                if taken == len(piece):
                    return False
                piece = piece[taken:]
        self._heard()
        for event in connection.decoder.feed(piece):
            connection.is_barren = False
            self._take_event(event)
        if not self._reassembly.has_event:
            self._check_deadline()
        return False

    async def _lost(self, connection: _EventConnection, error: httpx.TransportError | None) -> bool:
        """The live connection is over, by an error or without; True after a good life. Raises else: Interrupted."""
        is_silent = isinstance(error, httpx.ReadTimeout)
        self._plan.events_ended(was_barren=connection.is_barren, was_silent=is_silent)
        await self._disconnect()
        if is_silent:
            self._check_deadline()
            raise Interrupted("nothing came, not even a heartbeat") from error
        if connection.is_good:
            return True
        if error is None:
            raise Interrupted("the connection was ended before the stream was")
        raise interrupted(error) from error

    def _take_event(self, event: Event) -> None:
        if event.name == "data":
            try:
                data = binascii.a2b_base64(event.data.replace(b"\n", b""), strict_mode=True)
            except binascii.Error as exc:
                raise ProtocolError("a data event does not hold base64") from exc
            end = self._reassembly.received + len(data) if event.id is None else wire.position_of(event.id)
            self._reassembly.receive_data(data, end)
        elif event.name == "control":
            status = wire.parse_stream_status(event.data)
            self._expect(status.next_position)
            self._cursor = status.cursor or self._cursor
            if status.is_closed:
                self._plan.data_closed()

    async def _connect(self) -> _EventConnection:
        url = self._read_url(live="sse", encoding="base64")
        extensions = self._within.extensions(read=self._patient_read_seconds())
        try:
            reply = await self._server.read(url, extensions, accept="text/event-stream")
        except httpx.ReadTimeout:
            # Some gateways hold back the head, too, until there is a body to go with it.
            self._plan.events_ended(was_barren=True, was_silent=True)
            raise
        try:
            if not wire.is_media_type(reply.headers.get("Content-Type"), "text/event-stream"):
                raise ProtocolError("a live read was not answered with server-sent events")
            if reply.headers.get(wire.SSE_DATA_ENCODING) != "base64" or "Content-Encoding" in reply.headers:
                raise ProtocolError("a live read was not answered in base64, which alone carries every byte")
        except ProtocolError:
            await reply.close()
            raise
        return _EventConnection(reply)

    async def _read_by_long_poll(self) -> None:
        url = self._read_url(live="long-poll", cursor=self._cursor)
        reply = await self._server.read(url, self._within.extensions(read=self._patient_read_seconds()))
        try:
            if "Content-Encoding" in reply.headers:
                raise ProtocolError("the bytes of a stream were encoded on their way")
            self._heard()
            position = start = self._reassembly.received
            while piece := await next_piece(reply):
                self._heard()
                position += len(piece)
                self._reassembly.receive_data(piece, position)
                if position - start >= _MAX_POLL_BYTES:
                    # More than a proxy gives at once: the rest is asked for when these were taken.
                    return
            self._expect(wire.position_of(reply.headers.get(wire.NEXT_OFFSET)))
            self._cursor = reply.headers.get(wire.CURSOR) or self._cursor
            if reply.headers.get(wire.CLOSED) == "true":
                self._plan.data_closed()
        finally:
            await reply.close()

    async def _read_control(self) -> None:
        await self._disconnect()
        extensions = self._within.extensions(read=self._patient_read_seconds())
        event = await self._server.control_event(self._creation.control_url, extensions)
        if event is None:
            raise Interrupted("the data stream is closed, and the control stream does not say why")
        self._heard()
        self._reassembly.receive_control(event)
        if event.position != self._reassembly.received:
            raise ProtocolError(f"the data ended at {self._reassembly.received}, and should at {event.position}")

    async def _renew(self, refusal: ServerError) -> None:
        """Get fresh URLs where the old ones have expired; once, until they were good for something."""
        if refusal.status != 401 or self._is_renewed or not self._creation.session_id:
            raise refusal
        self._is_renewed = True
        self._creation = await self._server.find(self._creation.session_id, self._creation.request_id)

    def _heard(self) -> None:
        self._heard_at = time.monotonic()

    def _expect(self, position: int) -> None:
        if position != self._reassembly.received:
            raise ProtocolError(f"data came up to {self._reassembly.received}, and the stream says {position}")

    def _read_url(self, **parameters: str | None) -> str:
        return wire.read_url(self._creation.stream_url, offset=wire.offset_of(self._reassembly.received), **parameters)

    def _patient_read_seconds(self) -> float:
        """How long a socket may stay silent: until the stall clock or the caller's own has run out."""
        left = self._deadline - time.monotonic()
        return max(_CLOCK_SLACK_SECONDS, min(self._patience.stall_seconds, left))

    def _check_deadline(self) -> None:
        if time.monotonic() >= self._deadline - _CLOCK_SLACK_SECONDS:
            raise httpx.ReadTimeout(f"no byte of the body came within {self._within.read} seconds")

    def _generation_error(self, event: ControlEvent) -> Exception:
        return generation_error(
            event.code,
            event.message or "the generation failed",
            is_retryable=event.is_retryable,
            session_id=self._creation.session_id,
            request_id=self._creation.request_id,
        )

    async def _leave(self) -> None:
        await self._disconnect()
        if self._bookmark is not None and not self._is_finished:
            await self._bookmark.left(taken=self._taken, handed=self._reassembly.given)

    async def _finish(self) -> None:
        await self._disconnect()
        if self._bookmark is not None:
            await self._bookmark.ended(self._reassembly.given)

    async def _pause(self) -> None:
        """After an error or a cancellation: no connection stays open, and the place is kept."""
        await self._disconnect()
        if self._bookmark is not None:
            await self._bookmark.taken(self._taken)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.reply.close()


class _EventConnection:
    """A live connection: barren until its first event, good when it has lived for a while."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.decoder = EventDecoder()
        self.is_barren = True
        self._opened_at = time.monotonic()

    @property
    def is_good(self) -> bool:
        return not self.is_barren and time.monotonic() - self._opened_at >= LONG_ATTEMPT_SECONDS
