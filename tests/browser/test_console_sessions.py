"""Durable sessions in the console: found, named, followed live, stopped, forked and deleted."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Page, expect

from tests.browser.test_console import HOSTILE
from tests.serving import Proxy
from tests.sessions.session_rows import Author, Row, agent, presence, turn


async def say(proxy: Proxy, session: str, text: str, **more: Any) -> str:
    answered = await proxy.client.post(f"/v1/sessions/{session}/messages", json={"content": text, **more})
    assert answered.status_code == 200, answered.text
    message_id: str = answered.json()["messageId"]
    return message_id


async def write(proxy: Proxy, session: str, *rows: Row) -> None:
    assert (await proxy.client.post(f"/v1/stream/sessions/{session}", json=list(rows))).status_code == 204


async def test_sessions_are_found_renamed_and_deleted(proxy: Proxy, page: Page) -> None:
    await page.goto(f"{proxy.url}/#/durable")
    await expect(page.get_by_role("heading", name="No durable sessions yet")).to_be_visible()
    for session, name in (("trip", "Summer trip"), ("work", None), ("home", HOSTILE[0])):
        await proxy.client.put(f"/v1/sessions/{session}", json={} if name is None else {"name": name})
    for name in ("Summer trip", "work", HOSTILE[0]):
        await expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    await page.get_by_role("searchbox").fill("summer")
    await expect(page.get_by_role("link", name="work", exact=True)).to_have_count(0)
    await page.get_by_role("button", name="Rename…").click()
    await page.get_by_role("textbox", name="Name").fill("Winter trip")
    await page.get_by_role("button", name="Rename", exact=True).click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await page.get_by_role("searchbox").fill("")
    row = page.get_by_role("row", name="Winter trip")
    await row.get_by_role("button", name="Delete…").click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(row).to_have_count(0)
    assert (await proxy.client.get("/v1/sessions/trip")).status_code == 404
    assert await page.evaluate("window.pwned") is None


async def test_a_session_is_followed_live(proxy: Proxy, page: Page) -> None:
    await proxy.client.put("/v1/sessions/trip", json={"name": "Trip"})
    cause = await say(proxy, "trip", HOSTILE[1], actorId="ann", actorName="Ann")
    await page.goto(f"{proxy.url}/#/session/trip")
    await expect(page.get_by_role("heading", name="Trip", level=1)).to_be_visible()
    messages, people = page.get_by_role("region", name="Messages"), page.get_by_role("region", name="Participants")
    await expect(messages).to_contain_text(HOSTILE[1])
    await expect(people).to_contain_text("Ann")
    answer = Author("a1", actor_id="helper")
    await write(
        proxy, "trip", agent("helper", name="Helper"), presence("ann", typing=True, lastSeenAt="2999-01-01T00:00:00Z")
    )
    await write(proxy, "trip", turn("t1", "a1", cause_id=cause, agent_id="helper"), answer.content("Let us "))
    await expect(messages).to_contain_text("Let us")
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    await expect(page.get_by_role("region", name="Turns")).to_contain_text("pending")
    await expect(people).to_contain_text("typing")
    await write(proxy, "trip", answer.call("c1", '{"city": "Łódź"}'), answer.ask("c1", "ok"), answer.done("tool_calls"))
    await expect(page.get_by_role("region", name="Tool calls")).to_contain_text(
        'weather approval-requested{"city": "Łódź"}'
    )
    await expect(page.get_by_role("region", name="Approvals")).to_contain_text("pending")
    approved = await proxy.client.post("/v1/sessions/trip/approvals/ok", json={"approved": False, "actorId": "ann"})
    assert approved.status_code == 204
    await expect(page.get_by_role("region", name="Approvals")).to_contain_text("weather deniedby ann")
    await expect(page.get_by_role("region", name="Agents")).to_contain_text("Helper")
    await expect(page.get_by_role("region", name="Events")).to_contain_text("chunk insert a1:0")
    await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    offset = (await proxy.client.get("/v1/sessions/trip")).json()["offset"]
    await expect(page.locator("dd").filter(has_text=offset)).to_be_visible()
    assert await page.evaluate("window.pwned") is None


async def test_a_session_is_forked_and_deleted_from_its_page(proxy: Proxy, page: Page) -> None:
    await proxy.client.put("/v1/sessions/trip")
    await say(proxy, "trip", "Where to?")
    await page.goto(f"{proxy.url}/#/session/trip")
    await expect(page.get_by_role("region", name="Messages")).to_contain_text("Where to?")
    await page.get_by_role("button", name="Fork…").click()
    await page.get_by_role("textbox", name="Name").fill("Another way")
    await page.get_by_role("button", name="Fork", exact=True).click()
    await expect(page.get_by_role("heading", name="Another way", level=1)).to_be_visible()
    await expect(page.get_by_role("region", name="Messages")).to_contain_text("Where to?")
    await page.get_by_role("link", name="trip").click()
    await expect(page.get_by_role("heading", name="trip", level=1)).to_be_visible()
    await page.get_by_role("button", name="Delete…").click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.get_by_role("link", name="Another way")).to_be_visible()
    assert (await proxy.client.get("/v1/sessions/trip")).status_code == 404
