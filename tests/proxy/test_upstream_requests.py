"""What an upstream gets, byte for byte: the request that stands behind a caller's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from streamkeep.proxy.rules.allowlist import Allowlist
from streamkeep.storage import MemoryStore
from tests.raw_http import RawServer
from tests.serving import Proxy, serving

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def this_machine(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    allow = Allowlist.parse(["private:http://*.example:*", "http://127.0.0.1:*", "http://localhost:*"])
    async with serving(MemoryStore(), allow=allow, resolve=this_machine, max_buffered_request_bytes=8) as served:
        yield served


async def sent_for(
    proxy: Proxy,
    url: str,
    *,
    method: str = "POST",
    body: bytes = b"{}",
    headers: bytes = b"",
    late: bytes = b"",
    length: int = 0,
) -> list[bytes]:
    """The lines of the head that upstream gets, with PORT for its port, and last what it gets of a body of a length."""
    async with RawServer() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
        target = url.replace("PORT", str(server.port)).encode()
        framing = b"" if headers.startswith(b"Transfer-Encoding") else b"Content-Length: %d\r\n" % len(body)
        head = b"POST /api/chat/1 HTTP/1.1\r\nHost: proxy\r\nX-Proxy-Url: %b\r\nX-Proxy-Method: %b\r\n"
        writer.write(head % (target, method.encode()) + framing + headers + b"\r\n" + body)
        peer = await server.accept()
        received = await peer.head()
        writer.write(late)
        content = await peer.exactly(length)
        await peer.send(OK)
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        return [*received.replace(b"%d" % server.port, b"PORT").split(b"\r\n"), content]


@pytest.mark.parametrize(
    ("url", "target", "host"),
    [
        ("http://127.0.0.1:PORT", "/", "127.0.0.1:PORT"),
        ("http://127.0.0.1:PORT?", "/?", "127.0.0.1:PORT"),
        ("http://127.0.0.1:PORT?a", "/?a", "127.0.0.1:PORT"),
        ("hTTp://LocalHost:PORT/", "/", "localhost:PORT"),
        ("http://Localhost.:PORT/", "/", "localhost.:PORT"),
        ("http://Api_2.EXAMPLE:PORT/v1", "/v1", "api_2.example:PORT"),
        ("http://a.example:PORT//a//b/", "//a//b/", "a.example:PORT"),
        ("http://a.example:PORT/a;b=1,2/:@!$&'()*+,;=-._~", "/a;b=1,2/:@!$&'()*+,;=-._~", "a.example:PORT"),
        ("http://a.example:PORT/%41%7e%c3%A4%2B%20", "/%41%7e%c3%A4%2B%20", "a.example:PORT"),
        ('http://a.example:PORT/"<>`{}|^[]', "/%22%3C%3E%60%7B%7D|^[]", "a.example:PORT"),
        ('http://a.example:PORT/?"<>`{}|^[]/?:@', "/?%22%3C%3E`{}|^[]/?:@", "a.example:PORT"),
        ("http://a.example:PORT/?q=%&r=%zz&s=%4&t=%2f%2F", "/?q=%&r=%zz&s=%4&t=%2f%2F", "a.example:PORT"),
        ("http://a.example:PORT/?a=../.&b=//c", "/?a=../.&b=//c", "a.example:PORT"),
        ("http://a.example:PORT/a#b?c", "/a", "a.example:PORT"),
        ("http://a.example:PORT/a?#b", "/a?", "a.example:PORT"),
    ],
)
async def test_a_url_is_written_in_one_way(proxy: Proxy, url: str, target: str, host: str) -> None:
    sent = await sent_for(proxy, url, length=2)
    assert sent == [
        *(f"POST {target} HTTP/1.1".encode(), f"Host: {host}".encode()),
        *(b"Content-Length: 2", b"Accept-Encoding: identity", b"{}"),
    ]


BY_METHOD = [
    ("POST", [b"Content-Length: 0"]),
    ("PUT", [b"Content-Length: 0"]),
    ("PATCH", [b"Content-Length: 0"]),
    ("GET", []),
    ("DELETE", []),
    ("get", []),
]


@pytest.mark.parametrize(("method", "lengths"), BY_METHOD)
async def test_an_empty_body_has_a_length_where_one_is_expected(
    proxy: Proxy, method: str, lengths: list[bytes]
) -> None:
    sent = await sent_for(proxy, "http://a.example:PORT/", method=method, body=b"", headers=b"x-a: 1\r\n")
    assert sent == [
        f"{method.upper()} / HTTP/1.1".encode(),
        *(b"Host: a.example:PORT", *lengths, b"x-a: 1", b"Accept-Encoding: identity", b""),
    ]


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_headers_keep_their_order_and_their_bytes(proxy: Proxy, method: str) -> None:
    given = [b"x-b: 1", b"authorization: Bearer s", b"x-a: \xff\xe4", b"x-b: 2", b"x-empty: "]
    dropped = [b"Connection: x-mine", b"X-Mine: 1", b"Cookie: a", b"Accept-Encoding: br", b"TE: x"]
    headers = b"\r\n".join([*dropped, *given, b""])
    sent = await sent_for(proxy, "http://a.example:PORT/", method=method, headers=headers, length=2)
    assert sent == [
        *(f"{method} / HTTP/1.1".encode(), b"Host: a.example:PORT"),
        *(*given, b"Content-Length: 2", b"Accept-Encoding: identity", b"{}"),
    ]


async def test_a_body_too_large_to_hold_is_passed_on_as_it_was_framed(proxy: Proxy) -> None:
    sent = await sent_for(proxy, "http://a.example:PORT/", body=b"a" * 20, headers=b"x-a: 1\r\n", length=20)
    assert sent[2:] == [b"x-a: 1", b"Content-Length: 20", b"Accept-Encoding: identity", b"a" * 20]


async def test_a_body_of_unknown_length_that_is_too_large_to_hold_goes_in_chunks(proxy: Proxy) -> None:
    chunk = b"14\r\n" + b"a" * 20 + b"\r\n"
    headers = b"Transfer-Encoding: chunked\r\nx-a: 1\r\n"
    sent = await sent_for(proxy, "http://a.example:PORT/", body=chunk, headers=headers, late=b"0\r\n\r\n", length=31)
    assert sent[2:] == [b"x-a: 1", b"Transfer-Encoding: chunked", b"Accept-Encoding: identity", chunk + b"0\r\n\r\n"]


async def test_a_body_of_unknown_length_that_is_held_goes_with_its_length(proxy: Proxy) -> None:
    headers = b"Transfer-Encoding: chunked\r\n"
    sent = await sent_for(proxy, "http://a.example:PORT/", body=b"2\r\n{}\r\n0\r\n\r\n", headers=headers, length=2)
    assert sent[2:] == [b"Content-Length: 2", b"Accept-Encoding: identity", b"{}"]
