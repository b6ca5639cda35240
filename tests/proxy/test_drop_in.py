"""`/u/{upstream}/…`: an SDK whose base URL is set to it works unchanged, and the answer is durable underneath."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import anthropic
import httpx
import openai
import pytest

from streamkeep.proxy.rules.allowlist import Allowed, Origin
from streamkeep.proxy.rules.event_source import EventIds
from streamkeep.proxy.rules.upstreams import InvalidUpstream, Upstreams
from streamkeep.proxy.settings import InvalidSetting, Settings
from streamkeep.storage import MemoryStore
from tests import node
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Script, Upstream, upstream

EVENTS = b"".join(b'data: {"n": %d}\n\n' % n for n in range(40))
IDS = {"X-Session-ID": "s", "X-Request-ID": "r"}
KEY = {"Idempotency-Key": "order 66, please"}


@dataclass
class Served:
    """A proxy with one named upstream, which plays a script."""

    proxy: Proxy
    vendor: Upstream

    async def ask(
        self, path: str = "v1/chat", *, body: bytes = b"{}", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        return await self.proxy.client.post(f"/u/vendor/{path}", content=body, headers=headers)


@asynccontextmanager
async def served(script: Script, toml: str = "", **settings: Any) -> AsyncIterator[Served]:
    async with upstream(script) as vendor:
        upstreams = Upstreams.parse_toml(f'[vendor]\nurl = "{vendor.url}"\n{toml}', {"SECRET": "the-vendors-own"})
        async with serving(MemoryStore(), upstreams=upstreams, **settings) as proxy:
            yield Served(proxy, vendor)


async def whole(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/event-stream", "X-Request-ID": "req_7"})
    for start in range(0, len(EVENTS), 100):
        await exchange.chunk(EVENTS[start : start + 100])
    await exchange.end()


async def broken(exchange: Exchange) -> None:
    await exchange.head(200, {"Content-Type": "text/event-stream"})
    await exchange.chunk(EVENTS[:100])
    exchange.reset()


async def test_the_answer_is_upstreams_own_and_says_where_it_is_kept() -> None:
    async with served(whole) as made:
        answer = await made.ask("v1/chat?model=m%20n", body=b'{"a":1}', headers=IDS)
        assert (answer.status_code, answer.content) == (200, EVENTS)
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["X-Request-ID"] == "req_7"
        assert (answer.headers["X-Session-ID"], answer.headers["Streamkeep-Request-ID"]) == ("s", "r")
        [call] = made.vendor.calls
        assert (call.method, call.path, call.body) == ("POST", "/v1/chat?model=m%20n", b'{"a":1}')
        kept = await made.proxy.client.get(answer.headers["Stream-Url"])
        assert kept.content == EVENTS
        [event] = (await made.proxy.client.get(answer.headers["Control-Url"])).json()
        assert event["code"] == "complete"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
async def test_every_method_passes(method: str) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(204 if method == "DELETE" else 200, b"", {"Content-Type": "application/json"})

    async with served(play) as made:
        answer = await made.proxy.client.request(method, "/u/vendor/v1/files/1")
        assert answer.status_code == (204 if method == "DELETE" else 200)
        assert answer.content == b""
        assert [call.method for call in made.vendor.calls] == [method]


async def test_t23_a_repeat_with_the_same_key_joins_while_it_runs_and_replays_afterwards() -> None:
    go_on = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(EVENTS[:100])
        await go_on.wait()
        await exchange.chunk(EVENTS[100:])
        await exchange.end()

    async with served(play) as made:
        asked = [asyncio.create_task(made.ask(headers=KEY)) for _ in range(8)]
        while not made.vendor.calls:
            await asyncio.sleep(0.005)
        go_on.set()
        answers = [*await asyncio.gather(*asked), await made.ask(headers=KEY)]
        assert {answer.content for answer in answers} == {EVENTS}
        assert len(made.vendor.calls) == 1
        assert [answer.headers.get("Streamkeep-Replayed") for answer in answers].count(None) == 1
        other = await made.ask(body=b'{"another": "request"}', headers=KEY)
        assert (other.status_code, other.json()["error"]) == (409, "request_conflict")


async def test_without_a_key_each_request_is_a_call() -> None:
    async with served(whole) as made:
        ids = {(await made.ask()).headers["Streamkeep-Request-ID"] for _ in range(3)}
        assert len(ids) == len(made.vendor.calls) == 3


async def test_t25_an_answer_that_upstream_broke_off_is_broken_off_here_and_calls_nobody_again() -> None:
    async with served(broken) as made:
        received: list[bytes] = []

        async def read() -> None:
            async with made.proxy.client.stream("POST", "/u/vendor/v1/chat", headers=KEY) as answer:
                async for data in answer.aiter_raw():
                    received.append(data)

        with pytest.raises(httpx.RemoteProtocolError):
            await read()
        assert b"".join(received) == EVENTS[:100]
        with pytest.raises(httpx.RemoteProtocolError):
            await made.ask(body=b"", headers=KEY)
        assert len(made.vendor.calls) == 1


async def test_an_upstream_has_clocks_of_its_own_and_a_request_may_shorten_them() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(b"a")
        await exchange.is_gone.wait()

    async with served(play, "seconds = { idle = 0.3 }", idle_seconds=3600.0) as made:
        asking = made.proxy.client.stream("POST", "/u/vendor/v1/chat")
        async with asyncio.timeout(20), asking as answer:
            with pytest.raises(httpx.RemoteProtocolError):
                await answer.aread()
            [event] = (await made.proxy.client.get(answer.headers["Control-Url"])).json()
        assert event["code"] == "stalled"
        longer = await made.ask(headers={"Streamkeep-Timeout": "idle=1"})
        assert (longer.status_code, longer.json()["error"]) == (400, "invalid_timeout")


async def test_a_header_that_is_no_credential_leaves_the_callers_key_alone() -> None:
    async with served(whole, 'headers = { X-Organization = "ours" }') as made:
        await made.ask(headers={"Authorization": "Bearer the-callers"})
        [call] = made.vendor.calls
        assert (call.header("Authorization"), call.header("X-Organization")) == ("Bearer the-callers", "ours")


async def test_upstreams_error_comes_through_and_may_be_tried_again() -> None:
    async def play(exchange: Exchange) -> None:
        if len(made.vendor.calls) == 1:
            await exchange.answer(401, b'{"error":"key"}', {"Content-Type": "application/json"})
        else:
            await whole(exchange)

    async with served(play) as made:
        answer = await made.ask(headers=KEY)
        assert (answer.status_code, answer.json(), answer.headers["Upstream-Status"]) == (401, {"error": "key"}, "401")
        assert (await made.ask(headers=KEY)).content == EVENTS


async def test_a_conditional_request_gets_its_answer() -> None:
    async def play(exchange: Exchange) -> None:
        assert exchange.header("If-None-Match") == '"v1"'
        await exchange.head(304, {}, is_chunked=False)

    async with served(play) as made:
        answer = await made.proxy.client.get("/u/vendor/v1/models", headers={"If-None-Match": '"v1"'})
        assert (answer.status_code, answer.content) == (304, b"")


async def test_a_content_type_of_any_length_is_not_passed_on() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, b"x", {"Content-Type": f"text/plain; note={'x' * 20_000}"})

    async with served(play) as made:
        answer = await made.ask()
        assert (answer.content, answer.headers.get("Content-Type")) == (b"x", None)


async def test_a_key_that_is_configured_here_replaces_the_callers() -> None:
    async with served(whole, 'headers = { Authorization = "Bearer ${SECRET}" }') as made:
        answer = await made.ask(headers={"Authorization": "Bearer the-callers", "X-Other": "kept"})
        [call] = made.vendor.calls
        assert [value for name, value in call.headers if name.lower() == "authorization"] == ["Bearer the-vendors-own"]
        assert call.header("X-Other") == "kept"
        assert "the-vendors-own" not in f"{answer.headers} {made.proxy.service.settings}"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/u/nobody/v1/chat", 404, "unknown_upstream"),
        ("/u/vendor/../x", 400, "invalid_upstream_url"),
        ("/u/vendor/v1/%2e%2e/x", 400, "invalid_upstream_url"),
        ("/u/vendor/v1%2fx", 400, "invalid_upstream_url"),
        ("/u/vendor/a%00b", 400, "invalid_upstream_url"),
    ],
)
async def test_what_cannot_be_called(path: str, status: int, code: str) -> None:
    async with served(whole) as made:
        reader, writer = await asyncio.open_connection(*made.proxy.url.removeprefix("http://").split(":"))
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert (int(head.split()[1]), json.loads(body)["error"]) == (status, code)
        assert made.vendor.calls == []


async def test_a_lost_page_finds_its_answer_again() -> None:
    go_on = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(EVENTS[:100])
        await go_on.wait()
        await exchange.chunk(EVENTS[100:])
        await exchange.end()

    async with served(play) as made:
        session = {"X-Session-ID": "chat"}
        resume = {"X-Resume-Active-Generation": "true", **session}
        assert (await made.ask(headers=resume)).status_code == 204
        async with made.proxy.client.stream("POST", "/u/vendor/v1/chat", headers=session) as answer:
            await anext(answer.aiter_raw())
        received = b""
        async with made.proxy.client.stream("POST", "/u/vendor/v1/chat", headers=resume) as answer:
            async for data in answer.aiter_raw():
                received += data
                go_on.set()
        assert received == EVENTS
        assert len(made.vendor.calls) == 1


async def test_t36_a_deploy_lets_an_answer_finish_that_cannot_reconnect() -> None:
    go_on = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(EVENTS[:100])
        await go_on.wait()
        await exchange.chunk(EVENTS[100:])
        await exchange.end()

    async with served(play, drain_seconds=30.0) as made:
        asked = asyncio.create_task(made.ask())
        while made.proxy.service.readers.count < 1:
            await asyncio.sleep(0.005)
        drained = asyncio.create_task(made.proxy.service.drain())
        while not made.proxy.service.generations.is_draining:
            await asyncio.sleep(0.005)
        go_on.set()
        assert (await asked).content == EVENTS
        await drained


# SDKs


@pytest.fixture
async def fake(vendor: str) -> AsyncIterator[str]:
    """The base URL of the demo vendor through the proxy."""
    async with serving(MemoryStore(), upstreams=Upstreams.parse(f"fake={vendor}")) as proxy:
        yield f"{proxy.url}/u/fake"


async def _objects(stream: Any) -> list[dict[str, Any]]:
    return [event.model_dump() async for event in stream]


async def test_openai_works_unchanged(vendor: str, fake: str) -> None:
    found = []
    for base_url in (vendor, fake):
        client = openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="any", default_headers={"Fake-Rate": "0"})
        async with client:
            question: Any = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
            create = client.chat.completions.create
            found.append(
                [
                    (await create(**question)).model_dump(),
                    await _objects(await create(**question, stream=True)),
                    await _objects(await client.responses.create(model="m", input="Hello", stream=True)),
                ]
            )
            refused = {"Fake-Fault": "status:429", "Fake-Retry-After": "0"}
            with pytest.raises(openai.RateLimitError):
                await client.with_options(max_retries=0).chat.completions.create(**question, extra_headers=refused)
            cut = await create(**question, stream=True, extra_headers={"Fake-Fault": "cut@5"})
            with pytest.raises(openai.APIConnectionError):
                await _objects(cut)
    assert found[0] == found[1]


async def test_anthropic_works_unchanged(vendor: str, fake: str) -> None:
    found = []
    for base_url in (vendor, fake):
        async with anthropic.AsyncAnthropic(
            base_url=base_url, api_key="any", default_headers={"Fake-Rate": "0"}
        ) as client:
            question: Any = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
            found.append(
                [
                    (await client.messages.create(**question)).model_dump(),
                    await _objects(await client.messages.create(**question, stream=True)),
                ]
            )
    assert found[0] == found[1]


# EventSource

_PAGE = """
const seen = [];
setInterval(() => {}, 1000);  // waiting for a reconnect does not keep the process alive
const source = new EventSource(process.argv[2]);
source.onmessage = (event) => {
  seen.push(JSON.parse(event.data).n);
  if (seen.length === 10) console.log("ten");
};
source.onerror = () => {
  if (source.readyState === EventSource.CLOSED) { console.log(JSON.stringify(seen)); process.exit(0); }
};
"""


async def test_an_event_source_goes_on_after_a_break_and_stops_at_the_end(tmp_path: Any) -> None:
    """The connection breaks after ten events, and once more at the end; upstream is called once."""
    has_broken = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(b"retry: 50\n\n" + EVENTS[: EVENTS.index(b'{"n": 10}') - 6])
        await has_broken.wait()
        await exchange.chunk(EVENTS[EVENTS.index(b'{"n": 10}') - 6 :])
        await exchange.end()

    async with served(play) as made:
        page = tmp_path / "page.mjs"
        page.write_text(_PAGE)
        run = asyncio.create_task(
            node.run(
                tmp_path,
                "--experimental-eventsource",
                str(page),
                f"{made.proxy.url}/u/vendor/events",
                timeout_seconds=60,
            )
        )
        while not made.proxy.service.readers.count:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        made.proxy.service.readers.close()
        has_broken.set()
        status, output = await run
        assert status == 0, output
        assert json.loads(output.splitlines()[-1]) == list(range(40))
        assert len(made.vendor.calls) == 1


@pytest.mark.parametrize(
    "text",
    [
        b"data: a\n\ndata: b\n\n",
        b"data: a\r\n\r\ndata: b\r\n\r\n",
        b"data: a\r\rdata: b\r\r",
        b": ping\n\n\n\nevent: x\ndata: \xf0\x9f\x8c\x8a\ndata: b\n\ndata: unfinished",
    ],
)
def test_ids_mark_every_event_however_the_bytes_are_cut(text: bytes) -> None:
    def marked(cuts: list[int]) -> bytes:
        ids = EventIds("s", "r", 0)
        bounds = [0, *cuts, len(text)]
        return b"".join(ids.feed(text[a:b]) for a, b in pairwise(bounds))

    expected = marked([])
    lines = expected.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    assert b"\n".join(line for line in lines if not line.startswith(b"id: ")) == text.replace(b"\r\n", b"\n").replace(
        b"\r", b"\n"
    )
    offsets = [int(line.rpartition(b"_")[2]) for line in lines if line.startswith(b"id: ")]
    assert offsets
    for cut in range(1, len(text)):
        if text[cut - 1 : cut + 1] != b"\r\n":
            assert marked([cut]) == expected, cut
    for offset in offsets:
        resumed = EventIds("s", "r", offset).feed(text[offset:])
        assert expected.endswith(resumed)


@pytest.mark.parametrize(
    "event_id", ["7", "s/r", "s/r/x", "s/r/-1", "s/r/now", "../r/0000000000000000_0000000000000000"]
)
async def test_an_id_that_is_not_ours_is_refused_and_calls_nobody(event_id: str) -> None:
    async with served(whole) as made:
        answer = await made.proxy.client.get("/u/vendor/events", headers={"Last-Event-ID": event_id})
        assert answer.status_code == 400
        assert made.vendor.calls == []


async def test_an_id_of_an_unknown_generation_or_beyond_the_end_is_refused() -> None:
    async with served(whole) as made:
        await made.ask(headers=IDS)
        statuses = []
        for event_id in ("s/other/0000000000000000_0000000000000000", "s/r/0000000000000000_0000000000099999"):
            answer = await made.proxy.client.get("/u/vendor/events", headers={"Last-Event-ID": event_id})
            statuses.append(answer.status_code)
        assert statuses == [404, 400]
        assert len(made.vendor.calls) == 1


# Configuration


@pytest.mark.parametrize(
    "text",
    [
        "openai",
        "a=b",
        "UP=https://x.example",
        "a=https://x.example,a=https://y.example",
        "a=https://*.example",
        "=http://x",
    ],
)
def test_a_list_that_cannot_be_used_is_told(text: str) -> None:
    with pytest.raises(InvalidUpstream):
        Upstreams.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "[a]",
        "a = 1",
        '[a]\nurl = "https://x.example"\nurls = 1',
        '[a]\nurl = "https://x.example"\nseconds = 1',
        '[a]\nurl = "https://x.example"\nseconds = { lunch = 3600 }',
        '[a]\nurl = "https://x.example"\nseconds = { idle = -1 }',
        '[a]\nurl = "https://x.example"\nseconds = { idle = "long" }',
        '[a]\nurl = "https://x.example"\nseconds = { idle = nan }',
        '[a]\nurl = "https://x.example"\nheaders = { Authorization = "Bearer ${MISSING}" }',
        '[a]\nurl = "https://x.example"\nheaders = { "Bad Name" = "x" }',
        '[a]\nurl = "https://x.example"\nheaders = { Cookie = "x" }',
        '[a]\nurl = "https://x.example"\nheaders = { X = "${EVIL}" }',
        "[a",
    ],
)
def test_a_file_that_cannot_be_used_is_told_without_secrets(text: str) -> None:
    with pytest.raises(InvalidUpstream) as caught:
        Upstreams.parse_toml(text, {"EVIL": "secret\r\nX-Other: 1"})
    assert "secret" not in str(caught.value)


def test_settings_take_a_list_or_a_file(tmp_path: Any) -> None:
    path = tmp_path / "upstreams.toml"
    path.write_text('[mine]\nurl = "private:http://llm.example.com/base/"\nheaders = { X-Api-Key = "${K}" }\n')
    listed = Settings.from_env({"STREAMKEEP_UPSTREAMS": "mine=https://llm.example.com"})
    assert listed.upstreams.by_name["mine"].url == "https://llm.example.com"
    filed = Settings.from_env({"STREAMKEEP_UPSTREAMS": str(path), "K": "key"}).upstreams.by_name["mine"]
    assert (filed.url, filed.headers) == ("http://llm.example.com/base", ((b"X-Api-Key", b"key"),))
    origin = Origin("http", "llm.example.com", 80, may_be_private=True)
    assert filed.decide("/v1?x=1") == Allowed(
        "http://llm.example.com/base/v1?x=1", origin, b"/base/v1?x=1", "llm.example.com"
    )
    unmarked = listed.upstreams.by_name["mine"].decide("/v1")
    assert isinstance(unmarked, Allowed)
    assert not unmarked.origin.may_be_private
    assert Settings.from_env({"STREAMKEEP_UPSTREAMS": ""}).upstreams.by_name == {}
    with pytest.raises(InvalidSetting, match="STREAMKEEP_UPSTREAMS"):
        Settings.from_env({"STREAMKEEP_UPSTREAMS": str(tmp_path / "missing.toml")})
