"""Which read comes next, and in which mode.

A body is read from the data stream live, as server-sent events. When that stream says that it is closed, what is left is
the control stream's one event. Where something on the way swallows or cuts server-sent events, so that connections end
or fall silent without having brought a single event, the data are read by long-polls instead, for the rest of the body:
the proxy sends an event at once on each connection, so a healthy one is never barren. Where events came through before,
one silence is taken for a dead network, which no other mode would bring to life.
"""

from __future__ import annotations

from enum import Enum, auto

_BARREN_LIMIT = 3


class Read(Enum):
    """A request for more of a generation."""

    DATA_BY_EVENTS = auto()
    DATA_BY_LONG_POLL = auto()
    CONTROL = auto()


class EventHealth:
    """Whether server-sent events come through to us, judged by how the connections for them ended."""

    def __init__(self) -> None:
        self.are_swallowed: bool = False
        self._barren = 0
        self._came_through = False

    def ended(self, *, was_barren: bool, was_silent: bool) -> None:
        """A connection for events is over: did it bring no event at all, and did it hang rather than end?"""
        self._barren = self._barren + 1 if was_barren else 0
        self._came_through = self._came_through or not was_barren
        is_held_back = was_silent and not self._came_through
        self.are_swallowed = self.are_swallowed or is_held_back or self._barren >= _BARREN_LIMIT


class ReadPlan:
    """Choose the next read from how the ones before went."""

    def __init__(self) -> None:
        self._health = EventHealth()
        self.is_data_closed = False

    @property
    def next(self) -> Read:
        if self.is_data_closed:
            return Read.CONTROL
        return Read.DATA_BY_LONG_POLL if self._health.are_swallowed else Read.DATA_BY_EVENTS

    def data_closed(self) -> None:
        """The data stream is closed and all of it has come."""
        self.is_data_closed = True

    def events_ended(self, *, was_barren: bool, was_silent: bool) -> None:
        """A connection for events is over; see `EventHealth`."""
        self._health.ended(was_barren=was_barren, was_silent=was_silent)
