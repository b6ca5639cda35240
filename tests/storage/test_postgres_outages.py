"""The database goes away, refuses, or falls silent: callers get one kind of error, in time, and what works afterwards."""

from __future__ import annotations

import asyncio

import anyio.to_thread
import asyncpg
import pytest

from streamkeep.storage import Append, ItemRefused, StoreError, StoreUnavailable, Tail
from streamkeep.storage.contract import Ears, raised, read_on, running
from streamkeep.storage.postgres import PostgresStore
from streamkeep.storage.postgres._database import translated
from tests.database import PrivateServer
from tests.postgres import Relay, connected, opened, role, take_key, until, until_waiting


async def test_after_a_restart_the_next_calls_work(private_server: PrivateServer) -> None:
    ears = Ears()
    async with opened(private_server.url, ears=ears) as store:
        owner = await store.register_owner()
        generation = await running(store, owner)
        await store.commit(owner, [Append(generation.data_stream, 0, b"before")], [])
        await asyncio.gather(*(store.ping() for _ in range(10)))
        await anyio.to_thread.run_sync(private_server.stop)
        await raised(StoreUnavailable, store.ping())
        await raised(StoreUnavailable, store.commit(owner, [Append(generation.data_stream, 6, b"x")], []))
        await anyio.to_thread.run_sync(private_server.start)
        await asyncio.gather(*(store.ping() for _ in range(10)))
        assert await store.settle(owner, [generation.data_stream]) == {generation.data_stream: Tail(6, False)}
        await store.commit(owner, [Append(generation.data_stream, 6, b", after")], [])
        assert await read_on(store, generation.data_stream) == b"before, after"
        await until(lambda: None in ears.changed)


async def test_what_was_acknowledged_is_there_after_the_server_was_killed(private_server: PrivateServer) -> None:
    async with opened(private_server.url) as store:
        owner = await store.register_owner()
        generation = await running(store, owner)
        acknowledged = 0

        async def write_until_it_breaks() -> None:
            nonlocal acknowledged
            while True:
                await store.commit(owner, [Append(generation.data_stream, acknowledged, b"0123456789")], [])
                acknowledged += 10

        writing = asyncio.create_task(raised(StoreUnavailable, write_until_it_breaks()))
        await until(lambda: acknowledged > 200)
        await anyio.to_thread.run_sync(private_server.kill)
        await writing
        await anyio.to_thread.run_sync(private_server.wait_until_ready)
        tail = (await store.settle(owner, [generation.data_stream]))[generation.data_stream]
        assert tail.position in (acknowledged, acknowledged + 10)
        assert await read_on(store, generation.data_stream) == b"0123456789" * (tail.position // 10)
        await store.commit(owner, [Append(generation.data_stream, tail.position, b"on")], [])


async def test_a_server_that_falls_silent_holds_no_call_beyond_its_deadline(private_server: PrivateServer) -> None:
    async with opened(private_server.url, deadline_seconds=2.0) as store:
        owner = await store.register_owner()
        generation = await running(store, owner)
        await asyncio.gather(*(store.ping() for _ in range(3)))
        (lease,) = await store.leases()
        await anyio.to_thread.run_sync(private_server.freeze)
        async with asyncio.timeout(30):
            await asyncio.gather(
                raised(StoreUnavailable, store.ping()),
                raised(StoreUnavailable, store.commit(owner, [Append(generation.data_stream, 0, b"x")], [])),
                raised(StoreUnavailable, store.read(generation.data_stream, 0, 10)),
                raised(StoreUnavailable, store.recover(lease)),
            )
        await anyio.to_thread.run_sync(private_server.thaw)
        await store.ping()
        assert set(await store.tails([generation.data_stream])) == {generation.data_stream}


async def test_a_black_hole_in_the_network_does_not_swallow_calls(database_url: str) -> None:
    async with Relay.to(database_url) as relay, opened(relay.url, deadline_seconds=2.0) as store:
        owner = await store.register_owner()
        generation = await running(store, owner)
        await asyncio.gather(*(store.ping() for _ in range(5)))
        relay.hold()
        append = Append(generation.data_stream, 0, b"x")
        async with asyncio.timeout(20):
            await raised(StoreUnavailable, store.commit(owner, [append], []))
        relay.cut()
        relay.release()
        tails = await store.settle(owner, [generation.data_stream])
        assert tails[generation.data_stream].position in (0, 1)


async def test_a_machine_that_vanishes_within_a_transaction_leaves_no_locks_behind(database_url: str) -> None:
    async with (
        Relay.to(database_url) as relay,
        opened(relay.url, deadline_seconds=2.0) as lost,
        opened(database_url) as other,
        connected(database_url) as third,
    ):
        owner = await lost.register_owner()
        await running(lost, owner)
        rival = third.transaction()
        await rival.start()
        await third.execute("select from streamkeep.owners for update")
        settling = asyncio.create_task(raised(StoreUnavailable, lost.settle(owner, [])))
        await until_waiting(third)
        relay.hold()
        await rival.rollback()
        await until(lambda: relay.held_bytes)
        relay.cut()
        await settling
        (lease,) = await other.leases()
        assert await other.recover(lease) == 1


async def test_a_store_opens_only_where_there_is_a_database(database_url: str) -> None:
    nowhere = "postgresql://postgres@127.0.0.1:1/nowhere"
    for url in (nowhere, database_url.replace("/streamkeep_test", "/no_such_database")):
        await raised(StoreUnavailable, PostgresStore(url, deadline_seconds=2).open())
    await raised(StoreError, PostgresStore("postgresql://postgres@127.0.0.1:port/x").open())
    await raised(StoreUnavailable, PostgresStore(database_url).ping())


async def test_waiting_for_a_connection_counts_against_the_deadline(database_url: str) -> None:
    async with opened(database_url, pool_size=1, deadline_seconds=2.0) as store, connected(database_url) as third:
        rival = third.transaction()
        await rival.start()
        await third.execute("lock table streamkeep.generations in access exclusive mode")
        sweep = asyncio.create_task(store.sweep())  # Upkeep may take longer than other calls.
        await until_waiting(third)
        await raised(StoreUnavailable, store.ping())
        await rival.rollback()
        assert await sweep == 0
        await store.ping()


async def test_a_connection_that_is_kept_goes_to_whoever_waits_for_one(database_url: str) -> None:
    async with opened(database_url, pool_size=1) as store, connected(database_url) as third:
        await store.ping()
        await asyncio.gather(*(store.ping() for _ in range(5)))
        assert (store.status().connections, store.status().busy_connections) == (1, 0)
        await third.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and query = 'select 1'"
        )
        await until(lambda: store.status().connections == 0)
        await store.ping()


async def test_a_crowd_in_the_ordinary_lane_leaves_room_for_heartbeats_and_commits(database_url: str) -> None:
    async with opened(database_url, pool_size=3) as store, connected(database_url) as third:
        owner = await store.register_owner()
        generation = await running(store, owner)
        rival = third.transaction()
        await rival.start()
        await third.execute("lock table streamkeep.secrets in access exclusive mode")
        crowd = [asyncio.create_task(store.signing_key()) for _ in range(20)]
        await until_waiting(third)
        await store.renew(owner)
        await store.leases()
        await store.commit(owner, [Append(generation.data_stream, 0, b"x")], [])
        await store.settle(owner, [])
        await rival.rollback()
        assert len(set(await asyncio.gather(*crowd))) == 1


async def test_calls_that_wait_for_long_get_connections_of_their_own(database_url: str) -> None:
    async with opened(database_url, pool_size=10) as store, connected(database_url) as third:
        rival = third.transaction()
        await rival.start()
        await third.execute("lock table streamkeep.secrets in access exclusive mode")
        crowd = [asyncio.create_task(store.signing_key()) for _ in range(20)]
        await until(lambda: store.status().busy_connections == 8)
        crowd[0].cancel()
        await rival.rollback()
        assert len(set(await asyncio.gather(*crowd[1:]))) == 1
        await store.ping()


async def test_a_caller_that_is_cancelled_leaves_a_connection_that_works(database_url: str) -> None:
    async with opened(database_url, pool_size=1) as store, connected(database_url) as third:
        owner = await store.register_owner()
        generation = await running(store, owner)
        rival = third.transaction()
        await rival.start()
        await take_key(third, generation, 0)
        append = Append(generation.data_stream, 0, b"x")
        commit = asyncio.create_task(store.commit(owner, [append], []))
        await until_waiting(third)
        commit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await commit
        await rival.rollback()
        await store.settle(owner, [generation.data_stream])
        await store.commit(owner, [append], [])


async def test_a_server_without_free_connections_is_unavailable(database_url: str) -> None:
    async with connected(database_url) as third, role(third, database_url, "connection limit 1") as url, connected(url):
        await raised(StoreUnavailable, PostgresStore(url, deadline_seconds=2).open())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncpg.AdminShutdownError("57P01"), StoreUnavailable),
        (asyncpg.CrashShutdownError("57P02"), StoreUnavailable),
        (asyncpg.CannotConnectNowError("57P03"), StoreUnavailable),
        (asyncpg.QueryCanceledError("57014"), StoreUnavailable),
        (asyncpg.TooManyConnectionsError("53300"), StoreUnavailable),
        (asyncpg.DiskFullError("53100"), StoreUnavailable),
        (asyncpg.OutOfMemoryError("53200"), StoreUnavailable),
        (asyncpg.SerializationError("40001"), StoreUnavailable),
        (asyncpg.DeadlockDetectedError("40P01"), StoreUnavailable),
        (asyncpg.ConnectionDoesNotExistError("08003"), StoreUnavailable),
        (asyncpg.ConnectionFailureError("08006"), StoreUnavailable),
        (asyncpg.ReadOnlySQLTransactionError("25006: a standby was asked"), StoreUnavailable),
        (asyncpg.InterfaceError("connection is closed"), StoreUnavailable),
        (asyncpg.InternalClientError("protocol out of step"), StoreUnavailable),
        (ConnectionRefusedError(), StoreUnavailable),
        (TimeoutError(), StoreUnavailable),
        (EOFError(), StoreUnavailable),
        (asyncpg.CharacterNotInRepertoireError("22021"), ItemRefused),
        (asyncpg.UniqueViolationError("23505"), ItemRefused),
        (asyncpg.CheckViolationError("23514"), ItemRefused),
        (asyncpg.ProgramLimitExceededError("54000"), ItemRefused),
        (asyncpg.DataError("no such integer"), ItemRefused),
        (asyncpg.ClientConfigurationError("bad DSN"), StoreError),
    ],
)
def test_driver_errors_become_ours(error: Exception, expected: type[StoreError]) -> None:
    assert type(translated(error)) is expected
