"""What is larger than it may be, where no other test meets it: heads on both sides, and upstream's error bodies."""

from __future__ import annotations

import asyncio
import select
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from streamkeep.proxy import create_app
from streamkeep.proxy.server import bind, make_server
from streamkeep.storage import MemoryStore
from tests.raw_http import RawServer, answering
from tests.serving import Proxy, local_settings
from tests.upstream import Exchange, upstream

MAX_ERROR_BODY_BYTES = 64 * 1024


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ", b"x"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n", b"X-Many: 1\r\n"),
        (b"GET /", b"x"),
    ],
    ids=["one header", "many headers", "the path"],
)
async def test_a_request_whose_head_does_not_end_is_431(proxy: Proxy, start: bytes, more: bytes) -> None:
    assert (await asyncio.to_thread(_answer_to_an_endless_head, proxy.url, start, more)).startswith(b"HTTP/1.1 431 ")


def _answer_to_an_endless_head(url: str, start: bytes, more: bytes) -> bytes:
    """Send until there is an answer, or no use."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        with suppress(ConnectionError):
            connection.sendall(start)
            while not select.select([connection], [], [], 0)[0]:
                connection.sendall(more * 100)
        return connection.recv(1000)


async def test_a_response_with_too_large_a_head_is_502_and_ends_the_call(proxy: Proxy) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 7_000 + b"Content-Length: 2\r\n\r\nok"
    async with RawServer(answering(head)) as server:
        answer = await proxy.create("chat", "1", server.url)
    assert (answer.status_code, answer.json()["error"]) == (502, "upstream_failed")
    assert (await proxy.ending("chat", "1"))["bytes"] == 0


@pytest.mark.parametrize("is_endless", [False, True])
async def test_upstreams_error_body_is_cut_at_its_limit(proxy: Proxy, is_endless: bool) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(400, {"Content-Type": "text/plain"})
        for _ in range(3):
            await exchange.chunk(b"x" * MAX_ERROR_BODY_BYTES)
        while is_endless and not exchange.is_gone.is_set():
            await exchange.chunk(b"x" * MAX_ERROR_BODY_BYTES)
        await exchange.end()

    async with upstream(play) as server:
        answer = await proxy.create("chat", "1", server.url)
        assert (answer.status_code, answer.headers["Upstream-Status"]) == (400, "400")
        assert answer.content == b"x" * MAX_ERROR_BODY_BYTES


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no user timeout for TCP")
async def test_t22_a_peer_that_vanished_without_a_word_is_noticed_within_45_seconds() -> None:
    """It is, by the kernel, when a heartbeat of ours stays unacknowledged; here is what the kernel was told."""
    settings = local_settings()
    server = make_server(create_app(store=MemoryStore(), settings=settings))
    listener = bind("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(20):
            while not server.started:
                await asyncio.sleep(0.01)
        _, writer = await asyncio.open_connection(*listener.getsockname())
        async with asyncio.timeout(20):
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
        (connection,) = server.server_state.connections
        peer = connection.transport.get_extra_info("socket")
        user_timeout_seconds = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
        assert 0 < user_timeout_seconds + settings.heartbeat_seconds <= 45
        writer.close()
    finally:
        server.should_exit = True
        await serving
