"""The published chat hooks over the proxy's own modules, in React's strict mode, in a page of another origin."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.browser.pages import Pages
from tests.browser.test_chat_hooks import WORDS, Answer, bundled, packages
from tests.serving import Proxy
from tests.upstream import Exchange, Upstream, upstream

__all__ = ["packages"]

TEXT = "".join(WORDS)


def ui_messages(id: str) -> list[dict[str, Any]]:
    """An answer for the AI SDK."""
    return [
        {"type": "start", "messageId": id},
        {"type": "text-start", "id": "0"},
        *({"type": "text-delta", "id": "0", "delta": word} for word in WORDS),
        {"type": "text-end", "id": "0"},
        {"type": "finish"},
    ]


def ag_ui(id: str) -> list[dict[str, Any]]:
    """The same for TanStack AI."""
    run = {"threadId": "my-chat", "runId": id}
    return [
        {"type": "RUN_STARTED", **run},
        {"type": "TEXT_MESSAGE_START", "messageId": id, "role": "assistant"},
        *({"type": "TEXT_MESSAGE_CONTENT", "messageId": id, "delta": word} for word in WORDS),
        {"type": "TEXT_MESSAGE_END", "messageId": id},
        {"type": "RUN_FINISHED", **run},
    ]


class Answers:
    """A vendor's two answers."""

    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        self._answers = [Answer(chunks) for chunks in answers]
        self._begun = 0

    async def play(self, exchange: Exchange) -> None:
        self._begun += 1
        await self._answers[self._begun - 1].play(exchange)

    def go_on(self, words: int) -> None:
        self._answers[self._begun - 1].go_on(words)


async def opened(pages: Pages, page: Page, packages: Path, script: str, proxy: Proxy, server: Upstream) -> None:
    module = await bundled(packages, script, environment="development")
    query = httpx.QueryParams(proxy=proxy.url, upstream=server.url)
    await page.goto(f"{pages.put_module('/chat', module)}?{query}")


async def press(page: Page, name: str) -> None:
    await page.get_by_role("button", name=name).click()


async def shows(page: Page, *texts: str) -> None:
    await expect(page.locator("p")).to_have_text(texts)


async def shows_reloaded(page: Page, *texts: str) -> None:
    """A client gives up to join an answer after two seconds, and tries again when the page is loaded again."""
    for _ in range(4):
        await page.reload()
        with suppress(AssertionError):
            await expect(page.locator("p")).to_have_text(texts, timeout=10_000)
            return
    await shows(page, *texts)


@pytest.mark.parametrize(("script", "chunks"), [("durable_ai_sdk.mjs", ui_messages), ("durable_tanstack.mjs", ag_ui)])
async def test_an_answer_goes_on_after_reloads_and_a_stopped_one_stays_stopped(
    proxy: Proxy, pages: Pages, page: Page, packages: Path, script: str, chunks: Any
) -> None:
    answers = Answers(chunks("first"), chunks("second"))
    async with upstream(answers.play) as server:
        await opened(pages, page, packages, script, proxy, server)
        await press(page, "Send")
        await server.called()
        await page.reload()
        answers.go_on(2)
        await shows(page, "Hello", "".join(WORDS[:2]))
        await page.reload()
        await shows(page, "Hello", "".join(WORDS[:2]))
        other = await page.context.new_page()
        await other.goto(page.url)
        for number in range(3, len(WORDS) + 1):
            answers.go_on(1)
            for tab in (page, other):
                await shows(tab, "Hello", "".join(WORDS[:number]))
        for tab in (page, other):
            await expect(tab.locator("output")).to_have_text("ready")
        await other.close()
        await page.reload()
        await shows(page, "Hello", TEXT)
        assert len(server.calls) == 1
        await press(page, "Send")
        await server.called(2)
        answers.go_on(1)
        await shows(page, "Hello", TEXT, "Hello", WORDS[0])
        await press(page, "Stop")
        async with asyncio.timeout(60):
            await server.calls[1].is_gone.wait()
        await expect(page.locator("output")).to_have_text("ready")
        await shows_reloaded(page, "Hello", TEXT, "Hello", WORDS[0])
        await expect(page.locator("output")).to_have_text("ready")
        assert len(server.calls) == 2


async def test_a_chat_of_the_ai_sdk_that_is_mounted_again_goes_on(
    proxy: Proxy, pages: Pages, page: Page, packages: Path
) -> None:
    answers = Answers(ui_messages("first"))
    async with upstream(answers.play) as server:
        await opened(pages, page, packages, "durable_ai_sdk.mjs", proxy, server)
        await press(page, "Send")
        await server.called()
        answers.go_on(2)
        await shows(page, "Hello", "".join(WORDS[:2]))
        for _ in range(2):
            await press(page, "Toggle")
            await shows(page)
            await press(page, "Toggle")
            await shows(page, "Hello", "".join(WORDS[:2]))
        answers.go_on(len(WORDS) - 2)
        await shows(page, "Hello", TEXT)
        await expect(page.locator("output")).to_have_text("ready")
        assert len(server.calls) == 1


async def test_a_chat_of_tanstack_that_goes_away_is_stopped_and_keeps_its_part(
    proxy: Proxy, pages: Pages, page: Page, packages: Path
) -> None:
    answers = Answers(ag_ui("first"))
    async with upstream(answers.play) as server:
        await opened(pages, page, packages, "durable_tanstack.mjs", proxy, server)
        await press(page, "Send")
        await server.called()
        answers.go_on(2)
        await shows(page, "Hello", "".join(WORDS[:2]))
        await press(page, "Toggle")
        async with asyncio.timeout(60):
            await server.calls[0].is_gone.wait()
        await press(page, "Toggle")
        await shows(page, "Hello", "".join(WORDS[:2]))
        assert len(server.calls) == 1
