"""A proxy that lies, breaks off and floods: a caller gets the right bytes, or an exception of ours, in bounded time."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from streamkeep.client import (
    AsyncFetchClient,
    ConnectionFailed,
    FetchClient,
    MemoryStore,
    Patience,
    ProtocolError,
    StreamkeepError,
)
from tests.client.conftest import MakeClient
from tests.client.scripted import ScriptedProxy, control_event, data_event, offset, scripted_proxy
from tests.upstream import Exchange

BODY = "日本語🌊\r\nb\rc\n\x00é".encode()
UPSTREAM = "http://127.0.0.1:9/"
HASTY = Patience(send_seconds=30.0, silence_seconds=30.0, stall_seconds=30.0, max_reconnects=30, pause_seconds=0.01)


def start_of(exchange: Exchange) -> int:
    return int(parse_qs(urlsplit(exchange.path).query)["offset"][0][17:])


def frames(start: int = 0) -> bytes:
    """All of the body from a position on, in frames that cut through characters, and its end."""
    sent = b""
    for at in range(start, len(BODY), 2):
        end = min(at + 2, len(BODY))
        sent += data_event(BODY[at:end], end) + control_event(end)
    return sent + control_event(len(BODY), is_closed=True)


async def outcome(
    make_client: MakeClient, proxy: ScriptedProxy, patience: Patience = HASTY
) -> tuple[bytes, Exception | None]:
    async with asyncio.timeout(60):
        client = make_client(proxy.url, patience=patience, timeout=30.0)
        return await (await client.fetch(UPSTREAM)).failing_rest()


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
async def test_frames_are_cut_anywhere_with_every_line_end(make_client: MakeClient, line_end: bytes) -> None:
    whole = frames().replace(b"\n", line_end)
    async with scripted_proxy(BODY) as proxy:
        for cut in range(1, len(whole), 29):

            async def rest(exchange: Exchange) -> None:
                await proxy.begin(exchange)
                await exchange.chunk(frames(start_of(exchange)).replace(b"\n", line_end))
                await exchange.end()

            proxy.data = [proxy.sending(whole[:cut], then="reset" if cut % 2 else "end"), rest]
            assert await outcome(make_client, proxy) == (BODY, None), cut


class CutWire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A proxy without sockets, whose first live read breaks off after so many bytes, cleanly or not."""

    def __init__(self, line_end: bytes, cut: int) -> None:
        self._line_end = line_end
        self._cut = cut
        self._reads = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = "http://proxy.test/stream"
        if request.url.path == "/stream/control":
            ending = {"event": "done", "code": "complete", "offset": offset(len(BODY))}
            return httpx.Response(200, json=[ending])
        if request.url.path != "/stream/data":
            named = {"sessionId": "s", "requestId": "r", "streamUrl": f"{url}/data", "controlUrl": f"{url}/control"}
            told = {"state": "running", "contentType": "text/plain", "upstreamStatus": 200, "upstreamHeaders": {}}
            return httpx.Response(200, json={**named, **told})
        self._reads += 1
        start = int(request.url.params["offset"][17:])
        sent = frames(start).replace(b"\n", self._line_end)
        head = {"Content-Type": "text/event-stream", "Stream-SSE-Data-Encoding": "base64"}
        if self._reads > 1:
            return httpx.Response(200, headers=head, stream=CutPiece(sent, is_cut=False))
        return httpx.Response(200, headers=head, stream=CutPiece(sent[: self._cut], is_cut=self._cut % 2 == 1))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self.handle_request(request)


class CutPiece(httpx.SyncByteStream, httpx.AsyncByteStream):
    """One piece of a body, and behind it the end or a broken connection."""

    def __init__(self, data: bytes, *, is_cut: bool) -> None:
        self._data = data
        self._is_cut = is_cut

    def __iter__(self) -> Iterator[bytes]:
        yield self._data
        if self._is_cut:
            raise httpx.ReadError("cut")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


@pytest.mark.parametrize(("line_end", "step"), [(b"\n", 1), (b"\r\n", 5), (b"\r", 5)])
def test_a_blocking_reader_may_be_cut_off_at_every_byte(line_end: bytes, step: int) -> None:
    for cut in range(0, len(frames().replace(b"\n", line_end)) + 1, step):
        with FetchClient("http://proxy.test", store=MemoryStore(), http=CutWire(line_end, cut)) as client:
            assert b"".join(client.fetch(UPSTREAM).iter_raw()) == BODY, cut


@pytest.mark.parametrize(("line_end", "step"), [(b"\n", 1), (b"\r\n", 5), (b"\r", 5)])
async def test_an_async_reader_may_be_cut_off_at_every_byte(line_end: bytes, step: int) -> None:
    for cut in range(0, len(frames().replace(b"\n", line_end)) + 1, step):
        async with AsyncFetchClient("http://proxy.test", store=MemoryStore(), http=CutWire(line_end, cut)) as client:
            response = await client.fetch(UPSTREAM)
            assert b"".join([piece async for piece in response.aiter_raw()]) == BODY, cut


async def test_frames_may_come_byte_by_byte(make_client: MakeClient) -> None:
    async with scripted_proxy(BODY) as proxy:
        proxy.data = [proxy.sending(*(bytes([byte]) for byte in frames()))]
        assert await outcome(make_client, proxy) == (BODY, None)


@pytest.mark.parametrize("seed", range(30))
async def test_frames_that_are_repeated_moved_and_mislabelled_give_no_wrong_byte(
    make_client: MakeClient, seed: int
) -> None:
    dice = random.Random(seed)
    cuts = sorted({0, len(BODY), *(dice.randrange(len(BODY)) for _ in range(5))})
    events = [data_event(BODY[at:end], end) for at, end in itertools.pairwise(cuts)]
    events += dice.sample(events, 2)
    events.append(control_event(dice.randrange(2 * len(BODY)), is_closed=dice.random() < 0.5))
    if dice.random() < 0.5:
        dice.shuffle(events)
    async with scripted_proxy(BODY) as proxy:
        proxy.data = [proxy.sending(b"".join(events), then=dice.choice(["end", "reset"])), proxy.serve]
        got, error = await outcome(make_client, proxy)
        assert got == (BODY if error is None else BODY[: len(got)])
        assert error is None or isinstance(error, StreamkeepError)


async def test_an_event_without_an_end_is_refused_in_time(make_client: MakeClient) -> None:
    sent = 0

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await proxy.begin(exchange)
        await exchange.chunk(b"event: data\ndata: ")
        while not exchange.is_gone.is_set():
            await exchange.chunk(b"A" * 1_000_000)
            sent += 1_000_000

    async with scripted_proxy(BODY) as proxy:
        proxy.data = [flood]
        got, error = await outcome(make_client, proxy)
        assert (got, type(error)) == (b"", ProtocolError)
        assert sent < 40_000_000


@pytest.mark.parametrize("which", ["creations", "control"])
async def test_an_answer_that_does_not_end_is_refused_in_time(make_client: MakeClient, which: str) -> None:
    async def flood(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/json", "Content-Length": str(10**10)}, is_chunked=False)
        while not exchange.is_gone.is_set():
            await exchange.send(b" " * 1_000_000)

    async with scripted_proxy(BODY) as proxy:
        setattr(proxy, which, [flood])
        try:
            error = (await outcome(make_client, proxy))[1]
        except ProtocolError as exc:
            error = exc
        assert isinstance(error, ProtocolError)
        assert "4194304 bytes" in str(error)


async def test_ten_gigabytes_that_are_promised_and_not_sent_are_asked_for_again(make_client: MakeClient) -> None:
    async def promise(exchange: Exchange) -> None:
        head = {"Stream-Next-Offset": offset(10**10), "Content-Length": str(10**10), "Content-Type": "text/plain"}
        await exchange.head(200, head, is_chunked=False)
        await exchange.send(BODY[:7])
        exchange.reset()

    async with scripted_proxy(BODY) as proxy:
        nothing = proxy.sending(b"")
        proxy.data = [nothing, nothing, nothing, promise, proxy.serve]
        assert await outcome(make_client, proxy) == (BODY, None)
        assert ("long-poll", 0) in proxy.reads()


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (302, {"Location": "/elsewhere"}, ProtocolError),
        (307, {"Location": "http://127.0.0.1:9/"}, ProtocolError),
        (200, {"Content_Type": "text/html"}, ProtocolError),
        (200, {"Content_Type": "text/event-stream"}, ProtocolError),
        (206, {"Content_Type": "text/event-stream"}, StreamkeepError),
        (500, {}, StreamkeepError),
        (502, {"Retry_After": "0"}, StreamkeepError),
    ],
)
async def test_an_answer_of_another_kind_is_a_typed_exception(
    make_client: MakeClient, status: int, headers: dict[str, str], error: type[Exception]
) -> None:
    async with scripted_proxy(BODY) as proxy:
        proxy.data = [proxy.answering(status, b"<html>", **headers)]
        got, raised = await outcome(make_client, proxy)
        assert got == b""
        assert isinstance(raised, error)
        assert not proxy.paths("/elsewhere")


async def test_a_head_that_trickles_in_is_given_up(make_client: MakeClient) -> None:
    async def trickle(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n")
        await exchange.is_gone.wait()

    async with scripted_proxy(BODY) as proxy:
        proxy.data = [trickle]
        got, raised = await outcome(make_client, proxy, replace(HASTY, stall_seconds=0.3, max_reconnects=2))
        assert (got, type(raised)) == (b"", ConnectionFailed)


TAKER = """
import os, resource, sys
from streamkeep.client import FetchClient, MemoryStore, stream

how, url = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
if how == "fetch":
    pieces = FetchClient(url, store=MemoryStore()).fetch("http://127.0.0.1:9/").iter_raw()
else:
    pieces = stream(url + "/stream/data", live=how == "live").__enter__().iter_bytes()
taken = len(next(pieces))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while taken < 100_000_000:
    taken += len(next(pieces))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("how", "promises_length"), [("fetch", True), ("fetch", False), ("read", True), ("live", False)]
)
async def test_ten_gigabytes_that_are_sent_without_end_take_little_memory(how: str, promises_length: bool) -> None:
    """Of somebody who takes a hundred megabytes of them: as one page that never ends, or as events."""
    flood = b"x" * 1_000_000

    async def page(exchange: Exchange) -> None:
        head = {"Stream-Next-Offset": offset(10**10), "Content-Length": str(10**10), "Content-Type": "text/plain"}
        start = start_of(exchange) if "offset=0" in exchange.path else 0
        await exchange.head(200, {**head, "Content-Length": str(10**10 - start)}, is_chunked=False)
        while not exchange.is_gone.is_set():
            await exchange.send(flood)

    async def events(exchange: Exchange) -> None:
        if "live=sse" not in exchange.path:
            caught_up = {"Stream-Next-Offset": offset(0), "Stream-Up-To-Date": "true", "Content-Type": "text/plain"}
            await exchange.answer(200, b"", caught_up)
            return
        await proxy.begin(exchange)
        position = start_of(exchange)
        while not exchange.is_gone.is_set():
            position += len(flood)
            await exchange.chunk(data_event(flood, position) + control_event(position))

    async with scripted_proxy(BODY) as proxy:
        nothing = proxy.sending(b"")
        proxy.data = [events] if not promises_length else [page] if how == "read" else [nothing, nothing, nothing, page]
        taker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", TAKER, how, proxy.url), stdout=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(60):
                grown = (await taker.communicate())[0]
        finally:
            if taker.returncode is None:
                taker.kill()
                await taker.wait()
        assert taker.returncode == 0
        assert int(grown) * 1024 < 64 * 1024 * 1024
