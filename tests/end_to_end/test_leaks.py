"""Two thousand generations that end in every way; afterwards nothing of them is left but their rows."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import asyncpg
import httpx
import psutil
import pytest

from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.storage.postgres import PostgresStore
from tests.serving import CERTIFICATES, Proxy, serving
from tests.upstream import Exchange, upstream

GENERATIONS = 2_000
AT_ONCE = 40
PIECE = b"data: {}\n\n" * 20


async def play(exchange: Exchange) -> None:
    """The way in which an answer ends is in its path."""
    match exchange.path.split("/")[1]:
        case "refused":
            await exchange.answer(500, b"no", {"Content-Type": "text/plain"})
            return
        case "silent":
            await exchange.is_gone.wait()
            return
    await exchange.head(200, {"Content-Type": "text/event-stream"})
    for _ in range(3):
        await exchange.chunk(PIECE)
        await asyncio.sleep(0.005)
    match exchange.path.split("/")[1]:
        case "reset":
            with suppress(OSError):  # The proxy may have closed it already.
                exchange.reset()
        case "endless":
            await exchange.is_gone.wait()
        case _:
            await exchange.end()


@dataclass(frozen=True, slots=True)
class Resources:
    """What a process holds, beside the database connections that its pool keeps."""

    tasks: int
    descriptors: int
    sockets: int
    readers: int
    running: int

    @classmethod
    def of(cls, proxy: Proxy) -> Resources:
        process = psutil.Process()
        pooled = proxy.service.store.status().connections
        return cls(
            tasks=len(asyncio.all_tasks()),
            descriptors=process.num_fds() - pooled,
            sockets=len(process.net_connections("all")) - pooled,
            readers=proxy.service.readers.count,
            running=proxy.service.generations.running,
        )


class Visitor:
    """Somebody who asks once, and behaves in one of many ways."""

    def __init__(self, proxy: Proxy, vendor_url: str, number: int) -> None:
        self._chance = random.Random(number)
        self._proxy = proxy
        self._url = f"{vendor_url}/{self._chance.choice(('whole', 'reset', 'refused', 'endless', 'silent'))}"
        self._id = str(number)

    async def visit(self) -> None:
        behave: Callable[[], Awaitable[object]] = self._chance.choice(
            (self._read_a_little, self._read_by_drop_in, self._read_and_cancel, self._hang_up, self._follow)
        )
        with suppress(httpx.HTTPError, TimeoutError, OSError):
            async with asyncio.timeout(self._chance.uniform(0.02, 0.6)):
                await behave()
        await self._proxy.client.post(f"/api/s/{self._id}/cancel")

    async def _create(self) -> httpx.Response:
        return await self._proxy.create("s", self._id, self._url)

    async def _read_a_little(self) -> None:
        await self._create()
        query = {"sessionId": "s", "requestId": self._id, "offset": "-1", "live": "sse"}
        async with self._proxy.client.stream("GET", "/stream/data", params=query) as answer:
            await anext(answer.aiter_raw())

    async def _follow(self) -> None:
        if (await self._create()).status_code == 200:
            await self._proxy.read_all("s", self._id)

    async def _read_by_drop_in(self) -> None:
        path = self._url.partition("//")[2].partition("/")[2]
        ids = {"X-Session-ID": "s", "Idempotency-Key": self._id}
        async with self._proxy.client.stream("POST", f"/u/vendor/{path}", headers=ids) as answer:
            async for _ in answer.aiter_raw():
                pass

    async def _read_and_cancel(self) -> None:
        await self._create()
        await self._proxy.client.post(f"/api/s/{self._id}/cancel")

    async def _hang_up(self) -> None:
        """A caller that breaks its connection with RST, its request half said or not yet answered."""
        host, port = self._proxy.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        request = (
            f"POST /api/s/{self._id} HTTP/1.1\r\nHost: x\r\nX-Proxy-Url: {self._url}\r\nContent-Length: 2\r\n\r\n{{}}"
        )
        writer.write(request.encode()[: self._chance.choice((30, len(request) - 1, len(request)))])
        await writer.drain()
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


@pytest.mark.slow
async def test_nothing_is_left_of_two_thousand_generations(database_url: str) -> None:
    async with upstream(play) as vendor:
        upstreams = Upstreams.parse(f"vendor={vendor.url}")
        async with serving(PostgresStore(database_url, pool_size=4), upstreams=upstreams) as proxy:
            # The pool is small, so that the first crowd opens all of it.
            await crowd(proxy, vendor.url, range(AT_ONCE))
            before = await settled(proxy)
            await crowd(proxy, vendor.url, range(AT_ONCE, GENERATIONS))
            after = await settled(proxy)
            assert after.running == after.readers == 0
            assert after.tasks <= before.tasks
            assert after.descriptors <= before.descriptors
            assert after.sockets <= before.sockets
            states, owners = await rows(database_url)
            assert owners == 1
            assert not {"creating", "running"} & states.keys()
            assert states.total() > GENERATIONS / 4
            assert min(states[state] for state in ("done", "error", "cancelled", "refused")) > 0
        assert (await rows(database_url))[1] == 0


async def crowd(proxy: Proxy, vendor_url: str, numbers: range) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def visit(number: int) -> None:
        async with places:
            await Visitor(proxy, vendor_url, number).visit()

    await asyncio.gather(*(visit(number) for number in numbers))


async def settled(proxy: Proxy) -> Resources:
    """What is held once nothing runs, and for a second no less was held."""
    while proxy.service.generations.running:  # Of callers who hung up before there was anything to cancel.
        for found in (await proxy.client.get("/api/s/active")).json():
            if found["state"] in ("creating", "running"):
                await proxy.client.post(f"/api/s/{found['requestId']}/cancel")
    await proxy.client.aclose()
    proxy.client = httpx.AsyncClient(
        base_url=proxy.url, verify=CERTIFICATES, timeout=60, limits=httpx.Limits(max_connections=None)
    )
    best, since = Resources.of(proxy), 0
    async with asyncio.timeout(60):
        while since < 20 or best.readers:
            await asyncio.sleep(0.05)
            now = Resources.of(proxy)
            since = since + 1 if now.descriptors >= best.descriptors and now.tasks >= best.tasks else 0
            best = now if since == 0 else best
    return best


async def rows(database_url: str) -> tuple[Counter[str], int]:
    connection = await asyncpg.connect(database_url)
    try:
        found = await connection.fetch("select state, count(*) as n from streamkeep.generations group by state")
        owners = await connection.fetchval("select count(*) from streamkeep.owners")
    finally:
        await connection.close()
    return Counter({row["state"]: row["n"] for row in found}), owners
