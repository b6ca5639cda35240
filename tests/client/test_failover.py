"""Several proxies as one: where one cannot be reached, the next is asked, and the caller sees nothing of it."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

import httpx
import pytest

from streamkeep.client import ConnectionFailed, DurableTransport, MemoryStore, Patience
from streamkeep.client._rules.places import Places
from tests.client.both import QUICK
from tests.client.conftest import MakeClient
from tests.client.scripted import REQUEST, SESSION, data_event, scripted_proxy
from tests.serving import Proxy
from tests.upstream import Exchange, upstream, whole

BODY = b"0123456789"


@pytest.fixture
def dead() -> str:
    """A URL where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


async def test_a_proxy_that_is_down_is_passed_over(
    make_client: MakeClient, proxy: Proxy, session: str, dead: str
) -> None:
    store = MemoryStore()
    client = make_client([dead, proxy.url], store=store)
    async with upstream(whole(BODY, "text/plain")) as server:
        assert await (await client.fetch(server.url, session_id=session)).rest() == BODY
        assert len(server.calls) == 1
    assert len(store.records(dead, session)) == 1, "records stand under the first one's name"
    assert [info.state for info in await client.active(session)] == ["done"]


async def test_a_body_goes_on_at_another_proxy(make_client: MakeClient) -> None:
    async with scripted_proxy(BODY) as second, AsyncExitStack() as stack:
        first = await stack.enter_async_context(scripted_proxy(BODY))
        is_told = asyncio.Event()

        async def half(exchange: Exchange) -> None:
            await first.begin(exchange)
            await exchange.chunk(data_event(BODY[:5], 5))
            await is_told.wait()
            exchange.reset()

        first.data = [half]
        client = make_client([first.url, second.url])
        reading = await client.fetch("http://127.0.0.1:9/", session_id=SESSION, request_id=REQUEST)
        assert await reading.piece() == BODY[:5]
        is_told.set()
        await stack.aclose()
        assert await reading.rest() == BODY[5:]
        assert second.reads() == [("sse", 5)]


async def test_an_answer_that_may_pass_is_asked_for_elsewhere(make_client: MakeClient) -> None:
    async with scripted_proxy(BODY) as first, scripted_proxy(BODY) as second:
        first.creations = [first.failing(503, "draining")]
        client = make_client([first.url, second.url])
        assert await (await client.fetch("http://127.0.0.1:9/")).rest() == BODY
        assert len(first.paths("/api/")) == 1


async def test_a_transport_takes_several_proxies_too(proxy: Proxy, dead: str) -> None:
    transport = DurableTransport([dead, proxy.url], store=MemoryStore(), patience=QUICK)
    async with upstream(whole(BODY, "text/plain")) as server, httpx.AsyncClient(transport=transport) as client:
        assert (await client.get(server.url)).content == BODY


async def test_when_all_are_down_the_connection_has_failed(make_client: MakeClient, dead: str) -> None:
    client = make_client([dead, f"{dead}/other"], patience=Patience(send_seconds=0.1, pause_seconds=0.05))
    with pytest.raises(ConnectionFailed):
        await client.fetch("http://127.0.0.1:9/")


async def test_the_proxys_key_goes_to_the_proxies_alone(make_client: MakeClient) -> None:
    async with scripted_proxy(BODY) as first, scripted_proxy(BODY) as stranger:
        first.creations = [stranger.create]
        client = make_client([first.url, "http://127.0.0.1:9"], key="sk-secret")
        assert await (await client.fetch("http://127.0.0.1:9/")).rest() == BODY
        assert first.server is not None
        assert stranger.server is not None
        assert first.server.calls[0].header("Streamkeep-Key") == "sk-secret"
        assert [call.header("Streamkeep-Key") for call in stranger.server.calls] == [None, None]


def test_no_proxy_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        DurableTransport([])


def test_a_failure_moves_on_once_however_many_requests_meet_it() -> None:
    places = Places(["http://a", "http://b/p"])
    assert places.of("http://a/api/x?y") == "http://a/api/x?y"
    places.failed("http://a/api/1")
    places.failed("http://a/api/2")
    assert places.of("http://a/api/x?y") == "http://b/p/api/x?y"
    assert places.of("http://c/api") == "http://c/api"
    places.failed("http://b/p/api")
    assert places.of("http://b/p/api") == "http://a/api"
