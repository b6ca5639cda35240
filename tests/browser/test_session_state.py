"""The published state layer, unmodified, shows a session in a page as our own fold does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Page, expect

from streamkeep.client.sessions import SessionFold, as_json
from tests.browser.pages import Pages
from tests.browser.test_chat_hooks import bundled, packages
from tests.serving import Proxy
from tests.sessions.session_rows import Author, Row, agent, presence, recorded_session, removed, said, turn

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
                {name: value for name, value in part.items() if name != "output"}
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


async def shows(page: Page, rows: list[Row]) -> None:
    wanted = expected(rows)
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(20):
            while found != {"npm": wanted, "own": wanted}:
                await asyncio.sleep(0.02)
                texts = {name: await page.locator(f"#{name}").inner_text() for name in ("npm", "own")}
                found = {name: json.loads(text or "null") for name, text in texts.items()}
    except TimeoutError:
        assert found == {"npm": wanted, "own": wanted}


async def test_a_session_is_the_same_to_both_while_it_grows(
    proxy: Proxy, pages: Pages, page: Page, packages: Path
) -> None:
    url = f"{proxy.url}/v1/stream/sessions/trip"
    await proxy.client.put(url, headers={"Content-Type": "application/json"})
    rows: list[Row] = []

    async def write(*more: Row) -> None:
        rows.extend(more)
        assert (await proxy.client.post(url, json=list(more))).status_code == 204

    await write(agent("helper"), presence("ann"), *recorded_session())
    module = await bundled(packages, "session_state.mjs")
    query = httpx.QueryParams(proxy=proxy.url, session="trip")
    await page.goto(f"{pages.put_module('/session', module)}?{query}")
    await shows(page, rows)
    answer = Author("a3")
    await write(said("u3", "And now?"), turn("t3", "a3"), answer.row("message-start", turnId="t3"), presence("bob"))
    for word in ("It ", "is ", "late ☾"):
        await write(answer.content(word))
    await write(answer.done(), answer.row("message-end", reason="done"), removed("agent", "helper"))
    await shows(page, rows)
    await expect(page.locator("#npm")).to_contain_text("It is late ☾")
