"""Sessions as their streams make them, kept for the next request: who asks again pays for what is new, not for the whole.

A fold is a cache and nothing else. It is brought up to the stream's tail before it is given out, so it does not matter
which process wrote, nor whether this one has just started.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator

from streamkeep.proxy.errors import problem
from streamkeep.sessions import SessionFold
from streamkeep.sessions.views import Place
from streamkeep.storage import SessionKey, Store, StreamInfo, StreamKey
from streamkeep.storage.rules.json_messages import SEPARATOR
from streamkeep.storage.rules.offsets import format_offset

_PAGE_BYTES = 256 * 1024


def stream_of(key: SessionKey) -> StreamKey:
    """The stream in which a session is written."""
    return StreamKey(key.tenant, f"sessions/{key.id}")


class SessionFolds:
    """The folds of those sessions that were asked for last; at most `max_folds`, of streams of `max_bytes` together."""

    def __init__(self, store: Store, *, max_folds: int = 500, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._store = store
        self._max_folds = max_folds
        self._max_bytes = max_bytes
        self._kept: OrderedDict[SessionKey, KeptFold] = OrderedDict()

    def __repr__(self) -> str:
        return f"SessionFolds({len(self._kept)} of {sum(one.position for one in self._kept.values())} bytes)"

    async def current(self, key: SessionKey) -> SessionFold:
        """A session as it stands. It belongs to everybody: look at it before the next await, and change nothing.

        Raises:
            StreamNotFound, StreamGone: there is none.
            ApiError: 409, there is another kind of stream.
        """
        return (await self.kept(key)).fold

    async def kept(self, key: SessionKey) -> KeptFold:
        """A session as it stands, for somebody who follows its stream. Raises as `current`."""
        stream = await self._stream(key)
        kept = self._kept.get(key)
        if kept is None or kept.stream_id != stream.id:
            kept = KeptFold(stream.id)
        self._kept[key] = kept
        self._kept.move_to_end(key)
        async with kept.lock:
            async for data, position in _pages(self._store, stream, kept.position):
                kept.take(position, data)
        self._forget()
        return kept

    async def until(self, key: SessionKey, place: Place) -> SessionFold:
        """A session as it stood at a place in its stream: a fold of the caller's own. Raises as `current`."""
        fold = SessionFold()
        async for data, position in _pages(self._store, await self._stream(key), 0):
            missing = place.position - fold.position
            fold.apply(_events(data)[:missing], format_offset(position + len(data)))
            if fold.position >= place.position:
                break
        return fold

    async def _stream(self, key: SessionKey) -> StreamInfo:
        stream = await self._store.stream(stream_of(key), is_touched=False)
        if not stream.is_message_stream:
            raise problem(409, "not_a_session", "the stream of this session is not one of JSON")
        return stream

    def _forget(self) -> None:
        held_bytes = sum(one.position for one in self._kept.values())
        while len(self._kept) > 1 and (len(self._kept) > self._max_folds or held_bytes > self._max_bytes):
            _, dropped = self._kept.popitem(last=False)
            held_bytes -= dropped.position


class KeptFold:
    """A fold, and how far its stream was read. One reads at a time; others may hand it what they have read."""

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.position = 0
        self.fold = SessionFold()
        self.lock = asyncio.Lock()

    def take(self, position: int, data: bytes) -> None:
        """Whole messages that stand at a position of the stream. What was taken before, and what lies further on, is left."""
        new = data[max(self.position - position, 0) :]
        if position <= self.position and new:
            self.position += len(new)
            self.fold.apply(_events(new), format_offset(self.position))


async def _pages(store: Store, stream: StreamInfo, position: int) -> AsyncIterator[tuple[bytes, int]]:
    """The messages of a stream from a position to its tail, page by page, with the position where each page begins."""
    size_bytes = _PAGE_BYTES
    while position < stream.tail.position:
        data = (await store.read(stream.id, position, size_bytes)).data
        whole, separator, _ = data.rpartition(SEPARATOR)
        if not separator:
            # One message is larger than that.
            size_bytes *= 2
            continue
        yield whole + separator, position
        position += len(whole) + 1
        size_bytes = _PAGE_BYTES


def _events(data: bytes) -> list[object]:
    return [_parsed(message) for message in data.split(SEPARATOR)[:-1]]


def _parsed(message: bytes) -> object:
    """None for what nobody can read: it stands in the stream and means nothing."""
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        return None
