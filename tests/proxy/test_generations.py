"""One generation, seen from outside: creation, joining, reading, endings, cancelling."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import hashlib
import json
import random
from typing import Any

import httpx
import psutil
import pytest

from streamkeep.proxy.connections import Connection
from streamkeep.proxy.rules.allowlist import Allowed
from streamkeep.storage import Append, Generation, GenerationKey, ItemRefused, MemoryStore, Owner, StoreUnavailable
from tests.serving import Proxy, serving
from tests.upstream import Exchange, full_server, upstream, whole

CHAT = (
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"lo"}}]}\n\n'
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[],'
    b'"usage":{"prompt_tokens":0,"completion_tokens":2,"total_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)
MESSAGE = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m1","usage":{"input_tokens":3}}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"Hi"}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESPONSE = (
    b'event: response.created\ndata: {"type":"response.created","response":{"id":"r1"}}\n\n'
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi"}\n\n'
)


async def test_creation_answers_with_ids_urls_and_what_upstream_said(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        kept = {"x-request-id": "up-1", "x-ratelimit-remaining-requests": "9", "Set-Cookie": "a=b"}
        await exchange.head(201, {"Content-Type": "text/event-stream", **kept})
        await exchange.chunk(CHAT)
        await exchange.end()

    async with upstream(play) as server:
        answer = await proxy.create("chat", "1", f"{server.url}/v1/chat")
    found = answer.json()
    assert answer.status_code == 200
    assert (found["sessionId"], found["requestId"], found["contentType"]) == ("chat", "1", "text/event-stream")
    assert found["upstreamStatus"] == 201
    assert found["upstreamHeaders"] == {"x-request-id": "up-1", "x-ratelimit-remaining-requests": "9"}
    assert "Upstream-Status" not in answer.headers
    data = await proxy.client.get(found["streamUrl"])
    assert data.content == CHAT
    assert data.headers["Content-Type"] == "text/event-stream"
    assert data.headers["x-ratelimit-remaining-requests"] == "9"
    assert data.headers["Upstream-Status"] == "201"


async def test_the_request_goes_on_as_it_came_without_what_is_ours(proxy: Proxy) -> None:
    async with upstream(whole(b"ok", "text/plain")) as server:
        await proxy.create(
            "chat", "1", f"{server.url}/a/b?q=1", body=b"\x00body", Authorization="Bearer vendor", Cookie="a=b"
        )
        call = await server.called()
    assert (call.method, call.path, call.body) == ("POST", "/a/b?q=1", b"\x00body")
    assert call.header("authorization") == "Bearer vendor"
    assert call.header("host") == server.host
    assert call.header("accept-encoding") == "identity"
    names = {name.lower() for name, _ in call.headers}
    assert not names & {"cookie", "x-proxy-url", "x-proxy-method", "streamkeep-key"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "POST"])
async def test_every_upstream_method_is_relayed(proxy: Proxy, method: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, b"" if exchange.method == "HEAD" else b"seen", {"Content-Type": "text/plain"})

    async with upstream(play) as server:
        answer = await proxy.create("chat", "1", server.url + "/", method=method)
        assert answer.status_code == 200
        assert (await server.called()).method == method
        assert await proxy.read_all("chat", "1") == (b"" if method == "HEAD" else b"seen")


BODIES = {
    "text": ("text/plain", "héllo wörld ✓ 🎉\r\nline\rline\n".encode() * 50),
    "binary": ("application/octet-stream", random.Random(1).randbytes(70_000)),
    "gzip": ("application/json", gzip.compress(b'{"a": 1}' * 1000)),
    "empty": ("text/plain", b""),
    "nul and invalid utf-8": ("text/plain", b"\x00\xff\xfe\xed\xa0\x80" * 500),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096])
async def test_t31_bytes_are_equal_on_every_way_to_read(proxy: Proxy, name: str, chunk_bytes: int) -> None:
    content_type, body = BODIES[name]
    body = body[: 600 * chunk_bytes]
    async with upstream(whole(body, content_type, chunk_bytes=chunk_bytes)) as server:
        await proxy.create("chat", "1", server.url)
        event = await proxy.ending("chat", "1")
        assert event["sha256"] == hashlib.sha256(body).hexdigest()
        assert event["bytes"] == len(body)
        assert await proxy.read_all("chat", "1") == body
        assert (await proxy.read("chat", "1")).content == body
        assert await sse_bytes(proxy, "chat", "1") == body


async def test_t1_every_way_to_read_goes_on_from_every_byte(proxy: Proxy) -> None:
    body = "Grüße 🌊\r\n\n水の流れ 🌊🌊\r\n".encode()
    async with upstream(whole(body, "text/plain", chunk_bytes=7)) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
        for cut in range(len(body) + 1):
            offset = f"{0:016d}_{cut:016d}"
            caught_up = (await proxy.read("chat", "1", offset=offset)).content
            pushed = await sse_bytes(proxy, "chat", "1", cut)
            polled = await proxy.read_all("chat", "1", offset)
            assert {body[:cut] + rest for rest in (caught_up, pushed, polled)} == {body}


async def test_an_encoded_body_is_stored_as_it_came_and_said_so(proxy: Proxy) -> None:
    body = gzip.compress(b"hello" * 100)

    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, body, {"Content-Type": "text/plain", "Content-Encoding": "gzip"})

    async with upstream(play) as server:
        created = (await proxy.create("chat", "1", server.url)).json()
        assert created["upstreamHeaders"]["content-encoding"] == "gzip"
        answer = await proxy.read("chat", "1", live="long-poll", offset="-1")
        assert answer.headers["Upstream-Content-Encoding"] == "gzip"
        assert answer.content == body


async def test_ten_megabytes_in_one_response(proxy: Proxy) -> None:
    body = random.Random(2).randbytes(10 * 1024 * 1024)
    async with upstream(whole(body, "application/octet-stream", chunk_bytes=60_000)) as server:
        await proxy.create("chat", "1", server.url)
        got = await proxy.read_all("chat", "1")
    assert hashlib.sha256(got).digest() == hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (204, {}, b""),
        (200, {"Content-Length": "0"}, b""),
        (200, {"Transfer-Encoding": "chunked"}, b"0\r\n\r\n"),
        (200, {"Connection": "close"}, b""),
    ],
    ids=["204", "no length", "no chunk", "closed"],
)
async def test_t15_a_2xx_without_a_body_ends_done(
    proxy: Proxy, status: int, headers: dict[str, str], body: bytes
) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(status, headers, is_chunked=False)
        await exchange.send(body)

    async with upstream(play) as server:
        assert (await proxy.create("chat", "1", server.url)).json()["upstreamStatus"] == status
        event = await proxy.ending("chat", "1")
        assert await proxy.read_all("chat", "1") == await sse_bytes(proxy, "chat", "1") == b""
    assert (event["event"], event["code"], event["bytes"]) == ("done", "complete", 0)


async def test_usage_stands_in_the_terminal_event_and_a_zero_stays_zero(proxy: Proxy) -> None:
    async with upstream(whole(CHAT, chunk_bytes=11)) as server:
        await proxy.create("chat", "1", server.url)
        event = await proxy.ending("chat", "1")
    assert event["usage"] == {"inputTokens": 0, "outputTokens": 2, "source": "provider_final"}
    assert event["offset"] == f"{0:016d}_{len(CHAT):016d}"
    assert event["retryable"] is False
    assert event["durationMs"] >= 0


async def test_fifty_readers_from_fifty_offsets_at_random_moments_are_all_equal(proxy: Proxy) -> None:
    rng = random.Random(3)
    pieces = [rng.randbytes(rng.randint(1, 400)) for _ in range(200)]
    body = b"".join(pieces)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/octet-stream"})
        for piece in pieces:
            await exchange.chunk(piece)
            await asyncio.sleep(0.003)
        await exchange.end()

    async def reader(number: int) -> None:
        await asyncio.sleep(rng.random() * 0.8)
        available = (await proxy.client.head("/stream/data", params={"sessionId": "chat", "requestId": "1"})).headers
        tail = int(available["Stream-Next-Offset"][17:])
        start = number * tail // 50
        if number % 2:
            got = await sse_bytes(proxy, "chat", "1", start)
        else:
            got = await proxy.read_all("chat", "1", f"{0:016d}_{start:016d}")
        assert got == body[start:]

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        async with asyncio.TaskGroup() as readers:
            for number in range(50):
                readers.create_task(reader(number))


async def test_t23_twenty_identical_posts_make_one_upstream_call(proxy: Proxy) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await gate.wait()
        await whole(CHAT)(exchange)

    async with upstream(play) as server:
        posts = [asyncio.create_task(proxy.create("chat", "1", server.url, body=b'{"a":1}')) for _ in range(20)]
        await server.called()
        gate.set()
        answers = await asyncio.gather(*posts)
        assert {answer.status_code for answer in answers} == {200}
        assert sum("Streamkeep-Replayed" not in answer.headers for answer in answers) == 1
        bodies = {await proxy.read_all("chat", "1") for _ in range(3)}
        again = await proxy.create("chat", "1", server.url, body=b'{"a":1}')
        assert again.status_code == 200
        assert again.headers["Streamkeep-Replayed"] == "true"
        assert len(server.calls) == 1
    assert bodies == {CHAT}


async def test_the_same_ids_with_another_request_conflict(proxy: Proxy) -> None:
    async with upstream(whole(b"x", "text/plain")) as server:
        await proxy.create("chat", "1", server.url, body=b"one")
        for answer in (
            await proxy.create("chat", "1", server.url, body=b"two"),
            await proxy.create("chat", "1", server.url + "/other", body=b"one"),
            await proxy.create("chat", "1", server.url, body=b"one", method="PUT"),
        ):
            assert (answer.status_code, answer.json()["error"]) == (409, "request_conflict")
        assert len(server.calls) == 1


async def test_an_upstream_error_comes_back_whole_and_frees_the_ids(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        if len(server.calls) == 1:
            headers = {"Content-Type": "application/json", "x-request-id": "r", "x-should-retry": "false"}
            await exchange.answer(400, b'{"error":{"message":"no"}}', headers)
        else:
            await whole(b"fine", "text/plain")(exchange)

    async with upstream(play) as server:
        answer = await proxy.create("chat", "1", server.url)
        assert answer.status_code == 400
        assert answer.headers["Upstream-Status"] == "400"
        assert answer.headers["x-request-id"] == "r"
        assert answer.json() == {"error": {"message": "no"}}
        assert (await proxy.read("chat", "1")).status_code == 404
        assert (await proxy.client.get("/api/chat/1")).status_code == 404
        assert (await proxy.create("chat", "1", server.url)).status_code == 200
        assert await proxy.read_all("chat", "1") == b"fine"


async def test_t25_429_and_503_are_tried_again_before_the_first_byte(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        if len(server.calls) < 3:
            await exchange.answer(429 if len(server.calls) == 1 else 503, b"busy", {"Retry-After": "0"})
        else:
            await whole(b"fine", "text/plain")(exchange)

    async with upstream(play) as server:
        assert (await proxy.create("chat", "1", server.url)).status_code == 200
        assert len(server.calls) == 3


async def test_t25_a_long_retry_after_is_handed_to_the_caller_at_once(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(429, b"busy", {"Retry-After": "3600"})

    async with upstream(play) as server:
        answer = await proxy.create("chat", "1", server.url)
        assert (answer.status_code, answer.headers["Retry-After"], len(server.calls)) == (429, "3600", 1)


async def test_t25_a_request_that_was_sent_and_not_answered_is_never_sent_again(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        exchange.reset()

    async with upstream(play) as server:
        for _ in range(2):
            answer = await proxy.create("chat", "1", server.url)
            assert (answer.status_code, answer.json()["error"]) == (502, "upstream_failed")
            assert "streamUrl" in answer.json()
            assert "Upstream-Status" not in answer.headers
        assert len(server.calls) == 1
    assert (await proxy.ending("chat", "1"))["code"] == "upstream_failed"


async def test_an_unreachable_upstream_is_502_and_frees_the_ids(proxy: Proxy) -> None:
    async with upstream(whole(b"x")) as server:
        url = server.url
    answer = await proxy.create("chat", "1", url)
    assert (answer.status_code, answer.json()["error"]) == (502, "upstream_unreachable")
    assert (await proxy.client.get("/api/chat/1")).status_code == 404


async def test_redirects_are_refused(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(302, b"", {"Location": "http://127.0.0.1:1/"})

    async with upstream(play) as server:
        answer = await proxy.create("chat", "1", server.url)
    assert (answer.status_code, answer.json()["error"]) == (502, "redirect_refused")


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (CHAT, "complete"),
        (CHAT.partition(b'data: {"id":"c1","object":"chat.completion.chunk","choices":[],')[0], "complete"),
        (b"\n\n".join([*CHAT.split(b"\n\n")[:2], b"data: [DONE]\n\n"]), "complete"),
        (CHAT[:220], "truncated"),
        (MESSAGE, "complete"),
        (MESSAGE.partition(b"event: message_stop")[0], "truncated"),
        (RESPONSE + b'event: response.completed\ndata: {"type":"response.completed"}\n\n', "complete"),
        (RESPONSE + b'event: response.incomplete\ndata: {"type":"response.incomplete"}\n\n', "complete"),
        (RESPONSE, "truncated"),
        (b'data: {"error":{"message":"overloaded"}}\n\n', "upstream_failed"),
        (b"data: anything\n\n", "complete"),
    ],
    ids=[
        *("all marks", "finish reason alone", "done mark alone", "no mark"),
        *("message stop", "no message stop", "response completed", "response incomplete", "no end of response"),
        *("error in band", "unknown format"),
    ],
)
async def test_t13_a_clean_close_is_labelled_truthfully(proxy: Proxy, sent: bytes, code: str) -> None:
    async with upstream(whole(sent)) as server:
        await proxy.create("chat", "1", server.url)
        event = await proxy.ending("chat", "1")
        assert (event["event"], event["code"]) == ("done" if code == "complete" else "error", code)
        assert await proxy.read_all("chat", "1") == sent


@pytest.mark.parametrize(("sent", "code"), [(CHAT, "complete"), (CHAT[:220], "upstream_failed")])
async def test_t25_a_break_is_a_failure_unless_the_end_mark_had_come_and_calls_nobody_again(
    proxy: Proxy, sent: bytes, code: str
) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(sent)
        await proxy_has(proxy, len(sent))
        exchange.reset()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        assert (await proxy.ending("chat", "1"))["code"] == code
        assert await proxy.read_all("chat", "1") == sent
        assert (await proxy.create("chat", "1", server.url)).headers["Streamkeep-Replayed"] == "true"
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nnonsense",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi",
    ],
    ids=["chunks", "coding", "length"],
)
async def test_a_broken_answer_is_no_work_for_the_collector(proxy: Proxy, wire: bytes) -> None:
    def connections() -> list[Connection]:
        return [one for one in gc.get_objects() if type(one) is Connection]

    async def play(exchange: Exchange) -> None:
        await exchange.send(wire)

    async with upstream(play) as server:
        before = connections()
        gc.disable()
        try:
            await proxy.create("chat", "1", server.url)
            assert (await proxy.ending("chat", "1"))["code"] == "upstream_failed"
            async with asyncio.timeout(30):
                while len(connections()) > len(before):
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()


async def test_a_wrong_length_is_a_failure_and_all_bytes_are_kept(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain", "Content-Length": "100"}, is_chunked=False)
        await exchange.send(b"short")

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        assert (await proxy.ending("chat", "1"))["code"] == "upstream_failed"
        assert await proxy.read_all("chat", "1") == b"short"


async def test_t18_cancel_closes_the_socket_keeps_the_bytes_and_is_idempotent(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(b"data: one\n\n")
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        await proxy_has(proxy, 11)
        for _ in range(2):
            answer = await proxy.client.post("/api/chat/1/cancel")
            assert (answer.status_code, answer.json()) == (200, {"state": "cancelled"})
        await asyncio.wait_for(server.calls[0].is_gone.wait(), 30)
    event = await proxy.ending("chat", "1")
    assert (event["event"], event["code"], event["bytes"]) == ("cancelled", "cancelled", 11)
    assert await proxy.read_all("chat", "1") == b"data: one\n\n"


async def test_t17_after_an_abort_both_streams_are_closed_and_nothing_can_be_appended(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(b"one")
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        await proxy_has(proxy, 3)
        row = await proxy.service.store.generation(GenerationKey("default", "chat", "1"))
        assert row is not None
        await proxy.client.post("/api/chat/1/cancel")
        for which, size in (("data", 3), ("control", None)):
            answer = await proxy.read("chat", "1", which, offset="now")
            assert answer.headers["Stream-Closed"] == "true"
            assert size is None or answer.headers["Stream-Next-Offset"] == f"{0:016d}_{size:016d}"
            path = f"/v1/stream/generations/chat/1/{which}"
            refused = await proxy.client.post(path, content=b"more", headers={"Content-Type": "text/plain"})
            assert refused.status_code == 403
        # Not by its owner either: the store itself says that the stream has ended.
        with pytest.raises(ItemRefused):
            await proxy.service.store.commit(row.owner, [Append(row.data_stream, 3, b"more")], [])
        assert await proxy.read_all("chat", "1") == b"one"
    assert (await proxy.ending("chat", "1"))["code"] == "cancelled"


async def test_t20_cancel_before_the_first_byte_stops_the_call_and_tells_the_caller(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        post = asyncio.create_task(proxy.create("chat", "1", server.url))
        call = await server.called()
        assert (await proxy.client.post("/api/chat/1/cancel")).json() == {"state": "cancelled"}
        await asyncio.wait_for(call.is_gone.wait(), 30)
        answer = await post
    assert (answer.status_code, answer.json()["error"]) == (409, "cancelled")
    assert (await proxy.ending("chat", "1"))["usage"] is None


async def test_t20_cancel_while_connecting_leaves_no_socket_and_tells_the_caller(proxy: Proxy) -> None:
    with full_server("127.0.0.1", 0) as port:
        before = knocking_at(port)
        post = asyncio.create_task(proxy.create("chat", "1", f"http://127.0.0.1:{port}/"))
        async with asyncio.timeout(60):
            while knocking_at(port) == before:
                await asyncio.sleep(0.005)
        assert (await proxy.client.post("/api/chat/1/cancel")).json() == {"state": "cancelled"}
        assert knocking_at(port) == before
        answer = await post
    assert (answer.status_code, answer.json()["error"]) == (409, "cancelled")
    event = await proxy.ending("chat", "1")
    assert (event["code"], event["bytes"], event["usage"]) == ("cancelled", 0, None)


def knocking_at(port: int) -> int:
    """How many sockets of this process wait for a server to take them."""
    found = psutil.Process().net_connections("tcp")
    return sum(c.status == psutil.CONN_SYN_SENT and c.raddr.port == port for c in found)


async def test_cancel_after_the_end_tells_how_it_ended_and_404_for_nothing(proxy: Proxy) -> None:
    async with upstream(whole(CHAT)) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    assert (await proxy.client.post("/api/chat/1/cancel")).json() == {"state": "done"}
    assert (await proxy.client.post("/api/chat/none/cancel")).status_code == 404


async def test_the_generation_goes_on_when_its_creator_leaves_before_the_first_byte(proxy: Proxy) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await gate.wait()
        await whole(CHAT)(exchange)

    async with upstream(play) as server:
        post = asyncio.create_task(proxy.create("chat", "1", server.url))
        await server.called()
        post.cancel()
        resumed = await proxy.client.post("/api/chat/other", headers={"X-Resume-Active-Generation": "true"})
        assert (resumed.status_code, resumed.json()["requestId"]) == (200, "1")
        reading = asyncio.create_task(proxy.read_all("chat", "1"))
        gate.set()
        assert await reading == CHAT


async def test_resume_finds_the_named_or_the_newest_running_generation_and_never_calls(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        resume = {"X-Resume-Active-Generation": ""}
        assert (await proxy.client.post("/api/chat/any", headers=resume)).status_code == 204
        for request_id in ("1", "2"):
            await proxy.create("chat", request_id, server.url)
        assert (await proxy.client.post("/api/chat/1", headers=resume)).json()["requestId"] == "1"
        assert (await proxy.client.post("/api/chat/any", headers=resume)).json()["requestId"] == "2"
        assert (await proxy.client.post("/api/other/1", headers=resume)).status_code == 204
        found = (await proxy.client.get("/api/chat/active")).json()
        assert [(g["requestId"], g["state"]) for g in found] == [("2", "running"), ("1", "running")]
        for request_id in ("1", "2"):
            await proxy.client.post(f"/api/chat/{request_id}/cancel")
        assert (await proxy.client.post("/api/chat/1", headers=resume)).status_code == 204
        assert len(server.calls) == 2
        found = (await proxy.client.get("/api/chat/active")).json()
        assert {g["state"] for g in found} == {"cancelled"}


async def test_a_large_body_streams_through_and_a_repeat_joins_or_conflicts(proxy: Proxy) -> None:
    body = random.Random(4).randbytes(3 * 1024 * 1024)
    async with upstream(whole(b"got it", "text/plain")) as server:
        assert (await proxy.create("chat", "1", server.url, body=body)).status_code == 200
        assert (await server.called()).body == body
        assert (await proxy.create("chat", "1", server.url, body=body)).headers["Streamkeep-Replayed"] == "true"
        other = await proxy.create("chat", "1", server.url, body=body[:-1] + b"!")
        assert (other.status_code, other.json()["error"]) == (409, "request_conflict")
        assert len(server.calls) == 1


async def test_a_repeat_joins_although_upstream_answered_before_it_had_the_whole_body(proxy: Proxy) -> None:
    body = random.Random(4).randbytes(3 * 1024 * 1024)

    async def answer_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nearly")
        await writer.drain()
        while await reader.read(65_536):
            pass
        writer.close()

    server = await asyncio.start_server(answer_early, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    assert (await proxy.create("chat", "1", url, body=body)).status_code == 200
    assert await proxy.read_all("chat", "1") == b"early"
    assert (await proxy.create("chat", "1", url, body=body)).headers["Streamkeep-Replayed"] == "true"
    server.close()
    await server.wait_closed()


async def test_reads_before_the_verdict_hold_then_say_try_again(proxy: Proxy) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await gate.wait()
        await whole(b"now", "text/plain")(exchange)

    async with upstream(play) as server:
        post = asyncio.create_task(proxy.create("chat", "1", server.url))
        await server.called()
        control = await proxy.read("chat", "1", "control")
        assert (control.status_code, control.json()) == (200, [])
        early = await proxy.read("chat", "1")
        assert (early.status_code, early.headers["Retry-After"]) == (503, "1")
        reading = asyncio.create_task(sse_bytes(proxy, "chat", "1"))
        gate.set()
        await post
        assert await reading == b"now"


async def test_responses_beyond_the_limit_end_too_large() -> None:
    async with (
        serving(MemoryStore(), max_response_bytes=1000) as proxy,
        upstream(whole(b"x" * 5000, "text/plain", chunk_bytes=300)) as server,
    ):
        await proxy.create("chat", "1", server.url)
        event = await proxy.ending("chat", "1")
        assert (event["code"], event["bytes"]) == ("too_large", 1000)


@pytest.mark.parametrize(
    ("settings", "code", "status"),
    [
        ({"first_byte_seconds": 0.2, "connect_seconds": 2.0}, "timed_out", 504),
        ({"total_seconds": 1.0}, "timed_out", 504),
    ],
)
async def test_an_upstream_that_does_not_answer_times_out(settings: dict[str, Any], code: str, status: int) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with serving(MemoryStore(), **settings) as proxy, upstream(play) as server:
        answer = await proxy.create("chat", "1", server.url)
        assert (answer.status_code, answer.json()["error"]) == (status, code)
        await asyncio.wait_for(server.calls[0].is_gone.wait(), 30)
        assert (await proxy.ending("chat", "1"))["code"] == code


@pytest.mark.parametrize(
    ("settings", "code"), [({"idle_seconds": 0.3}, "stalled"), ({"total_seconds": 1.0}, "timed_out")]
)
async def test_an_upstream_that_falls_silent_is_ended(settings: dict[str, Any], code: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(b"data: one\n\n")
        await exchange.is_gone.wait()

    async with serving(MemoryStore(), **settings) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        assert (await proxy.ending("chat", "1"))["code"] == code
        assert await proxy.read_all("chat", "1") == b"data: one\n\n"


@pytest.mark.parametrize(
    ("clock", "code"), [("idle=0.3", "stalled"), ("total=0.5", "timed_out"), ("total=9, idle=0.3", "stalled")]
)
async def test_a_request_may_give_upstream_less_time(proxy: Proxy, clock: str, code: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(b"data: one\n\n")
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        await proxy.create("chat", "1", server.url, Streamkeep_Timeout=clock)
        assert (await proxy.ending("chat", "1"))["code"] == code
        assert server.calls[0].header("Streamkeep-Timeout") is None


async def test_a_request_may_give_upstream_less_time_for_its_first_byte(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        answer = await proxy.create("chat", "1", server.url, Streamkeep_Timeout="connect=0.2, first_byte=0.2")
        assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")


PINGS = {
    "text/event-stream": [b": keep-alive\n\n", b'event: ping\ndata: {"type": "ping"}\n\n', b"event: pi", b"ng\n\n"],
    "application/json": [b"\n", b" "],
}


@pytest.mark.parametrize("content_type", PINGS)
async def test_t29_an_upstream_that_sends_only_pings_is_stalled(content_type: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": content_type})
        while not exchange.is_gone.is_set():
            for ping in PINGS[content_type]:
                await exchange.chunk(ping)
                await asyncio.sleep(0.02)

    async with serving(MemoryStore(), idle_seconds=0.5) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        event = await proxy.ending("chat", "1")
        assert event["code"] == "stalled"
        assert event["durationMs"] >= 500
        body = await proxy.read_all("chat", "1")
        assert event["sha256"] == hashlib.sha256(body).hexdigest()
        assert len(body) == event["bytes"] >= 10


async def test_t29_a_model_that_thinks_for_less_than_its_limit_is_not() -> None:
    async def think(exchange: Exchange) -> None:
        for _ in range(3):
            if exchange.path == "/pings":
                await exchange.chunk(b": thinking\n\n")
            await asyncio.sleep(0.1)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        for _ in range(15):
            await think(exchange)
            await exchange.chunk(CHAT.partition(b"\n\n")[0] + b"\n\n")
        await exchange.chunk(CHAT)
        await exchange.end()

    # All silences together are longer than the limit; none is alone.
    async with serving(MemoryStore(), idle_seconds=4.0) as proxy, upstream(play) as server:
        for name in ("pings", "silence"):
            await proxy.create("chat", name, f"{server.url}/{name}")
        for name in ("pings", "silence"):
            assert (await proxy.ending("chat", name))["code"] == "complete"


class Forgetful(MemoryStore):
    """Finds no generation while it `is_away`."""

    is_away = False

    async def generation(self, key: GenerationKey) -> Generation | None:
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().generation(key)


async def test_who_records_a_generation_finds_it_without_the_store_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamkeep.proxy.generations._BELIEVED_SECONDS", 3600.0)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(CHAT)
        await exchange.is_gone.wait()

    store = Forgetful()
    async with serving(store) as proxy, upstream(play) as server:
        created = await proxy.create("chat", "1", server.url)
        assert await proxy.available(len(CHAT)) == CHAT
        store.is_away = True
        found = await proxy.client.get("/api/chat/1")
        assert (found.status_code, found.json()["state"]) == (200, "running")
        assert found.json()["createdAt"] == created.json()["createdAt"]
        assert (await proxy.read("chat", "1")).content == CHAT
        assert (await proxy.read("chat", "2")).status_code == 503
        store.is_away = False
        assert (await proxy.client.post("/api/chat/1/cancel")).json() == {"state": "cancelled"}
        assert (await proxy.client.get("/api/chat/1")).json()["state"] == "cancelled"


class CutOff(Forgetful):
    """Refuses one more call while it `is_away`."""

    def __init__(self, refused: str) -> None:
        super().__init__()
        self._refused = refused

    async def renew(self, owner: Owner) -> None:
        self._refuse_if("renew")
        await super().renew(owner)

    async def cancel_requests(self, owner: Owner) -> list[int]:
        self._refuse_if("cancel_requests")
        return await super().cancel_requests(owner)

    def _refuse_if(self, asked: str) -> None:
        if self.is_away and asked == self._refused:
            raise StoreUnavailable("away")


# By the one a process learns that it was taken for dead, and by the other what was deleted.
@pytest.mark.parametrize("refused", ["renew", "cancel_requests"])
async def test_who_is_cut_off_answers_nothing_from_memory(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "streamkeep.proxy.generations"
    for every, believed in (("HEARTBEAT_SECONDS", "LEASE_SECONDS"), ("_CANCEL_POLL_SECONDS", "_BELIEVED_SECONDS")):
        monkeypatch.setattr(f"{module}.{every}", 0.02)
        monkeypatch.setattr(f"{module}.{believed}", 0.2)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.is_gone.wait()

    store = CutOff(refused)
    async with serving(store) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        for is_away, status in ((True, 503), (False, 200)):
            store.is_away = is_away
            async with asyncio.timeout(60):
                while (await proxy.client.get("/api/chat/1")).status_code != status:
                    await asyncio.sleep(0.005)


async def test_the_url_of_a_call_is_forgotten_with_it(proxy: Proxy) -> None:
    async with upstream(whole(b"x", "text/plain")) as server:
        await proxy.create("chat", "1", f"{server.url}/v1?key=the-callers")
        await proxy.ending("chat", "1")
    async with asyncio.timeout(60):
        while any(type(one) is Allowed and one.resource == b"/v1?key=the-callers" for one in gc.get_objects()):
            await asyncio.sleep(0.01)
            gc.collect()


async def test_silence_after_the_end_mark_is_a_finished_answer() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(CHAT)
        await exchange.is_gone.wait()

    async with serving(MemoryStore(), idle_seconds=0.3) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        assert (await proxy.ending("chat", "1"))["code"] == "complete"


async def proxy_has(proxy: Proxy, size: int) -> None:
    """Wait until so many bytes are readable."""
    async with asyncio.timeout(30):
        while (await proxy.service.store.tails([await data_stream(proxy)]))[await data_stream(proxy)].position < size:
            await asyncio.sleep(0.005)


async def data_stream(proxy: Proxy) -> int:
    row = await proxy.service.store.generation(GenerationKey("default", "chat", "1"))
    assert row is not None
    return row.data_stream


async def sse_bytes(proxy: Proxy, session_id: str, request_id: str, start: int = 0) -> bytes:
    """The bytes of a base64 SSE read, until the stream is closed."""
    params = {
        "sessionId": session_id,
        "requestId": request_id,
        "live": "sse",
        "encoding": "base64",
        "offset": f"{0:016d}_{start:016d}",
    }
    body = b""
    async with proxy.client.stream("GET", "/stream/data", params=params) as answer:
        assert answer.status_code == 200
        assert answer.headers["Stream-SSE-Data-Encoding"] == "base64"
        event = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data:"):
                payload = line[5:].strip()
                if event == "data":
                    body += base64.b64decode(payload)
                elif json.loads(payload).get("streamClosed"):
                    assert json.loads(payload)["streamNextOffset"] == f"{0:016d}_{start + len(body):016d}"
                    return body
    raise httpx.RemoteProtocolError("ended without an end mark")
