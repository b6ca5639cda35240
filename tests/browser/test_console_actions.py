"""What people do on the console's pages: keys, streams, commands to copy, replay, and lists that are long."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave

import pytest
from playwright.async_api import Page, Route, expect

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage.postgres import PostgresStore
from tests.browser.conftest import OpenProfile
from tests.browser.test_console import KEY, said, talking
from tests.postgres import connected
from tests.serving import Proxy, serving
from tests.upstream import upstream, whole

TEXT = {"Content-Type": "text/plain"}

# A second of film, as the browser itself records it.
_FILM = """async () => {
  const canvas = document.createElement("canvas")
  canvas.width = canvas.height = 32
  const pen = canvas.getContext("2d")
  const recorder = new MediaRecorder(canvas.captureStream(25), { mimeType: "video/webm;codecs=vp8" })
  const parts = []
  recorder.ondataavailable = ({ data }) => parts.push(data)
  recorder.start()
  for (let frame = 0; frame < 10; frame += 1) {
    pen.fillStyle = frame % 2 ? "red" : "blue"
    pen.fillRect(0, 0, 32, 32)
    await new Promise(requestAnimationFrame)
  }
  const stopped = new Promise((resolve) => { recorder.onstop = resolve })
  recorder.stop()
  await stopped
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer())
  return btoa(String.fromCharCode(...bytes))
}"""

_DROP = """([selector, content]) => {
  const dataTransfer = new DataTransfer()
  dataTransfer.items.add(new File([content], "dropped.txt"))
  for (const name of ["dragover", "drop"]) {
    document.querySelector(selector).dispatchEvent(new DragEvent(name, { dataTransfer, bubbles: true, cancelable: true }))
  }
}"""

_MANY_GENERATIONS = """
insert into streamkeep.generations
    (tenant, session_id, request_id, owner_id, owner_epoch, data_stream, control_stream, state, ended_at)
select 'default', 'chat-' || n, 'r', 1, 1, 0, 0, 'done', clock_timestamp()
from generate_series(1, 10000) as n
"""
_MANY_STREAMS = """
insert into streamkeep.streams (tenant, path, content_type, tail)
select 'default', 'many/' || lpad(n::text, 5, '0'), 'text/plain', 0
from generate_series(1, 10000) as n
"""


def sound() -> bytes:
    """A tenth of a second of silence."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    return made.getvalue()


async def unlock(page: Page, key: str) -> None:
    await page.get_by_placeholder("stk_…").fill(key)
    await page.get_by_role("button", name="Unlock").click()


async def test_a_running_generation_is_stopped_from_the_list_and_deleted(proxy: Proxy, page: Page) -> None:
    await page.goto(proxy.url)
    async with talking("Hello") as server:
        await proxy.create("chat", "1", server.url)
        await page.get_by_role("button", name="Stop chat / 1").click()
        await expect(page.get_by_role("row", name="chat / 1").get_by_text("cancelled")).to_be_visible()
        assert server.calls[0].is_gone.is_set()
    await page.get_by_role("link", name="chat / 1").click()
    data = page.get_by_role("region", name="Data stream")
    control = page.get_by_role("region", name="Control stream")
    await expect(data).to_contain_text("Hello")
    await expect(control).to_contain_text("cancelled")
    tops = "(element, other) => [element, other].map((each) => each.getBoundingClientRect().top)"
    left, right = await data.evaluate(tops, await control.element_handle())
    assert left == right
    await page.get_by_role("button", name="Delete…").click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.get_by_role("heading", name="No generations yet")).to_be_visible()
    assert (await proxy.read("chat", "1")).status_code == 410


async def test_keys_are_made_and_revoked_and_lock_whoever_uses_them(
    database_url: str, page: Page, open_profile: OpenProfile, complaints: list[str]
) -> None:
    async with serving(PostgresStore(database_url), keys=BootstrapKeys.parse([KEY])) as proxy:
        await page.goto(f"{proxy.url}/#/keys")
        await unlock(page, KEY)
        await expect(page.get_by_role("heading", name="No keys made yet")).to_be_visible()
        await page.get_by_role("button", name="New key").click()
        await page.get_by_role("textbox", name="Name For you").fill("<b>a robot</b>")
        await page.get_by_role("textbox", name="Tenant").fill("acme")
        await page.get_by_label("At once").fill("2")
        await page.get_by_role("button", name="Make it").click()
        key = await page.get_by_label("The new key").input_value()
        await page.get_by_role("button", name="Close").click()
        await expect(page.get_by_role("row", name="<b>a robot</b>")).to_contain_text("active")
        assert key not in await page.content()
        me = await proxy.client.get("/api/whoami", headers={"Streamkeep-Key": key})
        assert (me.json()["tenant"], me.json()["maxRunning"]) == ("acme", 2)

        theirs = await (await open_profile()).new_page()
        await theirs.goto(proxy.url)
        await unlock(theirs, key)
        await expect(theirs.get_by_role("heading", name="No generations yet")).to_be_visible()
        await theirs.goto(f"{proxy.url}/#/keys")
        await expect(theirs.get_by_text("Other keys are the operator's to see")).to_be_visible()
        await expect(theirs.get_by_role("button", name="New key")).to_have_count(0)
        other_tab = await theirs.context.new_page()
        await other_tab.goto(proxy.url)
        await expect(other_tab.get_by_placeholder("stk_…")).to_be_visible()
        await other_tab.close()
        await theirs.goto(f"{proxy.url}/#/generations")

        await page.get_by_role("button", name="Revoke stk_").click()
        await page.get_by_role("button", name="Revoke", exact=True).click()
        await expect(page.get_by_role("row", name="<b>a robot</b>")).to_contain_text("revoked")
        await expect(theirs.get_by_role("dialog")).to_contain_text("The key was revoked.")
        await theirs.get_by_role("button", name="Cancel").click()
        await expect(theirs.get_by_role("heading", name="This proxy wants a key")).to_be_visible()
        assert key not in theirs.url + page.url
        await page.goto("about:blank")
        await theirs.goto("about:blank")
    assert all("401" in complaint for complaint in complaints), complaints
    complaints.clear()


async def test_forgetting_the_key_takes_what_was_shown_away(
    database_url: str, page: Page, complaints: list[str]
) -> None:
    async with serving(PostgresStore(database_url), keys=BootstrapKeys.parse([KEY])) as proxy:
        await proxy.client.put(
            "/v1/stream/secret-plans", headers={**TEXT, "Streamkeep-Key": KEY}, content=b"what nobody may know"
        )
        await page.goto(f"{proxy.url}/#/stream/secret-plans")
        await unlock(page, KEY)
        await expect(page.get_by_label("Contents")).to_contain_text("nobody")
        await page.get_by_role("button", name="Operator").click()
        await page.get_by_role("button", name="Forget the key").click()
        await expect(page.get_by_placeholder("stk_…")).to_be_visible()
        assert "nobody" not in await page.content()
        assert await page.evaluate("sessionStorage.length + localStorage.length") == 0
        await page.goto("about:blank")
        await page.go_back()
        await expect(page.get_by_placeholder("stk_…")).to_be_visible()
        assert "nobody" not in await page.content()
        await page.goto("about:blank")
    assert all("401" in complaint for complaint in complaints), complaints
    complaints.clear()


async def test_copied_commands_work_in_a_shell_and_hold_no_key(
    database_url: str, page: Page, complaints: list[str]
) -> None:
    async with (
        serving(PostgresStore(database_url), keys=BootstrapKeys.parse([KEY])) as proxy,
        upstream(whole(said("for the shell"))) as server,
    ):
        await proxy.create("chat", "1", server.url, Streamkeep_Key=KEY)
        path = "it's/a $(touch x) 'stream'"
        await proxy.client.put(
            f"/v1/stream/{path}",
            headers={**TEXT, "Stream-Closed": "true", "Streamkeep-Key": KEY},
            content=b"of the stream",
        )
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.goto(proxy.url)
        await unlock(page, KEY)
        for address, text in (("stream", "of the stream"), ("generation/default/chat/1", "for the shell")):
            await page.goto(f"{proxy.url}/#/streams")
            if address == "stream":
                await page.get_by_role("link", name=path).click()
            else:
                await page.goto(f"{proxy.url}/#/{address}")
            await page.get_by_role("button", name="Copy as curl").click()
            await expect(page.get_by_role("status").get_by_text("copied")).to_be_visible()
            command = await page.evaluate("navigator.clipboard.readText()")
            assert KEY not in command
            shell = await asyncio.create_subprocess_shell(
                command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
            said_by_curl, _ = await shell.communicate()
            assert text in said_by_curl.decode(), command
            await page.reload()
        await page.goto("about:blank")
    assert all("401" in complaint for complaint in complaints), complaints
    complaints.clear()


async def test_a_stream_takes_files_until_it_is_closed(proxy: Proxy, page: Page, complaints: list[str]) -> None:
    await page.goto(f"{proxy.url}/#/streams")
    await page.get_by_role("button", name="New stream").click()
    await page.get_by_label("Path").fill("notes/../up")
    await page.get_by_role("button", name="Create").click()
    await expect(page.get_by_role("alert")).to_contain_text("no segments that are . or ..")
    await page.get_by_label("Path").fill("notes/ending")
    await page.get_by_label("Or ends at").fill("2031-02-03T04:05")
    await page.get_by_role("button", name="Create").click()
    await expect(page.get_by_role("definition").filter(has_text="2031")).to_be_visible()
    instant = await page.evaluate("new Date('2031-02-03T04:05').toISOString()")
    head = await proxy.client.head("/v1/stream/notes/ending")
    assert head.headers["Stream-Expires-At"][:16] == instant[:16]
    await page.evaluate(_DROP, [".composer", "a file's content"])
    await expect(page.get_by_label("Contents")).to_contain_text("a file's content")
    await page.get_by_role("button", name="Close").click()
    await expect(page.get_by_role("definition").filter(has_text="closed")).to_be_visible()
    await expect(page.get_by_label("Append")).to_be_hidden()
    await expect(page.get_by_role("button", name="Close")).to_be_disabled()
    assert (await proxy.client.head("/v1/stream/notes/ending")).headers["Stream-Closed"] == "true"

    await page.goto(f"{proxy.url}/#/streams")
    await page.get_by_role("button", name="New stream").click()
    await page.get_by_label("Path").fill("messages")
    await page.get_by_label("Holds").select_option("JSON messages")
    await page.get_by_label("Ends unused for, s").fill("3600")
    await page.get_by_label("First content").fill('[{"say": "one"}, {"say": "two"}]')
    await page.get_by_role("button", name="Create").click()
    await expect(page.get_by_text("3600 s after its last use")).to_be_visible()
    writer = page.get_by_label("Append")
    await writer.fill("no JSON")
    await writer.press("Enter")
    await expect(page.locator("#news .bad")).to_be_visible()
    await expect(writer).to_have_value("no JSON")
    await writer.fill('{"say": "three"}')
    await writer.press("Enter")
    await page.get_by_role("button", name="JSON", exact=True).click()
    await expect(page.get_by_label("Contents").locator("pre")).to_have_count(3)
    await page.goto("about:blank")
    (refused,) = complaints
    assert "400" in refused
    complaints.clear()


async def test_what_came_is_replayed_and_moved_through(proxy: Proxy, page: Page) -> None:
    await proxy.client.put("/v1/stream/notes", headers=TEXT, content=b"before ")
    await page.goto(f"{proxy.url}/#/stream/notes")
    contents = page.get_by_label("Contents")
    await expect(contents).to_have_text("before")
    for word in ("early ", "late"):
        seen = await page.evaluate("performance.now()")
        await page.wait_for_function("(seen) => performance.now() > seen + 400", arg=seen)
        await proxy.client.post("/v1/stream/notes", headers=TEXT, content=word.encode())
        await expect(contents).to_contain_text(word.strip())
    await expect(page.get_by_text("stands at the beginning")).to_be_visible()
    moment = page.get_by_label("Moment")
    await moment.focus()
    await page.keyboard.press("Home")
    await expect(contents).to_have_text("before")
    await page.keyboard.press("End")
    await expect(contents).to_have_text("before early late")
    await page.evaluate(
        """() => {
          window.shown = []
          const output = document.querySelector(".output")
          new MutationObserver(() => window.shown.push(output.textContent)).observe(output, { childList: true, characterData: true, subtree: true })
        }"""
    )
    await page.get_by_role("button", name="Replay").click()
    await expect(page.get_by_role("button", name="Pause")).to_be_visible()
    await expect(page.get_by_role("button", name="Replay")).to_be_visible()
    await expect(contents).to_have_text("before early late")
    shown = await page.evaluate("window.shown")
    steps = [text for text in dict.fromkeys(shown) if text]
    assert steps == ["before ", "before early ", "before early late"]
    await page.goto("about:blank")


async def test_sound_and_film_are_played_as_blobs(proxy: Proxy, page: Page) -> None:
    await page.goto(f"{proxy.url}/#/streams")
    film = base64.b64decode(await page.evaluate(_FILM))
    for name, content_type, content in (("sound", "audio/wav", sound()), ("film", "video/webm", film)):
        headers = {"Content-Type": content_type, "Stream-Closed": "true"}
        await proxy.client.put(f"/v1/stream/{name}", headers=headers, content=content)
    await page.goto(f"{proxy.url}/#/stream/sound")
    await page.wait_for_function("() => document.querySelector('.media audio')?.duration > 0.05")
    await page.goto(f"{proxy.url}/#/stream/film")
    await page.wait_for_function("() => document.querySelector('.media video')?.videoWidth === 32")
    await page.get_by_role("button", name="Bytes").click()
    await expect(page.get_by_label("Contents")).to_contain_text("1a 45 df a3" if len(film) < 8192 else "bytes before")
    await page.goto("about:blank")


async def test_long_lists_are_paged_filtered_and_never_drawn_whole(
    database_url: str, proxy: Proxy, page: Page, complaints: list[str]
) -> None:
    async with connected(database_url) as plain:
        await plain.execute(_MANY_GENERATIONS)
        await plain.execute(_MANY_STREAMS)
    await page.goto(proxy.url)
    await expect(page.get_by_role("link", name="chat-10000 / r")).to_be_visible()
    rows = page.locator("tbody tr")
    await expect(rows).to_have_count(100)
    await page.get_by_role("button", name="Older").click()
    await expect(page.get_by_role("link", name="chat-9900 / r")).to_be_visible()
    await expect(rows).to_have_count(100)
    await page.get_by_role("searchbox").fill("chat-9998")
    await expect(rows).to_have_count(1)
    await page.get_by_role("link", name="chat-9998 / r").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("chat-9998 / r")
    await page.goto(f"{proxy.url}/#/streams")
    await page.get_by_role("searchbox").fill("many/")
    await expect(rows).to_have_count(100)
    await page.get_by_role("searchbox").fill("many/0999")
    await expect(rows).to_have_count(10)
    messages = json.dumps([{"role": "user", "content": f"message {number}"} for number in range(10_000)])
    await proxy.client.put("/v1/stream/talk", headers={"Content-Type": "application/json"}, content=messages)
    await page.goto(f"{proxy.url}/#/stream/talk")
    await expect(page.get_by_label("Contents")).to_contain_text("message 9999")
    await page.get_by_role("button", name="JSON", exact=True).click()
    await expect(page.get_by_label("Contents").locator("pre")).to_have_count(500)
    await page.goto("about:blank")
    # The generations have rows alone, and no streams.
    assert all("404" in complaint for complaint in complaints), complaints
    complaints.clear()


@pytest.mark.parametrize("width", [320, 390])
async def test_the_whole_navigation_is_seen_on_phones(proxy: Proxy, page: Page, width: int) -> None:
    may_go_on, answered = asyncio.Event(), 0

    async def hold(route: Route) -> None:
        nonlocal answered
        if answered:
            await may_go_on.wait()
        answered += 1
        await route.continue_()

    await page.route("**/metrics", hold)
    await page.set_viewport_size({"width": width, "height": 700})
    await page.goto(f"{proxy.url}/#/health")
    for link in await page.get_by_role("navigation", name="Console").get_by_role("link").all():
        box = await link.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    chart = page.get_by_role("region", name="Requests")
    await expect(chart.locator("strong")).to_have_text("…")
    may_go_on.set()
    await expect(chart.locator("strong")).not_to_have_text("…")
    await expect(chart.locator("polyline")).to_be_attached()
    await page.goto("about:blank")
