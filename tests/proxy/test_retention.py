"""How long data stay, and what is said when they are gone."""

from __future__ import annotations

import asyncio

import pytest

from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import upstream, whole


async def swept(proxy: Proxy) -> None:
    """Sweep until something was due."""
    async with asyncio.timeout(20):
        while not await proxy.service.store.sweep():
            await asyncio.sleep(0.05)


async def test_t9_a_request_says_how_long_its_data_stay_and_then_every_way_to_them_is_410_with_the_reason(
    proxy: Proxy,
) -> None:
    async with upstream(whole(b"ok", "text/plain")) as server:
        answer = await proxy.create("chat", "1", server.url, Streamkeep_Retention="1")
        created = answer.json()
        assert created["retentionSeconds"] == 1
        assert await proxy.read_all("chat", "1") == b"ok"
        await swept(proxy)
        again = await proxy.create("chat", "1", server.url, Streamkeep_Retention="1")
        ways = [created["streamUrl"], created["controlUrl"], "/api/chat/1"]
        ways += [f"/v1/stream/generations/chat/1/{which}" for which in ("data", "control")]
        for answer in (again, *[await proxy.client.get(way) for way in ways]):
            assert answer.status_code == 410
            found = answer.json()
            assert (found["error"], found["reason"]) == ("gone", "retention")
            assert created["createdAt"] < found["goneAt"]
            assert answer.headers["Cache-Control"] == "no-store"
        assert (await proxy.client.get("/api/chat/active")).json() == []
        assert len(server.calls) == 1


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "61", "soon", "", "9" * 30, "1, 2"])
async def test_a_retention_that_is_none_or_more_than_the_operator_allows_is_refused(value: str) -> None:
    async with serving(MemoryStore(), max_retention_seconds=60) as proxy, upstream(whole(b"", "text/plain")) as server:
        answer = await proxy.create("chat", "1", server.url, Streamkeep_Retention=value)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_retention")
        assert not server.calls
        assert (await proxy.create("chat", "1", server.url, Streamkeep_Retention="60")).status_code == 200


async def test_a_tenants_retention_is_the_default_of_its_generations(proxy: Proxy) -> None:
    await proxy.service.store.set_retention("default", 7)
    async with upstream(whole(b"ok", "text/plain")) as server:
        assert (await proxy.create("chat", "1", server.url)).json()["retentionSeconds"] == 7
        answer = await proxy.create("chat", "2", server.url, Streamkeep_Retention="9")
        assert answer.json()["retentionSeconds"] == 9
