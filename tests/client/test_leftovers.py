"""What many calls leave behind: no connection, no task, no file, no open record; and the same after leaving at any moment."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import psutil
import pytest

from streamkeep.client import (
    AsyncDurableStream,
    AsyncFetchClient,
    BodyConsumed,
    DurableTransport,
    FetchClient,
    MemoryStore,
    RecordState,
    StreamkeepError,
)
from streamkeep.client._network import Network
from streamkeep.storage import Retention
from streamkeep.storage.postgres import PostgresStore
from tests.client.streaming import created, items
from tests.postgres import Connection, connected
from tests.serving import CERTIFICATES, Proxy, serving
from tests.upstream import Exchange, upstream, whole

BODY = bytes(range(256)) * 8

Call = Callable[[str | None, Mapping[str, str], bool], Awaitable[bytes]]
"""Calls upstream, or with None resumes; leaves after the first piece when told to. Returns what it got."""


def connections(url: str) -> int:
    port = urlsplit(url).port
    return sum(1 for found in psutil.Process().net_connections("tcp") if found.raddr and found.raddr.port == port)


async def none_is_left(url: str) -> None:
    async with asyncio.timeout(60):
        while connections(url):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def blocking_calls(client: httpx.Client | FetchClient) -> AsyncIterator[Call]:
    def take(url: str | None, headers: Mapping[str, str], leaves: bool) -> bytes:
        if isinstance(client, FetchClient):
            response = client.fetch(url, headers=headers)
        else:
            request = client.build_request("GET", url or "http://vendor.test/", headers=headers)
            response = client.send(request, stream=True)
        try:
            pieces = response.iter_raw()
            return next(pieces, b"") if leaves else b"".join(pieces)
        finally:
            response.close()

    async def call(url: str | None, headers: Mapping[str, str], leaves: bool) -> bytes:
        return await asyncio.to_thread(take, url, headers, leaves)

    yield call
    await asyncio.to_thread(client.close)


@asynccontextmanager
async def async_calls(client: httpx.AsyncClient | AsyncFetchClient) -> AsyncIterator[Call]:
    async def call(url: str | None, headers: Mapping[str, str], leaves: bool) -> bytes:
        if isinstance(client, AsyncFetchClient):
            response = await client.fetch(url, headers=headers)
        else:
            request = client.build_request("GET", url or "http://vendor.test/", headers=headers)
            response = await client.send(request, stream=True)
        try:
            pieces = response.aiter_raw()
            return await anext(pieces, b"") if leaves else b"".join([piece async for piece in pieces])
        finally:
            await response.aclose()

    yield call
    await client.aclose()


def calls(name: str, proxy_url: str, store: MemoryStore) -> Any:
    blocking, awaiting = Network(CERTIFICATES), httpx.AsyncHTTPTransport(verify=CERTIFICATES)
    transport = DurableTransport(proxy_url, store=store, http=blocking, async_http=awaiting)
    return {
        "FetchClient": lambda: blocking_calls(FetchClient(proxy_url, store=store, http=blocking)),
        "Client": lambda: blocking_calls(httpx.Client(transport=transport)),
        "AsyncFetchClient": lambda: async_calls(AsyncFetchClient(proxy_url, store=store, http=awaiting)),
        "AsyncClient": lambda: async_calls(httpx.AsyncClient(transport=transport)),
    }[name]()


@pytest.mark.parametrize("name", ["FetchClient", "Client", "AsyncFetchClient", "AsyncClient"])
async def test_many_calls_and_resumes_leave_nothing(name: str, proxy: Proxy, request: pytest.FixtureRequest) -> None:
    store = MemoryStore()
    count = int(request.config.getoption("--sequential"))
    session = f"chat-{uuid.uuid4()}"
    async with upstream(whole(BODY, "text/plain", chunk_bytes=1024)) as server:
        async with calls(name, proxy.url, store) as call:
            first = {"X-Session-ID": session, "X-Request-ID": "first"}
            assert await call(server.url, first, False) == BODY
            await asyncio.sleep(0)
            before = (psutil.Process().num_fds(), len(asyncio.all_tasks()), connections(proxy.url))
            for number in range(count):
                ids = {"X-Session-ID": session, "X-Request-ID": str(number)}
                leaves = number % 2 == 0
                got = await call(server.url, ids, leaves)
                assert BODY.startswith(got)
                if leaves:
                    again = {**ids, "X-Resume-Active-Generation": "true", "X-Replay-From-Start": "true"}
                    got = await call(None, again, False)
                assert got == BODY, number
            async with asyncio.timeout(60):
                # What is being closed needs a moment; more than before is a leak.
                while (psutil.Process().num_fds(), len(asyncio.all_tasks()), connections(proxy.url)) > before:
                    await asyncio.sleep(0.01)
            assert {record.state for record in store.records(proxy.url, session)} == {RecordState.ENDED}
        await none_is_left(proxy.url)
        assert len(server.calls) == count + 1
    assert sum(proxy.service.readers.tally.following.values()) == 0


@pytest.mark.parametrize("name", ["FetchClient", "Client", "AsyncFetchClient", "AsyncClient"])
async def test_many_calls_and_resumes_leave_no_row_once_their_session_is_erased(
    name: str, database_url: str, request: pytest.FixtureRequest
) -> None:
    """Nor do the marks of who reads, and the rows that guard against a second call, once their time is over."""
    count = int(request.config.getoption("--sequential"))
    store = PostgresStore(database_url, retention=Retention(row_seconds=0))
    async with (
        serving(store) as proxy,
        connected(database_url) as database,
        upstream(whole(BODY, "text/plain", chunk_bytes=1024)) as server,
        calls(name, proxy.url, MemoryStore()) as call,
    ):
        before = await rows(database)
        for number in range(count):
            ids = {"X-Session-ID": f"chat-{number % 7}", "X-Request-ID": str(number)}
            leaves = number % 2 == 0
            asked = {**ids, "Streamkeep-On-Disconnect": "cancel_after=60"} if number % 3 == 0 else ids
            got = await call(server.url, asked, leaves)
            if leaves:
                got = await call(None, {**ids, "X-Resume-Active-Generation": "true"}, False)
            assert BODY.endswith(got)
        kept = await rows(database)
        assert kept["generations"] - before["generations"] == count
        assert kept["chunks"] > before["chunks"]
        for number in range(7):
            erased = await proxy.client.delete(f"/api/chat-{number}")
            assert erased.status_code < 300, erased.text
        async with asyncio.timeout(20):
            while await store.sweep() or await rows(database) != before:
                await asyncio.sleep(0.01)


async def rows(database: Connection) -> dict[str, int]:
    """How many there are, by table."""
    tables = await database.fetch("select tablename from pg_tables where schemaname = 'streamkeep'")
    return {name: await database.fetchval(f"select count(*) from streamkeep.{name}") for (name,) in tables}


async def test_a_body_cancelled_at_random_moments_joins_up_and_leaves_nothing(proxy: Proxy, session: str) -> None:
    dice = random.Random(7)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        for at in range(0, len(BODY), 16):
            await exchange.chunk(BODY[at : at + 16])
            await asyncio.sleep(0)
        await exchange.end()

    # Room for one connection: one that is lost leaves none.
    narrow = httpx.AsyncHTTPTransport(verify=CERTIFICATES, limits=httpx.Limits(max_connections=1))
    async with upstream(play) as server, AsyncFetchClient(proxy.url, store=MemoryStore(), http=narrow) as client:
        for round_ in range(12):
            response = await client.fetch(server.url, session_id=session, request_id=str(round_))
            body = response.stream
            assert isinstance(body, httpx.AsyncByteStream)
            pieces = aiter(body)
            got, cancelled = b"", 0
            async with asyncio.timeout(20):
                while (piece := await _taken(pieces, dice)) != b"":
                    cancelled += piece is None
                    got += piece or b""
            assert got == BODY
            await response.aclose()
        gc.collect()  # An unclosed transport would warn now.
    await none_is_left(proxy.url)


async def _taken(pieces: AsyncIterator[bytes], dice: random.Random) -> bytes | None:
    """The next piece, b"" at the end, or None when it was cancelled before: natively, twice, by a scope, or not at all."""
    way = dice.randrange(4)
    if way == 0:
        return await anext(pieces, b"")
    if way == 1:
        with anyio.move_on_after(dice.random() * 0.01):
            return await anext(pieces, b"")
        return None
    task = asyncio.ensure_future(anext(pieces, b""))
    await asyncio.wait([task], timeout=dice.random() * 0.01)
    for _ in range(way - 1):
        task.cancel()
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
    await asyncio.wait([task])
    return None if task.cancelled() else task.result()


@pytest.mark.parametrize("live", ["sse", "long-poll", True])
async def test_a_stream_cancelled_at_random_moments_joins_up_and_leaves_nothing(proxy: Proxy, live: Any) -> None:
    dice = random.Random(9)
    body = dice.randbytes(200_000)
    handle = await created("async", f"{proxy.url}/v1/stream/test/{uuid.uuid4()}", data=body[:100_000])
    assert isinstance(handle, AsyncDurableStream)

    async def write() -> None:
        for start in range(100_000, 200_000, 10_000):
            await handle.append(body[start : start + 10_000])
        await handle.close()

    seen, is_spared = b"", False
    async with asyncio.timeout(60), handle, handle.stream(live=live) as response:
        writing = asyncio.create_task(write())
        while not response.is_closed:
            reading = asyncio.create_task(items(response.iter_bytes(), 1))
            # Every other read is let be: one that is always cancelled before its page has come gets nowhere.
            is_spared = not is_spared
            if is_spared:
                await asyncio.wait([reading])
            for _ in range(dice.randrange(12)):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            seen += b"" if reading.cancelled() else b"".join(reading.result())
        await writing
    assert seen == body
    gc.collect()
    await none_is_left(proxy.url)


async def test_a_blocking_client_closed_by_another_thread_at_random_moments_leaves_nothing(
    proxy: Proxy, session: str
) -> None:
    dice = random.Random(11)
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        for at in range(0, len(BODY), 64):
            await exchange.chunk(BODY[at : at + 64])
            await asyncio.sleep(0)
        await gate.wait()
        await exchange.end()

    async with upstream(play) as server:
        for number in range(10):
            client = FetchClient(proxy.url, store=MemoryStore(), http=Network(CERTIFICATES))
            reading = _ThreadedReading(client, server.url, session, str(number))
            thread = threading.Thread(target=reading.run)
            thread.start()
            await asyncio.to_thread(reading.has_begun.wait, 10)
            await asyncio.sleep(dice.random() * 0.02)
            await asyncio.to_thread(client.close)
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()
            assert BODY.startswith(b"".join(reading.got))
            assert [type(end) for end in reading.ends] == [BodyConsumed]
            await none_is_left(proxy.url)
        gate.set()


class _ThreadedReading:
    """A call and its body, in a thread."""

    def __init__(self, client: FetchClient, url: str, session_id: str, request_id: str) -> None:
        self.got: list[bytes] = []
        self.ends: list[StreamkeepError] = []
        self.has_begun = threading.Event()
        self._client = client
        self._url = url
        self._session_id = session_id
        self._request_id = request_id

    def run(self) -> None:
        try:
            response = self._client.fetch(self._url, session_id=self._session_id, request_id=self._request_id)
            for piece in response.iter_raw():
                self.got.append(piece)
                self.has_begun.set()
        except StreamkeepError as exc:
            self.ends.append(exc)
