"""How many generations and readers there may be: what those get who come too late, and when places come free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import httpx
import pytest

from streamkeep.storage import MemoryStore
from streamkeep.storage.postgres import PostgresStore
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Upstream, upstream


@pytest.fixture
async def waiting() -> AsyncIterator[Upstream]:
    """An upstream that accepts, and never says more."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        yield server


def assert_refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert "Upstream-Status" not in answer.headers


async def test_a_generation_beyond_those_at_once_is_429_and_calls_nobody(waiting: Upstream) -> None:
    async with serving(MemoryStore(), max_running=2) as proxy:
        for request_id in ("1", "2"):
            assert (await proxy.create("chat", request_id, waiting.url)).status_code == 200
        assert_refused(await proxy.create("chat", "3", waiting.url), 429, "too_many_generations")
        assert (await proxy.client.get("/api/chat/3")).status_code == 404
        assert len(waiting.calls) == 2
        # Nobody has to wait in order to join.
        joined = await proxy.create("chat", "2", waiting.url)
        assert joined.headers["Streamkeep-Replayed"] == "true"
        await proxy.client.post("/api/chat/1/cancel")
        assert (await proxy.create("chat", "3", waiting.url)).status_code == 200


async def test_a_generation_beyond_those_within_a_minute_is_429_with_the_wait() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, b"ok", {"Content-Type": "text/plain"})

    async with upstream(play) as server, serving(MemoryStore(), max_per_minute=2) as proxy:
        for request_id in ("1", "2"):
            await proxy.create("chat", request_id, server.url)
            await proxy.ending("chat", request_id)
        refused = await proxy.create("chat", "3", server.url)
        assert_refused(refused, 429, "rate_limited")
        assert int(refused.headers["Retry-After"]) > 30
        replayed = await proxy.create("chat", "2", server.url)
        assert replayed.headers["Streamkeep-Replayed"] == "true"
        assert len(server.calls) == 2


async def test_a_body_beyond_the_buffer_is_not_read_for_a_generation_that_may_not_begin(waiting: Upstream) -> None:
    async with serving(MemoryStore(), max_running=1, max_buffered_request_bytes=1024) as proxy:
        await proxy.create("chat", "1", waiting.url)
        refused = await proxy.create("chat", "2", waiting.url, body=b"x" * 200_000)
        assert_refused(refused, 429, "too_many_generations")
        assert len(waiting.calls) == 1


async def test_over_two_instances_a_hundred_posts_get_as_many_places_as_there_are(
    database_url: str, waiting: Upstream
) -> None:
    async with (
        serving(PostgresStore(database_url), max_running=5) as one,
        serving(PostgresStore(database_url), max_running=5) as two,
    ):
        answers = await asyncio.gather(*((one, two)[i % 2].create("chat", str(i), waiting.url) for i in range(100)))
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 95
        assert len(waiting.calls) == 5


async def test_a_process_that_is_full_is_503_but_for_those_who_join(waiting: Upstream) -> None:
    async with serving(MemoryStore(), max_generations=3) as proxy:
        answers = await asyncio.gather(*(proxy.create("chat", str(i), waiting.url) for i in range(20)))
        made = [str(i) for i, answer in enumerate(answers) if answer.status_code == 200]
        assert len(made) == len(waiting.calls) == 3
        for answer in answers:
            if answer.status_code != 200:
                assert_refused(answer, 503, "overloaded")
        joined = await proxy.create("chat", made[0], waiting.url)
        assert joined.headers["Streamkeep-Replayed"] == "true"
        await proxy.client.post(f"/api/chat/{made[0]}/cancel")
        assert (await proxy.create("chat", "later", waiting.url)).status_code == 200


async def test_live_readers_beyond_those_at_once_are_503(waiting: Upstream) -> None:
    async with serving(MemoryStore(), max_readers=1) as proxy:
        await proxy.create("chat", "1", waiting.url)
        async with reading(proxy):
            for live in ("sse", "long-poll"):
                assert_refused(await proxy.read("chat", "1", offset="-1", live=live), 503, "overloaded")
            assert (await proxy.read("chat", "1")).status_code == 200
        async with asyncio.timeout(60):
            while proxy.service.readers.count:
                await asyncio.sleep(0.005)
        async with reading(proxy) as answer:
            assert answer.status_code == 200


def reading(proxy: Proxy) -> AbstractAsyncContextManager[httpx.Response]:
    query = {"sessionId": "chat", "requestId": "1", "offset": "-1", "live": "sse"}
    return proxy.client.stream("GET", "/stream/data", params=query)
