"""Streams of the open protocol through a real proxy, by both kinds of clients."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from streamkeep.client import (
    BodyConsumed,
    InvalidOffset,
    Patience,
    ProtocolError,
    SequenceConflict,
    ServerError,
    StreamClosed,
    StreamExists,
    StreamNotFound,
)
from tests.client.both import Kind
from tests.client.streaming import Handle, call, created, entered, items, opened, transport
from tests.serving import Proxy

TEXT = "日本語と🌊, CRLF\r\nand LF\n"
LIVES = ["sse", "long-poll", True]


@pytest.fixture
def url(proxy: Proxy) -> str:
    """The URL of a stream that is this test's own."""
    return f"{proxy.url}/v1/stream/test/{uuid.uuid4()}"


async def test_a_stream_lives_from_creation_to_deletion(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain", data="one ")
    assert (await call(handle.append, b"two ")).is_closed is False
    await call(handle.append, "three", seq="a")
    with pytest.raises(SequenceConflict):
        await call(handle.append, "never", seq="a")
    read = await call(handle.read)
    assert (read.data, read.text, read.content_type, read.is_closed) == (
        b"one two three",
        "one two three",
        "text/plain",
        False,
    )
    info = await call(handle.head)
    assert (info.content_type, info.offset, info.is_closed) == ("text/plain", read.offset, False)
    final = await call(handle.close, "!")
    assert await call(handle.close) == final
    with pytest.raises(StreamClosed) as caught:
        await call(handle.append, "late")
    assert caught.value.final_offset == final
    rest = await call(handle.read, offset=read.offset)
    assert (rest.data, rest.offset, rest.is_closed) == (b"!", final, True)
    await call(handle.delete)
    with pytest.raises(StreamNotFound, match=url.rpartition("/")[2]):
        await call(handle.head)
    await call(handle.disconnect)


async def test_creating_again_finds_the_same_stream_and_refuses_another(kind: Kind, url: str) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    first = await created(kind, url, content_type="text/plain", expires_at=later)
    again = await created(kind, url, content_type="text/plain", expires_at=later)
    info = await call(again.head)
    assert info.expires_at is not None
    assert datetime.fromisoformat(info.expires_at) == later.replace(microsecond=info_microsecond(info.expires_at))
    with pytest.raises(StreamExists):
        await created(kind, url, content_type="application/json")
    for handle in (first, again):
        await call(handle.disconnect)


def info_microsecond(text: str) -> int:
    return datetime.fromisoformat(text).microsecond


async def test_a_fork_goes_its_own_way(kind: Kind, url: str) -> None:
    source = await created(kind, url, content_type="text/plain", data="shared", ttl_seconds=600)
    offset = (await call(source.head)).offset
    await call(source.append, " and more")
    fork = await call(forking(source), f"{url}-fork", offset=offset, sub_offset=4)
    await call(fork.append, " mine")
    assert (await call(fork.read)).data == b"shared and mine"
    assert (await call(source.read)).data == b"shared and more"
    assert (await call(fork.head)).ttl_seconds == 600
    with pytest.raises(ValueError, match="server of its source"):
        await call(forking(source), "http://elsewhere.example/x")
    await call(source.disconnect)


def forking(handle: Handle) -> Callable[..., Any]:
    """Forks of both kinds are of different types."""
    return handle.fork


async def test_a_json_stream_keeps_its_messages(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="application/json")
    for message in ({"a": 1}, [1, 2], '{"text": "is JSON already"}', None, 3):
        await call(handle.append, message)
    expected = [{"a": 1}, [1, 2], {"text": "is JSON already"}, None, 3]
    assert (await call(handle.read)).json() == expected
    async with entered(handle.stream(live=False)) as response:
        batches: list[Any] = await items(response.iter_json_batches())
        assert [item for batch in batches for item in batch.items] == expected
        assert batches[-1].offset == response.offset
        assert response.is_up_to_date
    with pytest.raises(ValueError, match="JSON"):
        await call(handle.append, float("nan"))
    await call(handle.disconnect)


async def test_what_is_no_text_goes_into_a_json_stream_alone(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain")
    with pytest.raises(TypeError, match="takes bytes or text"):
        await call(handle.append, {"a": 1})
    with pytest.raises(ValueError, match="at least one byte"):
        await call(handle.append, b"")
    async with entered(handle.stream(live=False)) as response:
        await call(handle.append, "[1]")
        with pytest.raises(BodyConsumed):
            list(await items(response.iter_bytes())), await items(response.iter_lines())
    await call(handle.disconnect)


@pytest.mark.parametrize("live", LIVES)
@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream"])
async def test_a_live_reader_gets_every_byte_as_it_comes(kind: Kind, url: str, live: Any, content_type: str) -> None:
    whole = TEXT.encode() * 20 + bytes(range(256))
    cuts = sorted(random.Random(3).sample(range(1, len(whole)), 12))
    handle = await created(kind, url, content_type=content_type, data=whole[: cuts[0]])

    async def write() -> None:
        for start, end in zip(cuts, [*cuts[1:], len(whole)], strict=True):
            await call(handle.append, whole[start:end])
        await call(handle.close)

    async with opened(kind, url, live=live) as response:
        writing = asyncio.create_task(write())
        chunks: list[Any] = await items(response.iter_chunks())
        await writing
        assert b"".join(chunk.data for chunk in chunks) == whole
        assert response.is_closed
    seen = b""
    for chunk in chunks:
        seen += chunk.data
        assert (await call(handle.read, offset=chunk.offset)).data == whole[len(seen) :]
    await call(handle.disconnect)


@pytest.mark.parametrize("live", LIVES)
async def test_live_messages_arrive_in_order(kind: Kind, url: str, live: Any) -> None:
    handle = await created(kind, url, content_type="application/json", data={"n": 0})
    async with opened(kind, url, live=live) as response:
        messages = response.iter_json()
        assert await items(messages, 1) == [{"n": 0}]
        for number in range(1, 6):
            await call(handle.append, {"n": number, "text": TEXT})
            assert await items(messages, 1) == [{"n": number, "text": TEXT}]
    await call(handle.disconnect)


async def test_text_and_lines_are_whole_whatever_the_appends(kind: Kind, url: str) -> None:
    whole = (TEXT * 3 + "no end").encode()
    handle = await created(kind, url, content_type="text/plain")
    for index in range(len(whole)):
        await call(handle.append, whole[index : index + 1])
        if index % 10 == 0:
            async with opened(kind, url, live=False) as response:
                lines = await items(response.iter_lines())
                assert lines == whole[: index + 1].decode("utf-8", "replace").replace("\r\n", "\n").splitlines()
    await call(handle.close)
    async with opened(kind, url, live="sse") as response:
        assert "".join(await items(response.iter_text())) == whole.decode()
    await call(handle.disconnect)


async def test_the_offset_stays_before_a_line_that_is_not_whole(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain", data="one\ntwo\nthr")
    async with opened(kind, url, live=True) as response:
        lines = response.iter_lines()
        assert await items(lines, 2) == ["one", "two"]
        assert (await call(handle.read, offset=response.offset)).data == b"one\ntwo\nthr"
        await call(handle.append, "ee\n")
        assert await items(lines, 1) == ["three"]
        assert (await call(handle.read, offset=response.offset)).data == b""
    await call(handle.disconnect)


async def test_events_of_a_recorded_answer_are_read(kind: Kind, url: str) -> None:
    recorded = "event: token\r\nid: 7\r\ndata: {}\r\n\r\n: ping\n\ndata: [DONE]\n\n"
    handle = await created(kind, url, content_type="text/event-stream", data=recorded, closed=True)
    async with opened(kind, url) as response:
        events: list[Any] = await items(response.iter_events())
    assert [(event.event, event.data, event.id) for event in events] == [
        ("token", "{}", "7"),
        ("message", "[DONE]", None),
    ]
    await call(handle.disconnect)


async def test_now_begins_at_the_tail(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain", data="old")
    async with opened(kind, url, offset="now") as response:
        chunks = response.iter_chunks()
        first: list[Any] = await items(chunks, 1)
        assert (first[0].data, first[0].is_up_to_date) == (b"", True)
        await call(handle.append, "new")
        async with asyncio.timeout(60):
            while not (found := (await items(chunks, 1))[0]).data:
                pass
        assert found.data == b"new"
    await call(handle.disconnect)


async def test_the_offset_is_a_real_one_where_nothing_came(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain", data="old")
    tail = (await call(handle.head)).offset
    assert (await call(handle.read, offset="now")).offset == tail
    async with opened(kind, url, offset="now", timeout=1.0) as response:
        with pytest.raises(httpx.ReadTimeout):
            await items(response.iter_bytes())
        assert response.offset == tail
    await call(handle.close)
    async with opened(kind, url, offset=tail, live="sse") as response:
        assert await items(response.iter_text()) == []
        assert (response.offset, response.is_closed) == (tail, True)
    await call(handle.disconnect)


async def test_many_pages_are_read_one_after_the_other(kind: Kind, url: str) -> None:
    whole = random.Random(5).randbytes(3_000_000)
    handle = await created(kind, url, data=whole, closed=True)
    async with opened(kind, url, live=False) as response:
        pages = await items(response.iter_bytes())
    assert (b"".join(pages), len(pages) > 1) == (whole, True)
    await call(handle.disconnect)


async def test_a_read_timeout_loses_nothing(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain", data="one")
    async with opened(kind, url, live="sse", timeout=1.0) as response:
        assert await items(response.iter_bytes(), 1) == [b"one"]
        with pytest.raises(httpx.ReadTimeout):
            await items(response.iter_bytes(), 1)
        await call(handle.append, " two")
        assert await items(response.iter_bytes(), 1) == [b" two"]
    await call(handle.disconnect)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_reconnects": -1}, "max_reconnects"),
        ({"stall_seconds": 0}, "stall_seconds"),
        ({"first_pause_seconds": 0}, "first_pause_seconds"),
        ({"first_pause_seconds": 2, "pause_seconds": 1}, "pause_seconds"),
        ({"growth": 0.5}, "growth"),
    ],
)
def test_patience_that_makes_no_sense_is_named(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        Patience(**options)


async def test_headers_and_parameters_are_asked_for_each_request(kind: Kind, proxy: Proxy, url: str) -> None:
    asked = {"header": 0, "param": 0}

    def count(name: str) -> str:
        asked[name] += 1
        return str(asked[name])

    async def parameter() -> str:
        return count("param")

    options = {"headers": {"X-Count": lambda: count("header")}, "params": {"n": parameter}}
    handle = await created(kind, url, content_type="text/plain", **options)
    for _ in range(3):
        await call(handle.append, "x")
    assert asked == {"header": 4, "param": 4}
    await call(handle.disconnect)


@pytest.mark.parametrize(
    ("offset", "error"),
    [("nonsense", InvalidOffset), ("", ValueError), ("9999999999999999_9999999999999999", ServerError)],
)
async def test_an_offset_of_no_stream_is_refused(kind: Kind, url: str, offset: str, error: type[Exception]) -> None:
    handle = await created(kind, url, content_type="text/plain", data="x")
    with pytest.raises(error):
        await call(handle.read, offset=offset)
    await call(handle.disconnect)


async def test_what_is_no_stream_is_a_protocol_error(kind: Kind, proxy: Proxy, url: str) -> None:
    for address, error in ((f"{proxy.url}/health", ProtocolError), (url, StreamNotFound)):
        with pytest.raises(error):
            async with opened(kind, address):
                pass


@pytest.mark.parametrize("url", ["ftp://a/b", "nothing", "http://", "http://[::1/x"])
async def test_only_absolute_http_urls_are_streams(kind: Kind, url: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        async with opened(kind, url, http=transport(kind)):
            pass
