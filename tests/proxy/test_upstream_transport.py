"""The transport to upstreams against a server that does what it likes, on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from streamkeep.proxy.connections import ResponseBody
from streamkeep.proxy.upstream import PRIVATE, AddressRefused, RequestRefused, UpstreamTransport
from tests.raw_http import DEADLINE_SECONDS, Peer, RawServer, answering, client_tls, server_tls
from tests.upstream import full_server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_END = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def transport() -> AsyncIterator[UpstreamTransport]:
    transport = UpstreamTransport(tls=client_tls())
    yield transport
    await transport.aclose()
    assert (transport.open_connections, transport.idle_connections) == (0, 0)


def request_to(
    url: str, method: str = "GET", *, may_be_private: object = True, timeout: httpx.Timeout | None = None, **rest: Any
) -> httpx.Request:
    seconds = timeout or httpx.Timeout(DEADLINE_SECONDS)
    return httpx.Request(method, url, extensions={PRIVATE: may_be_private, "timeout": seconds.as_dict()}, **rest)


async def send(transport: UpstreamTransport, url: str, method: str = "GET", **rest: Any) -> httpx.Response:
    return await transport.handle_async_request(request_to(url, method, **rest))


async def body_of(response: httpx.Response) -> bytes:
    return b"".join([piece async for piece in response.aiter_raw()])


def stream_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body below httpx's own iterators."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aiter(response.stream)


async def next_of(stream: AsyncIterator[bytes]) -> bytes:
    return await anext(stream)


async def body_and_failure(response: httpx.Response) -> tuple[bytes, Exception]:
    """What came before the body broke off, and how it did."""
    received = bytearray()
    try:
        async for piece in response.aiter_raw():
            received += piece
    except httpx.TransportError as exc:
        return bytes(received), exc
    raise AssertionError("the body came to a good end")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


async def answer_to(peer: Peer, answer: asyncio.Task[httpx.Response], wire: bytes) -> httpx.Response:
    await peer.send(wire)
    return await answer


# Requests


async def test_a_request_is_sent_as_given_and_asks_for_identity(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        headers = [("X-b", "1"), ("Expect", "100-continue"), ("x-A", "2"), ("X-b", "3")]
        answer = asyncio.create_task(
            send(transport, f"{server.url}/p%2Fq?a=b%20c", "POST", headers=headers, content=b"hi")
        )
        peer = await server.accept()
        head = await peer.head()
        assert head.split(b"\r\n") == [
            b"POST /p%2Fq?a=b%20c HTTP/1.1",
            b"Host: 127.0.0.1:%d" % server.port,
            b"X-b: 1",
            b"x-A: 2",
            b"X-b: 3",
            b"Content-Length: 2",
            b"Accept-Encoding: identity",
        ]
        assert await peer.exactly(2) == b"hi"
        await peer.send(OK)
        assert await body_of(await answer) == b"ok"


async def test_a_given_accept_encoding_stands(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, headers={"accept-encoding": "br"}))
        peer = await server.accept()
        head = await peer.head()
        assert head.lower().count(b"accept-encoding") == 1
        await peer.send(OK)
        await (await answer).aclose()


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


async def test_a_streamed_body_goes_out_in_chunks(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, "POST", content=pieces(b"abc", b"", b"d" * 20)))
        peer = await server.accept()
        assert b"\r\nTransfer-Encoding: chunked" in await peer.head()
        assert await peer.until(b"\r\n0\r\n\r\n") == b"3\r\nabc\r\n14\r\n" + b"d" * 20 + b"\r\n0\r\n\r\n"
        await peer.send(OK)
        assert await body_of(await answer) == b"ok"
        assert transport.idle_connections == 1


async def test_a_streamed_body_goes_out_with_the_length_given(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        headers = {"Content-Length": "5"}
        answer = asyncio.create_task(send(transport, server.url, "PUT", content=pieces(b"abc", b"de"), headers=headers))
        peer = await server.accept()
        assert b"transfer-encoding" not in (await peer.head()).lower()
        assert await peer.exactly(5) == b"abcde"
        await peer.send(OK)
        assert await body_of(await answer) == b"ok"
        assert transport.idle_connections == 1


@pytest.mark.parametrize("given", [(b"abc",), (b"abc", b"defg")])
async def test_a_body_of_another_length_than_given_is_never_completed(
    transport: UpstreamTransport, given: tuple[bytes, ...]
) -> None:
    async with RawServer() as server:
        headers = {"Content-Length": "5"}
        answer = asyncio.create_task(send(transport, server.url, "PUT", content=pieces(*given), headers=headers))
        peer = await server.accept()
        await peer.head()
        with pytest.raises(RequestRefused, match="Content-Length"):
            await answer
        with pytest.raises((EOFError, ConnectionError)):
            await peer.exactly(5)


async def test_a_large_body_at_hand_is_sent_whole(transport: UpstreamTransport) -> None:
    content = bytes(range(256)) * 16384
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, "POST", content=content))
        peer = await server.accept()
        await peer.head()
        assert await peer.exactly(len(content)) == content
        await peer.send(OK)
        assert await body_of(await answer) == b"ok"


async def test_an_upload_stops_while_upstream_does_not_read(transport: UpstreamTransport) -> None:
    produced = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal produced
        while True:
            produced += 1
            yield bytes(1024 * 1024)

    async with RawServer() as server:
        timeout = httpx.Timeout(DEADLINE_SECONDS, write=0.2)
        with pytest.raises(httpx.WriteTimeout):
            await send(transport, server.url, "POST", content=endless(), timeout=timeout)
        assert server.accepted == 0
    assert produced < 32
    await until(lambda: transport.open_connections == 0)


async def test_an_early_answer_is_delivered_and_stops_the_upload(transport: UpstreamTransport) -> None:
    produced = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal produced
        while True:
            produced += 1
            yield bytes(10_000)

    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, "POST", content=endless()))
        peer = await server.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo ")
        response = await answer
        assert response.status_code == 413
        produced_until_then = produced
        await peer.send(b"large")
        assert await body_of(response) == b"too large"
        assert transport.idle_connections == 0
        await peer.closed()
        assert produced == produced_until_then


async def test_an_answer_that_only_begins_early_gets_the_rest_of_the_request(transport: UpstreamTransport) -> None:
    body = bytes(range(256)) * 40_000

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbegun ")
        received = await reader.readexactly(len(body))
        writer.write(hashlib.sha256(received).hexdigest().encode())
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server, asyncio.timeout(60):
        headers = {"Content-Length": str(len(body))}
        response = await send(transport, url, "POST", headers=headers, content=pieces())
        assert await body_of(response) == b"begun " + hashlib.sha256(body).hexdigest().encode()


async def test_an_upload_that_fails_behind_the_beginning_of_an_answer_is_no_request(
    transport: UpstreamTransport,
) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"abc"
        [connection] = transport._open
        await until(lambda: connection._decoder is not None and connection._decoder.head is not None)
        raise LookupError("the caller left")

    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, "POST", content=failing()))
        peer = await server.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        with pytest.raises(httpx.WriteError, match="broke off"):
            await answer
        await peer.closed()


async def test_an_early_answer_outlives_the_reset_that_follows_it(transport: UpstreamTransport) -> None:
    """Upstream refuses, and closes with unread bytes in its socket: TCP turns that into a reset."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(300_000)

    text = bytes(range(256)) * 400
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, "POST", content=endless()))
        peer = await server.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        await peer.delivered()
        peer.reset()
        assert await body_of(await answer) == text


async def test_an_upload_that_fails_closes_the_connection_and_says_why(transport: UpstreamTransport) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"abc"
        raise LookupError("the caller left")

    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, "POST", content=failing()))
        peer = await server.accept()
        await peer.head()
        with pytest.raises(LookupError):
            await answer
        assert b"0\r\n\r\n" not in await peer.rest()


async def test_a_reset_while_sending_is_a_write_error(transport: UpstreamTransport) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(10_000)

    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, "POST", content=endless()))
        peer = await server.accept()
        await peer.head()
        peer.reset()
        with pytest.raises(httpx.WriteError):
            await answer


@pytest.mark.parametrize(
    "changed",
    [
        {"headers": [(b"X", b"a\r\nB: c")]},
        {"headers": [(b"X", b"a\0")]},
        {"headers": [(b"X Y", b"a")]},
        {"headers": [(b"X:", b"a")]},
        {"headers": {"Content-Length": "1"}, "content": b"abc"},
        {"headers": {"Content-Length": "x"}, "content": b"abc"},
        {"headers": {"Transfer-Encoding": "gzip"}, "content": b"abc"},
        {"method": "GET /x"},
        {"method": "GET\r\nX: y"},
    ],
)
async def test_what_is_no_request_is_refused_before_a_connection_is_made(
    transport: UpstreamTransport, changed: dict[str, Any]
) -> None:
    async with RawServer() as server:
        with pytest.raises(RequestRefused):
            await send(transport, server.url, **changed)
        assert transport.open_connections == 0


async def test_only_http_without_user_information_is_called(transport: UpstreamTransport) -> None:
    for url in ("ftp://127.0.0.1/", "file:///etc/passwd", "//127.0.0.1/", "ws://127.0.0.1/"):
        with pytest.raises(httpx.UnsupportedProtocol):
            await send(transport, url)
    for url in ("http://user:secret@127.0.0.1/", "http://user@127.0.0.1/", "http:///path"):
        with pytest.raises(RequestRefused) as refusal:
            await send(transport, url)
        assert "secret" not in str(refusal.value)


# Responses


@pytest.mark.parametrize(
    ("wire", "status", "body"),
    [
        (OK, 200, b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\nT: x\r\n\r\n", 200, b"abcde"),
        (UNTIL_END + b"abc", 200, b"abc"),
        (UNTIL_END, 200, b""),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", 200, b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 304, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 302, b""),
    ],
)
@pytest.mark.parametrize("in_bytes", [False, True])
async def test_every_kind_of_body_is_delivered(
    transport: UpstreamTransport, wire: bytes, status: int, body: bytes, in_bytes: bool
) -> None:
    sent = [bytes([byte]) for byte in wire] if in_bytes else [wire]
    async with RawServer(answering(*sent)) as server:
        response = await send(transport, server.url)
        assert (response.status_code, await body_of(response)) == (status, body)


async def test_headers_come_raw_and_in_order(transport: UpstreamTransport) -> None:
    wire = b"HTTP/1.1 200 Fine\r\nX-B: \xff\r\nset-cookie: a\r\nX-b: 2\r\nContent-Length: 0\r\n\r\n"
    async with RawServer(answering(wire)) as server:
        response = await send(transport, server.url)
    assert response.headers.raw[:3] == [(b"X-B", b"\xff"), (b"set-cookie", b"a"), (b"X-b", b"2")]
    assert (response.reason_phrase, response.http_version) == ("Fine", "HTTP/1.1")


async def test_the_answer_to_head_has_no_body_and_frees_the_connection_at_once(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, "HEAD"))
        peer = await server.accept()
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        response = await answer
        assert transport.idle_connections == 1
        assert await body_of(response) == b""


@pytest.mark.parametrize(
    ("wire", "good"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", b"abc"),
        (CHUNKED + b"3\r\nabc\r\n", b"abc"),
        (CHUNKED + b"3\r\nabc\r\n5\r\nde", b"abcde"),
        (CHUNKED + b"3\r\nabc\r\n0\r\n", b"abc"),
        (CHUNKED + b"3\r\nabc\r\nnonsense", b"abc"),
        (CHUNKED + b"3\r\nabcd", b"abc"),
    ],
)
async def test_a_body_that_ends_early_fails_behind_its_bytes(
    transport: UpstreamTransport, wire: bytes, good: bytes
) -> None:
    async with RawServer(answering(wire)) as server:
        received, failure = await body_and_failure(await send(transport, server.url))
    assert received == good
    assert isinstance(failure, httpx.RemoteProtocolError)


async def test_a_reset_within_the_body_fails_behind_its_bytes(transport: UpstreamTransport) -> None:
    for head in (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", CHUNKED + b"9\r\n", UNTIL_END):
        async with RawServer() as server:
            answer = asyncio.create_task(send(transport, server.url))
            peer = await server.accept()
            await peer.head()
            await peer.send(head + b"abc")
            response = await answer
            peer.reset()
            received, failure = await body_and_failure(response)
            assert received == b"abc"
            assert isinstance(failure, httpx.RemoteProtocolError)


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n", CHUNKED + b"F423F\r\n", UNTIL_END]
)
async def test_what_came_before_a_reset_is_delivered_though_nobody_was_reading(
    transport: UpstreamTransport, is_tls: bool, head: bytes
) -> None:
    """The transport holds part of it, decrypted or not, and the kernel another part."""
    sent = bytes(range(256)) * (1200 if is_tls else 400)  # what buffers hold, and our kernel besides
    async with RawServer(tls=server_tls() if is_tls else None) as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(head + sent)
        response = await answer
        await peer.delivered()
        peer.reset()
        if is_tls:  # a paused plain socket is not looked at
            await until(lambda: transport.open_connections == 0)
        received, failure = await body_and_failure(response)
    assert isinstance(failure, httpx.RemoteProtocolError)
    assert received == sent


@pytest.mark.parametrize("is_tls", [False, True])
async def test_what_came_before_the_end_is_delivered_though_nobody_was_reading(
    transport: UpstreamTransport, is_tls: bool
) -> None:
    sent = bytes(range(256)) * (1200 if is_tls else 400)  # what buffers hold, and our kernel besides
    async with RawServer(tls=server_tls() if is_tls else None) as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(UNTIL_END + sent)
        if is_tls:
            await peer.finish_tls()
        response = await answer
        peer.finish()
        await peer.delivered()
        assert await body_of(response) == sent


async def test_no_answer_at_all_is_told_apart_from_no_connection(transport: UpstreamTransport) -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.head()

    async def reset(peer: Peer) -> None:
        await peer.head()
        peer.reset()

    async with RawServer(hang_up) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            await send(transport, server.url)
    async with RawServer(reset) as server:
        with pytest.raises(httpx.ReadError):
            await send(transport, server.url)


@pytest.mark.parametrize(
    "wire",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 102 X\r\n\r\n" * 17,
        b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_a_head_that_cannot_be_read_is_a_protocol_error(transport: UpstreamTransport, wire: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.send(wire)
        await peer.closed()

    async with RawServer(play) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            await send(transport, server.url)


async def test_the_read_timeout_is_for_the_head_alone(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        with pytest.raises(httpx.ReadTimeout):
            await send(transport, server.url, timeout=httpx.Timeout(DEADLINE_SECONDS, read=0.05))
        silent = await server.accept()
        await silent.head()
        await silent.closed()

        timeout = httpx.Timeout(DEADLINE_SECONDS, read=1.0)
        answer = asyncio.create_task(send(transport, server.url, timeout=timeout))
        peer = await server.accept()
        await peer.head()
        await peer.send(UNTIL_END + b"a")
        body = (await answer).aiter_raw()
        assert await anext(body) == b"a"
        late = asyncio.create_task(next_of(body))
        done, _ = await asyncio.wait([late], timeout=1.2)
        assert not done
        await peer.send(b"b")
        assert await late == b"b"


async def test_all_that_has_come_is_one_piece(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(CHUNKED + b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n")
        stream = stream_of(await answer)
        assert await anext(stream) == b"abc"
        await peer.send(b"1\r\nd\r\n0\r\n\r\n")
        assert [piece async for piece in stream] == [b"d"]


async def test_a_stream_says_the_same_again_after_its_end(transport: UpstreamTransport) -> None:
    async def taken(wire: bytes) -> AsyncIterator[bytes]:
        async with RawServer(answering(wire)) as server:
            response = await send(transport, server.url)
            stream = stream_of(response)
            assert await anext(stream) == b"ok"
            return stream

    ended = await taken(OK)
    broken = await taken(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await anext(ended)
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(broken)


def poured_from(response: httpx.Response) -> ResponseBody:
    assert isinstance(response.stream, ResponseBody)
    return response.stream


@asynccontextmanager
async def chunked_body(transport: UpstreamTransport) -> AsyncIterator[tuple[Peer, ResponseBody]]:
    """An answer of which the head has come, and who sends the rest."""
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        yield peer, poured_from(await answer_to(peer, answer, CHUNKED))


async def test_a_body_is_poured_as_it_comes(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(CHUNKED + b"1\r\na\r\n")
        received: list[bytes] = []

        def receive(data: bytes) -> bool:
            received.append(data)
            return True

        body = poured_from(await answer)
        pouring = asyncio.create_task(body.pour(receive))
        await until(lambda: received == [b"a"])
        await peer.send(b"1\r\nb\r\n")
        await until(lambda: received == [b"a", b"b"])
        await peer.send(b"1\r\nc\r\n")
        await until(lambda: len(received) == 3)
        await peer.send(b"0\r\n\r\n")
        assert await pouring
        assert received == [b"a", b"b", b"c"]
        assert await body.pour(receive)
        assert transport.idle_connections == 1


async def test_a_receiver_that_wants_no_more_gets_the_rest_later(transport: UpstreamTransport) -> None:
    async with chunked_body(transport) as (peer, body):
        received: list[bytes] = []

        def receive(data: bytes) -> bool:
            received.append(data)
            return False

        pouring = asyncio.create_task(body.pour(receive))
        await peer.send(b"1\r\na\r\n")
        assert not await pouring
        await peer.send(b"1\r\nb\r\n0\r\n\r\n")
        assert not await body.pour(receive)
        assert received == [b"a", b"b"]
        assert await body.pour(receive)


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux lets a socket choose how it acknowledges")
async def test_chunks_are_acknowledged_together_while_they_are_poured(transport: UpstreamTransport) -> None:
    async with chunked_body(transport) as (peer, body):
        (connection,) = transport._open
        options = connection._transport.get_extra_info("socket")

        def acknowledges_at_once() -> bool:
            return bool(options.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))

        pouring = asyncio.create_task(body.pour(lambda data: True))
        await until(lambda: not acknowledges_at_once())
        await peer.send(b"1\r\na\r\n0\r\n\r\n")
        assert await pouring
        assert transport.idle_connections == 1
        assert acknowledges_at_once()


async def test_what_breaks_off_is_poured_before_it_is_told(transport: UpstreamTransport) -> None:
    async with RawServer(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")) as server:
        body = poured_from(await send(transport, server.url))
        received = bytearray()

        def receive(data: bytes) -> bool:
            received.extend(data)
            return True

        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await body.pour(receive)
        assert received == b"ok"


async def test_a_receivers_failure_is_its_own(transport: UpstreamTransport) -> None:
    async with chunked_body(transport) as (peer, body):
        received: list[bytes] = []

        def fail(data: bytes) -> bool:
            received.append(data)
            raise LookupError

        pouring = asyncio.create_task(body.pour(fail))
        await peer.send(b"1\r\na\r\n")
        with pytest.raises(LookupError):
            await pouring
        assert received == [b"a"]
        await body.aclose()
        await peer.closed()


async def test_only_one_task_may_read_a_response(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(CHUNKED)
        response = await answer
        stream = stream_of(response)
        first = asyncio.create_task(next_of(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await anext(stream)
        await peer.send(b"1\r\na\r\n")
        assert await first == b"a"
        await response.aclose()


# Back-pressure


@pytest.mark.parametrize("head", [UNTIL_END, b"HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n"])
async def test_upstream_is_not_read_while_nobody_takes(head: bytes) -> None:
    transport = UpstreamTransport(max_buffered_bytes=10_000)
    sent = bytes(range(256)) * 256
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(head)
        response = await answer
        # What is read next has to fit behind this.
        accepted = peer.send_now(sent[:7000])
        await nothing_moves(peer)
        while (count := peer.send_now(sent[accepted % len(sent) :])) or not await nothing_moves(peer):
            accepted += count
        assert accepted < 40_000_000
        stream = stream_of(response)
        first = await anext(stream)
        assert len(first) == 10_000
        received = bytearray(first)
        peer.finish()
        with ExitStack() as ending:
            if head != UNTIL_END:
                ending.enter_context(pytest.raises(httpx.RemoteProtocolError))
            async for piece in stream:
                assert len(piece) <= 10_000
                received += piece
        assert len(received) == accepted
        assert received == (sent * (accepted // len(sent) + 1))[:accepted]
    await transport.aclose()


async def nothing_moves(peer: Peer) -> bool:
    """Give the other side every chance to read on; true when its kernel would take no more after that."""
    for _ in range(50):
        await asyncio.sleep(0.001)
    return not peer.can_send()


# Letting go


@pytest.mark.parametrize("is_tls", [False, True])
async def test_closing_a_response_before_its_end_closes_the_socket(transport: UpstreamTransport, is_tls: bool) -> None:
    async with RawServer(tls=server_tls() if is_tls else None) as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(CHUNKED + b"3\r\nabc\r\n")
        response = await answer
        stream = response.stream
        await response.aclose()
        await response.aclose()
        await peer.closed()
        await until(lambda: transport.open_connections == 0)
        assert isinstance(stream, httpx.AsyncByteStream)
        await stream.aclose()
        with pytest.raises(httpx.StreamClosed):
            await anext(aiter(stream))


async def test_closing_wakes_whoever_reads(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(CHUNKED)
        response = await answer
        stream = stream_of(response)
        reader = asyncio.create_task(next_of(stream))
        await asyncio.sleep(0)
        await response.aclose()
        with pytest.raises(httpx.ReadError):
            await reader


async def test_cancelling_while_waiting_for_the_head_closes_the_socket(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        await peer.closed()
        await until(lambda: transport.open_connections == 0)


async def test_cancelling_while_sending_closes_the_socket_and_the_body(transport: UpstreamTransport) -> None:
    is_waiting, is_closed = asyncio.Event(), asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        try:
            yield b"abc"
            is_waiting.set()
            await asyncio.Event().wait()
        finally:
            is_closed.set()

    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url, "POST", content=stalling()))
        peer = await server.accept()
        await is_waiting.wait()
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        assert is_closed.is_set()
        await peer.closed()


async def test_cancelling_a_read_loses_nothing(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(UNTIL_END)
        stream = stream_of(await answer)
        reader = asyncio.create_task(next_of(stream))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await peer.send(b"abc")
        peer.finish()
        assert b"".join([piece async for piece in stream]) == b"abc"


async def test_closing_the_transport_closes_every_connection() -> None:
    transport = UpstreamTransport()
    async with RawServer() as server:
        answers = [asyncio.create_task(send(transport, server.url)) for _ in range(2)]
        idle, busy = [await server.accept() for _ in range(2)]
        await idle.send(OK)
        await busy.send(CHUNKED + b"3\r\nabc\r\n")
        async with asyncio.timeout(DEADLINE_SECONDS):
            responses = await asyncio.gather(*answers)
        ended = next(response for response in responses if "content-length" in response.headers)
        running = next(response for response in responses if "content-length" not in response.headers)
        assert await body_of(ended) == b"ok"
        assert repr(transport) == "UpstreamTransport(open=2, idle=1)"
        await transport.aclose()
        assert repr(transport) == "UpstreamTransport(open=0, idle=0)"
        received, failure = await body_and_failure(running)
        assert (received, type(failure)) == (b"abc", httpx.ReadError)
        await idle.closed()
        await busy.closed()
        with pytest.raises(RuntimeError):
            await send(transport, server.url)
    await transport.aclose()


async def test_a_whole_response_can_be_read_after_the_transport_was_closed() -> None:
    transport = UpstreamTransport()
    async with RawServer(answering(OK)) as server:
        response = await send(transport, server.url)
        await transport.aclose()
        assert await body_of(response) == b"ok"


async def test_connections_are_not_limited(transport: UpstreamTransport) -> None:
    async with RawServer(backlog=300) as server:
        answers = [asyncio.create_task(send(transport, server.url)) for _ in range(150)]
        peers = [await server.accept() for _ in range(150)]
        for peer in peers:
            await peer.head()
        assert transport.open_connections == 150
        for peer in peers:
            await peer.send(OK)
        assert [await body_of(await answer) for answer in answers] == [b"ok"] * 150
        assert transport.idle_connections == 100
        await until(lambda: transport.open_connections == 100)


async def test_nothing_is_left_behind_by_a_response(transport: UpstreamTransport) -> None:
    """Neither a task nor, once collected, a socket."""
    async with RawServer(answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")) as server:
        before = len(asyncio.all_tasks())
        for _ in range(20):
            assert await body_of(await send(transport, server.url)) == b"ok"
        await until(lambda: transport.open_connections == 0)
        await until(lambda: len(asyncio.all_tasks()) <= before)
    gc.collect()


async def test_cancelling_while_connecting_leaves_no_socket(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        handshaking = asyncio.create_task(send(transport, server.url.replace("http", "https")))
        peer = await server.accept()
        await peer.exactly(5)
        handshaking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handshaking
        await peer.closed()
    with full_server("127.0.0.1", 0) as port:
        knocking = asyncio.create_task(send(transport, f"http://127.0.0.1:{port}/"))
        await asyncio.sleep(0.01)
        knocking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await knocking
    assert transport.open_connections == 0
    gc.collect()


async def test_under_a_client_a_response_streams_as_it_comes(
    transport: UpstreamTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No redirect is followed, no cookie and no proxy of the environment is used, nothing is decoded."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with (
        RawServer() as server,
        httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False, timeout=None) as client,
    ):
        for _ in range(2):
            request = httpx.Request("POST", server.url, content=b"{}", extensions={PRIVATE: True})
            answer = asyncio.create_task(client.send(request, stream=True))
            peer = await server.accept()
            assert b"cookie" not in (await peer.head()).lower()
            await peer.send(
                b"HTTP/1.1 303 See Other\r\nLocation: /x\r\nSet-Cookie: a=b\r\nContent-Encoding: gzip\r\n"
                b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
            )
            response = await answer
            body = response.aiter_raw()
            assert await anext(body) == b"abc"
            await peer.send(b"1\r\nd\r\n0\r\n\r\n")
            assert [piece async for piece in body] == [b"d"]
            assert (response.status_code, response.is_closed) == (303, True)
        assert server.accepted == 2


# Keeping connections


async def play_oks(peer: Peer) -> None:
    while True:
        await peer.head()
        await peer.send(OK)


async def test_a_finished_connection_is_used_again(transport: UpstreamTransport) -> None:
    async with RawServer(play_oks) as server:
        for _ in range(3):
            assert await body_of(await send(transport, server.url)) == b"ok"
        assert (server.accepted, transport.open_connections, transport.idle_connections) == (1, 1, 1)


async def test_a_connection_is_not_shared_with_a_request_of_another_permission(transport: UpstreamTransport) -> None:
    async with RawServer(play_oks) as server:
        assert await body_of(await send(transport, server.url)) == b"ok"
        with pytest.raises(AddressRefused):
            await send(transport, server.url, may_be_private=False)
        assert await body_of(await send(transport, server.url.replace("127.0.0.1", "localhost"))) == b"ok"
        assert server.accepted == 2


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok",
        OK + OK,
        OK + b"x",
    ],
)
async def test_a_connection_that_cannot_be_trusted_is_not_kept(transport: UpstreamTransport, wire: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.send(wire)
        await peer.closed()

    async with RawServer(play) as server:
        assert await body_of(await send(transport, server.url)) == b"ok"
        assert transport.idle_connections == 0
        await until(lambda: transport.open_connections == 0)


async def test_a_request_that_asks_for_a_close_gets_it(transport: UpstreamTransport) -> None:
    async with RawServer(play_oks) as server:
        assert await body_of(await send(transport, server.url, headers={"Connection": "close"})) == b"ok"
        assert transport.idle_connections == 0


async def test_stray_bytes_close_an_idle_connection(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(OK)
        assert await body_of(await answer) == b"ok"
        assert transport.idle_connections == 1
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await until(lambda: transport.open_connections == 0)
        assert transport.idle_connections == 0


@pytest.mark.parametrize("is_closed", [False, True])
async def test_what_the_loop_has_not_seen_yet_keeps_a_connection_from_being_used_again(
    transport: UpstreamTransport, is_closed: bool
) -> None:
    async with RawServer() as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(OK)
        assert await body_of(await answer) == b"ok"
        # No await from here until the next request has chosen its connection.
        if is_closed:
            peer.close()
        else:
            peer.send_now(OK)
        second = asyncio.create_task(send(transport, server.url))
        fresh = await server.accept()
        await fresh.head()
        await fresh.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsafe")
        assert await body_of(await second) == b"safe"


@pytest.mark.parametrize("idle_seconds", [60.0, 0.1])
async def test_idle_connections_are_closed_in_time_and_bounded_in_number(idle_seconds: float) -> None:
    transport = UpstreamTransport(idle_seconds=idle_seconds, max_idle=2)
    async with RawServer() as server:
        answers = [asyncio.create_task(send(transport, server.url)) for _ in range(3)]
        for peer in [await server.accept() for _ in range(3)]:
            await peer.head()
            await peer.send(OK)
        for answer in answers:
            assert await body_of(await answer) == b"ok"
        if idle_seconds > DEADLINE_SECONDS:
            assert transport.idle_connections == 2
        else:
            await until(lambda: transport.open_connections == 0)
        await transport.aclose()


async def test_nothing_is_sent_twice(transport: UpstreamTransport) -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.send(OK)
        await peer.head()
        peer.reset()

    async with RawServer(play) as server:
        assert await body_of(await send(transport, server.url)) == b"ok"
        with pytest.raises(httpx.ReadError):
            await send(transport, server.url)
        assert server.accepted == 1


# Where sockets go


SPELLINGS_OF_THIS_MACHINE = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "127.0.0.1.",
    "0.0.0.0",
    "0",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fe80::1%25lo]",
    "10.0.0.1",
    "169.254.169.254",
    "2852039166",
    "[fd00:ec2::254]",
    "192.168.1.1",
    "172.16.0.1",
    "100.100.100.200",
    "224.0.0.1",
    "255.255.255.255",
]


@pytest.mark.parametrize("host", SPELLINGS_OF_THIS_MACHINE)
async def test_addresses_that_are_not_public_are_refused_in_every_spelling(
    transport: UpstreamTransport, host: str
) -> None:
    async with RawServer() as server:
        try:
            request = request_to(f"http://{host}:{server.port}/", may_be_private=False)
        except httpx.InvalidURL:
            return
        with pytest.raises(httpx.ConnectError) as refusal:
            await transport.handle_async_request(request)
        # What the resolver does not know leads nowhere either.
        assert isinstance(refusal.value, AddressRefused) or "does not resolve" in str(refusal.value)
        assert transport.open_connections == 0


@pytest.mark.parametrize("permission", [None, 1, "yes", "True"])
async def test_only_true_is_a_permission(transport: UpstreamTransport, permission: object) -> None:
    async with RawServer() as server:
        with pytest.raises(AddressRefused):
            await send(transport, server.url, may_be_private=permission)


async def test_a_request_without_the_extension_may_not_go_to_a_private_address(transport: UpstreamTransport) -> None:
    async with RawServer() as server:
        with pytest.raises(AddressRefused):
            await transport.handle_async_request(httpx.Request("GET", server.url))


class Names:
    """A resolver that plays a script: each question about any name gets the next answer, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.asked: list[str] = []
        self._answers = answers

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self._answers[min(len(self.asked), len(self._answers)) - 1]


@asynccontextmanager
async def resolving(*answers: list[str]) -> AsyncIterator[tuple[UpstreamTransport, Names]]:
    names = Names(*answers)
    transport = UpstreamTransport(tls=client_tls(), resolve=names)
    try:
        yield transport, names
    finally:
        await transport.aclose()
    assert transport.open_connections == 0


async def test_a_host_is_resolved_once_and_reached_by_a_checked_address() -> None:
    """The name's second answer would be another one: whoever asked twice would go there unchecked."""
    async with RawServer(answering(OK)) as server, resolving(["127.0.0.1"], ["127.0.0.2"]) as (transport, names):
        assert await body_of(await send(transport, f"http://rebinding.example:{server.port}/")) == b"ok"
    assert names.asked == ["rebinding.example"]


@pytest.mark.parametrize("private", ["127.0.0.1", "::1", "169.254.169.254", "::ffff:10.0.0.1"])
async def test_one_private_address_among_public_ones_refuses_them_all(private: str) -> None:
    for answer in (["8.8.8.8", private], [private, "8.8.8.8"]):
        async with resolving(answer) as (transport, _):
            with pytest.raises(AddressRefused, match="not public") as refusal:
                await send(transport, "http://mixed.example/", may_be_private=False)
            assert private not in str(refusal.value)


@pytest.mark.parametrize("host", ["models.example", "localhost", "models.localhost", "127.0.0.1"])
@pytest.mark.parametrize("answer", ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "fe80::1%eth0", "nonsense"])
async def test_a_permission_for_a_name_is_none_for_metadata(host: str, answer: str) -> None:
    async with resolving([answer]) as (transport, _):
        with pytest.raises(AddressRefused):
            await send(transport, f"http://{host}:9/")


async def test_localhost_is_this_machine_whatever_a_resolver_says() -> None:
    async with resolving(["10.0.0.1"]) as (transport, _):
        with pytest.raises(AddressRefused):
            await send(transport, "http://localhost:9/")


async def test_a_name_without_addresses_is_a_connect_error() -> None:
    async with resolving([]) as (transport, _):
        with pytest.raises(httpx.ConnectError, match="does not resolve"):
            await send(transport, "http://nothing.example/")


async def test_addresses_are_tried_in_turn() -> None:
    answer = ["127.0.0.9", "127.0.0.8", "127.0.0.1"]
    async with RawServer(answering(OK)) as server, resolving(answer) as (transport, _):
        assert await body_of(await send(transport, f"http://several.example:{server.port}/")) == b"ok"


async def test_an_address_that_does_not_answer_leaves_time_for_the_next() -> None:
    timeout = httpx.Timeout(DEADLINE_SECONDS, connect=0.4)
    async with RawServer(answering(OK)) as server, resolving(["127.0.0.2", "127.0.0.1"]) as (transport, _):
        with full_server("127.0.0.2", server.port):
            url = f"http://silent.example:{server.port}/"
            assert await body_of(await send(transport, url, timeout=timeout)) == b"ok"


async def test_a_refused_connection_and_an_unknown_host_are_connect_errors(transport: UpstreamTransport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", f"http://{'a' * 64}.example/", "http://127.0.0.1.1/"):
        with pytest.raises((httpx.ConnectError, httpx.InvalidURL)):
            await send(transport, url)
    assert transport.open_connections == 0


async def test_a_server_that_does_not_take_connections_is_a_connect_timeout(transport: UpstreamTransport) -> None:
    timeout = httpx.Timeout(DEADLINE_SECONDS, connect=0.1)
    with full_server("127.0.0.1", 0) as port, pytest.raises(httpx.ConnectTimeout):
        await send(transport, f"http://127.0.0.1:{port}/", timeout=timeout)
    assert transport.open_connections == 0


# TLS


async def test_tls_is_verified_and_carries_requests(transport: UpstreamTransport) -> None:
    async with RawServer(play_oks, tls=server_tls()) as server:
        for url in (server.url, server.url, server.url.replace("127.0.0.1", "localhost")):
            assert await body_of(await send(transport, url)) == b"ok"
        assert server.accepted == 2


async def test_tls_failures_are_connect_errors(transport: UpstreamTransport) -> None:
    """Neither an unknown issuer, nor another host's certificate, nor a server without TLS gets a request."""
    untrusting = UpstreamTransport()
    heads: list[bytes] = []

    async def play(peer: Peer) -> None:
        heads.append(await peer.head())

    async def hang_up(peer: Peer) -> None:
        peer.close()

    async with RawServer(play, tls=server_tls()) as server:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await send(untrusting, server.url)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await send(transport, server.url.replace("127.0.0.1", "2130706433"))
    async with RawServer(hang_up) as server:
        with pytest.raises(httpx.ConnectError):
            await send(transport, server.url.replace("http", "https"))
    assert heads == []
    await untrusting.aclose()
    assert transport.open_connections == untrusting.open_connections == 0


async def test_a_handshake_that_stalls_is_a_connect_timeout(transport: UpstreamTransport) -> None:
    async def stall(peer: Peer) -> None:
        await peer.closed()

    timeout = httpx.Timeout(DEADLINE_SECONDS, connect=0.2)
    async with RawServer(stall) as server:
        with pytest.raises(httpx.ConnectTimeout):
            await send(transport, server.url.replace("http", "https"), timeout=timeout)


@pytest.mark.parametrize("is_orderly", [True, False])
async def test_a_tls_body_without_a_length_ends_well_only_with_close_notify(
    transport: UpstreamTransport, is_orderly: bool
) -> None:
    async with RawServer(tls=server_tls()) as server:
        answer = asyncio.create_task(send(transport, server.url))
        peer = await server.accept()
        await peer.head()
        await peer.send(UNTIL_END + b"abc")
        if is_orderly:
            await peer.finish_tls()
        peer.close()
        response = await answer
        if is_orderly:
            assert await body_of(response) == b"abc"
        else:
            received, failure = await body_and_failure(response)
            assert received == b"abc"
            assert isinstance(failure, httpx.RemoteProtocolError)


@pytest.mark.parametrize("end", ["notify", "close", "reset"])
async def test_a_large_tls_body_loses_nothing_whatever_its_end(transport: UpstreamTransport, end: str) -> None:
    sent = bytes(range(256)) * 12_000
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.send(wire)
        if end == "notify":
            await peer.finish_tls()
        await peer.delivered()
        if end == "reset":
            peer.reset()

    async with RawServer(play, tls=server_tls()) as server:
        assert await body_of(await send(transport, server.url)) == sent
