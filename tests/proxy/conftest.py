"""Fixtures: the proxy over the memory store, for what does not depend on the database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from streamkeep.storage import MemoryStore
from streamkeep.storage.remote import RemoteStore
from tests.serving import Proxy, serving


@pytest.fixture
async def proxy(request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    """With `--store remote`, over another proxy that has the memory store."""
    if request.config.getoption("--store") == "remote":
        async with (
            serving(MemoryStore()) as other,
            serving(RemoteStore(f"{other.url}/v1/stream/ours")) as served,
        ):
            yield served
    else:
        async with serving(MemoryStore()) as served:
            yield served
