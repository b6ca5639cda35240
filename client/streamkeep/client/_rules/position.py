"""Which read comes next, and in which mode.

A body is read from the data stream live, as server-sent events. When that stream says that it is closed, what is left is
the control stream's one event. Where something on the way swallows or cuts server-sent events, so that connections end
or fall silent without having brought a single event, the data are read by long-polls instead, for the rest of the body:
the proxy sends an event at once on each connection, so a healthy one is never barren.
"""

from __future__ import annotations

from enum import Enum, auto

_BARREN_LIMIT = 3


class Read(Enum):
    """A request for more of a generation."""

    DATA_BY_EVENTS = auto()
    DATA_BY_LONG_POLL = auto()
    CONTROL = auto()


class ReadPlan:
    """Choose the next read from how the ones before went."""

    def __init__(self) -> None:
        self.next = Read.DATA_BY_EVENTS
        self._barren = 0

    def data_closed(self) -> None:
        """The data stream is closed and all of it has come."""
        self.next = Read.CONTROL

    def events_ended(self, *, was_barren: bool, was_silent: bool) -> None:
        """A connection for events is over: did it bring no event at all, and did it hang rather than end?"""
        self._barren = self._barren + 1 if was_barren else 0
        is_swallowed = was_barren and was_silent
        if self.next is Read.DATA_BY_EVENTS and (is_swallowed or self._barren >= _BARREN_LIMIT):
            self.next = Read.DATA_BY_LONG_POLL
