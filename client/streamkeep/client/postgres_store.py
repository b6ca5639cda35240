"""`PostgresStore`: records of generations in a Postgres of the user's. Needs `streamkeep[postgres]`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

try:
    import psycopg
except ImportError as _missing:
    raise ImportError("PostgresStore needs the package psycopg: pip install 'streamkeep[postgres]'") from _missing

from streamkeep.client._errors import LocalStoreFailed
from streamkeep.client._stores import KEEP_SECONDS, GenerationRecord, RecordState, checked_record, reading_records

_PUTS_PER_SWEEP = 1000
# Any number that nobody else locks: two processes that make the table at once would meet in the catalogue.
_SCHEMA_LOCK = 0x73_6B_63_73


class PostgresStore:
    """Records in the table `streamkeep_generations`, which is made when it is first needed.

    `dsn` is one that the package `psycopg` takes. Threads take turns on one connection, which is opened again when it was
    lost; any number of processes may share the table. Records that were not touched for `keep_seconds` are dropped. A
    database that cannot be used is a `LocalStoreFailed`.
    """

    def __init__(self, dsn: str, *, keep_seconds: float = KEEP_SECONDS) -> None:
        self._dsn = dsn
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()
        self._connection: psycopg.Connection | None = None
        self._puts = 0

    def __repr__(self) -> str:
        return "PostgresStore(…)"

    _PUT = """
        INSERT INTO streamkeep_generations
            (proxy_url, session_id, request_id, created_at, updated_at, state, position, handed_position)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (proxy_url, session_id, request_id) DO UPDATE SET
            created_at = excluded.created_at, updated_at = excluded.updated_at, state = excluded.state,
            position = excluded.position, handed_position = excluded.handed_position
        """

    def put(self, record: GenerationRecord) -> None:
        values = (
            record.proxy_url,
            record.session_id,
            record.request_id,
            record.created_at,
            record.updated_at,
            record.state.value,
            record.position,
            record.handed_position,
        )
        with self._database() as database:
            database.execute(self._PUT, values)
            self._puts += 1
            if self._puts % _PUTS_PER_SWEEP == 0:
                self._sweep(database)

    _RECORDS = """
        SELECT request_id, created_at, updated_at, state, position, handed_position FROM streamkeep_generations
        WHERE proxy_url = %s AND session_id = %s ORDER BY created_at DESC, number DESC
        """

    def records(self, proxy_url: str, session_id: str) -> list[GenerationRecord]:
        with self._database() as database:
            rows = database.execute(self._RECORDS, (proxy_url, session_id)).fetchall()
        with reading_records(session_id):
            return [
                checked_record(
                    GenerationRecord(
                        proxy_url,
                        session_id,
                        request_id,
                        created_at.astimezone(UTC),
                        updated_at.astimezone(UTC),
                        RecordState(state),
                        position,
                        handed_position,
                    )
                )
                for request_id, created_at, updated_at, state, position, handed_position in rows
            ]

    _REMOVE = "DELETE FROM streamkeep_generations WHERE proxy_url = %s AND session_id = %s AND request_id = %s"

    def remove(self, proxy_url: str, session_id: str, request_id: str) -> None:
        with self._database() as database:
            database.execute(self._REMOVE, (proxy_url, session_id, request_id))

    def close(self) -> None:
        """Close the connection. It is opened again when it is needed."""
        with self._lock:
            self._drop()

    @contextmanager
    def _database(self) -> Iterator[psycopg.Connection]:
        """The one connection, for one thread at a time."""
        with self._lock:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self._open()
                yield self._connection
            except psycopg.Error as exc:
                self._drop()
                raise LocalStoreFailed(f"Postgres does not keep records: {type(exc).__name__}") from exc

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    _SWEEP = "DELETE FROM streamkeep_generations WHERE updated_at < %s"

    def _sweep(self, database: psycopg.Connection) -> None:
        database.execute(self._SWEEP, (datetime.now(UTC) - timedelta(seconds=self._keep_seconds),))

    _TABLE = """
        CREATE TABLE IF NOT EXISTS streamkeep_generations (
            number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            proxy_url text NOT NULL,
            session_id text NOT NULL,
            request_id text NOT NULL,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            state text NOT NULL,
            position bigint NOT NULL,
            handed_position bigint NOT NULL,
            UNIQUE (proxy_url, session_id, request_id)
        )
        """

    def _open(self) -> psycopg.Connection:
        # Prepared statements would not live through a pooler.
        connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=10, prepare_threshold=None)
        try:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
                connection.execute(self._TABLE)
            self._sweep(connection)
        except BaseException:
            connection.close()
            raise
        return connection
