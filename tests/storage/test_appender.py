"""Group commit of protocol appends: who is told what, when, and what one failure means to the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from streamkeep.storage import (
    Appended,
    ItemRefused,
    MemoryStore,
    Store,
    StoreError,
    StoreUnavailable,
    StreamAppend,
    StreamClosed,
    StreamNotFound,
    Tail,
)
from streamkeep.storage.appender import Appender
from streamkeep.storage.contract_streams import content, made, write
from streamkeep.storage.postgres import PostgresStore
from tests.cutting import wire_to


class Witness:
    """An audience that keeps what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, bytes | None]] = []

    def appended(self, stream_id: int, position: int, data: bytes) -> None:
        self.told.append((stream_id, position, data))

    def closed(self, stream_id: int, final_position: int) -> None:
        self.told.append((stream_id, final_position, None))


class CountingStore(MemoryStore):
    """Says how large the batches were; each takes a turn of the loop, as a commit would."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def append(self, appends: Sequence[StreamAppend]) -> list[Appended | StoreError]:
        self.batches.append(len(appends))
        await asyncio.sleep(0)
        return await super().append(appends)


class PickyStore(MemoryStore):
    """An engine that refuses every batch with poison in it."""

    async def append(self, appends: Sequence[StreamAppend]) -> list[Appended | StoreError]:
        if any(append.data == b"poison" for append in appends):
            raise ItemRefused("poison")
        return await super().append(appends)


class BrokenStore(MemoryStore):
    async def append(self, appends: Sequence[StreamAppend]) -> list[Appended | StoreError]:
        raise KeyError("a mistake of the engine")


@asynccontextmanager
async def appending(store: Store, **limits: int) -> AsyncIterator[tuple[Appender, Witness]]:
    await store.open()
    witness = Witness()
    appender = Appender(store, witness, **limits)
    task = asyncio.create_task(appender.run())
    try:
        yield appender, witness
    finally:
        task.cancel()
        await asyncio.wait([task])
        await store.close()


async def test_what_is_new_is_told_before_the_caller_knows_and_nothing_else() -> None:
    async with appending(MemoryStore()) as (appender, witness):
        stream = (await made(appender._store, "a", b"first")).stream.id

        async def told_after(append: StreamAppend) -> list[tuple[int, int, bytes | None]]:
            witness.told.clear()
            await appender.append(append)
            return list(witness.told)

        assert await told_after(write("a", b"x", producer=("p", 0, 0))) == [(stream, 5, b"x")]
        assert await told_after(write("a", b"x", producer=("p", 0, 0))) == []
        assert await told_after(write("a", b"yz", is_close=True)) == [(stream, 6, b"yz"), (stream, 8, None)]
        assert await told_after(write("a", is_close=True)) == []
        other = (await made(appender._store, "b")).stream.id
        assert await told_after(write("b", is_close=True)) == [(other, 0, None)]


async def test_each_caller_gets_its_own_result_or_error() -> None:
    async with appending(MemoryStore()) as (appender, witness):
        stream = (await made(appender._store, "a")).stream.id
        results = await asyncio.gather(
            appender.append(write("a", b"1")),
            appender.append(write("none", b"x")),
            appender.append(write("a", b"2", is_close=True)),
            appender.append(write("a", b"late")),
            return_exceptions=True,
        )
        assert results[0] == Appended(stream, 0, Tail(1, False))
        assert isinstance(results[1], StreamNotFound)
        assert results[2] == Appended(stream, 1, Tail(2, True))
        assert isinstance(results[3], StreamClosed)
        assert witness.told == [(stream, 0, b"1"), (stream, 1, b"2"), (stream, 2, None)]


async def test_a_lone_append_goes_at_once_and_a_crowd_together() -> None:
    store = CountingStore()
    async with appending(store, batch_items=40) as (appender, _):
        await made(store, "a")
        await appender.append(write("a", b"x"))
        assert store.batches == [1]
        await asyncio.gather(*(appender.append(write("a", b"x")) for _ in range(100)))
        assert store.batches == [1, 40, 40, 20]


async def test_a_batch_is_bounded_in_bytes_and_so_is_what_waits() -> None:
    store = CountingStore()
    async with appending(store, batch_bytes=1000, budget_bytes=2000) as (appender, _):
        await made(store, "a")
        most = 0

        async def one_append() -> None:
            nonlocal most
            await appender.append(write("a", b"x" * 300))
            most = max(most, appender.pending_bytes)

        await asyncio.gather(*(one_append() for _ in range(50)))
        assert max(store.batches) == 4
        assert most <= 2300
        assert appender.pending_bytes == 0
        assert len(await content(store, "a")) == 15_000


async def test_one_refused_item_does_not_fail_its_neighbours() -> None:
    async with appending(PickyStore()) as (appender, witness):
        await made(appender._store, "a")
        pieces = [b"0", b"1", b"poison", b"3", b"4"]
        results = await asyncio.gather(*(appender.append(write("a", p)) for p in pieces), return_exceptions=True)
        assert [type(result) for result in results] == [Appended, Appended, ItemRefused, Appended, Appended]
        assert await content(appender._store, "a") == b"0134"
        assert [position for _, position, _ in witness.told] == [0, 1, 2, 3]


async def test_a_mistake_of_the_engine_fails_its_batch_and_not_the_loop() -> None:
    async with appending(BrokenStore()) as (appender, _):
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await appender.append(write("a", b"x"))


async def test_a_caller_that_leaves_before_its_turn_leaves_nothing_behind() -> None:
    store = CountingStore()
    async with appending(store, batch_items=1) as (appender, _):
        await made(store, "a")
        tasks = [asyncio.create_task(appender.append(write("a", b"%d" % n))) for n in range(4)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.wait(tasks)
        assert await content(store, "a") == b"013"
        assert appender.pending_bytes == 0


async def test_when_it_stops_nobody_is_left_waiting() -> None:
    store = CountingStore()
    async with appending(store, batch_items=1, budget_bytes=2) as (appender, _):
        await made(store, "a")
        tasks = [asyncio.create_task(appender.append(write("a", b"x"))) for _ in range(5)]
        await asyncio.sleep(0)
    done, waiting = await asyncio.wait(tasks, timeout=20)
    assert not waiting
    assert {type(task.exception()) for task in done} <= {StoreUnavailable, type(None)}
    with pytest.raises(StoreUnavailable):
        await appender.append(write("a", b"x"))


async def test_an_append_whose_answer_was_lost_is_told_and_never_sent_again(database_url: str) -> None:
    async with wire_to(database_url) as wire:
        store = PostgresStore(wire.url)
        async with appending(store) as (appender, witness):
            stream = (await made(store, "a")).stream.id
            outcomes: list[object] = []
            for number in range(40):
                cut = asyncio.get_running_loop().call_later(number % 8 * 0.0004, wire.cut_after_answer)
                outcomes += await asyncio.gather(appender.append(write("a", b"<%d>" % number)), return_exceptions=True)
                cut.cancel()
            wire.cut()
            async with asyncio.timeout(30):
                found = None
                while found is None:
                    # What was held open is found to be broken when it is used.
                    with suppress(StoreUnavailable):
                        found = await content(store, "a")
            assert any(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
            for number, outcome in enumerate(outcomes):
                times = found.count(b"<%d>" % number)
                assert times == 1 if isinstance(outcome, Appended) else times <= 1
            told = [(position, data) for known, position, data in witness.told if known == stream]
            assert all(data is not None and found[position : position + len(data)] == data for position, data in told)
            assert len(told) == sum(isinstance(outcome, Appended) for outcome in outcomes)
