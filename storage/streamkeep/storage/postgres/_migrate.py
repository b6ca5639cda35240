"""The schema, brought up to date: numbered SQL files, each applied once, in order, and never edited afterwards.

All of it is one transaction under an advisory lock, so several processes may start at once and a failure leaves nothing
half done.

The database may be in use, and whoever asks for a table for which a migration waits, waits behind it. So a migration waits
for tables in short tries. Each is undone as a whole when its time is over, and lets everybody else go on for a while.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from importlib import resources

import asyncpg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_fixed

from streamkeep.storage._errors import StoreError
from streamkeep.storage.postgres._database import DRIVER_ERRORS, connect, disconnect, given_up_after, translated

logger = logging.getLogger(__name__)

_LOCK = 0x73747265616D  # "stream": one lock for all processes that migrate one database
# Longer than a server takes to stop an autovacuum that is in the way: its `deadlock_timeout`, which is a second.
_TRY_SECONDS = 2.0
_PAUSE_SECONDS = 1.0
_MIN_SERVER_VERSION = 150000
# Who waits for a table that we hold, and holds one that we wait for, is in the way as well.
_IN_THE_WAY = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
_FILE_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All that this version of the code knows, in order."""
    found = []
    for file in (resources.files(__package__) / "migrations").iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match:
            found.append(Migration(int(match[1]), file.name, file.read_text("utf-8")))
    return sorted(found, key=lambda migration: migration.version)


async def migrate(
    dsn: str,
    *,
    up_to: int | None = None,
    connect_seconds: float = 10.0,
    statement_seconds: float = 120.0,
    lock_seconds: float = 60.0,
) -> list[int]:
    """Apply what is missing, up to a version if one is given; return the versions that were applied.

    Safe to call from several processes at once. The right to create a schema is needed the first time only. Others may use
    the tables meanwhile; those that keep them from being changed are waited for, for about `lock_seconds` in all.

    Raises:
        StoreError: the server is older than 15, the database is newer than this code, or a migration that was
            applied has been edited since, or something stands in the way of one.
        StoreUnavailable: the database does not answer.
    """
    try:
        connection = await connect(dsn, deadline_seconds=connect_seconds, statement_seconds=statement_seconds)
        try:
            async with connection.transaction(isolation="read_committed"):
                await connection.execute(given_up_after(max(connect_seconds, 5 * _PAUSE_SECONDS)))
                await connection.execute(f"select pg_advisory_xact_lock({_LOCK})")
                return await _in_tries(lock_seconds)(_try, connection, up_to)
        finally:
            await disconnect(connection)
    except _IN_THE_WAY as exc:
        raise StoreError(
            f"the schema cannot be brought up to date: for {lock_seconds:g} s others have kept tables in use that are to be "
            "changed; pg_locks and pg_stat_activity tell who, and an old transaction is the likeliest"
        ) from exc
    except (asyncpg.SyntaxOrAccessError, asyncpg.InvalidSchemaNameError) as exc:
        raise StoreError(f"the schema cannot be brought up to date: {exc}") from exc
    except (*DRIVER_ERRORS, ValueError) as exc:
        raise translated(exc) from exc


_HAS_TABLE = "select to_regclass('streamkeep.migrations') is not null"

_CREATE_TABLE = """
create schema if not exists streamkeep;
create table streamkeep.migrations (
    version    integer primary key,
    name       text not null,
    checksum   text not null,
    applied_at timestamptz not null default clock_timestamp()
)
"""

# The database may be in use. A commit that ends a generation holds this table while it waits for one that a migration changes,
# and the next migration may wait for this one. So commits wait before they hold anything; reading goes on.
_STOP_COMMITS = "lock table streamkeep.chunks in share row exclusive mode"

_APPLIED = "select version, checksum from streamkeep.migrations order by version"

_RECORD = "insert into streamkeep.migrations (version, name, checksum) values ($1, $2, $3)"


def _in_tries(seconds: float) -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(_IN_THE_WAY),
        wait=wait_fixed(_PAUSE_SECONDS),
        stop=stop_after_delay(seconds),
        before_sleep=_tell,
        reraise=True,
    )


def _tell(state: RetryCallState) -> None:
    logger.warning("the schema is to be changed, and others use its tables: waited %.0f s", state.seconds_since_start)


async def _try(connection: asyncpg.Connection[asyncpg.Record], up_to: int | None) -> list[int]:
    """Raises: one of `_IN_THE_WAY`: somebody is; nothing was done, and no lock is held but that of all who migrate, so nobody
    tries meanwhile."""
    async with connection.transaction():
        await connection.execute(f"set local lock_timeout = '{_TRY_SECONDS:g}s'")
        return await _apply(connection, up_to)


async def _apply(connection: asyncpg.Connection[asyncpg.Record], up_to: int | None) -> list[int]:
    server_version: int = await connection.fetchval("select current_setting('server_version_num')::int")
    if server_version < _MIN_SERVER_VERSION:
        raise StoreError(f"PostgreSQL 15 or newer is needed; this server is {server_version // 10000}")
    if not await connection.fetchval(_HAS_TABLE):
        await connection.execute(_CREATE_TABLE)
    known = {migration.version: migration for migration in migrations()}
    applied = {row["version"]: row["checksum"] for row in await connection.fetch(_APPLIED)}
    for version, checksum in applied.items():
        if version not in known:
            raise StoreError(f"the database is at migration {version}, which this version does not know: upgrade it")
        if known[version].checksum != checksum:
            raise StoreError(f"{known[version].name} was edited after it had been applied to this database")
    missing = [m for m in known.values() if m.version not in applied and (up_to is None or m.version <= up_to)]
    if missing and applied:
        await connection.execute(_STOP_COMMITS)
    for migration in missing:
        await connection.execute(migration.sql)
        await connection.execute(_RECORD, migration.version, migration.name, migration.checksum)
    return [migration.version for migration in missing]
