"""The published JavaScript client of the open protocol, unmodified, against a served proxy on Postgres."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streamkeep.storage.postgres import PostgresStore
from tests import node
from tests.serving import Proxy, serving
from tests.upstream import Exchange, upstream


@pytest.fixture(scope="session")
def scripts() -> Path:
    return node.project(Path(__file__).parent)


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    async with serving(PostgresStore(database_url)) as served:
        yield served


async def play(scripts: Path, proxy: Proxy, scenario: str, *arguments: str) -> Any:
    status, output = await node.run(scripts, "client.mjs", proxy.url, scenario, *arguments, timeout_seconds=60)
    assert status == 0, output
    return json.loads(output)


async def test_a_stream_lives_from_creation_to_deletion(scripts: Path, proxy: Proxy) -> None:
    found = await play(scripts, proxy, "lifecycle")
    assert [found[step]["status"] for step in ("again", "conflict", "late")] == [409, 409, 409]
    assert (found["text"], found["rest"]) == ("hello" + " world" * 20 + "!", " world" * 20 + "!")
    assert found["head"] | {"contentType": "text/plain", "offset": at(126), "streamClosed": False} == found["head"]
    assert found["end"] == found["endAgain"] == {"finalOffset": at(129)}
    assert found["closed"]["streamClosed"] is True
    assert found["gone"] == {"exists": False}


async def test_an_idempotent_producer_batches_restarts_and_is_fenced(scripts: Path, proxy: Proxy) -> None:
    found = await play(scripts, proxy, "producer")
    assert (found["errors"], found["fenced"], found["epoch"]) == ([], ["StaleEpochError"], 2)
    assert all(1 < batches < 250 for batches in found["batches"]), "many messages to an append"
    assert found["sse"] == found["longPoll"] == found["caughtUp"] == found["messages"]


async def test_live_readers_get_every_byte(scripts: Path, proxy: Proxy) -> None:
    found = await play(scripts, proxy, "pieces")
    assert set(found) == {"text/plain", "application/octet-stream"}
    for streamed in found.values():
        whole = {"base64": streamed["written"], "offset": at(len(b64decode(streamed["written"])))}
        assert streamed["sse"] == streamed["longPoll"] == whole


@pytest.mark.parametrize(
    ("content_type", "pieces"),
    [
        ("text/plain", [b"one", b" two", b"\n three"]),
        ("application/octet-stream", [bytes(range(256)), b"\r\n\x00", b"end"]),
    ],
)
async def test_a_generation_is_read_by_its_signed_url(
    scripts: Path, proxy: Proxy, content_type: str, pieces: list[bytes]
) -> None:
    found = await read_generation(scripts, proxy, content_type, pieces)
    assert found == whole(pieces, content_type)


async def test_a_generation_of_events_is_read_by_the_url_for_its_bytes(scripts: Path, proxy: Proxy) -> None:
    # This client takes any answer of type text/event-stream for a live read's events.
    pieces = [b"data: one\n\n", b"event: control\ndata: tw", b"o\r\n\n", b"\xff"]
    found = await read_generation(scripts, proxy, "text/event-stream", pieces, Streamkeep_View="bytes")
    assert found == whole(pieces, "application/octet-stream")


async def test_a_database_on_a_stream_is_the_same_for_all_who_open_it(scripts: Path, proxy: Proxy) -> None:
    status, output = await node.run(scripts, "state.mjs", proxy.url, timeout_seconds=60)
    assert status == 0, output
    users = [{"id": "1", "name": "Ädä"}, {"id": "2", "name": "Grace"}]
    assert json.loads(output) == {"writer": users, "watchers": [users, users], "late": users}


async def read_generation(
    scripts: Path, proxy: Proxy, content_type: str, pieces: list[bytes], **headers: str
) -> dict[str, Any]:
    async def play_slowly(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": content_type})
        for piece in pieces:
            await exchange.chunk(piece)
            await asyncio.sleep(0.2)
        await exchange.end()

    async with upstream(play_slowly) as server:
        created = (await proxy.create("chat", "1", server.url, body=b"{}", method="POST", **headers)).json()
        found: dict[str, Any] = await play(scripts, proxy, "handed", created["streamUrl"])
    return found


def whole(pieces: list[bytes], content_type: str) -> dict[str, Any]:
    """What the client finds in each way of reading, when it gets all of it."""
    body = b"".join(pieces)
    base64 = b64encode(body).decode()
    live = {"base64": base64, "offset": at(len(body))}
    return {"sse": live, "longPoll": live, "type": content_type, "caughtUp": base64}


def at(position: int) -> str:
    return f"{0:016d}_{position:016d}"
