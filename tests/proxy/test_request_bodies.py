"""What request bodies may hold in memory: one budget, full and given back, whatever becomes of a request."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from streamkeep.proxy.errors import ApiError
from streamkeep.proxy.request_body import BodyBudget
from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Upstream, upstream

KIB = 1024
MIB = 1024 * KIB


async def accept(exchange: Exchange) -> None:
    """Answer, and say no more."""
    exchange.body = b""
    await exchange.head(200, {"Content-Type": "text/plain"})
    await exchange.is_gone.wait()


async def stay_silent(exchange: Exchange) -> None:
    await exchange.is_gone.wait()


@asynccontextmanager
async def half_sent(proxy: Proxy, target: str, *more: str) -> AsyncIterator[asyncio.StreamWriter]:
    """A request whose body of 100 KiB stops in the middle, once all of that is held."""
    parts = urlsplit(proxy.url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    before = proxy.service.body_budget.held_bytes
    try:
        head = [f"{target} HTTP/1.1", "Host: x", f"Content-Length: {100 * KIB}", *more, "", ""]
        writer.write("\r\n".join(head).encode() + b"x" * 50 * KIB)
        await until_held(proxy, before + 50 * KIB)
        yield writer
    finally:
        writer.transport.abort()


async def until_held(proxy: Proxy, size_bytes: int) -> None:
    async with asyncio.timeout(60):
        while proxy.service.body_budget.held_bytes != size_bytes:
            await asyncio.sleep(0.002)


def test_a_budget_is_for_all_together_and_whoever_is_alone_may_have_more() -> None:
    budget = BodyBudget(10)
    budget.take(25, already_bytes=0)
    with pytest.raises(ApiError):
        budget.take(1, already_bytes=0)
    budget.take(5, already_bytes=25)
    budget.give_back(30)
    budget.take(6, already_bytes=0)
    budget.take(4, already_bytes=0)
    for already in (0, 4, 6):
        with pytest.raises(ApiError):
            budget.take(1, already_bytes=already)
    assert budget.held_bytes == 10


@pytest.mark.parametrize(
    "held",
    [
        ("POST /api/chat/held", "X-Proxy-Url: http://127.0.0.1:1/"),
        ("PUT /v1/stream/held", "Content-Type: text/plain"),
        ("POST /v1/stream/held", "Content-Type: text/plain"),
        ("PUT /v1/stream/__ds/subscriptions/held", "Content-Type: application/json"),
    ],
)
async def test_a_body_beyond_the_budget_is_503_on_every_route(held: tuple[str, str]) -> None:
    text = {"Content-Type": "text/plain"}
    async with (
        upstream(accept) as server,
        serving(MemoryStore(), request_budget_bytes=64 * KIB) as proxy,
    ):
        await proxy.client.put("/v1/stream/a", headers=text)
        async with half_sent(proxy, held[0], held[1]):
            refused = [
                await proxy.create("chat", "1", server.url, body=b"x" * 20 * KIB),
                await proxy.client.put("/v1/stream/b", content=b"x" * 20 * KIB, headers=text),
                await proxy.client.post("/v1/stream/a", content=b"x" * 20 * KIB, headers=text),
                await proxy.client.put("/v1/stream/__ds/subscriptions/s", content=b"x" * 20 * KIB),
            ]
            for answer in refused:
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert [answer.json()["error"] for answer in refused[:3]] == ["overloaded"] * 3
            assert refused[3].json()["error"]["code"] == "OVERLOADED"
            assert (await proxy.client.post("/v1/stream/a", content=b"small", headers=text)).status_code == 204
            await until_held(proxy, 50 * KIB)
        await until_held(proxy, 0)
        assert server.calls == []
        assert (await proxy.client.head("/v1/stream/b")).status_code == 404
        assert (await proxy.create("chat", "1", server.url, body=b"x" * 20 * KIB)).status_code == 200


@pytest.mark.parametrize("size_bytes", [20 * KIB, 3 * MIB])
async def test_a_body_is_let_go_of_once_upstream_has_answered(size_bytes: int) -> None:
    async with upstream(accept) as server, serving(MemoryStore()) as proxy:
        assert (await proxy.create("chat", "1", server.url, body=b"x" * size_bytes)).status_code == 200
        await until_held(proxy, 0)
        assert (await proxy.create("chat", "1", server.url, body=b"x" * size_bytes)).status_code == 200
        assert (await proxy.create("chat", "1", server.url, body=b"y" * size_bytes)).status_code == 409
        await until_held(proxy, 0)


async def test_a_body_is_held_while_upstream_is_silent_and_let_go_of_by_a_cancel() -> None:
    async with upstream(stay_silent) as server, serving(MemoryStore()) as proxy:
        creating = asyncio.create_task(proxy.create("chat", "1", server.url, body=b"x" * 20 * KIB))
        await server.called()
        assert proxy.service.body_budget.held_bytes == 20 * KIB
        await proxy.client.post("/api/chat/1/cancel")
        await until_held(proxy, 0)
        assert (await creating).status_code == 409


@pytest.mark.parametrize("target", ["POST /v1/stream/a", "POST /api/chat/1"])
async def test_a_body_that_stops_is_408_and_let_go_of(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is here already is taken without a deadline, and only that."""
    monkeypatch.setattr("streamkeep.proxy.request_body._IDLE_SECONDS", 0.1)
    async with serving(MemoryStore()) as proxy, asyncio.timeout(60):
        await proxy.client.put("/v1/stream/a", headers={"Content-Type": "text/plain"})
        parts = urlsplit(proxy.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = [f"{target} HTTP/1.1", "Host: x", "Content-Type: text/plain", "X-Proxy-Url: http://127.0.0.1:1/"]
        writer.write("\r\n".join([*head, "Content-Length: 10", "", "12345"]).encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.transport.abort()
        await until_held(proxy, 0)


async def test_refused_and_broken_requests_leave_nothing_held() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(400, b"no")

    async with (
        upstream(refuse) as server,
        serving(MemoryStore(), max_request_bytes=MIB, max_append_bytes=MIB) as proxy,
    ):
        json = {"Content-Type": "application/json"}
        body = b"x" * 20 * KIB

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield body * 2

        assert (await proxy.create("chat", "1", server.url, body=body)).status_code == 400
        assert (await proxy.create("chat", "2", "http://127.0.0.1:1", body=body)).status_code == 502
        assert (await proxy.client.put("/v1/stream/a", content=body, headers=json)).status_code == 400
        assert (await proxy.client.post("/v1/stream/none", content=body, headers=json)).status_code == 404
        assert (await proxy.client.put("/v1/stream/b", content=endless())).status_code == 413
        proxy.service.generations.is_draining = True
        assert (await proxy.create("chat", "3", server.url, body=body)).status_code == 503
        async with half_sent(proxy, "PUT /v1/stream/c"):
            pass
        await until_held(proxy, 0)


async def test_a_running_generation_keeps_no_copy_of_its_request(upstream_of_many: Upstream) -> None:
    async with serving(MemoryStore()) as proxy:
        await proxy.create("chat", "first", upstream_of_many.url, body=b"x" * 1000 * KIB)
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(8):
                answer = await proxy.create("chat", str(number), upstream_of_many.url, body=b"x" * 1000 * KIB)
                assert answer.status_code == 200
            del answer
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < 4 * MIB


@pytest.fixture
async def upstream_of_many() -> AsyncIterator[Upstream]:
    async with upstream(accept) as server:
        yield server
