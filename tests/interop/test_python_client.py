"""The published Python client of the open protocol, unmodified, against a served proxy on Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import pytest
from durable_streams import (
    AsyncDurableStream,
    DurableStreamError,
    SeqConflictError,
    StreamExistsError,
    StreamNotFoundError,
    astream,
    stream,
)

from streamkeep.storage.postgres import PostgresStore
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with serving(PostgresStore(database_url)) as served:
        yield served


async def test_a_stream_lives_from_creation_to_deletion(proxy: Proxy) -> None:
    url = f"{proxy.url}/v1/stream/interop/life"
    handle = await AsyncDurableStream.create(url, content_type="text/plain", ttl_seconds=600, body="hello")
    async with handle:
        with pytest.raises(StreamExistsError):
            await AsyncDurableStream.create(url, content_type="application/json")
        appended = await asyncio.gather(*(handle.append(" world") for _ in range(20)))
        assert max(result.next_offset for result in appended) == at(125)
        await handle.append("!", seq="0001")
        with pytest.raises(SeqConflictError):
            await handle.append("?", seq="0001")
        head = await handle.head()
        assert (head.content_type, head.offset) == ("text/plain", at(126))
        async with handle.stream(live=False) as whole, handle.stream(live=False, offset=at(120)) as rest:
            assert await whole.read_text() == "hello" + " world" * 20 + "!"
            assert await rest.read_bytes() == b"world!"
        await handle.delete()
        with pytest.raises(StreamNotFoundError):
            await handle.head()
        with pytest.raises(DurableStreamError):
            await handle.append("late")


@pytest.mark.parametrize("live", ["sse", "long-poll", "auto"])
async def test_json_messages_are_read_live_one_by_one(proxy: Proxy, live: Literal["sse", "long-poll", "auto"]) -> None:
    url = f"{proxy.url}/v1/stream/interop/messages"
    messages = [{"number": number, "text": "é\n€"} for number in range(300)]
    async with await AsyncDurableStream.create(url, content_type="application/json") as handle:

        async def write() -> None:
            for start in range(0, len(messages), 10):
                await asyncio.gather(*(handle.append(message) for message in messages[start : start + 10]))

        writing = asyncio.create_task(write())
        seen: list[object] = []
        async with asyncio.timeout(30), astream(url, offset="-1", live=live) as response:
            async for message in response.iter_json():
                seen.append(message)
                if len(seen) == len(messages):
                    break
        await writing
    assert seen == messages


async def test_bytes_are_read_over_many_pages(proxy: Proxy) -> None:
    url = f"{proxy.url}/v1/stream/interop/bytes"
    data = bytes(range(256)) * 12_000
    handle = await AsyncDurableStream.create(url, content_type="application/octet-stream", body=data)
    async with handle, handle.stream(live=False) as response:
        pages = [page async for page in response]
    assert b"".join(pages) == data
    assert len(pages) > 1


@pytest.mark.parametrize("content_type", ["application/octet-stream", "text/plain", "text/event-stream"])
async def test_a_generation_is_caught_up_by_its_signed_url(proxy: Proxy, content_type: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": content_type})
        for piece in (b"data: one\n\n", b"data: tw", b"o\n\n"):
            await exchange.chunk(piece)
        await exchange.end()

    async with upstream(play) as server:
        created = (await proxy.create("chat", "1", server.url)).json()
        await proxy.ending("chat", "1")

    def read() -> bytes:
        with stream(created["streamUrl"], live=False) as response:
            return response.read_bytes()

    assert await asyncio.to_thread(read) == b"data: one\n\ndata: two\n\n"


def at(position: int) -> str:
    return f"{0:016d}_{position:016d}"
