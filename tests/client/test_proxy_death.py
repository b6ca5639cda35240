"""The proxy goes away while a client reads: the client waits for the next one, gets every byte, and learns why."""

from __future__ import annotations

import asyncio
import hashlib
from urllib.parse import urlsplit

import pytest

from streamkeep.client import GenerationError, OwnerLost, Shutdown
from tests.client.both import Reading
from tests.client.conftest import MakeClient
from tests.serving import served_process
from tests.upstream import Exchange, upstream

PIECE = "🌊 wave\n".encode()


async def endless(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/plain"})
    while not exchange.is_gone.is_set():
        await exchange.chunk(PIECE)
        await asyncio.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["async"])
async def test_a_killed_proxys_readers_get_all_bytes_and_its_loss(make_client: MakeClient, database_url: str) -> None:
    async with upstream(endless) as server:
        async with served_process(database_url=database_url) as first:
            reading = await make_client(first.url).fetch(server.url, session_id="chat", request_id="1")
            body = await reading.at_least(100 * len(PIECE))
            first.kill()
            await first.exit_code()
        await rest_is_had_from_the_next(reading, body, database_url, first.url, OwnerLost)
    assert len(server.calls) == 1


async def test_a_replaced_proxys_readers_get_all_bytes_and_its_shutdown(
    make_client: MakeClient, database_url: str
) -> None:
    async with upstream(endless) as server:
        drain = {"STREAMKEEP_DRAIN_SECONDS": "0.5"}
        async with served_process(database_url=database_url, environ=drain) as first:
            reading = await make_client(first.url).fetch(server.url, session_id="chat", request_id="1")
            body = await reading.at_least(100 * len(PIECE))
            first.terminate()
            assert await first.exit_code() == 0
        await rest_is_had_from_the_next(reading, body, database_url, first.url, Shutdown)
    assert len(server.calls) == 1


async def rest_is_had_from_the_next(
    reading: Reading, body: bytes, database_url: str, url: str, error: type[GenerationError]
) -> None:
    """A new proxy at the same address: the reader comes back to it by itself, to the end."""
    async with served_process(database_url=database_url, port=urlsplit(url).port or 0) as second:
        rest, raised = await reading.failing_rest()
        body += rest
        assert isinstance(raised, error)
        assert raised.is_retryable
        found = await second.client.get("/stream/data", params={"sessionId": "chat", "requestId": "1"})
        assert hashlib.sha256(found.content).digest() == hashlib.sha256(body).digest()
        assert body.replace(PIECE, b"") in [PIECE[:size] for size in range(len(PIECE))]
