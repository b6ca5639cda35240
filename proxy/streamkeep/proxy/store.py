"""Which store the settings mean: on another stream server, on the database at DATABASE_URL, or on an embedded one."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace

from streamkeep.proxy.settings import Settings
from streamkeep.storage import Retention, Store
from streamkeep.storage.embedded import EmbeddedPostgres
from streamkeep.storage.postgres import PostgresStore
from streamkeep.storage.remote import RemoteStore

logger = logging.getLogger(__name__)


def with_database(settings: Settings, stack: ExitStack) -> Settings:
    """Settings that name a database, or a stream server; an embedded database is there until the stack is left.

    Raises:
        EmbeddedPostgresError: it does not run.
    """
    if settings.streams_url is not None or settings.database_url is not None:
        return settings
    postgres = EmbeddedPostgres.start(settings.data_dir, bin_dir=settings.postgres_bin, on_progress=logger.info)
    stack.enter_context(postgres)
    return replace(settings, database_url=postgres.dsn)


def chosen_store(settings: Settings, *, warms_up: bool = False) -> Store:
    """The store, not yet open; one that `warms_up` makes its first callers wait for nothing that is slow for being new.
    Raises: ValueError, when the settings name none."""
    retention = Retention(data_seconds=settings.retention_seconds)
    if settings.streams_url is not None:
        return RemoteStore(settings.streams_url, token=settings.streams_token, retention=retention)
    if settings.database_url is None:
        raise ValueError("create_app needs a store, or settings with a database_url or a streams_url")
    return PostgresStore(
        settings.database_url,
        direct_dsn=settings.direct_database_url,
        retention=retention,
        pool_size=settings.database_pool_size,
        keyring=settings.encryption_keys,
        warms_up=warms_up,
    )
