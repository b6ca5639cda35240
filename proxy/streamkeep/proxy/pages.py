"""Pages: what is read from the log, read once for a crowd that catches up.

A page is kept for a moment when nothing can be added to it any more: more of its stream follows, or the stream is closed.
Whether somebody may read a stream, and whether it is still there, is looked up for each request before it comes here; a
page that may still grow is read anew by everybody, since what was acknowledged before a request has to be in its answer.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

from streamkeep.storage import Slice, Store
from streamkeep.storage.rules.json_messages import SEPARATOR

_KEPT_SECONDS = 5.0
_OVERHEAD_BYTES = 512

_Place: TypeAlias = tuple[int, int, int, bool]


@dataclass(slots=True)
class _Kept:
    page: Slice
    used_at: float


class Pages:
    """The log, by pages of up to so many bytes from a position on. `max_kept_bytes` bounds what is kept of it."""

    def __init__(self, store: Store, *, max_kept_bytes: int = 16 * 1024 * 1024) -> None:
        self._store = store
        self._max_kept_bytes = max_kept_bytes
        self._kept: OrderedDict[_Place, _Kept] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[_Place, asyncio.Future[None]] = {}

    def __repr__(self) -> str:
        return f"Pages({len(self._kept)}, {self._kept_bytes} bytes)"

    async def read(self, stream_id: int, position: int, max_bytes: int, *, is_message_stream: bool = False) -> Slice:
        """A slice of the log; in a message stream it holds whole messages, and at least one even if that is larger.

        Raises:
            StreamNotFound, StoreUnavailable: from the store.
        """
        place = (stream_id, position, max_bytes, is_message_stream)
        if place not in self._kept and (first := self._under_way.get(place)) is not None:
            await asyncio.wait([first])
        kept = self._kept.get(place)
        if kept is not None:
            kept.used_at = time.monotonic()
            self._kept.move_to_end(place)
            return kept.page
        if place in self._under_way:
            return await self._read(*place)
        first = self._under_way[place] = asyncio.get_running_loop().create_future()
        try:
            page = await self._read(*place)
            if page.tail.is_closed or not page.is_up_to_date:
                self._keep(place, page)
        finally:
            del self._under_way[place]
            first.set_result(None)
        return page

    def keep(self, stream_id: int, page: Slice, max_bytes: int) -> None:
        """Here is a page of a closed stream, before anybody has asked for it."""
        self._keep((stream_id, page.position, max_bytes, False), page)

    def forget(self, stream_ids: Collection[int]) -> None:
        """There is nothing to read in these streams any more."""
        for place in [place for place in self._kept if place[0] in stream_ids]:
            self._drop(place)

    def let_go(self) -> None:
        """Forget what nobody asked for lately."""
        until = time.monotonic() - _KEPT_SECONDS
        while self._kept and next(iter(self._kept.values())).used_at < until:
            self._drop(next(iter(self._kept)))

    def _keep(self, place: _Place, page: Slice) -> None:
        if place in self._kept:  # It came from elsewhere while it was read.
            self._drop(place)
        self._kept[place] = _Kept(page, time.monotonic())
        self._kept_bytes += len(page.data) + _OVERHEAD_BYTES
        while self._kept_bytes > self._max_kept_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, place: _Place) -> None:
        self._kept_bytes -= len(self._kept.pop(place).page.data) + _OVERHEAD_BYTES

    async def _read(self, stream_id: int, position: int, max_bytes: int, is_message_stream: bool) -> Slice:
        read = await self._store.read(stream_id, position, max_bytes)
        while is_message_stream and not read.data.endswith(SEPARATOR):
            end = read.data.rfind(SEPARATOR) + 1
            if end:
                return Slice(position, read.data[:end], read.tail)
            more = await self._store.read(stream_id, read.end, max_bytes)
            if not more.data:
                break
            read = Slice(position, read.data + more.data, more.tail)
        return read
