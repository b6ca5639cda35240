"""A Postgres table, a stream and an SQLite table: equal in the end, whoever was killed in between."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from streamkeep.client import DurableStream
from streamkeep.client.state import MaterializedState
from tests.serving import Proxy

BRIDGE = Path(__file__).parents[2] / "examples" / "postgres_bridge.py"
MIRROR = """
import sys
from streamkeep.client import DurableStream
from streamkeep.client.state import mirror
with DurableStream(sys.argv[1], content_type="application/json") as stream:
    print("mirroring", flush=True)
    mirror(stream, sys.argv[2], live=True)
"""
CHANGES = 200
KILLS = 4


class Restarted:
    """A program that is killed at some moments and started again."""

    def __init__(self, *command: str) -> None:
        self._command = (sys.executable, *command)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._command, stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            assert await self._process.stdout.readline()

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.communicate()


def change(database: psycopg.Connection[Any], dice: random.Random) -> None:
    """A transaction of a few changes; some are taken back."""
    with database.transaction(force_rollback=dice.random() < 0.1):
        for _ in range(dice.randrange(1, 4)):
            key = dice.randrange(1, 30)
            match dice.randrange(6):
                case 0:
                    database.execute("DELETE FROM items WHERE id = %s", (key,))
                case 1:
                    free = "NOT EXISTS (SELECT 1 FROM items WHERE id = %(other)s)"
                    moved = {"key": key, "other": key + 100}
                    database.execute(f"UPDATE items SET id = %(other)s WHERE id = %(key)s AND {free}", moved)
                case 2 if dice.random() < 0.05:
                    database.execute("TRUNCATE items")
                case _:
                    name = dice.choice(["Łódź", None, 'a\\b"c', "\u2028"])
                    database.execute(
                        "INSERT INTO items VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET name = excluded.name",
                        (key, name),
                    )


def source_rows(database: psycopg.Connection[Any]) -> dict[str, Any]:
    return {str(key): {"id": key, "name": name} for key, name in database.execute("SELECT id, name FROM items")}


def mirrored_rows(path: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(path)) as copy:
        return {key: json.loads(value) for key, value in copy.execute("SELECT key, value FROM state")}


async def test_source_and_copy_are_equal_after_kills(
    proxy: Proxy, database_url: str, session: str, tmp_path: Path
) -> None:
    url, path, dice = f"{proxy.url}/v1/stream/{session}", tmp_path / "copy.sqlite3", random.Random(7)
    bridge = Restarted(str(BRIDGE), database_url, "items", url)
    copier = Restarted("-c", MIRROR, url, str(path))
    with psycopg.connect(database_url, autocommit=True) as database:
        database.execute("CREATE TABLE items (id int PRIMARY KEY, name text)")
        database.execute("INSERT INTO items SELECT id, 'old' FROM generate_series(1, 9) AS id")
        await bridge.start()
        await copier.start()
        for number in range(KILLS):
            for _ in range(CHANGES // KILLS):
                await asyncio.to_thread(change, database, dice)
            killed = (bridge, copier)[number % 2]
            await killed.kill()
            await asyncio.to_thread(change, database, dice)
            await killed.start()
        async with asyncio.timeout(60):
            while database.execute("SELECT count(*) FROM stream_outbox").fetchone() != (0,):
                await asyncio.sleep(0.02)
            expected = source_rows(database)
            while await asyncio.to_thread(mirrored_rows, path) != expected:
                await asyncio.sleep(0.02)
        [sent] = database.execute("SELECT next_sequence FROM stream_bridge").fetchone() or (None,)
    await bridge.kill()
    await copier.kill()
    with DurableStream(url) as stream:
        events = (await asyncio.to_thread(stream.read)).json()
    state = MaterializedState()
    state.apply_batch(events)
    assert dict(state.of_type("items")) == expected
    assert len(events) == sent, "each change once"
