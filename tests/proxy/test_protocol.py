"""Streams of the open protocol over HTTP: what the public suite leaves open, and what is ours."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import threading
import uuid
from base64 import b64decode
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from streamkeep.proxy.rules import stream_headers
from streamkeep.proxy.rules.json_mode import split_messages
from streamkeep.storage import DEFAULT_TENANT, Expiry, MemoryStore, StreamConfig, StreamKey
from streamkeep.storage.postgres import PostgresStore
from tests.serving import Proxy, serving
from tests.upstream import upstream, whole

STREAM = "/v1/stream/chat/1"
START = "0000000000000000_0000000000000000"
BEYOND = "0000000000000000_0000000000009999"
PRODUCER = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}


async def create(proxy: Proxy, path: str = STREAM, body: bytes = b"", **headers: str) -> httpx.Response:
    sent = {"Content-Type": "text/plain", **{name.replace("_", "-"): value for name, value in headers.items()}}
    answer = await proxy.client.put(path, content=body, headers=sent)
    assert answer.status_code == 201, answer.text
    return answer


async def append(proxy: Proxy, body: bytes, path: str = STREAM, **headers: str) -> httpx.Response:
    sent = {"Content-Type": "text/plain", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await proxy.client.post(path, content=body, headers=sent)


def assert_is_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (status, code), answer.text
    assert answer.json()["message"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.fixture(scope="module")
async def one_proxy() -> AsyncIterator[Proxy]:
    """One proxy for all rows of the tables below; each row has a stream of its own."""
    async with serving(MemoryStore()) as served:
        yield served


@pytest.fixture
def path() -> str:
    return f"/v1/stream/{uuid.uuid4()}"


# What is refused


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        *(({"Stream-TTL": ttl}, "invalid_header") for ttl in ("", "abc", "-1", "+1", "01", "1.0", "1e3", "9" * 30)),
        ({"Stream-TTL": "3162240001"}, "invalid_header"),
        ({"Stream-TTL": "1", "Stream-Expires-At": "2099-01-01T00:00:00Z"}, "invalid_header"),
        *(
            ({"Stream-Expires-At": instant}, "invalid_header")
            for instant in (
                *("", "tomorrow", "2099-01-01", "2099-01-01T00:00:00", "2099-13-01T00:00:00Z", "Jan 1 2099 00:00 UTC"),
                *("2099-01-01T24:00:00Z", "2099-02-30T00:00:00Z", "2099-01-01T00:00:00+25:00", "0000-01-01T00:00:00Z"),
                *("9999-12-31T23:59:59-23:59", "2099-01-01 00:00:00Z", "2099-01-01T00:00:00.Z"),
            )
        ),
        *(({"Content-Type": kind}, "invalid_header") for kind in ("text", "/", "text/", "a b/c", "x/" + "y" * 300)),
        ({"Stream-Fork-Offset": START}, "invalid_header"),
        ({"Stream-Fork-Sub-Offset": "1"}, "invalid_header"),
        ({"Stream-Forked-From": "chat/source"}, "invalid_fork"),
        ({"Stream-Forked-From": "http://elsewhere/v1/stream/chat/source"}, "invalid_fork"),
        ({"Stream-Forked-From": "/v1/stream/chat/../source"}, "invalid_path"),
        ({"Stream-Forked-From": "/v1/stream/"}, "invalid_path"),
        ({"Stream-Forked-From": "/v1/stream/chat/source", "Stream-Fork-Offset": "abc"}, "invalid_offset"),
        ({"Stream-Forked-From": "/v1/stream/chat/source", "Stream-Fork-Offset": ""}, "invalid_offset"),
        ({"Stream-Forked-From": "/v1/stream/chat/source", "Stream-Fork-Offset": BEYOND}, "invalid_fork"),
        *(
            ({"Stream-Forked-From": "/v1/stream/chat/source", "Stream-Fork-Sub-Offset": text}, "invalid_header")
            for text in ("", "-1", "+1", "1.5", "x", "01", "9" * 30)
        ),
    ],
    ids=str,
)
async def test_malformed_creations(one_proxy: Proxy, path: str, headers: dict[str, str], code: str) -> None:
    await one_proxy.client.put("/v1/stream/chat/source", content=b"source", headers={"Content-Type": "text/plain"})
    answer = await one_proxy.client.put(path, headers={"Content-Type": "text/plain", **headers})
    assert_is_problem(answer, 400, code)
    assert (await one_proxy.client.head(path)).status_code == 404


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({}, b"", "empty_append"),
        ({"Stream-Closed": "yes"}, b"", "empty_append"),
        ({"Content-Type": ""}, b"x", "missing_content_type"),
        ({"Content-Type": "nonsense"}, b"x", "invalid_header"),
        ({"Stream-Seq": ""}, b"x", "invalid_header"),
        ({"Stream-Seq": "s" * 257}, b"x", "invalid_header"),
        *(
            ({name: value for name, value in PRODUCER.items() if name != missing}, b"x", "invalid_header")
            for missing in PRODUCER
        ),
        *(
            ({**PRODUCER, name: value}, b"x", "invalid_header")
            for name in ("Producer-Epoch", "Producer-Seq")
            for value in ("", "-1", "+1", "1.0", "1e3", "x", "0x1", str(2**53), "9" * 40)
        ),
        *(({**PRODUCER, "Producer-Id": name}, b"x", "invalid_header") for name in ("", "p" * 257)),
    ],
    ids=str,
)
async def test_malformed_appends(one_proxy: Proxy, path: str, headers: dict[str, str], body: bytes, code: str) -> None:
    await create(one_proxy, path, b"kept")
    answer = await one_proxy.client.post(path, content=body, headers={"Content-Type": "text/plain", **headers})
    assert_is_problem(answer, 400, code)
    assert (await one_proxy.client.get(path)).content == b"kept"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("live=sse", "invalid_parameter"),
        ("live=long-poll", "invalid_parameter"),
        ("offset=-1&live=websocket", "invalid_parameter"),
        ("offset=-1&offset=-1", "invalid_parameter"),
        ("offset=-1&encoding=base64", "invalid_parameter"),
        ("offset=-1&live=sse&encoding=hex", "invalid_parameter"),
        *((f"offset={token}", "invalid_offset") for token in ("", "x", "-2", "0", "0,1", START + "%0A", "%00", BEYOND)),
        (f"offset={BEYOND}&live=long-poll", "invalid_offset"),
        (f"offset={BEYOND}&live=sse", "invalid_offset"),
    ],
)
async def test_malformed_reads(one_proxy: Proxy, path: str, query: str, code: str) -> None:
    await create(one_proxy, path, b"data")
    assert_is_problem(await one_proxy.client.get(f"{path}?{query}"), 400, code)


@pytest.mark.parametrize("name", ["Stream-TTL", "Stream-Closed", "Content-Type"])
async def test_headers_that_are_repeated(one_proxy: Proxy, path: str, name: str) -> None:
    answer = await one_proxy.client.put(path, headers=[(name, "1"), (name, "1")])
    assert_is_problem(answer, 400, "repeated_header")


@pytest.mark.parametrize("method", ["PUT", "POST", "GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("bad", ["", "a//b", "a/", "a/%2e%2e/b", "a%2Fb", "a%0Ab", "a%00", "%ff", "x" * 1025])
async def test_bad_paths(one_proxy: Proxy, method: str, bad: str) -> None:
    answer = await one_proxy.client.request(
        method, f"/v1/stream/{bad}", content=b"" if method in ("PUT", "POST") else None
    )
    assert answer.status_code == 400
    if method != "HEAD":
        assert_is_problem(answer, 400, "invalid_path")


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
@pytest.mark.parametrize("reserved", ["__registry__", "generations", "generations/a/1/data", "generations/x"])
async def test_what_the_proxy_writes_nobody_else_writes(one_proxy: Proxy, method: str, reserved: str) -> None:
    answer = await one_proxy.client.request(method, f"/v1/stream/{reserved}", headers={"Content-Type": "text/plain"})
    assert_is_problem(answer, 403, "read_only")


async def test_a_body_beyond_the_limit_is_413_and_leaves_nothing() -> None:
    async with serving(MemoryStore(), max_append_bytes=1000) as proxy:
        assert_is_problem(
            await proxy.client.put(STREAM, content=b"x" * 1001, headers={"Content-Type": "text/plain"}),
            413,
            "body_too_large",
        )
        await create(proxy, body=b"x" * 1000)

        async def chunks() -> Any:
            for _ in range(11):
                yield b"x" * 100

        answer = await proxy.client.post(STREAM, content=chunks(), headers={"Content-Type": "text/plain", **PRODUCER})
        assert_is_problem(answer, 413, "body_too_large")
        stored = await append(proxy, b"y", **PRODUCER)
        assert (stored.status_code, stored.headers["Producer-Seq"]) == (200, "0")


async def test_a_content_type_mismatch_names_both_types_and_the_fix(proxy: Proxy) -> None:
    await create(proxy)
    answer = await append(proxy, b"{}", Content_Type="application/json")
    assert_is_problem(answer, 409, "content_type_mismatch")
    message = answer.json()["message"]
    assert "'text/plain'" in message
    assert "'application/json'" in message
    assert "send Content-Type: text/plain" in message


async def test_what_is_wrong_with_the_stream_is_told_before_what_is_wrong_with_the_json(proxy: Proxy) -> None:
    json_type = {"Content_Type": "application/json"}
    assert (await append(proxy, b"{", **json_type)).status_code == 404
    await create(proxy)
    assert_is_problem(await append(proxy, b"{", **json_type), 409, "content_type_mismatch")
    await proxy.client.post(STREAM, headers={"Stream-Closed": "true"})
    closed = await append(proxy, b"{", **json_type)
    assert_is_problem(closed, 409, "stream_closed")
    assert closed.headers["Stream-Closed"] == "true"
    assert closed.headers["Stream-Next-Offset"] == START


async def test_random_requests_are_never_a_500(proxy: Proxy) -> None:
    rng = random.Random(3)
    names = [*stream_headers.CREATE_HEADERS, *stream_headers.APPEND_HEADERS, "If-None-Match", "Last-Event-ID"]
    names = [name for name in names if name != "Content-Length"]
    values = [
        "true",
        "0",
        "1",
        "text/plain",
        "application/json",
        START,
        STREAM,
        "now",
        "-1",
        "*",
        "\xff\xfe",
        "a" * 300,
    ]
    values += ["2099-01-01T00:00:00Z", str(2**53 - 1), str(2**63), "1e9", "()<>,;:", "W/", '"', "%00", "gzip"]
    bodies = [b"", b"[]", b"[1,2]", b"{", b"\x00\xff\x1e", b"[" * 50_000, b"x" * 10_000]
    for _ in range(600):
        method = rng.choice(["PUT", "POST", "GET", "HEAD", "DELETE"])
        query = "&".join(
            f"{rng.choice(['offset', 'cursor', 'encoding'])}={quote(rng.choice(values))}"
            for _ in range(rng.randrange(3))
        )
        answer = await proxy.client.request(
            method,
            f"/v1/stream/{rng.choice(['a', 'b', 'a/b', '__registry__', '__ds', 'generations/a/1/data', '%00', 'c%2Fd'])}?{query}",
            headers=[
                (rng.choice(names).encode(), rng.choice(values).encode("latin-1")) for _ in range(rng.randrange(5))
            ],
            content=rng.choice(bodies) if method in ("PUT", "POST") else None,
        )
        assert answer.status_code < 500, (answer.request.method, answer.request.url, answer.request.headers)


# JSON mode


async def test_messages_stay_as_they_were_written(proxy: Proxy) -> None:
    big = b"123456789012345678901234567890"
    await create(proxy, body=b'[ {"b":1.0, "a":1e2}, ' + big + b"]", Content_Type="application/json")
    await append(proxy, b' {"z": -0.0,"z":1}\n', Content_Type="Application/JSON; charset=utf-8")
    body = b'[{"b":1.0, "a":1e2},' + big + b',{"z": -0.0,"z":1}]'
    assert (await proxy.client.get(STREAM)).content == body
    live = await proxy.client.get(f"{STREAM}?offset=-1&live=long-poll")
    assert live.content == body


@pytest.mark.parametrize("body", [b"{", b"NaN", b"[1,Infinity]", b'"\xff"', b"[" * 100_000, b"1 2", b"\x1e"])
async def test_what_is_no_json_is_400_and_stores_nothing(one_proxy: Proxy, path: str, body: bytes) -> None:
    kind = {"Content_Type": "application/json"}
    assert_is_problem(
        await one_proxy.client.put(path, content=body, headers={"Content-Type": "application/json"}),
        400,
        "invalid_json",
    )
    await create(one_proxy, path, body=b"[]", **kind)
    assert_is_problem(await append(one_proxy, body, path, **kind, **PRODUCER), 400, "invalid_json")
    assert_is_problem(await append(one_proxy, b" [ ]", path, **kind), 400, "empty_append")
    assert (await one_proxy.client.get(path)).json() == []
    assert (await append(one_proxy, b"1", path, **kind, **PRODUCER)).status_code == 200


async def test_offsets_inside_a_message_are_400_and_pages_hold_whole_messages(proxy: Proxy) -> None:
    messages = [f'"{letter * 700_000}"' for letter in "abc"]
    await create(proxy, body=f"[{','.join(messages)}]".encode(), Content_Type="application/json")
    found: list[str] = []
    offset = "-1"
    for _ in messages:
        page = await proxy.client.get(STREAM, params={"offset": offset})
        found += page.json()
        offset = page.headers["Stream-Next-Offset"]
    assert [f'"{text}"' for text in found] == messages
    assert page.headers["Stream-Up-To-Date"] == "true"
    inside = "0000000000000000_0000000000000002"
    for live in ("", "&live=long-poll", "&live=sse"):
        assert_is_problem(await proxy.client.get(f"{STREAM}?offset={inside}{live}"), 400, "invalid_offset")


async def test_messages_as_base64_events_are_arrays(proxy: Proxy) -> None:
    await create(proxy, body=b"[1,2]", Content_Type="application/json", Stream_Closed="true")
    answer = await proxy.client.get(f"{STREAM}?offset=-1&live=sse&encoding=base64")
    assert answer.headers["Stream-SSE-Data-Encoding"] == "base64"
    assert "data:WzEsMl0=" in answer.text  # [1,2]


# Caching and compression


async def test_entity_tags_change_with_closing_and_with_a_new_stream_at_the_path(proxy: Proxy) -> None:
    await create(proxy, body=b"data")
    first = await proxy.client.get(STREAM)
    assert first.headers["Cache-Control"] == "public, max-age=60, stale-while-revalidate=300"
    conditions = {"If-None-Match": f'"other", W/{first.headers["ETag"]}'}
    known = await proxy.client.get(STREAM, headers=conditions)
    assert (known.status_code, known.content, known.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert "Content-Length" not in known.headers
    await proxy.client.post(STREAM, headers={"Stream-Closed": "TRUE"})
    closed = await proxy.client.get(STREAM, headers=conditions)
    assert (closed.status_code, closed.headers["Stream-Closed"]) == (200, "true")
    await proxy.client.delete(STREAM)
    await create(proxy, body=b"data", Stream_Closed="true")
    again = await proxy.client.get(STREAM, headers={"If-None-Match": closed.headers["ETag"]})
    assert again.status_code == 200


async def test_what_caches_may_keep(proxy: Proxy) -> None:
    await create(proxy, body=b"data")

    async def policy(query: str, method: str = "GET") -> str:
        return (await proxy.client.request(method, f"{STREAM}{query}")).headers["Cache-Control"]

    tail = "0000000000000000_0000000000000004"
    assert await policy("?offset=now") == "no-store"
    assert await policy("", "HEAD") == "no-store"
    assert await policy("?offset=-1&live=long-poll") == "public, max-age=60, stale-while-revalidate=300"
    assert await policy(f"?offset={tail}") == "public, max-age=1"
    await proxy.client.post(STREAM, headers={"Stream-Closed": "true"})
    assert await policy(f"?offset={tail}") == "public, max-age=60, stale-while-revalidate=300"
    assert await policy(f"?offset={tail}&live=long-poll") == "public, max-age=1"
    assert await policy("?offset=now&live=long-poll") == "no-store"
    assert "no-cache" in await policy("?offset=-1&live=sse")
    assert "ETag" not in (await proxy.client.get(f"{STREAM}?offset=now")).headers


async def test_catch_up_is_compressed_and_live_reads_are_not(proxy: Proxy) -> None:
    body = b"compressible " * 200
    await create(proxy, body=body)
    plain = await proxy.client.get(STREAM, headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.headers["Vary"] == "Accept-Encoding"
    async with proxy.client.stream("GET", STREAM, headers={"Accept-Encoding": "br, gzip"}) as answer:
        raw = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(raw) < 200
    assert gzip.decompress(raw) == body
    assert answer.headers["ETag"] == f"W/{plain.headers['ETag']}"
    for live in ("long-poll", "sse"):
        async with proxy.client.stream("GET", f"{STREAM}?offset=-1&live={live}") as answer:
            assert "Content-Encoding" not in answer.headers


# Live readers


async def test_deleting_a_stream_ends_its_live_readers_without_an_end_mark(proxy: Proxy) -> None:
    await create(proxy, body=b"data")
    polling = asyncio.create_task(proxy.client.get(f"{STREAM}?offset=now&live=long-poll"))
    async with proxy.client.stream("GET", f"{STREAM}?offset=-1&live=sse") as answer:
        lines = answer.aiter_lines()
        async for line in lines:
            if "upToDate" in line:
                break
        async with asyncio.timeout(60):
            while proxy.service.readers.count < 2:
                await asyncio.sleep(0.01)
            assert (await proxy.client.delete(STREAM)).status_code == 204
            rest = [line async for line in lines]
    assert not any("streamClosed" in line for line in rest)
    assert_is_problem(await polling, 404, "not_found")
    assert proxy.service.readers.count == 0


async def test_each_reader_of_a_stream_gets_its_own_form_and_cursor_of_what_all_get(proxy: Proxy) -> None:
    far = "99999999"
    forms = ["", f"&cursor={far}", "&encoding=base64", f"&encoding=base64&cursor={far}"] * 2
    pieces = [b"a\n", "é".encode()[:1], "é".encode()[1:] + b"b", b" c"]
    whole_text = "a\néb c"
    await create(proxy)
    async with AsyncExitStack() as stack:
        requests = [proxy.client.stream("GET", f"{STREAM}?offset=-1&live=sse{form}") for form in forms]
        answers = [await stack.enter_async_context(request) for request in requests]
        reads = [answer.aiter_text() for answer in answers]
        texts = [await anext(read) for read in reads]
        for piece in pieces:
            await append(proxy, piece)
        await proxy.client.post(STREAM, headers={"Stream-Closed": "true"})
        texts = [text + "".join([part async for part in read]) for text, read in zip(texts, reads, strict=True)]
    for form, text in zip(forms, texts, strict=True):
        events = [event.split("\n") for event in text.split("\n\n")]
        lines = [
            [line[5:] for line in event if line.startswith("data:")] for event in events if event[0] == "event: data"
        ]
        if "base64" in form:
            got = b"".join(b64decode(line[0]) for line in lines).decode()
        else:
            got = "".join("\n".join(line.removeprefix(" ") for line in event) for event in lines)
        assert got == whole_text
        cursors = re.findall(r'"streamCursor":"(\d+)"', text)
        assert len(cursors) > 2
        assert all((int(cursor) > int(far)) == (far in form) for cursor in cursors)
        assert text.count('"streamClosed":true') == 1


async def test_a_stream_that_is_read_live_does_not_expire_and_one_that_is_not_does(proxy: Proxy) -> None:
    await create(proxy, Stream_TTL="2")
    await create(proxy, "/v1/stream/unread", Stream_TTL="2")
    async with proxy.client.stream("GET", f"{STREAM}?offset=-1&live=sse"):
        async with asyncio.timeout(60):
            while (await proxy.client.head("/v1/stream/unread")).status_code != 404:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
        head = await proxy.client.head(STREAM)
        assert (head.status_code, head.headers["Stream-TTL"]) == (200, "2")
    async with asyncio.timeout(60):
        while (await proxy.client.head(STREAM)).status_code != 404:
            await asyncio.sleep(0.05)


async def test_an_expired_stream_ends_its_live_readers(proxy: Proxy) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    await create(proxy, Stream_Expires_At=soon)
    async with asyncio.timeout(60):
        answer = await proxy.client.get(f"{STREAM}?offset=-1&live=sse")
    assert "streamClosed" not in answer.text


async def test_an_event_source_resumes_by_id_and_is_told_of_the_end(proxy: Proxy) -> None:
    await create(proxy, body=b"one")
    await append(proxy, b"two", Stream_Closed="true")
    whole = await proxy.client.get(f"{STREAM}?offset=-1&live=sse")
    assert whole.text.count("event: data\nid: ") == 1
    rest = await proxy.client.get(
        f"{STREAM}?offset=-1&live=sse", headers={"Last-Event-ID": "0000000000000000_0000000000000003"}
    )
    assert "data:two" in rest.text
    assert "one" not in rest.text
    end = {"Last-Event-ID": "0000000000000000_0000000000000006"}
    assert (await proxy.client.get(f"{STREAM}?offset=-1&live=sse", headers=end)).status_code == 204


async def test_cursors_never_go_back(proxy: Proxy) -> None:
    await create(proxy, body=b"data")
    cursor = "1"
    for _ in range(5):
        answer = await proxy.client.get(f"{STREAM}?offset=-1&live=long-poll&cursor={cursor}")
        assert int(answer.headers["Stream-Cursor"]) > int(cursor)
        cursor = answer.headers["Stream-Cursor"]


async def test_readers_that_leave_are_noticed(proxy: Proxy) -> None:
    await create(proxy, body=b"data")
    tasks = len(asyncio.all_tasks())
    request = f"GET {STREAM}?offset=-1&live=sse HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    peers = []
    for _ in range(200):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))
        writer.write(request)
        await reader.readuntil(b"upToDate")
        peers.append(writer)
    assert proxy.service.readers.count == 200
    for writer in peers:
        writer.transport.abort()
    async with asyncio.timeout(20):
        while proxy.service.readers.count or len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.01)
    assert (await append(proxy, b"more")).status_code == 204


# What is ours


async def test_the_registry_tells_of_creations_and_deletions(proxy: Proxy) -> None:
    registry = "/v1/stream/__registry__"
    empty = await proxy.client.get(registry)
    assert (empty.status_code, empty.json(), empty.headers["Content-Type"]) == (200, [], "application/json")
    await create(proxy, "/v1/stream/ch%C3%A4t/1", Content_Type="text/plain; charset=utf-8")
    await proxy.client.put("/v1/stream/ch%C3%A4t/1", headers={"Content-Type": "text/plain; charset=utf-8"})
    await registered(proxy, 1)
    live = asyncio.create_task(proxy.client.get(f"{registry}?offset=now&live=long-poll"))
    async with asyncio.timeout(60):
        while not proxy.service.readers.count:
            await asyncio.sleep(0.01)
    await proxy.client.delete("/v1/stream/ch%C3%A4t/1")
    (insert, delete) = await registered(proxy, 2)
    assert insert["value"].pop("createdAt").endswith("Z")
    assert insert == {
        "type": "stream",
        "key": "chät/1",
        "value": {"path": "chät/1", "contentType": "text/plain; charset=utf-8"},
        "headers": {"operation": "insert"},
    }
    assert delete == {"type": "stream", "key": "chät/1", "headers": {"operation": "delete"}}
    assert (await live).json() == [delete]


async def test_the_registry_tells_of_what_expired_and_of_what_a_dead_process_did(database_url: str) -> None:
    died = PostgresStore(database_url)
    await died.open()
    await died.create_stream(StreamKey(DEFAULT_TENANT, "a"), StreamConfig("text/plain"))
    expiry = Expiry(expires_at=datetime(2000, 1, 1, tzinfo=UTC))
    await died.create_stream(StreamKey(DEFAULT_TENANT, "b"), StreamConfig("text/plain", expiry))
    await died.close()
    async with serving(PostgresStore(database_url)) as proxy:
        events = await registered(proxy, 3)
    changes = [(event["headers"]["operation"], event["key"]) for event in events]
    assert changes == [("insert", "a"), ("insert", "b"), ("delete", "b")]


async def test_a_large_json_body_is_parsed_beside_the_loop(proxy: Proxy) -> None:
    parsing: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code is split_messages.__code__:
            parsing.append(threading.current_thread().name)

    await create(proxy, Content_Type="application/json")
    body = json.dumps([{"n": n} for n in range(20_000)], separators=(",", ":")).encode()
    # A profile is that of threads which start later, and earlier tests have left some idle.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    threading.setprofile(profile)
    try:
        assert (await append(proxy, body, Content_Type="application/json")).status_code == 204
        assert_is_problem(await append(proxy, body[:-1], Content_Type="application/json"), 400, "invalid_json")
    finally:
        threading.setprofile(None)
    assert len(parsing) == 2
    assert (await proxy.client.get(STREAM)).content == body


async def registered(proxy: Proxy, count: int) -> list[dict[str, Any]]:
    """The registry's events, once there are so many."""
    async with asyncio.timeout(20):
        while True:
            events: list[dict[str, Any]] = (await proxy.client.get("/v1/stream/__registry__")).json()
            if len(events) >= count:
                return events
            await asyncio.sleep(0.01)


async def test_paths_are_decoded_once_and_locations_lead_back(proxy: Proxy) -> None:
    made = await create(proxy, "/v1/stream/a%20b/%3Fc/ch%C3%A4t%2525", b"data")
    location = made.headers["Location"]
    assert location == f"{proxy.url}/v1/stream/a%20b/%3Fc/ch%C3%A4t%2525"
    assert (await proxy.client.get(location)).content == b"data"


async def test_a_duplicate_says_where_the_stream_stands(proxy: Proxy) -> None:
    await create(proxy)
    assert (await append(proxy, b"one", **PRODUCER)).status_code == 200
    await append(proxy, b"two", **{**PRODUCER, "Producer-Seq": "1"})
    again = await append(proxy, b"one", **PRODUCER)
    assert (again.status_code, again.headers["Producer-Seq"], again.headers["Producer-Epoch"]) == (204, "1", "0")
    assert again.headers["Stream-Next-Offset"].endswith("06")


async def test_generations_are_streams_to_read(proxy: Proxy) -> None:
    """A generation's streams are read by the same code, with the same headers."""
    async with upstream(whole(b"hello " * 300, "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    path = "/v1/stream/generations/chat/1"
    data = await proxy.client.get(f"{path}/data")
    assert (data.content, data.headers["Content-Encoding"]) == (b"hello " * 300, "gzip")
    assert data.headers["Cache-Control"] == "no-store"
    known = await proxy.client.get(f"{path}/data", headers={"If-None-Match": data.headers["ETag"]})
    assert known.status_code == 304
    event = await proxy.client.get(f"{path}/control?offset=-1&live=sse")
    assert json.loads(event.text.split("data:")[1].split("\n")[0])[0]["event"] == "done"
    fork = await proxy.client.put("/v1/stream/mine", headers={"Stream-Forked-From": f"{path}/data"})
    assert fork.status_code == 201
    assert (await proxy.client.get("/v1/stream/mine")).content == b"hello " * 300
