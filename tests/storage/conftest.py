"""Fixtures: a store of each kind, for what the suites of `tests/contract/` leave to its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from streamkeep.storage import MemoryStore, Store
from streamkeep.storage.postgres import PostgresStore
from streamkeep.storage.remote import RemoteStore
from tests.serving import serving


@pytest.fixture(params=["memory", "postgres", "remote"])
def engine(request: pytest.FixtureRequest) -> str:
    """`memory`, `remote`, or the URL of a database: one cannot be made while a loop is running."""
    return str(request.getfixturevalue("database_url") if request.param == "postgres" else request.param)


@pytest.fixture
async def store(engine: str) -> AsyncIterator[Store]:
    async with _unopened(engine) as made:
        await made.open()
        yield made
        await made.close()


@asynccontextmanager
async def _unopened(engine: str) -> AsyncIterator[Store]:
    if engine == "memory":
        yield MemoryStore()
    elif engine == "remote":
        async with serving(MemoryStore()) as other:
            yield RemoteStore(f"{other.url}/v1/stream/ours")
    else:
        yield PostgresStore(engine)
