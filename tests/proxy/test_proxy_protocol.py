"""`/v1/proxy`: the open proxy protocol, from outside."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Script, Upstream, upstream

EVENTS = b"".join(b'data: {"n": %d}\n\n' % n for n in range(40))


@dataclass
class Served:
    """A proxy, and an upstream that plays a script."""

    proxy: Proxy
    vendor: Upstream

    async def post(
        self, headers: Mapping[str, str] | None = None, *, body: bytes = b"{}", query: str = ""
    ) -> httpx.Response:
        sent = {"Upstream-URL": f"{self.vendor.url}/v1/chat", "Upstream-Method": "POST", **(headers or {})}
        return await self.proxy.client.post(f"/v1/proxy{query}", content=body, headers=sent)

    async def read(self, location: str, **query: str) -> httpx.Response:
        return await self.proxy.client.get(f"{location}&{urlencode(query)}")


@asynccontextmanager
async def served(script: Script, **settings: Any) -> AsyncIterator[Served]:
    async with upstream(script) as vendor, serving(MemoryStore(), **settings) as proxy:
        yield Served(proxy, vendor)


async def whole(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/event-stream; charset=utf-8"})
    await exchange.chunk(EVENTS)
    await exchange.end()


async def endless(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/event-stream"})
    await exchange.chunk(EVENTS[:100])
    await exchange.is_gone.wait()


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_stream_is_created_before_upstream_is_done_and_read_by_its_location() -> None:
    go_on = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(EVENTS[:100])
        await go_on.wait()
        await exchange.chunk(EVENTS[100:])
        await exchange.end()

    async with served(play) as made:
        created = await made.post({"Content-Type": "application/json", "X-Custom": "1"}, body=b'{"a":1}')
        location = created.headers["Location"]
        assert (created.status_code, created.content) == (201, b"")
        assert created.headers["Upstream-Content-Type"] == "text/event-stream"
        assert re.search(r"/v1/proxy/[0-9a-f-]{36}\?", location)
        go_on.set()
        followed = await made.read(location, offset="-1", live="sse")
        frames = followed.text.split("event: data\n")[1:]
        lines = [
            "".join(re.findall(r"^data:(.*)$", frame.partition("event: control")[0], re.MULTILINE)) for frame in frames
        ]
        assert b"".join(base64.b64decode(line) for line in lines) == EVENTS
        assert '"streamClosed":true' in followed.text
        read = await made.read(location, offset="-1")
        assert (read.content, read.headers["Content-Type"]) == (EVENTS, "application/octet-stream")
        assert read.headers["Upstream-Content-Type"] == "text/event-stream"
        assert read.headers["Stream-Closed"] == "true"
        assert read.headers["Cache-Control"] == "no-store"
        rest = await made.read(location, offset="0000000000000000_0000000000000100")
        assert rest.content == EVENTS[100:]
        [call] = made.vendor.calls
        assert (call.method, call.path, call.body) == ("POST", "/v1/chat", b'{"a":1}')
        assert call.header("X-Custom") == "1"


async def test_the_vendors_credential_has_its_own_header_and_ours_stays_here() -> None:
    async with served(whole) as made:
        await made.post(
            {"Authorization": "Bearer ours", "Upstream-Authorization": "Bearer the-vendors"}, query="?secret=s3"
        )
        await made.post({"Authorization": "Bearer ours"})
        assert [call.header("Authorization") for call in made.vendor.calls] == ["Bearer the-vendors", None]
        for call in made.vendor.calls:
            assert not any(name.lower().startswith("upstream-") for name, _ in call.headers)
            assert "ours" not in str(call.headers) + call.path
            assert "s3" not in str(call.headers) + call.path


MINE, FOREIGN = "0123456789abcdef-mine", "0123456789abcdef-foreign"


async def test_a_key_is_asked_for_and_streams_are_their_tenants_own() -> None:
    keys = BootstrapKeys.parse([f"mine={MINE}", f"foreign={FOREIGN}"])
    async with served(whole, keys=keys) as made:
        assert code(await made.post()) == (401, "MISSING_SECRET")
        assert code(await made.post(query="?secret=guessed-guessed-guessed")) == (401, "INVALID_SECRET")
        assert code(await made.post({"Upstream-Authorization": f"Bearer {MINE}"})) == (401, "MISSING_SECRET")
        assert made.vendor.calls == []
        by_header = await made.post({"Authorization": f"Bearer {MINE}"})
        by_query = await made.post(query=f"?secret={MINE}")
        assert (by_header.status_code, by_query.status_code) == (201, 201)
        assert not any(MINE in f"{call.headers}{call.path}" for call in made.vendor.calls)
        location = by_header.headers["Location"]
        assert MINE not in location
        assert (await made.read(location, offset="-1")).content == EVENTS
        path = urlsplit(location).path
        for method in ("GET", "HEAD", "DELETE", "POST"):
            for key, status in (("", 401), (FOREIGN, 204 if method == "DELETE" else 404), (MINE, 200)):
                if method == "DELETE" and key == MINE:
                    continue
                query = "?action=connect" if method == "POST" else ""
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                answer = await made.proxy.client.request(method, path + query, headers=headers)
                assert answer.status_code == status, (method, key)
        assert (await made.read(location, offset="-1")).content == EVENTS


async def test_upstreams_error_is_502_with_its_status_type_and_body() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(429, b'{"error":"slow down"}', {"Content-Type": "application/problem+json"})

    async with served(play, upstream_retries=0) as made:
        answer = await made.post()
        assert (answer.status_code, answer.headers["Upstream-Status"]) == (502, "429")
        assert (answer.content, answer.headers["Content-Type"]) == (
            b'{"error":"slow down"}',
            "application/problem+json",
        )
        assert "Location" not in answer.headers


async def test_a_stream_may_stop_without_readers_and_its_readers_count() -> None:
    async with served(endless) as here:
        made = await here.post({"Streamkeep-On-Disconnect": "cancel"})
        location = made.headers["Location"]
        async with here.proxy.client.stream("GET", f"{location}&live=sse&offset=-1") as answer:
            await anext(answer.aiter_raw())
            await until_told(here)
            assert not here.vendor.calls[0].is_gone.is_set()
        async with asyncio.timeout(60):
            await here.vendor.calls[0].is_gone.wait()
        assert code(await here.post({"Streamkeep-On-Disconnect": "never"})) == (400, "INVALID_ON_DISCONNECT")


async def until_told(here: Served) -> None:
    async with asyncio.timeout(60):
        while not repr(here.proxy.service.audiences).startswith("Audiences(1 "):
            await asyncio.sleep(0.01)


async def test_limits_hold_for_the_proxy_protocol_too() -> None:
    async with served(endless, max_running=1) as here:
        assert (await here.post()).status_code == 201
        refused = await here.post()
        assert code(refused) == (429, "TOO_MANY_GENERATIONS")
        assert int(refused.headers["Retry-After"]) > 0


async def test_a_redirect_is_not_followed() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(302, b"", {"Location": "http://169.254.169.254/"})

    async with served(play) as made:
        assert code(await made.post()) == (400, "REDIRECT_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Upstream-URL": ""}, (400, "MISSING_UPSTREAM_URL")),
        ({"Upstream-Method": ""}, (400, "MISSING_UPSTREAM_METHOD")),
        ({"Upstream-Method": "TRACE"}, (400, "INVALID_UPSTREAM_METHOD")),
        ({"Upstream-Method": "HEAD"}, (400, "INVALID_UPSTREAM_METHOD")),
        ({"Upstream-URL": "https://elsewhere.example/"}, (403, "UPSTREAM_NOT_ALLOWED")),
        ({"Upstream-URL": "not a url"}, (403, "UPSTREAM_NOT_ALLOWED")),
        ({"Upstream-URL": "file:///etc/passwd"}, (403, "UPSTREAM_NOT_ALLOWED")),
        ({"Upstream-URL": "http://127.0.0.1:1/"}, (502, "UPSTREAM_ERROR")),
        ({"Stream-Signed-URL-TTL": "soon"}, (400, "INVALID_HEADER")),
    ],
)
async def test_what_cannot_be_created(headers: dict[str, str], expected: tuple[int, str]) -> None:
    async with served(whole, upstream_retries=0) as made:
        assert code(await made.post(headers)) == expected
        assert made.vendor.calls == []


async def test_an_upstream_that_does_not_answer_in_time() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with served(play, first_byte_seconds=0.2, connect_seconds=0.2) as made:
        assert code(await made.post()) == (504, "UPSTREAM_TIMEOUT")


async def test_an_abort_closes_upstream_and_the_stream_keeps_the_bytes_and_is_idempotent() -> None:
    async with served(endless) as made:
        location = (await made.post()).headers["Location"]
        for _ in range(2):
            assert (await made.proxy.client.patch(f"{location}&action=abort")).status_code == 204
        async with asyncio.timeout(60):
            await made.vendor.calls[0].is_gone.wait()
        read = await made.read(location, offset="-1", live="long-poll")
        assert (read.content, read.headers["Stream-Closed"]) == (EVENTS[:100], "true")


async def test_an_abort_needs_the_url_as_it_was_signed_and_its_action() -> None:
    async with served(endless) as made:
        location = (await made.post()).headers["Location"]
        bare = location.partition("?")[0]
        client = made.proxy.client
        assert code(await client.patch(f"{bare}?action=abort")) == (401, "MISSING_SIGNATURE")
        assert code(await client.patch(location)) == (400, "INVALID_ACTION")
        assert code(await client.patch(f"{location}&action=explode")) == (400, "INVALID_ACTION")
        assert not made.vendor.calls[0].is_gone.is_set()


@pytest.mark.parametrize("name", ["expires", "signature", "rights"])
async def test_a_url_that_was_changed_is_refused(name: str) -> None:
    async with served(whole) as made:
        location = urlsplit((await made.post()).headers["Location"])
        parameters = dict(parse_qsl(location.query))
        parameters[name] = {"expires": "99999999999", "signature": "1.AAAA", "rights": "append.cancel.read"}[name]
        answer = await made.proxy.client.get(f"{location.path}?{urlencode(parameters)}")
        assert code(answer) == (401, "SIGNATURE_INVALID")
        other = (await made.post()).headers["Location"]
        foreign = f"{urlsplit(other).path}?{location.query}"
        assert code(await made.proxy.client.get(foreign)) == (401, "SIGNATURE_INVALID")


async def test_an_expired_url_says_which_stream_and_is_renewed() -> None:
    async with served(whole, url_seconds=-1.0) as made:
        expired = (await made.post()).headers["Location"]
        id = urlsplit(expired).path.rpartition("/")[2]
        answer = await made.read(expired)
        assert code(answer) == (401, "SIGNATURE_EXPIRED")
        assert answer.json()["error"]["streamId"] == id
    async with served(whole) as made:
        location = (await made.post({"Stream-Signed-URL-TTL": "60"})).headers["Location"]
        renewed = await made.proxy.client.post(f"{urlsplit(location).path}?action=connect")
        assert renewed.status_code == 200
        assert (await made.read(renewed.headers["Location"], offset="-1")).content == EVENTS
        assert len(made.vendor.calls) == 1


async def test_head_and_delete() -> None:
    async with served(endless) as made:
        location = (await made.post()).headers["Location"]
        path = urlsplit(location).path
        head = await made.proxy.client.head(path)
        assert head.status_code == 200
        assert head.headers["Upstream-Content-Type"] == "text/event-stream"
        assert (await made.proxy.client.delete(path)).status_code == 204
        async with asyncio.timeout(60):
            await made.vendor.calls[0].is_gone.wait()
        assert (await made.read(location)).status_code in (404, 410)
        assert (await made.proxy.client.delete(path)).status_code == 204
        unknown = "/v1/proxy/00000000-0000-4000-8000-000000000000"
        assert (await made.proxy.client.delete(unknown)).status_code == 204
        assert code(await made.proxy.client.get(unknown)) == (404, "STREAM_NOT_FOUND")


@pytest.mark.parametrize("path", ["/v1/proxy/x", "/v1/proxy/..%2f..%2fetc", "/v1/proxy/" + "a" * 5000])
async def test_an_id_that_cannot_be_one_is_not_found(path: str) -> None:
    async with served(whole) as made:
        assert code(await made.proxy.client.get(path)) == (404, "STREAM_NOT_FOUND")


async def test_an_unknown_action_creates_nothing() -> None:
    async with served(whole) as made:
        assert code(await made.post(query="?action=connect")) == (400, "INVALID_ACTION")
        assert made.vendor.calls == []
