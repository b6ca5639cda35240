"""Where a client keeps which generations it is reading, so that a later process can resume them.

A record holds ids and positions, no URLs: those are signed, and a fresh one is asked for when it is needed. Records are
kept by generation, so neither two tabs nor two requests of one session ever touch each other's.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from streamkeep.client._errors import LocalStoreFailed
from streamkeep.client._rules import wire
from streamkeep.client._sqlite import SQLiteFile

KEEP_SECONDS = 7 * 24 * 3600.0
"""How long a record stays that nobody touches."""


class RecordState(StrEnum):
    """How the reading of a generation stands: going on (or its process died), closed early, delivered to its end."""

    OPEN = "open"
    LEFT = "left"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """One generation as this client knows it.

    `position` is the byte up to which the caller has taken the body; a resume goes on there. `handed_position` is the
    one up to which it was handed over, which is further by the last piece when the caller left without asking for more.
    """

    proxy_url: str
    session_id: str
    request_id: str
    created_at: datetime
    updated_at: datetime
    state: RecordState = RecordState.OPEN
    position: int = 0
    handed_position: int = 0


@contextmanager
def reading_records(session_id: str) -> Iterator[None]:
    """What somebody else wrote into a store is no record. Raises: LocalStoreFailed."""
    try:
        yield
    except (ArithmeticError, OSError, RecursionError, TypeError, ValueError) as exc:
        raise LocalStoreFailed(f"the store holds something damaged for the session {session_id!r}") from exc


def checked_record(record: GenerationRecord) -> GenerationRecord:
    """A record as it was read. Raises: ValueError: a field holds what none can."""
    for position in (record.position, record.handed_position):
        if type(position) is not int or not 0 <= position <= wire.MAX_POSITION:
            raise ValueError("not a position")
    for at in (record.created_at, record.updated_at):
        if at.tzinfo is None:
            raise ValueError("not an instant")
    return record


class GenerationStore(Protocol):
    """A place for records. Calls may come from several threads, and should be short; the async client makes them in a
    worker thread. An error that they raise fails the call that wanted to be recorded."""

    def put(self, record: GenerationRecord) -> None:
        """Keep a record, in the place of an earlier one of the same proxy, session and request."""

    def records(self, proxy_url: str, session_id: str) -> list[GenerationRecord]:
        """A session's records, the newest creation first."""

    def remove(self, proxy_url: str, session_id: str, request_id: str) -> None:
        """Forget a record; nothing happens when there is none."""


class MemoryStore(GenerationStore):
    """Records that last as long as the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str], dict[str, GenerationRecord]] = {}

    def put(self, record: GenerationRecord) -> None:
        with self._lock:
            self._records.setdefault((record.proxy_url, record.session_id), {})[record.request_id] = record

    def records(self, proxy_url: str, session_id: str) -> list[GenerationRecord]:
        with self._lock:
            found = list(self._records.get((proxy_url, session_id), {}).values())
        return sorted(found, key=lambda record: record.created_at)[::-1]

    def remove(self, proxy_url: str, session_id: str, request_id: str) -> None:
        with self._lock:
            session = self._records.get((proxy_url, session_id), {})
            session.pop(request_id, None)
            if not session:
                self._records.pop((proxy_url, session_id), None)


class SQLiteStore(GenerationStore):
    """Records in a SQLite file that any number of processes and threads may share.

    By default the file lies in the user's state directory; it is readable by its owner alone. Records that were not
    touched for `keep_seconds` are dropped. A database that cannot be used is a `LocalStoreFailed` at the first call.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, keep_seconds: float = KEEP_SECONDS) -> None:
        self._keep_seconds = keep_seconds
        self._file = SQLiteFile(
            path, "generations.sqlite3", _MIGRATIONS, on_open=self._sweep, instead="store=MemoryStore()"
        )
        self.path: Path = self._file.path
        self._puts = 0

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"

    # The row keeps its number when it is written again, which breaks ties between equal times.
    _PUT = """
        INSERT INTO generations
            (proxy_url, session_id, request_id, created_at, updated_at, state, position, handed_position)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (proxy_url, session_id, request_id) DO UPDATE SET
            created_at = excluded.created_at, updated_at = excluded.updated_at, state = excluded.state,
            position = excluded.position, handed_position = excluded.handed_position
        """

    def put(self, record: GenerationRecord) -> None:
        values = (
            record.proxy_url,
            record.session_id,
            record.request_id,
            record.created_at.timestamp(),
            record.updated_at.timestamp(),
            record.state.value,
            record.position,
            record.handed_position,
        )
        with self._file.database() as database:
            database.execute(self._PUT, values)
            self._puts += 1
            if self._puts % _PUTS_PER_SWEEP == 0:
                self._sweep(database)

    _RECORDS = """
        SELECT created_at, updated_at, state, position, handed_position, request_id FROM generations
        WHERE proxy_url = ? AND session_id = ? ORDER BY created_at DESC, number DESC
        """

    def records(self, proxy_url: str, session_id: str) -> list[GenerationRecord]:
        with self._file.database() as database:
            rows = database.execute(self._RECORDS, (proxy_url, session_id)).fetchall()
        with reading_records(session_id):
            return [
                checked_record(
                    GenerationRecord(
                        proxy_url,
                        session_id,
                        request_id,
                        datetime.fromtimestamp(created_at, UTC),
                        datetime.fromtimestamp(updated_at, UTC),
                        RecordState(state),
                        position,
                        handed_position,
                    )
                )
                for created_at, updated_at, state, position, handed_position, request_id in rows
            ]

    _REMOVE = "DELETE FROM generations WHERE proxy_url = ? AND session_id = ? AND request_id = ?"

    def remove(self, proxy_url: str, session_id: str, request_id: str) -> None:
        with self._file.database() as database:
            database.execute(self._REMOVE, (proxy_url, session_id, request_id))

    def close(self) -> None:
        """Close the file. It is opened again when it is needed."""
        self._file.close()

    _SWEEP = "DELETE FROM generations WHERE updated_at < ?"

    def _sweep(self, database: sqlite3.Connection) -> None:
        oldest = datetime.now(UTC) - timedelta(seconds=self._keep_seconds)
        database.execute(self._SWEEP, (oldest.timestamp(),))


_PUTS_PER_SWEEP = 1000

_MIGRATIONS = (
    """
    CREATE TABLE generations (
        number INTEGER PRIMARY KEY,
        proxy_url TEXT NOT NULL,
        session_id TEXT NOT NULL,
        request_id TEXT NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        state TEXT NOT NULL,
        position INTEGER NOT NULL,
        handed_position INTEGER NOT NULL,
        UNIQUE (proxy_url, session_id, request_id)
    )
    """,
)
