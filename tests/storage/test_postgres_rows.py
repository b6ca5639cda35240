"""What stands in the tables: durable whatever the defaults, appended without touching other rows, merged when closed."""

from __future__ import annotations

import asyncio
import random
import traceback

import asyncpg
import pytest
import zstandard

from streamkeep.storage import Append, Generation, Owner, Refusal, Retention, StoreError, Tail
from streamkeep.storage.contract import EVERY_BYTE, FINGERPRINT, HEAD, ended, ending, key, raised, read_on, running
from streamkeep.storage.encryption import OVERHEAD_BYTES, Keyring
from streamkeep.storage.postgres import PostgresStore
from streamkeep.storage.postgres._chunks import Chunks
from streamkeep.storage.postgres._database import Database
from streamkeep.storage.postgres._segments import RAW, SEGMENT_BYTES, ZSTD, Codec, Segment, size_of
from streamkeep.storage.postgres._upkeep import PIECE_BYTES
from tests.postgres import Connection, connected, opened

_WATCH_COMMITS = """
create table public.seen (what text, synchronous_commit text);
create function public.see() returns trigger language plpgsql as $$
begin
    insert into public.seen values (tg_op || ' ' || tg_table_name, current_setting('synchronous_commit'));
    return null;
end
$$;
create constraint trigger see after insert or update on streamkeep.chunks
    deferrable initially deferred for each row execute function public.see();
create constraint trigger see after insert or update on streamkeep.generations
    deferrable initially deferred for each row execute function public.see();
create constraint trigger see after insert on streamkeep.secrets
    deferrable initially deferred for each row execute function public.see();
create constraint trigger see after insert on streamkeep.owners
    deferrable initially deferred for each row execute function public.see();
create constraint trigger see_settled after update on streamkeep.owners
    deferrable initially deferred for each row when (new.settled <> old.settled) execute function public.see();
"""


async def test_every_acknowledged_write_is_durable_whatever_the_default_is(database_url: str) -> None:
    async with connected(database_url) as third:
        await third.execute(_WATCH_COMMITS)
        name = await third.fetchval("select current_database()")
        await third.execute(f"alter database {name} set synchronous_commit = off")
        async with opened(database_url) as store, connected(database_url) as plain:
            assert await plain.fetchval("show synchronous_commit") == "off"
            await store.signing_key()
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.commit(owner, [Append(generation.data_stream, 0, b"x")], [])
            await store.settle(owner, [])
            await store.commit(owner, [Append(generation.data_stream, 1, b"x")], [ending(generation, 2)])
            refused = (await store.claim(owner, key("refused"), None)).generation
            await store.refuse(refused, Refusal(HEAD, b""), FINGERPRINT)
            await store.claim(owner, key("refused"), None)
            await store.request_cancel(key("refused"))
            (lease,) = await store.leases()
            await store.recover(lease)
        seen = await third.fetch("select what, synchronous_commit, count(*) as times from public.seen group by 1, 2")
        assert {row["synchronous_commit"] for row in seen} == {"on"}
        assert {row["what"]: row["times"] for row in seen} == {
            "INSERT chunks": 4,
            "INSERT generations": 2,
            "INSERT owners": 1,
            "INSERT secrets": 1,
            "UPDATE generations": 6,
            "UPDATE owners": 1,
        }


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_a_stricter_default_isolation_changes_nothing(database_url: str, level: str) -> None:
    async with connected(database_url) as third:
        name = await third.fetchval("select current_database()")
        await third.execute(f"alter database {name} set default_transaction_isolation = '{level}'")
    async with opened(database_url) as store:
        owner = await store.register_owner()
        claims = await asyncio.gather(*(store.claim(owner, key(), FINGERPRINT) for _ in range(10)))
        assert sum(claim.is_new for claim in claims) == 1
        generation = claims[0].generation
        await store.start(generation, HEAD, FINGERPRINT)
        await asyncio.gather(
            store.commit(owner, [Append(generation.data_stream, 0, b"x")], []), *(store.renew(owner) for _ in range(5))
        )
        (lease,) = await store.leases()
        assert await store.recover(lease) == 1
        assert await store.tails([generation.data_stream]) == {generation.data_stream: Tail(1, True)}


async def test_raw_rows_are_read_whole_whatever_lies_between_them(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as third:
        owner = await store.register_owner()
        generation = await running(store, owner)
        whole = b""
        for number in range(9):
            data = EVERY_BYTE * (1 + 40 * (number % 4))
            await store.commit(owner, [Append(generation.data_stream, len(whole), data)], [])
            if number % 3 == 1:
                packed = zstandard.compress(data)
                await third.execute(
                    "update streamkeep.chunks set encoding = $1, data = $2 where stream_id = $3 and position = $4",
                    *(ZSTD, packed, generation.data_stream, len(whole)),
                )
            whole += data
        for cut in (0, 1, 255, 256, 300, 20_000, len(whole) - 1):
            for most in (20_001, 33_000, 1_000_000):
                assert await read_on(store, generation.data_stream, cut, most) == whole[cut:]
        await third.execute(
            "delete from streamkeep.chunks where stream_id = $1 and position = 256", generation.data_stream
        )
        await raised(StoreError, store.read(generation.data_stream, 0, 1_000_000))


_VERSIONS = """
select array(select (xmin, ctid)::text from streamkeep.streams order by id)
    || array(select (xmin, ctid)::text from streamkeep.generations order by id)
"""


async def test_an_append_touches_no_row_but_its_own(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as third:
        owner = await store.register_owner()
        generation = await running(store, owner)
        before = await third.fetchval(_VERSIONS)
        for position in range(5):
            await store.commit(owner, [Append(generation.data_stream, position, b"x")], [])
        assert await third.fetchval(_VERSIONS) == before
        assert await third.fetchval("select count(*) from streamkeep.chunks") == 5


@pytest.mark.parametrize(
    "statement", [PostgresStore._APPEND_AND_END, PostgresStore._APPEND_TO_KNOWN_AND_END], ids=["doubtful", "known"]
)
async def test_an_end_reads_no_table_whole_by_a_plan_from_when_it_was_empty(database_url: str, statement: str) -> None:
    async with opened(database_url), connected(database_url) as plain:
        await plain.execute(f"set plan_cache_mode = force_generic_plan; prepare ending as {statement}")
        rows = await plain.fetch(f"explain execute ending({', '.join(['null'] * 18)})")
        plan = "\n".join(row[0] for row in rows)
        assert "Seq Scan" not in plan
        assert plan.count("generations_pkey") == 1


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (Chunks._TAILS, 1),
        (Chunks._WRITERS_TAILS, 1),
        (Chunks._READ, 3),
        (Chunks._READ_APART, 3),
        (Chunks._READ_EACH, 3),
        (Chunks._SOURCES, 2),
    ],
    ids=["tails", "writers_tails", "read", "read_apart", "read_each", "sources"],
)
async def test_a_reader_reads_no_table_whole_by_a_plan_from_when_it_was_empty(
    database_url: str, statement: str, values: int
) -> None:
    async with opened(database_url), connected(database_url) as plain:
        await plain.execute(f"set plan_cache_mode = force_generic_plan; prepare reading as {statement}")
        rows = await plain.fetch(f"explain execute reading({', '.join(['null'] * values)})")
        assert "Seq Scan" not in "\n".join(row[0] for row in rows)


async def test_the_position_is_compared_also_when_the_store_wrote_before(database_url: str) -> None:
    """A tail that this store remembers spares the look-up, not the check."""
    async with opened(database_url) as store:
        owner = await store.register_owner()
        generation = await running(store, owner)
        await store.commit(owner, [Append(generation.data_stream, 0, b"12")], [])
        for position in (1, 3, 0):
            await raised(StoreError, store.commit(owner, [Append(generation.data_stream, position, b"x")], []))
        await store.commit(owner, [Append(generation.data_stream, 2, b"34")], [])
        for position in (4, 6):
            last = Append(generation.data_stream, 4, b"5")
            await raised(StoreError, store.commit(owner, [last], [ending(generation, position)]))
            await raised(StoreError, store.commit(owner, [], [ending(generation, position + 1)]))
        await store.commit(owner, [Append(generation.data_stream, 4, b"5")], [ending(generation, 5)])
        await raised(StoreError, store.commit(owner, [Append(generation.data_stream, 5, b"x")], []))
        assert await read_on(store, generation.data_stream) == b"12345"


@pytest.mark.parametrize("is_sealed", ["false", "true"])
async def test_a_chunk_that_holds_nothing_is_refused(database_url: str, is_sealed: str) -> None:
    size, empty = size_of("data", is_sealed), b"" if is_sealed == "false" else b"\0" * OVERHEAD_BYTES
    statement = f"insert into streamkeep.chunks select 1, 0, {size}, 0, data from (select $1::bytea as data) as written"
    async with connected(database_url) as third:
        with pytest.raises(asyncpg.NotNullViolationError):
            await third.execute(statement, empty)
        await third.execute(statement, empty + b"x")
        assert await third.fetchval("select size from streamkeep.chunks where stream_id = 1") == 1


# Merging

_ROWS = "select position, size, encoding, length(data) as stored from streamkeep.chunks where stream_id = $1 order by 1"


async def _fill(connection: Connection, generation: Generation, data: bytes, chunk_bytes: int) -> None:
    """Chunks as a long generation leaves them, without a commit for each."""
    await connection.execute(
        "insert into streamkeep.chunks (stream_id, position, size, data) "
        "select $1, start, length(part), part from generate_series(0, length($2::bytea) - 1, $3) as start, "
        "lateral (select substring($2::bytea from start + 1 for $3) as part) as parts",
        generation.data_stream,
        data,
        chunk_bytes,
    )


async def _filled(
    store: PostgresStore, owner: Owner, connection: Connection, data: bytes, chunk_bytes: int
) -> Generation:
    generation = await running(store, owner)
    await _fill(connection, generation, data, chunk_bytes)
    await store.commit(owner, [], [ending(generation, len(data))])
    return generation


async def test_many_chunks_become_a_few_compressed_segments(database_url: str) -> None:
    whole = b"".join(b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % i for i in range(20_000))
    async with opened(database_url) as store, connected(database_url) as third:
        generation = await _filled(store, await store.register_owner(), third, whole, 240)
        assert await store.merge() == 1
        assert await store.merge() == 0
        rows = await third.fetch(_ROWS, generation.data_stream)
        assert sum(row["size"] for row in rows) == len(whole)
        assert max(row["size"] for row in rows) <= SEGMENT_BYTES
        assert {row["encoding"] for row in rows} == {ZSTD}
        assert len(rows) < 10
        assert sum(row["stored"] for row in rows) * 5 < len(whole)
        assert await read_on(store, generation.data_stream, 0, 1 << 20) == whole
        for cut in random.Random(7).sample(range(len(whole)), 20):
            assert (await store.read(generation.data_stream, cut, 1000)).data == whole[cut : cut + 1000]


async def test_a_large_stream_is_merged_piece_by_piece(database_url: str) -> None:
    whole = EVERY_BYTE * (2 * PIECE_BYTES // 256 + 1000)
    async with opened(database_url) as store, connected(database_url) as third:
        generation = await _filled(store, await store.register_owner(), third, whole, 1 << 20)
        assert await store.merge(1) == 1
        assert await read_on(store, generation.data_stream, 0, 8 << 20) == whole
        assert await store.merge() == 2
        assert await store.merge() == 0
        assert {row["encoding"] for row in await third.fetch(_ROWS, generation.data_stream)} == {ZSTD}
        assert await read_on(store, generation.data_stream, 0, 8 << 20) == whole


async def test_what_does_not_compress_is_joined_and_kept_raw(database_url: str) -> None:
    whole = random.Random(7).randbytes(600_000)
    async with opened(database_url) as store, connected(database_url) as third:
        generation = await _filled(store, await store.register_owner(), third, whole, 5000)
        await store.merge()
        rows = await third.fetch(_ROWS, generation.data_stream)
        assert {row["encoding"] for row in rows} == {RAW}
        assert len(rows) < 6
        assert await read_on(store, generation.data_stream, 123_456, 70_000) == whole[123_456:]


async def test_one_large_chunk_is_cut_into_segments(database_url: str) -> None:
    whole = EVERY_BYTE * 4096
    async with opened(database_url) as store, connected(database_url) as third:
        generation = await ended(store, await store.register_owner(), key(), whole)
        await store.merge()
        rows = await third.fetch(_ROWS, generation.data_stream)
        assert [row["size"] for row in rows] == [SEGMENT_BYTES] * 4
        assert await read_on(store, generation.data_stream, 1) == whole[1:]


async def test_streams_that_cannot_gain_are_not_rewritten(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as third:
        generation = await ended(store, await store.register_owner(), key(), b"tiny")
        before = await third.fetch("select xmin, ctid from streamkeep.chunks order by stream_id")
        assert await store.merge() == 1  # The data stream; nobody looks at the one event of a control stream.
        assert await third.fetch("select xmin, ctid from streamkeep.chunks order by stream_id") == before
        assert await read_on(store, generation.data_stream) == b"tiny"


async def test_streams_are_left_in_peace_for_a_while_after_their_end(database_url: str) -> None:
    async with opened(database_url, merge_after_seconds=3600) as store:
        await ended(store, await store.register_owner(), key(), EVERY_BYTE * 50)
        assert await store.merge() == 0


async def test_concurrent_merges_take_different_streams(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as two:
        owner = await one.register_owner()
        generations = [await ended(one, owner, key(f"r{i}"), EVERY_BYTE * 50) for i in range(10)]
        merged = await asyncio.gather(*(store.merge(limit=10) for store in (one, two, one, two)))
        assert sum(merged) == 10
        for generation in generations:
            assert await read_on(two, generation.data_stream) == EVERY_BYTE * 50


async def test_a_read_of_single_byte_chunks_is_bounded_and_makes_progress(database_url: str) -> None:
    whole = EVERY_BYTE * 40
    async with opened(database_url) as store, connected(database_url) as third:
        owner = await store.register_owner()
        generation = await running(store, owner)
        await _fill(third, generation, whole, 1)
        piece = await store.read(generation.data_stream, 0, 1 << 20)
        assert 0 < len(piece.data) < len(whole)
        assert piece.tail == Tail(len(whole), False)
        assert await read_on(store, generation.data_stream, 5, 1 << 20) == whole[5:]
        await store.commit(owner, [], [ending(generation, len(whole))])
        await store.merge()
        assert len(await third.fetch(_ROWS, generation.data_stream)) == 1
        assert await read_on(store, generation.data_stream, 5) == whole[5:]


async def test_merging_and_sweeping_leave_no_orphaned_rows(database_url: str) -> None:
    retention = Retention(data_seconds=0, row_seconds=0)
    async with opened(database_url, retention=retention) as store, connected(database_url) as third:
        owner = await store.register_owner()
        for i in range(12):
            await ended(store, owner, key(f"r{i}"), EVERY_BYTE * 20)

        async def sweep() -> None:
            while await store.sweep(2):
                await asyncio.sleep(0)

        await asyncio.gather(sweep(), store.merge(limit=20), sweep(), store.merge(limit=20))
        await sweep()
        for table in ("chunks", "streams", "generations"):
            assert await third.fetchval(f"select count(*) from streamkeep.{table}") == 0


async def test_a_hole_is_reported_and_neither_read_nor_merged_over(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as third:
        generation = await _filled(store, await store.register_owner(), third, EVERY_BYTE * 4, 100)
        await third.execute(
            "delete from streamkeep.chunks where stream_id = $1 and position = 300", generation.data_stream
        )
        await store.merge()
        assert (await store.read(generation.data_stream, 0, 300)).data == (EVERY_BYTE * 4)[:300]
        assert "300" in str(await raised(StoreError, store.read(generation.data_stream, 0, 1000)))
        await raised(StoreError, store.read(generation.data_stream, 310, 20))


@pytest.mark.parametrize("size", [1, 255, SEGMENT_BYTES, SEGMENT_BYTES + 1, 3 * SEGMENT_BYTES + 5])
@pytest.mark.parametrize("is_random", [False, True])
def test_segments_hold_what_was_packed(size: int, is_random: bool) -> None:
    whole = random.Random(size).randbytes(size) if is_random else b"a" * size
    codec = Codec(Keyring())
    segments = codec.packed("t", 1, 1000, whole)
    assert b"".join(codec.unpacked("t", 1, segment) for segment in segments) == whole
    assert [s.position for s in segments] == list(range(1000, 1000 + size, SEGMENT_BYTES))
    assert all(len(s.data) <= s.size <= SEGMENT_BYTES for s in segments)


def test_a_damaged_segment_is_never_unpacked() -> None:
    codec = Codec(Keyring())
    (bomb,) = codec.packed("t", 1, 0, b"\0" * SEGMENT_BYTES)
    assert bomb.encoding == ZSTD
    for encoding, size, data in [
        (ZSTD, 100, bomb.data),
        (ZSTD, bomb.size, bomb.data[:-3]),
        (ZSTD, bomb.size, b"nonsense"),
        (8, bomb.size, bomb.data),
    ]:
        with pytest.raises(StoreError, match="damaged"):
            codec.unpacked("t", 1, Segment(0, size, encoding, data))


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("insert into streamkeep.chunks (stream_id, position, size, data) values (1, 0, null, $1)", b"row-secret"),
        ("insert into streamkeep.generations (tenant, fingerprint) values ('t', $1)", b"row-secret"),
        ("select $1::text::int", "row-secret"),
        ("select $1::int", "row-secret"),
        ("select $1::bytea", "row-secret"),
    ],
)
async def test_no_error_quotes_what_was_to_be_stored(database_url: str, statement: str, value: object) -> None:
    database = Database(database_url, pool_size=1, deadline_seconds=10, is_pooled=False)
    await database.open()
    try:
        error = await raised(StoreError, database.execute(statement, value))
    finally:
        await database.close()
    told = "".join(traceback.format_exception(error, limit=0))
    assert "secret" not in told
    assert b"row-secret".hex() not in told
