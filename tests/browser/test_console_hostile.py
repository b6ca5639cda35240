"""What is held against the console: names that hide, contents without measure, links that expired, pages from elsewhere."""

from __future__ import annotations

import json
import time
from urllib.parse import quote

from playwright.async_api import Page, expect

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage.postgres import PostgresStore
from tests.browser.conftest import OpenProfile
from tests.browser.pages import Pages
from tests.browser.test_console import KEY, said
from tests.serving import Proxy, serving
from tests.upstream import upstream, whole

TEXT = {"Content-Type": "text/plain"}
DEEP = b"[" * 100_000 + b"]" * 100_000
LONG = 700_000


async def test_contents_without_measure_leave_the_page_alive(proxy: Proxy, page: Page) -> None:
    bodies = {
        "json": (b'{"choices": ' + DEEP + b"}", "application/json"),
        "events": (
            said("seen") + b"data: " + DEEP + b'\n\ndata: {"usage": 1e999, "x": 12345678901234567890}\n\n',
            "text/event-stream",
        ),
        "line": (b"x" * LONG + b" the end", "text/plain"),
        "lines": (b"\n" * LONG + b"the end", "text/plain"),
        "bytes": (b"\xff\xfe\x00\xed\xa0\x80 the end", "text/plain; charset=utf-8"),
        "turned": ("\u202e\u200b\u2066the end".encode(), "text/plain"),
        "pieces": (said("of an answer ") * 20_000 + said("the end"), "text/event-stream"),
    }
    for name, (body, content_type) in bodies.items():
        async with upstream(whole(body, content_type)) as server:
            await proxy.create("hostile", name, server.url)
            await proxy.ending("hostile", name)
    for name, (_, content_type) in bodies.items():
        await page.goto(f"{proxy.url}/#/generation/default/hostile/{name}")
        contents = page.get_by_label("Contents")
        await expect(page.get_by_label("Control stream")).to_contain_text("sha256")
        if "event" not in content_type and "json" not in content_type:
            await expect(contents).to_contain_text("the end")
        for mode in ("Read", "JSON", "Bytes"):
            await page.get_by_role("button", name=mode, exact=True).click()
            await expect(contents).not_to_have_text("")
        size = await contents.evaluate("(output) => output.textContent.length")
        assert size < 600_000, name
    await page.get_by_role("button", name="Read", exact=True).click()
    await expect(page.get_by_label("Contents")).to_contain_text("the end")


async def test_names_show_what_hides_in_them(proxy: Proxy, page: Page) -> None:
    path = "invoice\u202efdp.\u200bexe"
    await proxy.client.put(f"/v1/stream/{quote(path)}", headers=TEXT, content=b"x")
    await page.goto(f"{proxy.url}/#/streams")
    link = page.get_by_role("link", name="invoice\\u{202e}fdp.\\u{200b}exe", exact=True)
    await link.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("invoice\\u{202e}fdp.\\u{200b}exe")
    await page.get_by_role("button", name="Delete…").click()
    await expect(page.get_by_role("dialog")).to_contain_text("\\u{202e}fdp")
    await page.goto("about:blank")


async def test_an_address_leads_to_no_other_route(proxy: Proxy, page: Page, complaints: list[str]) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(proxy.url)))
    for path in ("../../api/keys", "..", "a/../../u/openai/v1/files", "./x"):
        await page.goto(f"{proxy.url}/#/stream/{quote(path, safe='')}")
        await expect(page.get_by_role("heading", name="That did not work")).to_be_visible()
    await page.goto(f"{proxy.url}/#/generation/default/../..")
    await expect(page.get_by_role("heading", name="That did not work")).to_be_visible()
    for nowhere in ("<img src=x onerror=alert(1)>/%E0%A4%A", "constructor", "__proto__/x"):
        await page.goto(f"{proxy.url}/#/{nowhere}")
        await expect(page.get_by_role("heading", name="No generations yet")).to_be_visible()
        await expect(page.get_by_role("link", name="Generations")).to_have_attribute("aria-current", "page")
    own = ("/#", "/console/", "/streamkeep-session-fold.js", "/api/whoami", "/api/generations?")
    assert [path for path in asked if path != "/" and not path.startswith(own)] == []
    assert all("400" in complaint for complaint in complaints), complaints
    complaints.clear()


async def test_a_link_that_expired_says_so_and_one_that_is_good_stops_nothing(
    database_url: str, page: Page, complaints: list[str]
) -> None:
    async with (
        serving(PostgresStore(database_url), keys=BootstrapKeys.parse([KEY])) as proxy,
        upstream(whole(said("for a friend"))) as server,
    ):
        await proxy.create("chat", "1", server.url, Streamkeep_Key=KEY)
        wanted = {"sessionId": "chat", "requestId": "1", "seconds": 1}
        share = await proxy.client.post("/api/share", json=wanted, headers={"Streamkeep-Key": KEY})
        signed = share.json()["streamUrl"].partition("?")[2]
        ends = int(signed.partition("expires=")[2].partition("&")[0])
        await page.wait_for_function("(ends) => Date.now() / 1000 > ends + 0.1", arg=ends)
        assert time.time() > ends
        await page.goto(f"{proxy.url}/#/shared?{signed}")
        await expect(page.get_by_label("Data stream")).to_contain_text("The link has expired")
        await expect(page.get_by_label("Control stream")).to_contain_text("It cannot be read")
        share = await proxy.client.post("/api/share", json=wanted | {"seconds": 60}, headers={"Streamkeep-Key": KEY})
        signed = share.json()["streamUrl"].partition("?")[2]
        await page.goto(f"{proxy.url}/#/shared?{signed}")
        await expect(page.get_by_label("Contents")).to_contain_text("for a friend")
        assert await page.get_by_role("main").get_by_role("button", name="Stop").count() == 0
        stopped = await proxy.client.post(f"/api/chat/1/cancel?{signed}")
        assert stopped.status_code == 401
        await page.goto("about:blank")
    assert all("401" in complaint for complaint in complaints), complaints
    complaints.clear()


async def test_pages_from_elsewhere_neither_frame_nor_use_it(
    proxy: Proxy, pages: Pages, open_profile: OpenProfile, complaints: list[str]
) -> None:
    """In development mode a page of another site would have the rights of whoever looks at it."""
    async with upstream(whole(said("x"))) as server:
        await proxy.create("chat", "1", server.url)
    page = await (await open_profile()).new_page()
    elsewhere = pages.put("/framing", f'<!doctype html><title>x</title><iframe src="{proxy.url}/"></iframe>')
    await page.goto(elsewhere)
    frame = page.frames[1]
    await frame.wait_for_load_state()
    assert await frame.evaluate("document.querySelector('main')") is None

    # A sandboxed page has an origin that is nobody's.
    script = f"""
      const send = (path, method, body) => fetch("{proxy.url}" + path, {{ method, body, mode: "no-cors" }}).catch(() => {{}})
      await send("/api/keys", "POST", '{{"isOperator": true}}')
      await send("/api/chat/1/cancel", "POST", "")
      await send("/v1/stream/planted", "POST", "x")
      const answer = await fetch("{proxy.url}/api/generations").then((answer) => answer.status, () => 0)
      document.title = "done " + answer
    """
    address = pages.put("/posting", f'<!doctype html><script type="module">{script}</script>')
    pages.put("/outer", f'<!doctype html><title>x</title><iframe sandbox="allow-scripts" src="{address}"></iframe>')
    await page.goto(elsewhere.replace("/framing", "/outer"))
    inner = page.frames[1]
    await inner.wait_for_function("document.title.startsWith('done')")
    assert await inner.title() == "done 403"
    assert (await proxy.client.get("/api/whoami")).json()["isOpen"]
    assert (await proxy.client.get("/api/streams", params={"prefix": "planted"})).json()["streams"] == []
    assert complaints
    assert all("403" in each or "frame-ancestors" in each or "ERR_" in each for each in complaints), complaints
    complaints.clear()


async def test_a_proxy_that_is_gone_is_told_of_once_and_the_list_stays(
    database_url: str, page: Page, complaints: list[str]
) -> None:
    async with serving(PostgresStore(database_url)) as proxy, upstream(whole(said("x"))) as server:
        await proxy.create("chat", "1", server.url)
        await page.goto(proxy.url)
        await expect(page.get_by_role("link", name="chat / 1")).to_be_visible()
    failures: list[str] = []
    page.on("requestfailed", lambda request: failures.append(request.url))
    async with page.expect_event("requestfailed"):
        pass
    async with page.expect_event("requestfailed"):
        pass
    await expect(page.locator("#news .bad")).to_have_count(1)
    await expect(page.locator("#news .bad")).to_contain_text("The proxy does not answer")
    await expect(page.get_by_role("link", name="chat / 1")).to_be_visible()
    await page.goto("about:blank")
    assert all("ERR_" in complaint for complaint in complaints), complaints
    complaints.clear()


async def test_hostile_names_of_everything_are_texts(proxy: Proxy, page: Page, complaints: list[str]) -> None:
    hostile = "<img src=x onerror=window.pwned=1>"
    key = {"role": hostile, hostile: hostile, "content": hostile, "__proto__": {"text": hostile}}
    body = b'data: %b\n\nevent: %b\ndata: {"type":"error","error":{"message":%b}}\n\n' % (
        json.dumps(key).encode(),
        hostile.encode(),
        json.dumps(hostile).encode(),
    )

    async with upstream(whole(body)) as server:
        await proxy.create("chat", "1", server.url, X_Evil=hostile)
    await page.goto(f"{proxy.url}/#/generation/default/chat/1")
    for mode in ("Read", "JSON", "Bytes"):
        await page.get_by_role("button", name=mode, exact=True).click()
        await expect(page.get_by_label("Contents")).to_contain_text("<img")
    await page.goto(f"{proxy.url}/#/generation/default/{quote(hostile, safe='')}/1")
    await expect(page.get_by_role("heading", name="That did not work")).to_be_visible()
    await page.goto(f"{proxy.url}/#/shared?sessionId={quote(hostile)}&requestId={quote(hostile)}&signature=x")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("<img")
    await page.goto(f"{proxy.url}/#/generations?q={quote(hostile)}&session=x&tenant=y")
    await expect(page.get_by_role("searchbox")).to_have_value(hostile)
    assert await page.locator("main :is(script, iframe, img)").count() == 0
    assert await page.evaluate("window.pwned") is None
    await page.goto("about:blank")
    assert all("400" in complaint or "401" in complaint for complaint in complaints), complaints
    complaints.clear()
