"""Where a chat keeps its session as it was read, so that the next one opens it by what came since."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import zlib
from pathlib import Path

from streamkeep.client._sqlite import SQLiteFile
from streamkeep.client._stores import KEEP_SECONDS
from streamkeep.sessions.fold import SessionFold


class SessionCache:
    """Folds of sessions in a SQLite file that any number of processes and threads may share.

    By default the file lies in the user's state directory; it is readable by its owner alone. A session that was not opened
    for `keep_seconds` is dropped.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, keep_seconds: float = KEEP_SECONDS) -> None:
        self._keep_seconds = keep_seconds
        self._file = SQLiteFile(path, "sessions.sqlite3", _MIGRATIONS, on_open=self._sweep, instead="cache=None")
        self.path: Path = self._file.path

    def __repr__(self) -> str:
        return f"SessionCache({str(self.path)!r})"

    _GET = "SELECT fold FROM sessions WHERE url = ? AND access = ? AND made_at = ?"

    def get(self, url: str, access: str, made_at: str) -> SessionFold | None:
        """A session's fold as it was kept for somebody with this access, or None.

        `made_at` tells sessions apart that had the same id one after the other. Raises: LocalStoreFailed.
        """
        with self._file.database() as database:
            row = database.execute(self._GET, (url, _hashed(access), made_at)).fetchone()
        try:
            return None if row is None else SessionFold.from_json(json.loads(zlib.decompress(row[0])))
        except (ValueError, zlib.error, RecursionError):
            return None  # of another version, or damaged: it is read anew

    _PUT = "INSERT OR REPLACE INTO sessions (url, access, made_at, updated_at, fold) VALUES (?, ?, ?, ?, ?)"

    def put(self, url: str, access: str, made_at: str, fold: dict[str, object]) -> None:
        """Keep a fold's snapshot in the place of an earlier one. Raises: LocalStoreFailed."""
        packed = zlib.compress(json.dumps(fold, separators=(",", ":")).encode("ascii"), 1)
        with self._file.database() as database:
            database.execute(self._PUT, (url, _hashed(access), made_at, time.time(), packed))

    _REMOVE = "DELETE FROM sessions WHERE url = ?"

    def remove(self, url: str) -> None:
        """Forget a session, whoever had access to it. Raises: LocalStoreFailed."""
        with self._file.database() as database:
            database.execute(self._REMOVE, (url,))

    def close(self) -> None:
        """Close the file. It is opened again when it is needed."""
        self._file.close()

    _SWEEP = "DELETE FROM sessions WHERE updated_at < ?"

    def _sweep(self, database: sqlite3.Connection) -> None:
        database.execute(self._SWEEP, (time.time() - self._keep_seconds,))


def _hashed(access: str) -> str:
    """A key is a secret, which has no place in a file."""
    return hashlib.sha256(access.encode("utf-8", "surrogatepass")).hexdigest()


_MIGRATIONS = (
    """
    CREATE TABLE sessions (
        url TEXT NOT NULL,
        access TEXT NOT NULL,
        made_at TEXT NOT NULL,
        updated_at REAL NOT NULL,
        fold BLOB NOT NULL,
        PRIMARY KEY (url, access)
    ) WITHOUT ROWID
    """,
)
