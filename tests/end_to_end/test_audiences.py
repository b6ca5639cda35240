"""Readers that leave, vanish and come back, on one instance or the other: what then becomes of a generation.

No test waits for a time to pass. Where something must not happen within some seconds, a second generation, whose last
reader left later, is the clock: once that one is cancelled, the first would have been.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.storage import MemoryStore
from streamkeep.storage.postgres import PostgresStore
from tests.end_to_end.test_departures import Watcher
from tests.postgres import connected
from tests.serving import Proxy, served_process, serving
from tests.upstream import Exchange, Upstream, upstream

CHUNK = (
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hi"}}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
)
LAST = (
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
)


class Answers:
    """Upstreams that say something, wait, and end when they are told to."""

    def __init__(self, server: Upstream, go_on: asyncio.Event) -> None:
        self.server = server
        self.go_on = go_on

    @classmethod
    @asynccontextmanager
    async def served(cls) -> AsyncIterator[Answers]:
        go_on = asyncio.Event()

        async def play(exchange: Exchange) -> None:
            await exchange.head(200, {"Content-Type": "text/event-stream"})
            await exchange.chunk(CHUNK)
            either = [asyncio.ensure_future(event.wait()) for event in (go_on, exchange.is_gone)]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for future in either:
                future.cancel()
            await exchange.chunk(LAST)
            await exchange.end()

        async with upstream(play) as server:
            yield cls(server, go_on)

    async def create(self, proxy: Proxy, request_id: str, policy: str) -> None:
        answer = await proxy.create("chat", request_id, self.server.url, Streamkeep_On_Disconnect=policy)
        assert answer.status_code == 200, answer.text


async def watching(proxy: Proxy, request_id: str) -> Watcher:
    """A live reader that has seen the first chunk."""
    watcher = await Watcher.open(proxy.url, f"/v1/stream/generations/chat/{request_id}/data")
    await watcher.see(b"Hi")
    return watcher


async def state(proxy: Proxy, request_id: str) -> str:
    return str((await proxy.client.get(f"/api/chat/{request_id}")).json()["state"])


async def cancelled(proxy: Proxy, request_id: str) -> None:
    async with asyncio.timeout(60):
        while await state(proxy, request_id) != "cancelled":
            await asyncio.sleep(0.05)


_AUDIENCES = """
select count(*)
from streamkeep.audiences join streamkeep.generations on id = generation_id
where request_id = $1 and counts_until > clock_timestamp()
"""


async def told_of_readers(database_url: str, request_id: str, *, instances: int) -> None:
    """Until the database knows of readers on so many instances; it is told of them beside their answers."""
    async with connected(database_url) as third, asyncio.timeout(60):
        while await third.fetchval(_AUDIENCES, request_id) != instances:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("politely", [True, False])
async def test_t22_a_generation_goes_on_without_its_readers_to_the_end(politely: bool) -> None:
    async with Answers.served() as answers, serving(MemoryStore()) as proxy:
        await answers.create(proxy, "1", "continue")
        (await watching(proxy, "1")).leave(politely=politely)
        async with asyncio.timeout(60):
            while proxy.service.readers.count:
                await asyncio.sleep(0.01)
        answers.go_on.set()
        event = await proxy.ending("chat", "1")
        assert event["code"] == "complete"
        assert (event["usage"]["inputTokens"], event["usage"]["outputTokens"]) == (7, 3)


@pytest.mark.parametrize("politely", [True, False])
async def test_t22_a_generation_is_cancelled_some_time_after_its_last_reader_left(politely: bool) -> None:
    async with Answers.served() as answers, serving(MemoryStore()) as proxy:
        await answers.create(proxy, "1", "cancel_after=1")
        watcher = await watching(proxy, "1")
        left_at = time.monotonic()
        watcher.leave(politely=politely)
        async with asyncio.timeout(60):
            await answers.server.calls[0].is_gone.wait()
        assert time.monotonic() - left_at >= 1
        event = await proxy.ending("chat", "1")
        assert (event["event"], event["code"], event["message"]) == ("cancelled", "cancelled", "no reader for 1 s")
        # What was used up to there, as upstream last told it.
        assert event["usage"] == {"inputTokens": 7, "outputTokens": 3, "source": "provider_partial"}


async def test_t22_a_caller_of_a_named_upstream_is_its_answers_reader() -> None:
    async with Answers.served() as answers:
        upstreams = Upstreams.parse(f"vendor={answers.server.url}")
        async with serving(MemoryStore(), upstreams=upstreams, on_disconnect=0.0) as proxy:
            asked = {"X-Session-ID": "chat", "X-Request-ID": "left"}
            async with proxy.client.stream("POST", "/u/vendor/v1/chat", headers=asked) as answer:
                assert await anext(answer.aiter_raw()) == CHUNK
                assert await state(proxy, "left") == "running"
            await cancelled(proxy, "left")


@pytest.mark.parametrize("tokens", [(7, 40_000), (0, 0)])
async def test_t26_usage_is_upstreams_last_word_though_all_readers_left_long_before(tokens: tuple[int, int]) -> None:
    go_on = asyncio.Event()
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n' % tokens

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(CHUNK * 10)
        await go_on.wait()
        for _ in range(100):
            await exchange.chunk(CHUNK * 10)
        await exchange.chunk(LAST + usage + b"data: [DONE]\n\n")
        await exchange.end()

    async with (
        upstream(play) as server,
        serving(MemoryStore(), upstreams=Upstreams.parse(f"vendor={server.url}")) as proxy,
    ):
        ids = {"X-Session-ID": "chat", "X-Request-ID": "1"}
        async with proxy.client.stream("POST", "/u/vendor/v1/chat", headers=ids) as answer:
            assert len(await anext(answer.aiter_raw())) > 1000
        async with asyncio.timeout(60):
            while proxy.service.readers.count:
                await asyncio.sleep(0.01)
        go_on.set()
        event = await proxy.ending("chat", "1")
    assert event["bytes"] > 150_000
    assert event["usage"] == {"inputTokens": tokens[0], "outputTokens": tokens[1], "source": "provider_final"}


async def test_t22_callers_of_a_named_upstream_are_readers_while_they_wait(database_url: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        settings = {"upstreams": Upstreams.parse(f"vendor={server.url}"), "on_disconnect": 0.0}
        async with (
            serving(PostgresStore(database_url), **settings) as one,
            serving(PostgresStore(database_url), **settings) as two,
        ):

            async def ask(proxy: Proxy, request_id: str) -> httpx.Response:
                return await proxy.client.post(
                    "/u/vendor/v1", headers={"X-Session-ID": "chat", "X-Request-ID": request_id}
                )

            first = asyncio.create_task(ask(one, "joined"))
            await server.called()
            second = asyncio.create_task(ask(two, "joined"))
            await told_of_readers(database_url, "joined", instances=2)
            alone = asyncio.create_task(ask(one, "alone"))
            await server.called(2)
            for leaving in (first, alone):
                leaving.cancel()
            await cancelled(one, "alone")
            await server.calls[1].is_gone.wait()
            assert await state(one, "joined") == "creating"
            second.cancel()
            await cancelled(one, "joined")
            assert (await one.ending("chat", "joined"))["message"] == "no reader any more"
            await asyncio.gather(first, second, alone, return_exceptions=True)


async def test_a_named_upstream_is_not_called_for_a_caller_who_could_not_be_answered() -> None:
    async with Answers.served() as answers:
        upstreams = Upstreams.parse(f"vendor={answers.server.url}")
        async with serving(MemoryStore(), upstreams=upstreams, max_readers=1) as proxy:
            await answers.create(proxy, "1", "continue")
            watcher = await watching(proxy, "1")
            refused = await proxy.client.post("/u/vendor/v1/chat")
            assert (refused.status_code, refused.json()["error"]) == (503, "overloaded")
            assert len(answers.server.calls) == 1
            watcher.leave(politely=True)


async def test_t22_the_default_policy_is_the_operators() -> None:
    async with Answers.served() as answers, serving(MemoryStore(), on_disconnect=0.0) as proxy:
        await proxy.create("chat", "1", answers.server.url)
        await answers.create(proxy, "2", "continue")
        for request_id in ("2", "1"):
            (await watching(proxy, request_id)).leave(politely=True)
        await cancelled(proxy, "1")
        assert (await proxy.ending("chat", "1"))["message"] == "no reader any more"
        assert await state(proxy, "2") == "running"


async def test_t22_a_generation_that_never_had_a_reader_goes_on() -> None:
    async with Answers.served() as answers, serving(MemoryStore()) as proxy:
        await answers.create(proxy, "unread", "cancel")
        await answers.create(proxy, "clock", "cancel")
        (await watching(proxy, "clock")).leave(politely=True)
        await cancelled(proxy, "clock")
        assert await state(proxy, "unread") == "running"


async def test_t22_a_reader_between_two_polls_or_connections_is_still_there(database_url: str) -> None:
    async with (
        Answers.served() as answers,
        serving(PostgresStore(database_url), sse_seconds=0.2) as proxy,
        serving(PostgresStore(database_url)) as other,
    ):
        for request_id in ("catch-up", "long-poll", "rotated"):
            await answers.create(proxy, request_id, "cancel")
        await answers.create(other, "clock", "cancel")
        clock = await watching(other, "clock")

        async def look_in() -> None:
            assert (await proxy.read("chat", "catch-up")).status_code == 200
            assert (await proxy.read("chat", "long-poll", live="long-poll", offset="-1")).status_code == 200
            assert (await proxy.read("chat", "rotated", live="sse", offset="-1")).status_code == 200

        await look_in()
        clock.leave(politely=True)
        is_over = asyncio.create_task(cancelled(other, "clock"))
        # At once, unless the machine is so busy that nobody is judged for a while.
        while not (await asyncio.wait([is_over], timeout=4))[0]:
            await look_in()
        await is_over
        for request_id in ("catch-up", "long-poll", "rotated"):
            assert await state(proxy, request_id) == "running"


async def test_t22_a_reader_that_takes_nothing_is_cut_and_counts_no_more() -> None:
    """A peer that is only half there neither takes bytes nor says that it is gone."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/octet-stream"})
        while not exchange.is_gone.is_set():
            await exchange.chunk(bytes(256 * 1024))
            # All of them run in one loop, and in one that is late for everything nobody is judged.
            await asyncio.sleep(0.01)

    async with upstream(play) as server, serving(MemoryStore(), reader_stall_seconds=0.5) as proxy:
        await proxy.create("chat", "1", server.url, Streamkeep_On_Disconnect="cancel")
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, _, port = proxy.url.removeprefix("http://").partition(":")
            peer.connect((host, int(port)))
            peer.sendall(b"GET /stream/data?sessionId=chat&requestId=1&live=sse HTTP/1.1\r\nHost: x\r\n\r\n")
            async with asyncio.timeout(60):
                await server.calls[0].is_gone.wait()
        assert (await proxy.ending("chat", "1"))["code"] == "cancelled"


async def test_t22_over_two_instances_those_who_come_back_in_time_keep_their_generation(database_url: str) -> None:
    chance = random.Random(22)
    async with (
        Answers.served() as answers,
        serving(PostgresStore(database_url)) as one,
        serving(PostgresStore(database_url)) as two,
    ):
        instances = (one, two)

        async def some_readers(request_id: str, *, returns: bool) -> Watcher | None:
            await answers.create(chance.choice(instances), request_id, "cancel_after=8")
            for _ in range(chance.randint(1, 3)):
                readers = [await watching(chance.choice(instances), request_id) for _ in range(chance.randint(1, 2))]
                for reader in readers:
                    reader.leave(politely=chance.random() < 0.5)
            return await watching(chance.choice(instances), request_id) if returns else None

        kept = await asyncio.gather(*(some_readers(f"kept-{i}", returns=True) for i in range(12)))
        await asyncio.gather(*(some_readers(f"left-{i}", returns=False) for i in range(12)))
        await asyncio.gather(*(cancelled(chance.choice(instances), f"left-{i}") for i in range(12)))
        assert {await state(one, f"kept-{i}") for i in range(12)} == {"running"}
        answers.go_on.set()
        for i, reader in enumerate(kept):
            assert reader is not None
            await reader.see(b'"streamClosed":true')
            reader.leave(politely=True)
            assert (await two.ending("chat", f"kept-{i}"))["code"] == "complete"


async def test_t22_a_killed_instance_gives_back_its_places_and_its_readers_count_no_more(database_url: str) -> None:
    async with (
        Answers.served() as answers,
        serving(PostgresStore(database_url), max_running=2) as survivor,
        served_process(database_url=database_url, environ={"STREAMKEEP_MAX_RUNNING": "2"}) as process,
    ):
        url = answers.server.url
        assert (await process.create("chat", "1", url)).status_code == 200
        await answers.create(survivor, "2", "cancel")
        reader = await Watcher.open(process.url, "/v1/stream/generations/chat/2/data")
        await reader.see(b"Hi")
        assert (await survivor.create("chat", "3", url)).status_code == 429
        await told_of_readers(database_url, "2", instances=1)
        process.kill()
        await cancelled(survivor, "2")
        assert (await survivor.ending("chat", "1"))["code"] == "owner_lost"
        for request_id, status in (("3", 200), ("4", 200), ("5", 429)):
            assert (await survivor.create("chat", request_id, url)).status_code == status
        reader.leave(politely=False)
