"""Bad input: each with a clear JSON error, no upstream call, and no half-made state."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream, whole

OFFSET = "0000000000000000_0000000000000001"


def is_clean(proxy: Proxy) -> bool:
    """Whether the store is as empty as it was."""
    return "streams=0, generations=0" in repr(proxy.service.store)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 400, "missing_upstream_url"),
        ({"X-Proxy-Url": ""}, 400, "missing_upstream_url"),
        ({"X-Proxy-Url": "/relative"}, 400, "invalid_upstream_url"),
        ({"X-Proxy-Url": "file:///etc/passwd"}, 400, "invalid_upstream_url"),
        ({"X-Proxy-Url": "http://127.0.0.1:1/" + "a" * 10_000}, 400, "invalid_upstream_url"),
        ({"X-Proxy-Url": "http://user:pass@127.0.0.1:1/"}, 400, "invalid_upstream_url"),
        ({"X-Proxy-Url": "http://example.com/"}, 403, "upstream_not_allowed"),
        ({"X-Proxy-Url": "http://169.254.169.254/latest"}, 403, "upstream_not_allowed"),
        ({"X-Proxy-Url": "http://127.0.0.1:1/", "X-Proxy-Method": "BREW"}, 400, "invalid_upstream_method"),
        ({"X-Proxy-Url": "http://127.0.0.1:1/", "X-Proxy-Method": "GET\tX"}, 400, "invalid_upstream_method"),
    ],
)
async def test_bad_creations(proxy: Proxy, headers: dict[str, str], status: int, code: str) -> None:
    answer = await proxy.client.post("/api/chat/1", headers=headers, content=b"{}")
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json()["message"]
    assert "Upstream-Status" not in answer.headers
    assert is_clean(proxy)


async def test_a_refusal_names_the_url_and_the_line_that_would_allow_it(proxy: Proxy) -> None:
    answer = await proxy.client.post("/api/chat/1", headers={"X-Proxy-Url": "http://10.1.2.3:8080/v1?key=secret"})
    message = answer.json()["message"]
    assert "http://10.1.2.3:8080/v1" in message
    assert "STREAMKEEP_ALLOW" in message
    assert "http://10.1.2.3:8080/**" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    "path",
    [
        "/api/.hidden/1",
        "/api/chat/active",
        "/api/chat/%20",
        "/api/a%0ab/1",
        "/api/chat/" + "x" * 201,
        "/api/ch%C3%A4t/1",
    ],
)
async def test_bad_ids(proxy: Proxy, path: str) -> None:
    answer = await proxy.client.post(path, headers={"X-Proxy-Url": "http://127.0.0.1:1/"})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_id")
    assert is_clean(proxy)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("offset=abc", "invalid_offset"),
        ("offset=", "invalid_offset"),
        ("offset=-2", "invalid_offset"),
        ("offset=" + OFFSET + "%0a", "invalid_offset"),
        ("offset=" + OFFSET[:-1] + "%D9%A1", "invalid_offset"),
        ("offset=1000000000000000_0000000000000001", "invalid_offset"),
        (f"offset={OFFSET}&offset={OFFSET}", "invalid_parameter"),
        ("sessionId=chat", "invalid_parameter"),
        ("live=maybe", "invalid_parameter"),
        ("live=", "invalid_parameter"),
        ("encoding=base64", "invalid_parameter"),
        ("encoding=hex&live=sse", "invalid_parameter"),
        ("offset=%ff", "invalid_parameter"),
    ],
)
async def test_bad_reads(proxy: Proxy, query: str, code: str) -> None:
    async with upstream(whole(b"abc", "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
    for path in ("/stream/data", "/stream/control"):
        answer = await proxy.client.get(f"{path}?sessionId=chat&requestId=1&{query}")
        assert (answer.status_code, answer.json()["error"]) == (400, code)


@pytest.mark.parametrize(
    "query", ["", "sessionId=chat", "requestId=1", "sessionId=&requestId=1", "sessionId=a/b&requestId=1"]
)
async def test_reads_without_good_ids(proxy: Proxy, query: str) -> None:
    answer = await proxy.client.get(f"/stream/data?{query}")
    assert answer.status_code == 400


async def test_an_offset_inside_a_control_message_is_refused(proxy: Proxy) -> None:
    async with upstream(whole(b"abc", "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    answer = await proxy.read("chat", "1", "control", offset=OFFSET)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_offset")


@pytest.mark.parametrize(
    "change",
    [
        lambda query: query.set("signature", "1.AAAA"),
        lambda query: query.set("signature", ""),
        lambda query: query.set("expires", "99999999999"),
        lambda query: query.set("expires", "-1"),
        lambda query: query.remove("signature"),
        lambda query: query.remove("expires"),
        lambda query: query.set("requestId", "2"),
    ],
)
async def test_a_tampered_url_is_refused(proxy: Proxy, change: object) -> None:
    async with upstream(whole(b"abc", "text/plain")) as server:
        created = (await proxy.create("chat", "1", server.url)).json()
        await proxy.create("chat", "2", server.url)
    url = httpx.URL(created["streamUrl"])
    assert (await proxy.client.get(url)).status_code == 200
    assert callable(change)
    answer = await proxy.client.get(url.copy_with(params=change(url.params)))
    assert (answer.status_code, answer.json()["error"]) == (401, "signature_invalid")


async def test_an_expired_url_is_refused_and_renewed_by_the_generations_own_url() -> None:
    async with serving(MemoryStore(), url_seconds=-1.0) as proxy, upstream(whole(b"abc", "text/plain")) as server:
        created = (await proxy.create("chat", "1", server.url)).json()
        answer = await proxy.client.get(created["streamUrl"])
        assert (answer.status_code, answer.json()["error"]) == (401, "signature_expired")
        again = (await proxy.client.get("/api/chat/1")).json()
        assert again["state"] in ("running", "done")
        assert again["streamUrl"].startswith(proxy.url + "/stream/data?")


async def test_a_body_cut_short_leaves_nothing_behind(proxy: Proxy) -> None:
    async with upstream(whole(b"never")) as server:
        host, port = proxy.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/chat/1 HTTP/1.1\r\nHost: x\r\nX-Proxy-Url: {server.url}/\r\nContent-Length: 100\r\n\r\nhalf"
        writer.write(head.encode())
        await writer.drain()
        writer.close()
        answer = await proxy.create("chat", "2", server.url)
        assert answer.status_code == 200
        assert [call.path for call in server.calls] == ["/"]
        assert (await proxy.client.get("/api/chat/1")).status_code == 404


async def test_a_large_body_cut_short_ends_the_generation(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        host, port = proxy.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/chat/1 HTTP/1.1\r\nHost: x\r\nX-Proxy-Url: {server.url}/\r\nContent-Length: 3000000\r\n\r\n"
        writer.write(head.encode() + b"x" * 2_000_000)
        await writer.drain()
        async with asyncio.timeout(60):
            while (await proxy.client.get("/api/chat/1")).status_code == 404:
                await asyncio.sleep(0.01)
        writer.transport.abort()
        assert (await proxy.ending("chat", "1"))["code"] == "upstream_failed"
        assert server.calls == []


async def test_bodies_beyond_the_limit_are_413() -> None:
    async with (
        serving(MemoryStore(), max_request_bytes=2000, max_buffered_request_bytes=1000) as proxy,
        upstream(whole(b"x")) as server,
    ):
        answer = await proxy.create("chat", "1", server.url, body=b"x" * 2001)
        assert (answer.status_code, answer.json()["error"]) == (413, "body_too_large")
        assert is_clean(proxy)


async def test_header_injection_never_reaches_upstream(proxy: Proxy) -> None:
    async with upstream(whole(b"x", "text/plain")) as server:
        host, port = proxy.url.removeprefix("http://").split(":")
        for line in (b"X-A: a\rX-Injected: 1", b"X-A: a\x00b", b"X-A: a\n X-Injected: 1", b"X A: b"):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                b"POST /api/chat/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n"
                + f"X-Proxy-Url: {server.url}/\r\n".encode()
                + line
                + b"\r\n\r\n"
            )
            status = await reader.readline()
            writer.close()
            assert status.split()[1] == b"400"
        assert server.calls == []


async def test_an_endless_request_head_is_cut_off(proxy: Proxy) -> None:
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: ")
    sent = 0
    with pytest.raises(ConnectionError):  # noqa: PT012  (it may break at any of these)
        while True:
            writer.write(b"a" * 65_536)
            await writer.drain()
            sent += 65_536
            assert sent < 100_000_000
            if reader.at_eof():
                raise ConnectionResetError
            await asyncio.sleep(0)
    writer.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", "/api/chat/1", 405, "method_not_allowed"),
        ("POST", "/stream/data", 405, "method_not_allowed"),
        ("PUT", "/v1/stream/generations/chat/1/data", 403, "read_only"),
        ("GET", "/api/chat/none", 404, "not_found"),
        ("GET", "/stream/data?sessionId=chat&requestId=none", 404, "not_found"),
        ("GET", "/v1/stream/generations/chat/none/control", 404, "not_found"),
    ],
)
async def test_wrong_paths_and_methods_are_json_errors(
    proxy: Proxy, method: str, path: str, status: int, code: str
) -> None:
    answer = await proxy.client.request(method, path)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
