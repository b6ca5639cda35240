"""Reading a stream, whoever writes it: catch-up, long-poll, SSE and HEAD (protocol 5.5 to 5.8). The hot path.

A reader's connection ends with its stream, with its time (it reconnects), with its peer, or with a stall; only the first
of these is told with an end mark. A stream that is deleted or expires under its readers ends their connections without one.
"""

from __future__ import annotations

import asyncio
import gzip
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import Message, Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.feeds import Piece, Reader
from streamkeep.proxy.json_view import JsonView, Page, Viewer
from streamkeep.proxy.readers import Keepalive, Readers
from streamkeep.proxy.rules import caching, sse, wire
from streamkeep.proxy.rules.caching import CachePolicy
from streamkeep.proxy.rules.cursors import next_cursor
from streamkeep.proxy.rules.sse import Encoding
from streamkeep.proxy.settings import Settings
from streamkeep.proxy.tallies import ReadMode
from streamkeep.storage import InvalidOffset, Store, StoreError, StoreUnavailable, StreamNotFound, Tail
from streamkeep.storage.rules.json_messages import SEPARATOR, to_array
from streamkeep.storage.rules.offsets import NOW, START, format_offset, parse_offset

_PAGE_BYTES = 1024 * 1024
# A body of this size takes long enough to compress that other requests should not wait for it.
_GZIP_IN_THREAD_BYTES = 64 * 1024
_GZIP_LEVEL = 5
# How often a reader that waits looks whether the store is back.
_IDLE_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """A stream as its readers see it. `headers` stand on every answer, `head_headers` on that to HEAD. `tail` is where
    the stream ended when it was looked up; None: nobody looked. `is_shared`: shared caches may keep what is read.
    `view`: a generation's events are read as messages; offsets and tail are then those of the view."""

    stream_id: int
    content_type: str
    is_message_stream: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    head_headers: tuple[tuple[str, str], ...] = ()
    tail: Tail | None = None
    is_shared: bool = False
    keepalive: Keepalive | None = None
    view: JsonView | None = None

    def body(self, data: bytes) -> bytes:
        return to_array(data) if self.is_message_stream else data

    def encoding(self, *, is_base64: bool) -> Encoding:
        return sse.encoding_for(self.content_type, is_message_stream=self.is_message_stream, is_base64=is_base64)

    def caching(self, policy: CachePolicy, query: wire.ReadQuery, *, is_final: bool) -> list[tuple[str, str]]:
        """What caches may do with an answer: all of them where it is for everybody, and where a signed URL is all that it
        takes, one of ours that goes by URLs."""
        if self.is_shared:
            return [("Cache-Control", policy)]
        seconds = 0
        if query.url_expires_at is not None:
            expires_at = query.url_expires_at
            seconds = caching.by_url_seconds(policy, is_final=is_final, expires_at=expires_at, now=time.time())
        # It stands before the other, or nginx before 1.23 does not heed it.
        return [*([(wire.ACCEL_EXPIRES, str(seconds))] if seconds else []), asgi.NO_STORE]


class Parts(Protocol):
    """What reading needs of the running service."""

    store: Store
    readers: Readers
    settings: Settings


class Reads:
    """The ways to read, for any way to name a stream."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings = parts.settings

    async def answer(self, target: Target, query: wire.ReadQuery, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a GET or HEAD.

        Raises:
            InvalidOffset: the offset is beyond the tail, or inside a message.
        """
        if scope["method"] == "HEAD":
            await self._head(target, send)
            return
        position = parse_offset(query.offset if query.offset is not None else START)
        if position is None:
            tail = await self._tail(target)
            if query.live is None:
                await self._nothing_yet(target, tail, send)
                return
            position = tail.position
        else:
            await self._check_bound(target, position)
        mode = ReadMode.CATCH_UP if query.live is None else ReadMode(query.live.value)
        self.note_beginning(mode, query.offset)
        if query.live is wire.Live.SSE:
            await self._sse(target, position, query, scope, receive, send)
        elif query.live is wire.Live.LONG_POLL:
            await self._long_poll(target, position, query, receive, send)
        else:
            await self._catch_up(target, position, query, scope, send)

    async def pass_on(
        self,
        target: Target,
        position: int,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        start: Sequence[Message],
        change: Callable[[bytes], bytes] | None = None,
    ) -> bool:
        """Answer with `start` and then a stream's bytes from a position on; the caller ends the answer. `change` sees each
        part before it is sent. The peer cannot come back for more, so a store that is away is waited for.

        Returns whether the stream came to its end, and not the peer or the patience.

        Raises:
            StoreError: the stream cannot be read; nothing was sent.
        """
        began_at = time.monotonic()
        self.note_beginning(ReadMode.DIRECT, format_offset(position) if position else START)
        async with self.following(target, position, receive, scope, ReadMode.DIRECT, is_steady=True) as reader:
            feed = reader.feed
            has_begun = False
            away_since: float | None = None
            while True:
                try:
                    pieces = await self._parts.readers.pieces(reader)
                    away_since = None
                except StoreUnavailable:
                    pieces = []
                    away_since = away_since or time.monotonic()
                    if time.monotonic() - away_since > self._settings.storage_outage_seconds:
                        return False
                except StoreError:
                    if has_begun:
                        return False
                    raise
                if not has_begun:
                    has_begun = True
                    for message in start:
                        await send(message)
                if pieces:
                    self._parts.readers.delivering(pieces, since=began_at)
                    parts = [piece.data for piece in pieces]
                    pieces.clear()
                    await send_body(reader, parts if change is None else [change(b"".join(parts))], send)
                elif reader.is_at_end:
                    return True
                elif reader.is_gone or feed.is_gone:
                    return False
                else:
                    await reader.wait(time.monotonic() + _IDLE_LOOK_SECONDS)

    def note_beginning(self, mode: ReadMode, offset: str | None) -> None:
        """Count a read by its mode and by where it begins."""
        begins = {None: "start", START: "start", NOW: "tail"}.get(offset, "offset")
        self._parts.readers.tally.begun[mode, begins] += 1

    async def _tail(self, target: Target) -> Tail:
        if target.tail is not None:
            return target.tail
        if target.view is not None:
            return await target.view.tail()
        tails = await self._parts.store.tails([target.stream_id])
        if target.stream_id not in tails:
            raise StreamNotFound(f"no stream {target.stream_id}")
        return tails[target.stream_id]

    async def _check_bound(self, target: Target, position: int) -> None:
        """A legal offset lies within the stream; in one of messages it is the start, or follows a message. A view looks
        for itself."""
        if target.view is not None:
            return
        if target.tail is not None and position >= target.tail.position:
            if position > target.tail.position:
                raise InvalidOffset("the offset is beyond the tail")
        elif target.is_message_stream and position:
            before = await self._parts.store.read(target.stream_id, position - 1, 1)
            if before.data not in (b"", SEPARATOR):
                raise InvalidOffset("the offset lies inside a message")

    async def _head(self, target: Target, send: Send) -> None:
        tail = await self._tail(target)
        headers = [*target.headers, *target.head_headers, ("Content-Type", target.content_type), asgi.NO_STORE]
        headers += _position_headers(tail.position, is_up_to_date=True, is_closed=tail.is_closed)
        await send({"type": "http.response.start", "status": 200, "headers": asgi.raw_headers(headers)})
        await send({"type": "http.response.body", "body": b""})

    async def _nothing_yet(self, target: Target, tail: Tail, send: Send) -> None:
        """A catch-up read from `now`: where the tail is, and no data."""
        headers = [*_body_headers(target), asgi.NO_STORE]
        headers += _position_headers(tail.position, is_up_to_date=True, is_closed=tail.is_closed)
        await asgi.answer(send, 200, target.body(b""), headers)

    async def _catch_up(self, target: Target, position: int, query: wire.ReadQuery, scope: Scope, send: Send) -> None:
        read = await self.page(target, position)
        body = target.body(read.data)
        accepted = asgi.header(scope, b"accept-encoding")
        is_gzip = caching.is_gzip_wanted(accepted, target.content_type, len(body))
        tag = caching.entity_tag(
            target.stream_id,
            position,
            read.end,
            is_closed=read.is_closed,
            is_gzip=is_gzip,
            is_view=target.view is not None,
        )
        # What has nothing yet may soon have more: kept for long, it would hide that.
        policy = CachePolicy.SHARED if read.data or read.is_closed else CachePolicy.BRIEF
        headers = [*_body_headers(target), *target.caching(policy, query, is_final=read.is_closed), ("ETag", tag)]
        headers.append(("Vary", "Accept-Encoding"))
        headers += _position_headers(read.end, is_up_to_date=read.is_up_to_date, is_closed=read.is_closed)
        if caching.matches(asgi.header(scope, b"if-none-match"), tag):
            await asgi.answer(send, 304, b"", headers)
            return
        if is_gzip:
            body = await _compressed(body)
            headers.append(("Content-Encoding", "gzip"))
        self._parts.readers.tally.delivered_bytes += len(read.data)
        await asgi.answer(send, 200, body, headers)

    async def page(self, target: Target, position: int) -> Page:
        """What stands from a position on, up to a page. Raises: InvalidOffset, StoreError."""
        if target.view is not None:
            return await (await target.view.viewer(position)).page()
        if target.tail is not None and target.tail.position == position:
            return Page(b"", position, True, target.tail.is_closed)
        read = await self._parts.readers.pages.read(
            target.stream_id, position, _PAGE_BYTES, is_message_stream=target.is_message_stream
        )
        if position > read.tail.position:
            raise InvalidOffset("the offset is beyond the tail")
        return Page(read.data, read.end, read.is_up_to_date, read.tail.is_closed and read.is_up_to_date)

    async def _long_poll(
        self, target: Target, position: int, query: wire.ReadQuery, receive: Receive, send: Send
    ) -> None:
        began_at = time.monotonic()
        deadline = began_at + self._settings.long_poll_seconds
        async with self.following(target, position, receive, {}, ReadMode.LONG_POLL) as reader:
            feed = reader.feed
            while True:
                pieces = await self._parts.readers.pieces(reader)
                if pieces or reader.is_at_end or reader.is_gone or time.monotonic() >= deadline:
                    break
                if feed.is_gone:
                    raise StreamNotFound(f"no stream {target.stream_id}")
                await reader.wait(deadline)
            is_closed, is_up_to_date = reader.is_at_end, reader.is_up_to_date
        if pieces:
            self._parts.readers.delivering(pieces, since=began_at)
            policy = CachePolicy.NONE if query.offset == NOW else CachePolicy.SHARED
            headers = _body_headers(target)
        else:
            policy = CachePolicy.NONE if query.offset == NOW else CachePolicy.BRIEF
            headers = list(target.headers)
        headers += target.caching(policy, query, is_final=bool(pieces) or is_closed)
        headers += _position_headers(reader.resume_position, is_up_to_date=is_up_to_date, is_closed=is_closed)
        if not is_closed:
            headers.append((wire.CURSOR, _cursor(query)))
        body = target.body(b"".join(piece.data for piece in pieces)) if pieces else b""
        await asgi.answer(send, 200 if pieces else 204, body, headers)

    async def _sse(
        self, target: Target, position: int, query: wire.ReadQuery, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async with self.following(target, position, receive, scope, ReadMode.SSE) as reader:
            pieces = await self._parts.readers.pieces(reader)
            if asgi.header(scope, b"last-event-id") and not pieces and reader.is_at_end:
                # An EventSource reconnects for ever unless it is told that there is nothing more.
                await asgi.answer(
                    send, 204, b"", [asgi.NO_STORE, *_position_headers(reader.resume_position, True, True)]
                )
                return
            encoding = target.encoding(is_base64=query.is_base64)
            headers = [
                *target.headers,
                ("Content-Type", "text/event-stream"),
                ("Cache-Control", "no-cache, no-store, no-transform"),
                ("X-Accel-Buffering", "no"),
                asgi.SANDBOX,
            ]
            if encoding.is_base64:
                headers.append((wire.SSE_DATA_ENCODING, "base64"))
            await send({"type": "http.response.start", "status": 200, "headers": asgi.raw_headers(headers)})
            await _Events(reader, self._parts, encoding, _cursor(query), scope).send(pieces)

    @asynccontextmanager
    async def following(
        self,
        target: Target,
        position: int,
        receive: Receive,
        scope: Mapping[str, Any],
        mode: ReadMode,
        *,
        is_steady: bool = False,
    ) -> AsyncIterator[Reader]:
        """A reader that leaves when its peer does, and is cut off when its peer takes nothing."""
        task = asyncio.current_task()

        def stop() -> None:
            abort = scope.get("streamkeep.abort")
            if abort is not None:
                abort()
            elif task is not None:
                task.cancel()

        viewer: Viewer | None = None
        if target.view is not None:
            viewer = await target.view.viewer(position)
            position = viewer.held.received
        with self._parts.readers.reader(
            target.stream_id,
            position,
            stop,
            is_message_stream=target.is_message_stream and viewer is None,
            keepalive=target.keepalive,
            is_steady=is_steady,
            viewer=viewer,
        ) as reader:
            following = self._parts.readers.tally.following
            watch = asyncio.create_task(_watch_peer(receive, reader))
            following[mode] += 1
            try:
                yield reader
            finally:
                following[mode] -= 1
                watch.cancel()


class _Events:
    """The frames of one SSE answer that has started, until the end of its stream or of the connection's time.

    News that finds the reader waiting goes to the socket with that of its crowd, for as long as the stream goes on and the
    peer takes what it is sent. In every other case the reader's task sees to it.
    """

    __slots__ = (
        "_began_at",
        "_cursor",
        "_encoding",
        "_heartbeat_seconds",
        "_reader",
        "_readers",
        "_rotate_at",
        "_send",
        "_writer",
    )

    def __init__(self, reader: Reader, parts: Parts, encoding: Encoding, cursor: str, scope: Scope) -> None:
        self._reader = reader
        self._readers = parts.readers
        self._heartbeat_seconds = parts.settings.heartbeat_seconds
        self._encoding = encoding
        self._cursor = cursor
        self._send = asgi.Exchange.of(scope).send
        self._writer = asgi.ChunkWriter.of(scope)
        self._began_at = time.monotonic()
        self._rotate_at = self._began_at + parts.settings.sse_seconds

    async def send(self, pieces: list[Piece]) -> None:
        """Send these pieces and all that follow; one message for all that has gathered."""
        reader = self._reader
        is_first = True
        while is_first or not self._is_over:
            is_closed = reader.is_at_end
            frames = self._take(pieces)
            if is_first and not frames:
                is_up_to_date = reader.is_up_to_date
                frames.append(sse.control_frame(_offset(reader), self._cursor, is_up_to_date=is_up_to_date))
            is_first = False
            if frames:
                if pieces:
                    self._readers.delivering(pieces, since=self._began_at)
                    pieces.clear()
                await send_body(reader, frames, self._send, is_last=is_closed)
            if is_closed:
                return
            try:
                pieces = await self._next()
            except StoreError:
                # The answer has begun: end it without an end mark, and the reader comes back.
                break
        await self._send({"type": "http.response.body", "body": b""})

    @property
    def _is_over(self) -> bool:
        return self._reader.is_gone or self._reader.feed.is_gone or time.monotonic() >= self._rotate_at

    def _take(self, pieces: Sequence[Piece]) -> list[bytes]:
        """The events for pieces that the reader just took, to the last of a closed stream."""
        reader, encoding, cursor = self._reader, self._encoding, self._cursor
        is_up_to_date, is_closed = reader.is_up_to_date, reader.is_at_end
        frames, reader.held = _frames(
            pieces, reader.held, encoding, cursor, is_up_to_date=is_up_to_date, is_closed=is_closed
        )
        if is_closed:
            if reader.held:
                frames.append(sse.data_frame(reader.held.decode("utf-8", "replace"), format_offset(reader.position)))
            frames.append(sse.closing_frame(format_offset(reader.resume_position)))
        return frames

    async def _next(self) -> list[Piece]:
        """The next pieces; none when the stream or the answer is over."""
        reader = self._reader
        pieces = await self._readers.pieces(reader)
        while not pieces and not reader.is_at_end and not self._is_over:
            beat_at = reader.sent_at + self._heartbeat_seconds
            if time.monotonic() >= beat_at:
                await send_body(reader, [sse.HEARTBEAT], self._send)
            else:
                until = min(beat_at, self._rotate_at)
                writer = self._writer
                if writer is None or reader.viewer is not None or not writer.is_ready:
                    await reader.wait(until)
                else:
                    await reader.wait_in_crowd(until, self._encoding, self._cursor, writer)
            pieces = await self._readers.pieces(reader)
        return pieces


def _frames(
    pieces: Sequence[Piece],
    held: bytes,
    encoding: Encoding,
    cursor: str,
    *,
    is_up_to_date: bool,
    is_closed: bool,
) -> tuple[list[bytes], bytes]:
    """The events for pieces, but for what comes behind the last one of a closed stream; and what is held back then."""
    last = pieces[-1] if pieces else None
    frames: list[bytes] = []
    for piece in pieces:
        frame, offset, held = piece.shared_frame(encoding, held)
        if frame:
            frames.append(frame)
            if piece is not last:
                frames.append(sse.control_frame(offset, cursor, is_up_to_date=False))
            elif not is_closed:
                frames.append(sse.control_frame(offset, cursor, is_up_to_date=is_up_to_date))
    return frames, held


async def send_body(reader: Reader, parts: list[bytes], send: Send, *, is_last: bool = False) -> None:
    """Send, and let it be seen how long the peer takes. That may be long: the parts are let go of first."""
    message = {"type": "http.response.body", "body": b"".join(parts), "more_body": not is_last}
    parts.clear()
    reader.sending_since = time.monotonic()
    await send(message)
    reader.sending_since = None
    reader.sent_at = time.monotonic()


async def _watch_peer(receive: Receive, reader: Reader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.leave()


def _offset(reader: Reader) -> str:
    return format_offset(reader.resume_position - len(reader.held))


def _cursor(query: wire.ReadQuery) -> str:
    return next_cursor(query.cursor, now=time.time(), jitter=random.random())


def _body_headers(target: Target) -> list[tuple[str, str]]:
    return [*target.headers, ("Content-Type", target.content_type), asgi.SANDBOX]


def _position_headers(position: int, is_up_to_date: bool, is_closed: bool) -> list[tuple[str, str]]:
    headers = [(wire.NEXT_OFFSET, format_offset(position))]
    if is_up_to_date:
        headers.append((wire.UP_TO_DATE, "true"))
    if is_closed:
        headers.append((wire.CLOSED, "true"))
    return headers


async def _compressed(body: bytes) -> bytes:
    if len(body) < _GZIP_IN_THREAD_BYTES:
        return gzip.compress(body, _GZIP_LEVEL, mtime=0)
    return await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL, mtime=0)
