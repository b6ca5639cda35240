"""A real nginx in front of the proxy, with the configuration that ships as an example; skipped where none is installed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from streamkeep.proxy.keys_command import key_template, make_key
from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.proxy.tallies import ReadMode
from streamkeep.storage import GenerationKey
from streamkeep.storage.postgres import PostgresStore
from tests.nginx import NGINX, Front, in_front_of
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream, whole

ACME = {"Streamkeep-Key": "acme-key-0123456789abc"}
OTHER = {"Streamkeep-Key": "other-key-0123456789ab"}
KEYS = BootstrapKeys.parse([f"acme={ACME['Streamkeep-Key']}", f"other={OTHER['Streamkeep-Key']}"])
READERS = 200

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with serving(PostgresStore(database_url), keys=KEYS, long_poll_seconds=20.0) as served:
        yield served


@pytest.fixture
async def front(proxy: Proxy) -> AsyncIterator[Front]:
    async with in_front_of(proxy.url) as started:
        yield started


async def create(front: Front, url: str) -> httpx.URL:
    """A generation's signed URL, which leads through nginx."""
    answer = await front.client.post("/api/chat/1", content=b"{}", headers={**ACME, "X-Proxy-Url": url})
    return httpx.URL(answer.json()["streamUrl"])


async def recorded(front: Front, body: bytes) -> httpx.URL:
    async with upstream(whole(body, "text/plain")) as server:
        url = await create(front, server.url)
        await ended(front, url)
    return url


async def ended(front: Front, url: httpx.URL) -> None:
    async with asyncio.timeout(30):
        while (await front.client.head(url)).headers.get("Stream-Closed") != "true":
            await asyncio.sleep(0.01)


async def tail_behind(proxy: Proxy, data: bytes) -> str:
    """Wait until this is what there is; the offset behind it."""
    async with asyncio.timeout(30):
        while True:
            read = await proxy.client.get("/stream/data?sessionId=chat&requestId=1", headers=ACME)
            if read.content == data:
                return read.headers["Stream-Next-Offset"]
            await asyncio.sleep(0.01)


def begun(proxy: Proxy, mode: ReadMode) -> int:
    """How many reads have reached the proxy."""
    tally = proxy.service.readers.tally.begun
    return sum(count for (of, _), count in tally.items() if of == mode)


async def test_two_hundred_who_wait_for_the_same_news_ask_once_or_twice(proxy: Proxy, front: Front) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(b"begun")
        await gate.wait()
        await exchange.chunk(b" and news")
        await exchange.end()

    async with upstream(play) as server:
        url = await create(front, server.url)
        offset = await tail_behind(proxy, b"begun")
        url = url.copy_merge_params({"offset": offset, "live": "long-poll", "cursor": "1"})
        waiting = [asyncio.create_task(front.client.get(url)) for _ in range(READERS)]
        async with asyncio.timeout(30):
            while await front.requests() < READERS:
                await asyncio.sleep(0.01)
        gate.set()
        answers = await asyncio.gather(*waiting)
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, b" and news")}
    assert begun(proxy, ReadMode.LONG_POLL) <= 2


async def test_what_is_there_is_read_from_its_cache(proxy: Proxy, front: Front) -> None:
    url = await recorded(front, b"all of it")
    reads = [await front.client.get(url) for _ in range(10)]
    assert {read.content for read in reads} == {b"all of it"}
    assert begun(proxy, ReadMode.CATCH_UP) == 1
    # Nobody else may keep it.
    assert {read.headers["Cache-Control"] for read in reads} == {"no-store"}
    assert all("X-Accel-Expires" not in read.headers for read in reads)


async def test_who_shows_nothing_or_something_else_gets_nothing_from_it(proxy: Proxy, front: Front) -> None:
    url = await recorded(front, b"acme's alone")
    by_ids = "/stream/data?sessionId=chat&requestId=1"
    by_path = "/v1/stream/generations/chat/1/data"
    async with asyncio.timeout(30):
        for address in (url, by_ids, by_path):
            assert (await front.client.get(address, headers=ACME)).content == b"acme's alone"
        assert (await front.client.get(url)).status_code == 200
        for address in (by_ids, by_path):
            assert (await front.client.get(address, headers=OTHER)).status_code == 404
            assert (await front.client.get(address)).status_code == 401
            assert (await front.client.get(address, headers={"Authorization": "Bearer nobody"})).status_code == 401
        tampered = url.copy_set_param("expires", str(int(url.params["expires"]) + 1))
        assert (await front.client.get(tampered)).status_code == 401


async def test_a_key_that_is_revoked_gets_nothing_from_it(proxy: Proxy, front: Front) -> None:
    await recorded(front, b"acme's alone")
    made = await make_key(proxy.service.store.keys, key_template("acme"))
    assert made is not None
    address, headers = "/stream/data?sessionId=chat&requestId=1", {"Authorization": f"Bearer {made}"}
    assert (await front.client.get(address, headers=headers)).status_code == 200
    await proxy.service.store.keys.revoke(made.split("_")[1])
    async with asyncio.timeout(60):
        while (await proxy.client.get(address, headers=headers)).status_code == 200:
            await asyncio.sleep(0.05)
    assert (await front.client.get(address, headers=headers)).status_code == 401


async def test_a_url_that_has_expired_gets_nothing_from_it(proxy: Proxy, front: Front) -> None:
    await recorded(front, b"for four seconds")
    expires_at = proxy.service.access.expiry(3.5)
    query = proxy.service.access.signed_query(GenerationKey("acme", "chat", "1"), expires=expires_at)
    statuses: list[tuple[bool, int]] = []
    async with asyncio.timeout(30):
        while not statuses or statuses[-1][1] == 200:
            is_late = time.time() >= expires_at
            statuses.append((is_late, (await front.client.get(f"/stream/data?{query}")).status_code))
    assert begun(proxy, ReadMode.CATCH_UP) < len(statuses) - 1, "some came from the cache"
    assert (True, 200) not in statuses
    assert statuses[-1][1] == 401


@pytest.mark.parametrize("way", ["events of the stream", "the answer itself"])
async def test_each_event_is_seen_before_the_next_is_sent(database_url: str, way: str) -> None:
    turn = asyncio.Semaphore(1)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        for number in range(20):
            await turn.acquire()
            await exchange.chunk(b"data: event %d\n\n" % number)
        await exchange.end()

    async with (
        upstream(play) as server,
        serving(
            PostgresStore(database_url),
            keys=KEYS,
            upstreams=Upstreams.parse_toml(f'[vendor]\nurl = "{server.url}"', {}),
        ) as proxy,
        in_front_of(proxy.url) as front,
        asyncio.timeout(60),
    ):
        if way == "the answer itself":
            reading = front.client.stream("POST", "/u/vendor/chat", headers=ACME)
        else:
            url = (await create(front, server.url)).copy_merge_params({"offset": "-1", "live": "sse"})
            reading = front.client.stream("GET", url)
        text = ""
        async with reading as answer:
            parts = answer.aiter_text()
            for number in range(20):
                while f"event {number}\n" not in text:
                    text += await anext(parts)
                turn.release()
