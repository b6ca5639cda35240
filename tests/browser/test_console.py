"""The console in a browser: what it shows by itself, what a person does with it, and what hostile contents cannot do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.async_api import Page, expect

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage.postgres import PostgresStore
from tests import node
from tests.browser.conftest import OpenProfile
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Upstream, upstream, whole

KEY = "operator-key-0123456789"
HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg onload=window.pwned=1>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "javascript:window.pwned=1",
    "</textarea><script>window.pwned=1</script>",
    '"><a href="javascript:window.pwned=1" autofocus onfocus=window.pwned=1>',
    "<style>@import 'javascript:pwned'</style><math><mi xlink:href='data:x,<script>pwned=1</script>'>",
    "{{constructor.constructor('window.pwned=1')()}}${window.pwned=1}",
]


def said(text: str) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"content": text}}]}).encode()


@asynccontextmanager
async def talking(text: str) -> AsyncIterator[Upstream]:
    """An upstream that says something, and then holds the line."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(said(text))
        await exchange.is_gone.wait()

    async with upstream(play) as server:
        yield server


async def test_a_generation_appears_is_read_live_and_is_stopped(proxy: Proxy, page: Page) -> None:
    await page.goto(proxy.url)
    await expect(page.get_by_role("heading", name="No generations yet")).to_be_visible()
    async with talking("Hello from upstream") as server:
        await proxy.create("chat", "1", server.url)
        row = page.get_by_role("row", name="chat / 1")
        await expect(row.get_by_text("running", exact=True)).to_be_visible()
        await page.get_by_role("link", name="chat / 1").click()
        await expect(page.get_by_label("Contents")).to_contain_text("Hello from upstream")
        await page.get_by_role("button", name="Bytes").click()
        await expect(page.get_by_label("Contents")).to_contain_text("64 61 74 61 3a")
        await page.get_by_role("button", name="Stop chat / 1").click()
        await expect(page.get_by_label("Control stream")).to_contain_text("cancelled")
        assert server.calls[0].is_gone.is_set()
    await page.reload()
    await expect(page.get_by_label("Control stream")).to_contain_text("cancelled")
    assert (await proxy.ending("chat", "1"))["event"] == "cancelled"


async def test_the_list_is_searched_and_walked_by_keyboard(proxy: Proxy, page: Page) -> None:
    async with upstream(whole(said("x"))) as server:
        for name in ("alpha", "beta", "gamma"):
            await proxy.create(name, "1", server.url)
    await page.goto(proxy.url)
    await expect(page.get_by_role("link", name="gamma / 1")).to_be_visible()
    await page.keyboard.press("/")
    await page.keyboard.type("a/1")
    await page.keyboard.press("Control+a")
    await page.keyboard.type("ALPHA")
    await expect(page.get_by_role("link", name="gamma / 1")).to_have_count(0)
    await page.get_by_role("searchbox").fill("")
    await expect(page.get_by_role("link", name="beta / 1")).to_be_visible()
    await page.get_by_role("link", name="gamma / 1").focus()
    await page.keyboard.press("ArrowDown")
    await expect(page.get_by_role("link", name="beta / 1")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="beta / 1")).to_be_visible()


async def test_a_shared_link_is_read_without_a_key(database_url: str, open_profile: OpenProfile) -> None:
    keys = BootstrapKeys.parse([KEY])
    async with (
        serving(PostgresStore(database_url), keys=keys) as proxy,
        upstream(whole(said("for a friend"))) as server,
    ):
        await proxy.create("chat", "1", server.url, Streamkeep_Key=KEY)
        share = await proxy.client.post(
            "/api/share", json={"sessionId": "chat", "requestId": "1"}, headers={"Streamkeep-Key": KEY}
        )
        signed = share.json()["streamUrl"].partition("?")[2]
        friend = await (await open_profile()).new_page()
        await friend.goto(f"{proxy.url}/#/shared?{signed}")
        await expect(friend.get_by_label("Contents")).to_contain_text("for a friend")
        await friend.close()


async def test_a_key_is_asked_for_and_kept_in_the_tab(database_url: str, page: Page, complaints: list[str]) -> None:
    async with serving(PostgresStore(database_url), keys=BootstrapKeys.parse([KEY])) as proxy:
        await page.goto(proxy.url)
        await page.get_by_placeholder("stk_…").fill("wrong")
        await page.get_by_role("button", name="Unlock").click()
        await expect(page.get_by_role("alert")).to_contain_text("no such key")
        await page.get_by_placeholder("stk_…").fill(KEY)
        await page.get_by_role("button", name="Unlock").click()
        await expect(page.get_by_role("heading", name="No generations yet")).to_be_visible()
        await page.reload()
        await expect(page.get_by_role("button", name="Operator")).to_be_visible()
        assert await page.evaluate("localStorage.length") == 0
        await page.goto("about:blank")
    # The browser tells of each answer that is 401.
    assert all("401" in complaint for complaint in complaints)
    complaints.clear()


async def test_a_stream_is_made_written_forked_and_deleted(proxy: Proxy, page: Page) -> None:
    await page.goto(f"{proxy.url}/#/streams")
    await expect(page.get_by_role("heading", name="No streams yet")).to_be_visible()
    await proxy.client.put("/v1/stream/made/elsewhere", headers={"Content-Type": "text/plain"})
    await expect(page.get_by_role("link", name="made/elsewhere")).to_be_visible()
    await page.get_by_role("button", name="New stream").click()
    await page.get_by_label("Path").fill("notes/today")
    await page.get_by_label("First content").fill("first ")
    await page.get_by_role("button", name="Create").click()
    await expect(page.get_by_label("Contents")).to_contain_text("first")
    writer = page.get_by_label("Append")
    await writer.press_sequentially("second")
    await writer.press("Shift+Enter")
    await writer.press_sequentially("line")
    await writer.press("Enter")
    await expect(writer).to_have_value("")
    await expect(page.get_by_label("Contents")).to_contain_text("first second\nline", use_inner_text=True)
    assert (await proxy.client.get("/v1/stream/notes/today")).text == "first second\nline"
    await page.get_by_role("button", name="Fork…").click()
    await page.get_by_role("button", name="Fork", exact=True).click()
    await expect(page.get_by_role("heading", name="notes/today-fork")).to_be_visible()
    await page.get_by_role("button", name="Delete…").click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.get_by_role("link", name="notes/today", exact=True)).to_be_visible()
    await expect(page.get_by_role("link", name="notes/today-fork")).to_have_count(0)
    assert (await proxy.client.head("/v1/stream/notes/today-fork")).status_code == 404


async def test_a_picture_is_shown_and_hostile_contents_cannot_run(proxy: Proxy, page: Page) -> None:
    headers = {"Content-Type": "text/plain"}
    picture = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
    await proxy.client.put(
        "/v1/stream/picture", headers={"Content-Type": "image/gif", "Stream-Closed": "true"}, content=picture
    )
    await proxy.client.put(
        "/v1/stream/drawing", headers={"Content-Type": "image/svg+xml"}, content=b"<svg onload='window.pwned=1'/>"
    )
    await proxy.client.put("/v1/stream/page", headers={"Content-Type": "text/html"}, content=HOSTILE[0].encode())
    path = "<img src=x onerror=window.pwned=1>"
    await proxy.client.put(f"/v1/stream/{quote(path)}", headers=headers, content="\n".join(HOSTILE).encode())
    messages = json.dumps([{"role": text, "content": text} for text in HOSTILE])
    await proxy.client.put("/v1/stream/messages", headers={"Content-Type": "application/json"}, content=messages)
    async with upstream(whole(b"".join(map(said, HOSTILE)))) as server:
        await proxy.create("chat", "1", server.url)
    await page.goto(f"{proxy.url}/#/streams")
    await expect(page.get_by_role("link", name=path)).to_be_visible()
    await page.goto(f"{proxy.url}/#/stream/picture")
    await page.wait_for_function("() => document.querySelector('.media img')?.naturalWidth === 1")
    shown = {
        f"stream/{quote(path, safe='')}": "</textarea>",
        "stream/messages": "<svg",
        "stream/drawing": "onload",
        "stream/page": "<script>",
        "generation/default/chat/1": "<iframe",
    }
    for address, text in shown.items():
        await page.goto(f"{proxy.url}/#/{address}")
        for mode in ("Read", "JSON"):
            await page.get_by_role("button", name=mode, exact=True).click()
            await expect(page.get_by_label("Contents")).to_contain_text(text)
    foreign = "main :is(script, iframe, style, object, embed, .output img, .output svg, .output a)"
    assert await page.locator(foreign).count() == 0
    assert await page.evaluate("window.pwned") is None


@pytest.fixture(scope="module")
def axe() -> str:
    home = node.project(Path(__file__).parent / "axe")
    return (home / "node_modules/axe-core/axe.min.js").read_text()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
async def test_every_page_is_accessible_and_fits(proxy: Proxy, page: Page, axe: str, scheme: str, width: int) -> None:
    async with talking("Hello") as server:
        await proxy.create("chat", "1", server.url)
        await proxy.client.put("/v1/stream/notes", headers={"Content-Type": "text/plain"}, content=b"x")
        await proxy.client.put("/v1/sessions/trip", json={"name": "Summer trip"})
        await proxy.client.post("/v1/sessions/trip/messages", json={"content": "Where to?", "actorId": "ann"})
        await page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        await page.set_viewport_size({"width": width, "height": 800})
        for name in (
            "generations",
            "generation/default/chat/1",
            "sessions",
            "durable",
            "session/trip",
            "streams",
            "stream/notes",
            "keys",
            "health",
        ):
            await page.goto(f"{proxy.url}/#/{name}")
            await expect(page.get_by_role("heading", level=1)).to_be_visible()
            await page.evaluate(f"{axe}; undefined")
            found = await page.evaluate("axe.run().then(({violations}) => JSON.stringify(violations))")
            problems = [(each["id"], [part["html"] for part in each["nodes"]]) for each in json.loads(found)]
            assert problems == [], name
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        await page.goto(f"{proxy.url}/#/streams")
        await page.get_by_role("button", name="New stream").click()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        async with asyncio.timeout(60):
            assert (await proxy.client.post("/api/chat/1/cancel")).status_code == 200
