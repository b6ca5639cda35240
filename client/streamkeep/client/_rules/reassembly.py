"""Put one generation's body together from its two streams (design, the way of a generation, 9).

Data come with the position after them, in any chunking, and after a reconnect perhaps again: what was had before is cut
off by position, and what would leave a gap is refused, since nothing later could fill it. The control event names the
data stream's final position; it may come before, amid or after the data, and takes effect only when everything up to
that position has been given out. Positions are byte indices of the whole body, so a resumed body begins above 0.

What `next_event` gives, in this order: `Body` for each piece, `NeedData` whenever nothing is at hand, and at last `Done`
or `Failed`, from then on for ever.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from streamkeep.client._errors import ProtocolError
from streamkeep.client._rules.wire import ControlEvent


class Body(NamedTuple):
    """The next bytes of the body; `end` is the position after them."""

    data: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Done:
    """The body is complete."""


@dataclass(frozen=True, slots=True)
class Failed:
    """All there is was given out, and the generation ended badly."""

    event: ControlEvent


@dataclass(frozen=True, slots=True)
class NeedData:
    """Nothing more can be said until one of the streams gives more."""


class Reassembly:
    """One ordered body and one end, out of the data and the control stream of a generation.

    `received` is the position up to which data came, `given` the one up to which they were given out. The caller bounds
    the memory: it reads a stream only when `NeedData` was given. `max_piece_bytes` bounds what one `Body` holds.
    """

    def __init__(self, start: int = 0, *, max_piece_bytes: int | None = None) -> None:
        self.received = start
        self.given = start
        self._max_piece_bytes = max_piece_bytes
        self._pieces: deque[bytes] = deque()
        self._end: ControlEvent | None = None

    def receive_data(self, data: bytes, end: int) -> None:
        """Take bytes whose last one stands just before position `end`.

        Raises:
            ProtocolError: bytes between what came before and these are missing, or these stand beyond the end.
        """
        start = end - len(data)
        if start == self.received and self._end is None and self._max_piece_bytes is None and data:
            self._pieces.append(data)
            self.received = end
            return
        if start < 0:
            raise ProtocolError(f"{len(data)} bytes cannot end at position {end}")
        if start > self.received:
            raise ProtocolError(f"the data jump from position {self.received} to {start}")
        if self._end is not None and end > self._end.position:
            raise ProtocolError(f"data come up to position {end}, beyond the generation's end at {self._end.position}")
        if end > self.received:
            step = self._max_piece_bytes or len(data)
            self._pieces.extend(data[at : at + step] for at in range(self.received - start, len(data), step))
            self.received = end

    def receive_control(self, event: ControlEvent) -> None:
        """Take the generation's terminal event; a repeat of the same one changes nothing.

        Raises:
            ProtocolError: more data than the event tells of have come, or another event came before.
        """
        if self._end is not None and event != self._end:
            raise ProtocolError(f"the generation ended twice: {self._end.code}, then {event.code}")
        if event.position < self.received:
            raise ProtocolError(f"the generation's end at {event.position} stands before data up to {self.received}")
        self._end = event

    def next_event(self) -> Body | Done | Failed | NeedData:
        """What can be told now; see the module's text for the order."""
        data = self.take()
        if data:
            return Body(data, self.given)
        if self._end is None or self.given < self._end.position:
            return NeedData()
        return Done() if self._end.is_done else Failed(self._end)

    def take(self) -> bytes:
        """The next bytes alone, where there are any: what came together in one piece, since each costs its takers time."""
        if not self._pieces:
            return b""
        if len(self._pieces) == 1 or self._max_piece_bytes is not None:
            data = self._pieces.popleft()
        else:
            data = b"".join(self._pieces)
            self._pieces.clear()
        self.given += len(data)
        return data

    @property
    def has_event(self) -> bool:
        """Whether `next_event` has more to say than `NeedData`."""
        return bool(self._pieces) or (self._end is not None and self.given >= self._end.position)
