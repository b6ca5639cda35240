"""Server-sent events: bytes in, whole events out, however the bytes are split.

Lines end with LF, CR LF or CR, and all three may be mixed. Fields that the proxy does not use (`retry`, unknown ones)
are skipped, and so are comments: a heartbeat is a comment, and whoever reads sees it as bytes that came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from streamkeep.client._errors import ProtocolError

_LINE_END = re.compile(rb"[\r\n]")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it came: `id` is None where the event has none of its own."""

    name: str
    data: bytes
    id: str | None = None


class EventDecoder:
    """Decode one connection's events. An event counts once the blank line after it has come; a rest is dropped.

    An event of more than `max_event_bytes` is refused, so that a peer that never ends one cannot fill the memory.
    """

    def __init__(self, *, max_event_bytes: int = 16 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._pending = bytearray()
        self._searched = 0
        self._skips_line_feed = False
        self._is_first_line = True
        self._name = ""
        self._id: str | None = None
        self._data: list[bytes] = []
        self._event_bytes = 0

    @property
    def is_inside_event(self) -> bool:
        """Whether something came of an event that is not complete."""
        return bool(self._pending or self._data or self._name or self._id is not None)

    def feed(self, piece: bytes) -> list[Event]:
        """Take what the connection gave next; return the events that it completes.

        Raises:
            ProtocolError: an event is too long.
        """
        self._pending += piece
        events: list[Event] = []
        start = 0
        while True:
            if self._skips_line_feed and start < len(self._pending):
                # A CR ended the line before; its LF may come with a later piece.
                self._skips_line_feed = False
                start += self._pending[start] == 0x0A
                self._searched = max(self._searched, start)
            found = _LINE_END.search(self._pending, self._searched)
            if found is None:
                break
            line = bytes(self._pending[start : found.start()])
            self._skips_line_feed = found.group() == b"\r"
            start = self._searched = found.end()
            event = self._take_line(line)
            if event is not None:
                events.append(event)
        del self._pending[:start]
        self._searched = len(self._pending)
        if len(self._pending) + self._event_bytes > self._max_event_bytes:
            raise ProtocolError(f"a server-sent event has more than {self._max_event_bytes} bytes")
        return events

    def _take_line(self, line: bytes) -> Event | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._end_event()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._event_bytes += len(value) + 1
            if self._event_bytes > self._max_event_bytes:
                raise ProtocolError(f"a server-sent event has more than {self._max_event_bytes} bytes")
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        return None

    def _end_event(self) -> Event | None:
        event = Event(self._name or "message", b"\n".join(self._data), self._id) if self._data else None
        self._name, self._id = "", None
        self._data, self._event_bytes = [], 0
        return event
