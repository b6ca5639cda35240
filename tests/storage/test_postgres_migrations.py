"""The schema comes about step by step, once, whoever starts first, and never goes backwards."""

from __future__ import annotations

import asyncio

import pytest

from streamkeep.storage import StoreError, StoreUnavailable
from streamkeep.storage.contract import raised
from streamkeep.storage.postgres import PostgresStore, migrate
from streamkeep.storage.postgres._migrate import migrations
from tests.postgres import DEADLINE_SECONDS, Connection, connected, role, until_waiting

_COLUMNS = """
select table_name, column_name, data_type, is_nullable, column_default
from information_schema.columns
where table_schema = 'streamkeep'
order by table_name, column_name
"""


_READ_CHUNKS = "select from streamkeep.chunks"


@pytest.fixture
async def empty_url(database_url: str) -> str:
    """The URL of a database without our schema."""
    async with connected(database_url) as connection:
        await connection.execute("drop schema streamkeep cascade")
    return database_url


async def _columns(connection: Connection) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in await connection.fetch(_COLUMNS)]


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [migration.version for migration in migrations()] == list(range(1, len(migrations()) + 1))


async def test_migrations_apply_one_by_one_and_end_where_all_at_once_ends(empty_url: str) -> None:
    for migration in migrations():
        assert await migrate(empty_url, up_to=migration.version) == [migration.version]
    assert await migrate(empty_url) == []
    async with connected(empty_url) as connection:
        one_by_one = await _columns(connection)
        await connection.execute("drop schema streamkeep cascade")
        assert await migrate(empty_url) == [migration.version for migration in migrations()]
        assert await _columns(connection) == one_by_one


async def test_of_many_that_start_at_once_one_migrates(empty_url: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_url) for _ in range(5)))
    assert sorted(applied) == [[]] * 4 + [[migration.version for migration in migrations()]]


async def test_a_database_from_the_future_is_refused(database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute("insert into streamkeep.migrations (version, name, checksum) values (9999, 'x', 'x')")
    assert "9999" in str(await raised(StoreError, migrate(database_url)))
    await raised(StoreError, PostgresStore(database_url).open())


async def test_an_edited_migration_is_refused(database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute("update streamkeep.migrations set checksum = 'other' where version = 1")
    assert "0001_streams.sql" in str(await raised(StoreError, migrate(database_url)))


async def test_a_failed_migration_leaves_nothing_behind(empty_url: str) -> None:
    async with connected(empty_url) as connection:
        # What the migration is about to make stands in its way.
        await connection.execute("create schema streamkeep; create table streamkeep.secrets ()")
        error = await raised(StoreError, migrate(empty_url))
        assert not isinstance(error, StoreUnavailable)
        assert await connection.fetchval("select to_regclass('streamkeep.streams')") is None
        await connection.execute("drop table streamkeep.secrets")
        assert await migrate(empty_url) == [migration.version for migration in migrations()]


async def test_everything_stands_in_a_schema_of_our_own(database_url: str) -> None:
    async with connected(database_url) as connection:
        found = await connection.fetch(
            "select distinct relnamespace::regnamespace::text as name from pg_class where oid >= 16384 "
            "and relnamespace::regnamespace::text !~ '^pg_'"
        )
        assert [row["name"] for row in found] == ["streamkeep"]


async def test_a_role_that_may_not_create_schemas_can_start_on_a_migrated_database(database_url: str) -> None:
    options = "in role pg_read_all_data, pg_write_all_data"
    async with connected(database_url) as third, role(third, database_url, options) as url:
        assert await migrate(url) == []


async def test_an_interrupted_migration_is_not_half_applied(empty_url: str) -> None:
    async with connected(empty_url) as third:
        lock = third.transaction()
        await lock.start()
        await third.execute("create schema streamkeep")
        task = asyncio.create_task(migrate(empty_url))
        await until_waiting(third)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await lock.rollback()
        assert await migrate(empty_url) == [migration.version for migration in migrations()]


async def test_a_migration_and_a_commit_under_way_do_not_wait_for_each_other(empty_url: str) -> None:
    # The first of these changes what generations stand in, and the next what chunks stand in.
    await migrate(empty_url, up_to=14)
    async with connected(empty_url) as third:
        async with third.transaction():
            await third.execute("lock table streamkeep.chunks in row exclusive mode")
            task = asyncio.create_task(migrate(empty_url, up_to=16))
            await until_waiting(third)
            assert await third.fetch("select from streamkeep.generations") == []
        assert await task == [15, 16]


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamkeep.storage.postgres._migrate._PAUSE_SECONDS", 0.1)


@pytest.fixture
def short_tries(monkeypatch: pytest.MonkeyPatch, short_pauses: None) -> None:
    monkeypatch.setattr("streamkeep.storage.postgres._migrate._TRY_SECONDS", 0.1)


@pytest.mark.usefixtures("short_tries")
async def test_what_is_asked_while_a_migration_waits_is_answered(
    empty_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await migrate(empty_url, up_to=15)
    async with connected(empty_url) as backup, connected(empty_url) as third:
        async with backup.transaction():
            await backup.execute(_READ_CHUNKS)
            task = asyncio.create_task(migrate(empty_url))
            await until_waiting(third)
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert await third.fetch(_READ_CHUNKS) == []
                while "others use its tables" not in caplog.text:
                    await asyncio.sleep(0.005)
            assert not task.done()
        assert await task == [migration.version for migration in migrations()[15:]]


@pytest.mark.usefixtures("short_tries")
async def test_a_migration_gives_up_when_others_are_in_the_way_for_too_long(empty_url: str) -> None:
    await migrate(empty_url, up_to=15)
    async with connected(empty_url) as backup:
        async with backup.transaction():
            await backup.execute(_READ_CHUNKS)
            error = await raised(StoreError, migrate(empty_url, lock_seconds=0.0))
            assert "pg_locks" in str(error)
            assert not isinstance(error, StoreUnavailable)
        assert await migrate(empty_url) == [migration.version for migration in migrations()[15:]]


@pytest.mark.usefixtures("short_pauses")
async def test_a_migration_that_is_undone_for_a_deadlock_tries_again(empty_url: str) -> None:
    await migrate(empty_url, up_to=14)
    async with connected(empty_url) as other, connected(empty_url) as third:
        # The server takes the one who looks first, and it is not to be this one.
        await other.execute("set deadlock_timeout = '600s'")
        async with other.transaction():
            await other.fetch("select from streamkeep.generations")
            task = asyncio.create_task(migrate(empty_url, up_to=15))
            await until_waiting(third)
            await other.execute("lock table streamkeep.chunks in row exclusive mode")
        assert await task == [15]
