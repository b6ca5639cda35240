"""Requests that two servers could take for different ones: refused with the connection, or read in the one legal way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream

APPEND = b"POST /v1/stream/a HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
READ = b"GET /v1/stream/a HTTP/1.1\r\nHost: x\r\n"
CHUNKED = APPEND + b"Transfer-Encoding: chunked\r\n\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
# What follows each of them on the connection. It is made or not made, and by nothing else.
NEXT = b"PUT /v1/stream/smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

LENGTHS = [
    b"+5",
    b"-5",
    b"0x5",
    b"5 5",
    b"5;",
    b"5.0",
    b"5_0",
    b"1e1",
    b"",
    b"5, 5",
    b"5, 6",
    b"9" * 25,
    b"\xd9\xa5",
    b"\x0b5",
]
CODINGS = [
    *(b"xchunked", b"identity", b"gzip", b"chunked, identity", b"identity, chunked", b"gzip, chunked"),
    *(b"chunked, chunked", b"chunked;q=1", b"chunked,", b",chunked", b'"chunked"', b"chun ked", b"\x0bchunked"),
    *(b"chunked\x00", b"", b"\r\n chunked", b"\r\n\tchunked"),
]
BODIES = [
    *(b"5;\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n", b"5\rhello\r\n0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n"),
    *(
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
    ),
    *(
        b"5_0\r\nhello\r\n0\r\n\r\n",
        b"\r\n5\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
    ),
    *(b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\n", b"f" * 17 + b"\r\nhello\r\n0\r\n\r\n"),
    *(
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5;\x00\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\r\nContent-Length: 3\r\n\r\n",
    ),
]
HEADS = [
    READ.replace(b"\r\n", b"\n") + b"\n",
    READ + b"\n",
    READ + b"X: a\r\n b\r\n\r\n",
    READ + b"X: a\r\n\tContent-Length: 5\r\n\r\n",
    READ + b" X: a\r\n\r\n",
    READ + b"X: a\x00b\r\n\r\n",
    READ + b"X\x00: a\r\n\r\n",
    READ + b"X: a\rb\r\n\r\n",
    READ + b"X: a\nb: c\r\n\r\n",
    READ + b"X\r\n\r\n",
    READ + b": a\r\n\r\n",
    READ + b"X : a\r\n\r\n",
    READ + b"X\xc3\xa4: a\r\n\r\n",
    READ + b"Host: y\r\n\r\n",
    READ + b"Host: x\r\n\r\n",
    b"GET /v1/stream/a HTTP/1.1\r\n\r\n",
    b"GET /v1/stream/a\r\n\r\n",
    b"GET /v1/stream/a HTTP/0.9\r\nHost: x\r\n\r\n",
    b"GET /v1/stream/a HTTP/1.2\r\nHost: x\r\n\r\n",
    b"GET /v1/stream/a HTTP/2.0\r\nHost: x\r\n\r\n",
    b"GET /v1/stream/a HTTP/1.11\r\nHost: x\r\n\r\n",
    b"GET /v1/stream/a http/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/stream/a x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET\t/v1/stream/a\tHTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/stream/a\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/stream/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"get /v1/stream/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET v1/stream/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET 127.0.0.1:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
REFUSED = [
    APPEND + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    APPEND + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + HELLO,
    APPEND + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    APPEND + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    APPEND + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    *(APPEND + b"Content-Length: %b\r\n\r\nhello" % length for length in LENGTHS),
    *(APPEND + b"Transfer-Encoding: %b\r\n\r\n" % coding + HELLO for coding in CODINGS),
    APPEND + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + HELLO,
    APPEND + b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    APPEND + b"Transfer-Encoding : chunked\r\n\r\n" + HELLO,
    APPEND + b"Transfer-Encoding\t: chunked\r\n\r\n" + HELLO,
    APPEND + b" Transfer-Encoding: chunked\r\n\r\n" + HELLO,
    APPEND + b"X: y\nTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    APPEND + b"X: y\rTransfer-Encoding: chunked\r\n\r\n" + HELLO,
    APPEND.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + HELLO,
    *(CHUNKED + body for body in BODIES),
    *HEADS,
]
ACCEPTED = [
    (APPEND + b"Content-Length:\t05 \r\n\r\nhello", 204),
    (APPEND + b"transfer-ENCODING:\t Chunked \r\n\r\n" + HELLO, 204),
    (CHUNKED + b'005;a=b;c="d"\r\nhello\r\n0\r\nContent-Type: text/html\r\nHost: y\r\n\r\n', 204),
    (CHUNKED + b"1\r\nh\r\n4\r\nello\r\n0\r\n\r\n", 204),
    (APPEND + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello", 204),
    (APPEND.replace(b"/v1", b"http://evil.example:99/v1") + b"Content-Length: 5\r\n\r\nhello", 204),
    (b"\r\n\r\n" + APPEND + b"Content-Length: 5\r\n\r\nhello", 204),
    (READ + b"Content-Length: 5\r\n\r\nhello", 200),
    (READ + b"Transfer-Encoding: chunked\r\n\r\n" + HELLO, 200),
]


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Proxy]:
    async with serving(MemoryStore()) as served:
        yield served


@pytest.fixture
async def proxy(shared: Proxy) -> Proxy:
    """A proxy with one empty stream."""
    for path in ("a", "smuggled"):
        await shared.client.delete(f"/v1/stream/{path}")
    await shared.client.put("/v1/stream/a", headers={"Content-Type": "text/plain"})
    return shared


async def say(proxy: Proxy, *parts: bytes) -> tuple[list[int], bytes]:
    """Send on one connection, part by part; the statuses of all answers, and every byte, once the server has closed."""
    url = urlsplit(proxy.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    answers = b""
    try:
        async with asyncio.timeout(60):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            # A server that closes with bytes unread resets the connection: what came before is what counts.
            try:
                while data := await reader.read(65536):
                    answers += data
            except ConnectionResetError:
                pass
    finally:
        writer.transport.abort()
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)], answers


async def content(proxy: Proxy) -> bytes:
    return (await proxy.client.get("/v1/stream/a")).content


async def is_smuggled(proxy: Proxy) -> bool:
    return (await proxy.client.head("/v1/stream/smuggled")).status_code == 200


@pytest.mark.parametrize("request_", REFUSED)
async def test_an_ambiguous_request_is_refused_with_its_connection(proxy: Proxy, request_: bytes) -> None:
    statuses, _ = await say(proxy, request_ + NEXT)
    assert statuses == [400]
    assert await content(proxy) == b""
    assert not await is_smuggled(proxy)


@pytest.mark.parametrize(("request_", "status"), ACCEPTED)
async def test_an_odd_request_ends_where_it_says(proxy: Proxy, request_: bytes, status: int) -> None:
    statuses, _ = await say(proxy, request_ + NEXT)
    assert statuses == [status, 201]
    assert await content(proxy) == (b"hello" if status == 204 else b"")
    assert await is_smuggled(proxy)


@pytest.mark.parametrize("large", [b"X: " + b"a" * 70_000, b"a: b\r\n" * 40_000 + b"a: b"])
async def test_a_head_has_one_limit_however_it_comes(proxy: Proxy, large: bytes) -> None:
    for parts in ((READ + large + b"\r\n\r\n" + NEXT,), (READ, large[:50_000], large[50_000:] + b"\r\n\r\n" + NEXT)):
        statuses, _ = await say(proxy, *parts)
        assert statuses in ([431], [])  # a peer that is still sending may get a reset instead
    statuses, _ = await say(proxy, READ + b"X: " + b"a" * 60_000 + b"\r\n\r\n" + NEXT)
    assert statuses == [200, 201]


async def test_a_chunk_of_an_absurd_size_is_only_what_comes_of_it(proxy: Proxy) -> None:
    url = urlsplit(proxy.url)
    _, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(CHUNKED + b"7fffffffffffffff\r\nhello\r\n0\r\n\r\n" + NEXT)
    async with asyncio.timeout(60):
        while not proxy.service.body_budget.held_bytes:
            await asyncio.sleep(0.002)
    writer.transport.abort()
    assert await content(proxy) == b""
    assert not await is_smuggled(proxy)


async def test_pipelined_requests_are_answered_one_by_one_in_order(proxy: Proxy) -> None:
    append = APPEND + b"Content-Length: 1\r\n\r\n"
    statuses, answers = await say(proxy, append + b"1" + append + b"2" + READ + b"\r\n" + append + b"3" + NEXT)
    assert statuses == [204, 204, 200, 204, 201]
    assert b"\r\n\r\n12HTTP/1.1" in answers
    assert await content(proxy) == b"123"


async def test_who_leaves_with_another_request_sent_behind_is_gone() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        while not is_over.is_set():
            await exchange.chunk(b"more")
            await asyncio.sleep(0.005)
        await exchange.end()

    is_over = asyncio.Event()
    async with serving(MemoryStore()) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        url = urlsplit(proxy.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        target = b"/stream/data?sessionId=chat&requestId=1&live=sse"
        writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target + READ + b"\r\n")
        async with asyncio.timeout(30):
            await reader.readuntil(b"more")
            assert proxy.service.readers.count == 1
            writer.transport.abort()
            while proxy.service.readers.count:
                await asyncio.sleep(0.005)
            is_over.set()


async def test_a_refusal_is_never_the_answer_to_an_earlier_request(proxy: Proxy) -> None:
    """The first request waits for news; what is wrong with the second must not be told as its answer."""
    waiting = b"GET /v1/stream/a?offset=now&live=long-poll HTTP/1.1\r\nHost: x\r\n\r\n"
    for second in (HEADS[0], CHUNKED + BODIES[0], b"garbage\r\n\r\n"):
        statuses, answers = await say(proxy, waiting, second)
        assert (statuses, answers) == ([], b"")


async def test_a_refusal_is_never_written_into_an_answer() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(b"begun")
        await exchange.is_gone.wait()

    async with serving(MemoryStore()) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        url = urlsplit(proxy.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(b"GET /stream/data?sessionId=chat&requestId=1&live=sse HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(30):
            begun = await reader.readuntil(b"begun")
            writer.write(b"garbage\r\n\r\n")
            rest = await reader.read(-1)
        assert (begun + rest).count(b"HTTP/1.1") == 1
        writer.transport.abort()
