"""Readers and their feeds: a wake-up may come late, twice, out of order or not at all, and no byte is lost or doubled."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from streamkeep.proxy.readers import Piece, Reader, Readers, Telling
from streamkeep.proxy.rules.sse import Encoding
from streamkeep.storage import Append, GenerationKey, MemoryStore, Owner, UpstreamHead


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


async def test_news_that_is_seen_to_at_once_does_not_end_the_wait(log: Log) -> None:
    readers = Readers(log.store)
    delivered: list[list[bytes]] = []
    is_peer_slow = False

    def deliver(telling: Telling) -> bool:
        if is_peer_slow:
            return False
        delivered.append([piece.data for piece in readers.at_hand(reader)])
        return True

    with readers.reader(log.stream_id, 0, lambda: None) as reader:
        assert await take(readers, reader) == b""
        waiting = asyncio.create_task(reader.wait(time.monotonic() + 120, deliver))
        await asyncio.sleep(0)
        for data in (b"a", b"b"):
            readers.appended(log.stream_id, *await log.write(data))
        async with asyncio.timeout(30):
            while not delivered:
                await asyncio.sleep(0)
        assert delivered == [[b"a", b"b"]]
        assert not waiting.done()
        is_peer_slow = True
        readers.appended(log.stream_id, *await log.write(b"c"))
        await asyncio.wait_for(waiting, 30)
        assert await take(readers, reader) == b"c"


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
