"""Fixtures: the proxy over the memory store, for what does not depend on the database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with serving(MemoryStore()) as served:
        yield served
