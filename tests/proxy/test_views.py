"""Ways to see a generation's data stream: its events as JSON messages, and bytes whatever their type."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import httpx
import pytest

from streamkeep.proxy.feeds import Piece
from streamkeep.proxy.json_view import Decoding, JsonView
from streamkeep.proxy.readers import Readers
from streamkeep.proxy.rules.event_messages import MAX_EVENT_BYTES, begin
from streamkeep.storage import Append, GenerationKey, MemoryStore, UpstreamHead
from streamkeep.storage.postgres import PostgresStore
from streamkeep.storage.rules.json_messages import to_array
from streamkeep.storage.rules.offsets import format_offset
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Script, upstream, whole

EVENTS = b': hello\n\ndata: {"n": 1}\n\nevent: x\r\ndata: {"n":\r\ndata: 2}\r\n\r\ndata: words\n\ndata: [DONE]\n\n'
MESSAGES = [{"n": 1}, {"n": 2}, {"type": "text", "text": "words"}]
ENDS = [format_offset(len(EVENTS[: EVENTS.index(end) + len(end)])) for end in (b"1}\n\n", b"2}\r\n\r", b"words\n\n")]


def breaks_off(body: bytes) -> Script:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(body)
        exchange.reset()

    return play


async def generate(proxy: Proxy, script: Script, view: str | None = None) -> dict[str, Any]:
    """A generation that has ended."""
    async with upstream(script) as server:
        headers = {"X-Proxy-Url": server.url} | ({} if view is None else {"Streamkeep-View": view})
        created = await proxy.client.post("/api/chat/1", headers=headers)
        assert created.status_code == 200, created.text
        await proxy.ending("chat", "1")
    found: dict[str, Any] = created.json()
    return found


async def view(proxy: Proxy, **query: str) -> httpx.Response:
    return await proxy.read("chat", "1", **{"as": "json", **query})


@asynccontextmanager
async def events(proxy: Proxy, **query: str) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The events of a live read: `event`, `id`, and `data` as JSON."""
    parameters = {"sessionId": "chat", "requestId": "1", "as": "json", "live": "sse", **query}
    async with proxy.client.stream("GET", "/stream/data", params=parameters) as answer:
        assert answer.status_code == 200

        async def decoded() -> AsyncIterator[dict[str, Any]]:
            event: dict[str, Any] = {}
            async for line in answer.aiter_lines():
                name, _, value = line.partition(":")
                if name:
                    event[name] = event.get(name, "") + value.removeprefix(" ")
                elif event:
                    yield {**event, "data": json.loads(event["data"])}
                    event = {}

        yield decoded()


async def test_a_catch_up_read_is_an_array_and_resumes_between_messages(proxy: Proxy) -> None:
    await generate(proxy, whole(EVENTS))
    answer = await view(proxy)
    assert answer.json() == MESSAGES
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Upstream-Content-Type"] == "text/event-stream"
    final = format_offset(len(EVENTS))
    ended = {"stream-next-offset": final, "stream-up-to-date": "true", "stream-closed": "true"}
    assert ended.items() <= answer.headers.items()
    for number, offset in enumerate(["-1", *ENDS]):
        assert (await view(proxy, offset=offset)).json() == MESSAGES[number:]
    end = await view(proxy, offset=final)
    assert (end.status_code, end.json(), ended.items() <= end.headers.items()) == (200, [], True)
    by_path = await proxy.client.get("/v1/stream/generations/chat/1/data?as=json&offset=-1")
    assert (by_path.json(), by_path.headers["ETag"]) == (MESSAGES, answer.headers["ETag"])


async def test_entity_tags_differ_from_those_of_the_bytes(proxy: Proxy) -> None:
    await generate(proxy, whole(EVENTS))
    tags = [(await proxy.read("chat", "1", **query)).headers["ETag"] for query in ({}, {"as": "json"})]
    assert len(set(tags)) == 2
    parameters = {"sessionId": "chat", "requestId": "1", "as": "json"}
    for tag, status in zip(tags, (200, 304), strict=True):
        answer = await proxy.client.get("/stream/data", params=parameters, headers={"If-None-Match": tag})
        assert answer.status_code == status


async def test_an_ending_other_than_done_is_a_last_message_that_comes_once(proxy: Proxy) -> None:
    await generate(proxy, breaks_off(b'data: 1\n\ndata: {"brok'))
    reason = (await proxy.ending("chat", "1"))["message"]
    error = {"type": "error", "errorText": reason}
    answer = await view(proxy)
    assert (answer.json(), answer.headers["Stream-Closed"]) == ([1, error], "true")
    after = answer.headers["Stream-Next-Offset"]
    before = format_offset(int(after[17:]) - 1)
    for live in ({}, {"live": "long-poll"}):
        assert (await view(proxy, offset=before, **live)).json() == [error]
    end = await view(proxy, offset=after)
    assert (end.json(), end.headers["Stream-Closed"], end.headers["Stream-Next-Offset"]) == ([], "true", after)
    polled = await view(proxy, offset=after, live="long-poll")
    assert (polled.status_code, polled.headers["Stream-Next-Offset"]) == (204, after)
    url = "/stream/data?sessionId=chat&requestId=1&as=json&live=sse"
    assert (await proxy.client.get(url, headers={"Last-Event-ID": after})).status_code == 204
    async with events(proxy) as decoded:
        seen = [event async for event in decoded]
    assert list(chain.from_iterable(event["data"] for event in seen[:-1] if event["event"] == "data")) == [1, error]
    assert seen[-1]["data"] == {"streamNextOffset": after, "upToDate": True, "streamClosed": True}
    beyond = format_offset(int(after[17:]) + 1)
    for live in ({}, {"live": "long-poll"}, {"live": "sse"}):
        assert (await view(proxy, offset=beyond, **live)).json()["error"] == "invalid_offset"


async def test_head_and_now_tell_the_tail_of_the_view(proxy: Proxy) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(b"data: 1\n\nda")
        await gate.wait()
        await exchange.chunk(b"ta: 2\n\nda")
        exchange.reset()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        while (await proxy.read("chat", "1")).content != b"data: 1\n\nda":
            await asyncio.sleep(0.005)
        parameters = {"sessionId": "chat", "requestId": "1", "as": "json"}
        head = await proxy.client.head("/stream/data", params=parameters)
        now = await view(proxy, offset="now")
        assert head.headers["Stream-Next-Offset"] == now.headers["Stream-Next-Offset"] == format_offset(9)
        assert (now.json(), now.headers["Stream-Up-To-Date"], "ETag" in now.headers) == ([], "true", False)
        assert head.headers["Content-Type"] == "application/json"
        async with events(proxy, offset="now") as decoded:
            first = await anext(decoded)
            assert first["data"].items() >= {"streamNextOffset": format_offset(9), "upToDate": True}.items()
            gate.set()
            rest = [event["data"] async for event in decoded if event["event"] == "data"]
        assert rest[0][0] == 2
        await proxy.ending("chat", "1")
    closed = await proxy.client.head("/stream/data", params=parameters)
    assert closed.headers["Stream-Closed"] == "true"
    assert closed.headers["Stream-Next-Offset"] == (await view(proxy)).headers["Stream-Next-Offset"]
    at_end = await view(proxy, offset="now")
    assert (at_end.json(), at_end.headers["Stream-Next-Offset"]) == ([], closed.headers["Stream-Next-Offset"])


@pytest.mark.parametrize("encoding", [{}, {"encoding": "base64"}])
async def test_live_readers_on_two_instances_get_each_message_once(database_url: str, encoding: dict[str, str]) -> None:
    count = 40
    gates = [asyncio.Event() for _ in range(count)]

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        rest = b""
        for number, gate in enumerate(gates):
            await gate.wait()
            event = rest + b"data: %d\r\n\r\n" % number
            cut = number % 10
            await exchange.chunk(event[: len(event) - cut])
            rest = event[len(event) - cut :]
        await exchange.chunk(rest + b": end\n\n")
        await exchange.end()

    async def follow(proxy: Proxy) -> list[int]:
        seen: list[int] = []
        for gate in gates[:2]:
            gate.set()
        parameters = {"sessionId": "chat", "requestId": "1", "as": "json", "live": "sse", **encoding}
        async with proxy.client.stream("GET", "/stream/data", params=parameters) as answer:
            kind = ""
            async for line in answer.aiter_lines():
                name, _, value = line.partition(":")
                kind = value.strip() if name == "event" else kind
                if name == "data" and kind == "data":
                    seen += json.loads(b64decode(value) if encoding else value)
                    for gate in gates[: len(seen) + 2]:
                        gate.set()
        return seen

    async with (
        serving(PostgresStore(database_url)) as first,
        serving(PostgresStore(database_url)) as second,
        upstream(play) as server,
    ):
        await first.create("chat", "1", server.url)
        async with asyncio.timeout(60):
            found = await asyncio.gather(*(follow(proxy) for proxy in (first, second, first)))
        assert found == [list(range(count))] * 3
        assert (await view(second)).json() == list(range(count))


async def test_readers_of_the_view_share_what_was_decoded() -> None:
    piece = Piece(0, b"data: 1\n\ndata: 2")
    first, held = piece.viewed(begin(0, b""))
    again, held_again = piece.viewed(begin(0, b""))
    assert first is again
    assert held is held_again
    assert first is not None
    assert (first.data, first.start, first.end) == (b"1\x1e", 0, 9)
    rest = Piece(16, b"\n\n")
    assert rest.viewed(held)[0] is rest.viewed(held_again)[0]


async def test_what_takes_long_is_decoded_beside_the_loop_and_once_for_all() -> None:
    loop_thread = threading.get_ident()
    decoding = Decoding()
    piece = Piece(0, b"data: [" + b"1," * 50_000 + b"1]\n\n")
    threads: list[int] = []

    def decode() -> Piece | None:
        threads.append(threading.get_ident())
        return piece.viewed(begin(0, b""))[0]

    found = await asyncio.gather(*(decoding.do(len(piece.data), decode) for _ in range(5)))
    assert found[0] is not None
    assert all(one is found[0] for one in found)
    assert loop_thread not in threads
    await decoding.do(1, decode)
    assert threads[-1] == loop_thread


@pytest.mark.parametrize("seed", range(5))
async def test_readers_that_join_anywhere_get_the_rest(seed: int) -> None:
    choose = random.Random(seed)
    store = MemoryStore()
    owner = await store.register_owner()
    row = (await store.claim(owner, GenerationKey("default", "chat", "1"), b"f")).generation
    await store.start(row, UpstreamHead(200, "text/event-stream"), b"f")
    readers = Readers(store)
    source = JsonView(store, readers.decoding, row.data_stream, row.control_stream)
    body = b"".join(choose.choice([b"data: %d\n\n", b"data: %d\r\n\r\n", b": %d\n\n"]) % n for n in range(300))
    expected = [int(line[6:]) for line in body.splitlines() if line.startswith(b"data")]
    got: list[tuple[int, list[int]]] = []
    position = 0

    async def follow() -> None:
        viewer = await source.viewer((await source.tail()).position)
        seen: list[int] = []
        begun = body.count(b"data", 0, viewer.position)
        with readers.reader(row.data_stream, viewer.held.received, lambda: None, viewer=viewer) as reader:
            while begun + len(seen) < len(expected):
                pieces = await readers.pieces(reader)
                seen += [number for piece in pieces for number in json.loads(to_array(piece.data))]
                if not pieces:
                    await asyncio.sleep(0)
        got.append((begun, seen))

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        while position < len(body):
            tasks.create_task(follow())
            data = body[position : position + choose.choice([1, 2, 5, 50, 500])]
            await store.commit(owner, [Append(row.data_stream, position, data)], [])
            if choose.random() < 0.9:
                readers.appended(row.data_stream, position, data)
            position += len(data)
            await asyncio.sleep(0)
        readers.appended(row.data_stream, position - len(data), data)
    assert got
    for begun, seen in got:
        assert seen == expected[begun:]


async def test_an_event_without_an_end_costs_one_message(proxy: Proxy) -> None:
    chunk = b"x" * (512 * 1024)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(b"data: 1\n\ndata: ")
        for _ in range(2 * MAX_EVENT_BYTES // len(chunk)):
            await exchange.chunk(chunk)
        await exchange.chunk(b"\n\ndata: 2\n\n")
        await exchange.end()

    await generate(proxy, play)
    found: list[Any] = []
    offset = "-1"
    while True:
        answer = await view(proxy, offset=offset)
        found += answer.json()
        offset = answer.headers["Stream-Next-Offset"]
        if "Stream-Closed" in answer.headers:
            break
    assert [found[0], found[1]["type"], found[2]] == [1, "error", 2]
    async with events(proxy) as decoded:
        live = [event["data"] async for event in decoded if event["event"] == "data"]
    assert list(chain.from_iterable(live)) == found


async def test_only_event_streams_have_the_view(proxy: Proxy) -> None:
    await generate(proxy, whole(b"{}", "application/json"))
    for query in ({}, {"live": "long-poll", "offset": "-1"}, {"live": "sse", "offset": "-1"}, {"offset": "now"}):
        answer = await view(proxy, **query)
        assert (answer.status_code, answer.json()["error"]) == (409, "not_an_event_stream")
        assert "application/json" in answer.json()["message"]


async def test_before_upstreams_verdict_the_view_waits_then_says_so() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with serving(MemoryStore(), long_poll_seconds=0.2) as proxy, upstream(play) as server:
        creating = asyncio.create_task(proxy.create("chat", "1", server.url))
        await server.called()
        for query in ({}, {"live": "sse", "offset": "-1"}):
            answer = await view(proxy, **query)
            assert (answer.status_code, answer.json()["error"]) == (503, "not_started")
        await proxy.client.post("/api/chat/1/cancel")
        assert (await creating).status_code == 409
        found = await view(proxy)
        assert [message["type"] for message in found.json()] == ["error"]


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/stream/data?sessionId=chat&requestId=1&as=", "invalid_parameter"),
        ("/stream/data?sessionId=chat&requestId=1&as=JSON", "invalid_parameter"),
        ("/stream/data?sessionId=chat&requestId=1&as=json&as=json", "invalid_parameter"),
        ("/stream/data?sessionId=chat&requestId=1&as=json&offset=5", "invalid_offset"),
        ("/stream/control?sessionId=chat&requestId=1&as=bytes", "invalid_parameter"),
        ("/v1/stream/generations/chat/1/data?as=text", "invalid_parameter"),
        ("/v1/stream/any?as=json", "invalid_parameter"),
    ],
)
async def test_bad_views_are_refused(proxy: Proxy, target: str, code: str) -> None:
    await generate(proxy, whole(EVENTS))
    answer = await proxy.client.get(target)
    assert (answer.status_code, answer.json()["error"]) == (400, code)


@pytest.mark.parametrize("value", ["", "text", "json, json", "\xe9"])
async def test_a_bad_view_header_is_refused_before_upstream_is_called(proxy: Proxy, value: str) -> None:
    async with upstream(whole(EVENTS)) as server:
        headers = [(b"X-Proxy-Url", server.url.encode()), (b"Streamkeep-View", value.encode("latin-1"))]
        answer = await proxy.client.post("/api/chat/1", headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_header")
        assert not server.calls
    assert (await proxy.client.get("/api/chat/1")).status_code == 404


async def test_the_creation_hands_out_the_view_that_was_asked_for(proxy: Proxy) -> None:
    created = await generate(proxy, whole(EVENTS), "json")
    assert (await proxy.client.get(created["streamUrl"])).json() == MESSAGES
    assert (await proxy.client.get(created["controlUrl"])).json()[0]["event"] == "done"
    renewed = await proxy.client.get("/api/chat/1", headers={"Streamkeep-View": "json"})
    assert (await proxy.client.get(renewed.json()["streamUrl"])).json() == MESSAGES
    plain = (await proxy.client.get("/api/chat/1")).json()["streamUrl"]
    assert (await proxy.client.get(plain)).content == EVENTS
    assert (await proxy.client.get(f"{plain}&as=json")).json() == MESSAGES
    forged = plain.replace("requestId=1", "requestId=2") + "&as=json"
    assert (await proxy.client.get(forged)).json()["error"] == "signature_invalid"


async def test_bytes_are_read_as_such_whatever_their_type(proxy: Proxy) -> None:
    created = await generate(proxy, whole(EVENTS), "bytes")
    for live in ("", "&offset=-1&live=long-poll"):
        answer = await proxy.client.get(created["streamUrl"] + live)
        assert (answer.content, answer.headers["Content-Type"]) == (EVENTS, "application/octet-stream")
        assert answer.headers["Upstream-Content-Type"] == "text/event-stream"
    live_answer = await proxy.client.get(created["streamUrl"] + "&offset=-1&live=sse")
    assert live_answer.headers["Stream-SSE-Data-Encoding"] == "base64"
    head = await proxy.client.head(created["streamUrl"])
    assert head.headers["Content-Type"] == "application/octet-stream"
