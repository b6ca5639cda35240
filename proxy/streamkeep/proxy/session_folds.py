"""Sessions as their streams make them, kept for the next request: who asks again pays for what is new, not for the whole.

A fold is a cache and nothing else. It is brought up to the stream's tail before it is given out, so it does not matter
which process wrote, nor whether this one has just started.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence

from streamkeep.proxy.errors import problem
from streamkeep.proxy.session_streams import stream_of
from streamkeep.sessions import SessionFold
from streamkeep.sessions.json_text import let_others_run
from streamkeep.sessions.reading import Reading, read_event
from streamkeep.sessions.views import Place
from streamkeep.storage import SessionKey, Store, StreamInfo
from streamkeep.storage.pauses import Pauses
from streamkeep.storage.rules.json_messages import SEPARATOR
from streamkeep.storage.rules.offsets import format_offset

_PAGE_BYTES = 256 * 1024
# Messages that are taken without a pause.
_BATCH_BYTES = 8 * 1024
_BATCH_MESSAGES = 16
# One message may be a hundred times as large.
_READ_AT_ONCE_BYTES = 64 * 1024


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

    async def viewed(self, key: SessionKey) -> SessionFold:
        """As `current`, for somebody who is to look at all messages and tool calls."""
        fold = await self.current(key)
        await make_views(fold)
        return fold

    async def kept(self, key: SessionKey) -> KeptFold:
        """A session as it stands, for somebody who follows its stream. Raises as `current`."""
        stream = await self._stream(key)
        kept = self._kept.get(key)
        if kept is None or kept.stream_id != stream.id:
            kept = KeptFold(stream.id)
        self._kept[key] = kept
        self._kept.move_to_end(key)
        await kept.read_on(self._store, stream)
        self._forget()
        return kept

    async def until(self, key: SessionKey, place: Place) -> SessionFold:
        """A session as it stood at a place in its stream: a fold of the caller's own. Raises as `current`."""
        fold, pauses = SessionFold(), Pauses()
        async for data, position in _pages(self._store, await self._stream(key), 0):
            for messages, end in _batches(position, data):
                missing = place.position - fold.position
                fold.apply(await _events(messages[:missing]), format_offset(end))
                if fold.position >= place.position:
                    return fold
                await pauses.take()
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
    """A fold, and how far its stream was read. Whoever looks at it meanwhile sees a session as it stood before its tail."""

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.position = 0
        self.fold = SessionFold()
        self._taking = asyncio.Lock()

    async def read_on(self, store: Store, stream: StreamInfo) -> None:
        """Take what lies between here and the stream's tail. Raises: StreamNotFound, StoreUnavailable."""
        async with self._taking:
            async for data, position in _pages(store, stream, self.position):
                await self._take(position, data)

    async def take(self, position: int, data: bytes) -> None:
        """Take whole messages that stand at a position of the stream, from somebody who has read them. What was taken before,
        and what lies further on, is left."""
        async with self._taking:
            await self._take(position, data)

    async def _take(self, position: int, data: bytes) -> None:
        if position > self.position:
            return
        pauses = Pauses()
        for messages, end in _batches(self.position, data[self.position - position :]):
            events = await _events(messages)
            self.position = end
            self.fold.apply(events, format_offset(end))
            await pauses.take()


async def make_views(fold: SessionFold) -> None:
    """Look at all messages and tool calls, with pauses: who does so before the next await finds them made."""
    pauses = Pauses()
    for message_id in fold.message_ids:
        fold.message(message_id)
        fold.calls_of(message_id)
        await pauses.take()


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


def _batches(position: int, data: bytes) -> Iterator[tuple[list[bytes], int]]:
    """Whole messages that stand at a position, some at a time, with the position behind these."""
    start = end = 0
    messages: list[bytes] = []
    while end < len(data):
        begin, end = end, data.index(SEPARATOR, end) + 1
        messages.append(data[begin : end - 1])
        if end == len(data) or end - start >= _BATCH_BYTES or len(messages) == _BATCH_MESSAGES:
            yield messages, position + end
            start, messages = end, []


async def _events(messages: Sequence[bytes]) -> list[Reading]:
    """What messages say. They are read beside the loop where they are large, which a single one is by itself."""

    def read() -> list[Reading]:
        return [read_event(_parsed(message)) for message in messages]

    return read() if sum(map(len, messages)) <= _READ_AT_ONCE_BYTES else await asyncio.to_thread(read)


def _parsed(message: bytes) -> object:
    """None for what nobody can read: it stands in the stream and means nothing."""
    try:
        return _DECODER.decode(message.decode())
    except (ValueError, RecursionError):
        return None


# Functions of Python's for numbers too: `int` and `float` themselves would let nobody else run.
_DECODER = json.JSONDecoder(
    object_hook=let_others_run, parse_int=lambda text: int(text), parse_float=lambda text: float(text)
)
