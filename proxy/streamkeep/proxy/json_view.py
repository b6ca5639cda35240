"""The JSON view of a generation whose upstream speaks server-sent events: its log, read as messages.

What the messages are is said in `rules/event_messages.py`; here they are read. Positions are those of the data stream. An
ending other than `done` is one more message, and the position behind it is one beyond the data's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from streamkeep.proxy.rules import event_messages
from streamkeep.proxy.rules.event_messages import Held
from streamkeep.storage import InvalidOffset, Store, StreamNotFound, Tail
from streamkeep.storage.rules.json_messages import SEPARATOR

_T = TypeVar("_T")

_READ_BYTES = 256 * 1024
# At its worst, of nothing but line ends, this takes some thirty milliseconds.
_DECODED_AT_ONCE_BYTES = 32 * 1024
_SEARCH_BYTES = 16 * 1024
_TERMINAL_EVENT_BYTES = 1024 * 1024


class Decoding:
    """Where events are taken apart: here at once, or, when that takes long, in a thread while the loop goes on. That is done
    for one reader at a time, so that others who want the same find it done."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)

    async def do(self, size_bytes: int, decode: Callable[[], _T]) -> _T:
        if size_bytes <= _DECODED_AT_ONCE_BYTES:
            return decode()
        async with self._turn:
            return await asyncio.to_thread(decode)


@dataclass(frozen=True, slots=True)
class Page:
    """What one read found: stored form up to position `end`, and whether there is more now, or ever."""

    data: bytes
    end: int
    is_up_to_date: bool
    is_closed: bool


class Viewer:
    """One reader's way through a view. `final` is where it ends, once that has been reached."""

    __slots__ = ("_view", "final", "held")

    def __init__(self, view: JsonView, held: Held, final: int | None = None) -> None:
        self._view = view
        self.held = held
        self.final = final

    @property
    def position(self) -> int:
        """Where this reader would go on."""
        return self.held.position if self.final is None else self.final

    async def page(self) -> Page:
        """The next messages; none only at the tail. Raises: StreamNotFound, StoreUnavailable."""
        if self.final is not None:
            return Page(b"", self.final, True, True)
        while True:
            read = await self._view.store.read(self._view.data_stream, self.held.received, _READ_BYTES)
            messages, self.held = await self.decoded(len(read.data), partial(event_messages.decode, data=read.data))
            if read.is_up_to_date:
                if read.tail.is_closed:
                    messages += await self.finish()
                return Page(messages, self.position, True, read.tail.is_closed)
            if messages:
                return Page(messages, self.position, False, False)

    async def decoded(self, size_bytes: int, decode: Callable[[Held], _T]) -> _T:
        """What `decode` makes of what is held back and of so many bytes more."""
        held = self.held
        return await self._view.decoding.do(held.received - held.position + size_bytes, lambda: decode(held))

    async def finish(self) -> bytes:
        """What comes behind the last byte of a closed stream. Raises: StreamNotFound, StoreUnavailable."""
        failure = await self._view.failure()
        last = await self.decoded(0, event_messages.finish)
        self.final = self.held.received + bool(failure)
        return last + failure


@dataclass(frozen=True, slots=True)
class JsonView:
    """The view of one generation, by the ids of its two streams."""

    store: Store
    decoding: Decoding
    data_stream: int
    control_stream: int

    async def viewer(self, position: int) -> Viewer:
        """Begin to read at a position.

        Raises:
            InvalidOffset: it is beyond the tail.
            StreamNotFound, StoreUnavailable: from the store.
        """
        if position == 0:
            return Viewer(self, event_messages.begin(0, b""))
        start = max(0, position - event_messages.CONTEXT_BYTES)
        before = await self.store.read(self.data_stream, start, event_messages.CONTEXT_BYTES)
        tail = before.tail
        if position <= tail.position:
            return Viewer(self, event_messages.begin(position, before.data))
        if tail.is_closed and position == tail.position + 1 and await self.failure():
            return Viewer(self, Held(tail.position, tail.position), final=position)
        raise InvalidOffset("the offset is beyond the tail")

    async def tail(self) -> Tail:
        """Behind the last whole event: what is not complete yet is read from there. Raises: StreamNotFound."""
        tails = await self.store.tails([self.data_stream])
        if self.data_stream not in tails:
            raise StreamNotFound(f"no stream {self.data_stream}")
        end = tails[self.data_stream]
        if end.is_closed:
            return Tail(end.position + bool(await self.failure()), True)
        return Tail(await self._last_end(end.position), False)

    async def _last_end(self, position: int) -> int:
        """Where the last event before a position ends; the position itself inside an event that is too large."""
        start = position
        while start > 0 and position - start <= event_messages.MAX_EVENT_BYTES:
            # One byte more, since what ends an event may lie across the cut.
            stop, start = min(start + 1, position), max(0, start - _SEARCH_BYTES)
            read = await self.store.read(self.data_stream, start, stop - start)
            found = event_messages.last_end(read.data)
            if found is not None:
                return start + found
        return 0 if position <= event_messages.MAX_EVENT_BYTES else position

    async def failure(self) -> bytes:
        """The message that tells how a closed generation ended, unless it is done."""
        read = await self.store.read(self.control_stream, 0, _TERMINAL_EVENT_BYTES)
        return event_messages.ending_message(read.data.removesuffix(SEPARATOR))
