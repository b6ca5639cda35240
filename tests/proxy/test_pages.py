"""Pages of the log: read once for a crowd where they cannot change, and anew wherever they can."""

from __future__ import annotations

import asyncio

import pytest

from streamkeep.proxy.pages import Pages
from streamkeep.storage import (
    DEFAULT_TENANT,
    MemoryStore,
    Slice,
    StoreUnavailable,
    StreamAppend,
    StreamConfig,
    StreamInfo,
    StreamKey,
    Tail,
)


class CountingStore(MemoryStore):
    """Counts reads of the log; a read waits while the gate is shut, and so many of the next ones fail."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.failures = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, stream_id: int, position: int, max_bytes: int) -> Slice:
        self.reads += 1
        found = await super().read(stream_id, position, max_bytes)
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        return found


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


async def create(store: CountingStore, data: bytes, *, is_closed: bool) -> StreamInfo:
    key = StreamKey(DEFAULT_TENANT, "crowded")
    return (await store.create_stream(key, StreamConfig("text/plain", is_closed=is_closed), data)).stream


async def test_a_crowd_reads_a_closed_stream_once(store: CountingStore) -> None:
    stream = await create(store, b"0123456789", is_closed=True)
    pages = Pages(store)
    store.gate.clear()
    reads = [asyncio.create_task(pages.read(stream.id, 0, 100)) for _ in range(5)]
    await asyncio.sleep(0)
    store.gate.set()
    assert {(await read).data for read in reads} == {b"0123456789"}
    assert (await pages.read(stream.id, 0, 100)).tail.is_closed
    assert store.reads == 1


async def test_what_may_grow_is_read_by_everybody(store: CountingStore) -> None:
    stream = await create(store, b"0123456789", is_closed=False)
    pages = Pages(store)
    store.gate.clear()
    early = asyncio.create_task(pages.read(stream.id, 0, 100))
    await asyncio.sleep(0)
    await store.append([StreamAppend(stream.key, b"more", "text/plain")])
    late = [asyncio.create_task(pages.read(stream.id, 0, 100)) for _ in range(2)]
    await asyncio.sleep(0)
    store.gate.set()
    assert (await early).data == b"0123456789"
    assert [(await read).data for read in late] == [b"0123456789more"] * 2
    assert (await pages.read(stream.id, 0, 4)).data == b"0123"
    assert (await pages.read(stream.id, 0, 4)).data == b"0123"
    assert store.reads == 4


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_first_reader_that_comes_to_nothing_takes_nobody_along(
    store: CountingStore, *, is_cancelled: bool
) -> None:
    stream = await create(store, b"0123456789", is_closed=True)
    pages = Pages(store)
    store.gate.clear()
    first = asyncio.create_task(pages.read(stream.id, 0, 100))
    await asyncio.sleep(0)
    second = asyncio.create_task(pages.read(stream.id, 0, 100))
    await asyncio.sleep(0)
    if is_cancelled:
        first.cancel()
    store.failures = 0 if is_cancelled else 1
    store.gate.set()
    await asyncio.wait([first])
    assert (await second).data == b"0123456789"
    assert first.cancelled() or isinstance(first.exception(), StoreUnavailable)


async def test_what_is_kept_is_bounded_and_the_oldest_goes_first(store: CountingStore) -> None:
    stream = await create(store, b"x" * 30_000, is_closed=True)
    pages = Pages(store, max_kept_bytes=25_000)
    for position in (0, 10_000, 0, 20_000):
        await pages.read(stream.id, position, 10_000)
    assert store.reads == 3
    await pages.read(stream.id, 0, 10_000)
    assert store.reads == 3
    await pages.read(stream.id, 10_000, 10_000)
    assert store.reads == 4
    pages.forget([stream.id])
    assert repr(pages) == "Pages(0, 0 bytes)"
    await pages.read(stream.id, 0, 30_000)
    assert repr(pages) == "Pages(0, 0 bytes)"


async def test_what_is_kept_while_it_is_read_counts_once(store: CountingStore) -> None:
    stream = await create(store, b"x" * 1000, is_closed=True)
    pages = Pages(store)
    store.gate.clear()
    reading = asyncio.create_task(pages.read(stream.id, 0, 2000))
    await asyncio.sleep(0)
    pages.keep(stream.id, Slice(0, b"x" * 1000, Tail(1000, True)), 2000)
    store.gate.set()
    assert (await reading).data == b"x" * 1000
    assert repr(pages) == "Pages(1, 1512 bytes)"
    pages.forget([stream.id])
    assert repr(pages) == "Pages(0, 0 bytes)"
