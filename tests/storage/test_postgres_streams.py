"""Streams of the open protocol on a real Postgres: several instances, lost answers, and what stands in the tables."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from streamkeep.storage import (
    DEFAULT_TENANT,
    Append,
    Appended,
    ContentTypeMismatch,
    Expiry,
    ForkPoint,
    SequenceConflict,
    SequenceGap,
    Store,
    StoreError,
    StoreUnavailable,
    StreamAppend,
    StreamClosed,
    StreamConfig,
    StreamExists,
    StreamGone,
    StreamNotFound,
    Tail,
)
from streamkeep.storage.contract import Ears, ended, key, read_on, running
from streamkeep.storage.contract_streams import at, content, fork, made, one, write
from streamkeep.storage.postgres import PostgresStore, migrate
from streamkeep.storage.postgres._last_left import LastLeft
from streamkeep.storage.postgres._segments import RAW, SEGMENT_BYTES, ZSTD
from streamkeep.storage.postgres._upkeep import OPEN_BYTES
from streamkeep.storage.rules.appends import Change, StreamState
from tests.cutting import wire_to


@asynccontextmanager
async def opened(url: str, ears: Ears | None = None) -> AsyncIterator[PostgresStore]:
    """A store that is open; its ears hear what others do from now on."""
    store = PostgresStore(url, merge_after_seconds=0)
    if ears is not None:
        store.listen(ears)
    await store.open()
    try:
        if ears is not None:
            await until(lambda: None in ears.changed)
            ears.changed.clear()
        yield store
    finally:
        await store.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_producers_on_two_instances_lose_and_double_nothing(database_url: str) -> None:
    async with opened(database_url) as first, opened(database_url) as second:
        paths = ["a", "b", "c"]
        for path in paths:
            await made(first, path)

        async def deliver(store: Store, append: StreamAppend) -> None:
            """As a client does that repeats what it has no answer to, out of order too."""
            while True:
                try:
                    await one(store, append)
                    return
                except SequenceGap:
                    await asyncio.sleep(0)

        async def produce(number: int) -> None:
            path = paths[number % len(paths)]
            appends = [write(path, b"<%d.%d>" % (number, i), producer=(f"p{number}", 0, i)) for i in range(12)]
            stores = [(first, second), (second, first)][number % 2]
            for i in range(0, len(appends), 3):
                together = appends[i : i + 3]
                await asyncio.gather(
                    *(deliver(stores[0], append) for append in reversed(together)),
                    *(deliver(stores[1], append) for append in together),
                )

        await asyncio.gather(*(produce(number) for number in range(16)))
        for index, path in enumerate(paths):
            found = (await content(second, path)).decode()
            for number in range(index, 16, len(paths)):
                own = [piece for piece in found.strip("<>").split("><") if piece.startswith(f"{number}.")]
                assert own == [f"{number}.{i}" for i in range(12)]


async def test_writers_without_producers_are_serialised(database_url: str) -> None:
    async with opened(database_url) as first, opened(database_url) as second:
        await made(first, "a")
        writes = [one([first, second][n % 2], write("a", b"<%d>" % n)) for n in range(60)]
        results = await asyncio.gather(*writes)
        whole = await content(first, "a")
        for number, result in enumerate(results):
            piece = b"<%d>" % number
            assert whole[result.position : result.position + len(piece)] == piece
        assert len(whole) == sum(len(b"<%d>" % n) for n in range(60))


async def test_appends_and_deletions_wake_other_instances_only(database_url: str) -> None:
    own, others = Ears(), Ears()
    async with opened(database_url, own) as one_store, opened(database_url, others) as two:
        stream = (await made(one_store, "a")).stream.id
        for act in (one(one_store, write("a", b"x")), one_store.delete_stream(at("a"))):
            await act
            await until(lambda: others.has_heard_of(stream))
            others.changed.clear()
        other = (await made(two, "b")).stream.id
        await one(two, write("b", b"x"))
        await until(lambda: own.has_heard_of(other))
        assert not own.has_heard_of(stream)


async def test_lost_answers_are_told_and_what_a_producer_repeats_is_stored_once(database_url: str) -> None:
    async with wire_to(database_url) as wire, opened(wire.url) as store:
        await made(store, "a")
        lost = 0
        for number in range(40):
            append = write("a", b"<%d>" % number, producer=("p", 0, number))
            # The cut comes with the answer to one statement or another of the append, the commit too.
            cut = asyncio.get_running_loop().call_later(number % 8 * 0.0004, wire.cut_after_answer)
            while True:
                try:
                    await one(store, append)
                    break
                except StoreUnavailable:
                    lost += 1
            cut.cancel()
        assert lost
        async with opened(database_url) as other:
            assert await content(other, "a") == b"".join(b"<%d>" % number for number in range(40))


async def test_a_batch_is_one_row_for_each_stream(database_url: str) -> None:
    async with opened(database_url) as store:
        for path in "ab":
            await made(store, path)
        await store.append([write("ab"[n % 2], b"x", producer=("p", 0, n // 2)) for n in range(200)])
        connection = await asyncpg.connect(database_url)
        try:
            assert await connection.fetchval("select count(*) from streamkeep.chunks") == 2
            assert await connection.fetchval("select count(*) from streamkeep.producers") == 2
            assert await connection.fetchval("select min(last_sequence) from streamkeep.producers") == 99
        finally:
            await connection.close()


async def test_old_chunks_of_a_long_open_stream_are_merged_while_it_is_written(database_url: str) -> None:
    piece = b"".join(b'{"n":%d}\x1e' % n for n in range(1000))
    count = 4 * OPEN_BYTES // len(piece)
    async with opened(database_url) as one_store, opened(database_url) as two_store:
        stream = (await made(one_store, "a")).stream.id
        expected: list[bytes] = []

        async def append(store: Store, times: int) -> None:
            for _ in range(times):
                expected.append(piece)
                await one(store, write("a", piece))

        async def merge(store: Store, writing: asyncio.Future[tuple[None, None]]) -> None:
            while not writing.done():
                await store.merge()
                await asyncio.sleep(0)

        writing = asyncio.gather(append(one_store, count // 2), append(two_store, count // 2))
        await asyncio.gather(writing, merge(one_store, writing), merge(two_store, writing))
        await append(one_store, OPEN_BYTES // len(piece) + 1)
        while await one_store.merge():
            pass
        whole = b"".join(expected)
        connection = await asyncpg.connect(database_url)
        try:
            ends = "select encoding, max(position + size) as end from streamkeep.chunks group by encoding"
            found = {row["encoding"]: row["end"] for row in await connection.fetch(ends)}
            assert found[RAW] == len(whole)
            assert len(whole) - 2 * OPEN_BYTES - SEGMENT_BYTES < found[ZSTD] <= len(whole) - OPEN_BYTES + SEGMENT_BYTES
            await fork(one_store, "f", "a", 1234)
            assert await content(one_store, "f") == whole[:1234]
            assert (await one_store.read(stream, 777_777, 100)).data == whole[777_777:777_877]
            assert await content(two_store, "a") == whole
            await one(two_store, write("a", b"end", is_close=True))
            while await two_store.merge():
                pass
            assert await connection.fetchval("select count(*) from streamkeep.chunks where encoding = 0") == 0
            assert await content(one_store, "a") == whole + b"end"
        finally:
            await connection.close()


async def test_what_is_deleted_leaves_nothing_behind(database_url: str) -> None:
    async with opened(database_url) as store:
        await made(store, "a", b"x")
        await one(store, write("a", b"x", producer=("p", 0, 0)))
        await fork(store, "f", "a")
        await one(store, write("f", b"x", producer=("p", 0, 0)))
        await store.delete_stream(at("a"))
        await store.delete_stream(at("f"))
        owner = await store.register_owner()
        generation = await ended(store, owner, key())
        await fork(store, "g", generation.key.data_path)
        connection = await asyncpg.connect(database_url)
        try:
            for instant in ("ended_at", "gone_at"):
                past = f"update streamkeep.generations set {instant} = clock_timestamp() - interval '100 days'"
                await connection.execute(past)
                while await store.sweep():
                    pass
            assert await connection.fetchval("select count(*) from streamkeep.streams") == 2
            await store.delete_stream(at("g"))
            for table in ("streams", "chunks", "producers", "generations"):
                assert await connection.fetchval(f"select count(*) from streamkeep.{table}") == 0, table
        finally:
            await connection.close()


async def test_a_busy_streams_end_is_written_down_seldom_and_never_too_early(database_url: str) -> None:
    async with opened(database_url) as store:
        config = StreamConfig("text/plain")
        await store.create_stream(at("plain"), config)
        connection = await asyncpg.connect(database_url)
        ends_at = "select ends_at - clock_timestamp() from streamkeep.streams where path = 'a'"
        try:
            await connection.execute(
                "insert into streamkeep.streams (tenant, path, content_type, tail, ttl_seconds, ends_at)"
                " values ($1, 'a', 'text/plain', 0, 50, clock_timestamp() + interval '53 seconds')",
                DEFAULT_TENANT,
            )
            for _ in range(3):
                await store.stream(at("a"))
                assert (await connection.fetchval(ends_at)).total_seconds() < 53
            await connection.execute(
                "update streamkeep.streams set ends_at = ends_at - interval '20 s' where path = 'a'"
            )
            await store.stream(at("a"), is_touched=False)
            assert (await connection.fetchval(ends_at)).total_seconds() < 35
            await store.stream(at("a"))
            assert 50 < (await connection.fetchval(ends_at)).total_seconds() <= 55
        finally:
            await connection.close()


async def test_a_database_of_the_first_version_is_brought_up_to_date_with_its_data(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("drop schema streamkeep cascade")
        assert await migrate(database_url, up_to=1) == [1]
        await connection.execute(
            """
            insert into streamkeep.owners default values;
            insert into streamkeep.streams (id, tenant, path, final_position, closed_at)
            values (1, 'default', 'generations/s1/r1/data', 4, now()),
                   (2, 'default', 'generations/s1/r1/control', 3, now());
            insert into streamkeep.chunks (stream_id, position, size, data) values (1, 0, 4, 'data'), (2, 0, 3, '{}\\036');
            insert into streamkeep.generations
                (tenant, session_id, request_id, state, owner_id, owner_epoch, data_stream, control_stream, head, ended_at)
            values ('default', 's1', 'r1', 'done', 1, 1, 1, 2, '[200, "text/event-stream", null, []]', now());
            select setval('streamkeep.streams_id_seq', 2);
            """
        )
    finally:
        await connection.close()
    async with opened(database_url) as store:
        found = await store.stream(at(key().data_path))
        assert (found.content_type, found.tail) == ("text/event-stream", Tail(4, True))
        assert await read_on(store, await fork(store, "f", key().data_path)) == b"data"
        assert await content(store, key().control_path) == b"{}\x1e"
        generation = await running(store, await store.register_owner(), key("r2"))
        await store.commit(generation.owner, [Append(generation.data_stream, 0, b"on")], [])


async def test_anything_at_once_on_two_instances_leaves_no_hole_and_nothing_behind(database_url: str) -> None:
    """Twelve paths, and everybody forks, writes, deletes and expires them: locks cross in every way there is."""
    async with opened(database_url) as first, opened(database_url) as second:

        async def whole(store: Store, stream_id: int) -> None:
            # What a fork shares comes in parts when the fork is deleted meanwhile; then the rest is not found.
            read = await store.read(stream_id, 0, 1_000_000)
            while read.end < read.tail.position:
                read = await store.read(stream_id, read.end, 1_000_000)

        async def act(store: Store, choose: random.Random) -> None:
            paths = choose.sample([f"p{number}" for number in range(12)], choose.randint(2, 6))
            soon = Expiry(expires_at=datetime.now(UTC) + timedelta(milliseconds=choose.randint(0, 100)))
            match choose.randrange(10):
                case 0 | 1 | 2:
                    results = await store.append([write(path, b"more", is_close=path == "p0") for path in paths])
                    assert not any(isinstance(result, StoreUnavailable) for result in results)
                case 3 | 4:
                    await store.create_stream(
                        at(paths[0]), StreamConfig("text/plain", choose.choice([soon, None])), b"x"
                    )
                case 5 | 6:
                    config = StreamConfig(fork=ForkPoint(at(paths[1])))
                    await whole(store, (await store.create_stream(at(paths[0]), config)).stream.id)
                case 7:
                    await store.delete_stream(at(paths[0]))
                case 8:
                    await store.sweep(3)
                    await store.merge(2)
                case _:
                    await whole(store, (await store.stream(at(paths[0]))).id)

        async def worker(number: int) -> None:
            choose = random.Random(number)
            for _ in range(50):
                with suppress(StreamNotFound, StreamGone, StreamExists):
                    await act(choose.choice([first, second]), choose)

        await asyncio.gather(*(worker(number) for number in range(12)))
        connection = await asyncpg.connect(database_url)
        try:
            gone = "deleted_at is not null and id not in (select source_id from streamkeep.streams where source_id > 0)"
            for left in (
                "chunks where stream_id not in (select id from streamkeep.streams)",
                "producers where stream_id not in (select id from streamkeep.streams)",
                "streams where source_id not in (select id from streamkeep.streams)",
                f"streams where {gone}",
            ):
                assert await connection.fetchval(f"select count(*) from streamkeep.{left}") == 0, left
        finally:
            await connection.close()


_WATCH_COMMITS = """
create table public.seen (at text, synchronous_commit text);
create function public.see() returns trigger language plpgsql as $$
begin
    insert into public.seen values (tg_op || ' ' || tg_table_name, current_setting('synchronous_commit'));
    return null;
end
$$;
create constraint trigger watch after insert or update or delete on streamkeep.streams
    deferrable initially deferred for each row execute function public.see();
"""


async def test_every_acknowledged_write_is_durable_whatever_the_default_is(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_WATCH_COMMITS)
        name = await connection.fetchval("select current_database()")
        await connection.execute(f"alter database {name} set synchronous_commit = off")
        async with opened(database_url) as store:
            await made(store, "a", b"x")
            await fork(store, "f", "a")
            await one(store, write("a", b"x"))
            await store.delete_stream(at("a"))
            await store.delete_stream(at("f"))
        seen = await connection.fetch("select at, synchronous_commit from public.seen")
        assert {row["synchronous_commit"] for row in seen} == {"on"}
        assert {row["at"] for row in seen} == {"INSERT streams", "UPDATE streams", "DELETE streams"}
    finally:
        await connection.close()


def statements_of(store: PostgresStore) -> list[str]:
    """What an open store asks from now on, as long as one call follows another."""
    heard: list[str] = []
    assert store._database._held
    for connection in store._database._held:
        connection.add_query_logger(lambda record: heard.append(record.query))
    return heard


async def appended(store: Store, appends: list[StreamAppend], heard: list[str]) -> list[Appended | StoreError]:
    """What became of a batch; `heard` is what was asked for that."""
    heard.clear()
    results = await store.append(appends)
    await asyncio.sleep(0)  # The driver tells of a statement in the next turn of the loop.
    return results


async def test_a_batch_takes_as_many_statements_whatever_its_size(database_url: str) -> None:
    async with opened(database_url) as store:
        paths = [f"a{number}" for number in range(200)]
        for path in paths:
            await made(store, path)
        heard = statements_of(store)
        for turn, (size, statements) in enumerate([(1, 2), (1, 2), (200, 2), (200, 2), (200, 1), (1, 1)]):
            batch = [write(path, b"x", producer=("p", turn, 0)) for path in paths[:size]]
            results = await appended(store, batch, heard)
            assert all(isinstance(result, Appended) for result in results)
            # Look, write; write alone where the streams are known. At first the driver also asks for what it must know.
            assert len(heard) == statements or turn == 0, heard


async def test_what_became_of_a_stream_elsewhere_is_found_out_once(database_url: str) -> None:
    """One that is gone, or was replaced by one whose life ends, is looked up from then on, and others are soon known again."""
    async with opened(database_url) as first, opened(database_url) as second:
        paths = ("replaced", "deleted", "kept")
        for path in paths:
            await made(first, path)
        batch = [write(path, b"x") for path in paths]
        for _ in range(3):
            await first.append(batch)
        await second.delete_stream(at("replaced"))
        await second.delete_stream(at("deleted"))
        await made(second, "replaced", config=StreamConfig("text/plain", Expiry(1000)))
        heard = statements_of(first)
        # The write that finds out, the look, and the write; then without the first.
        for statements in (3, 2, 2, 2):
            results = await appended(first, batch, heard)
            assert [type(result) for result in results] == [Appended, StreamNotFound, Appended]
            assert len(heard) == statements, heard
        await appended(first, [write("kept", b"x")], heard)
        assert len(heard) == 1, heard


async def test_of_a_stream_with_many_producers_none_is_kept_in_memory(database_url: str) -> None:
    async with opened(database_url) as store:
        await made(store, "a")
        for turn in range(3):
            await store.append([write("a", b"x", producer=(f"p{number}", turn, 0)) for number in range(100)])
        heard = statements_of(store)
        for number, statements in ((1, 2), (2, 1)):
            (result,) = await appended(store, [write("a", b"x", producer=("p99", 2, number))], heard)
            assert isinstance(result, Appended)
            assert len(heard) == statements, heard


@pytest.mark.parametrize(
    ("append", "error"),
    [
        (write("a", b"z", producer=("p", 0, 4), sequence="6"), None),
        (write("a", b"gap", producer=("p", 0, 5)), SequenceGap),
        (write("a", b"before", sequence="5"), SequenceConflict),
        (write("closed", b"x", producer=("p", 0, 3)), StreamClosed),
        (write("deleted", b"x", producer=("p", 0, 3)), StreamNotFound),
        (write("replaced", b"x", producer=("p", 0, 3)), ContentTypeMismatch),
    ],
)
async def test_what_another_instance_did_is_seen_of_a_stream_that_is_known(
    database_url: str, append: StreamAppend, error: type[StoreError] | None
) -> None:
    """A stream that only one instance writes is not looked up, by the third append at the latest."""
    path = append.key.path
    async with opened(database_url) as first, opened(database_url) as second:
        await made(first, path)
        for number in range(3):
            await one(first, write(path, b"x", producer=("p", 0, number), sequence=f"{number}"))
        if path == "a":
            await one(second, write("a", b"y", producer=("p", 0, 3), sequence="5"))
        elif path == "closed":
            await one(second, write("closed", is_close=True))
        else:
            await second.delete_stream(append.key)
        if path == "replaced":
            await made(second, path, config=StreamConfig("application/json"))
        (result,) = await first.append([append])
        if error is None:
            assert isinstance(result, Appended)
            assert (result.position, result.is_duplicate) == (4, False)
            assert await content(second, "a") == b"xxxyz"
        else:
            assert type(result) is error


def test_what_is_known_is_tried_more_rarely_the_more_often_it_was_wrong() -> None:
    last_left, appends = LastLeft(), [write("a", b"x")]

    def tries(batches: int) -> int:
        return sum(bool(last_left.known(appends).states) for _ in range(batches))

    for position in range(2):
        state = StreamState(1, "text/plain", Tail(position + 1, False))
        last_left.note(at("a"), Change(position, state))
        assert tries(3) == 3 * position
    for put_off in (1, 3, 7, 15, 31, 63, 64, 64):
        last_left.tried(False)
        assert tries(put_off + 3) == 3
    last_left.tried(True)
    assert tries(3) == 3


async def test_a_repeat_is_a_duplicate_and_a_gap_is_told_of_a_stream_that_is_known(database_url: str) -> None:
    async with opened(database_url) as store:
        await made(store, "a")
        for number in range(4):
            await one(store, write("a", b"x", producer=("p", 0, number)))
        repeated = await one(store, write("a", b"x", producer=("p", 0, 3)))
        assert repeated.is_duplicate
        results = await store.append(
            [
                write("a", b"gap", producer=("p", 0, 9)),
                write("a", b"y", producer=("p", 0, 4)),
                write("a", b"z", producer=("q", 0, 0)),
                write("a", b"w"),
            ]
        )
        assert isinstance(results[0], SequenceGap)
        assert await content(store, "a") == b"xxxxyzw"


@pytest.mark.parametrize(
    "overtaking", ["tail = tail + 1", "final_position = tail, closed_at = now()", "deleted_at = clock_timestamp()"]
)
async def test_an_append_that_is_overtaken_is_decided_anew(database_url: str, overtaking: str) -> None:
    other = await asyncpg.connect(database_url)
    try:
        async with opened(database_url) as store:
            await made(store, "a")
            await made(store, "b")
            turn = other.transaction()
            await turn.start()
            await other.execute(f"update streamkeep.streams set {overtaking} where path = 'a'")
            if overtaking.startswith("tail"):
                await other.execute(
                    "insert into streamkeep.chunks (stream_id, position, size, data) "
                    "select id, 0, 1, 'x' from streamkeep.streams where path = 'a'"
                )
            appending = asyncio.create_task(store.append([write("a", b"y"), write("b", b"z")]))
            waiting = "select count(*) from pg_locks where not granted"
            async with asyncio.timeout(20):
                while not await other.fetchval(waiting):
                    await asyncio.sleep(0.005)
            await turn.commit()
            first, second = await appending
            assert await content(store, "b") == b"z"
            assert isinstance(second, Appended)
            if overtaking.startswith("tail"):
                assert isinstance(first, Appended)
                assert first.position == 1
                assert await content(store, "a") == b"xy"
            else:
                assert isinstance(first, StreamClosed | StreamGone)
    finally:
        await other.close()
