"""Requests about durable sessions that are wrong, or meant badly: a clear error each, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from streamkeep.storage import MemoryStore
from streamkeep.storage.postgres import PostgresStore
from tests.agents import until
from tests.proxy.test_sessions import AGENT, Chat, code, silent_agent
from tests.serving import Proxy, serving
from tests.sessions.session_rows import Author, row, turn

__all__ = ["silent_agent"]

ROUTES = [
    ("PUT", ""),
    ("PATCH", ""),
    *(("POST", f"/{name}") for name in ("messages", "regenerate", "stop", "agents", "tool-results", "fork")),
    ("POST", "/approvals/x"),
    ("PUT", "/presence/ann"),
]
BODIES: dict[str, bytes] = {
    "no JSON": b"{",
    "no UTF-8": b'{"content": "\xff"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "NaN": b'{"content": NaN}',
    "no object": b"[]",
    "a text": b'"content"',
    "deep": b'{"content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep beyond what is kept": b'{"output": ' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}",
    "half a character": b'{"content": "\\ud800", "name": "\\ud800", "output": "\\ud800"}',
    "a number that nobody reads": b'{"output": 1e999}',
    "a number without end": b'{"output": ' + b"9" * 5000 + b"}",
}


class Quiet(Chat):
    """A session in which nothing may change."""

    async def look(self) -> Any:
        agents = (await self.call("GET", "/agents")).json()
        record = (await self.call("GET")).json()
        return await self.events(), agents, record


@pytest.fixture(scope="module")
async def served() -> AsyncIterator[Proxy]:
    """One for all: nothing that these tests send may change anything."""
    async with serving(MemoryStore()) as proxy:
        chat = await Chat(proxy.client).put()
        await chat.call("PUT", json={}, status=200)
        await chat.say("Hi", messageId="m1", actorId="ann")
        yield proxy


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda one: one)
@pytest.mark.parametrize("body", BODIES.values(), ids=list(BODIES))
async def test_a_body_that_cannot_be_read_changes_nothing(served: Proxy, method: str, path: str, body: bytes) -> None:
    chat = Quiet(served.client)
    before = await chat.look()
    answer = await chat.call(method, path, content=body)
    assert code(answer) == (400, "invalid_body")
    assert await chat.look() == before


LONG = "x" * 300
FIELDS: list[tuple[str, str, dict[str, Any], str]] = [
    *(
        ("POST", "/messages", {"content": "Hi", **fields}, error)
        for fields, error in (
            ({"content": ""}, "invalid_body"),
            ({"content": None}, "invalid_body"),
            ({"content": 1}, "invalid_body"),
            ({"content": ["Hi"]}, "invalid_body"),
            ({"parts": []}, "invalid_body"),
            ({"parts": [{"content": "x"}]}, "invalid_body"),
            ({"parts": "x"}, "invalid_body"),
            ({"parts": [{"type": "text"}] * 101}, "invalid_body"),
            ({"role": "root"}, "invalid_body"),
            ({"role": ["user"]}, "invalid_body"),
            ({"actorType": "robot"}, "invalid_body"),
            ({"messageId": ""}, "invalid_id"),
            ({"messageId": "a/b"}, "invalid_id"),
            ({"messageId": {"$ne": 1}}, "invalid_id"),
            ({"messageId": LONG}, "invalid_id"),
            ({"actorId": ""}, "invalid_body"),
            ({"actorId": "a\nb"}, "invalid_body"),
            ({"actorId": LONG}, "invalid_body"),
            ({"actorName": "\u202e"}, "invalid_body"),
            ({"txid": 7}, "invalid_body"),
            ({"txid": "\0"}, "invalid_body"),
            ({"agent": "helper"}, "invalid_body"),
            ({"agent": {}}, "invalid_body"),
            ({"agent": {"id": "a/b", "endpoint": "http://127.0.0.1:9/"}}, "invalid_id"),
        )
    ),
    *(
        ("POST", "/agents", {"agents": [{**AGENT, **fields}]}, error)
        for fields, error in (
            ({"endpoint": ""}, "invalid_body"),
            ({"endpoint": "file:///etc/passwd"}, "invalid_agent"),
            ({"endpoint": "http://"}, "invalid_agent"),
            ({"endpoint": "http://[::1"}, "invalid_agent"),
            ({"endpoint": "/chat"}, "invalid_agent"),
            ({"endpoint": "http://127.0.0.1:9/\u0000"}, "invalid_agent"),
            ({"endpoint": "http://127.0.0.1:99999/"}, "invalid_upstream_url"),
            ({"method": "GET"}, "invalid_body"),
            ({"headers": []}, "invalid_body"),
            ({"headers": {"a": 1}}, "invalid_agent"),
            ({"headers": {"a b": "x"}}, "invalid_agent"),
            ({"headers": {"a": "x\r\nb: y"}}, "invalid_agent"),
            ({"headers": {"a": "☀"}}, "invalid_agent"),
            ({"headers": {"Host": "example.com"}}, "invalid_agent"),
            ({"headers": {"Content-Length": "1"}}, "invalid_agent"),
            ({"headers": {f"x-{number}": "x" for number in range(51)}}, "invalid_agent"),
            ({"triggers": "none"}, "invalid_body"),
            ({"format": "xml"}, "invalid_body"),
            ({"maxTurns": 0}, "invalid_body"),
            ({"maxTurns": True}, "invalid_body"),
            ({"bodyTemplate": []}, "invalid_body"),
            ({"name": LONG}, "invalid_body"),
        )
    ),
    ("POST", "/agents", {"agents": []}, "invalid_body"),
    ("POST", "/agents", {"agents": [AGENT] * 51}, "invalid_body"),
    ("POST", "/agents", {"agents": [1]}, "invalid_body"),
    ("POST", "/agents", {}, "invalid_body"),
    ("POST", "/tool-results", {"toolCallId": "", "output": 1}, "invalid_body"),
    ("POST", "/tool-results", {"toolCallId": "call"}, "invalid_body"),
    ("POST", "/tool-results", {"output": 1}, "invalid_body"),
    ("POST", "/tool-results", {"toolCallId": "call", "output": 1, "error": {}}, "invalid_body"),
    ("POST", "/approvals/x", {}, "invalid_body"),
    ("POST", "/approvals/x", {"approved": "yes"}, "invalid_body"),
    ("POST", "/stop", {"messageId": 1}, "invalid_body"),
    ("POST", "/regenerate", {}, "invalid_body"),
    ("POST", "/regenerate", {"fromMessageId": []}, "invalid_body"),
    ("POST", "/fork", {"newSessionId": "a/b"}, "invalid_id"),
    ("POST", "/fork", {"atMessageId": 1}, "invalid_body"),
    ("PUT", "/presence/ann", {}, "invalid_body"),
    ("PUT", "/presence/ann", {"status": "asleep"}, "invalid_body"),
    ("PUT", "/presence/ann", {"status": "online", "typing": "yes"}, "invalid_body"),
    ("PUT", "/presence/" + "x" * 300, {"status": "online"}, "invalid_actor"),
    ("PUT", "/presence/a%0Ab", {"status": "online"}, "invalid_actor"),
    ("PATCH", "", {}, "invalid_body"),
    ("PATCH", "", {"name": LONG}, "invalid_body"),
    ("PUT", "", {"name": ["x"]}, "invalid_body"),
]


@pytest.mark.parametrize(("method", "path", "body", "error"), FIELDS, ids=lambda one: str(one)[:60])
async def test_a_field_that_is_wrong_changes_nothing(
    served: Proxy, method: str, path: str, body: dict[str, Any], error: str
) -> None:
    chat = Quiet(served.client)
    before = await chat.look()
    assert code(await chat.call(method, path, json=body)) == (400, error)
    assert await chat.look() == before


async def test_what_names_nothing_is_not_found(served: Proxy) -> None:
    chat = Quiet(served.client)
    before = await chat.look()
    for method, path, body, error in (
        ("POST", "/tool-results", {"toolCallId": "x" * 500, "output": 1}, "tool_call_not_found"),
        ("POST", "/tool-results", {"toolCallId": "\0", "output": None, "messageId": "m1"}, "tool_call_not_found"),
        ("POST", "/approvals/%00", {"approved": True}, "approval_not_found"),
        ("POST", "/approvals/a/b", {"approved": True}, "approval_not_found"),
        ("POST", "/regenerate", {"fromMessageId": "x" * 500}, "message_not_found"),
        ("POST", "/fork", {"atMessageId": "nobody"}, "message_not_found"),
        ("DELETE", "/agents/%00", {}, "agent_not_found"),
        ("GET", "/compare/nobody", {}, "not_found"),
    ):
        assert code(await chat.call(method, path, json=body)) == (404, error), path
    assert await chat.look() == before


@pytest.mark.parametrize("session_id", ["a%2Fb", "%00", "x" * 201, ".", "-x", "%F0%9F%8C%9E"])
async def test_a_session_needs_an_id(served: Proxy, session_id: str) -> None:
    answer = await served.client.put(f"/v1/sessions/{session_id}")
    assert answer.status_code in (400, 404, 405), answer.text
    assert "error" in answer.json()


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=501", "limit=x", "before=-1", "before=" + "9" * 30, "search=%00", "search=" + LONG, "x=1"],
)
async def test_a_listing_takes_what_it_knows(served: Proxy, query: str) -> None:
    assert code(await served.client.get(f"/v1/sessions?{query}")) == (400, "invalid_parameter")


async def test_what_is_too_large_is_refused(served: Proxy) -> None:
    chat = Quiet(served.client)
    before = await chat.look()
    assert code(await chat.call("POST", "/messages", json={"content": "x" * 2**20})) == (413, "body_too_large")
    large = {**AGENT, "bodyTemplate": {"system": "x" * 300_000}}
    for path, body in (("/agents", {"agents": [large]}), ("/messages", {"content": "Hi", "agent": large})):
        assert code(await chat.call("POST", path, json=body)) == (400, "agents_too_large")
    for headers in ({"X-Actor-Id": "x" * 300}, {"X-Actor-Id": "\x01"}):
        answer = await chat.call("POST", "/messages", json={"content": "Hi"}, headers=headers)
        assert answer.status_code == 400
    assert await chat.look() == before


async def test_ids_that_agents_make_up_are_kept_apart(served: Proxy) -> None:
    """Ids with separators in them are taken as they are, and none is taken for another."""
    chat = await Chat(served.client, "odd").put()
    calls = ["a:b", "a", "b:0", "tool-result:a", "\n", "é" * 100]
    for number, call_id in enumerate(calls):
        message_id = f"m:{number}"
        value = {"messageId": message_id, "actorId": "x", "role": "assistant", "seq": 0, "createdAt": ""}
        chunk = {"type": "approval-requested", "toolCallId": call_id, "approval": {"id": call_id}}
        value["chunk"] = json.dumps(chunk)
        await chat.write(
            {"type": "chunk", "key": f"{message_id}:0", "value": value, "headers": {"operation": "insert"}}
        )
    for call_id in calls:
        result = {"toolCallId": call_id, "output": call_id}
        await chat.call("POST", "/tool-results", json=result, status=204)
    fold = await chat.fold()
    assert [one.output for one in fold.tool_results] == calls
    assert len({event["key"] for event in await chat.events()}) == 1 + 2 * len(calls)


async def test_malformed_rows_of_others_hurt_nobody(served: Proxy) -> None:
    chat = await Chat(served.client, "rough").put()
    rows: list[Any] = [1, None, "x", {}, {"type": "chunk"}, {"type": "turn", "key": "t", "value": 1, "headers": {}}]
    await chat.write(*rows, {"type": "session", "key": "rough", "value": 7, "headers": {"operation": "upsert"}})
    await chat.say("Hi")
    for path in ("", "/messages", "/export", "/agents"):
        await chat.call("GET", path, status=200)
    await chat.call("POST", "/fork", json={}, status=201)
    await served.client.post("/v1/stream/sessions/rough", headers={"Stream-Closed": "true"})
    assert code(await chat.call("POST", "/messages", json={"content": "Hi"})) == (409, "stream_closed")
    assert len((await chat.call("GET", "/messages")).json()["messages"]) == 1


async def test_halves_of_characters_and_endless_numbers_in_others_rows_hurt_nobody(served: Proxy) -> None:
    """JSON can spell both. UTF-8 knows no halves, and not all readers know such numbers."""
    chat = await Chat(served.client, "halves").put()
    half = Author("\ud800", actor_id="\ud801")
    await chat.write(
        half.content("\ud802"),
        half.call("\ud803", '"\ud804"'),
        row("x", '{"type": "tool-input-available", "toolCallId": "n", "toolName": "f", "input": 1e999}'),
        turn("t", "\udc00", cause_id="\ud800", agent_id="\ud805"),
    )
    for path in ("", "/messages", "/export", "/compare/halves"):
        assert (await chat.call("GET", path, status=200)).json()
    await chat.call("POST", "/fork", json={}, status=201)
    await chat.call("POST", "/stop", json={}, status=204)

    async def has_ended() -> bool:
        return not (await chat.fold()).pending_turns

    await until(has_ended)
    fold = await chat.fold()
    assert [(one.id, one.text) for one in fold.messages] == [("\ud800", "\ud802"), ("\udc00", "")]
    assert [(one.id, one.input) for one in fold.tool_calls] == [("\ud803", "\ud804")]


async def test_a_turn_whose_id_cannot_be_kept_can_be_stopped(database_url: str) -> None:
    async with serving(PostgresStore(database_url)) as proxy:
        chat = await Chat(proxy.client).put()
        await chat.say("Hi", messageId="m1")
        value = {"agentId": "x", "messageId": "m2", "causeId": "m1", "kind": "message", "depth": 1, "createdAt": ""}
        await chat.write({"type": "turn", "key": "a\0b", "value": value, "headers": {"operation": "insert"}})
        await chat.call("POST", "/stop", json={}, status=204)
        assert [one.ended_by for one in (await chat.fold()).messages] == [None, "error"]
