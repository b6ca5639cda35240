"""Reading a generation's streams as a shape log: in pages, by long-poll and by SSE. What the rows are is said in
`rules/shape_log.py`.

A shape has no end. Whoever waits at that of a closed stream is held like any other reader: an answer at once would be
asked for again at once.
"""

from __future__ import annotations

import random
import time

from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.feeds import Reader
from streamkeep.proxy.readers import Readers
from streamkeep.proxy.reads import Parts, Reads, Target, send_body
from streamkeep.proxy.rules import shape_log, sse
from streamkeep.proxy.rules.cursors import next_cursor
from streamkeep.proxy.rules.shape_log import Message, Shape, ShapeQuery, Table
from streamkeep.proxy.tallies import ReadMode
from streamkeep.storage import Generation, StoreError, StreamNotFound

Headers = list[tuple[str, str]]


class ShapeReads:
    """The ways in which a `ShapeStream` reads."""

    def __init__(self, parts: Parts, reads: Reads) -> None:
        self._readers = parts.readers
        self._settings = parts.settings
        self._reads = reads

    async def answer(
        self, row: Generation, table: Table, query: ShapeQuery, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a GET.

        Raises:
            InvalidOffset: the offset is none, or beyond the tail.
            StoreError: the stream cannot be read.
        """
        shape = Shape(table, row.key.session_id, row.key.request_id)
        stream_id = row.data_stream if table is Table.DATA else row.control_stream
        target = Target(stream_id, "application/json", is_message_stream=table is Table.CONTROL)
        handle = f"{stream_id}-{int(row.created_at.timestamp() * 1000)}"
        headers = [(shape_log.HANDLE, handle), asgi.NO_STORE, asgi.SANDBOX]
        if query.handle not in (None, handle):
            headers.append(("Content-Type", "application/json"))
            await asgi.answer(send, 409, shape_log.MUST_REFETCH, headers)
            return
        position = shape_log.position_of(query)
        if not query.is_live:
            self._reads.note_beginning(ReadMode.CATCH_UP, query.offset)
            await self._page(shape, target, position, headers, send)
            return
        headers.append((shape_log.CURSOR, next_cursor(query.cursor, now=time.time(), jitter=random.random())))
        mode = ReadMode.SSE if query.is_sse else ReadMode.LONG_POLL
        self._reads.note_beginning(mode, query.offset)
        async with self._reads.following(target, position, receive, scope, mode) as reader:
            rows = _LiveRows(shape, reader, self._readers)
            if query.is_sse:
                await self._sse(rows, headers, scope, send)
            else:
                await self._long_poll(rows, headers, send)

    async def _page(self, shape: Shape, target: Target, position: int, headers: Headers, send: Send) -> None:
        read = await self._reads.page(target, position)
        messages, end = shape.rows(position, read.data, is_closed=read.is_closed)
        headers.append((shape_log.SCHEMA, shape.table.schema))
        if read.is_up_to_date:
            headers.append((shape_log.UP_TO_DATE, "true"))
            messages.append(shape_log.up_to_date(end))
        self._readers.tally.delivered_bytes += end - position
        await _answer(send, messages, end, headers)

    async def _long_poll(self, rows: _LiveRows, headers: Headers, send: Send) -> None:
        messages = await rows.next(time.monotonic() + self._settings.long_poll_seconds)
        if not messages and rows.reader.feed.is_gone:
            raise StreamNotFound("the stream went while it was read")
        await _answer(send, [*messages, shape_log.up_to_date(rows.position)], rows.position, headers)

    async def _sse(self, rows: _LiveRows, headers: Headers, scope: Scope, send: Send) -> None:
        rotate_at = time.monotonic() + self._settings.sse_seconds
        offset = shape_log.format_position(rows.position)
        messages = await rows.at_hand()
        headers += [
            (shape_log.OFFSET, offset),
            ("Content-Type", "text/event-stream"),
            ("X-Accel-Buffering", "no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": asgi.raw_headers(headers)})
        send = asgi.Exchange.of(scope).send
        while messages or not (rows.is_over or time.monotonic() >= rotate_at):
            # The client takes rows only up to such a message, and goes on from the position that it tells.
            events = [*messages, shape_log.up_to_date(rows.position)] if messages else []
            await send_body(rows.reader, [shape_log.to_events(events) if events else sse.HEARTBEAT], send)
            try:
                messages = await rows.next(min(time.monotonic() + self._settings.heartbeat_seconds, rotate_at))
            except StoreError:
                break
        await send({"type": "http.response.body", "body": b""})


class _LiveRows:
    """The rows that one live reader comes to. `position` is behind the last; what it got of the next one is kept."""

    def __init__(self, shape: Shape, reader: Reader, readers: Readers) -> None:
        self.reader = reader
        self.position = reader.position
        self._shape = shape
        self._readers = readers
        self._held = b""
        self._began_at = time.monotonic()

    @property
    def is_over(self) -> bool:
        return self.reader.is_gone or self.reader.feed.is_gone

    async def at_hand(self) -> list[Message]:
        """The next rows, if there are any now. Raises: InvalidOffset, StoreError."""
        messages: list[Message] = []
        while not messages:
            pieces = await self._readers.pieces(self.reader)
            if pieces:
                self._readers.delivering(pieces, since=self._began_at)
            elif not (self._held and self.reader.is_at_end):
                break
            data = b"".join([self._held, *(piece.data for piece in pieces)])
            messages, end = self._shape.rows(self.position, data, is_closed=self.reader.is_at_end)
            self._held = data[end - self.position :]
            self.position = end
        return messages

    async def next(self, until: float) -> list[Message]:
        """The next rows; none when the wait is over, at a monotonic instant or before. Raises: InvalidOffset, StoreError."""
        while not (messages := await self.at_hand()) and not self.is_over and time.monotonic() < until:
            await self.reader.wait(until)
        return messages


async def _answer(send: Send, messages: list[Message], position: int, headers: Headers) -> None:
    body = shape_log.to_array(messages)
    offset = (shape_log.OFFSET, shape_log.format_position(position))
    await asgi.answer(send, 200, body, [*headers, offset, ("Content-Type", "application/json")])
