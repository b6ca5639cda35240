"""Storage: what Postgres writes for a byte that is received, and what it keeps of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from bench.bars import Figure, RowComparison
from bench.http_client import Connection
from bench.load import Load
from bench.routes import create
from bench.systems import OURS, SYSTEMS, VENDOR, Place, Site, System, site_at
from bench.workload import Workload

if TYPE_CHECKING:
    _Database: TypeAlias = asyncpg.Connection[asyncpg.Record]

_LIVE = Workload(generations=200, rate=30, chunk_bytes=200, seconds=7, ramp_seconds=2)
_WARM_UP = Workload(generations=10, rate=30, chunk_bytes=200, seconds=0.5, ramp_seconds=0.1)
_ANSWERS = 40
_TOKENS = 400
_MERGE_PATIENCE_SECONDS = 60

# The files of the database, indexes and all, and the log of its server.
_WRITTEN = """
select pg_database_size(current_database()) as files, (pg_current_wal_insert_lsn() - '0/0')::bigint as log
"""
_RECEIVED = "select coalesce(sum(final_position), 0)::bigint from streamkeep.streams where path like '%/data'"
_UNMERGED = "select count(*) from streamkeep.streams where merged_at is null"
_TABLES = ("streamkeep.chunks", "streamkeep.streams", "streamkeep.generations")
_KEPT = "select sum(pg_total_relation_size(name::regclass))::bigint from unnest($1::text[]) as name"


async def compare_storage(place: Place, say: Callable[[str], None]) -> RowComparison:
    """What is written while answers come, and what is kept of answers in OpenAI's format when they were merged."""
    say("storage: 45 s …")
    async with site_at(place) as site, SYSTEMS[OURS](site) as system, _database_of(system) as database:
        files, log, faults = await _written(system, site, database)
    async with site_at(place, VENDOR) as site, SYSTEMS[OURS](site) as system, _database_of(system) as database:
        kept = await _kept(system, site, database)
    figures = [
        Figure("written while answers come: files and log", "bytes a byte", 4, files + log),
        Figure("of these the log", "bytes a byte", 4, log),
        Figure("kept of merged answers", "bytes a byte", 0.35, kept),
    ]
    title = (
        f"Postgres under {_LIVE.generations} generations of {_LIVE.rate:g} chunks of {_LIVE.chunk_bytes} bytes a second; "
        f"and tables and indexes of {_ANSWERS} merged answers of {_TOKENS} tokens in OpenAI's format, after `vacuum full`"
    )
    return RowComparison("storage", title, figures, faults)


async def _written(system: System, site: Site, database: _Database) -> tuple[float, float, list[str]]:
    """Bytes of files and bytes of log for each byte received, before anything is merged; and what did not come whole."""

    def load(workload: Workload) -> Load:
        return Load(system.route, workload, upstream_url=site.upstream.url, parties=system.parties)

    await load(_WARM_UP).run("warm-up")
    before, received = await database.fetchrow(_WRITTEN), await database.fetchval(_RECEIVED)
    outcome = await load(_LIVE).run("live")
    after, received_then = await database.fetchrow(_WRITTEN), await database.fetchval(_RECEIVED)
    assert before is not None
    assert after is not None
    size = received_then - received
    return (after["files"] - before["files"]) / size, (after["log"] - before["log"]) / size, outcome.faults


async def _kept(system: System, site: Site, database: _Database) -> float:
    """Bytes in tables and indexes for each byte received, once all is merged."""
    connection = await Connection.open(system.route.base_url)
    for number in range(_ANSWERS):
        target = f"/v1/chat/completions?Fake-Tokens={_TOKENS}&Fake-Seed={number}"
        await create(connection, site.upstream.url + target, f"kept-{number}")
    connection.close()
    patience_until = time.monotonic() + _MERGE_PATIENCE_SECONDS
    while await database.fetchval(_UNMERGED) and time.monotonic() < patience_until:
        await asyncio.sleep(0.5)
    for table in _TABLES:
        await database.execute(f"vacuum full {table}")
    kept, received = await database.fetchval(_KEPT, _TABLES), await database.fetchval(_RECEIVED)
    return float(kept / received)


@asynccontextmanager
async def _database_of(system: System) -> AsyncIterator[_Database]:
    database = await asyncpg.connect(system.database_url)
    try:
        yield database
    finally:
        await database.close()
