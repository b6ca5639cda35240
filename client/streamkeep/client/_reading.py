"""One stream, read through whatever happens to connections.

`next_piece` gives what `StreamPosition` has; when that has nothing, one request at a time is made, as it says, and fed to
it. Between two calls nothing runs but a connection for events that is not read. A cancelled call, or one that ran into its
time limit, loses nothing: the next one goes on where it was.

Three clocks watch over it. The caller's read timeout runs from its asking until something came of the stream. The stall
clock runs on a connection that gives nothing at all, not even a heartbeat. The silence clock runs while the server cannot
be heard. Attempts that come to nothing are counted too, until one brings the reader further.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx
from tenacity import RetryCallState

from streamkeep.client._channel import Reply
from streamkeep.client._errors import BodyConsumed, ConnectionFailed, ProtocolError, ServerError
from streamkeep.client._peer import Peer
from streamkeep.client._retry import Interrupted, repeats
from streamkeep.client._rules import protocol, wire
from streamkeep.client._rules.frames import take_frames
from streamkeep.client._rules.outages import LONG_ATTEMPT_SECONDS
from streamkeep.client._rules.protocol import Head
from streamkeep.client._rules.reading import Live, Mode, Piece, StreamPosition
from streamkeep.client._rules.sse import EventDecoder
from streamkeep.client._server import interrupted, next_piece

# Timers of the socket and ours do not tick together.
_CLOCK_SLACK_SECONDS = 0.05
# A server whose long-polls do not wait is not asked more often than this.
_EMPTY_POLL_SECONDS = 0.25


class StreamReading:
    """The stream at a peer's address from `offset` on. Not for two callers at once."""

    def __init__(self, peer: Peer, *, offset: str, live: Live) -> None:
        self.position: StreamPosition = StreamPosition(offset, live)
        self.last: Piece | None = None
        self._peer = peer
        self._channel = peer.channel
        self._times_closed = peer.channel.times_closed
        self._page: _Page | None = None
        self._events: _Events | None = None
        self._deadline = float("inf")
        self._heard_at = time.monotonic()
        self._fruitless = 0
        self._polled_at = float("-inf")
        self._is_closed = False
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        return f"<StreamReading {self._peer.address!r} at {self.position.offset}>"

    async def next_piece(self, *, with_data: bool = False) -> Piece | None:
        """What comes next, or None at the end: of a closed stream, or at the tail when nobody waits there.

        Pieces without data tell that the tail was reached; `with_data` leaves them out.

        Raises:
            httpx.ReadTimeout: nothing came within the caller's read timeout.
            ConnectionFailed, ServerError, ProtocolError: the rest cannot be had now.
            BodyConsumed: the reading, or what it belongs to, was closed.
        """
        if self._failure is not None:
            raise self._failure
        self._check_open()
        self._heard_at = time.monotonic()
        limit = self._peer.within.read
        self._deadline = float("inf") if limit is None else self._heard_at + limit
        try:
            while True:
                try:
                    await self._read_on()
                except Interrupted as exc:
                    await self._try_again(exc)
                if not self.position.pieces:
                    await self._channel.finish(self._disconnect())
                    return None
                piece = self.last = self.position.pieces.popleft()
                if piece.parts or not with_data:
                    return piece
        except GeneratorExit:  # the event loop is gone, and nothing can be awaited any more
            raise
        except BaseException as exc:
            await self._channel.finish(self._disconnect())
            if isinstance(exc, ProtocolError | ServerError):
                self._failure = exc
            raise

    async def begin(self) -> None:
        """Have the first answer: it says what the stream is, and whether there is one. Raises what `next_piece` does."""
        piece = await self.next_piece()
        if piece is not None:
            self.position.pieces.appendleft(piece)
            self.last = None

    async def close(self) -> None:
        """Stop reading. May be called again."""
        if not self._is_closed:
            self._is_closed = True
            await self._channel.finish(self._disconnect())

    async def _try_again(self, interruption: Interrupted) -> None:
        """Read on at once, or when the server wants it, then after growing pauses, for as long as patience lasts.

        An attempt has come to something when there is something to give: a server that only says that it is there, and
        breaks off each time, is not tried for ever.
        """
        self._check_open()
        if interruption.retry_after_seconds is not None:
            await self._sleep(interruption.retry_after_seconds)
        try:
            async for attempt in repeats(self._peer.patience, self._sleep, self._is_hopeless):
                with attempt:
                    self._fruitless += 1
                    await self._read_on()
        except Interrupted as exc:
            if isinstance(exc.__cause__, ServerError):
                raise exc.__cause__ from None
            raise ConnectionFailed(f"{self._peer.address} cannot be read on: {exc}") from exc.__cause__

    def _check_open(self) -> None:
        if self._is_closed or self._channel.times_closed != self._times_closed:
            raise BodyConsumed("the reading was closed; the stream can be read on from its offset")

    def _is_hopeless(self, state: RetryCallState) -> bool:
        self._check_open()
        patience = self._peer.patience
        silence_seconds = time.monotonic() - self._heard_at + state.upcoming_sleep
        return silence_seconds > patience.silence_seconds or self._fruitless >= patience.max_reconnects

    async def _sleep(self, seconds: float) -> None:
        await self._channel.sleep(max(0.0, min(seconds, self._deadline - time.monotonic())))
        self._check_deadline()

    async def _read_on(self) -> None:
        """Read until there is something to give, or the stream is over. Raises: Interrupted: the attempt came to nothing."""
        position = self.position
        while not position.pieces:
            if self._events is not None and not position.is_closed:
                await self._read_events(self._events)
                continue
            mode = position.next_mode
            if mode is None:
                return
            self._check_deadline()
            try:
                await (self._connect() if mode is Mode.EVENTS else self._read_page(mode))
            except httpx.ReadTimeout as exc:
                self._check_deadline()
                raise Interrupted("nothing came, not even a heartbeat") from exc

    async def _read_page(self, mode: Mode) -> None:
        if self._page is None:
            self._page = await self._open_page(mode)
        page = self._page
        try:
            data = await next_piece(page.reply)
        except (Interrupted, httpx.ReadTimeout):
            await self._disconnect()
            raise
        self._heard()
        if data:
            self.position.receive(data)
            return
        await self._disconnect()
        if self.position.end_page(page.head):
            self._fruitless = 0
        elif mode is Mode.LONG_POLL:
            self._polled_at = page.began_at

    async def _open_page(self, mode: Mode) -> _Page:
        await self._disconnect()
        if mode is Mode.LONG_POLL:
            await self._sleep(self._polled_at + _EMPTY_POLL_SECONDS - time.monotonic())
        began_at = time.monotonic()
        query = self.position.query(mode)
        reply = await self._peer.open(query, accept="*/*", read_seconds=self._patient_seconds())
        try:
            if reply.status == 204 and mode is Mode.CATCH_UP:
                raise ProtocolError("a read that does not wait was answered with 204")
            head = protocol.parse_head(reply.headers)
        except ProtocolError:
            await reply.close()
            raise
        self._heard()
        self.position.begin(head.content_type if reply.status == 200 else None)
        return _Page(reply, head, began_at)

    async def _read_events(self, events: _Events) -> None:
        try:
            data = await events.reply.next_piece()
        except httpx.TransportError as exc:
            return await self._lost(events, exc)
        if not data:
            return await self._lost(events, None)
        if events.has_frames and events.decoder.is_between_events:
            frames, taken = take_frames(data)
            if frames:
                events.is_barren, events.is_fruitful = False, True
                self._fruitless = 0
                self.position.receive_frames(frames)
                if taken == len(data):
                    return
                data = data[taken:]
        self._heard()
        for event in events.decoder.feed(data):
            events.is_barren = False
            if self.position.receive_event(event, is_base64=events.is_base64):
                events.is_fruitful = True
                self._fruitless = 0
        if not self.position.pieces:
            self._check_deadline()

    async def _lost(self, events: _Events, error: httpx.TransportError | None) -> None:
        """The live connection is over, by an error or without. Raises unless it was good: Interrupted."""
        is_silent = isinstance(error, httpx.ReadTimeout)
        self.position.health.ended(was_barren=events.is_barren, was_silent=is_silent)
        await self._disconnect()
        if is_silent:
            self._check_deadline()
            raise Interrupted("nothing came, not even a heartbeat") from error
        if events.is_good:
            return
        if error is None:
            raise Interrupted("the connection was ended before the stream was")
        raise interrupted(error) from error

    async def _connect(self) -> None:
        await self._disconnect()
        query = self.position.query(Mode.EVENTS)
        try:
            reply = await self._peer.open(query, accept="text/event-stream", read_seconds=self._patient_seconds())
        except httpx.ReadTimeout:
            # Some gateways hold back the head, too, until there is a body to go with it.
            self.position.health.ended(was_barren=True, was_silent=True)
            raise
        encoding = reply.headers.get(wire.SSE_DATA_ENCODING)
        is_stream = wire.is_media_type(reply.headers.get("Content-Type"), "text/event-stream")
        if not is_stream or encoding not in (None, "base64"):
            await reply.close()
            raise ProtocolError("a live read was not answered with server-sent events in an encoding that is known")
        self.position.begin(None)
        self._events = _Events(reply, is_base64=encoding is not None, is_json=self.position.is_json)

    def _heard(self) -> None:
        self._heard_at = time.monotonic()

    def _patient_seconds(self) -> float:
        """How long a socket may stay silent: until the stall clock or the caller's own has run out."""
        left = self._deadline - time.monotonic()
        return max(_CLOCK_SLACK_SECONDS, min(self._peer.patience.stall_seconds, left))

    def _check_deadline(self) -> None:
        if time.monotonic() >= self._deadline - _CLOCK_SLACK_SECONDS:
            raise httpx.ReadTimeout(f"nothing came of the stream within {self._peer.within.read} seconds")

    async def _disconnect(self) -> None:
        page, self._page = self._page, None
        events, self._events = self._events, None
        for connection in (page, events):
            if connection is not None:
                await connection.reply.close()


@dataclass(frozen=True, slots=True)
class _Page:
    """An answer that ends by itself, and is being read."""

    reply: Reply
    head: Head
    began_at: float


class _Events:
    """A live connection: barren until its first event; good when it has lived for a while, or brought something."""

    def __init__(self, reply: Reply, *, is_base64: bool, is_json: bool) -> None:
        self.reply = reply
        self.is_base64 = is_base64
        # Bytes may be joined; what comes of a JSON stream is an array each.
        self.has_frames: bool = is_base64 and not is_json
        self.decoder = EventDecoder()
        self.is_barren = True
        self.is_fruitful = False
        self._opened_at = time.monotonic()

    @property
    def is_good(self) -> bool:
        lived_long = time.monotonic() - self._opened_at >= LONG_ATTEMPT_SECONDS
        return self.is_fruitful or (lived_long and not self.is_barren)
