"""Fixtures: a real Chromium, and a page in it that fails its test on whatever it complains about."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, WebError, async_playwright, expect

from streamkeep.storage.postgres import PostgresStore
from tests.browser.pages import Pages, serving_pages
from tests.serving import Proxy, serving

_CHROMIUM = shutil.which("chromium")
_TIMEOUT_MS = 30_000

OpenProfile = Callable[[], Awaitable[BrowserContext]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _CHROMIUM is None:
        here = [item for item in items if Path(__file__).parent in item.path.parents]
        for item in here:
            item.add_marker(pytest.mark.skip(reason="chromium is not installed"))


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The Chromium of the system, headless, started once."""
    expect.set_options(timeout=_TIMEOUT_MS)
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=_CHROMIUM)
        yield started
        await started.close()


@pytest.fixture
def complaints() -> list[str]:
    """What this test's pages complained about: exceptions, and errors on the console, among them whatever the content
    security policy refused and requests that failed. A test that provokes some clears them; what is left fails it.
    """
    return []


@pytest.fixture
def _servers(request: pytest.FixtureRequest) -> None:
    """What a page talks to starts before it, and so outlives it: else the page would complain at the end."""
    for name in ("pages", "proxy"):
        if name in request.fixturenames:
            request.getfixturevalue(name)


@pytest.fixture
async def open_profile(_servers: None, browser: Browser, complaints: list[str]) -> AsyncIterator[OpenProfile]:
    """Opens further profiles, each with a storage of its own, as another person's browser would have."""

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error":
            complaints.append(f"{message.location['url']}: {message.text}")

    def thrown(error: WebError) -> None:
        complaints.append(f"uncaught: {error.error}")

    async with AsyncExitStack() as opened:

        async def open_one() -> BrowserContext:
            profile = await browser.new_context()
            opened.push_async_callback(profile.close)
            profile.set_default_timeout(_TIMEOUT_MS)
            profile.on("console", heard)
            profile.on("weberror", thrown)
            return profile

        yield open_one
    assert complaints == []


@pytest.fixture
async def page(open_profile: OpenProfile) -> Page:
    """An empty page in a fresh profile. Its other tabs: `page.context.new_page()`."""
    return await (await open_profile()).new_page()


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    """The proxy over a database of this test's own."""
    async with serving(PostgresStore(database_url)) as served:
        yield served


@pytest.fixture
def pages() -> Iterator[Pages]:
    """A server of the test's own web pages, on another origin than the proxy's."""
    with serving_pages() as served:
        yield served
