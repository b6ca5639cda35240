"""Fixtures: a proxy over the memory store, and clients of both kinds for it."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamkeep.storage import MemoryStore
from tests.client.both import Client, Kind
from tests.client.commands import Program
from tests.serving import Proxy, serving

MakeClient = Callable[..., Client]


@pytest.fixture(scope="module")
async def proxy() -> AsyncIterator[Proxy]:
    """Shared by a module's tests, which keep apart by their sessions."""
    async with serving(MemoryStore()) as served:
        yield served


@pytest.fixture
def run(proxy: Proxy, tmp_path: Path) -> Program:
    """Runs the command against the proxy."""
    return Program({**os.environ, "XDG_STATE_HOME": str(tmp_path), "STREAM_URL": proxy.url})


@pytest.fixture
def session() -> str:
    """The id of a session that is this test's own."""
    return f"chat-{uuid.uuid4()}"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
async def make_client(kind: Kind) -> AsyncIterator[MakeClient]:
    """Makes clients of one kind for a proxy's URL; they are closed at the end."""
    made: list[Client] = []

    def make(proxy_url: str | Sequence[str], **options: Any) -> Client:
        made.append(Client(kind, proxy_url, **options))
        return made[-1]

    yield make
    for client in made:
        await client.close()
