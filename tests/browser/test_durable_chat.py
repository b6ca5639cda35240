"""Our own hook for durable sessions, in React's strict mode, in pages of another origin."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from playwright.async_api import Page, expect

from tests.agents import FINISH, SSE, Event, Room, sse, text
from tests.browser.conftest import OpenProfile
from tests.browser.pages import Pages
from tests.browser.test_chat_hooks import bundled, packages
from tests.serving import Proxy
from tests.upstream import Exchange, upstream

__all__ = ["packages"]

CLOCK = {"type": "tool-input-available", "toolCallId": "c1", "toolName": "clock", "input": {}}
PAY = {"type": "tool-input-available", "toolCallId": "c2", "toolName": "pay", "input": {}}
MAY_IT = {"type": "tool-approval-request", "toolCallId": "c2", "approvalId": "ok"}


class Agent:
    """Says a few words and looks at a clock, and asks whether it may pay; each event comes when it may."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(0)
        answers: list[list[Event]] = [[text("It "), text("is "), CLOCK], [PAY, MAY_IT], [text("Paid")]]
        self._answers = iter(answers)

    async def play(self, exchange: Exchange) -> None:
        await exchange.head(200, SSE)
        for event in next(self._answers):
            await self.turn.acquire()
            await exchange.chunk(sse(event))
        await exchange.chunk(sse(FINISH))
        await exchange.end()

    def go_on(self, events: int) -> None:
        for _ in range(events):
            self.turn.release()


class Chats:
    """Pages of one session."""

    def __init__(self, proxy: Proxy, pages: Pages, module: str) -> None:
        self._proxy = proxy
        self._url = pages.put_module("/chat", module)

    async def open(self, page: Page, actor: str) -> Page:
        await page.goto(f"{self._url}?{httpx.QueryParams(proxy=self._proxy.url, session='trip', actor=actor)}")
        await expect(page.locator("output")).to_have_text("connected")
        return page


async def press(page: Page, name: str) -> None:
    await page.get_by_role("button", name=name).click()


async def shows(page: Page, *texts: str) -> None:
    await expect(page.locator("p")).to_have_text(texts)


async def test_two_people_share_a_chat_through_reloads_tools_and_approvals(
    proxy: Proxy, pages: Pages, open_profile: OpenProfile, packages: Path
) -> None:
    chats = Chats(proxy, pages, await bundled(packages, "session_chat.mjs", environment="development"))
    agent = Agent()
    async with upstream(agent.play) as server:
        await Room(proxy.client, "trip").open({"id": "helper", "endpoint": server.url, "format": "ai-sdk"})
        ann = await chats.open(await (await open_profile()).new_page(), "Ann")
        bob = await chats.open(await (await open_profile()).new_page(), "Bob")
        for page in (ann, bob):
            await expect(page.locator("small")).to_have_text("Ann, Bob")
        await ann.get_by_label("Message").press_sequentially("H")
        await expect(bob.locator("small")).to_have_text("Ann types, Bob")
        await press(ann, "Send")
        await shows(bob, "Hello", "")
        await expect(bob.locator("small")).to_have_text("Ann, Bob")
        agent.go_on(1)
        for page in (ann, bob):
            await shows(page, "Hello", "It ")
            await expect(page.locator("output")).to_have_text("connected, answering")
        await ann.reload()
        await shows(ann, "Hello", "It ")
        await press(bob, "Line")
        await expect(bob.locator("output")).to_have_text("disconnected, answering")
        agent.go_on(2)
        await shows(ann, "Hello", "It is [noon]", "")
        await press(bob, "Line")
        agent.go_on(2)
        await expect(ann.get_by_role("button", name="Approve")).to_be_visible()
        await press(bob, "Approve")
        agent.go_on(1)
        for page in (ann, bob):
            await shows(page, "Hello", "It is [noon]", "", "Paid")
            await expect(page.get_by_role("button", name="Approve")).to_have_count(0)
            await expect(page.locator("output")).to_have_text("connected")
        await expect(ann.locator("i")).to_have_text("3 ended")
        exported = (await proxy.client.get("/v1/sessions/trip/export")).json()
        assert [(one["status"], one["respondedBy"]) for one in exported["approvals"]] == [("approved", "Bob")]
        assert len(server.calls) == 3
        await ann.close()
        await expect(bob.locator("small")).to_have_text("Bob")


async def test_a_chat_that_is_mounted_again_goes_on(proxy: Proxy, pages: Pages, page: Page, packages: Path) -> None:
    chats = Chats(proxy, pages, await bundled(packages, "session_chat.mjs", environment="development"))
    agent = Agent()
    async with upstream(agent.play) as server:
        await Room(proxy.client, "trip").open({"id": "helper", "endpoint": server.url, "format": "ai-sdk"})
        await chats.open(page, "Ann")
        await press(page, "Send")
        agent.go_on(1)
        await shows(page, "Hello", "It ")
        for _ in range(2):
            await press(page, "Toggle")
            await shows(page)
            await press(page, "Toggle")
            await shows(page, "Hello", "It ")
        agent.go_on(1)
        await shows(page, "Hello", "It is ")
        await press(page, "Stop")
        async with asyncio.timeout(60):
            await server.calls[0].is_gone.wait()
        await expect(page.locator("output")).to_have_text("connected")
        assert len(server.calls) == 1


async def test_a_chat_is_there_before_the_network_is(
    proxy: Proxy, pages: Pages, page: Page, packages: Path, complaints: list[str]
) -> None:
    chats = Chats(proxy, pages, await bundled(packages, "session_chat.mjs", environment="development"))
    await chats.open(page, "Ann")
    await press(page, "Send")
    await expect(page.locator("p.user")).to_have_text("Hello")
    # What is shown is kept when the chat is left.
    await press(page, "Line")
    await expect(page.locator("output")).to_have_text("disconnected")
    await page.route("**/v1/**", lambda route: route.abort())
    await page.reload()
    await expect(page.locator("output")).to_have_text("connecting")
    await shows(page, "Hello")
    await Room(proxy.client, "trip").say("Welcome back")
    await page.unroute("**/v1/**")
    await shows(page, "Hello", "Welcome back")
    await expect(page.locator("output")).to_have_text("connected")
    complaints.clear()
