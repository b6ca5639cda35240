"""The connections that are kept between calls: ready before anybody calls, and never silent for long."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeAlias

from streamkeep.storage import Append, StreamKey
from streamkeep.storage.contract import FINGERPRINT, HEAD, Ears, ended, ending, key, running
from streamkeep.storage.postgres import PostgresStore
from tests.postgres import DEADLINE_SECONDS, Connection, connected, opened, role, until

_KEPT = 3

_PLANS = """
select pg_backend_pid() as pid, statement, custom_plans, generic_plans > 0 as is_kept
from pg_prepared_statements
where statement = any($1::text[])
"""

Plans: TypeAlias = Mapping[tuple[int, str], tuple[int, bool]]
"""By connection and statement: how often a plan was made for a single run, and whether there is one that is kept."""


async def test_a_crowd_meets_connections_that_have_their_plans(database_url: str) -> None:
    async with opened(database_url, warms_up=True) as store:
        owner = await store.register_owner()
        ready = await _plans(store)
        assert all(is_kept for _, is_kept in ready.values())
        writing = asyncio.Lock()

        async def take_all_the_way(request_id: str) -> None:
            generation = (await store.claim(owner, key(request_id), FINGERPRINT)).generation
            await store.start(generation, HEAD, FINGERPRINT)
            async with writing:
                await store.commit(owner, [Append(generation.data_stream, 0, b"x")], [])
                await store.commit(owner, [Append(generation.data_stream, 1, b"y")], [ending(generation, 2)])
            assert await store.generation(key(request_id))
            stream = await store.stream(StreamKey(generation.key.tenant, generation.key.data_path))
            assert (await store.read(stream.id, 0, 100)).data == b"xy"

        for number in range(10):
            # With what the store does beside it, as many as it lets in at once.
            await asyncio.gather(take_all_the_way(f"a{number}"), take_all_the_way(f"b{number}"))
        assert await _plans(store) == ready


_OF_FEW = "connection limit {limit} in role pg_read_all_data, pg_write_all_data"


async def test_where_there_are_too_few_connections_one_is_left_to_who_listens(database_url: str) -> None:
    async with (
        connected(database_url) as third,
        role(third, database_url, _OF_FEW.format(limit=2)) as url,
        opened(url, warms_up=True) as store,
    ):
        await until(lambda: store.status().is_listening)
        await store.ping()


async def test_a_server_that_still_counts_what_getting_ready_has_ended_is_asked_again(database_url: str) -> None:
    for _ in range(10):
        async with (
            connected(database_url) as third,
            role(third, database_url, _OF_FEW.format(limit=1)) as url,
            opened(url, warms_up=True) as store,
        ):
            await store.ping()


async def test_beside_the_kept_connections_two_are_enough_to_listen_and_to_tell(database_url: str) -> None:
    ears = Ears()
    async with (
        connected(database_url) as third,
        role(third, database_url, _OF_FEW.format(limit=_KEPT + 2)) as url,
        opened(url, warms_up=True) as store,
        opened(database_url, ears=ears),
    ):
        await until(lambda: store.status().is_listening)
        generation = await running(store, await store.register_owner())
        await store.commit(generation.owner, [Append(generation.data_stream, 0, b"x")], [])
        await until(lambda: ears.has_heard_of(generation.data_stream))


async def test_getting_ready_leaves_no_trace(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as third:
        await ended(store, await store.register_owner(), key())
        before = await _rows(third)
        async with opened(database_url, warms_up=True):
            assert await _rows(third) == before


async def test_leases_are_looked_up_over_all_connections_in_turn(database_url: str) -> None:
    async with opened(database_url, warms_up=True) as store, connected(database_url) as third:
        that_asked = "select count(*) from pg_stat_activity where datname = current_database() and query = $1"
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await third.fetchval(that_asked, PostgresStore._LEASES) < _KEPT:
                await store.leases()


async def _plans(store: PostgresStore) -> Plans:
    """Of what all need, on the connections that are kept."""
    needed = [statement for statement, _ in store._needed_by_all()]
    plans: dict[tuple[int, str], tuple[int, bool]] = {}
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(plans) < _KEPT * len(needed):
            store._database.take_turns()
            rows = await store._database.fetch(_PLANS, needed, is_urgent=True)
            plans |= {(row["pid"], row["statement"]): (row["custom_plans"], row["is_kept"]) for row in rows}
    return plans


async def _rows(connection: Connection) -> list[object]:
    tables = ("owners", "generations", "streams", "chunks", "stream_changes")
    contents = [f"select string_agg(t::text, ',' order by t::text) from streamkeep.{table} t" for table in tables]
    last_id = "select last_value from streamkeep.streams_id_seq"
    return [await connection.fetchval(statement) for statement in (*contents, last_id)]
