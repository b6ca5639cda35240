"""Several instances on one database, with nothing between them that knows which has what."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from streamkeep.storage.postgres import PostgresStore
from tests.cutting import wire_to
from tests.postgres import connected
from tests.serving import Proxy, Shorthands, served_process, serving
from tests.upstream import Exchange, ticking, upstream

BODY = random.Random(12).randbytes(40_000)


@asynccontextmanager
async def instances(database_url: str, count: int) -> AsyncIterator[list[Proxy]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(PostgresStore(database_url))) for _ in range(count)]


async def test_t18_reading_resuming_and_cancelling_work_on_any_instance(database_url: str) -> None:
    never = asyncio.Event()
    async with (
        upstream(ticking(BODY, pieces=50, seconds=0.5, then=never)) as server,
        instances(database_url, 2) as (owner, other),
    ):
        await owner.create("chat", "1", server.url)
        reading = asyncio.create_task(other.read_all("chat", "1"))
        joined = await other.create("chat", "1", server.url)
        assert joined.headers["Streamkeep-Replayed"] == "true"
        resumed = await other.client.post("/api/chat/x", headers={"X-Resume-Active-Generation": "true"})
        assert resumed.json()["requestId"] == "1"
        await other.available(len(BODY))
        assert await other.cancel("chat", "1") == "cancelled"
        await asyncio.wait_for(server.calls[0].is_gone.wait(), 30)
        for proxy in (other, owner):
            again = await proxy.client.post("/api/chat/1/cancel")
            assert (again.status_code, again.json()) == (200, {"state": "cancelled"})
        assert await reading == BODY
        assert (await other.ending("chat", "1"))["code"] == "cancelled"
        assert len(server.calls) == 1


async def test_t18_cancel_before_the_first_byte_works_on_any_instance(database_url: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with upstream(play) as server, instances(database_url, 2) as (owner, other):
        post = asyncio.create_task(owner.create("chat", "1", server.url))
        call = await server.called()
        assert await other.cancel("chat", "1") == "cancelled"
        await asyncio.wait_for(call.is_gone.wait(), 30)
        assert (await post).json()["error"] == "cancelled"


async def test_t23_fifty_posts_over_three_instances_make_one_call(database_url: str) -> None:
    async with upstream(ticking(BODY, pieces=5, seconds=0.2)) as server, instances(database_url, 3) as proxies:
        posts = [proxies[number % 3].create("chat", "1", server.url) for number in range(50)]
        answers = await asyncio.gather(*posts)
        assert {answer.status_code for answer in answers} == {200}
        assert sum("Streamkeep-Replayed" not in answer.headers for answer in answers) == 1
        bodies = await asyncio.gather(*(proxies[number % 3].read_all("chat", "1") for number in range(50)))
        assert {*bodies} == {BODY}
        assert len(server.calls) == 1


async def test_an_upstream_refusal_reaches_joiners_on_another_instance(database_url: str) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.answer(400, b'{"error":"no"}', {"Content-Type": "application/json"})

    async with (
        upstream(play) as server,
        instances(database_url, 2) as (one, two),
    ):
        first = asyncio.create_task(one.create("chat", "1", server.url))
        await server.called()
        second = asyncio.create_task(two.create("chat", "1", server.url))
        await asyncio.sleep(0)
        gate.set()
        for answer in (await first, await second):
            assert (answer.status_code, answer.headers["Upstream-Status"], answer.json()) == (
                400,
                "400",
                {"error": "no"},
            )


_LOSE_LISTENERS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and query ilike '%listen%'
"""


async def test_polling_stands_in_for_notifications_that_are_lost(database_url: str) -> None:
    """The LISTEN connections are terminated, and until the end nobody can connect that way again."""
    go_on = [asyncio.Event() for _ in range(3)]

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        for number, gate in enumerate(go_on):
            await gate.wait()
            await exchange.chunk(b"%d" % number)
        await exchange.is_gone.wait()

    async with (
        upstream(play) as server,
        wire_to(database_url) as wire,
        serving(PostgresStore(database_url, direct_dsn=wire.url)) as owner,
        serving(PostgresStore(database_url, direct_dsn=wire.url)) as other,
        connected(database_url) as third,
    ):
        await owner.create("chat", "1", server.url)
        reading = asyncio.create_task(other.read_all("chat", "1"))
        go_on[0].set()
        await other.available(1)
        wire.hold()
        assert len(await third.fetch(_LOSE_LISTENERS)) >= 2
        wire.cut()  # Else what the server said last would be held back with the rest.
        async with asyncio.timeout(60):
            for proxy in (owner, other):
                while await is_listening(proxy):
                    await asyncio.sleep(0.02)
        go_on[1].set()
        await other.available(2)
        go_on[2].set()
        await other.available(3)
        # A cancel is heard of by its owner in the same slow way.
        assert await other.cancel("chat", "1") == "cancelled"
        await asyncio.wait_for(server.calls[0].is_gone.wait(), 30)
        assert await reading == b"012"
        assert not await is_listening(owner)
        assert not await is_listening(other)
        wire.release()
        async with asyncio.timeout(60):
            while not await is_listening(other):
                await asyncio.sleep(0.02)


async def is_listening(proxy: Proxy) -> bool:
    return "streamkeep_database_listening 1.0" in (await proxy.client.get("/metrics")).text


class Vendor:
    """Answers in pieces; after the first half it waits for a word, and those asked for without an end wait for ever."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def play(self, exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/octet-stream"})
        for start in range(0, len(BODY), 1000):
            if start == len(BODY) // 2:
                await (exchange.is_gone if exchange.path == "/endless" else self.go_on).wait()
            await exchange.chunk(BODY[start : start + 1000])
            await asyncio.sleep(0.01)
        await exchange.end()


@pytest.mark.slow
async def test_t36_a_deploy_costs_no_reader_anything(database_url: str) -> None:
    """Sixty generations on one of three instances, which is told to stop while they run."""
    vendor = Vendor()
    async with upstream(vendor.play) as server, instances(database_url, 2) as others:
        environ = {"STREAMKEEP_DRAIN_SECONDS": "8", "STREAMKEEP_UPSTREAMS": f"vendor={server.url}"}
        async with served_process(database_url=database_url, environ=environ) as leaving:
            brief, endless = [f"brief-{n}" for n in range(40)], [f"endless-{n}" for n in range(10)]
            for answer in await asyncio.gather(
                *(leaving.create("chat", name, f"{server.url}/{name.partition('-')[0]}") for name in brief + endless)
            ):
                assert answer.status_code == 200
            direct = [asyncio.create_task(leaving.client.post("/u/vendor/brief")) for _ in range(10)]
            readers = [Nomad([leaving, *others], name) for name in brief + endless]
            reading = [asyncio.create_task(reader.read()) for reader in readers]
            async with asyncio.timeout(60):
                while len(server.calls) < 60 or any(len(reader.body) < len(BODY) // 2 for reader in readers):
                    await asyncio.sleep(0.02)
            leaving.terminate()
            # As long as a deploy waits for the longest of them, and what an operator would grant beyond.
            async with asyncio.timeout(8 + 10):
                while not all(reader.moves for reader in readers):
                    await asyncio.sleep(0.02)
                vendor.go_on.set()
                assert [(await task).content for task in direct] == [BODY] * 10
                assert await leaving.exit_code() == 0
                await asyncio.gather(*reading)
        bodies = {reader.name: reader.body for reader in readers}
        assert {bodies[name] for name in brief} == {BODY}
        assert {bodies[name] for name in endless} == {BODY[: len(BODY) // 2]}
        for names, code in ((brief, "complete"), (endless, "shutdown")):
            events = await asyncio.gather(*(others[0].ending("chat", name) for name in names))
            assert {event["code"] for event in events} == {code}
        assert len(server.calls) == 60


class Nomad:
    """A reader that goes on at the next instance whenever one sends it away, which must happen without an error."""

    def __init__(self, proxies: Sequence[Shorthands], name: str) -> None:
        self.name = name
        self.body = b""
        self.moves = 0
        self._proxies = proxies

    async def read(self) -> None:
        while not await self._read_here(self._proxies[min(self.moves, len(self._proxies) - 1)]):
            self.moves += 1

    async def _read_here(self, proxy: Shorthands) -> bool:
        """Whether the stream came to its end."""
        offset = f"{0:016d}_{len(self.body):016d}"
        query = {"sessionId": "chat", "requestId": self.name, "offset": offset, "live": "sse", "encoding": "base64"}
        async with proxy.client.stream("GET", "/stream/data", params=query) as answer:
            assert answer.status_code == 200
            event = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    event = line[7:]
                elif line.startswith("data:") and event == "data":
                    self.body += base64.b64decode(line[5:])
                elif line.startswith("data:") and json.loads(line[5:]).get("streamClosed"):
                    return True
        return False


async def test_t31_hostile_bytes_of_many_generations_share_commits_and_come_back_equal(database_url: str) -> None:
    rng = random.Random(31)
    wave = "🌊".encode()
    bodies = {
        "random": rng.randbytes(30_000),
        "nul": bytes(30_000),
        "surrogates": "\ud800\udc00".encode("utf-8", "surrogatepass") * 5_000,
        "waves": wave * 7_500,
        "gzip": gzip.compress(rng.randbytes(20_000)),
        "empty": b"",
    }

    async def play(exchange: Exchange) -> None:
        name = exchange.path.strip("/")
        coding = {"Content-Encoding": "gzip"} if name == "gzip" else {}
        await exchange.head(200, {"Content-Type": "text/plain; charset=utf-8", **coding})
        # Never in step with characters of four bytes: they are split after the first, the second and the third.
        for start in range(0, len(bodies[name]), 301):
            await exchange.chunk(bodies[name][start : start + 301])
            await asyncio.sleep(0)
        await exchange.end()

    async with (
        upstream(play) as server,
        serving(PostgresStore(database_url), max_response_bytes=30_000) as proxy,
        serving(PostgresStore(database_url)) as other,
    ):
        bodies["oversized"] = rng.randbytes(40_000)
        names = [name for name in bodies for _ in range(3)]
        created = await asyncio.gather(
            *(proxy.create("chat", f"{n}", f"{server.url}/{name}") for n, name in enumerate(names))
        )
        assert {answer.status_code for answer in created} == {200}
        for number, name in enumerate(names):
            event = await other.ending("chat", f"{number}")
            body = await other.read_all("chat", f"{number}")
            expected = bodies[name][:30_000]
            assert body == expected, name
            assert event["sha256"] == hashlib.sha256(expected).hexdigest()
            assert event["code"] == ("too_large" if name == "oversized" else "complete")
