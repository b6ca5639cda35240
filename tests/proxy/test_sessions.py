"""Durable sessions over HTTP: what is written, what it does to those who read, and what is refused."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest

from streamkeep.client.sessions import Message, SessionFold
from streamkeep.proxy.rules.access import BootstrapKeys
from streamkeep.storage import DEFAULT_TENANT, MemoryStore, SessionKey
from tests.serving import Proxy, serving
from tests.sessions.session_rows import Author, Row, row, turn

OPERATOR = "operator-key-0123456789"
ACME = "acme-key-0123456789abc"
KEYS = BootstrapKeys.parse([OPERATOR, f"acme={ACME}"])
JWT_SECRET = "a secret of thirty-two characters, at least"

AGENT = {"id": "helper", "name": "Helper", "endpoint": "http://127.0.0.1:9/chat?key=hidden"}


@pytest.fixture(autouse=True, scope="module")
def silent_agent() -> Iterator[None]:
    """The agent is called and never answers: what it says, the tests write."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener, pytest.MonkeyPatch.context() as patch:
        patch.setitem(AGENT, "endpoint", f"http://127.0.0.1:{listener.getsockname()[1]}/chat?key=hidden")
        yield


class Chat:
    """One session, as its clients use it."""

    def __init__(self, client: httpx.AsyncClient, session_id: str = "chat") -> None:
        self.client = client
        self.id = session_id
        self.path = f"/v1/sessions/{session_id}"

    async def call(self, method: str, path: str = "", *, status: int | None = None, **options: Any) -> httpx.Response:
        answer = await self.client.request(method, f"{self.path}{path}", **options)
        assert status in (None, answer.status_code), answer.text
        return answer

    async def put(self) -> Chat:
        await self.call("PUT", status=201)
        return self

    async def say(self, content: str = "Hi", **fields: Any) -> dict[str, Any]:
        answer = await self.call("POST", "/messages", json={"content": content, **fields}, status=200)
        found: dict[str, Any] = answer.json()
        return found

    async def events(self) -> list[Row]:
        answer = await self.client.get(f"/v1/stream/sessions/{self.id}", params={"offset": "-1"})
        assert answer.status_code == 200, answer.text
        found: list[Row] = answer.json()
        return found

    async def fold(self) -> SessionFold:
        fold = SessionFold()
        fold.apply(await self.events(), "end")
        return fold

    async def write(self, *rows: Row) -> None:
        """As an agent's runner does, or whoever writes to the stream directly."""
        headers = {"Content-Type": "application/json"}
        answer = await self.client.post(f"/v1/stream/sessions/{self.id}", content=json.dumps(rows), headers=headers)
        assert answer.status_code == 204, answer.text


def code(answer: httpx.Response) -> tuple[int, str]:
    found = answer.json()
    assert found["message"]
    return answer.status_code, found["error"]


def said(fold: SessionFold) -> list[Message]:
    """The messages, without the answers under way: of those the server may have written the first row."""
    awaited = {turn.message_id for turn in fold.pending_turns}
    return [message for message in fold.messages if message.id not in awaited]


def answering(message_id: str) -> Author:
    """Writes an answer on behind its first row, which is the server's."""
    author = Author(message_id, actor_id="helper")
    author.row("message-start")
    return author


async def asked(chat: Chat, *, is_client_tool: bool = False, approval: bool = True) -> str:
    """A message whose agent has called a tool and asked for an approval; the id of its answer."""
    sent = await chat.say(agent=AGENT)
    answer_id: str = sent["turns"][0]["messageId"]
    author = answering(answer_id)
    rows = [author.call("call", "{}")]
    if is_client_tool:
        rows.append(author.row("tool-input-available", toolCallId="call", toolName="weather", input={}))
    if approval:
        rows.append(author.ask("call", "ok?"))
    await chat.write(*rows, author.done("tool_calls"), author.row("message-end", reason="done"))
    return answer_id


# Sessions


async def test_a_session_is_made_once_and_found_again(proxy: Proxy) -> None:
    chat = Chat(proxy.client)
    assert code(await chat.call("GET")) == (404, "not_found")
    made = await chat.call("PUT", json={"name": "Trip"}, status=201)
    assert made.json()["streamUrl"] == f"{proxy.url}/v1/stream/sessions/chat"
    again = await chat.call("PUT", status=200)
    assert again.json() == made.json()
    found = (await chat.call("GET", status=200)).json()
    assert (found["sessionId"], found["name"], found["statistics"]["messageCount"]) == ("chat", "Trip", 0)
    assert [event["type"] for event in await chat.events()] == ["session"]
    assert found["createdAt"].endswith("Z")


async def test_a_stream_that_is_there_becomes_a_session(proxy: Proxy) -> None:
    chat = Chat(proxy.client)
    url = "/v1/stream/sessions/chat"
    author = Author("a")
    rows = [author.content("Hello"), author.done()]
    await proxy.client.put(url, json=rows, headers={"Content-Type": "application/json"})
    assert code(await chat.call("GET")) == (404, "not_found")
    await chat.call("PUT", status=201)
    assert [one["parts"][0]["content"] for one in (await chat.call("GET", "/messages")).json()["messages"]] == ["Hello"]
    assert [event["type"] for event in await chat.events()] == ["chunk", "chunk", "session"]
    await proxy.client.put("/v1/stream/sessions/text", content=b"x", headers={"Content-Type": "text/plain"})
    assert code(await Chat(proxy.client, "text").call("PUT")) == (409, "not_a_session")


async def test_sessions_are_listed_searched_and_renamed(proxy: Proxy) -> None:
    for number in range(3):
        await Chat(proxy.client, f"chat-{number}").put()
    chat = Chat(proxy.client, "chat-1")
    renamed = await chat.call("PATCH", json={"name": "Summer in Łódź", "txid": "x"}, status=200)
    assert renamed.json()["name"] == "Summer in Łódź"
    fold = await chat.fold()
    assert fold.session is not None
    assert fold.session.name == "Summer in Łódź"

    async def listed(**query: Any) -> tuple[list[str], str | None]:
        answer = await proxy.client.get("/v1/sessions", params=query)
        assert answer.status_code == 200, answer.text
        return [row["sessionId"] for row in answer.json()["sessions"]], answer.json()["next"]

    assert (await listed())[0] == ["chat-2", "chat-1", "chat-0"]
    assert (await listed(search="łódź"))[0] == ["chat-1"]
    first, before = await listed(limit=2)
    assert first == ["chat-2", "chat-1"]
    assert (await listed(limit=2, before=before))[0] == ["chat-0"]
    await chat.call("PATCH", json={"name": None}, status=200)
    assert (await chat.call("GET")).json()["name"] is None


async def test_a_deleted_session_is_gone_with_its_stream(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    await chat.say()
    await chat.call("DELETE", status=204)
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/messages"), ("GET", "/messages"), ("POST", "/fork")):
        assert code(await chat.call(method, path, json={"content": "x"})) == (404, "not_found")
    assert (await proxy.client.get("/v1/stream/sessions/chat", params={"offset": "-1"})).status_code == 404
    assert (await proxy.client.get("/v1/sessions")).json()["sessions"] == []
    await chat.call("PUT", status=201)
    assert (await chat.call("GET", "/messages")).json()["messages"] == []


async def test_what_was_said_goes_with_all_else_of_a_chat(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    await chat.say()
    assert (await proxy.client.delete("/api/chat")).status_code == 200
    assert code(await chat.call("GET")) == (404, "not_found")
    assert (await proxy.client.get("/v1/stream/sessions/chat", params={"offset": "-1"})).status_code == 404


# Messages


async def test_a_message_is_written_with_its_author_and_read_as_others_read_it(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    sent = await chat.say("Hi ☀", messageId="m1", actorId="ann", actorName="Ann", txid="tx")
    assert (sent["messageId"], sent["turns"]) == ("m1", [])
    row = (await chat.events())[-1]
    assert row["headers"] == {"operation": "insert", "txid": "tx"}
    assert (row["key"], row["value"]["actorId"], row["value"]["actorName"], row["value"]["role"]) == (
        *("m1:0", "ann", "Ann", "user"),
    )
    await chat.call("POST", "/messages", json={"content": "Be brief", "role": "system"}, headers={"X-Actor-Id": "bob"})
    fold = await chat.fold()
    assert [(one.role, one.text, one.actor_id) for one in fold.messages] == [
        ("user", "Hi ☀", "ann"),
        ("system", "Be brief", "bob"),
    ]
    live = await proxy.client.get("/v1/stream/sessions/chat", params={"offset": sent["offset"]})
    assert [event["value"]["role"] for event in live.json()] == ["system"]


async def test_the_same_message_again_is_written_once_and_another_one_is_refused(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    await chat.call("POST", "/agents", json={"agents": [AGENT]}, status=200)
    first = await chat.say("Hi", messageId="m1")
    again = await chat.say("Hi", messageId="m1")
    assert (again["messageId"], again["turns"]) == ("m1", first["turns"])
    assert [turn["agentId"] for turn in first["turns"]] == ["helper"]
    other = {"content": "Ho", "messageId": "m1"}
    assert code(await chat.call("POST", "/messages", json=other)) == (409, "message_exists")
    foreign = {"content": "Hi", "messageId": "m1", "actorId": "eve"}
    assert code(await chat.call("POST", "/messages", json=foreign)) == (409, "message_exists")
    awaited = {"content": "Hi", "messageId": first["turns"][0]["messageId"]}
    assert code(await chat.call("POST", "/messages", json=awaited)) == (409, "message_exists")
    assert [event["key"] for event in await chat.events()][2:4] == ["m1:0", first["turns"][0]["turnId"]]
    assert len((await chat.fold()).turns) == 1


async def test_messages_come_page_by_page_from_the_end(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    for number in range(5):
        await chat.say(str(number), messageId=f"m{number}")
    seen: list[str] = []
    query = {"limit": "2"}
    while True:
        page = (await chat.call("GET", "/messages", params=query, status=200)).json()
        seen = [one["id"] for one in page["messages"]] + seen
        if page["before"] is None:
            break
        query["before"] = page["before"]
    assert seen == [f"m{number}" for number in range(5)]
    assert code(await chat.call("GET", "/messages", params={"before": "nobody"})) == (404, "message_not_found")


async def test_two_instances_take_the_same_message_once() -> None:
    store = MemoryStore()
    async with serving(store) as one, serving(store) as two:
        chats = [Chat(one.client), Chat(two.client)]
        await chats[0].put()
        await chats[0].call("POST", "/agents", json={"agents": [AGENT]}, status=200)
        for number in range(5):
            message = {"content": "Hi", "messageId": f"m{number}", "actorId": "ann"}
            answers = await asyncio.gather(*(chat.call("POST", "/messages", json=message) for chat in chats * 3))
            assert {answer.status_code for answer in answers} == {200}
            assert len({json.dumps(answer.json()["turns"]) for answer in answers}) == 1
            contents = [{**message, "content": text, "messageId": f"n{number}"} for text in ("Hi", "Ho")]
            pairs = zip(chats * 2, contents * 2, strict=True)
            answers = await asyncio.gather(*(chat.call("POST", "/messages", json=body) for chat, body in pairs))
            assert sorted(answer.status_code for answer in answers) == [200, 200, 409, 409]
        fold = await chats[1].fold()
        assert len(said(fold)) == len(fold.turns) == 10
        keys = [(event["type"], event["key"]) for event in await chats[0].events()]
        assert len(keys) == len(set(keys))


# Agents


async def test_agents_take_part_and_their_secrets_are_nobodys_to_read(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    secret = {**AGENT, "headers": {"Authorization": "Bearer s3cret"}, "bodyTemplate": {"key": "s3cret"}, "maxTurns": 3}
    await chat.call(
        "POST", "/agents", json={"agents": [secret, {**AGENT, "id": "other", "triggers": "all"}]}, status=200
    )
    shown = await chat.call("GET", "/agents", status=200)
    assert shown.json()["agents"][0]["headers"] == {"Authorization": "…"}
    stored = await proxy.client.get("/v1/stream/sessions/chat", params={"offset": "-1"})
    for text in (shown.text, stored.text, (await chat.call("GET", "/export")).text):
        assert "s3cret" not in text
        assert "hidden" not in text
    book = await proxy.service.sessions.agents(SessionKey(DEFAULT_TENANT, "chat"))
    assert book.registered[0].headers == (("Authorization", "Bearer s3cret"),)
    assert "s3cret" not in repr(book)
    assert [(one.id, one.triggers) for one in (await chat.fold()).agents] == [("helper", None), ("other", "all")]
    await chat.call("DELETE", "/agents/helper", status=204)
    assert code(await chat.call("DELETE", "/agents/helper")) == (404, "agent_not_found")
    assert [one["id"] for one in (await chat.call("GET", "/agents")).json()["agents"]] == ["other"]
    assert [turn["agentId"] for turn in (await chat.say())["turns"]] == ["other"]


async def test_an_agent_that_comes_with_a_message_answers_it(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    first, second = await chat.say("1", agent=AGENT), await chat.say("2", agent=AGENT)
    specs = {turn.spec_id for turn in (await chat.fold()).turns}
    assert len(specs) == 1, "the same agent is kept once"
    assert first["turns"][0]["agentId"] == second["turns"][0]["agentId"] == "helper"
    book = await proxy.service.sessions.agents(SessionKey(DEFAULT_TENANT, "chat"))
    assert book.find("helper", specs.pop()) is not None
    assert (await chat.say("3"))["turns"] == []
    assert (await chat.say("4", role="assistant", agent=AGENT))["turns"] == []


async def test_agents_that_came_with_messages_leave_room_for_others(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    for number in range(4):
        large = {**AGENT, "headers": {"X-Number": str(number)}, "bodyTemplate": {"system": "x" * 100_000}}
        await chat.say(str(number), agent=large)
    book = await proxy.service.sessions.agents(SessionKey(DEFAULT_TENANT, "chat"))
    turns = (await chat.fold()).turns
    found = [book.find("helper", turn.spec_id) for turn in turns]
    assert [one is not None for one in found] == [False, False, True, True]


async def test_where_agents_may_be_is_for_the_operator_to_say() -> None:
    async with serving(MemoryStore()) as proxy:
        chat = await Chat(proxy.client).put()
        for endpoint in ("http://10.0.0.1/x", "http://169.254.169.254/latest", "https://example.com/"):
            refused = {"agents": [{**AGENT, "endpoint": endpoint}]}
            assert code(await chat.call("POST", "/agents", json=refused)) == (403, "upstream_not_allowed")
            sent = {"content": "Hi", "agent": {**AGENT, "endpoint": endpoint}}
            assert code(await chat.call("POST", "/messages", json=sent)) == (403, "upstream_not_allowed")
        assert [event["type"] for event in await chat.events()] == ["session"]


# Tools and approvals


@pytest.mark.parametrize("approved", [True, False])
async def test_an_answered_approval_calls_the_agent_again_once(proxy: Proxy, approved: bool) -> None:
    chat = await Chat(proxy.client).put()
    answer_id = await asked(chat)
    body = {"approved": approved, "txid": "tx", "actorId": "ann"}
    first = await chat.call("POST", "/approvals/ok%3F", json=body, status=204)
    assert first.headers["Stream-Next-Offset"]
    await chat.call("POST", "/approvals/ok%3F", json=body, status=204)
    other = {"approved": not approved}
    assert code(await chat.call("POST", "/approvals/ok%3F", json=other)) == (409, "already_answered")
    fold = await chat.fold()
    assert (fold.approvals[0].status, fold.approvals[0].responded_by) == ("approved" if approved else "denied", "ann")
    assert [(one.kind, one.cause_id, one.depth) for one in fold.turns[1:]] == [("answers", answer_id, 2)]
    rows = {row["key"]: row for row in await chat.events()}
    answer_key = f"{answer_id}:approval:ok?"
    assert list(rows).index(fold.turns[1].id) == list(rows).index(answer_key) + 1
    assert rows[answer_key]["headers"]["txid"] == "tx"
    assert code(await chat.call("POST", "/approvals/nobody", json=body)) == (404, "approval_not_found")


async def test_a_tools_result_calls_the_agent_again_once(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    await asked(chat, is_client_tool=True)
    await chat.call("POST", "/approvals/ok%3F", json={"approved": True}, status=204)
    assert len((await chat.fold()).turns) == 1, "its tool has not run yet"
    body = {"toolCallId": "call", "output": {"celsius": 21}, "txid": "tx"}
    await chat.call("POST", "/tool-results", json=body, headers={"X-Actor-Id": "bob"}, status=204)
    await chat.call("POST", "/tool-results", json=body, status=204)
    assert code(await chat.call("POST", "/tool-results", json={**body, "output": 1})) == (409, "already_answered")
    fold = await chat.fold()
    assert [(one.output, one.actor_id) for one in fold.tool_results] == [({"celsius": 21}, "bob")]
    assert [one.kind for one in fold.turns] == ["message", "answers"]
    unknown = {"toolCallId": "nobody", "output": 1}
    assert code(await chat.call("POST", "/tool-results", json=unknown)) == (404, "tool_call_not_found")


async def test_of_many_answers_at_once_one_counts_and_one_turn_follows() -> None:
    store = MemoryStore()
    async with serving(store) as one, serving(store) as two:
        chats = [Chat(one.client), Chat(two.client)]
        await chats[0].put()
        sent = await chats[0].say(agent=AGENT)
        author = answering(sent["turns"][0]["messageId"])
        calls = [f"call-{number}" for number in range(6)]
        for call in calls:
            offered = author.row("tool-input-available", toolCallId=call, toolName="weather", input={})
            await chats[0].write(author.call(call, "{}"), offered)
        await chats[0].write(author.done("tool_calls"))
        bodies = [{"toolCallId": call, "output": output} for call in calls for output in (1, 2)]
        sends = [chat.call("POST", "/tool-results", json=body) for body in bodies for chat in chats]
        answers = await asyncio.gather(*sends)
        assert sorted(answer.status_code for answer in answers) == [204] * 12 + [409] * 12
        fold = await chats[0].fold()
        assert [call.state for call in fold.tool_calls] == ["complete"] * 6
        assert [turn.kind for turn in fold.turns] == ["message", "answers"]
        turns = [event["key"] for event in await chats[0].events() if event["type"] == "turn"]
        assert len(turns) == len(set(turns)) == 2


# Stop, regenerate, fork


async def test_stop_ends_what_nobody_has_begun(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    turns = [(await chat.say(text, agent=AGENT))["turns"][0] for text in ("1", "2")]
    await chat.call("POST", "/stop", json={"messageId": turns[0]["messageId"]}, status=204)
    fold = await chat.fold()
    assert [one.message_id for one in fold.active_generations] == [turns[1]["messageId"]]
    await asyncio.gather(*(chat.call("POST", "/stop", json={"messageId": None}, status=204) for _ in range(3)))
    fold = await chat.fold()
    assert (fold.active_generations, fold.pending_turns) == ((), ())
    assert sorted(str(one.ended_by) for one in fold.messages) == ["None", "None", "stop", "stop"]
    keys = [event["key"] for event in await chat.events() if event["type"] == "chunk"]
    assert len(keys) == len(set(keys)) == 8


async def test_regenerate_takes_the_answer_away_and_calls_the_agent_again(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    sent = await chat.say("Hi", messageId="m1", agent=AGENT)
    author = answering(sent["turns"][0]["messageId"])
    await chat.write(author.content("No."), author.done(), author.row("message-end"))
    await chat.say("And then?", messageId="m2", agent=AGENT)
    body = {"fromMessageId": "m1", "content": "Hi", "txid": "again"}
    first = (await chat.call("POST", "/regenerate", json=body, status=200)).json()
    assert (await chat.call("POST", "/regenerate", json=body, status=200)).json()["turns"] == first["turns"]
    fold = await chat.fold()
    assert [one.id for one in said(fold)] == ["m1"]
    assert [(one.kind, one.cause_id, one.agent_id) for one in fold.turns] == [("regenerate", "m1", "helper")]
    assert first["turns"][0]["messageId"] == fold.turns[0].message_id
    book = await proxy.service.sessions.agents(SessionKey(DEFAULT_TENANT, "chat"))
    assert book.find("helper", fold.turns[0].spec_id) is not None


@pytest.mark.parametrize("number", [None, -1])
async def test_regenerate_leaves_rows_without_numbers(proxy: Proxy, number: int | None) -> None:
    chat = await Chat(proxy.client).put()
    await chat.say("Hi", messageId="m1", agent=AGENT)
    odd = row("odd", {"type": "content", "delta": "?"}, role="assistant")
    await chat.write(odd | {"value": odd["value"] | {"seq": number}})
    await chat.call("POST", "/regenerate", json={"fromMessageId": "m1"}, status=200)
    assert [turn.kind for turn in (await chat.fold()).turns] == ["regenerate"]


async def test_of_two_regenerations_at_once_one_is_left() -> None:
    store = MemoryStore()
    async with serving(store) as one, serving(store) as two:
        chats = [Chat(one.client), Chat(two.client)]
        await chats[0].put()
        await chats[0].call("POST", "/agents", json={"agents": [AGENT]}, status=200)
        await chats[0].say("Hi", messageId="m1")
        for number in range(3):
            wanted = [{"fromMessageId": "m1", "txid": f"{number}-{each}"} for each in range(2)]
            pairs = zip(chats, wanted, strict=True)
            await asyncio.gather(*(chat.call("POST", "/regenerate", json=body, status=200) for chat, body in pairs))
            fold = await chats[0].fold()
            assert [(turn.cause_id, turn.kind, turn.is_pending) for turn in fold.turns] == [("m1", "regenerate", True)]
            assert [message.id for message in said(fold)] == ["m1"]


async def test_of_many_who_rewrite_a_message_at_once_one_does() -> None:
    store = MemoryStore()
    async with serving(store) as one, serving(store) as two:
        chats = [Chat(one.client), Chat(two.client)]
        await chats[0].put()
        await chats[0].call("POST", "/agents", json={"agents": [AGENT]}, status=200)
        await chats[0].say("Hi", messageId="m1")
        bodies = [{"fromMessageId": "m1", "content": f"Hi {number}", "messageId": f"n{number}"} for number in range(6)]
        answers = await asyncio.gather(
            *(chats[number % 2].call("POST", "/regenerate", json=body) for number, body in enumerate(bodies))
        )
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) == 1
        assert {*statuses} <= {200, 404, 409}
        fold = await chats[0].fold()
        assert [message.id for message in said(fold)] == [f"n{statuses.index(200)}"]
        assert len(fold.turns) == 1


async def test_a_session_that_is_deleted_and_made_at_once_is_whole_or_not_there() -> None:
    store = MemoryStore()
    async with serving(store) as one, serving(store) as two:
        for _ in range(20):
            assert (await one.client.put("/v1/sessions/chat")).is_success
            await asyncio.gather(
                *(
                    proxy.client.request(method, "/v1/sessions/chat")
                    for proxy in (one, two)
                    for method in ("DELETE", "PUT")
                )
            )
            record = (await one.client.get("/v1/sessions/chat")).status_code
            stream = (await one.client.get("/v1/stream/sessions/chat")).status_code
            assert (record, stream) in ((200, 200), (404, 404))


async def test_regenerate_from_an_answer_keeps_what_it_answers(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    answer_id = await asked(chat)
    await chat.call("POST", "/approvals/ok%3F", json={"approved": True}, status=204)
    later = (await chat.fold()).turns[1]
    author = answering(later.message_id)
    await chat.write(author.content("Done."), author.done(), author.row("message-end"))
    await chat.call("POST", "/regenerate", json={"fromMessageId": later.message_id}, status=200)
    fold = await chat.fold()
    assert [one.id for one in said(fold)][1:] == [answer_id]
    assert [(one.kind, one.cause_id, one.depth) for one in fold.turns[1:]] == [("regenerate", answer_id, 2)]
    rewritten = {"fromMessageId": answer_id, "content": "I say"}
    assert code(await chat.call("POST", "/regenerate", json=rewritten)) == (400, "not_rewritable")


async def test_a_message_is_rewritten_and_goes_on_from_there(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    await chat.call("POST", "/agents", json={"agents": [AGENT]}, status=200)
    await chat.say("Hi", messageId="m1")
    await chat.say("Ho", messageId="m2")
    body = {"fromMessageId": "m2", "content": "Hey", "messageId": "m3"}
    written = (await chat.call("POST", "/regenerate", json=body, status=200)).json()
    assert written["messageId"] == "m3"
    fold = await chat.fold()
    assert (said(fold)[-1].id, said(fold)[-1].text) == ("m3", "Hey")
    assert fold.is_gone("m2")
    late = {"fromMessageId": "m3", "content": "Hey!", "messageId": "m4"}
    answers = await asyncio.gather(*(chat.call("POST", "/regenerate", json=late | {"txid": txid}) for txid in "ab"))
    assert sorted(answer.status_code for answer in answers) in ([200, 404], [200, 409])
    for taken in ("m1", "m2", "m4"):
        again = {"fromMessageId": "m4", "content": "Hello", "messageId": taken}
        assert code(await chat.call("POST", "/regenerate", json=again)) == (409, "message_exists")
    assert code(await chat.call("POST", "/regenerate", json={"fromMessageId": "m2"})) == (404, "message_not_found")


async def test_regenerate_needs_somebody_to_answer(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    await chat.say("Hi", messageId="m1")
    before = await chat.events()
    assert code(await chat.call("POST", "/regenerate", json={"fromMessageId": "m1"})) == (400, "no_agents")
    assert await chat.events() == before


async def test_a_fork_has_history_and_agents_and_goes_its_own_way(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    await chat.call("PATCH", json={"name": "Trip"}, status=200)
    secret = {**AGENT, "headers": {"Authorization": "Bearer s3cret"}}
    await chat.call("POST", "/agents", json={"agents": [secret]}, status=200)
    await chat.call("PUT", "/presence/ann", json={"status": "online"}, status=204)
    await chat.say("1", messageId="m1")
    sent = await chat.say("2", messageId="m2")
    author = answering(sent["turns"][0]["messageId"])
    await chat.write(author.content("Well"))
    await chat.say("3", messageId="m3")

    made = (await chat.call("POST", "/fork", json={"atMessageId": "m2", "newSessionId": "b"}, status=201)).json()
    assert (made["sessionId"], made["name"]) == ("b", "Trip")
    branch = Chat(proxy.client, "b")
    fold = await branch.fold()
    assert [one.text for one in fold.messages if one.role == "user"] == ["1", "2"]
    assert (fold.pending_turns, fold.active_generations, fold.presence) == ((), (), ())
    assert {one.ended_by for one in fold.messages if one.role == "assistant"} == {"stop"}
    assert fold.session is not None
    assert (fold.session.id, fold.session.forked_from and fold.session.forked_from.at_message_id) == ("b", "m2")
    assert (await branch.call("GET")).json()["forkedFrom"] == {"sessionId": "chat", "atMessageId": "m2"}
    book = await proxy.service.sessions.agents(SessionKey(DEFAULT_TENANT, "b"))
    assert book.registered[0].headers == (("Authorization", "Bearer s3cret"),)
    assert len((await branch.say("other", messageId="m3"))["turns"]) == 1
    assert [one.text for one in said(await chat.fold())][-1] == "3"

    again = await chat.call("POST", "/fork", json={"atMessageId": "m2", "newSessionId": "b"}, status=201)
    assert again.json()["sessionId"] == "b"
    taken = {"atMessageId": "m1", "newSessionId": "b"}
    assert code(await chat.call("POST", "/fork", json=taken)) == (409, "session_exists")
    assert code(await chat.call("POST", "/fork", json={"atMessageId": "nobody"})) == (404, "message_not_found")


async def test_two_sessions_are_compared(proxy: Proxy) -> None:
    chat, branch = await Chat(proxy.client).put(), Chat(proxy.client, "b")
    for text in "123":
        await chat.say(text, messageId=f"m{text}")
    await chat.call("POST", "/fork", json={"atMessageId": "m2", "newSessionId": "b"}, status=201)
    await branch.say("other", messageId="m3")
    found = (await chat.call("GET", "/compare/b", status=200)).json()
    assert (found["commonMessages"], found["lastCommonMessageId"]) == (2, "m2")
    parts = [[one["parts"][0]["content"] for one in found[side]] for side in ("messages", "otherMessages")]
    assert parts == [["3"], ["other"]]
    alone = await Chat(proxy.client, "c").put()
    assert (await alone.call("GET", "/compare/b")).json()["lastCommonMessageId"] is None


async def test_a_fork_at_the_end_has_everything_and_outlives_its_source(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    answer_id = await asked(chat)
    branch_id = (await chat.call("POST", "/fork", status=201)).json()["sessionId"]
    await chat.call("DELETE", status=204)
    branch = Chat(proxy.client, branch_id)
    assert [one.id for one in (await branch.fold()).messages][1:] == [answer_id]
    await branch.call("POST", "/approvals/ok%3F", json={"approved": True}, status=204)
    assert [one.kind for one in (await branch.fold()).pending_turns] == ["answers"]
    assert code(await chat.call("POST", "/fork")) == (404, "not_found")


# Presence, views, tenants


async def test_presence_comes_is_renewed_and_goes(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    await chat.call("PUT", "/presence/ann", json={"status": "online", "name": "Ann", "typing": True}, status=204)
    [present] = (await chat.fold()).presence
    assert (present.actor_id, present.name, present.status, present.typing) == ("ann", "Ann", "online", True)
    await chat.call("PUT", "/presence/ann", json={"status": "away"}, status=204)
    assert [(one.status, one.typing) for one in (await chat.fold()).presence] == [("away", False)]
    await chat.call("DELETE", "/presence/ann", status=204)
    size = len(await chat.events())
    await chat.call("DELETE", "/presence/ann", status=204)
    assert (await chat.fold()).presence == ()
    assert len(await chat.events()) == size


async def test_an_export_tells_all_of_a_session(proxy: Proxy) -> None:
    chat = await Chat(proxy.client).put()
    await asked(chat)
    await chat.write({"malformed": True}, turn("x", "y"))
    found = (await chat.call("GET", "/export", status=200)).json()
    assert [one["role"] for one in found["messages"]][:2] == ["user", "assistant"]
    assert (found["toolCalls"][0]["state"], found["approvals"][0]["status"]) == ("approval-requested", "pending")
    assert (found["statistics"]["messageCount"], len(found["turns"])) == (len(found["messages"]), 2)


async def test_a_session_belongs_to_its_tenant() -> None:
    async with serving(MemoryStore(), keys=KEYS) as proxy:
        ours, theirs = {"Streamkeep-Key": ACME}, {"Streamkeep-Key": OPERATOR}
        chat = Chat(proxy.client)
        assert code(await chat.call("PUT")) == (401, "missing_credentials")
        await chat.call("PUT", headers=ours, status=201)
        await chat.call("POST", "/messages", headers=ours, json={"content": "Hi"}, status=200)
        for method, path in (("GET", ""), ("GET", "/messages"), ("DELETE", ""), ("POST", "/stop"), ("GET", "/agents")):
            assert code(await chat.call(method, path, headers=theirs)) == (404, "not_found")
        assert (await proxy.client.get("/v1/sessions", headers=theirs)).json()["sessions"] == []
        await chat.call("PUT", headers=theirs, status=201)
        found = await chat.call("GET", "/messages", headers=theirs)
        assert found.json()["messages"] == []


async def test_whoever_has_a_token_writes_in_its_own_name() -> None:
    async with serving(MemoryStore(), jwt_secret=JWT_SECRET) as proxy:

        def token(**claims: Any) -> dict[str, str]:
            body = {"tenant": "acme", "sub": "ann", "exp": int(time.time()) + 60, **claims}
            return {"Authorization": "Bearer " + jwt.encode(body, JWT_SECRET, algorithm="HS256")}

        chat = Chat(proxy.client)
        await chat.call("PUT", headers=token(), status=201)
        await chat.call("POST", "/messages", headers=token(), json={"content": "Hi"}, status=200)
        for headers, body in (
            (token(), {"content": "Hi", "actorId": "bob"}),
            (token() | {"X-Actor-Id": "bob"}, {"content": "Hi"}),
        ):
            assert code(await chat.call("POST", "/messages", headers=headers, json=body)) == (403, "foreign_actor")
        online = {"status": "online"}
        assert code(await chat.call("PUT", "/presence/bob", headers=token(), json=online)) == (403, "foreign_actor")
        assert code(await chat.call("DELETE", "/presence/bob", headers=token())) == (403, "foreign_actor")
        await chat.call("PUT", "/presence/ann", headers=token(), json=online, status=204)
        operator = token(operator=True, sub="root")
        await chat.call("POST", "/messages", headers=operator, json={"content": "I", "actorId": "bob"}, status=200)
        found = (await chat.call("GET", "/messages", headers=token())).json()["messages"]
        assert [one["actorId"] for one in found] == ["ann", "bob"]


async def test_within_a_tenant_everybody_may_change_what_others_said() -> None:
    async with serving(MemoryStore(), jwt_secret=JWT_SECRET) as proxy:

        def token(subject: str) -> dict[str, str]:
            claims = {"tenant": "acme", "sub": subject, "exp": int(time.time()) + 60}
            return {"Authorization": "Bearer " + jwt.encode(claims, JWT_SECRET, algorithm="HS256")}

        ann, bob, chat = token("ann"), token("bob"), Chat(proxy.client)
        await chat.call("PUT", headers=ann, status=201)
        await chat.call("POST", "/agents", headers=ann, json={"agents": [AGENT]}, status=200)
        await chat.call("POST", "/messages", headers=ann, json={"content": "Hi", "messageId": "m"}, status=200)
        await chat.call("POST", "/regenerate", headers=bob, json={"fromMessageId": "m", "content": "Ho"}, status=200)
        stream = f"/v1/stream/sessions/{chat.id}"
        forged = await proxy.client.post(stream, headers=bob, json=[Author("n", "user", "ann").content("I am Ann")])
        assert forged.status_code == 204, forged.text
        found = (await chat.call("GET", "/messages", headers=ann)).json()["messages"]
        people = [one for one in found if one["role"] == "user"]
        assert [(one["actorId"], one["parts"][0]["content"]) for one in people] == [("bob", "Ho"), ("ann", "I am Ann")]
