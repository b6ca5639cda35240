"""Reading a generation's two streams: catch-up, long-poll and SSE, by ids or by path. Raw ASGI: this is the hot path.

A reader's connection ends with its stream, with its time (it reconnects), with its peer, or with a stall; only the first
of these is told with an end mark.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.errors import not_found, problem
from streamkeep.proxy.readers import Feed, Piece, Reader
from streamkeep.proxy.rules import sse, wire
from streamkeep.proxy.rules.cursors import next_cursor
from streamkeep.proxy.rules.signing import SignatureProblem
from streamkeep.proxy.rules.sse import Encoding
from streamkeep.proxy.service import Service
from streamkeep.storage import DEFAULT_TENANT, Generation, GenerationKey, InvalidOffset, State, StoreError
from streamkeep.storage.rules.json_messages import to_array
from streamkeep.storage.rules.offsets import START, format_offset, parse_offset

_PAGE_BYTES = 1024 * 1024


class Which(StrEnum):
    DATA = "data"
    CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Target:
    """One of a generation's streams, as a request names it."""

    row: Generation
    which: Which

    @property
    def stream_id(self) -> int:
        return self.row.data_stream if self.which is Which.DATA else self.row.control_stream

    @property
    def is_control(self) -> bool:
        return self.which is Which.CONTROL

    @property
    def content_type(self) -> str:
        if self.is_control:
            return "application/json"
        return (self.row.head and self.row.head.content_type) or "application/octet-stream"

    def body(self, data: bytes) -> bytes:
        return to_array(data) if self.is_control else data

    def encoding(self, *, is_base64: bool) -> Encoding:
        if is_base64:
            return Encoding.BASE64
        head = self.row.head
        return sse.encoding_for(None if head is None else head.content_type, is_message_stream=self.is_control)

    def headers(self) -> list[tuple[str, str]]:
        """What upstream said, for the reader of its bytes."""
        head = self.row.head
        if head is None or self.is_control:
            return []
        headers = [*head.headers, (wire.UPSTREAM_STATUS, str(head.status))]
        if head.content_encoding is not None:
            headers.append((wire.UPSTREAM_CONTENT_ENCODING, head.content_encoding))
        return headers


class StreamByIds:
    """`GET /stream/data` and `/stream/control`, with the ids in the query."""

    def __init__(self, service: Service, which: Which) -> None:
        self._reads = _Reads(service)
        self._which = which

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parameters = wire.single_parameters(scope["query_string"])
        for name in ("sessionId", "requestId"):
            if name not in parameters:
                raise problem(400, "invalid_parameter", f"the parameter {name} is missing")
        key = _key(parameters, parameters["sessionId"], parameters["requestId"])
        await self._reads.answer(key, self._which, parameters, scope, receive, send)


class StreamByPath:
    """`GET /v1/stream/generations/{session_id}/{request_id}/{which}`: the same streams under their own paths."""

    def __init__(self, service: Service, which: Which) -> None:
        self._reads = _Reads(service)
        self._which = which

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise problem(403, "read_only", "a generation's streams are written by the proxy alone")
        parameters = wire.single_parameters(scope["query_string"])
        ids = scope["path_params"]
        key = _key(parameters, ids["session_id"], ids["request_id"])
        await self._reads.answer(key, self._which, parameters, scope, receive, send)


def _key(parameters: Mapping[str, str], session_id: str, request_id: str) -> GenerationKey:
    tenant = parameters.get("tenant", DEFAULT_TENANT)
    return GenerationKey(
        wire.check_session_id(tenant), wire.check_session_id(session_id), wire.check_request_id(request_id)
    )


class _Reads:
    """The three ways to read, for any way to name a stream."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings

    async def answer(
        self,
        key: GenerationKey,
        which: Which,
        parameters: Mapping[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        query = wire.read_query(parameters, last_event_id=asgi.header(scope, b"last-event-id"))
        position = parse_offset(query.offset if query.offset is not None else START)
        self._check_signature(key, parameters)
        target = Target(await self._service.generations.find(key), which)
        if which is Which.DATA and query.live is not wire.Live.SSE and scope["method"] == "GET":
            target = await self._with_verdict(target)
        if target.is_control and position:
            await self._check_message_bound(target, position)
        if position is None or scope["method"] == "HEAD":
            position = await self._tail(target)
        if scope["method"] == "HEAD":
            await self._head(target, position, send)
        elif query.live is wire.Live.SSE:
            await self._sse(target, position, query, scope, receive, send)
        elif query.live is wire.Live.LONG_POLL:
            await self._long_poll(target, position, query, receive, send)
        else:
            await self._catch_up(target, position, send)

    def _check_signature(self, key: GenerationKey, parameters: Mapping[str, str]) -> None:
        """A signature that is there must be good. In development mode, which has no keys, none is needed."""
        found = self._service.signer.check(key, parameters, now=time.time())
        if found is SignatureProblem.EXPIRED:
            raise problem(401, found, "the URL has expired; GET /api/{session}/{request} gives a fresh one")
        if found is SignatureProblem.INVALID:
            raise problem(401, found, "the URL's signature is not ours")

    async def _with_verdict(self, target: Target) -> Target:
        if target.row.state is State.CREATING:
            row = await self._service.generations.verdict(target.row, within_seconds=self._settings.long_poll_seconds)
            if row.state is State.CREATING:
                raise problem(503, "not_started", "upstream has not answered yet; try again", retry_after=1)
            if row.state is State.REFUSED:
                raise not_found()
            return Target(row, target.which)
        return target

    async def _tail(self, target: Target) -> int:
        tails = await self._service.store.tails([target.stream_id])
        if target.stream_id not in tails:
            raise not_found()
        return tails[target.stream_id].position

    async def _check_message_bound(self, target: Target, position: int) -> None:
        """A legal offset in a stream of messages is its start, or follows a message."""
        before = await self._service.store.read(target.stream_id, position - 1, 1)
        if before.data not in (b"", b"\x1e"):
            raise InvalidOffset("the offset lies inside a message")

    async def _head(self, target: Target, position: int, send: Send) -> None:
        tail = (await self._service.store.tails([target.stream_id]))[target.stream_id]
        headers = [*target.headers(), ("Content-Type", target.content_type), asgi.NO_STORE]
        headers += _position_headers(position, is_up_to_date=True, is_closed=tail.is_closed)
        await send({"type": "http.response.start", "status": 200, "headers": asgi.raw_headers(headers)})
        await send({"type": "http.response.body", "body": b""})

    async def _catch_up(self, target: Target, position: int, send: Send) -> None:
        read = await self._service.store.read(target.stream_id, position, _PAGE_BYTES)
        headers = _body_headers(target)
        headers += _position_headers(
            read.end, is_up_to_date=read.is_up_to_date, is_closed=read.tail.is_closed and read.is_up_to_date
        )
        await asgi.answer(send, 200, target.body(read.data), headers)

    async def _long_poll(
        self, target: Target, position: int, query: wire.ReadQuery, receive: Receive, send: Send
    ) -> None:
        deadline = time.monotonic() + self._settings.long_poll_seconds
        data: list[bytes] = []
        async with self._following(target, position, receive, {}) as reader:
            feed = reader.feed
            while True:
                pieces = await self._service.readers.pieces(reader)
                data += [piece.data for piece in pieces]
                if data or _is_at_end(feed, reader) or feed.is_gone or reader.is_gone or time.monotonic() >= deadline:
                    break
                await reader.wait(deadline)
            is_closed, is_up_to_date = _is_at_end(feed, reader), _is_up_to_date(feed, reader)
        headers = _body_headers(target) if data else [*target.headers(), asgi.NO_STORE]
        headers += _position_headers(reader.position, is_up_to_date=is_up_to_date, is_closed=is_closed)
        if not is_closed:
            headers.append((wire.CURSOR, _cursor(query)))
        await asgi.answer(send, 200 if data else 204, target.body(b"".join(data)) if data else b"", headers)

    async def _sse(
        self, target: Target, position: int, query: wire.ReadQuery, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async with self._following(target, position, receive, scope) as reader:
            pieces = await self._service.readers.pieces(reader)
            if asgi.header(scope, b"last-event-id") and not pieces and _is_at_end(reader.feed, reader):
                # An EventSource reconnects for ever unless it is told that there is nothing more.
                await asgi.answer(send, 204, b"", [asgi.NO_STORE, *_position_headers(reader.position, True, True)])
                return
            encoding = target.encoding(is_base64=query.is_base64)
            headers = [
                *target.headers(),
                ("Content-Type", "text/event-stream"),
                ("Cache-Control", "no-store, no-transform"),
                ("X-Accel-Buffering", "no"),
                asgi.SANDBOX,
            ]
            if encoding is Encoding.BASE64:
                headers.append((wire.SSE_DATA_ENCODING, "base64"))
            await send({"type": "http.response.start", "status": 200, "headers": asgi.raw_headers(headers)})
            await self._sse_body(reader, pieces, encoding, _cursor(query), send)

    async def _sse_body(self, reader: Reader, pieces: list[Piece], encoding: Encoding, cursor: str, send: Send) -> None:
        """Frames until the end of the stream or of the connection's time. One send for all that has gathered."""
        feed, readers = reader.feed, self._service.readers
        rotate_at = time.monotonic() + self._settings.sse_seconds
        held = b""
        is_first = True
        while not (reader.is_gone or feed.is_gone or (time.monotonic() >= rotate_at and not is_first)):
            is_closed = _is_at_end(feed, reader)
            frames: list[bytes] = []
            for piece in pieces:
                frame, held = piece.frame(encoding, held)
                if frame:
                    frames.append(frame)
                    offset = format_offset(piece.end - len(held))
                    is_last = piece.end == reader.position
                    is_up_to_date = is_last and _is_up_to_date(feed, reader)
                    if not (is_last and is_closed):
                        frames.append(sse.control_frame(offset, cursor, is_up_to_date=is_up_to_date))
            if is_closed:
                if held:
                    frames.append(sse.data_frame(held.decode("utf-8", "replace"), format_offset(reader.position)))
                frames.append(sse.closing_frame(format_offset(reader.position)))
            elif is_first and not frames:
                is_up_to_date = _is_up_to_date(feed, reader)
                frames.append(sse.control_frame(_offset(reader, held), cursor, is_up_to_date=is_up_to_date))
            is_first = False
            if frames:
                await _send_body(reader, b"".join(frames), send, is_last=is_closed)
            if is_closed:
                return
            try:
                pieces = await readers.pieces(reader)
                while not pieces and not _is_at_end(feed, reader):
                    now = time.monotonic()
                    if reader.is_gone or feed.is_gone or now >= rotate_at:
                        break
                    beat_at = now + self._settings.heartbeat_seconds
                    await reader.wait(min(beat_at, rotate_at))
                    if time.monotonic() >= beat_at:
                        await _send_body(reader, sse.HEARTBEAT, send)
                    pieces = await readers.pieces(reader)
            except StoreError:
                # The answer has begun: end it without an end mark, and the reader comes back.
                break
        await send({"type": "http.response.body", "body": b""})

    @asynccontextmanager
    async def _following(
        self, target: Target, position: int, receive: Receive, scope: Mapping[str, Any]
    ) -> AsyncIterator[Reader]:
        """A reader that leaves when its peer does, and is cut off when its peer takes nothing."""
        task = asyncio.current_task()

        def stop() -> None:
            abort = scope.get("streamkeep.abort")
            if abort is not None:
                abort()
            elif task is not None:
                task.cancel()

        with self._service.readers.reader(target.stream_id, position, stop) as reader:
            watch = asyncio.create_task(_watch_peer(receive, reader))
            try:
                yield reader
            finally:
                watch.cancel()


async def _send_body(reader: Reader, body: bytes, send: Send, *, is_last: bool = False) -> None:
    """Send, and let it be seen how long the peer takes."""
    reader.sending_since = time.monotonic()
    await send({"type": "http.response.body", "body": body, "more_body": not is_last})
    reader.sending_since = None


async def _watch_peer(receive: Receive, reader: Reader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.leave()


def _is_up_to_date(feed: Feed, reader: Reader) -> bool:
    return feed.tail is not None and reader.position >= feed.tail.position


def _is_at_end(feed: Feed, reader: Reader) -> bool:
    return feed.tail is not None and feed.tail.is_closed and reader.position >= feed.tail.position


def _offset(reader: Reader, held: bytes) -> str:
    return format_offset(reader.position - len(held))


def _cursor(query: wire.ReadQuery) -> str:
    return next_cursor(query.cursor, now=time.time(), jitter=random.random())


def _body_headers(target: Target) -> list[tuple[str, str]]:
    return [*target.headers(), ("Content-Type", target.content_type), asgi.NO_STORE, asgi.SANDBOX]


def _position_headers(position: int, is_up_to_date: bool, is_closed: bool) -> list[tuple[str, str]]:
    headers = [(wire.NEXT_OFFSET, format_offset(position))]
    if is_up_to_date:
        headers.append((wire.UP_TO_DATE, "true"))
    if is_closed:
        headers.append((wire.CLOSED, "true"))
    return headers
