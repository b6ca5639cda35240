"""The browser's fetch client in Chromium, on pages of another origin than the proxy's: what a person does to a page."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from playwright.async_api import Page

from streamkeep.storage.postgres import PostgresStore
from tests.browser.conftest import OpenProfile
from tests.browser.pages import Pages
from tests.cutting import wire_to
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Script, upstream

PIECES = ["Hello", " wörld ☃", "\n\nnext: ", " 😀 two  spaces\n", "end"]
TEXT = "".join(PIECES)
README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
(FOUR_LINES,) = re.findall(r"^```js\n(import \{ createFetchClient \} .*?)^```", README, re.MULTILINE | re.DOTALL)

# What the four lines want around them, and a body that is shown as it comes.
AROUND = """
const url = "UPSTREAM"
const question = "{}"
FOUR_LINES
window.found = { status: response.status, text: "", ended: false, error: null }
const decoder = new TextDecoder()
const reader = response.body.getReader()
window.durable = durable
try {
  for (let read; !(read = await reader.read()).done; ) found.text += decoder.decode(read.value, { stream: true })
  found.ended = true
} catch (error) {
  found.error = error.name
}
"""


def page_of(
    pages: Pages,
    proxy_url: str,
    upstream_url: str,
    *,
    more: str = "",
    auth: dict[str, str] | None = None,
    around: str = AROUND,
) -> str:
    lines = FOUR_LINES.replace("body: question", f"body: question{more}")
    if auth is not None:
        lines = lines.replace('4000" })', f'4000", auth: {json.dumps(auth)} }})')
    lines = lines.replace("http://127.0.0.1:4000", proxy_url)
    return pages.put_module("/chat", around.replace("FOUR_LINES", lines).replace("UPSTREAM", upstream_url))


def says(turn: asyncio.Semaphore) -> Script:
    """An upstream that gives a piece for each turn, and its end for another."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain; charset=utf-8"})
        for piece in PIECES:
            await turn.acquire()
            await exchange.chunk(piece.encode())
        await turn.acquire()
        await exchange.end()

    return play


def give(turn: asyncio.Semaphore, times: int) -> None:
    for _ in range(times):
        turn.release()


async def shows(page: Page, text: str) -> None:
    await page.wait_for_function("text => window.found?.text === text", arg=text)


async def ends(page: Page) -> None:
    await page.wait_for_function("() => window.found?.ended")
    assert await page.evaluate("found.text") == TEXT


async def test_a_page_that_is_refreshed_goes_on_with_the_four_lines_of_the_readme(
    page: Page, proxy: Proxy, pages: Pages
) -> None:
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server:
        await page.goto(page_of(pages, proxy.url, server.url))
        await server.called()
        await page.reload()
        give(turn, 2)
        await shows(page, "".join(PIECES[:2]))
        await page.reload()
        await shows(page, "".join(PIECES[:2]))
        give(turn, 4)
        await ends(page)
        assert len(server.calls) == 1


async def test_a_page_whose_storage_was_cleared_and_another_profile_lose_nothing(
    page: Page, open_profile: OpenProfile, proxy: Proxy, pages: Pages
) -> None:
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server:
        address = page_of(pages, proxy.url, server.url)
        await page.goto(address)
        give(turn, 2)
        await shows(page, "".join(PIECES[:2]))
        await page.evaluate("localStorage.clear()")
        await page.reload()
        elsewhere = await (await open_profile()).new_page()
        await elsewhere.goto(address)
        for one in (page, elsewhere):
            await shows(one, "".join(PIECES[:2]))
        give(turn, 4)
        for one in (page, elsewhere):
            await ends(one)
        assert len(server.calls) == 1


async def test_two_tabs_are_in_step(page: Page, proxy: Proxy, pages: Pages) -> None:
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server:
        address = page_of(pages, proxy.url, server.url)
        await page.goto(address)
        await server.called()
        other = await page.context.new_page()
        await other.goto(address)
        for number in range(1, len(PIECES) + 1):
            give(turn, 1)
            for tab in (page, other):
                await shows(tab, "".join(PIECES[:number]))
        give(turn, 1)
        for tab in (page, other):
            await ends(tab)
        assert len(server.calls) == 1
        assert await page.evaluate("localStorage.length") == 0


async def test_a_page_that_was_off_line_goes_on(page: Page, complaints: list[str], proxy: Proxy, pages: Pages) -> None:
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server, wire_to(proxy.url) as wire:
        await page.goto(page_of(pages, f"http://127.0.0.1:{wire.port}", server.url))
        give(turn, 1)
        await shows(page, PIECES[0])
        # The emulation lets open connections live on.
        await page.context.set_offline(True)
        wire.cut()
        give(turn, 2)
        (listed,) = (await proxy.client.get("/api/my-chat/active")).json()
        await proxy.available(len("".join(PIECES[:3]).encode()), "my-chat", listed["requestId"])
        await page.wait_for_function("() => !navigator.onLine")
        assert await page.evaluate("found.text") == PIECES[0]
        await page.context.set_offline(False)
        await shows(page, "".join(PIECES[:3]))
        give(turn, 3)
        await ends(page)
        assert len(server.calls) == 1
    complaints.clear()


async def test_a_stopped_answer_stays_stopped(page: Page, proxy: Proxy, pages: Pages) -> None:
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server:
        stoppable = ", signal: (window.stopper = new AbortController()).signal"
        await page.goto(page_of(pages, proxy.url, server.url, more=stoppable))
        give(turn, 1)
        await shows(page, PIECES[0])
        await page.evaluate("stopper.abort()")
        async with asyncio.timeout(60):
            await server.calls[0].is_gone.wait()
        await page.wait_for_function("() => found.error === 'AbortError'")
        resumed = """async () => (await durable("", { headers: {
            "X-Session-ID": "my-chat", "X-Resume-Active-Generation": "true" } })).status"""
        assert await page.evaluate(resumed) == 204
        await page.reload()
        await server.called(2)
        give(turn, 12)
        await ends(page)
        assert len(server.calls) == 2, "the page asks again, since nothing is left to resume"


async def test_connections_that_the_proxy_ends_are_not_noticed(database_url: str, page: Page, pages: Pages) -> None:
    turn = asyncio.Semaphore(0)
    async with serving(PostgresStore(database_url), sse_seconds=0.3) as proxy, upstream(says(turn)) as server:
        await page.goto(page_of(pages, proxy.url, server.url))
        for number in range(1, len(PIECES) + 1):
            give(turn, 1)
            await shows(page, "".join(PIECES[:number]))
            await page.wait_for_timeout(200)
        give(turn, 1)
        await ends(page)
        await page.goto("about:blank")


CHAT = """
import { durableTransport } from "PROXY/streamkeep-ai-sdk.js"
const { durableSession, initialMessages } = durableTransport("my-chat", { proxyUrl: "PROXY" }, { api: "UPSTREAM" })
window.found = { kept: initialMessages, text: "", ended: false }
const messages = [{ id: "asked", role: "user", parts: [{ type: "text", text: "Hello" }] }]
const asked = { chatId: "my-chat", trigger: "submit-message", messages }
const { transport } = durableSession
const chunks = (await transport.reconnectToStream(asked)) ?? (await transport.sendMessages(asked))
for (let reader = chunks.getReader(), read; !(read = await reader.read()).done; ) found.text += read.value.delta ?? ""
found.ended = true
"""


async def test_a_chat_of_the_ai_sdk_goes_on_in_a_page_that_is_refreshed(page: Page, proxy: Proxy, pages: Pages) -> None:
    turn = asyncio.Semaphore(0)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        for piece in PIECES:
            await turn.acquire()
            await exchange.chunk(b"data: " + json.dumps({"type": "text-delta", "id": "0", "delta": piece}).encode())
            await exchange.chunk(b"\n\n")
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()

    async with upstream(play) as server:
        await page.goto(pages.put_module("/chat", CHAT.replace("PROXY", proxy.url).replace("UPSTREAM", server.url)))
        give(turn, 2)
        await shows(page, "".join(PIECES[:2]))
        await page.reload()
        await shows(page, "".join(PIECES[:2]))
        assert await page.evaluate("found.kept.map(({ id }) => id)") == ["asked"]
        give(turn, 3)
        await ends(page)
        assert len(server.calls) == 1
