"""Where a reader of one stream stands, which request comes next, and what an answer gives.

A stream is read from an offset on by catch-up requests, which caches may answer, until its tail is reached. A live
reader then waits for more, by server-sent events or by long-polls, until the stream is closed. Where events are
swallowed on their way, long-polls take over for the rest.

Offsets are opaque, so a reader can only go on from one that a server gave. What an answer brought counts when the
answer is complete, or for events when the `control` event behind them has come; if it breaks off before, the same
request is made again. Only of an answer longer than `PIECE_BYTES` a part is given out before its end: then the reader
remembers how much, and leaves that out of the repeat, whose bytes are the same (protocol 4).
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from enum import Enum, auto
from typing import NamedTuple

from streamkeep.client._errors import ProtocolError
from streamkeep.client._rules import protocol
from streamkeep.client._rules.frames import Frame
from streamkeep.client._rules.position import EventHealth
from streamkeep.client._rules.protocol import Control, Head
from streamkeep.client._rules.sse import Event

PIECE_BYTES = 4 * 1024 * 1024
MAX_MESSAGES_BYTES = 128 * 1024 * 1024


class Mode(Enum):
    """How the next request reads."""

    CATCH_UP = auto()
    LONG_POLL = auto()
    EVENTS = auto()


class Live(Enum):
    """What happens at the tail: stop, wait in one of two ways, or wait in the way that suits the content."""

    NO = auto()
    LONG_POLL = auto()
    EVENTS = auto()
    AUTO = auto()


class Piece(NamedTuple):
    """What came of a stream. `parts` are bytes, or each an array of messages; without any, it tells of the tail alone.

    `offset` is where to go on once everything up to here was taken; of a part of a long answer it is the one before.
    """

    parts: tuple[bytes, ...]
    offset: str
    is_up_to_date: bool
    is_closed: bool


class StreamPosition:
    """The state of one reader. `pieces` waits to be given out."""

    def __init__(self, offset: str, live: Live) -> None:
        self.offset: str = offset
        self.cursor: str | None = None
        self.content_type: str | None = None
        self.is_json: bool = False
        self.is_up_to_date: bool = False
        self.is_closed: bool = False
        self.pieces: deque[Piece] = deque()
        self.health: EventHealth = EventHealth()
        self._live = live
        self._wants_events = live is Live.EVENTS
        self._has_caught_up = False
        self._given_bytes = 0
        self._repeated_bytes = 0
        self._held: list[bytes] = []
        self._held_bytes = 0

    @property
    def next_mode(self) -> Mode | None:
        """The next request's, or None when there is nothing more to read."""
        if self.is_closed:
            return None
        if not self._has_caught_up:
            return Mode.CATCH_UP
        if self._live is Live.NO:
            return None
        return Mode.EVENTS if self._wants_events and not self.health.are_swallowed else Mode.LONG_POLL

    def query(self, mode: Mode) -> dict[str, str | None]:
        """The parameters of a request; None takes one away."""
        live = {Mode.CATCH_UP: None, Mode.LONG_POLL: "long-poll", Mode.EVENTS: "sse"}[mode]
        # Text events cannot carry every byte; a server that does not know the parameter sends what it can.
        encoding = "base64" if mode is Mode.EVENTS else None
        cursor = None if mode is Mode.CATCH_UP else self.cursor
        return {"cursor": cursor, "encoding": encoding, "live": live, "offset": self.offset}

    def begin(self, content_type: str | None) -> None:
        """An answer begins; None where it does not tell the stream's own type."""
        self._held.clear()
        self._held_bytes = 0
        self._repeated_bytes = self._given_bytes
        if content_type:
            self.content_type = content_type
            self.is_json = protocol.is_json(content_type)
            is_text = self.is_json or content_type.lower().startswith("text/")
            self._wants_events = self._live is Live.EVENTS or (self._live is Live.AUTO and is_text)

    def receive(self, data: bytes) -> None:
        """Take bytes of a page. Raises: ProtocolError: one answer holds too much to be taken apart."""
        if self._repeated_bytes:
            known = min(self._repeated_bytes, len(data))
            self._repeated_bytes -= known
            data = data[known:]
        self._hold(data)
        if self._held_bytes >= PIECE_BYTES and not self.is_json:
            self._given_bytes += self._held_bytes
            self._give(is_up_to_date=False, is_closed=False)

    def end_page(self, head: Head) -> bool:
        """The page is complete; whether it brought the reader further.

        Raises:
            ProtocolError: it leads backwards, or nowhere although it holds data.
        """
        data = b"".join(self._held)
        self._held = [] if not data or (self.is_json and data.strip() == b"[]") else [data]
        has_data = bool(self._held) or self._given_bytes > 0
        moved = self._moves_to(head.next_offset, has_data=has_data)
        self._given_bytes = self._repeated_bytes
        # An empty page that leads to where it began is the tail, whether the server says so or not.
        is_up_to_date = head.is_up_to_date or head.is_closed or not moved
        self._arrive(head.next_offset, head.cursor, is_up_to_date=is_up_to_date, is_closed=head.is_closed)
        return moved

    def receive_frames(self, frames: list[Frame]) -> None:
        """Take frames of a stream of bytes as `receive_event` would take their events, and join what they bring.

        Raises:
            ProtocolError: they lead backwards.
        """
        cursor = None
        for _, offset, told, _ in frames:
            self._moves_to(offset, has_data=True)
            self.offset = offset
            cursor = told or cursor
        self._held.append(frames[0][0] if len(frames) == 1 else b"".join(frame[0] for frame in frames))
        self._arrive(self.offset, cursor, is_up_to_date=frames[-1][3], is_closed=False)

    def receive_event(self, event: Event, *, is_base64: bool) -> bool:
        """Take an event; whether it brought the reader further. Unknown ones are passed over. Raises: ProtocolError."""
        if event.name == "data":
            data = _decoded(event.data) if is_base64 else event.data
            if data and not (self.is_json and data.strip() == b"[]"):
                self._hold(data)
            return False
        if event.name != "control":
            return False
        control: Control = protocol.parse_control(event.data)
        moved = self._moves_to(control.next_offset, has_data=bool(self._held))
        is_up_to_date = control.is_up_to_date or control.is_closed
        self._arrive(control.next_offset, control.cursor, is_up_to_date=is_up_to_date, is_closed=control.is_closed)
        return moved

    def _hold(self, data: bytes) -> None:
        if not data:
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MAX_MESSAGES_BYTES:
            raise ProtocolError(f"an answer brings more than {MAX_MESSAGES_BYTES} bytes that belong together")

    def _moves_to(self, offset: str, *, has_data: bool) -> bool:
        if offset > self.offset or self.offset in (protocol.START, protocol.NOW):
            return True
        if offset < self.offset:
            raise ProtocolError("the answer leads back to what was read before")
        if offset == self.offset and has_data:
            raise ProtocolError("the answer brings data, and leads to where it began")
        return offset != self.offset

    def _arrive(self, offset: str, cursor: str | None, *, is_up_to_date: bool, is_closed: bool) -> None:
        self.offset = offset
        self.cursor = cursor or self.cursor
        self.is_up_to_date, self.is_closed = is_up_to_date, is_closed
        # A live reader that falls behind goes on live.
        self._has_caught_up = self._has_caught_up or is_up_to_date
        if self._held or is_up_to_date:
            self._give(is_up_to_date=is_up_to_date, is_closed=is_closed)

    def _give(self, *, is_up_to_date: bool, is_closed: bool) -> None:
        self.pieces.append(Piece(tuple(self._held), self.offset, is_up_to_date, is_closed))
        self._held = []
        self._held_bytes = 0


def _decoded(data: bytes) -> bytes:
    try:
        return base64.b64decode(data.replace(b"\n", b"").replace(b"\r", b""), validate=True)
    except binascii.Error as exc:
        raise ProtocolError("a data event does not hold base64") from exc
