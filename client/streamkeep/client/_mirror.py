"""`mirror` and `amirror`: an SQLite table that is equal to a state stream."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from streamkeep.client._errors import InvalidEvent, LocalStoreFailed
from streamkeep.client._handles import AsyncDurableStream, DurableStream
from streamkeep.client._streams import LiveMode
from streamkeep.sessions.state_events import Control, parse_event

T = TypeVar("T")

_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}")
_BUSY_SECONDS = 30.0


def mirror(handle: DurableStream, path: str | os.PathLike[str], *, table: str = "state", live: LiveMode = False) -> str:
    """Bring an SQLite table up to a state stream's tail; the offset reached. With `live` go on until it is closed.

    The table has the columns `type`, `key` and `value`, which is JSON, and a row for each value that is there. How far it
    has come stands beside it in `{table}_offset`, and moves in the same transaction as its rows: every event counts once,
    whenever the process dies. Malformed events are passed over.

    Raises:
        ValueError: the table's name is none.
        LocalStoreFailed: the file cannot be written, or another mirror writes to this table.
        StreamNotFound, InvalidOffset, ServerError, ConnectionFailed, ProtocolError: the stream cannot be read on.
    """
    _check_name(table)
    with _failures(path), closing(_connected(path)) as database:
        offset = _prepare(database, table)
        with handle.stream(offset=offset, live=live) as response:
            for batch in response.iter_json_batches():
                if batch.offset != offset:
                    _store(database, table, batch.items, offset, batch.offset)
                    offset = batch.offset
        return offset


async def amirror(
    handle: AsyncDurableStream, path: str | os.PathLike[str], *, table: str = "state", live: LiveMode = False
) -> str:
    """`mirror` for asyncio. The file is written in a thread; whoever cancels leaves a whole transaction behind, or none."""
    _check_name(table)
    with _failures(path), closing(await asyncio.to_thread(_connected, path)) as database:
        offset = await _finished(_prepare, database, table)
        async with handle.stream(offset=offset, live=live) as response:
            async for batch in response.iter_json_batches():
                if batch.offset != offset:
                    await _finished(_store, database, table, batch.items, offset, batch.offset)
                    offset = batch.offset
        return offset


async def _finished(work: Callable[..., T], *arguments: object) -> T:
    """What a thread makes of it. It is waited for when this is cancelled too: it has the database's connection."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


def _check_name(table: str) -> None:
    if not _TABLE.fullmatch(table):
        raise ValueError("a table's name has letters, digits and underscores")


@contextmanager
def _failures(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise LocalStoreFailed(f"the mirror {os.fspath(path)} cannot be written: {exc}") from exc


def _connected(path: str | os.PathLike[str]) -> sqlite3.Connection:
    # Used in one thread at a time, though not always in the same one.
    return sqlite3.connect(Path(path), timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _prepare(database: sqlite3.Connection, table: str) -> str:
    """Make the table if there is none; the offset that it stands at."""
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(
        f"""
        BEGIN IMMEDIATE;
        CREATE TABLE IF NOT EXISTS {table} (
            type TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (type, key)
        ) WITHOUT ROWID;
        CREATE TABLE IF NOT EXISTS {table}_offset (one INTEGER PRIMARY KEY CHECK (one = 1), offset TEXT NOT NULL);
        INSERT OR IGNORE INTO {table}_offset VALUES (1, '-1');
        COMMIT;
        """
    )
    [offset] = database.execute(f"SELECT offset FROM {table}_offset").fetchone()
    return str(offset)


def _store(database: sqlite3.Connection, table: str, events: Iterable[object], begin: str, end: str) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        moved = database.execute(f"UPDATE {table}_offset SET offset = ? WHERE offset = ?", (end, begin))
        if moved.rowcount != 1:
            raise LocalStoreFailed(f"another mirror writes to the table {table}")
        for event in events:
            _apply(database, table, event)
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _apply(database: sqlite3.Connection, table: str, event: object) -> None:
    try:
        found = parse_event(event)
    except InvalidEvent:
        return
    if isinstance(found, Control):
        if found.kind == "reset":
            database.execute(f"DELETE FROM {table}")
        return
    try:
        f"{found.type}{found.key}".encode()
    except UnicodeEncodeError:
        return  # Half a character is no text for SQLite.
    if found.operation == "delete":
        database.execute(f"DELETE FROM {table} WHERE type = ? AND key = ?", (found.type, found.key))
    else:
        value = json.dumps(found.value, separators=(",", ":"))
        database.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", (found.type, found.key, value))
