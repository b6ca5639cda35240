"""What happens to a person in the middle of an answer: the proxy dies, the tab sleeps, the storage is full or forbidden."""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Page, expect

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage.postgres import PostgresStore
from tests.browser.conftest import OpenProfile
from tests.browser.pages import Pages
from tests.browser.test_fetch_client import AROUND, PIECES, TEXT, ends, give, page_of, says, shows
from tests.cutting import wire_to
from tests.serving import Proxy, served_process, serving
from tests.upstream import Exchange, upstream

KEY = "a-key-for-the-tests"
HUGE_PIECE = bytes(range(256)) * 256
HUGE_PIECES = 800

HIDDEN_AND_BACK = """() => {
  for (const state of ["hidden", "visible"]) {
    Object.defineProperty(document, "visibilityState", { value: state, configurable: true })
    document.dispatchEvent(new Event("visibilitychange"))
  }
}"""

FILL_UP = """() => {
  for (let size = 2 ** 20; size >= 1; size /= 2) {
    try { for (;;) localStorage.setItem(`theirs-${size}-${localStorage.length}`, "x".repeat(size)) } catch {}
  }
  try { localStorage.setItem("y".repeat(100), "") } catch (error) { return error.name }
}"""


async def test_a_page_sees_all_that_was_said_before_its_proxy_was_killed(
    database_url: str, page: Page, complaints: list[str], pages: Pages
) -> None:
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server:
        async with served_process(database_url=database_url) as first:
            await page.goto(page_of(pages, first.url, server.url))
            give(turn, 2)
            await shows(page, "".join(PIECES[:2]))
            first.kill()
            await first.exit_code()
        async with served_process(database_url=database_url, port=int(first.url.rpartition(":")[2])) as second:
            await page.wait_for_function("() => found.error === 'GenerationError'")
            (listed,) = (await second.client.get("/api/my-chat/active")).json()
            ending = await second.ending("my-chat", listed["requestId"])
            assert await page.evaluate("found.text") == "".join(PIECES[:2])
            assert ending["code"] == "owner_lost"
            assert ending["bytes"] == len("".join(PIECES[:2]).encode())
            assert len(server.calls) == 1
            await page.goto("about:blank")
    complaints.clear()


async def test_a_proxy_that_comes_back_under_a_page_takes_it_up_where_it_was(
    database_url: str, page: Page, complaints: list[str], pages: Pages
) -> None:
    """One proxy records the answer, and another, which the page reads from, is killed and started again."""
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server, served_process(database_url=database_url) as owner:
        assert (await owner.create("my-chat", "1", server.url)).status_code == 200
        async with served_process(database_url=database_url) as first:
            await page.goto(page_of(pages, first.url, server.url))
            give(turn, 2)
            await shows(page, "".join(PIECES[:2]))
            first.kill()
            await first.exit_code()
        give(turn, 1)
        await owner.available(len("".join(PIECES[:3]).encode()), "my-chat", "1")
        async with served_process(database_url=database_url, port=int(first.url.rpartition(":")[2])):
            await shows(page, "".join(PIECES[:3]))
            give(turn, 3)
            await ends(page)
            assert len(server.calls) == 1
            await page.goto("about:blank")
    complaints.clear()


async def test_a_tab_that_comes_back_to_a_dead_connection_does_not_wait_for_it(
    page: Page, complaints: list[str], proxy: Proxy, pages: Pages
) -> None:
    """As after a sleep: nobody told the browser that the connection is gone, and the stall clock has far to go."""
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server, wire_to(proxy.url) as wire:
        await page.goto(page_of(pages, f"http://127.0.0.1:{wire.port}", server.url))
        give(turn, 1)
        await shows(page, PIECES[0])
        wire.lose()
        give(turn, 2)
        (listed,) = (await proxy.client.get("/api/my-chat/active")).json()
        await proxy.available(len("".join(PIECES[:3]).encode()), "my-chat", listed["requestId"])
        async with asyncio.timeout(60):
            while await page.evaluate("found.text") != "".join(PIECES[:3]):
                await page.evaluate(HIDDEN_AND_BACK)
                await page.wait_for_timeout(100)
        give(turn, 3)
        await ends(page)
        assert len(server.calls) == 1
    complaints.clear()


async def test_a_tab_is_closed_and_a_friend_reads_on_by_a_link(
    database_url: str, page: Page, open_profile: OpenProfile, pages: Pages
) -> None:
    """The page is of another origin than the proxy, and sends it a key; the friend has none."""
    turn = asyncio.Semaphore(0)
    async with (
        serving(PostgresStore(database_url), keys=BootstrapKeys.parse([KEY])) as proxy,
        upstream(says(turn)) as server,
    ):
        await page.goto(page_of(pages, proxy.url, server.url, auth={"Streamkeep-Key": KEY}))
        give(turn, 2)
        await shows(page, "".join(PIECES[:2]))
        await page.reload()
        await shows(page, "".join(PIECES[:2]))
        assert KEY not in json.dumps(await page.evaluate("({ ...localStorage, ...sessionStorage })"))
        await page.close()
        headers = {"Streamkeep-Key": KEY}
        (listed,) = (await proxy.client.get("/api/my-chat/active", headers=headers)).json()
        ids = {"sessionId": "my-chat", "requestId": listed["requestId"], "rights": ["read"]}
        shared = (await proxy.client.post("/api/share", json=ids, headers=headers)).json()["streamUrl"]
        friend = await (await open_profile()).new_page()
        await friend.goto(f"{proxy.url}/#/shared?{shared.partition('?')[2]}")
        contents = friend.get_by_label("Contents")
        await expect(contents).to_contain_text(PIECES[1])
        give(turn, 4)
        await expect(contents).to_contain_text(PIECES[4])
        assert await contents.evaluate("element => element.textContent.includes('wörld ☃')")
        await friend.goto("about:blank")
        assert len(server.calls) == 1


async def test_a_page_whose_storage_is_full_goes_on(page: Page, proxy: Proxy, pages: Pages) -> None:
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server:
        await page.goto(pages.put("/empty", "<!doctype html><title>empty</title>"))
        assert await page.evaluate(FILL_UP) == "QuotaExceededError"
        await page.goto(page_of(pages, proxy.url, server.url))
        give(turn, 2)
        await shows(page, "".join(PIECES[:2]))
        await page.reload()
        await shows(page, "".join(PIECES[:2]))
        give(turn, 4)
        await ends(page)
        assert await page.evaluate("Object.keys(localStorage).every((key) => key.startsWith('theirs'))")
        assert len(server.calls) == 1


async def test_a_page_that_may_store_nothing_goes_on(database_url: str, page: Page, pages: Pages) -> None:
    """A frame in a sandbox: its storage throws, and its origin is `null`."""
    turn = asyncio.Semaphore(0)
    async with (
        serving(PostgresStore(database_url), keys=BootstrapKeys.parse([KEY])) as proxy,
        upstream(says(turn)) as server,
    ):
        page_of(pages, proxy.url, server.url, auth={"Streamkeep-Key": KEY})
        module = pages.contents["/chat.js"][1].decode()
        inner = f'<!doctype html><title>chat</title><script type="module">{module}</script>'
        frame = f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(inner)}"></iframe>'
        await page.goto(pages.put("/outer", f"<!doctype html><title>outer</title>{frame}"))
        give(turn, 2)
        for comes_back in (False, True, True):
            if comes_back:
                await page.reload()
            inside = page.frames[1]
            await inside.wait_for_function("text => window.found?.text === text", arg="".join(PIECES[:2]))
            assert await inside.evaluate("() => { try { return localStorage } catch { return self.origin } }") == "null"
        give(turn, 4)
        await inside.wait_for_function("() => window.found?.ended")
        assert await inside.evaluate("found.text") == TEXT
        assert len(server.calls) == 1


@pytest.mark.parametrize("days", [-3, 3])
async def test_a_clock_that_is_wrong_by_days_changes_nothing(page: Page, proxy: Proxy, pages: Pages, days: int) -> None:
    turn = asyncio.Semaphore(0)
    async with upstream(says(turn)) as server:
        await page.goto(page_of(pages, proxy.url, server.url))
        give(turn, 2)
        await shows(page, "".join(PIECES[:2]))
        await page.clock.set_fixed_time(datetime.now(UTC) + timedelta(days=days))
        await page.reload()
        await shows(page, "".join(PIECES[:2]))
        give(turn, 4)
        await ends(page)
        assert len(server.calls) == 1


SLOWLY = """
found.digest = ""
found.taken = 0
const body = response.body.getReader()
window.take = async (bytes) => {
  const parts = []
  for (let read; found.taken < bytes && !(read = await body.read()).done; ) {
    parts.push(read.value)
    found.taken += read.value.length
  }
  const whole = await new Blob(parts).arrayBuffer()
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", whole))
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("")
}
"""


async def test_a_huge_answer_waits_for_a_page_that_reads_slowly(page: Page, proxy: Proxy, pages: Pages) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/octet-stream"})
        for _ in range(HUGE_PIECES):
            await exchange.chunk(HUGE_PIECE)
        await exchange.end()

    size = len(HUGE_PIECE) * HUGE_PIECES
    async with upstream(play) as server, wire_to(proxy.url) as wire:
        around = AROUND.partition("const decoder")[0] + SLOWLY
        await page.goto(page_of(pages, f"http://127.0.0.1:{wire.port}", server.url, around=around))
        await page.wait_for_function("() => window.take")
        await page.evaluate("take(1)")
        (listed,) = (await proxy.client.get("/api/my-chat/active")).json()
        await proxy.ending("my-chat", listed["requestId"])
        assert wire.answered_bytes < size / 2, "what is not asked for stays with the proxy"
        taken = await page.evaluate("found.taken")
        rest = (HUGE_PIECE * HUGE_PIECES)[taken:]
        assert await page.evaluate(f"take({size})") == hashlib.sha256(rest).hexdigest()
        assert len(server.calls) == 1
