"""The published transports for chat front ends, unmodified, read the JSON view of what a vendor sends as events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from streamkeep.storage.postgres import PostgresStore
from tests import node
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Script, upstream

WORDS = ["Hello", " wörld", " ☃", "\n\nand", " more"]
UI_MESSAGE = [
    {"type": "start", "messageId": "answer"},
    {"type": "text-start", "id": "0"},
    *({"type": "text-delta", "id": "0", "delta": word} for word in WORDS),
    {"type": "text-end", "id": "0"},
    {"type": "finish"},
]
AG_UI = [
    {"type": "RUN_STARTED", "threadId": "t", "runId": "r"},
    {"type": "TEXT_MESSAGE_START", "messageId": "answer", "role": "assistant"},
    *({"type": "TEXT_MESSAGE_CONTENT", "messageId": "answer", "delta": word} for word in WORDS),
    {"type": "TEXT_MESSAGE_END", "messageId": "answer"},
    {"type": "RUN_FINISHED", "threadId": "t", "runId": "r"},
]


@pytest.fixture(scope="session")
def scripts() -> Path:
    return node.project(Path(__file__).parent)


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with serving(PostgresStore(database_url)) as served:
        yield served


def says(messages: Iterable[object], *, breaks: bool = False) -> Script:
    """An upstream that sends messages as events, cut where events are not, and slowly enough to be read live."""
    body = b"".join(b"data: " + json.dumps(message, ensure_ascii=False).encode() + b"\n\n" for message in messages)
    body += b"" if breaks else b"data: [DONE]\n\n"

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        for start in range(0, len(body), 37):
            await exchange.chunk(body[start : start + 37])
            await asyncio.sleep(0.02)
        if breaks:
            exchange.reset()
        else:
            await exchange.end()

    return play


async def play(scripts: Path, proxy: Proxy, scenario: str, script: Script, *, calls: int = 1) -> Any:
    async with upstream(script) as server:
        status, output = await node.run(scripts, "transports.mjs", proxy.url, server.url, scenario, timeout_seconds=60)
        assert status == 0, output
        assert len(server.calls) == calls
    return json.loads(output)


async def test_the_ai_sdk_chats_and_reconnects(scripts: Path, proxy: Proxy) -> None:
    found = await play(scripts, proxy, "aisdk", says(UI_MESSAGE))
    assert found["sent"] == found["reconnected"] == {"chunks": UI_MESSAGE, "text": "".join(WORDS), "errors": []}


async def test_the_ai_sdk_is_told_that_an_answer_broke_off(scripts: Path, proxy: Proxy) -> None:
    found = await play(scripts, proxy, "aisdk", says(UI_MESSAGE[:4], breaks=True))
    reason = (await proxy.ending("chat", "1"))["message"]
    error = {"type": "error", "errorText": reason}
    for read in (found["sent"], found["reconnected"]):
        assert (read["chunks"], read["text"]) == ([*UI_MESSAGE[:4], error], "".join(WORDS[:2]))
        assert any(reason in text for text in read["errors"])


async def test_the_ai_sdk_goes_on_with_a_chat_and_finds_what_runs(scripts: Path, proxy: Proxy) -> None:
    found = await play(scripts, proxy, "conversation", says(UI_MESSAGE), calls=2)
    assert found == {"texts": [["".join(WORDS)] * 2] * 2, "idle": None}


async def test_tanstack_follows_and_materializes(scripts: Path, proxy: Proxy) -> None:
    found = await play(scripts, proxy, "tanstack", says(AG_UI))
    assert found["chunks"] == AG_UI
    [message] = found["snapshot"]["messages"]
    assert message["parts"] == [{"type": "text", "content": "".join(WORDS)}]


async def test_the_protocols_client_reads_live_and_resumes_anywhere(scripts: Path, proxy: Proxy) -> None:
    found = await play(scripts, proxy, "client", says(UI_MESSAGE))
    assert found["sse"] == found["longPoll"] == UI_MESSAGE
    batches = [batch["items"] for batch in found["batches"]]
    assert list(chain.from_iterable(batches)) == UI_MESSAGE
    assert len(batches) > 3
    for number, rest in enumerate(found["rests"], start=1):
        assert rest == list(chain.from_iterable(batches[number:]))
