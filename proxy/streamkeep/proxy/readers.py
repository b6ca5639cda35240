"""Readers: committed bytes, encoded once for each encoding, handed to everybody who waits for them.

A `Feed` exists for each stream that somebody here reads live, and for a generation that begins here: its first reader is on the way.
It keeps the newest pieces for a while, keyed by where they start, but none that the stream's only reader has. A reader takes a piece from memory only if the piece starts exactly where the reader stands; in every other
case it reads the log, and so do all where a piece would be large. So a lost, late or doubled wake-up costs a query and never a byte, and a slow reader holds no
memory: it falls behind the feed and catches up from the log.

Streams recorded by this process are fed by its writer. For all others one refresh, woken by the store's listener and by
a slow poll, reads the log once for the whole process.

A reader subscribes first, then reads, then waits. There is no await between looking at the feed and starting to wait.

News is told once for each turn of the loop, after all that the turn brought. Readers who wait at one place and read in one
form are a crowd: what is theirs is made once and written to all of them in the very call that tells of it, and they move on
together. Their tasks are woken for all else. Thousands are told in several turns, so that other streams do not stand still: a
crowd has a bounded size, and one that has to wait for the next turn stays where it is.

Pieces of a message stream are whole messages, however the log is cut. A stream with a sliding TTL is touched for as long
as it has a feed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from streamkeep.proxy import asgi
from streamkeep.proxy.asgi import ChunkWriter
from streamkeep.proxy.errors import PLACE_RETRY_SECONDS, problem
from streamkeep.proxy.json_view import Decoding, Viewer
from streamkeep.proxy.pages import Pages
from streamkeep.proxy.rules import event_messages, sse
from streamkeep.proxy.rules.event_messages import Held
from streamkeep.proxy.rules.sse import Encoding
from streamkeep.proxy.tallies import ReadTally
from streamkeep.storage import InvalidOffset, Slice, Store, StoreError, StreamGone, StreamNotFound, Tail
from streamkeep.storage.rules.json_messages import SEPARATOR, to_array
from streamkeep.storage.rules.offsets import format_offset

logger = logging.getLogger(__name__)

_RETAINED_BYTES = 8 * 1024
_PIECE_OVERHEAD_BYTES = 512
_MAX_PIECE_BYTES = 1024 * 1024
_READ_BYTES = 128 * 1024
# What other processes wrote is read for many streams at once, and of each of them as much as their readers wait for.
_NEWS_BYTES = 16 * 1024
_READ_TOGETHER = 200
_TOLD_AT_ONCE = 64
# What is done in one turn of the loop, some forty milliseconds of it. What a task does that is woken takes ten times as long as
# a write.
_WRITTEN_IN_A_TURN = 4000
_WOKEN_IN_A_TURN = 400
_CROWD_READERS = 500
_POLL_SECONDS = 1.0
_TICK_SECONDS = 1.0
# An enumeration looks a member up each time, which takes as long as encoding a chunk.
_BASE64, _TEXT = Encoding.BASE64, Encoding.TEXT


Frame = tuple[bytes, str, bytes]
"""A `data` event, the offset behind it, and what its reader holds back from then on. An empty event: everything is held back."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How the life of a stream with a sliding TTL is prolonged while somebody reads it live."""

    touch: Callable[[], Awaitable[object]]
    every_seconds: float


class Piece:
    """Committed bytes from `start` to `end`, with the frames that readers of each encoding share. `known_at` is the
    monotonic instant at which this process learned that they are committed; 0 for bytes read from the log.

    In a piece of the JSON view `data` are the messages that a reader who comes to `end` has got.
    """

    __slots__ = ("_frames", "_viewed", "data", "end", "known_at", "start")

    def __init__(self, start: int, data: bytes, *, end: int | None = None, known_at: float = 0.0) -> None:
        self.start = start
        self.end = start + len(data) if end is None else end
        self.data = data
        self.known_at = known_at
        self._frames: dict[tuple[Encoding, bytes], Frame] | None = None
        self._viewed: dict[Held, tuple[Piece | None, Held]] | None = None

    def viewed(self, held: Held) -> tuple[Piece | None, Held]:
        """The messages for readers of the JSON view who hold back `held`, if there are any, and what they hold then."""
        if self._viewed is None:
            self._viewed = {}
        found = self._viewed.get(held)
        if found is None:
            messages, rest = event_messages.decode(held, self.data)
            piece = Piece(held.position, messages, end=rest.position, known_at=self.known_at) if messages else None
            found = self._viewed[held] = (piece, rest)
        return found

    def shared_frame(self, encoding: Encoding, held: bytes) -> Frame:
        """As `frame`, made once for all who ask."""
        if self._frames is None:
            self._frames = {}
        key = (encoding, held)
        found = self._frames.get(key)
        if found is None:
            found = self._frames[key] = self.frame(encoding, held)
        return found

    def frame(self, encoding: Encoding, held: bytes) -> Frame:
        """The `data` event for readers that hold back `held` before this piece."""
        if encoding is _BASE64:
            offset = format_offset(self.end)
            return sse.base64_frame(self.data, offset), offset, b""
        if encoding is _TEXT:
            text, rest = sse.split_text(held + self.data)
            offset = format_offset(self.end - len(rest))
            return (sse.data_frame(text, offset) if text else b""), offset, rest
        offset = format_offset(self.end)
        if encoding is Encoding.JSON:
            return sse.data_frame(sse.json_payload(self.data), offset), offset, b""
        return sse.base64_frame(to_array(self.data), offset), offset, b""


Place = tuple[int, bytes, Encoding, str, int]
"""Where readers stand in a stream, what they hold back, the encoding and the cursor that they read with, and the number of their
crowd among those of which all that is the same."""


class Crowd:
    """Readers of one feed who wait at one place, and so get the same from then on; with the ways to write to them, and the
    monotonic instant at which they were last sent something."""

    __slots__ = ("cursor", "encoding", "held", "number", "position", "sent_at", "writers")

    def __init__(self, place: Place) -> None:
        self.position, self.held, self.encoding, self.cursor, self.number = place
        self.sent_at = 0.0
        self.writers: dict[Reader, ChunkWriter] = {}

    def __repr__(self) -> str:
        return f"Crowd({len(self.writers)} at {self.place})"

    @property
    def place(self) -> Place:
        return self.position, self.held, self.encoding, self.cursor, self.number


News = tuple[Crowd, Piece, bytes, bytes]
"""A crowd, the piece that it is brought, and that as a chunk of its answers as it goes on the wire, b"" when all of it is held
back; and what the crowd held back before."""


class Telling:
    """One telling of the readers of some feeds. What a crowd gets is made once, and what some dozens of crowds get goes out in
    a row: each system call drives all else out of the processor's caches.

    What would take too long is left to the next one: `asleep` are readers that are to be woken, `untold` feeds with crowds that
    stay where they were. Only of the first of these some may have been told.
    """

    def __init__(self, tally: ReadTally) -> None:
        self.asleep: dict[Reader, None] = {}
        self.untold: list[Feed] = []
        self._at = time.monotonic()
        self._tally = tally
        self._told: list[Feed] = []
        self._news: list[News] = []
        self._written = 0
        self._woken = 0

    def tell(self, feed: Feed) -> None:
        """There may be news for everybody who reads here."""
        if feed.alone:
            self.wake(feed.alone)
        crowds, feed.crowds = feed.crowds, {}
        is_one = len(crowds) == 1
        left: list[Crowd] = []
        for crowd in crowds.values():
            is_at_tail = crowd.position == feed.position
            if is_at_tail and not (feed.is_closed or feed.is_gone or crowd.place in feed.crowds):
                feed.crowds[crowd.place] = crowd
            elif self._written >= _WRITTEN_IN_A_TURN and not is_at_tail:
                left.append(crowd)
            elif not self._move(feed, crowd, is_one=is_one):
                self.wake(crowd.writers)
            elif len(self._news) == _TOLD_AT_ONCE:  # A feed alone may have many: cursors are the callers' to choose.
                self.send()
        if left:
            # They are the first to be told then.
            feed.crowds = {crowd.place: crowd for crowd in left} | feed.crowds
            self.untold.append(feed)
        self._told.append(feed)

    def wake(self, readers: Iterable[Reader]) -> None:
        """End the waits of readers, or of some of them. Whoever does not wait will look for news before he does."""
        for reader in readers:
            if not reader.is_waiting:
                continue
            if self._woken < _WOKEN_IN_A_TURN:
                self._woken += 1
                reader.wake()
            else:
                self.asleep[reader] = None

    def send(self) -> None:
        """Write what there is to write. A peer that takes nothing now is left to its reader's task, which goes on from where
        it was."""
        slow: list[Reader] = []
        deliveries = size_bytes = 0
        known_at = self._at
        for crowd, piece, chunk, held in self._news:
            if piece.known_at != known_at:
                # What was learned of together went out together.
                self._measure(known_at, deliveries)
                known_at, deliveries = piece.known_at, 0
            if chunk:
                for reader, writer in crowd.writers.items():
                    if not writer.write(chunk):
                        slow.append(reader)
                if slow:
                    for reader in slow:
                        reader.leave_crowd()
                        reader.position, reader.held = piece.start, held
                        reader.wake()
                    slow.clear()
            count = len(crowd.writers)
            deliveries += count
            size_bytes += (piece.end - piece.start) * count
        self._tally.delivered_bytes += size_bytes
        self._measure(known_at, deliveries)
        for feed in self._told:
            feed.let_go()
        self._news.clear()
        self._told.clear()

    def _measure(self, known_at: float, deliveries: int) -> None:
        if deliveries:
            self._tally.lag_seconds.observe(time.monotonic() - known_at, deliveries)

    def _move(self, feed: Feed, crowd: Crowd, *, is_one: bool) -> bool:
        """Have a crowd brought to the tail. False: its readers' tasks must see to it, since memory has nothing or not all of
        that, or there is an end, or others came before them to where it would stand. `is_one`: the feed has no other crowd."""
        piece = None if feed.is_gone or feed.is_closed else feed.piece_from(crowd.position)
        # Whoever waits before the tail is not told of what stands there already.
        if piece is None or piece.end != feed.position:
            return False
        # Crowds that differ in their cursors alone get one frame; where there is one crowd, nobody else would ask for it.
        make = piece.frame if is_one else piece.shared_frame
        frame, offset, held = make(crowd.encoding, crowd.held)
        place = (piece.end, held, crowd.encoding, crowd.cursor, crowd.number)
        if place in feed.crowds:
            return False
        feed.crowds[place] = crowd
        self._written += len(crowd.writers)
        chunk = b""
        if frame:
            chunk = asgi.chunk(frame + sse.control_frame(offset, crowd.cursor, is_up_to_date=True))
            crowd.sent_at = self._at
        self._news.append((crowd, piece, chunk, crowd.held))
        crowd.position, crowd.held = piece.end, held
        return True


class Feed:
    """What this process knows of one stream that is read live here: its tail's `position`, None until somebody looked; whether it
    `is_closed` there; and `is_gone` when the store no longer has it. Of its readers some wait in `crowds`, others `alone`."""

    __slots__ = (
        "_pieces",
        "alone",
        "crowds",
        "is_closed",
        "is_gone",
        "is_message_stream",
        "keeper",
        "position",
        "readers",
        "retained_bytes",
        "stream_id",
    )

    def __init__(self, stream_id: int, *, is_message_stream: bool) -> None:
        self.stream_id = stream_id
        self.is_message_stream = is_message_stream
        self.keeper: asyncio.Task[None] | None = None
        self.position: int | None = None
        self.is_closed = False
        self.is_gone = False
        self.readers: set[Reader] = set()
        self.alone: set[Reader] = set()
        self.crowds: dict[Place, Crowd] = {}
        self._pieces: dict[int, Piece] = {}
        self.retained_bytes = 0

    def __repr__(self) -> str:
        return (
            f"Feed({self.stream_id}, position={self.position}, is_closed={self.is_closed}, readers={len(self.readers)})"
        )

    def pieces_from(self, position: int) -> list[Piece]:
        """The pieces in memory that follow each other from a position on, up to about a read's worth."""
        found: list[Piece] = []
        size = 0
        while (piece := self._pieces.get(position)) is not None and size < _READ_BYTES:
            found.append(piece)
            position = piece.end
            size += len(piece.data)
        return found

    def piece_from(self, position: int) -> Piece | None:
        """What is in memory from a position on as one piece, up to about a read's worth."""
        piece = self._pieces.get(position)
        if piece is None or piece.end == self.position:
            return piece
        data = b"".join(piece.data for piece in self.pieces_from(position))
        return Piece(position, data, known_at=piece.known_at)

    def add(self, piece: Piece) -> None:
        pieces = self._pieces
        replaced = pieces.pop(piece.start, None)
        if replaced is not None:
            self.retained_bytes -= len(replaced.data) + _PIECE_OVERHEAD_BYTES
        pieces[piece.start] = piece
        self.retained_bytes += len(piece.data) + _PIECE_OVERHEAD_BYTES
        while self.retained_bytes > _RETAINED_BYTES and len(pieces) > 1:
            oldest = pieces.pop(next(iter(pieces)))
            self.retained_bytes -= len(oldest.data) + _PIECE_OVERHEAD_BYTES
        self.see(piece.end)

    def let_go(self) -> None:
        """Forget pieces that nobody waits for: the only reader has them. A crowd's are kept for those who lag or come back."""
        if len(self.readers) == 1:
            (reader,) = self.readers
            if reader.reached == self.position:
                self._pieces.clear()
                self.retained_bytes = 0

    def see(self, position: int, *, is_closed: bool = False) -> bool:
        """Learn of a tail; it never goes back. Returns whether it is news."""
        is_further = self.position is None or position > self.position
        if not is_further and is_closed <= self.is_closed:
            return False
        if is_further:
            self.position = position
        self.is_closed |= is_closed
        return True


class Reader:
    """One connected reader: where it stands in the log and what it holds back, but for the time that it waits in a crowd;
    and how it waits. `viewer` makes messages of what it reads. `sent_at` is when the peer was last sent something,
    `sending_since` is set while it takes no bytes; `is_steady` says that the peer cannot reconnect and so is not told to."""

    __slots__ = (
        "_crowd",
        "_waiter",
        "feed",
        "held",
        "is_gone",
        "is_steady",
        "position",
        "sending_since",
        "sent_at",
        "stop",
        "viewer",
        "wake_at",
    )

    def __init__(
        self,
        feed: Feed,
        position: int,
        stop: Callable[[], None],
        *,
        is_steady: bool = False,
        viewer: Viewer | None = None,
    ) -> None:
        self.feed = feed
        self.position = position
        self.is_steady = is_steady
        self.viewer = viewer
        self.held = b""
        self.is_gone = False
        self.sending_since: float | None = None
        self.sent_at = time.monotonic()
        self.wake_at = float("inf")
        self.stop = stop
        self._waiter: asyncio.Future[None] | None = None
        self._crowd: Crowd | None = None

    @property
    def reached(self) -> int:
        """Where it stands, in a crowd too."""
        return self.position if self._crowd is None else self._crowd.position

    @property
    def resume_position(self) -> int:
        """Where the peer would go on."""
        return self.position if self.viewer is None else self.viewer.position

    @property
    def is_up_to_date(self) -> bool:
        tail = self.feed.position
        return tail is not None and self.position >= tail

    @property
    def is_at_end(self) -> bool:
        """Whether the stream is closed, and all of it was taken."""
        if not self.feed.is_closed or not self.is_up_to_date:
            return False
        return self.viewer is None or self.viewer.final is not None

    @property
    def is_waiting(self) -> bool:
        """Whether it waits, and was not woken yet."""
        return self._waiter is not None and not self._waiter.done()

    def wake(self) -> None:
        """There may be news: end the wait."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def leave(self) -> None:
        """The peer is gone: end the wait."""
        self.is_gone = True
        self.wake()

    async def wait(self, until: float) -> None:
        """Wait for news of the stream, for `leave`, or for a monotonic instant (checked once a second)."""
        self.feed.alone.add(self)
        try:
            await self._woken(until)
        finally:
            self.feed.alone.discard(self)

    async def wait_in_crowd(self, until: float, encoding: Encoding, cursor: str, writer: ChunkWriter) -> None:
        """The same in the company of all who read in one form from here on: what news can be written to the peers at once
        does not end the wait."""
        place = (self.position, self.held, encoding, cursor, 0)
        crowds = self.feed.crowds
        while (crowd := crowds.get(place)) is not None and len(crowd.writers) >= _CROWD_READERS:
            place = (*place[:-1], place[-1] + 1)
        if crowd is None:
            crowd = crowds[place] = Crowd(place)
        crowd.writers[self] = writer
        self._crowd = crowd
        try:
            await self._woken(until)
        finally:
            self.leave_crowd()

    def leave_crowd(self) -> None:
        """Stand alone where the crowd is; if it is still in one."""
        crowd, self._crowd = self._crowd, None
        if crowd is None:
            return
        self.position, self.held = crowd.position, crowd.held
        self.sent_at = max(self.sent_at, crowd.sent_at)
        del crowd.writers[self]
        if not crowd.writers and self.feed.crowds.get(crowd.place) is crowd:
            del self.feed.crowds[crowd.place]

    async def _woken(self, until: float) -> None:
        self.wake_at = until
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self.wake_at = float("inf")


class Readers:
    """Every live reader of this process, and the feeds that they share. An audience of the writer and a listener of
    the store; `run` does the shared waiting.

    `stall_seconds`: a peer that takes no byte for so long is cut off, without an end mark. `max_readers`: how many may be
    here at once.
    """

    def __init__(self, store: Store, *, stall_seconds: float = 30.0, max_readers: int = 10_000) -> None:
        self.count = 0
        self.tally = ReadTally()
        self.decoding = Decoding()
        self.pages = Pages(store)
        self._store = store
        self._stall_seconds = stall_seconds
        self._max_readers = max_readers
        self._feeds: dict[int, Feed] = {}
        self._recorded_here: set[int] = set()
        self._stale: set[int] = set()
        self._untold: dict[Feed, None] = {}
        self._asleep: dict[Reader, None] = {}
        self._known_at = 0.0
        self._has_news = False
        self._refresh = asyncio.Event()
        self._is_closed = False
        self._steady_count = 0
        self._steady_left = asyncio.Event()

    def __repr__(self) -> str:
        return f"Readers({self.count} of {len(self._feeds)} streams)"

    def of(self, stream_id: int) -> int:
        """How many read a stream live here."""
        feed = self._feeds.get(stream_id)
        return 0 if feed is None else len(feed.readers)

    def check_room(self) -> None:
        """Raises: ApiError (503), there are as many readers as there may be."""
        if self.count >= self._max_readers:
            raise problem(
                503, "overloaded", "this process has as many readers as it may", retry_after=PLACE_RETRY_SECONDS
            )

    @contextmanager
    def reader(
        self,
        stream_id: int,
        position: int,
        stop: Callable[[], None],
        *,
        is_message_stream: bool = False,
        keepalive: Keepalive | None = None,
        is_steady: bool = False,
        viewer: Viewer | None = None,
    ) -> Iterator[Reader]:
        """Subscribe at a position of the log. `stop` cuts the connection of a peer that takes no bytes.

        Raises:
            ApiError: as `check_room` does.
        """
        self.check_room()
        feed = self._feeds.get(stream_id)
        if feed is None or feed.is_gone:
            feed = self._feeds[stream_id] = Feed(stream_id, is_message_stream=is_message_stream)
        if keepalive is not None and feed.keeper is None:
            feed.keeper = asyncio.create_task(_keep_alive(feed, keepalive, self._end))
        reader = Reader(feed, position, stop, is_steady=is_steady, viewer=viewer)
        feed.readers.add(reader)
        self.count += 1
        self._steady_count += is_steady
        if self._is_closed:
            reader.leave()
        try:
            yield reader
        finally:
            feed.readers.discard(reader)
            self.count -= 1
            self._steady_count -= is_steady
            if not self._steady_count:
                self._steady_left.set()
            if not feed.readers:
                if feed.keeper is not None:
                    feed.keeper.cancel()
                if self._feeds.get(stream_id) is feed:
                    del self._feeds[stream_id]

    async def pieces(self, reader: Reader) -> list[Piece]:
        """Everything at hand from the reader's position on, from memory or else one read of the log; [] at the tail.

        Raises:
            InvalidOffset: the reader stands beyond the tail.
            StreamNotFound, StoreUnavailable: from the store.
        """
        found = await self._log_pieces(reader)
        if reader.viewer is None:
            return found
        viewed = await _viewed(reader, reader.viewer, found)
        while found and not viewed and not reader.is_gone:
            found = await self._log_pieces(reader)
            viewed = await _viewed(reader, reader.viewer, found)
        return viewed

    async def _log_pieces(self, reader: Reader) -> list[Piece]:
        feed, position = reader.feed, reader.position
        found = self.at_hand(reader)
        if not found and feed.position != position:
            read = await self._read(feed, position)
            if read.tail.position < position:
                raise InvalidOffset("the offset is beyond the tail")
            self._see(feed, read.tail)
            if read.data:
                found.append(Piece(position, read.data))
                reader.position = read.end
        return found

    def at_hand(self, reader: Reader) -> list[Piece]:
        """The pieces in memory that a reader of the log comes to next; it stands behind them then."""
        found = reader.feed.pieces_from(reader.position)
        if found:
            reader.position = found[-1].end
        return found

    def delivering(self, pieces: Sequence[Piece], *, since: float) -> None:
        """Some pieces go to the socket of a reader that has followed their stream since then."""
        oldest = pieces[0]
        self.tally.delivered_bytes += pieces[-1].end - oldest.start
        if oldest.known_at > since:
            self.tally.lag_seconds.observe(time.monotonic() - oldest.known_at)

    def recorded_here(self, data_stream: int, control_stream: int) -> None:
        """The writer of this process feeds these streams, which are empty, from now on; the slow poll may leave them out.

        Whoever had them made is about to read the data, so these are kept until there is more than a feed retains.
        """
        self._recorded_here.update((data_stream, control_stream))
        if data_stream not in self._feeds:
            feed = self._feeds[data_stream] = Feed(data_stream, is_message_stream=False)
            feed.see(0)

    def recorded_elsewhere(self, stream_ids: Collection[int]) -> None:
        self._recorded_here.difference_update(stream_ids)
        for stream_id in stream_ids:
            if not self.of(stream_id):
                self._feeds.pop(stream_id, None)
        self.streams_changed(stream_ids)

    def drop(self, stream_ids: Collection[int]) -> None:
        """There is nothing to read in these streams: end those who wait for it."""
        self.pages.forget(stream_ids)
        for stream_id in stream_ids:
            feed = self._feeds.get(stream_id)
            if feed is not None:
                self._end(feed)

    def rotate(self) -> None:
        """Tell live readers to reconnect: those that are here now and can, and not those that come later."""
        self._dismiss(lambda reader: not reader.is_steady)

    async def steady_to_leave(self) -> None:
        """Return when nobody reads here who cannot reconnect."""
        while self._steady_count:
            self._steady_left.clear()
            await self._steady_left.wait()

    def close(self) -> None:
        """The last call of a process that ends: later readers get what there is, and are told to reconnect too."""
        self._is_closed = True
        self._dismiss(lambda reader: True)

    def _dismiss(self, is_meant: Callable[[Reader], bool]) -> None:
        meant = [reader for feed in self._feeds.values() for reader in feed.readers if is_meant(reader)]
        for reader in meant:
            reader.is_gone = True
        self._wake(meant)

    def _end(self, feed: Feed) -> None:
        feed.is_gone = True
        self._tell(feed)

    def _wake(self, readers: Sequence[Reader]) -> None:
        """End the waits of readers in the next turns of the loop."""
        if readers:
            self._tell_soon()
            self._asleep.update(dict.fromkeys(readers))

    def _see(self, feed: Feed, tail: Tail) -> None:
        if feed.see(tail.position, is_closed=tail.is_closed):
            self._tell(feed)

    def _tell(self, feed: Feed) -> None:
        if not self._has_news:
            self._has_news = True
            self._known_at = time.monotonic()
            self._tell_soon()
        self._untold[feed] = None

    def _tell_soon(self) -> None:
        if not (self._untold or self._asleep):
            asyncio.get_running_loop().call_soon(self._tell_all)

    def _tell_all(self) -> None:
        untold, self._untold = self._untold, {}
        asleep, self._asleep = self._asleep, {}
        self._has_news = False
        telling = Telling(self.tally)
        telling.wake(asleep)
        for feed in untold:
            telling.tell(feed)
        telling.send()
        if telling.untold or telling.asleep:
            self._tell_soon()
            # A crowded stream with news in each turn would otherwise keep all that stand behind it waiting for ever.
            self._untold.update(dict.fromkeys(telling.untold[1:] + telling.untold[:1]))
            self._asleep.update(telling.asleep)

    # Audience of the writer

    def appended(self, stream_id: int, position: int, data: bytes) -> None:
        feed = self._feeds.get(stream_id)
        if feed is None:
            return
        if not feed.readers and feed.retained_bytes + _PIECE_OVERHEAD_BYTES + len(data) > _RETAINED_BYTES:
            del self._feeds[stream_id]  # Who comes later reads the log.
        elif len(data) <= _MAX_PIECE_BYTES:
            self._tell(feed)
            feed.add(Piece(position, data, known_at=self._known_at))
        else:
            # Kept and sent as one, it would cost each feed as much, and each reader who is slow.
            self._see(feed, Tail(position + len(data), False))

    def closed(self, stream_id: int, final_position: int) -> None:
        self._recorded_here.discard(stream_id)
        feed = self._feeds.get(stream_id)
        if feed is None:
            return
        if feed.readers:
            self._see(feed, Tail(final_position, True))
            return
        del self._feeds[stream_id]
        data = b"".join(piece.data for piece in feed.pieces_from(0))
        if len(data) == final_position:  # All of it: its reader is late, and no more will be to read.
            self.pages.keep(stream_id, Slice(0, data, Tail(final_position, True)), _READ_BYTES)

    # Listener of the store

    def streams_changed(self, stream_ids: Collection[int] | None) -> None:
        changed = self._feeds.keys() if stream_ids is None else self._feeds.keys() & set(stream_ids)
        if changed:
            self._stale.update(changed)
            self._refresh.set()

    # Background work

    async def run(self) -> None:
        """Refresh what other processes feed, wake readers whose time has come, cut those that stall."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._refresh_for_ever())
            tasks.create_task(self._tick_for_ever())

    async def _refresh_for_ever(self) -> None:
        next_poll_at = time.monotonic() + _POLL_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, next_poll_at - time.monotonic())):
                    await self._refresh.wait()
            self._refresh.clear()
            # However much news there is of others: what nobody told us of is looked at in time.
            if time.monotonic() >= next_poll_at:
                next_poll_at = time.monotonic() + _POLL_SECONDS
                self._stale.update(self._feeds.keys() - self._recorded_here)
            stale, self._stale = self._stale & self._feeds.keys(), set()
            if not stale:
                continue
            try:
                await self._refresh_feeds(stale)
            except StoreError as exc:
                self._stale.update(stale)
                logger.warning("live streams could not be refreshed: %s", type(exc).__name__)

    async def _refresh_feeds(self, stream_ids: Collection[int]) -> None:
        for stream_id, news in (await self._news(stream_ids)).items():
            feed = self._feeds.get(stream_id)
            if feed is None:
                continue
            if news is None:
                self._end(feed)
                continue
            data = news.data
            if feed.is_message_stream:
                data = data[: data.rfind(SEPARATOR) + 1]
            if data and feed.position == news.position:
                self._tell(feed)
                feed.add(Piece(news.position, data, known_at=self._known_at))
            self._see(feed, news.tail)

    async def _news(self, stream_ids: Collection[int]) -> dict[int, Slice | None]:
        """What stands behind the place that each feed knows of, up to a bound: more than that its readers take from the log
        themselves. Only the tails of streams that nobody followed so far, or that are recorded here; None of those that are gone."""
        known = {
            stream_id: feed.position for stream_id in stream_ids if (feed := self._feeds.get(stream_id)) is not None
        }
        followed = [
            (stream_id, position)
            for stream_id, position in known.items()
            if position is not None and stream_id not in self._recorded_here
        ]
        news: dict[int, Slice | None] = dict.fromkeys(known)
        for start in range(0, len(followed), _READ_TOGETHER):
            news |= await self._store.read_each(dict(followed[start : start + _READ_TOGETHER]), _NEWS_BYTES)
        if others := known.keys() - dict(followed).keys():
            tails = await self._store.tails(others)
            news |= {stream_id: Slice(tail.position, b"", tail) for stream_id, tail in tails.items()}
        return news

    async def _read(self, feed: Feed, position: int) -> Slice:
        return await self.pages.read(feed.stream_id, position, _READ_BYTES, is_message_stream=feed.is_message_stream)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.pages.let_go()
            now = time.monotonic()
            due: list[Reader] = []
            for feed in list(self._feeds.values()):
                for reader in list(feed.readers):
                    if reader.wake_at <= now:
                        due.append(reader)
                    elif reader.sending_since is not None and now - reader.sending_since > self._stall_seconds:
                        self.tally.cut_off += 1
                        reader.stop()
            self._wake(due)


async def _viewed(reader: Reader, viewer: Viewer, pieces: list[Piece]) -> list[Piece]:
    """What pieces of the log are in the JSON view; behind the last of a closed stream comes how it ended."""
    found: list[Piece] = []
    for piece in pieces:
        messages, viewer.held = await viewer.decoded(len(piece.data), piece.viewed)
        if messages is not None:
            found.append(messages)
    if reader.feed.is_closed and reader.is_up_to_date and viewer.final is None:
        start = viewer.position
        last = await viewer.finish()
        if last:
            found.append(Piece(start, last, end=viewer.position))
    return found


async def _keep_alive(feed: Feed, keepalive: Keepalive, end: Callable[[Feed], None]) -> None:
    while not feed.is_gone:
        await asyncio.sleep(keepalive.every_seconds)
        try:
            await keepalive.touch()
        except (StreamNotFound, StreamGone):
            end(feed)
        except StoreError as exc:
            logger.warning("a stream with live readers could not be touched: %s", type(exc).__name__)
