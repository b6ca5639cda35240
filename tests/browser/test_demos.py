"""The demos as a person runs them: by the command, in a browser, with everything done to them that their buttons do."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from streamkeep.proxy.vendor_text import markdown_tokens

CHATS = ("chat-vercel", "chat-tanstack")
TOKENS = 250
COMMAND = (sys.executable, "-m", "streamkeep.client", "demo")


@dataclass(frozen=True, slots=True)
class Demo:
    """One that runs: its page, and the fake vendor behind it."""

    name: str
    url: str
    vendor_url: str

    def calls(self) -> list[dict[str, Any]]:
        """What the vendor was asked since the last look."""
        found: list[dict[str, Any]] = httpx.get(f"{self.vendor_url}/_fake/calls").json()["calls"]
        httpx.delete(f"{self.vendor_url}/_fake/calls")
        return found


@contextmanager
def running(name: str) -> Iterator[Demo]:
    """A demo on free ports, stopped by Ctrl-C."""
    command = [*COMMAND, name, "--port", "0", "--tokens", str(TOKENS), "--rate", "40"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            lines = dict(re.findall(r"(open|model).*?(http://[0-9.]+:[0-9]+)", "".join(_head(process.stdout))))
            yield Demo(name, lines["open"], lines["model"])
        finally:
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")


def _head(output: Iterator[str]) -> Iterator[str]:
    for line in output:
        yield line
        if line.startswith("Stop"):
            return


@pytest.fixture(scope="module", params=CHATS)
def chat(request: pytest.FixtureRequest) -> Iterator[Demo]:
    with running(request.param) as demo:
        yield demo


@pytest.fixture(scope="module")
def versus() -> Iterator[Demo]:
    with running("plain-vs-durable") as demo:
        yield demo


async def press(page: Page, name: str) -> None:
    await page.get_by_role("button", name=name, exact=True).first.click()


async def chunks_are_beyond(page: Page, count: int) -> None:
    await page.wait_for_function("count => Number(document.getElementById('count').textContent) > count", arg=count)


async def is_ready(page: Page) -> None:
    await expect(page.locator("#messages")).to_have_attribute("aria-busy", "false")


async def last_text(page: Page, demo: Demo) -> str:
    """The last message's text as the page keeps it."""
    kept = json.loads(await page.evaluate(f"localStorage.getItem('streamkeep/messages/{demo.name}')"))
    parts = [part for part in kept["messages"][-1]["parts"] if part["type"] == "text"]
    return "".join(part.get("text") or part.get("content") for part in parts)


async def test_a_chat_goes_on_after_the_line_dropped_and_after_a_reload(
    chat: Demo, page: Page, complaints: list[str]
) -> None:
    await page.goto(chat.url)
    badge = page.locator("#badge")
    await press(page, "Tell me a long story")
    await chunks_are_beyond(page, 10)
    await press(page, "Drop the line")
    await expect(badge).to_have_text("reconnecting")
    taken = int(await page.locator("#count").text_content() or "")
    await press(page, "Restore the line")
    await chunks_are_beyond(page, taken)
    await expect(badge).to_have_text("connected")
    async with page.expect_navigation():
        await press(page, "Reload")
    # On a new page the count begins anew: all chunks come again.
    await chunks_are_beyond(page, taken)
    await expect(page.locator("article.assistant h3").first).to_have_text("The keeper of the stream")
    await is_ready(page)
    assert await last_text(page, chat) == "".join(markdown_tokens(TOKENS))
    for shown in ("table", "pre code", "blockquote", "ol li", "strong", "em"):
        await expect(page.locator(f"article.assistant {shown}").first).to_be_visible()
    (call,) = chat.calls()
    assert call["state"] == "complete"
    complaints.clear()


async def test_a_chat_shows_tools_and_what_was_stopped_stays_stopped(chat: Demo, page: Page) -> None:
    await page.goto(chat.url)
    await press(page, "Look up the weather")
    await expect(page.locator(".tool .pill")).to_have_text("done")
    await expect(page.locator(".tool")).to_contain_text("celsius")
    await expect(page.locator("article.assistant h3")).to_be_visible()
    await press(page, "Stop")
    await is_ready(page)
    text = await page.locator("article.assistant").inner_text()
    await page.reload()
    await expect(page.locator("#badge")).to_have_text("connected")
    await is_ready(page)
    await expect(page.locator("article.assistant")).to_have_text(text, use_inner_text=True)
    assert [call["state"] for call in chat.calls()] == ["complete", "aborted"]
    await press(page, "Retry")
    await expect(page.locator("article.assistant h3")).to_be_visible()
    await expect(page.locator("article.assistant")).to_have_count(1)
    await press(page, "Clear")
    await expect(page.locator("article")).to_have_count(0)
    await page.reload()
    await is_ready(page)
    await expect(page.locator("article")).to_have_count(0)
    await expect(page.locator("#count")).to_have_text("0")
    chat.calls()


async def say(page: Page, name: str, text: str) -> None:
    await page.get_by_label(f"Message of {name}").fill(text)
    await page.keyboard.press("Enter")


async def test_a_session_is_shared_through_drops_approvals_and_branches(page: Page, complaints: list[str]) -> None:
    with running("sessions") as demo:
        await page.goto(demo.url)
        ann, bob = page.locator("#ann"), page.locator("#bob")
        await expect(ann.locator(".people")).to_have_text("Bob is online")
        await page.get_by_label("Message of Ann").press_sequentially("T")
        await expect(bob.locator(".people")).to_have_text("Ann types …")
        await say(page, "Ann", "Tell me a long story")
        for pane in (ann, bob):
            await expect(pane.locator("article", has_text="Guide").locator("h3")).to_have_text(
                "The keeper of the stream"
            )
            await expect(pane.locator("article", has_text="Critic")).to_contain_text("I let the guide speak")
        await press(page, "Drop the line")
        await expect(ann.locator("h2 .pill")).to_have_text("reconnecting")
        await expect(page.locator("#clock")).to_contain_text("the line is dropped")
        await say(page, "Bob", "And a table, please")
        await expect(bob.get_by_role("button", name="Approve")).to_be_visible()
        await expect(ann.get_by_role("button", name="Approve")).to_have_count(0)
        await press(page, "Restore the line")
        await ann.get_by_role("button", name="Approve").click()
        await expect(bob.locator("article").last).to_contain_text("The table is yours, at eight.")
        for pane in (ann, bob):
            await expect(pane.locator(".tool .pill")).to_have_text("approved")
            await expect(pane.get_by_role("button", name="Stop")).to_be_disabled()
        assert await ann.locator(".text").all_inner_texts() == await bob.locator(".text").all_inner_texts()
        (call,) = demo.calls()
        assert call["state"] == "complete"
        await bob.locator("article").first.get_by_role("button", name="Branch off here").click()
        await expect(bob.locator("article")).to_have_count(1)
        await expect(ann.locator(".people")).to_have_text("Nobody else is here")
        await say(page, "Bob", "A table for one")
        await bob.get_by_role("button", name="Deny").click()
        await expect(bob.locator("article").last).to_contain_text("Then I book nothing.")
        await bob.get_by_role("button", name="Back").click()
        await expect(ann.locator(".people")).to_have_text("Bob is online")
        shown = await ann.locator(".text").all_inner_texts()
        await page.reload()
        await expect(ann.locator("article").last).to_contain_text("The table is yours, at eight.")
        assert await ann.locator(".text").all_inner_texts() == shown
        await expect(page.locator("#events li").last).to_be_visible()
        await page.goto("about:blank")
    complaints.clear()


HOSTILE = """<script>stolen = 1</script> <img src=x onerror="stolen = 1"> [a](javascript:stolen=1) **<b>b</b>**
`<i>` [b](https://example.com/"onclick=stolen=1)

| <svg onload=stolen=1> |
|---|
"""


async def test_what_a_model_says_cannot_run(versus: Demo, page: Page) -> None:
    await page.goto(versus.url)
    tags = await page.evaluate(
        """async (text) => {
          const { markdown } = await import("./markdown.js")
          document.body.append(...markdown(text))
          return [...document.querySelectorAll("body > :is(p, table) *")].map(({ localName, href }) => href ?? localName)
        }""",
        HOSTILE,
    )
    assert {"code", "strong", "th"} < set(tags)
    assert not {"script", "img", "b", "i", "svg"} & set(tags)
    assert [tag for tag in tags if tag.startswith("javascript")] == []
    assert await page.evaluate("typeof stolen") == "undefined"


async def test_plain_asks_again_after_a_drop_and_durable_does_not(
    versus: Demo, page: Page, complaints: list[str]
) -> None:
    await page.goto(versus.url)
    await press(page, "Ask both for a story")
    for pane in ("plain", "durable"):
        await expect(page.locator(f"#{pane}-text h3").first).to_be_visible()
    await press(page, "Drop the line")
    await expect(page.locator("#plain-state")).to_have_text("broke off: asks again")
    await press(page, "Restore the line")
    await expect(page.locator("#plain-calls")).to_have_text("2")
    await expect(page.locator("#durable-state")).to_have_text("done")
    await expect(page.locator("#durable-calls")).to_have_text("1")
    await page.reload()
    await expect(page.locator("#durable-state")).to_have_text("idle")
    await page.goto(f"{versus.url}/gallery")
    await expect(page.locator("li.panel")).to_have_count(5)
    complaints.clear()


def test_a_port_that_is_taken_is_told(versus: Demo) -> None:
    port = versus.url.rpartition(":")[2]
    done = subprocess.run([*COMMAND, "chat-vercel", "--port", port], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_list_names_every_demo() -> None:
    done = subprocess.run([*COMMAND, "--list"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in (*CHATS, "plain-vs-durable", "sessions", "python-terminal"))
