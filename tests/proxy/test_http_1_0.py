"""Clients of HTTP/1.0, such as old front doors and health checks: they know no chunks, and an answer ends with its connection."""

from __future__ import annotations

import asyncio
import re
import socket
from urllib.parse import urlsplit

import pytest

from streamkeep.proxy import create_app
from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.proxy.server import bind, make_server
from streamkeep.storage import MemoryStore
from tests.serving import Proxy, local_settings, serving
from tests.upstream import Exchange, upstream

EVENTS = b"".join(b'data: {"n": %d}\n\n' % n for n in range(40))


async def ask(proxy: Proxy, request: str, rest: str = "\r\n") -> tuple[bytes, bytes]:
    """The head of an answer, and all that comes behind it on the connection. Raises: ConnectionResetError."""
    address = urlsplit(proxy.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(f"{request} HTTP/1.0\r\n{rest}".encode())
        async with asyncio.timeout(60):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.transport.abort()
    return head.lower(), body


async def test_an_answer_with_a_length_keeps_it(proxy: Proxy) -> None:
    head, body = await ask(proxy, "GET /health")
    assert f"content-length: {len(body)}".encode() in head
    assert b"transfer-encoding" not in head


async def test_nobody_is_told_to_continue(proxy: Proxy) -> None:
    rest = "Expect: 100-continue\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
    head, _ = await ask(proxy, "PUT /v1/stream/a", rest)
    assert head.startswith(b"http/1.1 201 ")


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


@pytest.mark.parametrize("is_cut", [False, True])
async def test_an_answer_is_whole_once_it_is_on_its_way_whole(is_cut: bool) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(body)
        await exchange.end()

    def has_all() -> bool:
        """Whether the answer waits in the server's memory for its peer."""
        held = [one.transport.get_write_buffer_size() for one in server.server_state.connections]
        return held != [] and held[0] > 0 and not app.state.service.generations.running

    body = EVENTS * 60
    async with upstream(play) as vendor:
        settings = local_settings(upstreams=Upstreams.parse(f"vendor={vendor.url}"))
        app = create_app(store=MemoryStore(), settings=settings)
        with bind("127.0.0.1", 0) as listener, socket.socket() as peer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.setblocking(False)
            server = make_server(app)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(60):
                while not server.started:
                    await asyncio.sleep(0.005)
                await loop.sock_connect(peer, listener.getsockname())
                await loop.sock_sendall(peer, b"POST /u/vendor/v1/chat HTTP/1.0\r\n\r\n")
                while not has_all():
                    await asyncio.sleep(0.005)
                for _ in range(100):
                    await asyncio.sleep(0)
                if is_cut:
                    for connection in server.server_state.connections:
                        connection.transport.abort()
                got, end = b"", ""
                while not end:
                    try:
                        part = await loop.sock_recv(peer, 65536)
                    except ConnectionResetError:
                        end = "reset"
                    else:
                        got, end = got + part, "" if part else "closed"
            server.should_exit = True
            await serving
    assert end == ("reset" if is_cut else "closed")
    assert got.endswith(body) is not is_cut


def data_of(events: bytes) -> bytes:
    """What stands in the data events."""
    return b"".join(re.findall(rb"^event: data\n.*\ndata:(.*)$", events, re.MULTILINE))
