"""Bodies of requests: what is held of them, and for how long."""

from __future__ import annotations

import sys

from streamkeep.proxy.request_body import BodyBudget, RequestBody


async def test_a_body_of_our_own_that_was_let_go_is_held_by_nobody() -> None:
    content = bytes(1000)
    held = sys.getrefcount(content)
    body = await RequestBody.of(content, BodyBudget(1000))
    assert body.content == content
    assert sys.getrefcount(content) > held
    body.release()
    assert sys.getrefcount(content) == held
