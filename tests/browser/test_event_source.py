"""A browser's own `EventSource` on a generation's signed URL, from a page of another origin."""

from __future__ import annotations

import asyncio
import json

import httpx
from playwright.async_api import Page

from streamkeep.storage.postgres import PostgresStore
from tests.browser.pages import Pages
from tests.serving import serving
from tests.upstream import Exchange, upstream

PIECES = ["Hello", " wörld ☃", "\n\nnext: ", " two  spaces\n", "end"]
FOLLOW = """
const found = { data: [], ids: [], opened: 0, ended: false }
window.found = found
const source = new EventSource(new URLSearchParams(location.hash.slice(1)).get("stream"))
source.addEventListener("open", () => { found.opened += 1 })
source.addEventListener("data", (event) => {
  found.data.push(event.data)
  found.ids.push(event.lastEventId)
})
source.addEventListener("control", (event) => {
  if (JSON.parse(event.data).streamClosed) {
    source.close()
    found.ended = true
  }
})
"""


async def test_it_goes_on_after_each_reconnect_where_it_was(database_url: str, page: Page, pages: Pages) -> None:
    turn = asyncio.Semaphore(0)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain; charset=utf-8"})
        for piece in PIECES:
            await turn.acquire()
            await exchange.chunk(piece.encode())
        await exchange.end()

    async with (
        serving(PostgresStore(database_url), sse_seconds=0.5) as proxy,
        upstream(play) as server,
    ):
        created = (await proxy.create("chat", "1", server.url)).json()
        address = pages.put_module("/follow", FOLLOW)
        await page.goto(f"{address}#{httpx.QueryParams(stream=created['streamUrl'] + '&live=sse')}")
        for number in range(1, len(PIECES) + 1):
            turn.release()
            await page.wait_for_function(
                "number => found.data.join('').length >= number", arg=len("".join(PIECES[:number]))
            )
            # The proxy ends the answer, and the browser asks again by itself.
            if number == 2:
                await page.wait_for_function("() => found.opened >= 2")
        await page.wait_for_function("() => found.ended")
        found = json.loads(await page.evaluate("JSON.stringify(found)"))
    assert "".join(found["data"]) == "".join(PIECES)
    assert found["opened"] > 1
    assert len(set(found["ids"])) == len(found["ids"])
    assert len(server.calls) == 1
