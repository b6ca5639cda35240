"""Clients of HTTP/1.0, such as old front doors and health checks: they know no chunks, and an answer ends with its connection."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import urlsplit

import pytest

from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream

EVENTS = b"".join(b'data: {"n": %d}\n\n' % n for n in range(40))


async def ask(proxy: Proxy, request: str) -> tuple[bytes, bytes]:
    """The head of an answer, and all that comes behind it on the connection. Raises: ConnectionResetError."""
    address = urlsplit(proxy.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(f"{request} HTTP/1.0\r\n\r\n".encode())
        async with asyncio.timeout(60):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.transport.abort()
    return head.lower(), body


async def test_an_answer_with_a_length_keeps_it(proxy: Proxy) -> None:
    head, body = await ask(proxy, "GET /health")
    assert f"content-length: {len(body)}".encode() in head
    assert b"transfer-encoding" not in head


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(EVENTS[:100])
        await exchange.chunk(EVENTS[100:])
        await exchange.end()

    async with (
        upstream(play) as vendor,
        serving(MemoryStore(), upstreams=Upstreams.parse(f"vendor={vendor.url}")) as proxy,
    ):
        head, body = await ask(proxy, "POST /u/vendor/v1/chat")
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        assert body == EVENTS


async def test_who_reads_live_gets_events_alone() -> None:
    go_on = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(b"one")
        await go_on.wait()
        await exchange.chunk(b"two")
        await exchange.end()

    async with upstream(play) as vendor, serving(MemoryStore()) as proxy:
        await proxy.create("chat", "1", vendor.url)
        target = "/stream/data?sessionId=chat&requestId=1&live=sse"
        answers = [asyncio.create_task(ask(proxy, f"GET {target}")) for _ in range(2)]
        async with asyncio.timeout(60):
            while proxy.service.readers.count < 2:
                await asyncio.sleep(0.005)
            go_on.set()
            whole = (await proxy.client.get(target)).content
        for head, body in await asyncio.gather(*answers):
            assert b"transfer-encoding" not in head
            assert b"\r\n" not in body
            assert data_of(body) == data_of(whole) == b"onetwo"
        head, body = await ask(proxy, f"HEAD {target}")
        assert b"transfer-encoding" not in head
        assert body == b""


async def test_an_answer_that_breaks_off_does_not_look_whole() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(EVENTS[:100])
        exchange.reset()

    async with (
        upstream(play) as vendor,
        serving(MemoryStore(), upstreams=Upstreams.parse(f"vendor={vendor.url}")) as proxy,
    ):
        with pytest.raises(ConnectionResetError):
            await ask(proxy, "POST /u/vendor/v1/chat")


def data_of(events: bytes) -> bytes:
    """What stands in the data events."""
    return b"".join(re.findall(rb"^event: data\n.*\ndata:(.*)$", events, re.MULTILINE))
