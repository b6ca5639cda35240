"""What can keep the embedded Postgres from running. Each message says what to do about it.

EmbeddedPostgresError
├── BinariesMissing        no Postgres programs where they should be
├── NoPermission           nobody whom this process may become can run them on this data directory
├── WrongMajorVersion      the data were written by another major version
├── DataDirectoryInUse     another program holds the data directory and does not let go of it
├── InitdbFailed           no database could be made in the data directory
└── ServerFailed           the server ended, or stood still, before it was ready
"""

from __future__ import annotations

from pathlib import Path

from streamkeep.storage._errors import StoreError


class EmbeddedPostgresError(StoreError):
    """The embedded Postgres cannot run."""


class BinariesMissing(EmbeddedPostgresError):
    """The extra that brings Postgres is not installed, or the directory that was named has no Postgres in it."""


class NoPermission(EmbeddedPostgresError):
    """Files or directories are out of reach, or Postgres may not be run as root and nobody else can run it."""


class WrongMajorVersion(EmbeddedPostgresError):
    """Postgres reads only data that the same major version wrote."""

    def __init__(self, data_dir: Path, *, written_by: str, programs: str) -> None:
        super().__init__(
            f"the data in {data_dir} were written by Postgres {written_by}, and the programs here are version {programs}: "
            f"use programs of version {written_by} (STREAMKEEP_POSTGRES_BIN), move the data with pg_dump, "
            "or choose another data directory"
        )
        self.written_by = written_by
        self.programs = programs


class DataDirectoryInUse(EmbeddedPostgresError):
    """`pid` is the process that holds the data directory, where it is known."""

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class InitdbFailed(EmbeddedPostgresError):
    """`log` is the end of what initdb said."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(f"{message}:\n{log}" if log else message)
        self.log = log


class ServerFailed(EmbeddedPostgresError):
    """`log` is the end of what the server said."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(f"{message}:\n{log}" if log else message)
        self.log = log
