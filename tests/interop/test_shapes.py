"""The published `ShapeStream`, unmodified, reads a generation's streams with the URLs alone."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streamkeep.storage import DEFAULT_TENANT, GenerationKey
from streamkeep.storage.postgres import PostgresStore
from tests import node
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Script, upstream, whole

BODY = "".join(f"data: {number} wörld ☃ 😀 \r\n\n" for number in range(40))
WHICH = {"stream": "data", "control": "control"}
DONE = {"event": "done", "payload": {"finishReason": "complete"}, "dataRowId": f"{len(BODY.encode()):020d}"}


@pytest.fixture(scope="session")
def scripts() -> Path:
    return node.project(Path(__file__).parent)


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with serving(PostgresStore(database_url)) as served:
        yield served


def slowly(body: bytes, *, breaks: bool = False) -> Script:
    """An upstream that cuts where characters are not, and is slow enough to be read live."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        for start in range(0, len(body), 29):
            await exchange.chunk(body[start : start + 29])
            await asyncio.sleep(0.03)
        if breaks:
            exchange.reset()
        else:
            await exchange.end()

    return play


async def create(proxy: Proxy, script: Script) -> dict[str, Any]:
    async with upstream(script) as server:
        return await created_at(proxy, server.url)


async def created_at(proxy: Proxy, url: str) -> dict[str, Any]:
    answer = await proxy.create(str(uuid.uuid4()), str(uuid.uuid4()), url)
    created: dict[str, Any] = answer.json()
    return created


async def play(scripts: Path, created: dict[str, Any], scenario: str) -> dict[str, Any]:
    status, output = await node.run(scripts, "shapes.mjs", json.dumps(created), scenario, timeout_seconds=60)
    assert status == 0, output
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.mark.parametrize(("scenario", "mode"), [("sse", "sse"), ("longPoll", "long-poll")])
async def test_it_follows_a_generation_live_to_its_end(scripts: Path, proxy: Proxy, scenario: str, mode: str) -> None:
    async with upstream(slowly(BODY.encode())) as server:
        found = await play(scripts, await created_at(proxy, server.url), scenario)
        assert len(server.calls) == 1
    assert (found["text"], found["end"], found["warnings"]) == (BODY, DONE, [])
    assert found["ids"] == sorted(set(found["ids"]))
    assert len(found["ids"]) > 5
    assert set(found["modes"]) == {"page", mode}


async def test_it_reconnects_without_a_byte_lost_or_doubled(scripts: Path, database_url: str) -> None:
    # Connections shorter than a second would send the client to long-polls.
    async with (
        serving(PostgresStore(database_url), sse_seconds=1.1) as proxy,
        upstream(slowly(BODY.encode() * 2)) as server,
    ):
        found = await play(scripts, await created_at(proxy, server.url), "sse")
    assert (found["text"], found["warnings"]) == (BODY * 2, [])
    assert found["modes"].count("sse") > 2


async def test_it_resumes_by_handle_and_offset(scripts: Path, proxy: Proxy) -> None:
    async with upstream(slowly(BODY.encode())) as server:
        found = await play(scripts, await created_at(proxy, server.url), "resumed")
        assert len(server.calls) == 1
    assert found["first"]["text"] + found["rest"]["text"] == BODY
    assert found["first"]["text"]
    assert found["rest"]["text"]
    assert (found["rest"]["end"], found["nothing"]["end"], found["nothing"]["text"]) == (DONE, DONE, "")
    assert found["nothing"]["warnings"] == []


async def test_it_begins_anew_with_another_servers_positions(scripts: Path, proxy: Proxy) -> None:
    created = await create(proxy, whole(BODY.encode()))
    found = await play(scripts, created, "foreign")
    assert (found["text"], found["end"], found["warnings"]) == (BODY, DONE, [])


async def test_it_is_told_how_a_generation_broke_off(scripts: Path, proxy: Proxy) -> None:
    async with upstream(slowly(BODY.encode()[:100], breaks=True)) as server:
        created = await created_at(proxy, server.url)
        found = await play(scripts, created, "sse")
    reason = (await proxy.ending(created["sessionId"], created["requestId"]))["message"]
    text = BODY.encode()[:100].decode()
    assert (found["text"], found["end"]["event"], found["end"]["payload"]) == (text, "error", {"message": reason})


async def test_an_empty_response_ends_at_once(scripts: Path, proxy: Proxy) -> None:
    found = await play(scripts, await create(proxy, whole(b"")), "sse")
    assert (found["text"], found["end"]) == ("", {**DONE, "dataRowId": "0" * 20})


async def test_it_stops_at_a_url_that_has_expired_and_at_data_that_are_gone(scripts: Path, proxy: Proxy) -> None:
    created = await create(proxy, whole(BODY.encode()))
    await proxy.ending(created["sessionId"], created["requestId"])
    key = GenerationKey(DEFAULT_TENANT, created["sessionId"], created["requestId"])
    query = proxy.service.access.signed_query(key, expires=1)
    expired = created | {f"{which}Url": f"{proxy.url}/stream/{of}?{query}" for which, of in WHICH.items()}
    assert (await play(scripts, expired, "sse"))["refused"] == {"status": 401, "name": "FetchError"}
    await proxy.client.delete(f"/api/{created['sessionId']}")
    found = await play(scripts, created, "sse")
    assert (found["refused"], found["text"]) == ({"status": 410, "name": "FetchError"}, "")
