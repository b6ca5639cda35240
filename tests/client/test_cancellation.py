"""Leaving: by cancellation, by closing, by a timeout. No connection stays, no byte is lost, and the generation goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import anyio
import httpx
import psutil
import pytest

from streamkeep.client import (
    AsyncFetchClient,
    BodyConsumed,
    DurableTransport,
    FetchClient,
    MemoryStore,
    RecordState,
)
from tests.client.scripted import SESSION, ScriptedProxy, control_event, data_event, scripted_proxy, silence
from tests.serving import Proxy
from tests.upstream import Exchange, upstream

BODY = b"0123456789"
UPSTREAM = "http://127.0.0.1:9/"


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedProxy]:
    async with scripted_proxy() as proxy:
        yield proxy


@pytest.fixture
async def narrow() -> AsyncIterator[httpx.AsyncHTTPTransport]:
    """A transport with room for one connection: one that leaks leaves none."""
    async with httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1)) as transport:
        yield transport


async def none_is_left(url: str) -> None:
    """Wait until this process holds no connection to a server any more."""
    port = urlsplit(url).port
    me = psutil.Process()
    async with asyncio.timeout(60):
        while [found for found in me.net_connections("tcp") if found.raddr and found.raddr.port == port]:
            await asyncio.sleep(0.01)


async def test_a_call_cancelled_before_its_answer_leaves_no_connection_and_a_record(
    scripted: ScriptedProxy, narrow: httpx.AsyncHTTPTransport
) -> None:
    store = MemoryStore()
    client = AsyncFetchClient(scripted.url, store=store, http=narrow)
    scripted.creations = [silence, scripted.create]
    task = asyncio.create_task(client.fetch(UPSTREAM, session_id=SESSION))
    assert scripted.server is not None
    await scripted.server.called()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await none_is_left(scripted.url)
    assert [record.state for record in store.records(scripted.url, SESSION)] == [RecordState.OPEN]
    response = await client.fetch(UPSTREAM)
    assert await response.aread() == BODY


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_read_leaves_no_connection_and_loses_no_byte(
    scripted: ScriptedProxy, narrow: httpx.AsyncHTTPTransport, times: int
) -> None:
    store = MemoryStore()
    client = AsyncFetchClient(scripted.url, store=store, http=narrow)
    for end in range(1, 10):
        scripted.data = [scripted.sending(data_event(BODY[:end], end), then="silence"), scripted.serve]
        response = await client.fetch(UPSTREAM, session_id=SESSION)
        body = response.stream
        assert isinstance(body, httpx.AsyncByteStream)
        pieces = aiter(body)
        assert await anext(pieces) == BODY[:end]
        task = asyncio.create_task(anext_of(pieces))
        await asyncio.sleep(0)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        await none_is_left(scripted.url)
        async with asyncio.timeout(60):  # What a cancelled call still has to write, it writes behind it.
            while store.records(scripted.url, SESSION)[0].position != end:
                await asyncio.sleep(0.005)
        assert await anext(pieces) == BODY[end:], "the same body can be read on"
        await response.aclose()


async def anext_of(pieces: AsyncIterator[bytes]) -> bytes:
    return await anext(pieces)


async def test_a_scope_that_runs_out_leaves_no_connection(scripted: ScriptedProxy) -> None:
    scripted.data = [scripted.sending(data_event(BODY[:4], 4), then="silence")]
    async with AsyncFetchClient(scripted.url, store=MemoryStore()) as client:
        got = b""
        with anyio.CancelScope() as scope:
            response = await client.fetch(UPSTREAM)
            async for piece in response.aiter_raw():
                got += piece
                scope.deadline = anyio.current_time() + 0.1
        assert scope.cancelled_caught
        assert got == BODY[:4]
        await none_is_left(scripted.url)


async def test_closing_early_leaves_no_connection(scripted: ScriptedProxy) -> None:
    scripted.data = [scripted.sending(data_event(BODY[:4], 4), then="silence")]
    store = MemoryStore()
    async with AsyncFetchClient(scripted.url, store=store) as client:
        response = await client.fetch(UPSTREAM, session_id=SESSION)
        async for _ in response.aiter_raw():
            break
        await response.aclose()
        await response.aclose()
        await none_is_left(scripted.url)
    with FetchClient(scripted.url, store=store) as blocking:
        response = await asyncio.to_thread(blocking.fetch, UPSTREAM, session_id=SESSION)
        assert await asyncio.to_thread(next, response.iter_raw()) == BODY[:4]
        await asyncio.to_thread(response.close)
        await none_is_left(scripted.url)
    found = [(record.state, record.position, record.handed_position) for record in store.records(scripted.url, SESSION)]
    assert found == [(RecordState.LEFT, 0, 4)] * len(found) != []


async def test_a_reader_that_leaves_does_not_end_the_generation(proxy: Proxy, session: str) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(BODY)
        await gate.wait()
        await exchange.chunk(BODY)
        await exchange.end()

    async with upstream(play) as server, AsyncFetchClient(proxy.url, store=MemoryStore()) as client:
        response = await client.fetch(server.url, session_id=session, request_id="1")
        async for _ in response.aiter_raw():
            break
        await response.aclose()
        gate.set()
        assert (await proxy.ending(session, "1"))["code"] == "complete"
        assert await proxy.read_all(session, "1") == BODY * 2


async def test_a_call_cancelled_at_any_moment_leaves_room_for_the_next(
    scripted: ScriptedProxy, narrow: httpx.AsyncHTTPTransport
) -> None:
    """Also between having a connection and using it, where httpcore itself would lose the connection."""
    transport = DurableTransport(scripted.url, store=MemoryStore(), async_http=narrow)
    async with httpx.AsyncClient(transport=transport) as client:
        for turns in range(60):
            scripted.data = [scripted.sending(control_event(0), then="silence")]
            task = asyncio.create_task(client.post(UPSTREAM))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        scripted.data = [scripted.serve]
        assert (await client.post(UPSTREAM)).content == BODY


async def test_a_body_closed_by_another_task_wakes_its_reader(scripted: ScriptedProxy) -> None:
    scripted.data = [scripted.sending(data_event(BODY[:4], 4), then="silence")]
    async with AsyncFetchClient(scripted.url, store=MemoryStore()) as client:
        response = await client.fetch(UPSTREAM)
        body = response.stream
        assert isinstance(body, httpx.AsyncByteStream)
        pieces = aiter(body)
        assert await anext(pieces) == BODY[:4]
        reading = asyncio.create_task(anext_of(pieces))
        await asyncio.sleep(0)
        await response.aclose()
        with pytest.raises(BodyConsumed):
            await reading
        await none_is_left(scripted.url)


async def test_closing_the_client_ends_reads_that_are_under_way(scripted: ScriptedProxy) -> None:
    scripted.data = [scripted.sending(data_event(BODY[:4], 4), then="silence")]
    client = AsyncFetchClient(scripted.url, store=MemoryStore())
    response = await client.fetch(UPSTREAM)
    pieces = response.aiter_raw()
    assert await anext(pieces) == BODY[:4]
    reading = asyncio.create_task(anext_of(pieces))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await client.aclose()
    with pytest.raises(BodyConsumed):
        await reading
    await none_is_left(scripted.url)
    again = await client.fetch(UPSTREAM)
    await again.aclose()
    await client.aclose()
