"""Feeds: the streams that are read live here, their newest pieces, and the readers who wait for more.

A feed keeps the newest pieces for a while, keyed by where they start, but none that the stream's only reader has. A reader takes
a piece from memory only if the piece starts exactly where the reader stands; in every other case it reads the log.

Readers who wait at one place and read in one form are a crowd: what is theirs is made once and written to all of them in the
very call that tells of it, and they move on together. Their tasks are woken for all else. Thousands are told in several turns
of the loop, so that other streams do not stand still: a crowd has a bounded size, and one that has to wait for the next turn
stays where it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from streamkeep.proxy import asgi
from streamkeep.proxy.asgi import ChunkWriter
from streamkeep.proxy.json_view import Viewer
from streamkeep.proxy.rules import event_messages, sse
from streamkeep.proxy.rules.event_messages import Held
from streamkeep.proxy.rules.sse import Encoding
from streamkeep.proxy.tallies import ReadTally
from streamkeep.storage.rules.json_messages import to_array
from streamkeep.storage.rules.offsets import format_offset

READ_BYTES = 128 * 1024
"""About how much of a stream is taken at once, from memory or from the log."""

_RETAINED_BYTES = 8 * 1024
_PIECE_OVERHEAD_BYTES = 512
_TOLD_AT_ONCE = 64
# What is done in one turn of the loop, some forty milliseconds of it. What a task does that is woken takes ten times as long as
# a write.
_WRITTEN_IN_A_TURN = 4000
_WOKEN_IN_A_TURN = 400
_CROWD_READERS = 500
# An enumeration looks a member up each time, which takes as long as encoding a chunk.
_BASE64, _TEXT = Encoding.BASE64, Encoding.TEXT

Frame = tuple[bytes, str, bytes]
"""A `data` event, the offset behind it, and what its reader holds back from then on. An empty event: everything is held back."""


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
    monotonic instant at which they were last sent something. The peers of those who are `unready` take nothing any more."""

    __slots__ = ("cursor", "encoding", "held", "number", "position", "sent_at", "unready", "writes")

    def __init__(self, place: Place) -> None:
        self.position, self.held, self.encoding, self.cursor, self.number = place
        self.sent_at = 0.0
        self.writes: dict[Reader, Callable[[bytes], object]] = {}
        self.unready: set[Reader] = set()

    def __repr__(self) -> str:
        return f"Crowd({len(self.writes)} at {self.place})"

    @property
    def place(self) -> Place:
        return self.position, self.held, self.encoding, self.cursor, self.number


News = tuple[Crowd, Piece, bytes]
"""A crowd, the piece that it is brought, and that as a chunk of its answers as it goes on the wire, b"" when all of it is held
back."""


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
            if crowd.unready and not self._thinned(crowd):
                continue
            is_at_tail = crowd.position == feed.position
            if is_at_tail and not (feed.is_closed or feed.is_gone or crowd.place in feed.crowds):
                feed.crowds[crowd.place] = crowd
            elif self._written >= _WRITTEN_IN_A_TURN and not is_at_tail:
                left.append(crowd)
            elif not self._move(feed, crowd, is_one=is_one):
                self.wake(crowd.writes)
            elif len(self._news) == _TOLD_AT_ONCE:  # A feed alone may have many: cursors are the callers' to choose.
                self.send()
        if left:
            # They are the first to be told then.
            feed.crowds = {crowd.place: crowd for crowd in left} | feed.crowds
            self.untold.append(feed)
        self._told.append(feed)

    def _thinned(self, crowd: Crowd) -> bool:
        """Leave readers whose peers take nothing to their tasks, which go on from where they are; whether any others are left."""
        unready = list(crowd.unready)
        for reader in unready:
            reader.leave_crowd()
        self.wake(unready)
        return bool(crowd.writes)

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
        """Write what there is to write."""
        deliveries = size_bytes = 0
        known_at = self._at
        for crowd, piece, chunk in self._news:
            if piece.known_at != known_at:
                # What was learned of together went out together.
                self._measure(known_at, deliveries)
                known_at, deliveries = piece.known_at, 0
            if chunk:
                for write in crowd.writes.values():
                    write(chunk)
            count = len(crowd.writes)
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
        self._written += len(crowd.writes)
        chunk = b""
        if frame:
            chunk = asgi.chunk(frame + sse.control_frame(offset, crowd.cursor, is_up_to_date=True))
            crowd.sent_at = self._at
        self._news.append((crowd, piece, chunk))
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
        while (piece := self._pieces.get(position)) is not None and size < READ_BYTES:
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

    def retains(self, size_bytes: int) -> bool:
        """Whether a piece of that size can be kept beside all that is."""
        return self.retained_bytes + _PIECE_OVERHEAD_BYTES + size_bytes <= _RETAINED_BYTES

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
        """The same in the company of all who read in one form from here on: news that is written to the peers does not end the
        wait. `writer` is ready."""
        place = (self.position, self.held, encoding, cursor, 0)
        crowds = self.feed.crowds
        while (crowd := crowds.get(place)) is not None and len(crowd.writes) >= _CROWD_READERS:
            place = (*place[:-1], place[-1] + 1)
        if crowd is None:
            crowd = crowds[place] = Crowd(place)
        crowd.writes[self] = writer.write
        writer.on_unready = self._tell_crowd
        self._crowd = crowd
        try:
            await self._woken(until)
        finally:
            writer.on_unready = None
            self.leave_crowd()

    def _tell_crowd(self) -> None:
        if self._crowd is not None:
            self._crowd.unready.add(self)

    def leave_crowd(self) -> None:
        """Stand alone where the crowd is; if it is still in one."""
        crowd, self._crowd = self._crowd, None
        if crowd is None:
            return
        self.position, self.held = crowd.position, crowd.held
        self.sent_at = max(self.sent_at, crowd.sent_at)
        del crowd.writes[self]
        crowd.unready.discard(self)
        if not crowd.writes and self.feed.crowds.get(crowd.place) is crowd:
            del self.feed.crowds[crowd.place]

    async def _woken(self, until: float) -> None:
        self.wake_at = until
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self.wake_at = float("inf")
