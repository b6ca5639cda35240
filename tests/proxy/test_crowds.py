"""Crowds of readers on real connections: news goes to every peer that takes it, and to no other."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import uvloop

from streamkeep.proxy.feeds import Feed
from streamkeep.proxy.server import Connection
from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving

PLAIN = {"Content-Type": "text/plain"}


@dataclass
class Peer:
    """A reader of `/v1/stream/open` and its connection in the server."""

    incoming: asyncio.StreamReader
    outgoing: asyncio.StreamWriter
    connection: Connection


async def join(proxy: Proxy) -> Peer:
    address = urlsplit(proxy.url)
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.setblocking(False)
    await asyncio.get_running_loop().sock_connect(peer, (address.hostname, address.port))
    incoming, outgoing = await asyncio.open_connection(sock=peer, limit=4096)
    outgoing.write(b"GET /v1/stream/open?offset=now&live=sse&cursor=7 HTTP/1.1\r\nHost: x\r\n\r\n")
    await incoming.readuntil(b"event: control\n")
    (connection,) = (
        one for one in gc.get_objects() if isinstance(one, Connection) and one.client == peer.getsockname()
    )
    return Peer(incoming, outgoing, connection)


async def crowd_of(proxy: Proxy, count: int) -> Feed:
    """The feed of the one stream that is read, once so many wait in its crowds."""
    (feed,) = proxy.service.readers._feeds.values()
    async with asyncio.timeout(30):
        while sum(len(crowd.writes) for crowd in feed.crowds.values()) != count:
            await asyncio.sleep(0.01)
    return feed


def on_uvloop(test: Callable[[Proxy], Awaitable[None]]) -> None:
    async def run() -> None:
        async with serving(MemoryStore()) as proxy:
            await proxy.client.put("/v1/stream/open", headers=PLAIN)
            await test(proxy)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_news_in_the_turn_in_which_a_connection_is_lost_reaches_all_others() -> None:
    """A transport raises from then on when it is written to, and its reader's task learns of that some turns later."""

    async def test(proxy: Proxy) -> None:
        lost, *others = [await join(proxy) for _ in range(3)]
        feed = await crowd_of(proxy, 3)
        # In the turn that follows the connection is lost first, and then the news is told.
        lost.connection.transport.abort()
        proxy.service.readers.appended(feed.stream_id, 0, b"news")
        async with asyncio.timeout(30):
            for peer in others:
                await peer.incoming.readuntil(b"data:news\n")
        for peer in (lost, *others):
            peer.outgoing.close()

    on_uvloop(test)


@pytest.mark.parametrize("last_words", [None, b"", b"\0\r\n\r\n"], ids=["waits", "ends its side", "says nonsense"])
def test_a_peer_that_takes_nothing_is_written_to_no_more(last_words: bytes | None) -> None:
    async def test(proxy: Proxy) -> None:
        peer = await join(proxy)
        feed = await crowd_of(proxy, 1)
        transport = peer.connection.transport
        async with asyncio.timeout(30):
            while not transport.get_write_buffer_size() if last_words is not None else feed.crowds:
                await proxy.client.post("/v1/stream/open", content=b"x" * 8_000, headers=PLAIN)
            if last_words is not None:
                assert feed.crowds
                peer.outgoing.write(last_words)
                if not last_words:
                    peer.outgoing.write_eof()
                while not transport.is_closing():
                    await asyncio.sleep(0.01)
            await proxy.client.post("/v1/stream/open", content=b"x", headers=PLAIN)
            while feed.crowds:
                await asyncio.sleep(0.01)
        assert transport.get_write_buffer_size() < 100_000
        peer.outgoing.transport.abort()

    on_uvloop(test)
