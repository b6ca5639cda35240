"""The real `openai` and `anthropic` packages through the transport: what they give is what a direct call gives."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from streamkeep.client import (
    DurableTransport,
    GenerationError,
    MemoryStore,
    NothingToResume,
    Patience,
    RecordState,
    ResumeReason,
    SQLiteStore,
    StreamkeepError,
    Truncated,
)
from tests.client.scripted import REQUEST, SESSION, data_event, reset, scripted_proxy
from tests.serving import Proxy
from tests.upstream import Exchange

FAST = {"Fake-Rate": "0", "Fake-Tokens": "30"}
LIMITED = {"Fake-Fault": "status:429", "Fake-Retry-After": "0"}
RESUME = {"X-Resume-Active-Generation": "true"}
QUESTION: Any = {"model": "m", "messages": [{"role": "user", "content": "What does the river say, in any language?"}]}
LONG: Any = {**QUESTION, "max_tokens": 500}


async def objects(stream: Any) -> list[dict[str, Any]]:
    """Everything that an SDK's stream gives, whichever kind it is."""
    if hasattr(stream, "__anext__"):
        return [event.model_dump() async for event in stream]
    return await asyncio.to_thread(lambda: [event.model_dump() for event in stream])


async def call(method: Callable[..., Any], **arguments: Any) -> Any:
    """One call of an SDK; a blocking one in a thread."""
    if asyncio.iscoroutinefunction(method):
        return await method(**arguments)
    made = await asyncio.to_thread(lambda: method(**arguments))
    return await made if asyncio.iscoroutine(made) else made


@asynccontextmanager
async def sdk(package: str, http: str, vendor: str, transport: DurableTransport | None) -> AsyncIterator[Any]:
    """A client of `openai` or `anthropic`, over httpx or httpx2, sync or async; without a transport a direct one."""
    library: Any = httpx2 if http.startswith("httpx2") else httpx
    is_async = http.endswith("async")
    http_client = (library.AsyncClient if is_async else library.Client)(transport=transport, timeout=30)
    options: Any = {"api_key": "any", "max_retries": 0, "http_client": http_client, "default_headers": FAST}
    client: Any
    if package == "openai":
        client = (openai.AsyncOpenAI if is_async else openai.OpenAI)(base_url=f"{vendor}/v1", **options)
    else:
        client = (anthropic.AsyncAnthropic if is_async else anthropic.Anthropic)(base_url=vendor, **options)
    try:
        yield client
    finally:
        await (client.close() if is_async else asyncio.to_thread(client.close))


OPENAI = ["httpx sync", "httpx async", "httpx2 sync", "httpx2 async"]
ANTHROPIC = ["httpx2 sync", "httpx2 async"]


@pytest.mark.parametrize("http", OPENAI)
async def test_openai_gives_what_a_direct_call_gives(proxy: Proxy, vendor: str, http: str) -> None:
    found = []
    for transport in (None, DurableTransport(proxy.url, store=MemoryStore())):
        async with sdk("openai", http, vendor, transport) as client:
            chat, responses = client.chat.completions.create, client.responses.create
            options: Any = {"include_usage": True}
            found.append(
                [
                    (await call(chat, **QUESTION)).model_dump(),
                    await objects(await call(chat, **QUESTION, stream=True, stream_options=options)),
                    (await call(responses, model="m", input="And the sea?")).model_dump(),
                    await objects(await call(responses, model="m", input="And the sea?", stream=True)),
                ]
            )
    assert found[0] == found[1]


@pytest.mark.parametrize("http", ANTHROPIC)
async def test_anthropic_gives_what_a_direct_call_gives(proxy: Proxy, vendor: str, http: str) -> None:
    found = []
    for transport in (None, DurableTransport(proxy.url, store=MemoryStore())):
        async with sdk("anthropic", http, vendor, transport) as client:
            create = client.messages.create
            found.append(
                [
                    (await call(create, **LONG)).model_dump(),
                    await objects(await call(create, **LONG, stream=True)),
                ]
            )
    assert found[0] == found[1]


async def test_anthropics_own_http_client_takes_the_transport(proxy: Proxy, vendor: str) -> None:
    """It refuses whatever inherits from httpx."""
    transport = DurableTransport(proxy.url, store=MemoryStore())
    async with anthropic.DefaultAsyncHttpxClient(transport=transport) as http_client:
        client = anthropic.AsyncAnthropic(api_key="any", base_url=vendor, http_client=http_client, default_headers=FAST)
        async with client.messages.stream(**LONG) as stream:
            assert await stream.get_final_text()


async def test_a_response_has_the_vendors_request_id_and_ours(proxy: Proxy, vendor: str, session: str) -> None:
    async with sdk("openai", "httpx2 async", vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        headers = {"X-Session-ID": session, "X-Request-ID": "1"}
        raw = await client.chat.completions.with_raw_response.create(**QUESTION, extra_headers=headers)
        assert raw.headers["X-Request-ID"].startswith("req_")
        assert raw.parse()._request_id == raw.headers["X-Request-ID"]
        assert (raw.headers["X-Session-ID"], raw.headers["Streamkeep-Request-ID"]) == (session, "1")


@pytest.mark.parametrize("http", OPENAI)
async def test_openai_raises_its_own_errors(proxy: Proxy, vendor: str, http: str) -> None:
    async with sdk("openai", http, vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await call(client.chat.completions.create, **QUESTION, extra_headers=LIMITED)
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.response.headers["Upstream-Status"] == "429"


@pytest.mark.parametrize("http", ANTHROPIC)
async def test_anthropic_raises_its_own_errors(proxy: Proxy, vendor: str, http: str) -> None:
    async with sdk("anthropic", http, vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        with pytest.raises(anthropic.RateLimitError):
            await call(client.messages.create, **LONG, extra_headers=LIMITED)


@pytest.mark.parametrize("http", ["httpx async", "httpx2 sync"])
async def test_the_proxys_refusal_is_an_error_of_the_sdks_with_its_reason(proxy: Proxy, http: str) -> None:
    async with sdk("openai", http, "http://not.allowed", DurableTransport(proxy.url, store=MemoryStore())) as client:
        with pytest.raises(openai.PermissionDeniedError, match="STREAMKEEP_ALLOW") as caught:
            await call(client.chat.completions.create, **QUESTION)
        assert caught.value.code == "upstream_not_allowed"
        assert caught.value.response.headers["X-Should-Retry"] == "false"


@pytest.mark.parametrize("http", OPENAI)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_ending_is_its_own_exception_through_openai(
    proxy: Proxy, vendor: str, http: str, stream: bool
) -> None:
    async with sdk("openai", http, vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        fault = {"Fake-Fault": "truncate@9" if stream else "cut@1"}
        with pytest.raises(Truncated if stream else GenerationError):
            await objects(await call(client.chat.completions.create, **QUESTION, stream=stream, extra_headers=fault))


@pytest.mark.parametrize("http", ANTHROPIC)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_ending_is_its_own_exception_through_anthropic(
    proxy: Proxy, vendor: str, http: str, stream: bool
) -> None:
    """What breaks before the SDK's method returns it wraps; the cause is ours."""
    async with sdk("anthropic", http, vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        fault = {"Fake-Fault": "truncate@9" if stream else "cut@1"}
        with pytest.raises(Truncated if stream else anthropic.APIConnectionError) as caught:
            await objects(await call(client.messages.create, **LONG, stream=stream, extra_headers=fault))
        assert isinstance(caught.value if stream else caught.value.__cause__, GenerationError)


async def number_of_calls(vendor: str, key: str) -> int:
    async with httpx.AsyncClient(base_url=vendor) as client:
        return len((await client.get("/_fake/calls", params={"key": key})).json()["calls"])


@pytest.mark.parametrize(("package", "http"), [("openai", "httpx async"), ("anthropic", "httpx2 sync")])
async def test_an_sdk_that_tries_again_does_not_pay_again(
    proxy: Proxy, vendor: str, package: str, http: str, session: str
) -> None:
    """The vendor takes longer than the SDK waits, and the SDK repeats the call: the repeat joins the first one."""
    async with sdk(package, http, vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        client = client.with_options(max_retries=1)
        create = client.chat.completions.create if package == "openai" else client.messages.create
        wishes = {"Fake-Headers-Delay": "0.6", "Fake-Key": session}
        timeout = (httpx if http.startswith("httpx ") else httpx2).Timeout(5, read=0.5)
        answer = await call(create, **LONG, extra_headers=wishes, timeout=timeout)
        assert answer.model_dump_json()
        assert await number_of_calls(vendor, session) == 1


async def test_a_refused_call_is_repeated_by_the_sdk_under_new_ids(proxy: Proxy, vendor: str, session: str) -> None:
    async with sdk("openai", "httpx2 async", vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        wishes = {"Fake-Fault": "status:400x1", "Fake-Key": session, "X-Session-ID": session}
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(**QUESTION, extra_headers=wishes)
        again = await client.chat.completions.create(**QUESTION, extra_headers=wishes)
        assert again.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("http", OPENAI)
async def test_no_proxy_is_a_connection_error_of_the_sdks(http: str) -> None:
    patience = Patience(send_seconds=0.2)
    transport = DurableTransport("http://127.0.0.1:9", store=MemoryStore(), patience=patience)
    async with sdk("openai", http, "http://127.0.0.1:9", transport) as client:
        with pytest.raises(openai.APIConnectionError):
            await call(client.chat.completions.create, **QUESTION)


@pytest.mark.parametrize("http", OPENAI)
async def test_a_proxy_that_vanishes_is_a_connection_error_of_the_sdks(http: str) -> None:
    event = b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
    async with scripted_proxy(event * 2) as proxy:
        proxy.data = [proxy.sending(data_event(event, len(event)), then="reset"), reset]
        transport = DurableTransport(
            proxy.url, store=MemoryStore(), patience=Patience(max_reconnects=3, pause_seconds=0.05)
        )
        async with sdk("openai", http, "http://127.0.0.1:9", transport) as client:
            stream = await call(client.chat.completions.create, **QUESTION, stream=True)
            with pytest.raises(openai.APIConnectionError):
                await objects(stream)


@pytest.mark.parametrize(("package", "http"), [("openai", http) for http in OPENAI] + [("anthropic", ANTHROPIC[1])])
async def test_resuming_replays_from_the_start(
    proxy: Proxy, vendor: str, session: str, package: str, http: str
) -> None:
    """A stream is left in the middle; the resumed one gives all events, and the vendor is called once."""
    store = MemoryStore()
    async with sdk(package, http, vendor, DurableTransport(proxy.url, store=store, session_id=session)) as client:
        create = client.chat.completions.create if package == "openai" else client.messages.create
        wishes = {"Fake-Key": session, "Fake-Rate": "60"}
        stream = await call(create, **LONG, stream=True, extra_headers=wishes)
        taken = await left_after(stream, 5)
        resumed = await objects(await call(create, **LONG, stream=True, extra_headers=RESUME))
        whole = await objects(await call(create, **LONG, stream=True, extra_headers={"Fake-Rate": "0"}))
        assert (resumed[:5], resumed) == (taken, whole)
        assert await number_of_calls(vendor, session) == 1


async def left_after(stream: Any, count: int) -> list[dict[str, Any]]:
    """The first events of a stream, which is closed then."""
    taken: list[dict[str, Any]] = []
    if hasattr(stream, "__anext__"):
        async for event in stream:
            taken.append(event.model_dump())
            if len(taken) == count:
                break
        await stream.close()
    else:
        taken = await asyncio.to_thread(lambda: [next(stream).model_dump() for _ in range(count)])
        await asyncio.to_thread(stream.close)
    return taken


@pytest.mark.parametrize("http", OPENAI)
async def test_a_finished_stream_is_not_resumed_although_the_sdk_stopped_reading(
    proxy: Proxy, vendor: str, session: str, http: str
) -> None:
    """`openai` stops at its end mark, so it never sees the end; that counts as ended all the same."""
    async with sdk("openai", http, vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        create, name = client.chat.completions.create, {"X-Session-ID": session}
        await objects(await call(create, **QUESTION, stream=True, extra_headers=name))
        with pytest.raises(NothingToResume) as caught:
            await call(create, **QUESTION, stream=True, extra_headers={**name, **RESUME})
        assert caught.value.reason is ResumeReason.ENDED


@pytest.mark.parametrize("http", OPENAI)
async def test_nothing_to_resume_says_why_through_openai(proxy: Proxy, vendor: str, session: str, http: str) -> None:
    async with sdk("openai", http, vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        with pytest.raises(NothingToResume) as caught:
            await call(client.chat.completions.create, **QUESTION, extra_headers={"X-Session-ID": session, **RESUME})
        assert caught.value.reason is ResumeReason.NONE


async def test_nothing_to_resume_is_the_cause_through_anthropic(proxy: Proxy, vendor: str, session: str) -> None:
    async with sdk("anthropic", "httpx2 async", vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        with pytest.raises(anthropic.APIConnectionError) as caught:
            await client.messages.create(**LONG, extra_headers={"X-Session-ID": session, **RESUME})
        assert isinstance(caught.value.__cause__, NothingToResume)


async def test_an_ended_generation_is_replayed_by_its_name_through_openai(
    proxy: Proxy, vendor: str, session: str
) -> None:
    async with sdk("openai", "httpx async", vendor, DurableTransport(proxy.url, store=MemoryStore())) as client:
        create, names = client.chat.completions.create, {"X-Session-ID": session, "X-Request-ID": "1"}
        first = await create(**QUESTION, extra_headers=names)
        again = await create(**QUESTION, extra_headers={**names, **RESUME})
        assert again == first


async def test_without_a_replay_a_transport_goes_on_where_it_was() -> None:
    has_first = asyncio.Event()
    async with scripted_proxy() as proxy:

        async def two(exchange: Exchange) -> None:
            await proxy.begin(exchange)
            await exchange.chunk(data_event(b"0123", 4))
            await has_first.wait()
            await exchange.chunk(data_event(b"45", 6))
            await exchange.is_gone.wait()

        proxy.data = [two, proxy.serve]
        transport = DurableTransport(proxy.url, store=MemoryStore(), session_id=SESSION)
        async with httpx.AsyncClient(transport=transport) as client:
            async with client.stream("POST", "http://vendor.test/") as response:
                pieces = response.aiter_raw()
                assert await anext(pieces) == b"0123"
                has_first.set()
                assert await anext(pieces) == b"45"
            resumed = await client.get("http://vendor.test/", headers={**RESUME, "X-Replay-From-Start": "false"})
            assert (resumed.text, resumed.headers["Streamkeep-Start-Offset"]) == ("456789", "4")
            assert resumed.headers["X-Request-ID"] == REQUEST


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_what_comes_out_is_of_the_package_that_asked(library: Any) -> None:
    async with scripted_proxy() as proxy:
        transport = DurableTransport(proxy.url, store=MemoryStore())
        async with library.AsyncClient(transport=transport) as client:
            async with client.stream("GET", "http://vendor.test/") as response:
                assert type(response) is library.Response
                assert await response.aread() == b"0123456789"
            proxy.data = [proxy.sending(data_event(b"0123", 4), then="silence")]
            async with client.stream("GET", "http://vendor.test/", timeout=1.0) as response:
                with pytest.raises(library.ReadTimeout) as caught:
                    await response.aread()
                assert str(caught.value.request.url) == "http://vendor.test/"
            proxy.data = [proxy.answering(200, b"<html>", Content_Type="text/html")]
            with pytest.raises(library.RemoteProtocolError):
                await client.get("http://vendor.test/")


PROGRAM = """
import sys
import httpx, openai
from streamkeep.client import DurableTransport, SQLiteStore

proxy_url, vendor, store, resume = sys.argv[1:]
transport = DurableTransport(proxy_url, store=SQLiteStore(store))
client = openai.OpenAI(base_url=vendor + "/v1", api_key="any", http_client=httpx.Client(transport=transport))
headers = {"X-Session-ID": "program", "Fake-Tokens": "200", "Fake-Rate": "100", "X-Resume-Active-Generation": resume}
messages = [{"role": "user", "content": "Speak"}]
for event in client.chat.completions.create(model="m", messages=messages, stream=True, extra_headers=headers):
    print(event.choices[0].delta.content or "", end="", flush=True)
"""


async def test_a_killed_program_is_followed_by_one_that_has_it_all(proxy: Proxy, vendor: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, proxy.url, vendor, str(tmp_path / "client.sqlite3")]

    async def start(resume: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*command, resume, stdout=pipe, env=dict(os.environ))

    first = await start("false")
    assert first.stdout is not None
    heard = await first.stdout.readexactly(60)
    first.send_signal(signal.SIGKILL)
    heard += (await first.communicate())[0]
    (record,) = SQLiteStore(tmp_path / "client.sqlite3").records(proxy.url, "program")
    assert record.state is RecordState.OPEN
    second = await start("true")
    answer = (await second.communicate())[0]
    assert second.returncode == 0
    assert answer.startswith(heard)
    assert len(answer) > len(heard)
    async with httpx.AsyncClient(base_url=vendor) as http:
        calls = (await http.get("/_fake/calls")).json()["calls"]
    assert len([made for made in calls if made["path"].endswith("completions") and made["tokens"] == 200]) == 1


def test_everything_of_ours_has_one_root() -> None:
    assert issubclass(GenerationError, StreamkeepError)
    assert issubclass(NothingToResume, StreamkeepError)
