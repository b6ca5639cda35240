"""The recordings come out of the replay server as they went in."""

from __future__ import annotations

import asyncio
import math
from urllib.parse import urlsplit

import httpx
import pytest

from tests.replay import ReplayServer, Trace


async def exchange(url: str, until: int, *, patience_seconds: float) -> tuple[bytes, bool]:
    """Send a request; the first `until` bytes of the answer, and whether the server closes after them."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"POST {address.path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    received = b""
    while len(received) < until:
        received += await reader.read(until - len(received))
    try:
        async with asyncio.timeout(patience_seconds):
            return received, await reader.read(1) == b""
    except TimeoutError:
        return received, False
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("name", Trace.names())
async def test_wire_bytes_and_ending_are_the_recorded_ones(name: str) -> None:
    trace = Trace.load(name)
    assert sum(size for _, size in trace.reads) == len(trace.wire)
    async with ReplayServer(speed=math.inf) as server:
        patience_seconds = 0.1 if trace.was_aborted else 10
        url = f"{server.url(name)}/v1/any"
        received, is_closed = await exchange(url, len(trace.wire), patience_seconds=patience_seconds)
        async with asyncio.timeout(60):
            while trace.was_aborted and not server.played[0].was_aborted:
                await asyncio.sleep(0.005)
    assert received == trace.wire
    assert is_closed is not trace.was_aborted
    assert (server.played[0].request, server.played[0].sent_bytes) == (b"{}", len(trace.wire))


async def test_http_client_gets_the_body_at_a_pace() -> None:
    async with ReplayServer(speed=50) as server, httpx.AsyncClient() as client:
        answer = await client.post(f"{server.url('chat-short')}/v1/chat/completions", json={})
        assert answer.content == Trace.load("chat-short").body
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(server.url("chat-upstream-killed"), json={})
        assert (await client.get(server.url("unheard-of"))).status_code == 404
