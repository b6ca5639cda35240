"""Deleting what was recorded: nothing of it is read again, no upstream is called again, and the ids stay taken."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from streamkeep.proxy import deletion
from streamkeep.proxy.deletion import Deleted
from streamkeep.storage import Claim, Erasure, GenerationKey, MemoryStore, Owner
from streamkeep.storage.postgres import PostgresStore
from tests.postgres import connected
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream, whole


def ways(session_id: str, request_id: str) -> list[str]:
    """Every path that leads to a generation."""
    ids = f"sessionId={session_id}&requestId={request_id}"
    return [
        f"/api/{session_id}/{request_id}",
        *(f"/stream/{which}?{ids}" for which in ("data", "control")),
        *(f"/v1/stream/generations/{session_id}/{request_id}/{which}" for which in ("data", "control")),
    ]


def assert_deleted(answer: httpx.Response) -> None:
    found = answer.json()
    assert (answer.status_code, found["error"], found["reason"]) == (410, "gone", "deleted")
    assert found["goneAt"].endswith("Z")


def assert_cut(answer: httpx.Response) -> None:
    """What a waiting reader gets: that it is deleted, or what it just saw before that, the end of a cancelled stream."""
    if answer.status_code != 204:
        assert_deleted(answer)


async def assert_gone(proxy: Proxy, session_id: str, request_id: str) -> None:
    for way in ways(session_id, request_id):
        assert_deleted(await proxy.client.get(way))


async def test_a_deleted_generation_is_410_on_every_way_and_a_repeat_calls_nobody(proxy: Proxy) -> None:
    async with upstream(whole(b"secret", "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.create("chat", "2", server.url)
        assert await proxy.read_all("chat", "1") == b"secret"
        await proxy.ending("chat", "2")
        for generations in (1, 0):
            answer = await proxy.client.delete("/api/chat/1")
            assert answer.status_code == 200
            assert answer.json() == {"state": "deleted", "generations": generations, "rowsRemaining": 0}
        await assert_gone(proxy, "chat", "1")
        assert_deleted(await proxy.create("chat", "1", server.url))
        assert_deleted(await proxy.client.post("/api/chat/1/cancel"))
        assert [row["requestId"] for row in (await proxy.client.get("/api/chat/active")).json()] == ["2"]
        assert await proxy.read_all("chat", "2") == b"secret"
        assert len(server.calls) == 2


async def test_deleting_what_never_was_is_404_and_a_session_of_none_is_fine(proxy: Proxy) -> None:
    answer = await proxy.client.delete("/api/chat/1")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    answer = await proxy.client.delete("/api/chat")
    assert (answer.status_code, answer.json()) == (200, {"generations": 0, "rowsRemaining": 0})
    for path in ("/api/chat/active", "/api/chat/..%2f", "/api/-"):
        assert (await proxy.client.delete(path)).status_code in (400, 404)


async def test_deleting_a_running_generation_closes_upstream_and_cuts_its_readers(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(b"secret")
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        call = await server.called()
        offset = (await proxy.read("chat", "1", offset="-1", live="long-poll")).headers["Stream-Next-Offset"]
        waiting = asyncio.create_task(proxy.read("chat", "1", offset=offset, live="long-poll"))
        query = {"sessionId": "chat", "requestId": "1", "offset": "-1", "live": "sse"}
        async with proxy.client.stream("GET", "/stream/data", params=query) as following:
            lines = following.aiter_lines()
            assert await anext(lines) == "event: data"
            answer = await proxy.client.delete("/api/chat/1")
            assert (answer.status_code, answer.json()["rowsRemaining"]) == (200, 0)
            async for _ in lines:
                pass
        assert_cut(await waiting)
        async with asyncio.timeout(60):
            await call.is_gone.wait()
        await assert_gone(proxy, "chat", "1")


async def test_deleting_a_session_takes_all_of_it_and_nothing_else(proxy: Proxy) -> None:
    async with upstream(whole(b"ok", "text/plain")) as server:
        for session_id, request_id in (("chat", "1"), ("chat", "2"), ("other", "1")):
            await proxy.create(session_id, request_id, server.url)
            await proxy.ending(session_id, request_id)
        answer = await proxy.client.delete("/api/chat")
        assert (answer.status_code, answer.json()) == (200, {"generations": 2, "rowsRemaining": 0})
        for request_id in ("1", "2"):
            await assert_gone(proxy, "chat", request_id)
        assert await proxy.read_all("other", "1") == b"ok"
        assert (await proxy.create("chat", "3", server.url)).status_code == 200


async def test_forks_go_with_a_deleted_generation_and_the_registry_tells(proxy: Proxy) -> None:
    async with upstream(whole(b"secret", "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    source = {"Stream-Forked-From": "/v1/stream/generations/chat/1/data"}
    assert (await proxy.client.put("/v1/stream/branch", headers=source)).status_code == 201
    assert (await proxy.client.delete("/api/chat/1")).status_code == 200
    assert (await proxy.client.get("/v1/stream/branch")).status_code == 404
    async with asyncio.timeout(60):
        while True:
            told = (await proxy.client.get("/v1/stream/__registry__?offset=-1")).json()
            if [(one["key"], one["headers"]["operation"]) for one in told[-1:]] == [("branch", "delete")]:
                break


@pytest.mark.parametrize("is_caller_waiting", [True, False])
async def test_a_generation_may_be_deleted_before_upstream_has_answered(proxy: Proxy, is_caller_waiting: bool) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        creation = asyncio.create_task(proxy.create("chat", "1", server.url))
        await server.called()
        if not is_caller_waiting:
            creation.cancel()
        assert (await proxy.client.delete("/api/chat/1")).json()["rowsRemaining"] == 0
        if is_caller_waiting:
            assert (await creation).status_code in (409, 410)
        await assert_gone(proxy, "chat", "1")
        assert len(server.calls) == 1


class DeletedOnceClaimed(PostgresStore):
    """Deletes what it claimed, before whoever claims it hears of that: no call has begun that could be told."""

    async def claim(self, owner: Owner, key: GenerationKey, *rest: Any, **named: Any) -> Claim:
        claim = await super().claim(owner, key, *rest, **named)
        await self.erase(Erasure.of(key))
        return claim


async def test_a_generation_that_is_deleted_while_it_is_claimed_is_never_read(database_url: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(b"secret")
        await exchange.is_gone.wait()

    async with serving(DeletedOnceClaimed(database_url)) as proxy, upstream(play) as server:
        assert (await proxy.create("chat", "1", server.url)).json()["state"] == "cancelled"
        # Live reads are the ones that what runs here is asked for.
        assert_deleted(await proxy.read("chat", "1", offset="-1", live="long-poll"))
        await assert_gone(proxy, "chat", "1")
        await (await server.called()).is_gone.wait()


async def test_another_instance_deletes_what_runs_here(database_url: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(b"secret")
        await exchange.is_gone.wait()

    async with (
        serving(PostgresStore(database_url)) as here,
        serving(PostgresStore(database_url)) as there,
        upstream(play) as server,
    ):
        await here.create("chat", "1", server.url)
        call = await server.called()
        offset = (await here.read("chat", "1", offset="-1", live="long-poll")).headers["Stream-Next-Offset"]
        waiting = asyncio.create_task(here.read("chat", "1", offset=offset, live="long-poll"))
        answer = await there.client.delete("/api/chat/1")
        assert (answer.status_code, answer.json()["rowsRemaining"]) == (200, 0)
        assert_cut(await waiting)
        async with asyncio.timeout(60):
            await call.is_gone.wait()
        for proxy in (here, there):
            await assert_gone(proxy, "chat", "1")


async def test_who_has_not_heard_of_a_deletion_says_why_there_is_nothing_to_read(database_url: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.is_gone.wait()

    async with (
        connected(database_url) as connection,
        serving(PostgresStore(database_url)) as proxy,
        upstream(play) as server,
    ):
        await proxy.create("chat", "1", server.url)
        # What another instance writes, without a word to this one.
        await connection.execute("update streamkeep.generations set gone_at = now(), gone_reason = 'deleted'")
        await connection.execute("update streamkeep.streams set deleted_at = now()")
        for way in ways("chat", "1")[1:]:
            assert_deleted(await proxy.client.get(way))


async def test_what_cannot_be_done_in_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamkeep.proxy.routes.transport._DELETE_SECONDS", 0.0)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.is_gone.wait()

    async with serving(MemoryStore()) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        answer = await proxy.client.delete("/api/chat/1")
        assert (answer.status_code, answer.json()["rowsRemaining"]) == (202, 2)
        await assert_gone(proxy, "chat", "1")
        async with asyncio.timeout(60):
            while (answer := await proxy.client.delete("/api/chat/1")).status_code != 200:
                await asyncio.sleep(0.05)


async def test_nothing_can_be_read_when_a_deletion_returns_however_little_time_it_has() -> None:
    store = MemoryStore()
    owner = await store.register_owner()
    keys = [GenerationKey("acme", "chat", str(i)) for i in range(5)]
    rows = [(await store.claim(owner, key, None)).generation for key in keys]
    deleted = await deletion.delete(store, Erasure("acme", "chat"), within_seconds=0, limit=2)
    assert deleted == Deleted(generations=5, rows_remaining=10)
    assert await store.tails([row.data_stream for row in rows]) == {}
