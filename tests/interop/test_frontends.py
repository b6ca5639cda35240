"""The published packages of chat front ends, unmodified, on an app with `streamkeep.adapters.asgi` and `streamkeep.adapters.chunks`."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from streamkeep.adapters.asgi import DurableResponses, InProcess
from streamkeep.adapters.chunks import ai_sdk_chunks, tanstack_chunks
from streamkeep.proxy import create_app
from streamkeep.storage import MemoryStore
from tests import node
from tests.replay import Trace
from tests.serving import local_settings

RECORDED = ["chat-short", "openai-responses", "anthropic-messages", "chat-upstream-killed"]
CALL = [
    {"id": "a", "choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]},
    {"id": "a", "choices": [{"index": 0, "delta": {"content": "Let me see."}}]},
    *(
        {"id": "a", "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **call}]}}]}
        for call in (
            {"id": "call", "function": {"name": "weather", "arguments": ""}},
            {"function": {"arguments": '{"city": "Ł'}},
            {"function": {"arguments": 'ódź"}'}},
        )
    ),
    {"id": "a", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    {"id": "a", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 0}},
]


def recorded(name: str) -> list[Any]:
    lines = Trace.load(name).body.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def text_of(events: list[Any]) -> str:
    texts = [event.get("delta") for event in events]
    texts += [event["choices"][0]["delta"].get("content") for event in events if event.get("choices")]
    return "".join((text.get("text") or "") if isinstance(text, dict) else text or "" for text in texts)


async def slowly(events: list[Any]) -> AsyncIterator[Any]:
    for event in events:
        yield event
        await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def scripts() -> Path:
    return node.project(Path(__file__).parent)


@asynccontextmanager
async def app_of_somebody() -> AsyncIterator[str]:
    """Streams in the app's own process; every answer is the recorded one."""
    server = InProcess(create_app(store=MemoryStore(), settings=local_settings()))
    responses = DurableResponses(
        "http://127.0.0.1/v1/stream/chats", read_url="/streams/{chat}/{generation}", http=server
    )
    app = FastAPI()

    def answer() -> AsyncIterator[Any]:
        return slowly(recorded("chat-short"))

    @app.post("/api/durable")
    @app.post("/api/plain")
    async def chat(request: Request) -> Response:
        asked = await request.json()
        shape = responses.ai_sdk if request.url.path == "/api/durable" else responses.sse
        return await shape(asked["id"], asked["messages"][-1]["id"], ai_sdk_chunks(answer(), message_id="answer"))

    @app.get("/api/durable/{chat}/stream")
    async def running(chat: str) -> Response:
        return await responses.running(chat)

    @app.get("/api/plain/{chat}/stream")
    async def resumed(request: Request, chat: str) -> Response:
        return await responses.resume_sse(request, chat)

    @app.post("/api/tanstack/{chat}")
    async def tanstack(request: Request, chat: str) -> Response:
        said = (await request.json())["messages"]
        run = said[-1]["id"]
        chunks = tanstack_chunks(answer(), thread_id=chat, run_id=run, message_id="answer")
        return await responses.tanstack(chat, run, said[-1:], chunks)

    @app.get("/api/tanstack/{chat}/snapshot")
    async def snapshot(chat: str) -> Response:
        return await responses.snapshot(chat)

    @app.get("/streams/{chat}")
    async def read_chat(request: Request, chat: str) -> Response:
        return await responses.read(request, chat)

    @app.get("/streams/{chat}/{generation}")
    async def read(request: Request, chat: str, generation: str) -> Response:
        return await responses.read(request, chat, generation)

    listener = socket.create_server(("127.0.0.1", 0))
    async with responses:
        served = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(served.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        served.should_exit = True
        await serving


async def play(scripts: Path, scenario: str, argument: str) -> Any:
    status, output = await node.run(scripts, "frontends.mjs", scenario, argument, timeout_seconds=60)
    assert status == 0, output
    return json.loads(output)


async def test_the_packages_take_every_chunk(scripts: Path, tmp_path: Path) -> None:
    answers = [CALL, *map(recorded, RECORDED)]
    made = {
        "aiSdk": [[chunk async for chunk in ai_sdk_chunks(slowly(events))] for events in answers],
        "tanstack": [
            [chunk async for chunk in tanstack_chunks(slowly(events), thread_id="t", run_id="r", message_id="a")]
            for events in answers
        ],
    }
    path = tmp_path / "chunks.json"
    path.write_text(json.dumps(made))
    found = await play(scripts, "chunks", str(path))
    called, *told = found["aiSdk"]
    parts = {part["type"]: part for part in called["message"]["parts"]}
    assert (parts["reasoning"]["text"], parts["text"]["text"]) == ("Hm.", "Let me see.")
    assert (parts["tool-weather"]["input"], parts["tool-weather"]["state"]) == ({"city": "Łódź"}, "input-available")
    assert called["message"]["metadata"]["usage"] == {"inputTokens": 7, "outputTokens": 0, "totalTokens": 7}
    for name, answer in zip(RECORDED, told, strict=True):
        texts = [part["text"] for part in answer["message"]["parts"] if part["type"] == "text"]
        assert texts == [text_of(recorded(name))]
        assert bool(answer["errors"]) == (name == "chat-upstream-killed")
    called, *told = found["tanstack"]
    assert {"type": "text", "content": "Let me see."} in called["messages"][0]["parts"]
    assert [part["arguments"] for part in called["messages"][0]["parts"] if part["type"] == "tool-call"] == [
        '{"city": "Łódź"}'
    ]
    for name, answer in zip(RECORDED, told, strict=True):
        [message] = answer["messages"]
        assert message["parts"] == [{"type": "text", "content": text_of(recorded(name))}]
        assert bool(answer["errors"]) == (name == "chat-upstream-killed")


@pytest.mark.parametrize("shape", ["durable", "plain"])
async def test_the_ai_sdk_chats_and_comes_back(scripts: Path, shape: str) -> None:
    async with app_of_somebody() as url:
        found = await play(scripts, shape, url)
    assert (found["idle"], found["over"]) == (None, None)
    assert found["first"] == found["second"]
    assert found["first"]["errors"] == []
    assert found["first"]["message"]["id"] == "answer"
    texts = [part["text"] for part in found["first"]["message"]["parts"] if part["type"] == "text"]
    assert texts == [text_of(recorded("chat-short"))]


async def test_tanstack_ai_chats_and_comes_back(scripts: Path) -> None:
    async with app_of_somebody() as url:
        found = await play(scripts, "tanstack", url)
    texts = [("user", "Hello"), ("assistant", text_of(recorded("chat-short")))]
    for messages in (found["messages"], found["snapshot"]["messages"]):
        assert [(message["role"], message["parts"][0]["content"]) for message in messages] == texts
    assert found["told"] == found["materialized"]
    assert found["errors"] == []
