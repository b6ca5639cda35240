"""Fixtures: a proxy over the memory store, and a session of the test's own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving


@pytest.fixture(scope="module")
async def proxy() -> AsyncIterator[Proxy]:
    """Shared by a module's tests, which keep apart by their sessions."""
    async with serving(MemoryStore()) as served:
        yield served


@pytest.fixture
def session() -> str:
    """The id of a session that is this test's own."""
    return f"chat-{uuid.uuid4()}"
