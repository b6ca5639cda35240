"""Listings: who sees which generations and sessions, and how pages lead on."""

from __future__ import annotations

import asyncio
from typing import Any

from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage import MemoryStore
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream, whole

OPERATOR = "operator-key-0123456789"
ACME = "acme-key-0123456789abc"
KEYS = BootstrapKeys.parse([OPERATOR, f"acme={ACME}"])
ANSWER = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
)


async def listed(proxy: Proxy, key: str | None = None, path: str = "generations", **query: str) -> dict[str, Any]:
    headers = {} if key is None else {"Streamkeep-Key": key}
    answer = await proxy.client.get(f"/api/{path}", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


async def test_a_running_generation_is_listed_with_what_is_known_so_far(proxy: Proxy) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(ANSWER)
        await gate.wait()
        await exchange.end()

    async with upstream(play) as server:
        await proxy.create("chat", "1", f"{server.url}/v1/messages?key=secret")
        await proxy.available(len(ANSWER))
        (row,) = (await listed(proxy, state="live"))["generations"]
        assert (row["sessionId"], row["requestId"], row["state"]) == ("chat", "1", "running")
        assert row["bytes"] == len(ANSWER)
        assert row["upstream"] == "127.0.0.1"
        assert row["usage"] == {"inputTokens": 7, "outputTokens": 1, "source": "provider_partial"}
        assert row["owner"]["isHere"]
        assert "secret" not in str(row)
        gate.set()
        await proxy.ending("chat", "1")
    assert (await listed(proxy, state="live"))["generations"] == []
    (row,) = (await listed(proxy))["generations"]
    assert (row["state"], row["code"], row["owner"]) == ("error", "truncated", None)
    assert row["usage"]["inputTokens"] == 7


async def test_pages_lead_on_to_the_last_row(proxy: Proxy) -> None:
    async with upstream(whole(b"x", "text/plain")) as server:
        for number in range(5):
            await proxy.create(f"chat-{number % 2}", str(number), server.url)
    seen: list[str] = []
    query: dict[str, str] = {}
    while len(seen) < 10:
        page = await listed(proxy, limit="2", **query)
        seen += [row["requestId"] for row in page["generations"]]
        if page["next"] is None:
            break
        query = {"before": page["next"]}
    assert seen == ["4", "3", "2", "1", "0"]
    found = (await listed(proxy, path="sessions"))["sessions"]
    assert [(row["sessionId"], row["generations"]) for row in found] == [("chat-0", 3), ("chat-1", 2)]
    assert [row["requestId"] for row in (await listed(proxy, q="CHAT-1/"))["generations"]] == ["3", "1"]
    assert [row["requestId"] for row in (await listed(proxy, session="chat-1"))["generations"]] == ["3", "1"]


async def test_a_tenant_sees_its_own_and_an_operator_sees_all_and_may_stop_them() -> None:
    held = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        await exchange.chunk(b"x")
        await held.wait()

    async with serving(MemoryStore(), keys=KEYS) as proxy, upstream(play) as server:
        await proxy.create("chat", "theirs", server.url, Streamkeep_Key=ACME)
        await proxy.create("chat", "ours", server.url, Streamkeep_Key=OPERATOR)
        assert [row["requestId"] for row in (await listed(proxy, ACME))["generations"]] == ["theirs"]
        assert [row["requestId"] for row in (await listed(proxy, OPERATOR))["generations"]] == ["ours", "theirs"]
        assert [row["tenant"] for row in (await listed(proxy, OPERATOR, tenant="acme"))["generations"]] == ["acme"]
        assert (await proxy.client.get("/api/generations")).status_code == 401
        foreign = await proxy.client.get("/api/generations?tenant=default", headers={"Streamkeep-Key": ACME})
        assert foreign.status_code == 400
        stop = "/api/chat/{}/cancel?tenant={}"
        refused = await proxy.client.post(stop.format("ours", "default"), headers={"Streamkeep-Key": ACME})
        assert refused.status_code == 403
        stopped = await proxy.client.post(stop.format("theirs", "acme"), headers={"Streamkeep-Key": OPERATOR})
        assert stopped.json() == {"state": "cancelled"}
        assert [row["requestId"] for row in (await listed(proxy, OPERATOR, state="live"))["generations"]] == ["ours"]
        held.set()


async def test_what_no_listing_takes_is_refused(proxy: Proxy) -> None:
    queries = [
        *("limit=0", "limit=501", "limit=x", "before=-1", "before=99999999999999999999", "before=%C2%B2", "state="),
        *("state=x", "state=live,,done", f"q={'x' * 201}", "q=%00", "q=%ED%A0%80", "session=..", "tenant=%20"),
        *("page=2", "q=a&q=b"),
    ]
    for path in ("generations", "sessions"):
        for query in queries:
            answer = await proxy.client.get(f"/api/{path}?{query}")
            assert answer.status_code == 400, (path, query)
