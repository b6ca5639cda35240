"""What every route shares: CORS, OpenAPI, security headers, readiness; and the reading forms on the wire."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import re
import weakref
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from streamkeep.proxy.routes.subscriptions import OPERATIONS
from streamkeep.proxy.rules.upstreams import Upstreams
from streamkeep.proxy.server import Connection
from streamkeep.storage import MemoryStore, StoreUnavailable
from tests.serving import CERTIFICATES, Proxy, serving
from tests.upstream import Exchange, upstream, whole

OUR_REQUEST_HEADERS = [
    "x-proxy-url",
    "x-proxy-method",
    "x-session-id",
    "x-request-id",
    "x-resume-active-generation",
    "x-replay-from-start",
    "x-active-generation-ttl",
    "authorization",
    "last-event-id",
    "content-type",
    "x-stainless-lang",
]
EXPOSED = [
    "stream-next-offset",
    "stream-up-to-date",
    "stream-closed",
    "stream-cursor",
    "stream-sse-data-encoding",
    "x-session-id",
    "x-request-id",
    "upstream-status",
    "x-ratelimit-remaining-tokens",
]


@pytest.mark.parametrize(
    "path", ["/api/a/1", "/api/a/active", "/api/a/1/cancel", "/stream/data", "/stream/control", "/ready"]
)
async def test_preflights_admit_our_headers_on_every_route(proxy: Proxy, path: str) -> None:
    asked = {
        "Origin": "http://localhost:5173",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ", ".join(OUR_REQUEST_HEADERS),
    }
    answer = await proxy.client.options(path, headers=asked)
    assert answer.status_code in (200, 204)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    allowed = {name.strip().lower() for name in answer.headers["Access-Control-Allow-Headers"].split(",")}
    assert set(OUR_REQUEST_HEADERS) <= allowed
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]


async def test_answers_expose_ids_stream_headers_and_upstreams(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, b"x", {"x-ratelimit-remaining-tokens": "1", "Content-Type": "text/plain"})

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
    answer = await proxy.client.get(
        "/stream/data?sessionId=chat&requestId=1", headers={"Origin": "http://localhost:5173"}
    )
    exposed = {name.strip().lower() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
    assert set(EXPOSED) <= exposed
    error = await proxy.client.get("/stream/data", headers={"Origin": "http://localhost:5173"})
    assert error.headers["Access-Control-Allow-Origin"] == "*"


async def test_only_configured_origins_are_admitted() -> None:
    async with serving(MemoryStore(), origins=("https://app.example",)) as proxy:
        good = await proxy.client.get("/health", headers={"Origin": "https://app.example"})
        assert good.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "Origin" in good.headers["Vary"]
        bad = await proxy.client.get("/health", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in bad.headers


async def test_openapi_describes_exactly_the_routes_that_are_served(proxy: Proxy) -> None:
    document = (await proxy.client.get("/openapi.json")).json()
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    routes = _routes(proxy.app.router.routes)
    served = {(route.path_format, method) for route in routes if route.include_in_schema for method in route.methods}
    pages = {"/", "/console/{name}", "/docs", "/openapi.json"}
    pages |= {f"/{file.name}" for file in (files("streamkeep.adapters") / "browser").iterdir()}
    assert {route.path_format for route in routes if not route.include_in_schema} - pages == {"/v1/stream/__ds/{path}"}
    served |= {(f"/v1/stream/__ds/{path}", method) for path, methods in OPERATIONS.items() for method in methods}
    generations = "/v1/stream/generations"
    refused = {
        (path, method) for path, method in served if path.startswith(generations) and method not in ("GET", "HEAD")
    }
    assert {item for item in served - refused if item[1] != "HEAD"} == {i for i in described if i[1] != "HEAD"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            assert operation["responses"], (path, method)
    named = re.findall(r'"#/components/schemas/([^"]*)"', json.dumps(document))
    assert set(named) == set(document["components"]["schemas"])


async def test_the_reference_with_its_foreign_scripts_is_out_of_reach_of_what_the_console_keeps(proxy: Proxy) -> None:
    page = await proxy.client.get("/docs")
    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"].split()
    assert policy[0] == "sandbox"
    assert "allow-same-origin" not in policy
    # So it cannot fetch the document, and holds it.
    assert '"/api/{session_id}/{request_id}"' in page.text
    assert (await proxy.client.get("/redoc")).status_code == 404


async def test_no_middleware_wraps_responses(proxy: Proxy) -> None:
    assert not [m for m in proxy.app.user_middleware if issubclass(m.cls, BaseHTTPMiddleware)]  # type: ignore[arg-type]


async def test_every_answer_forbids_sniffing_and_stream_contents_cannot_run(proxy: Proxy) -> None:
    async with upstream(whole(b"<script>alert(1)</script>", "text/html")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    data = await proxy.read("chat", "1")
    assert data.headers["Content-Security-Policy"].startswith("sandbox")
    for answer in (data, await proxy.client.get("/stream/data"), await proxy.client.get("/nowhere")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_a_connection_that_ended_is_no_work_for_the_collector(proxy: Proxy) -> None:
    """One that was open for long would else stay in memory until a full collection, which is rare."""
    plain = {"Content-Type": "text/plain"}
    await proxy.client.put("/v1/stream/open", headers=plain)
    before = weakref.WeakSet(_connections())
    gc.disable()
    try:
        async with httpx.AsyncClient(base_url=proxy.url, verify=CERTIFICATES) as client:
            for _ in range(2):
                assert (await client.post("/v1/stream/open", content=b"x", headers=plain)).status_code == 204
            async with client.stream("GET", "/v1/stream/open", params={"offset": "now", "live": "sse"}):
                assert (await client.get("/v1/stream/none")).status_code == 404
                during = weakref.WeakSet(one for one in _connections() if one not in before)
                assert len(during) == 2
        async with asyncio.timeout(30):
            while during:
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_a_request_that_waited_behind_another_leaves_memory_with_its_connection(proxy: Proxy) -> None:
    """It has a body, and whoever breaks off many of these would fill the memory."""
    await proxy.client.put("/v1/stream/open", headers={"Content-Type": "text/plain"})
    before = weakref.WeakSet(_connections())
    address = urlsplit(proxy.url)
    gc.disable()
    try:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"GET /v1/stream/open?offset=now&live=sse HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.write(b"POST /v1/stream/open HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + bytes(1000))
        async with asyncio.timeout(30):
            while not proxy.service.readers.count:
                await asyncio.sleep(0.01)
            during = weakref.WeakSet(one for one in _connections() if one not in before)
            while not any(one.pipeline for one in during):
                await asyncio.sleep(0.01)
            writer.transport.abort()
            while during:
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


def _connections() -> list[Connection]:
    return [one for one in gc.get_objects() if type(one) is Connection]


async def test_ready_tells_the_truth_about_the_database() -> None:
    class Away(MemoryStore):
        is_away = False

        async def ping(self) -> None:
            if self.is_away:
                raise StoreUnavailable("gone")

    store = Away()
    async with serving(store) as proxy:
        answer = await proxy.client.get("/ready")
        assert (answer.status_code, answer.json()["loop"]) == (200, "asyncio")
        store.is_away = True
        async with asyncio.timeout(60):
            # An answer of the database is good for half a second.
            while (await proxy.client.get("/ready")).status_code != 503:
                await asyncio.sleep(0.05)
        assert (await proxy.client.get("/health")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/openapi.json", "/api/generations", "/v1/sessions", "/nowhere"]
)
async def test_head_is_answered_as_get_is_without_the_body(proxy: Proxy, path: str) -> None:
    head, got = await proxy.client.head(path), await proxy.client.get(path)
    assert got.status_code == (404 if path == "/nowhere" else 200)
    assert (head.status_code, head.content) == (got.status_code, b"")
    # Ids and dates differ, and the metrics go on counting.
    ours = {"date", "x-request-id", *(["content-length"] if path == "/metrics" else [])}
    assert "Content-Length" in head.headers
    assert {i for i in head.headers.items() if i[0] not in ours} == {i for i in got.headers.items() if i[0] not in ours}


async def test_catch_up_pages_and_says_when_it_is_up_to_date_and_closed(proxy: Proxy) -> None:
    body = b"x" * (1024 * 1024 + 10)
    async with upstream(whole(body, "text/plain", chunk_bytes=50_000)) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    first = await proxy.read("chat", "1")
    assert len(first.content) == 1024 * 1024
    assert "Stream-Up-To-Date" not in first.headers
    assert "Stream-Closed" not in first.headers
    second = await proxy.read("chat", "1", offset=first.headers["Stream-Next-Offset"])
    assert second.content == b"x" * 10
    assert second.headers["Stream-Up-To-Date"] == "true"
    assert second.headers["Stream-Closed"] == "true"
    at_end = await proxy.read("chat", "1", offset="now")
    assert (at_end.status_code, at_end.content, at_end.headers["Stream-Closed"]) == (200, b"", "true")


async def test_the_same_streams_stand_under_their_own_paths(proxy: Proxy) -> None:
    async with upstream(whole(b"abc", "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    path = "/v1/stream/generations/chat/1"
    assert (await proxy.client.get(f"{path}/data")).content == b"abc"
    assert (await proxy.client.get(f"{path}/control")).json()[0]["event"] == "done"
    head = await proxy.client.head(f"{path}/data")
    assert (head.status_code, head.headers["Stream-Closed"], head.content) == (200, "true", b"")
    assert head.headers["Content-Type"] == "text/plain"


async def test_a_long_poll_waits_then_answers_204_and_a_closed_stream_answers_at_once() -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await gate.wait()
        await exchange.chunk(b"late")
        await exchange.end()

    async with serving(MemoryStore(), long_poll_seconds=0.2) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        empty = await proxy.read("chat", "1", offset="-1", live="long-poll")
        assert (empty.status_code, empty.headers["Stream-Up-To-Date"]) == (204, "true")
        assert empty.headers["Stream-Cursor"].isdigit()
        gate.set()
        await proxy.ending("chat", "1")
        late = await proxy.read("chat", "1", offset="-1", live="long-poll")
        assert late.content == b"late"
        end = await proxy.read("chat", "1", offset=late.headers["Stream-Next-Offset"], live="long-poll")
        assert (end.status_code, end.headers["Stream-Closed"]) == (204, "true")


@pytest.mark.parametrize("way", ["live=sse&encoding=base64", "live=sse", "live=long-poll", "", "drop-in"])
async def test_t8_a_backlog_comes_at_once_while_upstream_is_silent(way: str) -> None:
    """From its middle on; nothing more is sent until it has come."""
    backlog = b"".join(b"data: %d\n\n" % number for number in range(500))

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(backlog)
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        upstreams = Upstreams.parse(f"vendor={server.url}")
        async with serving(MemoryStore(), upstreams=upstreams) as proxy:
            await proxy.create("chat", "1", server.url)
            await proxy.available(len(backlog))
            start = 0 if way == "drop-in" else 1000
            method, path = "GET", f"/stream/data?sessionId=chat&requestId=1&offset={0:016d}_{start:016d}&{way}"
            headers = {"Accept-Encoding": "gzip"}
            if way == "drop-in":
                method, path = "POST", "/u/vendor/v1/chat"
                headers |= {"X-Session-ID": "chat", "X-Resume-Active-Generation": "true"}
            got = b""
            async with asyncio.timeout(30), proxy.client.stream(method, path, headers=headers) as answer:
                async for piece in answer.aiter_bytes():
                    got += piece
                    if _carried(got, way) == backlog[start:]:
                        break
            assert _carried(got, way) == backlog[start:]
            assert not server.calls[0].is_gone.is_set()


def _carried(answer: bytes, way: str) -> bytes:
    """The bytes in the data events of an answer so far, or the answer itself."""
    if "sse" not in way:
        return answer
    found = b""
    for event in answer.split(b"\n\n")[:-1]:
        if event.startswith(b"event: data"):
            lines = [line.removeprefix(b"data:") for line in event.split(b"\n") if line.startswith(b"data:")]
            found += base64.b64decode(lines[0]) if "base64" in way else b"\n".join(lines)
    return found


@pytest.mark.parametrize("which", ["data", "control"])
async def test_an_offset_beyond_the_tail_is_refused_in_every_way_of_reading(proxy: Proxy, which: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        for live in ({}, {"live": "long-poll"}, {"live": "sse"}):
            answer = await proxy.read("chat", "1", which, offset="0000000000000000_0000000000000001", **live)
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid_offset")


async def test_a_text_read_that_begins_inside_a_character_says_so(proxy: Proxy) -> None:
    async with upstream(whole("✓".encode(), "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    answer = await proxy.read("chat", "1", offset="0000000000000000_0000000000000001", live="sse")
    assert "\ndata:\ufffd" in answer.text
    assert '"streamNextOffset":"0000000000000000_0000000000000003"' in answer.text


async def test_text_sse_holds_half_characters_back_and_ids_resume_it(proxy: Proxy) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain; charset=utf-8"})
        await exchange.chunk("a✓".encode()[:2])
        await gate.wait()
        await exchange.chunk("a✓".encode()[2:] + b"\nb\r\nevent: forged")
        await exchange.end()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        async with proxy.client.stream("GET", "/stream/data?sessionId=chat&requestId=1&live=sse") as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert "Stream-SSE-Data-Encoding" not in answer.headers
            lines = answer.aiter_lines()
            first = await _event(lines)
            while first["event"] == "data" or "0001" not in first["data"]:
                first = await _event(lines)
            assert json.loads(first["data"])["streamNextOffset"].endswith("_0000000000000001")
            gate.set()
            second = await _event(lines)
            last = await _event(lines)
    assert second["data"] == "✓\nb\nevent: forged"
    assert json.loads(last["data"])["streamClosed"] is True
    resume = {"Last-Event-ID": second["id"]}
    url = "/stream/data?sessionId=chat&requestId=1&live=sse&offset=-1"
    assert (await proxy.client.get(url, headers=resume)).status_code == 204
    again = await proxy.client.get(url, headers={"Last-Event-ID": "0000000000000000_0000000000000004"})
    assert again.text.startswith("event: data\nid: ")
    assert "data:b" in again.text


async def test_control_sse_carries_json_arrays(proxy: Proxy) -> None:
    async with upstream(whole(b"abc", "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    answer = await proxy.client.get("/stream/control?sessionId=chat&requestId=1&live=sse")
    data = next(line for line in answer.text.splitlines() if line.startswith("data:["))
    assert json.loads(data[5:])[0]["code"] == "complete"


async def test_t11_silent_connections_get_heartbeats_and_are_rotated_without_an_end_mark() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.is_gone.wait()

    settings = {"heartbeat_seconds": 0.3, "sse_seconds": 2.5}
    async with serving(MemoryStore(), **settings) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        answer = await proxy.client.get("/stream/data?sessionId=chat&requestId=1&live=sse")
    assert "\n:\n" in answer.text
    assert "streamClosed" not in answer.text


async def _event(lines: Any) -> dict[str, str]:
    event: dict[str, str] = {}
    async for line in lines:
        if line.startswith("data:") and "data" in event:
            event["data"] += "\n" + line[5:]
        elif ":" in line and not line.startswith(":"):
            name, _, value = line.partition(":")
            event[name] = value.removeprefix(" ")
        elif not line and event:
            return event
    raise AssertionError("the stream ended")


def _routes(routes: Any) -> list[Any]:
    found = []
    for route in routes:
        included = getattr(route, "original_router", None)
        found += [route] if included is None else _routes(included.routes)
    return found
