"""A Postgres of our own, for those who have none: started, watched and stopped by the processes that use it."""

from streamkeep.storage.embedded._errors import (
    BinariesMissing,
    DataDirectoryInUse,
    EmbeddedPostgresError,
    InitdbFailed,
    NoPermission,
    ServerFailed,
    WrongMajorVersion,
)
from streamkeep.storage.embedded._server import EmbeddedPostgres

__all__ = [
    "BinariesMissing",
    "DataDirectoryInUse",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "InitdbFailed",
    "NoPermission",
    "ServerFailed",
    "WrongMajorVersion",
]
