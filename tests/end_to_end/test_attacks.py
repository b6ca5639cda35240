"""What a hostile or merely odd caller, reader or upstream can do, staged over real connections."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator

import httpx
import pytest

from streamkeep.storage import MemoryStore, Slice
from streamkeep.storage.postgres import PostgresStore
from tests.raw_http import RawServer, answering
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream, whole


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with serving(MemoryStore()) as served:
        yield served


async def say(proxy: Proxy, data: bytes) -> bytes:
    """One connection: send these bytes, and return all that comes until the other side closes."""
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        async with asyncio.timeout(30):
            return await reader.read(-1)
    finally:
        writer.transport.abort()


async def plain(exchange: Exchange) -> None:
    await exchange.answer(200, b"ok", {"Content-Type": "text/plain"})


async def test_a_cancel_in_the_moment_of_the_claim_leaves_nobody_waiting(proxy: Proxy) -> None:
    host, port = proxy.url.removeprefix("http://").split(":")
    async with upstream(plain) as server:
        for n in range(20):
            creating, cancelling = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
            head = f"POST /api/chat/{n}%s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n%s\r\n"
            creating[1].write((head % ("", f"X-Proxy-Url: {server.url}/\r\n")).encode())
            cancelling[1].write((head % ("/cancel", "")).encode())
            try:
                async with asyncio.timeout(30):
                    assert (await creating[0].readline()).split()[1] in (b"200", b"409")
            finally:
                creating[1].transport.abort()
                cancelling[1].transport.abort()


async def test_creations_after_a_fence_share_one_lease(database_url: str) -> None:
    store = PostgresStore(database_url)
    async with upstream(plain) as server, serving(store) as proxy:
        old = proxy.service.generations._owner
        assert old is not None
        await store.release(old)
        answers = await asyncio.gather(*(proxy.create("chat", str(n), server.url) for n in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert [lease.owner for lease in await store.leases()] == [proxy.service.generations._owner]


async def test_absurd_token_counts_end_one_generation_and_not_the_process(proxy: Proxy) -> None:
    usage = {"candidatesTokenCount": 0, "thoughtsTokenCount": 0}
    text = json.dumps({"candidates": [{"finishReason": "STOP"}], "usageMetadata": usage}).replace("0", "9" * 4300)
    async with upstream(whole(b"data: " + text.encode() + b"\n\n")) as server:
        await proxy.create("chat", "1", server.url)
        async with asyncio.timeout(30):
            assert (await proxy.ending("chat", "1"))["event"] == "done"


async def test_a_body_behind_an_offered_upgrade_reaches_upstream(proxy: Proxy) -> None:
    async with upstream(plain) as server:
        head = (
            f"POST /api/chat/1 HTTP/1.1\r\nHost: x\r\nX-Proxy-Url: {server.url}/\r\nContent-Length: 5\r\n"
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        )
        asking = asyncio.create_task(say(proxy, head.encode() + b"hello"))
        assert (await server.called()).body == b"hello"
        asking.cancel()


async def test_trailers_are_no_headers(proxy: Proxy) -> None:
    async with upstream(plain) as server:
        answer = await say(
            proxy,
            b"POST /api/chat/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            + f"5\r\nhello\r\n0\r\nX-Proxy-Url: {server.url}/\r\n\r\n".encode(),
        )
        assert b"missing_upstream_url" in answer
        assert server.calls == []


async def test_endless_trailers_are_cut_off(proxy: Proxy) -> None:
    host, port = proxy.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /api/chat/1 HTTP/1.1\r\nHost: x\r\nX-Proxy-Url: http://127.0.0.1:1/\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    )
    try:
        with pytest.raises(ConnectionError):  # noqa: PT012  (it may break at any of these)
            for _ in range(100):
                writer.write(b"a: b\r\n" * 10_000)
                await writer.drain()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("status", [200, 404])
async def test_a_content_type_in_utf_8_can_be_read(proxy: Proxy, status: int) -> None:
    head = f'HTTP/1.1 {status} X\r\nContent-Type: text/plain; name="日本"\r\nContent-Length: 2\r\n\r\nhi'
    async with RawServer(answering(head.encode())) as server:
        answer = await proxy.create("chat", "1", server.url)
        if status == 200:
            answer = await proxy.read("chat", "1", live="long-poll")
        assert (answer.status_code, answer.content) == (status, b"hi")


async def test_a_status_beyond_599_is_answered(proxy: Proxy) -> None:
    async with RawServer(answering(b"HTTP/1.1 999 Denied\r\nContent-Length: 2\r\n\r\nno")) as server:
        try:
            answer = await proxy.create("chat", "1", server.url)
        except httpx.RemoteProtocolError:
            pytest.fail("no answer at all")
        assert answer.status_code >= 500


async def test_a_chunked_body_beyond_the_limit_is_413_too() -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 100

    async with (
        serving(MemoryStore(), max_request_bytes=2000, max_buffered_request_bytes=1000) as proxy,
        upstream(plain) as server,
    ):
        answer = await proxy.client.post("/api/chat/1", content=body(), headers={"X-Proxy-Url": server.url})
        assert (answer.status_code, answer.json()["error"]) == (413, "body_too_large")


async def test_text_frames_keep_leading_spaces(proxy: Proxy) -> None:
    text = b"one\n two\n  three"
    async with upstream(whole(text, "text/plain")) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
    frames = (await proxy.read("chat", "1", live="sse")).text
    lines = [line.removeprefix("data:") for line in frames.split("\n\n")[0].split("\n") if line.startswith("data:")]
    # Every standard parser takes one space off.
    assert "\n".join(line.removeprefix(" ") for line in lines).encode() == text


async def test_nothing_is_read_for_a_reader_who_has_left() -> None:
    class Counting(MemoryStore):
        reads = 0

        async def read(self, stream_id: int, position: int, max_bytes: int) -> Slice:
            self.reads += 1
            await asyncio.sleep(0.001)
            return await super().read(stream_id, position, max_bytes)

    store = Counting()
    body = bytes(32 * 1024 * 1024)
    async with (
        upstream(whole(body, "application/octet-stream", chunk_bytes=1 << 20)) as server,
        serving(store) as proxy,
    ):
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
        store.reads = 0
        async with proxy.client.stream("GET", "/stream/data?sessionId=chat&requestId=1&live=sse") as answer:
            await anext(answer.aiter_raw())
        async with asyncio.timeout(30):
            while proxy.service.readers.count:
                await asyncio.sleep(0.01)
        assert store.reads < 64


async def test_the_repeat_of_an_upload_that_broke_off_behind_an_early_answer_joins(proxy: Proxy) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"

    async with RawServer() as server:
        host, port = proxy.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /api/chat/1 HTTP/1.1\r\nHost: x\r\nX-Proxy-Url: {server.url}/\r\nContent-Length: 3000000\r\n\r\n"
        writer.write(head.encode() + b"x" * 1_500_000)
        peer = await server.accept()
        await peer.head()
        await peer.send(answer)
        await peer.delivered()
        await writer.drain()
        writer.transport.abort()
        assert (await proxy.ending("chat", "1"))["bytes"] == 2
        repeat = await proxy.create("chat", "1", server.url + "/", body=b"x" * 3_000_000)
        assert repeat.status_code == 200


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
async def test_a_bomb_is_kept_as_it_is(proxy: Proxy, content_type: str, status: int) -> None:
    """Forty MiB of nothing in 40 KiB: it is stored, looked at for its ending, and read, and never unpacked."""
    bomb = gzip.compress(bytes(40 * 1024 * 1024))

    async def play(exchange: Exchange) -> None:
        await exchange.answer(status, bomb, {"Content-Type": content_type, "Content-Encoding": "gzip"})

    async with upstream(play) as server:
        tracemalloc.start()
        try:
            # The client here would unpack an error's body.
            async with proxy.client.stream("POST", "/api/chat/1", headers={"X-Proxy-Url": server.url}) as answer:
                body = b"".join([piece async for piece in answer.aiter_raw()])
            if status == 400:
                assert (answer.headers["Content-Encoding"], body) == ("gzip", bomb)
            else:
                assert (await proxy.ending("chat", "1"))["bytes"] == len(bomb)
                assert await proxy.read_all("chat", "1") == bomb
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert answer.status_code == status
        assert peak_bytes < 16 * 1024 * 1024


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_an_encoded_body_is_not_stored_as_what_it_is_not(proxy: Proxy, method: str) -> None:
    headers = {"Content-Type": "text/plain"}
    if method == "POST":
        await proxy.client.put("/v1/stream/a", headers=headers)
    for encoding, status in (("gzip", 415), ("identity, br", 415), ("Identity", 201 if method == "PUT" else 204)):
        sent = {**headers, "Content-Encoding": encoding}
        answer = await proxy.client.request(method, "/v1/stream/a", content=gzip.compress(b"hi"), headers=sent)
        assert answer.status_code == status


async def test_an_encoded_request_reaches_upstream_as_it_is(proxy: Proxy) -> None:
    body = gzip.compress(b"{}")
    async with upstream(plain) as server:
        await proxy.create("chat", "1", server.url, body=body, Content_Encoding="gzip")
        call = await server.called()
        assert (call.body, call.header("Content-Encoding")) == (body, "gzip")
