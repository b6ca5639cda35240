"""A SQLite file that any number of processes and threads share: opened late, migrated, readable by its owner alone."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from streamkeep.client._errors import LocalStoreFailed


class SQLiteFile:
    """One connection, opened at the first use and after a fork.

    Without a path the file is `name` in the user's state directory. `migrations` are applied in order, `user_version` counts
    how many of them a file has, and they are never edited once released. `on_open` is called with each new connection.
    `instead` is what an error tells its reader to pass who wants no file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        name: str,
        migrations: tuple[str, ...],
        *,
        on_open: Callable[[sqlite3.Connection], None],
        instead: str,
    ) -> None:
        self.path = Path(path) if path is not None else platformdirs.user_state_path("streamkeep") / name
        self._migrations = migrations
        self._on_open = on_open
        self._instead = instead
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._opened_by = 0
        self._inherited: list[sqlite3.Connection] = []

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time. Raises: LocalStoreFailed."""
        with self._lock:
            try:
                if self._connection is not None and self._opened_by != os.getpid():
                    # The parent's, over a fork: to use it or even to close it here could harm the file.
                    self._inherited.append(self._connection)
                    self._connection = None
                if self._connection is None:
                    self._connection = self._open()
                    self._opened_by = os.getpid()
                yield self._connection
            except (sqlite3.Error, OSError) as exc:
                raise LocalStoreFailed(f"{self.path}: {exc}; pass {self._instead} to do without a file") from exc

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, with all that is done on it written at once or not at all. Raises: LocalStoreFailed."""
        with self.database() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                database.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file. It is opened again when it is needed."""
        with self._lock:
            if self._connection is not None and self._opened_by == os.getpid():
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives the files beside it the mode of the database itself, so it must be right from the start.
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            _use_write_ahead_log(connection)
            self._migrate(connection)
            self._on_open(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if _version(connection) == len(self._migrations):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = _version(connection)
            if version > len(self._migrations):
                raise LocalStoreFailed(f"{self.path} was written by a newer version of streamkeep")
            for statement in self._migrations[version:]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(self._migrations)}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Readers and the writer do not wait for each other. Where the file system cannot do it, the journal stays as it is.

    Two processes that switch a new file at once may meet a lock that SQLite does not wait for; one of them succeeds.
    """
    with suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version
