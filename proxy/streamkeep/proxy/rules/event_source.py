"""What a browser's EventSource needs to go on with an answer: an `id:` in each event, which it gives back on its own.

An EventSource can send nothing but a URL and `Last-Event-ID`, so the id names the generation and the position behind the
event. It is put before the blank line that ends an event, where it wins over an id of upstream's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.storage import InvalidOffset
from streamkeep.storage.rules.offsets import START, format_offset, parse_offset

_LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class EventId:
    """A position in a generation's data stream, as an event's id."""

    session_id: str
    request_id: str
    position: int

    @classmethod
    def parse(cls, text: str) -> EventId:
        """Raises: BadRequest."""
        try:
            session_id, request_id, offset = text.split("/")
            position = parse_offset(offset)
        except (ValueError, InvalidOffset):
            position = None
        if position is None or offset == START:
            raise BadRequest("invalid_event_id", f"{wire.LAST_EVENT_ID} is not an id of ours")
        return cls(wire.check_session_id(session_id), wire.check_request_id(request_id), position)

    def __str__(self) -> str:
        return f"{self.session_id}/{self.request_id}/{format_offset(self.position)}"


class EventIds:
    """Puts ids into the text of an event stream that begins at a position where an event begins."""

    def __init__(self, session_id: str, request_id: str, position: int) -> None:
        self._prefix = f"{session_id}/{request_id}/"
        self._position = position
        self._is_line_empty = True
        self._is_event_empty = True
        self._is_after_cr = False

    @property
    def opening(self) -> bytes:
        """Sent before everything: an id without an event, so that a connection that breaks before the first event does
        not ask upstream again."""
        return self._line(self._position) + b"\n"

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the stream, with an id in each event that ends in them."""
        parts: list[bytes] = []
        taken = line_start = 0
        if self._is_after_cr and data.startswith(b"\n"):
            line_start = 1
        for end in _LINE_END.finditer(data, line_start):
            if end.start() > line_start:
                self._is_line_empty = False
            if not self._is_line_empty:
                self._is_event_empty = False
            elif not self._is_event_empty:
                parts += [data[taken : end.start()], self._line(self._position + end.end())]
                taken = end.start()
                self._is_event_empty = True
            self._is_line_empty = True
            line_start = end.end()
        if line_start < len(data):
            self._is_line_empty = False
        if data:
            self._is_after_cr = data.endswith(b"\r")
        self._position += len(data)
        return b"".join([*parts, data[taken:]])

    def _line(self, position: int) -> bytes:
        return f"id: {self._prefix}{format_offset(position)}\n".encode("ascii")
