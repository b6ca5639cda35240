"""The store on PostgreSQL 15 and newer."""

from streamkeep.storage.postgres._migrate import migrate
from streamkeep.storage.postgres._store import PostgresStore

__all__ = ["PostgresStore", "migrate"]
