"""The store on another server keeps both contracts; the other server is a proxy of ours."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest

from streamkeep.storage import MemoryStore, Retention, Store
from streamkeep.storage.contract import StoreContract
from streamkeep.storage.contract_streams import StreamContract
from streamkeep.storage.remote import RemoteStore
from tests.serving import serving


@pytest.fixture(scope="module")
async def other_server() -> AsyncIterator[str]:
    async with serving(MemoryStore()) as served:
        yield served.url


@pytest.fixture
def url(other_server: str) -> str:
    """Where no stream is yet."""
    return f"{other_server}/v1/stream/{secrets.token_hex(8)}"


class _OnAnotherServer:
    @pytest.fixture(autouse=True)
    def _url(self, url: str) -> None:
        self.url = url

    def make_store(self, *, retention: Retention = Retention()) -> Store:  # noqa: B008
        return RemoteStore(self.url, retention=retention)


class TestRemoteStore(_OnAnotherServer, StoreContract): ...


class TestRemoteStreams(_OnAnotherServer, StreamContract): ...
