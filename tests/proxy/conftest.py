"""Fixtures: the proxy over the memory store, for what does not depend on the database."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.serving import Proxy, serving, store_of


@pytest.fixture
async def proxy(request: pytest.FixtureRequest) -> AsyncIterator[Proxy]:
    """With `--store remote`, over another proxy that has the memory store."""
    async with store_of(request.config.getoption("--store")) as store, serving(store) as served:
        yield served
