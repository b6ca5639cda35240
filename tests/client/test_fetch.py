"""`fetch` through a real proxy: what goes up, what comes back, and what is left when it is over."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import random
from urllib.parse import unquote_plus

import httpx
import pytest

from streamkeep.client import (
    FetchClient,
    GenerationCancelled,
    GenerationError,
    MemoryStore,
    RecordState,
    ServerError,
    Stalled,
    TooLarge,
    Truncated,
    UpstreamFailed,
)
from streamkeep.storage import MemoryStore as Streams
from tests.client.both import Kind
from tests.client.conftest import MakeClient
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream, whole

WAVES = "日本語と🌊, CRLF\r\nand LF\n".encode() * 50


@pytest.mark.parametrize(
    "body",
    [b"", WAVES, random.Random(1).randbytes(300_000), bytes(range(256)) * 4],
    ids=["empty", "text", "large", "binary"],
)
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/octet-stream"])
async def test_the_body_is_what_upstream_sent(
    make_client: MakeClient, proxy: Proxy, body: bytes, content_type: str
) -> None:
    async with upstream(whole(body, content_type, chunk_bytes=50_000)) as server:
        reading = await make_client(proxy.url).fetch(f"{server.url}/v1", content=b"question")
        assert reading.response.headers["Content-Type"] == content_type
        assert hashlib.sha256(await reading.rest()).digest() == hashlib.sha256(body).digest()


async def test_one_byte_pieces_arrive_in_order(make_client: MakeClient, proxy: Proxy) -> None:
    async with upstream(whole(WAVES[:400], chunk_bytes=1)) as server:
        reading = await make_client(proxy.url).fetch(server.url)
        assert await reading.rest() == WAVES[:400]


async def test_an_encoded_body_is_decoded_by_httpx(make_client: MakeClient, proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, gzip.compress(WAVES), {"Content-Type": "text/plain", "Content-Encoding": "gzip"})

    async with upstream(play) as server:
        reading = await make_client(proxy.url).fetch(server.url)
        assert reading.response.headers["Content-Encoding"] == "gzip"
        assert await reading.decoded() == WAVES


async def test_a_bomb_goes_off_in_small_pieces(make_client: MakeClient, proxy: Proxy) -> None:
    bomb = gzip.compress(bytes(100 * 1024 * 1024), compresslevel=1)

    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, bomb, {"Content-Type": "text/plain", "Content-Encoding": "gzip"})

    async with upstream(play) as server:
        reading = await make_client(proxy.url).fetch(server.url)
        sizes = await reading.decoded_sizes()
        assert sum(sizes) == 100 * 1024 * 1024
        assert max(sizes) < 8 * 1024 * 1024


@pytest.mark.parametrize("status", [200, 400])
async def test_an_encoding_inside_another_is_given_as_it_is(make_client: MakeClient, proxy: Proxy, status: int) -> None:
    body = gzip.compress(gzip.compress(WAVES))

    async def play(exchange: Exchange) -> None:
        await exchange.answer(status, body, {"Content-Type": "text/plain", "Content-Encoding": "gzip, gzip"})

    async with upstream(play) as server:
        reading = await make_client(proxy.url).fetch(server.url)
        assert reading.response.status_code == status
        assert reading.response.headers["Upstream-Content-Encoding"] == "gzip, gzip"
        assert await reading.decoded() == body


async def test_upstream_gets_the_call_and_nothing_of_ours(make_client: MakeClient, session: str, proxy: Proxy) -> None:
    async with upstream(whole(b"ok")) as server:
        client = make_client(proxy.url, auth={"Streamkeep-Key": "secret"})
        reading = await client.fetch(
            f"{server.url}/v1/thing?a=1#fragment",
            method="patch",
            headers={"Authorization": "Bearer vendor", "X-Session-ID": session, "X-Resume-Active-Generation": "false"},
            json={"a": "ä"},
        )
        await reading.rest()
        (call,) = server.calls
        # httpx's versions spell JSON, and spaces in a query, in ways of their own.
        assert (call.method, call.path, json.loads(call.body)) == ("PATCH", "/v1/thing?a=1", {"a": "ä"})
        assert call.header("Authorization") == "Bearer vendor"
        assert call.header("Content-Type") == "application/json"
        ours = ("x-session", "x-request", "x-resume", "x-replay", "x-active", "x-proxy", "streamkeep")
        assert [name for name, _ in call.headers if name.lower().startswith(ours)] == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT"])
async def test_every_method_works(make_client: MakeClient, proxy: Proxy, method: str) -> None:
    async with upstream(whole(b"" if method == "HEAD" else b"ok")) as server:
        reading = await make_client(proxy.url).fetch(server.url, method=method)
        assert reading.response.status_code == 200
        assert await reading.rest() == (b"" if method == "HEAD" else b"ok")
        assert server.calls[0].method == method


async def test_a_large_streamed_request_body_passes_through(make_client: MakeClient, proxy: Proxy) -> None:
    pieces = [bytes([number]) * 500_000 for number in range(5)]
    async with upstream(whole(b"ok")) as server:
        client = make_client(proxy.url)

        async def feed() -> object:
            for piece in pieces:
                yield piece

        reading = await client.fetch(server.url, content=iter(pieces) if client.kind == "sync" else feed())
        assert await reading.rest() == b"ok"
        assert server.calls[0].body == b"".join(pieces)


async def test_the_response_carries_upstreams_status_headers_and_the_ids(
    make_client: MakeClient, session: str, proxy: Proxy
) -> None:
    async def play(exchange: Exchange) -> None:
        head = {"Content-Type": "text/plain", "X-RateLimit-Remaining": "7", "X-Request-ID": "vendors-own"}
        await exchange.answer(201, b"made", head)

    async with upstream(play) as server:
        reading = await make_client(proxy.url).fetch(server.url, session_id=session, request_id="1")
        assert await reading.rest() == b"made"
    response = reading.response
    assert response.status_code == 201
    assert response.headers["X-RateLimit-Remaining"] == "7"
    assert (response.headers["X-Session-ID"], response.headers["X-Request-ID"]) == (session, "1")
    assert response.headers["Upstream-Request-ID"] == "vendors-own"
    assert "Content-Length" not in response.headers
    assert "Streamkeep-Start-Offset" not in response.headers


async def test_a_204_of_upstreams_ends_at_once(make_client: MakeClient, proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(204, is_chunked=False)

    async with upstream(play) as server:
        reading = await make_client(proxy.url).fetch(server.url)
        assert reading.response.status_code == 204
        assert await reading.rest() == b""


async def test_upstreams_error_is_a_response_and_leaves_no_record(
    make_client: MakeClient, session: str, proxy: Proxy
) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(400, b'{"why": "no"}', {"Content-Type": "application/json", "X-RateLimit-Remaining": "0"})

    store = MemoryStore()
    async with upstream(play) as server:
        reading = await make_client(proxy.url, store=store).fetch(server.url, session_id=session)
        assert reading.response.status_code == 400
        assert reading.response.headers["X-RateLimit-Remaining"] == "0"
        assert await reading.decoded() == b'{"why": "no"}'
    with pytest.raises(httpx.HTTPStatusError):
        reading.response.raise_for_status()
    assert store.records(proxy.url, session) == []


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [("ftp://127.0.0.1/", 400, "invalid_upstream_url"), ("http://not.allowed/", 403, "upstream_not_allowed")],
)
async def test_the_proxys_refusal_is_an_exception_and_leaves_no_record(
    make_client: MakeClient, session: str, proxy: Proxy, url: str, status: int, code: str
) -> None:
    store = MemoryStore()
    with pytest.raises(ServerError) as caught:
        await make_client(proxy.url, store=store).fetch(url, session_id=session)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert store.records(proxy.url, session) == []


async def test_the_same_ids_for_another_request_are_refused(
    make_client: MakeClient, session: str, proxy: Proxy
) -> None:
    async with upstream(whole(b"ok")) as server:
        client = make_client(proxy.url)
        await (await client.fetch(server.url, content=b"1", session_id=session, request_id="1")).rest()
        with pytest.raises(ServerError) as caught:
            await client.fetch(server.url, content=b"2", session_id=session, request_id="1")
        assert (caught.value.status, caught.value.code) == (409, "request_conflict")


async def test_a_repeat_with_the_same_ids_joins_and_upstream_is_called_once(
    make_client: MakeClient, session: str, proxy: Proxy
) -> None:
    async with upstream(whole(WAVES)) as server:
        client = make_client(proxy.url)
        readings = [await client.fetch(server.url, content=b"1", session_id=session, request_id="1") for _ in range(3)]
        assert [await reading.rest() for reading in readings] == [WAVES] * 3
        assert ["Streamkeep-Replayed" in reading.response.headers for reading in readings] == [False, True, True]
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("settings", "last", "error"),
    [
        ({}, "cut", UpstreamFailed),
        ({"idle_seconds": 0.2}, "stall", Stalled),
        ({"total_seconds": 0.3}, "stall", GenerationError),
        ({"max_response_bytes": 100_000}, "large", TooLarge),
        ({}, "truncate", Truncated),
    ],
)
async def test_each_bad_end_is_an_exception_of_its_own_after_all_data(
    make_client: MakeClient, session: str, settings: dict[str, float], last: str, error: type[GenerationError]
) -> None:
    body = b'data: {"choices":[{"delta":{"content":"half an ans"}}]}\n\n'

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(body)
        if last == "large":
            await exchange.chunk(bytes(100_000 - len(body)))
            await exchange.chunk(b"!")
        if last in ("stall", "large"):
            await exchange.is_gone.wait()
        if last == "truncate":
            await exchange.end()

    store = MemoryStore()
    async with serving(Streams(), **settings) as proxy, upstream(play) as server:
        client = make_client(proxy.url, store=store)
        url = f"{server.url}/v1/chat/completions"
        reading = await client.fetch(url, json={"stream": True}, session_id=session, request_id="1")
        got, raised = await reading.failing_rest()
        assert got.startswith(body)
        assert len(got) == (100_000 if last == "large" else len(body))
        assert isinstance(raised, error)
        assert (raised.session_id, raised.request_id, raised.is_retryable) == (session, "1", False)
        assert (await reading.failing_rest())[0] == b""
        assert [record.state for record in store.records(proxy.url, session)] == [RecordState.ENDED]


async def test_a_cancel_is_seen_by_every_reader(make_client: MakeClient, session: str, proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(WAVES)
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        client = make_client(proxy.url)
        first = await client.fetch(server.url, session_id=session, request_id="1")
        second = await client.fetch(server.url, session_id=session, request_id="1")
        assert await first.at_least(len(WAVES)) == WAVES
        (running,) = await client.active(session)
        assert (running.request_id, running.state, running.upstream_status) == ("1", "running", 200)
        assert await client.cancel(session, "1") == "cancelled"
        for reading, before in ((first, b""), (second, WAVES)):
            got, raised = await reading.failing_rest()
            assert (got, type(raised)) == (before, GenerationCancelled)
        (ended,) = await client.active(session)
        assert (ended.state, ended.code) == ("cancelled", "cancelled")
        with pytest.raises(ServerError, match="not_found"):
            await client.cancel(session, "2")


async def test_the_record_stands_before_upstream_has_answered(
    make_client: MakeClient, session: str, proxy: Proxy
) -> None:
    store, gate = MemoryStore(), asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.answer(200, b"late", {"Content-Type": "text/plain"})

    async with upstream(play) as server:
        client = make_client(proxy.url, store=store)
        fetching = asyncio.create_task(client.fetch(server.url, session_id=session, request_id="1"))
        await server.called()
        assert [(record.request_id, record.position) for record in store.records(proxy.url, session)] == [("1", 0)]
        gate.set()
        assert await (await fetching).rest() == b"late"
    assert [record.state for record in store.records(proxy.url, session)] == [RecordState.ENDED]


async def test_t4_two_requests_of_a_session_never_touch_each_others_record(
    make_client: MakeClient, session: str, proxy: Proxy
) -> None:
    """Two clients share a store, as the tabs of one browser do."""
    store, gate = MemoryStore(), asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(WAVES)
        if exchange.path != "/fast":
            await gate.wait()
        await exchange.end()

    async with upstream(play) as server:
        client, other = make_client(proxy.url, store=store), make_client(proxy.url, store=store)
        slow = await client.fetch(f"{server.url}/slow", session_id=session, request_id="slow")
        await slow.at_least(len(WAVES))
        before = {found.request_id: found for found in store.records(proxy.url, session)}["slow"]
        fast = await other.fetch(f"{server.url}/fast", session_id=session, request_id="fast")
        assert await fast.rest() == WAVES
        left = await other.fetch(f"{server.url}/left", session_id=session, request_id="left")
        await left.piece()
        await left.close()
        stopped = await other.fetch(f"{server.url}/stopped", session_id=session, request_id="stopped")
        assert await other.cancel(session, "stopped") == "cancelled"
        assert isinstance((await stopped.failing_rest())[1], GenerationCancelled)
        assert {found.request_id: found for found in store.records(proxy.url, session)}["slow"] == before
        resumed = await other.fetch(session_id=session, request_id="slow", resume=True)
        gate.set()
        assert await slow.rest() == b""
        assert WAVES.endswith(await resumed.rest())


@pytest.mark.parametrize(
    "options",
    [
        {"session_id": "no/slash"},
        {"request_id": "active"},
        {"headers": {"X-Active-Generation-TTL": "soon"}},
        {"resume": True},
        {"target": None},
        {"target": "/relative"},
    ],
)
async def test_arguments_that_cannot_be_used_are_refused_before_anything_is_sent(
    make_client: MakeClient, options: dict[str, object]
) -> None:
    client = make_client("http://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"."):
        await client.fetch(**{"target": "http://127.0.0.1:2/", **options})


def test_the_vendors_credential_is_not_the_proxys() -> None:
    with pytest.raises(ValueError, match="Streamkeep-Key"):
        FetchClient("http://127.0.0.1:4000", store=MemoryStore(), auth={"authorization": "Bearer mine"})


async def test_a_form_with_files_arrives_whole(make_client: MakeClient, proxy: Proxy) -> None:
    """A small one is read first, a large one passes through as it is made."""
    async with upstream(whole(WAVES, "text/plain")) as server:
        client = make_client(proxy.url)
        for number, size in enumerate((1000, 3_000_000)):
            payload = bytes(range(256)) * (size // 256)
            files = {"file": ("a.bin", io.BytesIO(payload), "application/octet-stream")}
            response = await client.fetch(server.url, data={"purpose": "test"}, files=files, params={"a": "1 2"})
            assert await response.rest() == WAVES
            call = server.calls[number]
            assert (call.method, unquote_plus(call.path)) == ("POST", "/?a=1 2")
            assert (call.header("Content-Type") or "").startswith("multipart/form-data; boundary=")
            assert payload in call.body
            assert b'name="purpose"\r\n\r\ntest\r\n' in call.body


async def test_no_cookies_are_kept_or_passed_on(make_client: MakeClient, proxy: Proxy) -> None:
    """Those of a page belong to the proxy's origin, and those of a vendor to nobody."""

    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, WAVES, {"Content-Type": "text/plain", "Set-Cookie": "theirs=1"})

    async with upstream(play) as server:
        client = make_client(proxy.url)
        for _ in range(2):
            reading = await client.fetch(server.url, headers={"Cookie": "mine=1"})
            assert await reading.rest() == WAVES
            assert not reading.response.cookies
        assert [call.header("Cookie") for call in server.calls] == [None, None]


async def test_event_hooks_see_the_request_and_the_response(kind: Kind, make_client: MakeClient, proxy: Proxy) -> None:
    seen: list[object] = []

    def request_hook(request: httpx.Request) -> None:
        request.headers["X-Of-The-Hook"] = "1"
        seen.append(str(request.url))

    def response_hook(response: httpx.Response) -> None:
        seen.append(response.status_code)

    async def awaited_request_hook(request: httpx.Request) -> None:
        request_hook(request)

    async def awaited_response_hook(response: httpx.Response) -> None:
        response_hook(response)

    hooks = {
        "sync": {"request": [request_hook], "response": [response_hook]},
        "async": {"request": [awaited_request_hook], "response": [awaited_response_hook]},
    }[kind]
    async with upstream(whole(WAVES, "text/plain")) as server:
        client = make_client(proxy.url, event_hooks=hooks)
        assert await (await client.fetch(server.url)).rest() == WAVES
        assert server.calls[0].header("X-Of-The-Hook") == "1"
        assert seen == [server.url, 200]


async def test_a_response_hook_that_raises_closes_the_response(
    kind: Kind, make_client: MakeClient, proxy: Proxy
) -> None:
    def refuse(response: httpx.Response) -> None:
        response.raise_for_status()

    async def refuse_awaited(response: httpx.Response) -> None:
        refuse(response)

    async def play(exchange: Exchange) -> None:
        await exchange.answer(500, b"no")

    async with upstream(play) as server:
        client = make_client(proxy.url, event_hooks={"response": [refuse if kind == "sync" else refuse_awaited]})
        with pytest.raises(httpx.HTTPStatusError):
            await client.fetch(server.url)


def test_an_unknown_hook_is_refused() -> None:
    with pytest.raises(ValueError, match="respnse"):
        FetchClient("http://h", event_hooks={"respnse": []})
