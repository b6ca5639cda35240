"""Readers and their feeds: a wake-up may come late, twice, out of order or not at all, and no byte is lost or doubled."""

from __future__ import annotations

import asyncio
import base64
import random
import re
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from streamkeep.proxy.asgi import ChunkWriter
from streamkeep.proxy.feeds import Piece, Reader
from streamkeep.proxy.readers import Readers
from streamkeep.proxy.rules.sse import Encoding
from streamkeep.storage import (
    Append,
    GenerationKey,
    MemoryStore,
    Owner,
    StreamAppend,
    StreamConfig,
    StreamKey,
    UpstreamHead,
)
from streamkeep.storage.appender import Appender


class Log:
    """One stream of a memory store, written past the readers."""

    def __init__(self, store: MemoryStore, owner: Owner, stream_id: int) -> None:
        self.store = store
        self.owner = owner
        self.stream_id = stream_id
        self.tail = 0

    async def write(self, data: bytes) -> tuple[int, bytes]:
        position = self.tail
        await self.store.commit(self.owner, [Append(self.stream_id, position, data)], [])
        self.tail += len(data)
        return position, data


@pytest.fixture
async def log() -> Log:
    store = MemoryStore()
    owner = await store.register_owner()
    generation = (await store.claim(owner, GenerationKey("default", "chat", "1"), b"f")).generation
    await store.start(generation, UpstreamHead(200, "text/plain"), b"f")
    return Log(store, owner, generation.data_stream)


async def take(readers: Readers, reader: Reader) -> bytes:
    return b"".join(piece.data for piece in await readers.pieces(reader))


async def test_a_piece_is_taken_from_memory_only_where_the_reader_stands(log: Log) -> None:
    readers = Readers(log.store)
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        first, second, third = [await log.write(b"%d" % number * 5) for number in range(3)]
        # The first wake-up is lost, the second doubled, the third early and again.
        readers.appended(log.stream_id, *third)
        readers.appended(log.stream_id, *second)
        readers.appended(log.stream_id, *second)
        assert await take(readers, reader) == b"000001111122222"
        readers.appended(log.stream_id, *first)
        readers.appended(log.stream_id, *third)
        assert await take(readers, reader) == b""


async def test_what_came_between_the_read_and_the_wait_is_not_missed(log: Log) -> None:
    readers = Readers(log.store)
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        assert await take(readers, reader) == b""
        readers.appended(log.stream_id, *await log.write(b"late"))
        assert await take(readers, reader) == b"late"


class Peer(asyncio.Transport):
    """Takes chunks of an answer by server-sent events in base64, and puts together what they bring; nothing while it is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.write_paused = False
        self.writer = ChunkWriter(self, self)
        self.got = b""

    def turn(self, *, is_slow: bool) -> None:
        self.write_paused = is_slow
        if is_slow:
            self.writer.tell_unready()

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.write_paused
        self.got += b"".join(base64.b64decode(found) for found in re.findall(rb"\ndata:([A-Za-z0-9+/=]+)\n", data))

    async def wait(self, reader: Reader, cursor: str = "1") -> None:
        until = time.monotonic() + 120
        if self.writer.is_ready:
            await reader.wait_in_crowd(until, Encoding.BASE64, cursor, self.writer)
        else:
            await reader.wait(until)


async def test_news_that_can_be_written_at_once_does_not_end_the_wait(log: Log) -> None:
    readers, peer = Readers(log.store), Peer()
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        assert await take(readers, reader) == b""
        waiting = asyncio.create_task(peer.wait(reader))
        await asyncio.sleep(0)
        for data in (b"a", b"b"):
            readers.appended(log.stream_id, *await log.write(data))
        async with asyncio.timeout(30):
            while not peer.got:
                await asyncio.sleep(0)
        assert peer.got == b"ab"
        assert not waiting.done()
        peer.turn(is_slow=True)
        readers.appended(log.stream_id, *await log.write(b"c"))
        await asyncio.wait_for(waiting, 30)
        assert await take(readers, reader) == b"c"
        assert not reader.feed.crowds
    assert readers.tally.delivered_bytes == 2


async def test_who_appends_alone_is_answered_before_a_crowd_is_told() -> None:
    store, peer = MemoryStore(), Peer()
    stream = (await store.create_stream(StreamKey("default", "a"), StreamConfig("text/plain"))).stream
    readers = Readers(store)
    appender = Appender(store, readers)
    work = asyncio.create_task(appender.run())
    with readers.reader(stream.id, 0, lambda: None) as reader:
        assert await take(readers, reader) == b""
        waiting = asyncio.create_task(peer.wait(reader))
        await asyncio.sleep(0)
        await appender.append(StreamAppend(stream.key, b"news", "text/plain"))
        assert (reader.feed.position, peer.got) == (4, b"")
        async with asyncio.timeout(30):
            while not peer.got:
                await asyncio.sleep(0)
        assert (peer.got, waiting.done()) == (b"news", False)
        reader.leave()
        await waiting
    work.cancel()
    await asyncio.wait([work])


async def test_thousands_are_told_in_several_turns_and_all_of_them_of_everything(log: Log) -> None:
    readers, peers = Readers(log.store), [Peer() for _ in range(9000)]
    with ExitStack() as stack:
        crowd = [stack.enter_context(readers.reader(log.stream_id, 0, lambda: None)) for _ in peers]
        assert await take(readers, crowd[0]) == b""
        waits = [asyncio.create_task(peer.wait(reader)) for peer, reader in zip(peers, crowd, strict=True)]
        await asyncio.sleep(0)
        for data in (b"a", b"b", b"c", b"d"):
            readers.appended(log.stream_id, *await log.write(data))
            before = [peer.got for peer in peers]
            await asyncio.sleep(0)
            assert 0 < sum(peer.got != got for peer, got in zip(peers, before, strict=True)) < len(peers)
        assert all(peer.got for peer in peers), "whoever was left is told first"
        async with asyncio.timeout(60):
            while not all(peer.got == b"abcd" for peer in peers):
                await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        # An end wakes them all.
        readers.closed(log.stream_id, log.tail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 0 < sum(wait.done() for wait in waits) < len(waits) / 2
        async with asyncio.timeout(60):
            await asyncio.gather(*waits)
    assert readers.tally.delivered_bytes == 4 * len(peers)


@pytest.mark.parametrize("cause", ["news", "time", "drop", "rotate"])
async def test_those_who_are_woken_are_woken_in_several_turns(log: Log, cause: str) -> None:
    readers = Readers(log.store)
    running = asyncio.create_task(readers.run())
    with ExitStack() as stack:
        alone = [stack.enter_context(readers.reader(log.stream_id, 0, lambda: None)) for _ in range(3000)]
        assert await take(readers, alone[0]) == b""
        until = time.monotonic() + (0 if cause == "time" else 120)
        waits = [asyncio.create_task(reader.wait(until)) for reader in alone]
        await asyncio.sleep(0)
        if cause == "news":
            readers.appended(log.stream_id, *await log.write(b"news"))
        elif cause == "drop":
            readers.drop([log.stream_id])
        elif cause == "rotate":
            readers.rotate()
        async with asyncio.timeout(60):
            while not any(wait.done() for wait in waits):
                await asyncio.sleep(0)
            assert sum(wait.done() for wait in waits) < len(waits) / 2
            await asyncio.gather(*waits)
    running.cancel()
    await asyncio.wait([running])


class Streams:
    """Two streams of a memory store: `crowded` gets news in each turn of the loop, and `quiet` gets news once."""

    def __init__(self, crowded: Log, quiet: Log) -> None:
        self.crowded = crowded
        self.quiet = quiet

    async def turns_until(self, readers: Readers, is_told: Callable[[], bool]) -> int:
        """Write to the quiet stream, and go on writing to the other one; how many turns pass before something holds, at most
        a hundred."""
        readers.appended(self.quiet.stream_id, *await self.quiet.write(b"once"))
        for turn in range(100):
            if is_told():
                return turn
            readers.appended(self.crowded.stream_id, *await self.crowded.write(b"."))
            await asyncio.sleep(0)
        return 100


@pytest.fixture
async def streams(log: Log) -> Streams:
    generation = (await log.store.claim(log.owner, GenerationKey("default", "chat", "2"), b"f")).generation
    await log.store.start(generation, UpstreamHead(200, "text/plain"), b"f")
    return Streams(log, Log(log.store, log.owner, generation.data_stream))


async def test_a_crowded_stream_with_news_in_each_turn_keeps_no_other_one_waiting(streams: Streams) -> None:
    readers, peer, peers = Readers(streams.crowded.store), Peer(), [Peer() for _ in range(5000)]
    with ExitStack() as stack:
        quiet = stack.enter_context(readers.reader(streams.quiet.stream_id, 0, lambda: None))
        crowd = [stack.enter_context(readers.reader(streams.crowded.stream_id, 0, lambda: None)) for _ in peers]
        assert await take(readers, quiet) == await take(readers, crowd[0]) == b""
        waits = [asyncio.create_task(one.wait(reader)) for one, reader in zip(peers, crowd, strict=True)]
        waits.append(asyncio.create_task(peer.wait(quiet)))
        await asyncio.sleep(0)
        for _ in range(3):
            readers.appended(streams.crowded.stream_id, *await streams.crowded.write(b"."))
            await asyncio.sleep(0)
        assert len({piece.known_at for piece in crowd[0].feed.pieces_from(0)}) == 3, (
            "each turn's news is learned of anew"
        )
        assert await streams.turns_until(readers, lambda: peer.got == b"once") < 5
        async with asyncio.timeout(60):
            while not all(len(one.got) == streams.crowded.tail for one in peers):
                await asyncio.sleep(0)
        for reader in (quiet, *crowd):
            reader.leave()
        await asyncio.gather(*waits)


async def test_those_who_are_to_be_woken_stand_in_line_once(streams: Streams) -> None:
    readers = Readers(streams.crowded.store)

    async def follow(reader: Reader) -> None:
        while not reader.is_gone:
            if not await take(readers, reader):
                await reader.wait(time.monotonic() + 120)

    with ExitStack() as stack:
        alone = [stack.enter_context(readers.reader(streams.crowded.stream_id, 0, lambda: None)) for _ in range(2000)]
        quiet = stack.enter_context(readers.reader(streams.quiet.stream_id, 0, lambda: None))
        assert await take(readers, quiet) == b""
        follows = [asyncio.create_task(follow(reader)) for reader in alone]
        waiting = asyncio.create_task(quiet.wait(time.monotonic() + 120))
        await asyncio.sleep(0)
        for _ in range(30):
            readers.appended(streams.crowded.stream_id, *await streams.crowded.write(b"."))
            await asyncio.sleep(0)
        assert await streams.turns_until(readers, waiting.done) < 20
        for reader in alone:
            reader.leave()
        await asyncio.gather(waiting, *follows)


async def test_a_crowd_goes_on_without_a_slow_peer_which_stays_where_it_was(log: Log) -> None:
    readers, quick, slow = Readers(log.store), Peer(), Peer()
    with (
        readers.reader(log.stream_id, 0, lambda: None) as first,
        readers.reader(log.stream_id, 0, lambda: None) as second,
    ):
        assert await take(readers, first) == await take(readers, second) == b""
        waits = [asyncio.create_task(peer.wait(reader)) for peer, reader in ((quick, first), (slow, second))]
        await asyncio.sleep(0)
        assert len(first.feed.crowds) == 1
        readers.appended(log.stream_id, *await log.write(b"both "))
        await asyncio.sleep(0)
        slow.turn(is_slow=True)
        readers.appended(log.stream_id, *await log.write(b"one "))
        await asyncio.wait_for(waits[1], 30)
        readers.appended(log.stream_id, *await log.write(b"more"))
        assert (second.position, await take(readers, second)) == (len(b"both "), b"one more")
        await asyncio.sleep(0)
        assert not waits[0].done()
        first.leave()
        await asyncio.wait_for(waits[0], 30)
        assert (quick.got, slow.got, first.position) == (b"both one more", b"both ", len(b"both one more"))
        assert not first.feed.crowds


async def test_two_crowds_that_come_to_one_place_both_go_on(log: Log) -> None:
    readers, behind, ahead = Readers(log.store), Peer(), Peer()
    with (
        readers.reader(log.stream_id, 0, lambda: None) as first,
        readers.reader(log.stream_id, len(b"a"), lambda: None) as second,
    ):
        assert await take(readers, first) == b""
        await asyncio.sleep(0)
        written = [await log.write(data) for data in (b"a", b"b")]
        waits = [asyncio.create_task(behind.wait(first)), asyncio.create_task(ahead.wait(second))]
        for wake_up in written:
            readers.appended(log.stream_id, *wake_up)
        await asyncio.wait_for(waits[1], 30)
        ahead.got += await take(readers, second)
        waits[1] = asyncio.create_task(ahead.wait(second))
        await asyncio.sleep(0)
        readers.appended(log.stream_id, *await log.write(b"c"))
        await asyncio.sleep(0)
        assert (behind.got, ahead.got) == (b"abc", b"bc")
        for reader, waiting in zip((first, second), waits, strict=True):
            reader.leave()
            await asyncio.wait_for(waiting, 30)


async def test_a_crowd_is_not_left_waiting_before_the_tail(log: Log) -> None:
    readers, peer = Readers(log.store), Peer()
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        assert await take(readers, reader) == b""
        waiting = asyncio.create_task(peer.wait(reader))
        await asyncio.sleep(0)
        first, _, third = [await log.write(data) for data in (b"told, ", b"not told, ", b"told")]
        for wake_up in (first, third):
            readers.appended(log.stream_id, *wake_up)
        await asyncio.wait_for(waiting, 30)
        while piece := await take(readers, reader):
            peer.got += piece
        assert peer.got == b"told, not told, told"


async def test_a_crowd_that_holds_all_back_was_sent_nothing(log: Log) -> None:
    readers, peer = Readers(log.store), Peer()
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        assert await take(readers, reader) == b""
        sent_at = reader.sent_at
        waiting = asyncio.create_task(reader.wait_in_crowd(time.monotonic() + 120, Encoding.TEXT, "1", peer.writer))
        await asyncio.sleep(0)
        readers.appended(log.stream_id, *await log.write("é".encode()[:1]))
        await asyncio.sleep(0)
        assert not waiting.done()
        reader.leave()
        await asyncio.wait_for(waiting, 30)
        assert (reader.position, reader.held, reader.sent_at) == (1, b"\xc3", sent_at)


async def test_peers_slow_and_quick_get_every_byte_once(log: Log) -> None:
    rng = random.Random(7)
    readers, body = Readers(log.store), b""
    peers = [Peer() for _ in range(12)]
    following: list[Reader] = []

    async def follow(peer: Peer, cursor: str) -> None:
        with readers.reader(log.stream_id, 0, lambda: None) as reader:
            following.append(reader)
            while not peer.got.endswith(b"!"):
                pieces = await readers.pieces(reader)
                if not pieces:
                    await peer.wait(reader, cursor)
                for piece in pieces:
                    await asyncio.sleep(0)
                    peer.got += piece.data

    def wake(share: float) -> None:
        """End waits, as heartbeats do."""
        for reader in following:
            if rng.random() < share:
                reader.wake()

    follows = [asyncio.create_task(follow(peer, str(number % 3))) for number, peer in enumerate(peers)]
    for _ in range(500):
        data = rng.randbytes(rng.randint(1, 30)).replace(b"!", b"?")
        body += data
        readers.appended(log.stream_id, *await log.write(data))
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        wake(0.2)
        for peer in peers:
            peer.turn(is_slow=rng.random() < 0.3)
    readers.appended(log.stream_id, *await log.write(b"!"))
    async with asyncio.timeout(60):
        while not all(task.done() for task in follows):
            wake(1)
            await asyncio.sleep(0)
    assert [peer.got for peer in peers] == [body + b"!"] * len(peers)
    await asyncio.gather(*follows)


async def test_a_stream_written_elsewhere_is_found_without_any_wake_up(log: Log) -> None:
    readers = Readers(log.store)
    task = asyncio.create_task(readers.run())
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        assert await take(readers, reader) == b""
        waiting = asyncio.create_task(reader.wait(time.monotonic() + 120))
        await asyncio.sleep(0)
        await log.write(b"elsewhere")
        await asyncio.wait_for(waiting, 30)
        assert await take(readers, reader) == b"elsewhere"
    task.cancel()
    await asyncio.wait([task])


async def test_much_news_from_elsewhere_comes_whole(log: Log) -> None:
    readers = Readers(log.store)
    task = asyncio.create_task(readers.run())
    sent = got = b""
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        assert await take(readers, reader) == b""
        for size in (1, 16 * 1024, 16 * 1024 + 1, 100_000, 7):
            sent += (await log.write(random.Random(size).randbytes(size)))[1]
            readers.streams_changed([log.stream_id])
            async with asyncio.timeout(30):
                while len(got) < len(sent):
                    got += await take(readers, reader)
                    if reader.is_up_to_date and len(got) < len(sent):
                        await reader.wait(time.monotonic() + 120)
    assert got == sent
    task.cancel()
    await asyncio.wait([task])


async def test_a_trickle_of_news_of_other_streams_does_not_put_the_poll_off(log: Log) -> None:
    readers = Readers(log.store)
    task = asyncio.create_task(readers.run())
    with readers.reader(log.stream_id, 0, lambda: None) as reader, readers.reader(10**6, 0, lambda: None):
        assert await take(readers, reader) == b""
        waiting = asyncio.create_task(reader.wait(time.monotonic() + 120))
        await asyncio.sleep(0)
        await log.write(b"quiet")
        async with asyncio.timeout(30):
            while not waiting.done():
                readers.streams_changed([10**6])
                await asyncio.sleep(0.05)
        assert await take(readers, reader) == b"quiet"
    task.cancel()
    await asyncio.wait([task])


async def test_random_wake_ups_never_lose_or_double_a_byte(log: Log) -> None:
    rng = random.Random(5)
    readers = Readers(log.store)
    held: list[tuple[int, bytes]] = []
    body = b""
    got = dict.fromkeys(range(20), b"")
    streams = {start: readers.reader(log.stream_id, start, lambda: None) for start in got}
    following = {start: context.__enter__() for start, context in streams.items()}
    for _ in range(1000):
        data = rng.randbytes(rng.randint(1, 30))
        body += data
        held.append(await log.write(data))
        while held and rng.random() < 0.5:
            wake_up = held.pop(rng.randrange(len(held)))
            readers.appended(log.stream_id, *wake_up)
        for start, reader in following.items():
            if rng.random() < 0.3:
                got[start] += await take(readers, reader)
    for start, reader in following.items():
        readers.appended(log.stream_id, *await log.write(b"!"))
        body += b"!"
        while piece := await take(readers, reader):
            got[start] += piece
        assert got[start] == body[start:]
        streams[start].__exit__(None, None, None)
    assert readers.count == 0


async def test_readers_of_one_encoding_share_one_frame() -> None:
    piece = Piece(0, b"shared")
    assert piece.shared_frame(Encoding.BASE64, b"")[0] is piece.shared_frame(Encoding.BASE64, b"")[0]
    assert piece.shared_frame(Encoding.TEXT, b"")[0] is piece.shared_frame(Encoding.TEXT, b"")[0]


class Counted(bytes):
    """Bytes that count how often text is made of them."""

    times = 0

    def __radd__(self, before: bytes) -> bytes:
        self.times += 1
        return before + bytes(self)


async def test_crowds_with_cursors_of_their_own_share_one_frame(log: Log) -> None:
    readers, peers = Readers(log.store), [Peer() for _ in range(5)]
    with ExitStack() as following:
        waits = []
        for number, peer in enumerate(peers):
            reader = following.enter_context(readers.reader(log.stream_id, 0, lambda: None))
            assert await take(readers, reader) == b""
            wait = reader.wait_in_crowd(time.monotonic() + 120, Encoding.TEXT, str(number), peer.writer)
            waits.append(asyncio.create_task(wait))
        await asyncio.sleep(0)
        assert len(reader.feed.crowds) == len(peers)
        position, written = await log.write(b"text")
        data = Counted(written)
        readers.appended(log.stream_id, position, data)
        await asyncio.sleep(0)
        assert data.times == 1
        assert len(reader.feed.crowds) == len(peers)
        assert readers.tally.delivered_bytes == len(data) * len(peers)
        readers.close()
        await asyncio.wait(waits)


async def test_a_feed_keeps_a_bounded_amount(log: Log) -> None:
    readers = Readers(log.store)
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        for _ in range(100):
            readers.appended(log.stream_id, *await log.write(b"x" * 1000))
        assert reader.feed.retained_bytes <= 8 * 1024
        got = b""
        while piece := await take(readers, reader):
            got += piece
        assert got == b"x" * 100_000


async def test_a_feed_keeps_nothing_that_its_only_reader_has(log: Log) -> None:
    readers = Readers(log.store)
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        readers.appended(log.stream_id, *await log.write(b"a"))
        assert await take(readers, reader) == b"a"
        await asyncio.sleep(0)
        assert reader.feed.retained_bytes == 0
        with readers.reader(log.stream_id, 1, lambda: None) as late:
            readers.appended(log.stream_id, *await log.write(b"b"))
            assert await take(readers, reader) == b"b"
            await asyncio.sleep(0)
            assert reader.feed.retained_bytes > 0
            assert await take(readers, late) == b"b"


async def test_what_begins_here_is_read_from_memory_from_its_first_byte(log: Log) -> None:
    readers = Readers(log.store)
    readers.recorded_here(log.stream_id, log.stream_id + 1)
    with readers.reader(log.stream_id, 0, lambda: None) as early:
        assert await take(readers, early) == b""
        readers.appended(log.stream_id, 0, b"in memory ")
        assert await take(readers, early) == b"in memory "
    readers.recorded_here(log.stream_id, log.stream_id + 1)
    readers.appended(log.stream_id, 0, b"in memory ")
    readers.appended(log.stream_id, 10, b"alone")
    with readers.reader(log.stream_id, 0, lambda: None) as first:
        assert await take(readers, first) == b"in memory alone"


@pytest.mark.parametrize("chunk_bytes", [10, 1000, 9000])
async def test_of_what_nobody_reads_no_more_is_kept_than_a_feed_retains(log: Log, chunk_bytes: int) -> None:
    readers = Readers(log.store)
    readers.recorded_here(log.stream_id, log.stream_id + 1)
    body = random.Random(8).randbytes(9000)
    for start in range(0, len(body), chunk_bytes):
        readers.appended(log.stream_id, *await log.write(body[start : start + chunk_bytes]))
    assert repr(readers) == "Readers(0 of 0 streams)"
    with readers.reader(log.stream_id, 0, lambda: None) as late:
        assert await take(readers, late) == body


async def test_who_comes_after_the_end_of_what_was_recorded_here_need_not_read_the_log(log: Log) -> None:
    readers = Readers(log.store)
    readers.recorded_here(log.stream_id, log.stream_id + 1)
    readers.appended(log.stream_id, 0, b"in memory ")
    readers.appended(log.stream_id, 10, b"alone")
    readers.closed(log.stream_id, 15)
    assert repr(readers) == "Readers(0 of 0 streams)"
    with readers.reader(log.stream_id, 0, lambda: None) as late:
        assert await take(readers, late) == b"in memory alone"
        assert late.is_at_end


async def test_what_is_recorded_elsewhere_is_read_from_the_log(log: Log) -> None:
    readers = Readers(log.store)
    readers.recorded_here(log.stream_id, log.stream_id + 1)
    readers.recorded_elsewhere((log.stream_id, log.stream_id + 1))
    assert repr(readers) == "Readers(0 of 0 streams)"
    await log.write(b"by another")
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        assert await take(readers, reader) == b"by another"


async def test_what_was_appended_at_once_is_not_sent_at_once_however_large(log: Log) -> None:
    readers = Readers(log.store)
    body = random.Random(6).randbytes(3 * 1024 * 1024)
    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        readers.appended(log.stream_id, *await log.write(body))
        assert reader.feed.retained_bytes == 0
        taken = [await take(readers, reader)]
        while piece := await take(readers, reader):
            taken.append(piece)
        assert b"".join(taken) == body
        assert max(map(len, taken)) < len(body) // 3
