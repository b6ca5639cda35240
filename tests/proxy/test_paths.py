"""Paths and values that mean to be something else: refused, or taken for exactly what they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import pytest

from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import upstream, whole

TEXT = "Content-Type: text/plain"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known == name.lower()), None)


async def ask(proxy: Proxy, method: str, target: bytes, *headers: str, body: bytes = b"") -> Answer:
    """One request whose target stands in it as it is given: clients tidy paths up."""
    url = urlsplit(proxy.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        head = ["Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write(method.encode() + b" " + target + b" HTTP/1.1\r\n" + "\r\n".join(head).encode("latin-1") + body)
        async with asyncio.timeout(60):
            head_bytes, _, rest = (await reader.read(-1)).partition(b"\r\n\r\n")
    finally:
        writer.transport.abort()
    first, *lines = head_bytes.decode("latin-1").split("\r\n")
    pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return Answer(int(first.split(" ")[1]), pairs, rest)


@pytest.fixture(scope="module")
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy that holds the stream `a/b` and the generation `chat/1`, both of which say something."""
    async with (
        serving(MemoryStore(), long_poll_seconds=0.05) as served,
        upstream(whole(b"said", "text/plain")) as server,
    ):
        await ask(served, "PUT", b"/v1/stream/a/b", TEXT, body=b"kept")
        await served.create("chat", "1", server.url)
        await served.ending("chat", "1")
        yield served


# Where `a/b` is meant, or a path of the server's own, or one outside of all streams.
MISLEADING = [
    *(
        b"a//b",
        b"/a/b",
        b"a/b/",
        b"a/b//",
        b"a/./b",
        b"./a/b",
        b"a/b/.",
        b"a/c/../b",
        b"../stream/a/b",
        b"a/b/..",
        b"..",
    ),
    *(b"a/%2e/b", b"%2e/a/b", b"a/c/%2e%2e/b", b"a/c/.%2e/b", b"a/c/%2E./b", b"%2e%2e/%2e%2e/api/chat/1"),
    *(b"a%2fb", b"a%2Fb", b"..%2fa%2fb", b"a/c%2f..%2fb", b"a%5cb", b"a\\b", b"a/c\\..\\b", b"a%5C..%5Cb"),
    *(b"a%252fb", b"a/%252e%252e/a/b", b"a%25252fb", b"a/b%2500"),
    *(b"a/b%00", b"a/b%00.txt", b"%00a/b", b"a/b%0a", b"a/b%0d%0aX-Evil:%201", b"a/b%09", b"a/b%7f", b"a/b%c2%80"),
    *(b"a%c0%afb", b"a%e0%80%afb", b"a%f0%80%80%afb", b"a/c/%c0%ae%c0%ae/b", b"a/%ff", b"a/%c3", b"a/%ed%a0%80"),
    *(b"A/b", b"a/B", b"a/b.", b"a/b%20", b"%20a/b", b"a/b;x=y", b"a;x/b", b"a/b,", b"a/b*", b"a/b~", b"a/b:", b"a/b'"),
    *(b"a%ef%bc%8fb", b"a/%ef%bd%82", b"a%e2%88%95b", b"a/b%e2%80%8b", b"a/b%cc%81", b"%ef%bb%bfa/b"),
    *(b"a/%", b"a/%2", b"a/%zz", b"a/b%u002f", b"a/%0", b""),
    *(b"generations/chat/1/data", b"generations", b"generations/", b"generations/x", b"%67enerations/chat/1/data"),
    *(b"generations%2fchat%2f1%2fdata", b"x/../generations/chat/1/data", b"./generations/chat/1/data"),
    *(b"generations/chat/1/data/", b"generations//chat/1/data", b"generations/chat/../chat/1/data"),
    *(b"__registry__", b"%5f%5fregistry__", b"__registry__/", b"__registry__/x"),
    *(b"__ds", b"__ds/", b"__ds/subscriptions", b"%5f%5fds/subscriptions/x", b"__ds/../a/b", b"__ds%2fjwks.json"),
    b"a/" + b"b" * 1030,
    b"a/" + b"%62" * 1030,
]


@pytest.mark.parametrize("path", MISLEADING)
async def test_a_misleading_path_is_refused_or_names_a_stream_of_its_own(proxy: Proxy, path: bytes) -> None:
    target = b"/v1/stream/" + path
    made = await ask(proxy, "PUT", target, TEXT, body=b"own")
    if made.status == 201:
        location = (made.header("Location") or "").removeprefix("http://x")
        assert location.startswith("/v1/stream/")
        assert location.removeprefix("/v1/stream/") not in ("a/b", "__registry__")
        for same in (target, location.encode()):
            assert (await ask(proxy, "GET", same)).body == b"own"
        assert (await ask(proxy, "DELETE", target)).status == 204
    else:
        assert made.status in (400, 403, 404, 405)
        assert b'"error"' in made.body or made.status == 400
        for method in ("POST", "DELETE"):
            assert (await ask(proxy, method, target, TEXT, body=b"more")).status in (400, 403, 404, 405)
    assert (await ask(proxy, "GET", b"/v1/stream/a/b")).body == b"kept"
    assert (await proxy.read("chat", "1", offset="-1")).content == b"said"


async def test_an_encoded_letter_is_that_letter(proxy: Proxy) -> None:
    assert (await ask(proxy, "GET", b"/v1/stream/%61/%62")).body == b"kept"
    assert (await ask(proxy, "PUT", b"/v1/stream/%67enerations/x", TEXT)).status == 403


@pytest.mark.parametrize("path", [b"a/%", b"a/%2", b"a/%zz", b"a/b%u002f", b"a/%0", b"a/% 20", b"%"])
async def test_a_percent_sign_that_encodes_nothing_is_no_second_spelling_of_itself(proxy: Proxy, path: bytes) -> None:
    assert (await ask(proxy, "PUT", b"/v1/stream/" + path, TEXT)).status == 400


IDS = [
    *(b"..", b".", b"%2e%2e", b"%2e%2e%2f1", b"1%2f..", b"1%00", b"1%0a", b"1%0d%0aX-Evil:1", b"%c0%af", b"1\\2"),
    *(b"1%20", b"%201", b"1;x", b"1,2", b"1*", b"-1", b"_1", b"%ef%bc%91", b"%d9%a1", b"1%cc%81", b"1%25", b"%", b"1'"),
    *(b"active", b"x" * 201, b"%22", b"1%3f", b"1%23", b"1+2", b"$", b"%ff"),
]


@pytest.mark.parametrize("id", IDS)
async def test_an_id_is_nothing_but_an_id(proxy: Proxy, id: bytes) -> None:
    before = repr(proxy.service.store)
    for target in (b"/api/chat/" + id, b"/api/" + id + b"/1"):
        if target == b"/api/active/1":
            continue
        answer = await ask(proxy, "POST", target, "X-Proxy-Url: http://127.0.0.1:1/")
        assert answer.status in (400, 404, 405)
        assert answer.header("X-Evil") is None
    for query in (b"sessionId=chat&requestId=" + id, b"sessionId=" + id + b"&requestId=1"):
        assert (await ask(proxy, "GET", b"/stream/data?" + query)).status in (400, 404)
    answer = await ask(
        proxy, "PUT", b"/v1/stream/__ds/subscriptions/" + id, "Content-Type: application/json", body=b"{}"
    )
    assert answer.status in (400, 404, 405)
    assert repr(proxy.service.store) == before


BREAKS = [
    "\r\nX-Evil: 1",
    "\nX-Evil: 1",
    "\rX-Evil: 1",
    "\u2028X-Evil: 1",
    "\x85X-Evil: 1",
    "\x00",
    "\u0100\u010d\u010aX-Evil: 1",
]


@pytest.mark.parametrize("text", BREAKS)
async def test_nothing_that_is_said_back_makes_a_header(proxy: Proxy, text: str) -> None:
    """Every value of a request that comes back in a header, with a line break in it in one form or another."""
    quoted = quote(text).encode()
    as_bytes = text.encode().decode("latin-1")
    answers = [
        await ask(proxy, "PUT", b"/v1/stream/evil" + quoted, TEXT),
        await ask(proxy, "GET", b"/v1/stream/a/b?offset=-1&live=long-poll&cursor=" + quoted),
        await ask(proxy, "GET", b"/v1/stream/a/b?offset=" + quoted),
        await ask(proxy, "GET", b"/stream/data?sessionId=chat&requestId=1" + quoted),
        await ask(proxy, "GET", b"/" + quoted),
        await ask(
            proxy, "OPTIONS", b"/v1/stream/a/b", f"Origin: http://x{as_bytes}", "Access-Control-Request-Method: GET"
        ),
        await ask(proxy, "PUT", b"/v1/stream/evil", f"Content-Type: text/plain; a={as_bytes}"),
        await ask(
            proxy, "POST", b"/v1/stream/a/none", TEXT, f"Producer-Id: {as_bytes}", "Producer-Epoch: 0", body=b"x"
        ),
        await ask(proxy, "GET", b"/v1/stream/a/b", f"If-None-Match: {as_bytes}", f"Last-Event-ID: {as_bytes}"),
        await ask(proxy, "POST", b"/api/chat/1", f"X-Proxy-Url: http://127.0.0.1:1/{as_bytes}"),
        await ask(proxy, "GET", b"/health", f"X-Request-ID: {as_bytes}"),
        await ask(proxy, "POST", b"/u/none/x", f"Idempotency-Key: {as_bytes}", f"X-Session-ID: {as_bytes}"),
    ]
    await ask(proxy, "DELETE", b"/v1/stream/evil")
    for answer in answers:
        assert answer.status != 500
        assert answer.header("X-Evil") is None
        assert all(value.isprintable() for _, value in answer.headers)


@pytest.mark.parametrize(
    "host", ["evil.example/x", 'x"onload=', "x@evil", "x?y", "x#y", "x y", "x\\y", "", "x,y", "x'y", "x<y"]
)
async def test_a_host_header_gives_no_url_of_its_own_making(proxy: Proxy, host: str) -> None:
    url = urlsplit(proxy.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(f"GET /api/chat/1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(60):
            answer = await reader.read(-1)
    finally:
        writer.transport.abort()
    assert b'"streamUrl":"%b/stream/data?' % proxy.url.encode() in answer or answer.split()[1] in (b"400", b"403")
