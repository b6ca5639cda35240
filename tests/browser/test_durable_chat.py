"""Our own hook for durable sessions, in React's strict mode, in pages of another origin."""

from __future__ import annotations

from pathlib import Path

import httpx
from playwright.async_api import Page, expect

from tests.browser.conftest import OpenProfile
from tests.browser.pages import Pages
from tests.browser.test_chat_hooks import bundled, packages
from tests.serving import Proxy
from tests.sessions.session_rows import Author, Row, turn

__all__ = ["packages"]


class Chats:
    """Pages of one session."""

    def __init__(self, proxy: Proxy, pages: Pages, module: str) -> None:
        self._proxy = proxy
        self._url = pages.put_module("/chat", module)

    async def open(self, page: Page, actor: str) -> Page:
        await page.goto(f"{self._url}?{httpx.QueryParams(proxy=self._proxy.url, session='trip', actor=actor)}")
        await expect(page.locator("output")).to_have_text("connected")
        return page

    async def write(self, *rows: Row) -> None:
        """What an agent says."""
        answered = await self._proxy.client.post("/v1/stream/sessions/trip", json=list(rows))
        assert answered.status_code == 204

    async def asked(self, page: Page) -> str:
        """Ask in a page; the id of the question, once it is stored."""
        await press(page, "Send")
        await expect(page.locator("p.user")).to_have_text("Hello")
        answered = await self._proxy.client.get("/v1/sessions/trip/messages")
        message_id: str = answered.json()["messages"][-1]["id"]
        return message_id


async def press(page: Page, name: str) -> None:
    await page.get_by_role("button", name=name).click()


async def shows(page: Page, *texts: str) -> None:
    await expect(page.locator("p")).to_have_text(texts)


async def test_two_people_share_a_chat_through_reloads_tools_and_approvals(
    proxy: Proxy, pages: Pages, open_profile: OpenProfile, packages: Path
) -> None:
    chats = Chats(proxy, pages, await bundled(packages, "session_chat.mjs", environment="development"))
    ann = await chats.open(await (await open_profile()).new_page(), "Ann")
    bob = await chats.open(await (await open_profile()).new_page(), "Bob")
    for page in (ann, bob):
        await expect(page.locator("small")).to_have_text("Ann, Bob")
    await ann.get_by_label("Message").press_sequentially("H")
    await expect(bob.locator("small")).to_have_text("Ann types, Bob")
    cause = await chats.asked(ann)
    await shows(bob, "Hello")
    await expect(bob.locator("small")).to_have_text("Ann, Bob")

    answer = Author("a1")
    await chats.write(turn("t1", "a1", cause_id=cause), answer.row("message-start", turnId="t1"), answer.content("It "))
    for page in (ann, bob):
        await shows(page, "Hello", "It ")
        await expect(page.locator("output")).to_have_text("connected, answering")
    await ann.reload()
    await shows(ann, "Hello", "It ")
    await press(bob, "Line")
    await expect(bob.locator("output")).to_have_text("disconnected, answering")
    await chats.write(answer.content("is "), answer.call("c1", "{}", "clock"))
    await chats.write(answer.row("tool-input-available", toolCallId="c1", toolName="clock", input={}))
    await chats.write(answer.done("tool_calls"), answer.row("message-end", reason="done"))
    await press(bob, "Line")
    for page in (ann, bob):
        await shows(page, "Hello", "It is [noon]")
        await expect(page.locator("output")).to_have_text("connected")
    await expect(ann.locator("i")).to_have_text("a1")

    asking = Author("a2")
    await chats.write(asking.call("c2", "{}", "pay"), asking.ask("c2", "ok"), asking.done("tool_calls"))
    await expect(ann.get_by_role("button", name="Approve")).to_be_visible()
    await press(bob, "Approve")
    for page in (ann, bob):
        await expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    exported = (await proxy.client.get("/v1/sessions/trip/export")).json()
    assert [(one["status"], one["respondedBy"]) for one in exported["approvals"]] == [("approved", "Bob")]
    await ann.close()
    await expect(bob.locator("small")).to_have_text("Bob")


async def test_a_chat_that_is_mounted_again_goes_on(proxy: Proxy, pages: Pages, page: Page, packages: Path) -> None:
    chats = Chats(proxy, pages, await bundled(packages, "session_chat.mjs", environment="development"))
    await chats.open(page, "Ann")
    answer, cause = Author("a1"), await chats.asked(page)
    await chats.write(turn("t1", "a1", cause_id=cause), answer.row("message-start", turnId="t1"), answer.content("one"))
    for _ in range(2):
        await press(page, "Toggle")
        await shows(page)
        await press(page, "Toggle")
        await shows(page, "Hello", "one")
    await chats.write(answer.content(" two"), answer.done(), answer.row("message-end", reason="done"))
    await shows(page, "Hello", "one two")
    await expect(page.locator("output")).to_have_text("connected")
    await press(page, "Send")
    await shows(page, "Hello", "one two", "Hello")
