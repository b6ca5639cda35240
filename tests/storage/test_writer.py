"""Group commit on a real Postgres: what is visible when, and what happens when a commit goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from streamkeep.storage import (
    Code,
    Ending,
    Generation,
    GenerationKey,
    MemoryStore,
    Owner,
    OwnerFenced,
    Store,
    Terminal,
    UpstreamHead,
)
from streamkeep.storage.postgres import PostgresStore
from streamkeep.storage.rules.offsets import format_offset
from streamkeep.storage.writer import Recorder, Writer
from tests.cutting import wire_to


class Witness:
    """An audience that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, bytes]] = []
        self.closed_at: dict[int, int] = {}

    def appended(self, stream_id: int, position: int, data: bytes) -> None:
        self.told.append((stream_id, position, data))

    def closed(self, stream_id: int, final_position: int) -> None:
        self.closed_at[stream_id] = final_position

    def bytes_of(self, stream_id: int) -> bytes:
        """All that was told of a stream; fails unless it came in order, without gap or repeat."""
        body = b""
        for known, position, data in self.told:
            if known == stream_id:
                assert position == len(body)
                body += data
        return body


@asynccontextmanager
async def writing(store: Store, **budgets: int) -> AsyncIterator[tuple[Writer, Witness]]:
    await store.open()
    witness = Witness()
    writer = Writer(store, witness, **budgets)
    task = asyncio.create_task(writer.run())
    try:
        yield writer, witness
    finally:
        task.cancel()
        await asyncio.wait([task])
        await store.close()


async def started(store: Store, request_id: str, owner: Owner | None = None) -> Generation:
    owner = owner or await store.register_owner()
    claim = await store.claim(owner, GenerationKey("default", "chat", request_id), b"f")
    await store.start(claim.generation, UpstreamHead(200, "text/plain"), b"f")
    return claim.generation


def done(recorder: Recorder) -> Terminal:
    return Terminal(Code.COMPLETE, format_offset(recorder.position), recorder.position, "00", 1)


async def stored(store: Store, generation: Generation) -> bytes:
    return (await store.read(generation.data_stream, 0, 10_000_000)).data


async def committed(recorder: Recorder) -> None:
    async with asyncio.timeout(20):
        while recorder.pending_bytes:
            await asyncio.sleep(0.002)


async def test_the_audience_hears_only_of_what_another_instance_can_read(database_url: str) -> None:
    store, other = PostgresStore(database_url), PostgresStore(database_url)
    async with writing(store) as (writer, witness):
        await other.open()
        generation = await started(store, "1")
        recorder = writer.recorder(generation)
        for number in range(200):
            recorder.append(b"%d," % number)
            if number % 20 == 0:
                await asyncio.sleep(0)
                seen = witness.bytes_of(generation.data_stream)
                assert (await stored(other, generation)).startswith(seen)
        await committed(recorder)
        assert await stored(other, generation) == witness.bytes_of(generation.data_stream)
        await other.close()


async def test_appends_of_one_stream_in_one_commit_are_one_row(database_url: str) -> None:
    store = PostgresStore(database_url)
    async with writing(store) as (writer, _):
        recorder = writer.recorder(await started(store, "1"))
        for _ in range(500):
            recorder.append(b"x")
        await committed(recorder)
        connection = await asyncpg.connect(database_url)
        assert await connection.fetchval("SELECT count(*) FROM streamkeep.chunks") == 1
        await connection.close()


async def test_the_end_waits_behind_the_data_and_closes_both_streams_with_it(database_url: str) -> None:
    store = PostgresStore(database_url)
    async with writing(store) as (writer, witness):
        generation = await started(store, "1")
        recorder = writer.recorder(generation)
        recorder.append(b"all of it")
        assert await recorder.end(done(recorder))
        assert witness.bytes_of(generation.data_stream) == b"all of it"
        assert witness.closed_at[generation.data_stream] == 9
        tails = await store.tails([generation.data_stream, generation.control_stream])
        assert all(tail.is_closed for tail in tails.values())
        assert tails[generation.data_stream].position == 9


async def test_a_commit_whose_answer_was_lost_is_neither_repeated_nor_forgotten(database_url: str) -> None:
    async with wire_to(database_url) as wire:
        store = PostgresStore(wire.url)
        async with writing(store) as (writer, witness):
            generation = await started(store, "1")
            recorder = writer.recorder(generation)
            recorder.append(b"first,")
            await committed(recorder)
            for text in (b"second,", b"third,"):
                wire.cut_after_answer()
                recorder.append(text)
                await committed(recorder)
            wire.cut_after_answer()
            assert await recorder.end(done(recorder))
            assert wire.cuts == 3
            assert await stored(store, generation) == b"first,second,third,"
            assert witness.bytes_of(generation.data_stream) == b"first,second,third,"
            events = await store.read(generation.control_stream, 0, 10_000)
            assert events.data.count(b'"event"') == 1


async def test_a_commit_that_never_arrived_is_sent_again(database_url: str) -> None:
    async with wire_to(database_url) as wire:
        store = PostgresStore(wire.url)
        async with writing(store) as (writer, witness):
            generation = await started(store, "1")
            recorder = writer.recorder(generation)
            for number in range(50):
                recorder.append(b"%d," % number)
                if number % 10 == 0:
                    wire.cut()
                await asyncio.sleep(0)
            await committed(recorder)
            whole = b"".join(b"%d," % number for number in range(50))
            assert await stored(store, generation) == whole == witness.bytes_of(generation.data_stream)


async def test_t31_one_bad_item_does_not_fail_its_neighbours(database_url: str) -> None:
    store = PostgresStore(database_url)
    async with writing(store) as (writer, _):
        owner = await store.register_owner()
        rows = [await started(store, str(number), owner) for number in range(5)]
        recorders = [writer.recorder(row) for row in rows]
        bad = rows[2]
        await store.commit(owner, [], [Ending(bad, Terminal(Code.CANCELLED, format_offset(0), 0, None, 1), 0)])
        for recorder in recorders:
            recorder.append(b"bytes")
        for recorder in recorders:
            await committed(recorder)
        assert [await stored(store, row) for row in rows] == [b"bytes", b"bytes", b"", b"bytes", b"bytes"]
        assert recorders[2].ended.done()
        assert not any(recorder.ended.done() for recorder in recorders if recorder is not recorders[2])


async def test_a_fenced_owner_writes_nothing_and_is_told(database_url: str) -> None:
    store = PostgresStore(database_url)
    async with writing(store) as (writer, witness):
        owner = await store.register_owner()
        generation = await started(store, "1", owner)
        recorder = writer.recorder(generation)
        recorder.append(b"kept")
        await committed(recorder)
        lease = next(lease for lease in await store.leases() if lease.owner == owner)
        assert await store.recover(lease) == 1
        recorder.append(b"lost")
        assert await recorder.end(done(recorder)) is False
        assert await stored(store, generation) == b"kept"
        assert witness.bytes_of(generation.data_stream) == b"kept"
        with pytest.raises(OwnerFenced):
            await store.renew(owner)


async def test_a_full_recorder_waits_for_the_commit_and_budgets_hold(database_url: str) -> None:
    store = PostgresStore(database_url)
    async with writing(store, stream_budget_bytes=1000, process_budget_bytes=3000) as (writer, _):
        owner = await store.register_owner()
        recorders = [writer.recorder(await started(store, str(number), owner)) for number in range(6)]
        most = 0

        async def fill(recorder: Recorder) -> None:
            nonlocal most
            for _ in range(200):
                recorder.append(b"x" * 100)
                most = max(most, writer.pending_bytes)
                if recorder.is_full:
                    await recorder.room()

        await asyncio.gather(*(fill(recorder) for recorder in recorders))
        for recorder in recorders:
            await committed(recorder)
        assert most <= 3000 + 100 * len(recorders)
        assert [r.position for r in recorders] == [20_000] * 6


async def test_a_commit_waits_for_some_company_and_behind_a_crowd_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for rest in ("_SHORT_REST_SECONDS", "_REST_SECONDS", "_LONG_REST_SECONDS"):
        monkeypatch.setattr(f"streamkeep.storage.writer.{rest}", 3600)
    store = MemoryStore()
    async with writing(store) as (writer, witness):
        owner = await store.register_owner()
        recorders = [writer.recorder(await started(store, str(number), owner)) for number in range(100)]

        async def some_turns() -> int:
            """How many commits' parts were told by the end of them."""
            for _ in range(20):
                await asyncio.sleep(0)
            return len(witness.told)

        recorders[0].append(b"alone")
        assert await some_turns() == 1
        for recorder in recorders[1:20]:
            recorder.append(b"waits")
        assert await some_turns() == 1
        recorders[20].append(b"the twentieth")
        assert await some_turns() == 21
        for recorder in recorders[:64]:
            recorder.append(b"in a crowd")
        assert await some_turns() == 85
        for recorder in recorders:
            recorder.append(b"waits, however many there are")
        assert await some_turns() == 85


@pytest.mark.parametrize(
    ("size", "rest"),
    [(11, "_SHORT_REST_SECONDS"), (12, "_REST_SECONDS"), (15, "_REST_SECONDS"), (16, "_LONG_REST_SECONDS")],
)
async def test_the_more_a_commit_held_the_longer_the_next_one_waits(
    monkeypatch: pytest.MonkeyPatch, size: int, rest: str
) -> None:
    for each in ("_SHORT_REST_SECONDS", "_REST_SECONDS", "_LONG_REST_SECONDS"):
        monkeypatch.setattr(f"streamkeep.storage.writer.{each}", 3600 if each == rest else 0)
    store = MemoryStore()
    async with writing(store) as (writer, witness):
        owner = await store.register_owner()
        recorders = [writer.recorder(await started(store, str(number), owner)) for number in range(size)]
        for recorder in recorders:
            recorder.append(b"together")
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(witness.told) == size
        recorders[0].append(b"waits")
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(witness.told) == size
