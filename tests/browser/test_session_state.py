"""The published state layer, unmodified, shows a session in a page as our own fold does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Page, expect

from streamkeep.client.sessions import SessionFold, as_json
from tests.agents import FINISH, SSE, Room, answer, body, sse, text
from tests.browser.pages import Pages
from tests.browser.test_chat_hooks import bundled, packages
from tests.serving import Proxy
from tests.sessions.session_rows import Row, recorded_session
from tests.upstream import Exchange, upstream

__all__ = ["packages"]


def expected(rows: list[Row]) -> dict[str, Any]:
    """What both sides show of these rows."""
    fold = SessionFold()
    fold.apply(rows, "1")
    messages = [
        {
            "id": one.id,
            "role": one.role,
            "actorId": one.actor_id,
            "parts": [
                {name: value for name, value in part.items() if name not in ("approval", "output", "state")}
                for part in as_json(one.parts)
                if part["type"] != "tool-result"
            ],
        }
        for one in fold.messages
    ]
    return {
        "messages": sorted(messages, key=lambda one: str(one["id"])),
        "presence": sorted(one.actor_id for one in fold.presence),
        "agents": sorted(one.id for one in fold.agents),
    }


async def shows(page: Page, room: Room) -> None:
    wanted = expected(await room.rows())
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(60):
            while found != {"npm": wanted, "own": wanted}:
                await asyncio.sleep(0.02)
                texts = {name: await page.locator(f"#{name}").inner_text() for name in ("npm", "own")}
                found = {name: json.loads(text or "null") for name, text in texts.items()}
    except TimeoutError:
        assert found == {"npm": wanted, "own": wanted}


class Agent:
    """Wants an approval for what it is asked first, and then tells a story, word by word as it may."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(0)

    async def play(self, exchange: Exchange) -> None:
        if body(exchange)["messages"][-1]["role"] == "user":
            call = {"toolCallId": "call", "toolName": "pay"}
            asked = {"type": "tool-approval-request", "toolCallId": "call", "approvalId": "ok"}
            await answer(exchange, {"type": "tool-input-available", **call, "input": {"euros": 7}}, asked, FINISH)
            return
        await exchange.head(200, SSE)
        await exchange.chunk(sse({"type": "tool-output-available", "toolCallId": "call", "output": "paid"}))
        for word in ("It ", "is ", "late ☾"):
            await self.turn.acquire()
            await exchange.chunk(sse(text(word)))
        await exchange.chunk(sse(FINISH))
        await exchange.end()


async def test_a_session_is_the_same_to_both_while_it_grows(
    proxy: Proxy, pages: Pages, page: Page, packages: Path
) -> None:
    agent = Agent()
    async with upstream(agent.play) as server:
        room = await Room(proxy.client, "trip").open({"id": "helper", "endpoint": server.url, "format": "ai-sdk"})
        old = await proxy.client.post("/v1/stream/sessions/trip", json=recorded_session())
        assert old.status_code == 204
        await proxy.client.put(f"{room.path}/presence/ann", json={"status": "online", "name": "Ann"})
        module = await bundled(packages, "session_state.mjs")
        query = httpx.QueryParams(proxy=proxy.url, session="trip")
        await page.goto(f"{pages.put_module('/session', module)}?{query}")
        await shows(page, room)
        await room.say("May it be paid?", "m1", actorId="bob")
        await room.settled()
        await room.post("approvals/ok", approved=True, actorId="ann")
        for _ in range(2):
            agent.turn.release()
        await expect(page.locator("#npm")).to_contain_text("It is")
        await shows(page, room)
        agent.turn.release()
        await room.settled(2)
        await shows(page, room)
        await expect(page.locator("#npm")).to_contain_text("It is late ☾")
        await room.post("regenerate", fromMessageId="m1")
        await room.settled()
        await proxy.client.delete(f"{room.path}/agents/helper")
        await proxy.client.delete(f"{room.path}/presence/ann")
        await shows(page, room)
    await expect(page.locator("#npm")).not_to_contain_text("It is")
