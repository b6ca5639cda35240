"""Server-sent events: bytes in, whole events out, however the bytes are split.

Lines end with LF, CR LF or CR, and all three may be mixed. Fields that the proxy does not use (`retry`, unknown ones)
are skipped, and so are comments: a heartbeat is a comment, and whoever reads sees it as bytes that came.

Events as most servers write them, with LF, each field once and in the usual order, are taken in one step each. Whatever
looks different, or is not whole yet, goes line by line; both ways give the same events.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from streamkeep.client._errors import ProtocolError

_LINE_END = re.compile(rb"[\r\n]")
_USUAL_EVENT = re.compile(rb"(?:event: ?([^\r\n]*)\n)?(?:id: ?([^\0\r\n]*)\n)?data: ?([^\r\n]*)\n\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Event(NamedTuple):
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
        self._is_between_events = False
        self._name = ""
        self._id: str | None = None
        self._data: list[bytes] = []
        self._event_bytes = 0

    @property
    def is_between_events(self) -> bool:
        """Whether the next byte begins an event, for certain."""
        return self._is_between_events and not self._pending and not self._skips_line_feed

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
            # What was searched before and is not whole yet is not looked at from its beginning again.
            if self._is_between_events and self._searched <= start and not self._skips_line_feed:
                start = self._searched = self._take_usual(events, start)
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
            raise self._too_long()
        return events

    def _take_usual(self, events: list[Event], start: int) -> int:
        """Take whole events from `start` on, for as long as they look as usual; returns where that is over."""
        while (found := _USUAL_EVENT.match(self._pending, start)) is not None:
            if found.end() - start > self._max_event_bytes:
                raise self._too_long()
            start = found.end()
            name, identity, data = found.groups()
            events.append(
                Event(
                    name.decode("utf-8", "replace") if name else "message",
                    data,
                    None if identity is None else identity.decode("utf-8", "replace"),
                )
            )
        return start

    def _take_line(self, line: bytes) -> Event | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._end_event()
        self._is_between_events = False
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
            self._event_bytes += len(value) + 1
            if self._event_bytes > self._max_event_bytes:
                raise self._too_long()
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        return None

    def _end_event(self) -> Event | None:
        event = Event(self._name or "message", b"\n".join(self._data), self._id) if self._data else None
        self._name, self._id = "", None
        self._data, self._event_bytes = [], 0
        self._is_between_events = True
        return event

    def _too_long(self) -> ProtocolError:
        return ProtocolError(f"a server-sent event has more than {self._max_event_bytes} bytes")
