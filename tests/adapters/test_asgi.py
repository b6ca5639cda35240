"""`streamkeep.adapters.asgi` in a FastAPI app on a real server: over a stream server by URL, and over one in the app's own process."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from streamkeep.adapters.asgi import DurableResponses, InProcess
from streamkeep.client import astream
from streamkeep.proxy import create_app
from streamkeep.storage import MemoryStore
from tests.serving import CERTIFICATES, Proxy, local_settings

WORDS = ["Hello", " wörld", " ☃"]


@dataclass
class Backend:
    """An app whose answers say `WORDS`, one by one: each word beyond those that `may_say` counts waits."""

    url: str
    responses: DurableResponses
    client: httpx.AsyncClient
    may_say: asyncio.Semaphore
    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    fails: bool = False

    async def answer(self, name: str) -> AsyncIterator[dict[str, Any]]:
        self.begun.append(name)
        try:
            for word in WORDS:
                await self.may_say.acquire()
                yield {"type": "text-delta", "id": "0", "delta": word}
            if self.fails:
                raise RuntimeError("the key sk-secret is wrong")
        finally:
            self.ended.append(name)

    def say(self, words: int) -> None:
        for _ in range(words):
            self.may_say.release()

    async def post(self, shape: str, generation: str = "1", **query: str) -> httpx.Response:
        return await self.client.post(f"/{shape}/chat/{generation}", params=query, json={})

    async def messages(self, url: str) -> list[Any]:
        async with asyncio.timeout(60), astream(str(httpx.URL(self.url).join(url))) as response:
            return [message async for message in response.iter_json()]


def routes(backend: Backend) -> FastAPI:
    app, responses = FastAPI(), backend.responses

    @app.post("/ai/{chat}/{generation}")
    async def ai(chat: str, generation: str, wait: bool = False) -> Response:
        return await responses.ai_sdk(chat, generation, backend.answer(generation), wait=wait)

    @app.get("/ai/{chat}/stream")
    async def running(chat: str) -> Response:
        return await responses.running(chat)

    @app.post("/tanstack/{chat}/{generation}")
    async def tanstack(chat: str, generation: str, wait: bool = False) -> Response:
        said = {"id": f"q{generation}", "role": "user", "parts": [{"type": "text", "content": "Hi"}]}
        return await responses.tanstack(chat, generation, [said], backend.answer(generation), wait=wait)

    @app.post("/sse/{chat}/{generation}")
    async def sse(chat: str, generation: str) -> Response:
        return await responses.sse(chat, generation, backend.answer(generation))

    @app.get("/sse/{chat}")
    async def resumed(request: Request, chat: str, generation: str | None = None) -> Response:
        return await responses.resume_sse(request, chat, generation)

    @app.get("/streams/{chat}")
    @app.head("/streams/{chat}")
    async def read_chat(request: Request, chat: str) -> Response:
        return await responses.read(request, chat)

    @app.get("/streams/{chat}/{generation}")
    async def read(request: Request, chat: str, generation: str) -> Response:
        return await responses.read(request, chat, generation)

    return app


@asynccontextmanager
async def backend_over(responses: DurableResponses) -> AsyncIterator[Backend]:
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with responses, httpx.AsyncClient(base_url=url, verify=CERTIFICATES, timeout=60) as client:
        backend = Backend(url, responses, client, asyncio.Semaphore(0))
        server = uvicorn.Server(uvicorn.Config(routes(backend), log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield backend
        finally:
            server.should_exit = True
            await serving


def over(url: str, **options: Any) -> DurableResponses:
    return DurableResponses(url, read_url="/streams/{chat}/{generation}", drain_seconds=0, **options)


@pytest.fixture(params=["by URL", "in process"])
async def backend(request: pytest.FixtureRequest, proxy: Proxy, session: str) -> AsyncIterator[Backend]:
    if request.param == "by URL":
        responses = over(f"{proxy.url}/v1/stream/{session}")
    else:
        app = create_app(store=MemoryStore(), settings=local_settings())
        responses = over(f"http://127.0.0.1/v1/stream/{session}", http=InProcess(app))
    async with backend_over(responses) as served:
        yield served


def chunks(*words: str) -> list[dict[str, Any]]:
    return [{"type": "text-delta", "id": "0", "delta": word} for word in words]


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_ai_sdk_is_told_where_to_read_and_finds_what_runs(backend: Backend) -> None:
    assert (await backend.client.get("/ai/chat/stream")).status_code == 204
    created = await backend.post("ai")
    assert (created.status_code, created.headers["Location"]) == (201, "/streams/chat/1")
    assert created.json() == {"streamUrl": "/streams/chat/1"}
    found = await backend.client.get("/ai/chat/stream")
    assert (found.status_code, found.json()) == (200, created.json())
    backend.say(3)
    assert await backend.messages(created.headers["Location"]) == chunks(*WORDS)
    assert (await backend.client.get("/ai/chat/stream")).status_code == 204


async def test_who_waits_is_told_the_end(backend: Backend) -> None:
    backend.say(6)
    answer = await backend.post("ai", wait="true")
    assert answer.status_code == 200
    head = await backend.client.get("/streams/chat/1", params={"offset": "now"})
    assert answer.json() == {"streamUrl": "/streams/chat/1", "finalOffset": head.headers["Stream-Next-Offset"]}
    assert (await backend.post("tanstack", "2", wait="true")).status_code == 200
    assert backend.ended == ["1", "2"]


async def test_one_generation_however_many_ask(backend: Backend) -> None:
    answers = await asyncio.gather(*(backend.post("ai") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert {answer.headers["Location"] for answer in answers} == {"/streams/chat/1"}
    backend.say(3)
    assert await backend.messages("/streams/chat/1") == chunks(*WORDS)
    assert (await backend.post("ai")).status_code == 200
    assert backend.begun == ["1"]


async def test_the_generator_goes_on_when_its_caller_leaves(backend: Backend) -> None:
    backend.say(1)
    async with backend.client.stream("POST", "/sse/chat/1") as answer:
        heard = await anext(answer.aiter_text())
    event_id = heard.partition("\n")[0].removeprefix("id: ")
    backend.say(2)
    await until(lambda: backend.ended)
    assert await backend.messages("/streams/chat/1") == chunks(*WORDS)
    rest = await backend.client.get("/sse/chat?generation=1", headers={"Last-Event-ID": event_id})
    said = [line.removeprefix("data: ") for line in rest.text.splitlines() if line.startswith("data: ")]
    assert [json.loads(chunk) for chunk in said[:-1]] == chunks(*WORDS[1:])
    assert said[-1] == "[DONE]"
    assert backend.begun == ["1"]


async def test_an_event_source_resumes_at_every_event_and_stops_at_the_end(backend: Backend) -> None:
    backend.say(3)
    whole = (await backend.post("sse")).text
    ids = [line.removeprefix("id: ") for line in whole.splitlines() if line.startswith("id: ")]
    assert len(ids) == len(WORDS)
    for number, event_id in enumerate(ids, 1):
        rest = await backend.client.get("/sse/chat?generation=1", headers={"Last-Event-ID": event_id})
        told = [json.loads(line[6:]) for line in rest.text.splitlines() if line.startswith("data: {")]
        assert told == chunks(*WORDS[number:])
        assert (rest.status_code == 204) == (number == len(WORDS))
    assert (await backend.client.get("/sse/chat")).status_code == 204, "nothing runs"


async def test_a_running_generation_is_resumed_as_events(backend: Backend) -> None:
    assert (await backend.post("ai")).status_code == 201
    async with backend.client.stream("GET", "/sse/chat") as answer:
        backend.say(3)
        text = "".join([piece async for piece in answer.aiter_text()])
    assert [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")] == chunks(*WORDS)


async def test_a_failed_generator_is_never_a_clean_end(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    backend.fails = True
    backend.say(9)
    with caplog.at_level(logging.CRITICAL, "streamkeep"):
        sse = await backend.post("sse")
        await backend.post("tanstack", "2", wait="true")
    error = {"type": "error", "errorText": "the answer broke off"}
    assert await backend.messages("/streams/chat/1") == [*chunks(*WORDS), error]
    assert sse.text.endswith(f"data: {json.dumps(error, separators=(',', ':'))}\n\n")
    shared = (await backend.client.get("/streams/chat", params={"offset": "-1"})).json()
    assert shared[-1]["type"] == "RUN_ERROR"
    assert "sk-secret" not in sse.text + str(shared)


async def test_a_chunk_that_is_too_large_ends_the_answer_and_says_why(session: str) -> None:
    settings = replace(local_settings(), max_append_bytes=1000)
    responses = over(
        f"http://127.0.0.1/v1/stream/{session}", http=InProcess(create_app(store=MemoryStore(), settings=settings))
    )

    async def answer() -> AsyncIterator[dict[str, Any]]:
        for word in ("small", "large" * 1000, "never"):
            yield {"type": "text-delta", "id": "0", "delta": word}

    async with backend_over(responses) as backend:
        assert (await responses.ai_sdk("chat", "1", answer())).status_code == 201
        told = await backend.messages("/streams/chat/1")
    assert told[-1] == {"type": "error", "errorText": "the answer could not be stored whole"}
    assert chunks("never")[0] not in told


async def test_tanstack_reads_one_stream_for_the_whole_chat(backend: Backend) -> None:
    empty = await backend.client.get("/streams/chat", params={"offset": "-1"})
    assert (empty.status_code, empty.json()) == (200, [])
    answers = [await backend.post("tanstack", generation) for generation in ("1", "1", "2")]
    assert [(answer.status_code, answer.content) for answer in answers] == [(202, b""), (200, b""), (202, b"")]
    backend.say(6)
    await until(lambda: sorted(backend.ended) == ["1", "2"])
    assert (await backend.post("tanstack", "2", wait="true")).status_code == 200
    told = (await backend.client.get("/streams/chat", params={"offset": "-1"})).json()
    assert [chunk["messageId"] for chunk in told if chunk["type"] == "TEXT_MESSAGE_END"] == ["q1", "q2"]
    assert [chunk["delta"] for chunk in told if chunk["type"] == "text-delta"].count(WORDS[0]) == 2


async def test_what_a_process_left_behind_is_ended_by_the_next(proxy: Proxy, session: str) -> None:
    url = f"{proxy.url}/v1/stream/{session}"
    async with backend_over(over(url, lease_seconds=1)) as first, backend_over(over(url, lease_seconds=1)) as second:
        for shape, generation in (("ai", "1"), ("tanstack", "2")):
            await first.post(shape, generation)
            assert (await second.post(shape, generation)).status_code == 200
        first.say(2)
        reading = asyncio.create_task(second.messages("/streams/chat/1"))
        await freeze(first.responses)
        told = await reading
        assert told[-1] == {"type": "error", "errorText": "the server that generated this is gone"}
        assert (await second.post("tanstack", "2")).status_code == 200
        shared = await second.client.get("/streams/chat", params={"offset": "-1"})
        assert shared.json()[-1]["type"] == "RUN_ERROR"
        # The first is alive after all, and must not write behind the end.
        first.say(9)
        await until(lambda: sorted(first.ended) == ["1", "2"])
        assert await second.messages("/streams/chat/1") == told
        assert (await second.client.get("/streams/chat", params={"offset": "-1"})).json() == shared.json()
    assert second.begun == []


async def freeze(responses: DurableResponses) -> None:
    """Let a process renew its lease no more."""
    lease = responses._lease
    assert lease is not None
    lease.cancel()


async def test_a_server_that_stops_says_so(proxy: Proxy, session: str) -> None:
    url = f"{proxy.url}/v1/stream/{session}"
    async with backend_over(over(url)) as backend:
        backend.say(1)
        await backend.post("ai")
        await until(lambda: backend.begun)
    told = [message async for message in astream_all(f"{url}/chat/1")]
    assert told[-1] == {"type": "error", "errorText": "the server was stopped"}
    assert backend.ended == ["1"]


async def test_an_answer_that_is_stopped_closes_its_generator_and_tells_its_readers(backend: Backend) -> None:
    for shape, generation in (("ai", "1"), ("tanstack", "2")):
        await backend.post(shape, generation)
    await until(lambda: sorted(backend.begun) == ["1", "2"])
    stop = backend.responses.stop
    stopped = await asyncio.gather(*(stop("chat", generation) for generation in ("1", "1", "2")))
    assert {answer.status_code for answer in stopped} == {204}
    assert sorted(backend.ended) == ["1", "2"]
    assert await backend.messages("/streams/chat/1") == [{"type": "error", "errorText": "the answer was stopped"}]
    shared = (await backend.client.get("/streams/chat", params={"offset": "-1"})).json()
    assert [chunk["message"] for chunk in shared if chunk["type"] == "RUN_ERROR"] == ["the answer was stopped"]
    assert (await stop("chat")).status_code == 204, "nothing runs"
    assert (await stop("no/id")).status_code == 400


async def test_a_generator_that_takes_no_notice_is_stopped_for_its_readers(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamkeep.adapters.asgi._LAST_WORDS_SECONDS", 0.1)
    begun = asyncio.Event()

    async def deaf() -> AsyncIterator[dict[str, Any]]:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        yield chunks("anyway")[0]
        await asyncio.Event().wait()

    await backend.responses.ai_sdk("chat", "1", deaf())
    await begun.wait()
    assert (await backend.responses.stop("chat")).status_code == 204
    told = await backend.messages("/streams/chat/1")
    assert told[-1] == {"type": "error", "errorText": "the answer was stopped"}


async def test_any_process_stops_an_answer(proxy: Proxy, session: str) -> None:
    url = f"{proxy.url}/v1/stream/{session}"
    async with backend_over(over(url)) as first, backend_over(over(url)) as second:
        await first.post("ai")
        assert (await second.responses.stop("chat")).status_code == 204
        told = await second.messages("/streams/chat/1")
        assert told == [{"type": "error", "errorText": "the answer was stopped"}]
        first.say(9)
        await until(lambda: first.ended == ["1"])
        assert await second.messages("/streams/chat/1") == told


async def astream_all(url: str) -> AsyncIterator[Any]:
    async with astream(url) as response:
        async for message in response.iter_json():
            yield message


async def test_ids_that_cannot_be_are_refused(backend: Backend) -> None:
    unheard: Any = {}
    for hostile in ("..", "a b", "ä", "~messages", "x" * 201, "a/b", "", unheard):
        for answer in (
            await backend.responses.ai_sdk("chat", hostile, backend.answer("x")),
            await backend.responses.tanstack(hostile, "1", [], backend.answer("x")),
            await backend.responses.running(hostile),
        ):
            assert (answer.status_code, json.loads(bytes(answer.body))["error"]) == (400, "invalid_id")
    nobody: Any = None
    for answer in (
        await backend.responses.ai_sdk(nobody, "1", backend.answer("x")),
        await backend.responses.ai_sdk("chat", nobody, backend.answer("x")),
        await backend.responses.running(nobody),
    ):
        assert answer.status_code == 400
    assert backend.begun == []


async def test_reads_of_what_is_not_there(backend: Backend) -> None:
    assert (await backend.client.get("/streams/chat/1", params={"offset": "-1"})).status_code == 404
    assert (await backend.client.get("/sse/chat", params={"generation": "1"})).status_code == 404
    await backend.post("ai")
    assert (await backend.client.get("/streams/chat/1", params={"offset": "junk"})).status_code == 400
    assert (await backend.client.get("/sse/chat", headers={"Last-Event-ID": "junk/1"})).status_code == 400


async def test_a_server_that_is_away_is_no_500(session: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    responses = over(f"http://127.0.0.1:{port}/v1/stream/{session}")
    async with backend_over(responses) as backend:
        answer = await backend.client.get("/streams/chat/1", params={"offset": "-1"})
        assert (answer.status_code, answer.json()["error"]) == (503, "storage_unavailable")


APP = """
import asyncio, sys
import uvicorn
from fastapi import FastAPI, Response
from streamkeep.adapters.asgi import DurableResponses

responses = DurableResponses(sys.argv[1], read_url="/{chat}/{generation}", lease_seconds=2)
app = FastAPI()

async def answer():
    yield {"type": "start"}
    await asyncio.Event().wait()

@app.post("/{chat}/{generation}")
async def ask(chat: str, generation: str) -> Response:
    return await responses.ai_sdk(chat, generation, answer())

async def main():
    async with responses:
        await uvicorn.Server(uvicorn.Config(app, port=0)).serve()

asyncio.run(main())
"""


async def test_the_generation_of_a_killed_process_is_ended_for_its_readers(proxy: Proxy, session: str) -> None:
    url = f"{proxy.url}/v1/stream/{session}"
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", APP, url, stderr=asyncio.subprocess.PIPE)
    assert killed.stderr is not None
    async with asyncio.timeout(30):
        while not (found := re.search(rb"http://[0-9.]+:[1-9][0-9]*", await killed.stderr.readline())):
            pass
    async with backend_over(over(url, lease_seconds=2)) as other:
        async with httpx.AsyncClient(base_url=found[0].decode()) as client:
            assert (await client.post("/chat/1")).status_code == 201
        assert (await other.client.get("/ai/chat/stream")).status_code == 200
        async with asyncio.timeout(60), astream(other.url + "/streams/chat/1") as response:
            assert await anext(response.iter_json()) == {"type": "start"}
        reading = asyncio.create_task(other.messages("/streams/chat/1"))
        killed.kill()
        await killed.communicate()
        told = await reading
        assert (await other.client.get("/ai/chat/stream")).status_code == 204
    assert told[0] == {"type": "start"}
    assert told[1] == {"type": "error", "errorText": "the server that generated this is gone"}
    assert (len(told), other.begun) == (2, [])
