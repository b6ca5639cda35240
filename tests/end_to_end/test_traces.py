"""A real model's recorded streams, relayed at the pace at which they came."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from streamkeep.storage.postgres import PostgresStore
from tests.replay import ReplayServer, Trace
from tests.serving import serving

ENDINGS = {
    "anthropic-messages": "complete",
    "chat-client-abort": "cancelled",
    "chat-long": "complete",
    "chat-short": "complete",
    "chat-upstream-killed": "upstream_failed",
    "openai-responses": "complete",
}


@pytest.mark.slow
async def test_recorded_streams_come_out_as_they_were_and_end_truthfully(database_url: str) -> None:
    async with ReplayServer(speed=1.0) as server, serving(PostgresStore(database_url)) as proxy:

        async def relay(name: str) -> None:
            trace = Trace.load(name)
            created = await proxy.create("traces", name, server.url(name))
            assert created.json()["contentType"] == "text/event-stream"
            reading = asyncio.create_task(proxy.read_all("traces", name))
            if ENDINGS[name] == "cancelled":
                await _until_readable(name, len(trace.body))
                await proxy.client.post(f"/api/traces/{name}/cancel")
            event = await proxy.ending("traces", name)
            assert (name, await reading) == (name, trace.body)
            assert (name, event["code"]) == (name, ENDINGS[name])
            assert event["sha256"] == hashlib.sha256(trace.body).hexdigest()

        async def _until_readable(name: str, size: int) -> None:
            while len((await proxy.read("traces", name)).content) < size:
                await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as relays:
            for name in Trace.names():
                relays.create_task(relay(name))
    assert sorted(ENDINGS) == sorted(Trace.names())


async def test_usage_is_what_the_model_said(database_url: str) -> None:
    usage = {
        "chat-short": {"inputTokens", "outputTokens"},
        "anthropic-messages": {"inputTokens", "outputTokens"},
        "openai-responses": {"inputTokens", "outputTokens"},
    }
    async with ReplayServer(speed=1000) as server, serving(PostgresStore(database_url)) as proxy:
        for name, fields in usage.items():
            await proxy.create("traces", name, server.url(name))
            found = (await proxy.ending("traces", name))["usage"]
            assert found["source"] == "provider_final"
            assert all(found[field] > 0 for field in fields)
        await proxy.create("traces", "chat-long", server.url("chat-long"))
        assert (await proxy.ending("traces", "chat-long"))["usage"] is None
