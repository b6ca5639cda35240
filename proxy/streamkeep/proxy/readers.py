"""Readers: committed bytes, handed to everybody who waits for them.

A `Feed` exists for each stream that somebody here reads live, and for a generation that begins here: its first reader is on the
way. What it has not is read from the log, and so is all where a piece would be large. So a lost, late or doubled wake-up costs a
query and never a byte, and a slow reader holds no memory: it falls behind the feed and catches up from the log.

Streams recorded by this process are fed by its writer. For all others one refresh, woken by the store's listener and by
a slow poll, reads the log once for the whole process.

A reader subscribes first, then reads, then waits. There is no await between looking at the feed and starting to wait. News is
told once for each turn of the loop, after all that the turn brought.

Pieces of a message stream are whole messages, however the log is cut. A stream with a sliding TTL is touched for as long
as it has a feed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from streamkeep.proxy.errors import PLACE_RETRY_SECONDS, problem
from streamkeep.proxy.feeds import READ_BYTES, Feed, Piece, Reader, Telling
from streamkeep.proxy.json_view import Decoding, Viewer
from streamkeep.proxy.pages import Pages
from streamkeep.proxy.tallies import ReadTally
from streamkeep.storage import InvalidOffset, Slice, Store, StoreError, StreamGone, StreamNotFound, Tail
from streamkeep.storage.rules.json_messages import SEPARATOR

logger = logging.getLogger(__name__)

_MAX_PIECE_BYTES = 1024 * 1024
# What other processes wrote is read for many streams at once, and of each of them as much as their readers wait for.
_NEWS_BYTES = 16 * 1024
_READ_TOGETHER = 200
_POLL_SECONDS = 1.0
_TICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Keepalive:
    """How the life of a stream with a sliding TTL is prolonged while somebody reads it live."""

    touch: Callable[[], Awaitable[object]]
    every_seconds: float


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
        if not feed.readers and not feed.retains(len(data)):
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
            self.pages.keep(stream_id, Slice(0, data, Tail(final_position, True)), READ_BYTES)

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
        return await self.pages.read(feed.stream_id, position, READ_BYTES, is_message_stream=feed.is_message_stream)

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
