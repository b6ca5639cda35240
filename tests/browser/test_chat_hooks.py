"""The published chat hooks, transports and clients, unmodified, in a page of another origin."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from tests import node
from tests.browser.pages import Pages
from tests.serving import Proxy
from tests.upstream import Exchange, upstream

SCRIPTS = Path(__file__).parent / "scripts"
BUNDLE = """
import { build } from "esbuild"
const options = { bundle: true, format: "esm", write: false, logLevel: "error", nodePaths: ["node_modules"] }
const [entry, environment] = process.argv.slice(1)
const define = { "process.env.NODE_ENV": JSON.stringify(environment) }
const { outputFiles } = await build({ ...options, define, entryPoints: [entry] })
process.stdout.write(outputFiles[0].text)
"""
WORDS = ["Hello", " wörld", " ☃", " and", " more"]


@pytest.fixture(scope="session")
def packages() -> Path:
    return node.project(Path(__file__).parents[1] / "interop")


async def bundled(packages: Path, script: str, *, environment: str = "production") -> str:
    """A page's script with everything that it imports. In development React's strict mode mounts everything twice."""
    arguments = ("--input-type=module", "--eval", BUNDLE, str(SCRIPTS / script), environment)
    status, output = await node.run(packages, *arguments, timeout_seconds=60)
    assert status == 0, output
    return output


class Answer:
    """An upstream's answer as chunks of a chat protocol, which comes on word by word."""

    def __init__(self, chunks: list[dict[str, Any]]) -> None:
        self.turn = asyncio.Semaphore(0)
        self._chunks = chunks

    async def play(self, exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        for chunk in self._chunks:
            if "delta" in chunk:
                await self.turn.acquire()
            await exchange.chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()

    def go_on(self, words: int) -> None:
        for _ in range(words):
            self.turn.release()


async def test_use_chat_of_the_ai_sdk_goes_on_after_a_reload(
    proxy: Proxy, pages: Pages, page: Page, packages: Path
) -> None:
    answer = Answer(
        [
            {"type": "start", "messageId": "answer"},
            {"type": "text-start", "id": "0"},
            *({"type": "text-delta", "id": "0", "delta": word} for word in WORDS),
            {"type": "text-end", "id": "0"},
            {"type": "finish"},
        ]
    )
    script = await bundled(packages, "ai_sdk.mjs")
    async with upstream(answer.play) as server:
        query = httpx.QueryParams(proxy=proxy.url, upstream=server.url, chat="chat")
        await page.goto(f"{pages.put_module('/chat', script)}?{query}")
        await page.get_by_role("button", name="Send").click()
        answer.go_on(2)
        said = page.locator("p.assistant")
        await expect(said).to_have_text("".join(WORDS[:2]))
        await page.reload()
        await expect(said).to_have_text("".join(WORDS[:2]))
        answer.go_on(len(WORDS) - 2)
        await expect(said).to_have_text("".join(WORDS))
        await expect(page.locator("output")).to_have_text("ready")
        assert len(server.calls) == 1


async def test_use_chat_of_tanstack_follows_its_session_through_a_reload(
    proxy: Proxy, pages: Pages, page: Page, packages: Path
) -> None:
    """A session is one stream, to which the application's own server writes what both sides say."""
    turn = asyncio.Semaphore(0)
    session = f"{proxy.url}/v1/stream/chats/1"
    await proxy.client.put(session, headers={"Content-Type": "application/json"})

    async def say(*chunks: dict[str, Any]) -> None:
        appended = await proxy.client.post(session, json=list(chunks))
        assert appended.status_code == 204

    async def play(exchange: Exchange) -> None:
        asked = json.loads(exchange.body)["messages"][-1]
        text = "".join(part.get("content", "") for part in asked["parts"])
        await say(*message("question", "user", text), {"type": "RUN_STARTED", "threadId": "1", "runId": "run"})
        start, *middle, end = message("answer", "assistant", *WORDS)
        await say(start)
        for chunk in middle:
            await turn.acquire()
            await say(chunk)
        await say(end, {"type": "RUN_FINISHED", "threadId": "1", "runId": "run"})
        await exchange.answer(200, b"")

    script = await bundled(packages, "tanstack.mjs")
    async with upstream(play) as server:
        query = httpx.QueryParams(send=f"{proxy.url}/api/chat/1", upstream=server.url, read=session)
        await page.goto(f"{pages.put_module('/chat', script)}?{query}")
        await page.get_by_role("button", name="Send").click()
        for _ in WORDS[:2]:
            turn.release()
        said = page.locator("p.assistant")
        await expect(said).to_have_text("".join(WORDS[:2]))
        await page.reload()
        await expect(said).to_have_text("".join(WORDS[:2]))
        for _ in WORDS[2:]:
            turn.release()
        await expect(said).to_have_text("".join(WORDS))
        await expect(page.locator("p.user").last).to_have_text("Hello")
        assert len(server.calls) == 1


async def test_shape_streams_follow_a_generation_from_another_origin(
    proxy: Proxy, pages: Pages, page: Page, packages: Path
) -> None:
    turn = asyncio.Semaphore(0)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        for word in WORDS:
            await turn.acquire()
            await exchange.chunk(word.encode())
        await exchange.end()

    script = await bundled(packages, "shapes.mjs")
    async with upstream(play) as server:
        created = (await proxy.create("chat", "1", server.url)).json()
        names = ("streamUrl", "controlUrl", "requestId", "sessionId")
        query = httpx.QueryParams({name: created[name] for name in names})
        await page.goto(f"{pages.put_module('/shapes', script)}?{query}")
        for number in range(1, len(WORDS) + 1):
            turn.release()
            await expect(page.locator("main")).to_have_text("".join(WORDS[:number]))
        await expect(page).to_have_title(f"done after {len(''.join(WORDS).encode())}")


def message(id: str, role: str, *words: str) -> list[dict[str, Any]]:
    """A whole message as chunks."""
    return [
        {"type": "TEXT_MESSAGE_START", "messageId": id, "role": role},
        *({"type": "TEXT_MESSAGE_CONTENT", "messageId": id, "delta": word} for word in words),
        {"type": "TEXT_MESSAGE_END", "messageId": id},
    ]
