"""What a page complains about reaches the test, or the other tests here would prove less than they say."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Page

from tests.browser.pages import Pages

POLICY = '<meta http-equiv="Content-Security-Policy" content="script-src \'self\'">'


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<script>console.error('odd')</script>", "odd"),
        ("<script>undefined.field</script>", "uncaught"),
        ("<script>Promise.reject(new Error('lost'))</script>", "lost"),
        ("<script>fetch('/missing')</script>", "404"),
        (f"{POLICY}<script>console.log('refused')</script>", "Content Security Policy"),
    ],
)
async def test_a_page_that_complains_fails_its_test(
    page: Page, pages: Pages, complaints: list[str], body: str, complaint: str
) -> None:
    await page.goto(pages.put("/page", f"<!doctype html><title>page</title>{body}"))
    async with asyncio.timeout(60):
        while not complaints:
            await page.wait_for_timeout(10)
    assert complaint in complaints[0]
    complaints.clear()
