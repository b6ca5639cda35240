"""Agents of durable sessions: called once for each turn, and what they say stands in the stream, however they behave."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from streamkeep.sessions import SessionFold
from streamkeep.sessions.agents.chunks import MAX_ANSWER_CHARACTERS
from streamkeep.storage import MemoryStore
from tests.agents import FINISH, SSE, Room, answer, body, saying, sse, text, until
from tests.serving import Proxy, serving
from tests.upstream import Exchange, Script, upstream


def error_of(fold: SessionFold) -> tuple[str | None, str | None]:
    """The last message's error, and the code in its row."""
    message = fold.messages[-1]
    return message.ended_by, message.error


async def code(room: Room) -> str | None:
    """The code of the one error row."""
    chunks = [json.loads(row["value"]["chunk"]) for row in await room.rows() if row["type"] == "chunk"]
    [error] = [chunk["error"] for chunk in chunks if chunk["type"] == "error"]
    found: str | None = error.get("code")
    return found


async def test_an_answer_is_called_for_once_and_written_row_by_row(proxy: Proxy) -> None:
    async with upstream(saying("Hello", " there")) as agent:
        room = await Room(proxy.client).open({"id": "helper", "name": "Helper", "endpoint": f"{agent.url}/a"})
        sent = await room.say("Hi")
        fold = await room.settled()
        again = await room.say("Hi")
    assert (sent["turns"], len(agent.calls)) == (again["turns"], 1)
    question, told = fold.messages
    assert (told.text, told.role, told.actor_id, told.ended_by) == ("Hello there", "assistant", "helper", "done")
    assert told.id == sent["turns"][0]["messageId"]
    assert question.id == "m"
    rows = [row for row in await room.rows() if row["key"].startswith(told.id)]
    assert [row["value"]["seq"] for row in rows] == list(range(5))
    assert [json.loads(row["value"]["chunk"])["type"] for row in rows] == [
        *("message-start", "content", "content", "done", "message-end"),
    ]
    assert fold.active_generations == ()


async def test_an_agent_is_sent_the_history_and_what_its_owner_wants(proxy: Proxy) -> None:
    headers = {"Authorization": "Bearer key", "Accept": "text/event-stream"}
    spec = {"headers": headers, "bodyTemplate": {"model": "m", "stream": False, "messages": 1}}
    async with upstream(saying("one")) as agent:
        room = await Room(proxy.client).open({"id": "a", "endpoint": f"{agent.url}/chat?key=1", **spec})
        await room.say("first", "m1")
        await room.settled()
        await room.say("second", "m2")
        await room.settled(2)
    call = agent.calls[1]
    assert (call.method, call.path, call.header("authorization")) == ("POST", "/chat?key=1", "Bearer key")
    assert [value for name, value in call.headers if name.lower() == "accept"] == ["text/event-stream"]
    assert body(call) == {
        "model": "m",
        "stream": True,
        "messages": [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "second"},
        ],
    }


async def test_agents_answer_side_by_side_and_one_that_comes_with_a_message(proxy: Proxy) -> None:
    both_called = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        if len(agent.calls) == 3:
            both_called.set()
        await both_called.wait()
        await answer(exchange, text(exchange.path), FINISH)

    async with upstream(play) as agent:
        specs = [{"id": name, "endpoint": f"{agent.url}/{name}"} for name in ("a", "b")]
        room = await Room(proxy.client).open(*specs)
        await room.say("Hi", agent={"id": "guest", "endpoint": f"{agent.url}/guest"})
        fold = await room.settled(3)
        await room.say("And now?", "m2")
        fold = await room.settled(5)
    assert sorted(message.text for message in fold.messages[1:4]) == ["/a", "/b", "/guest"]
    assert [one.id for one in fold.agents] == ["a", "b"]
    assert len(agent.calls) == 5, "who came with one message is not called for another"


async def test_a_clients_tool_result_has_the_agent_go_on(proxy: Proxy) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "locate", "arguments": '{"city":"Łódź"}'}}

    async def play(exchange: Exchange) -> None:
        asks = len(agent.calls) == 1
        delta = {"tool_calls": [call]} if asks else {"content": "It is there."}
        reason = "tool_calls" if asks else "stop"
        await answer(exchange, {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    async with upstream(play) as agent:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url, "format": "openai"})
        await room.say("Where is Łódź?")
        fold = await room.settled()
        assert fold.tool_calls[0].state == "executing"
        await room.post("tool-results", toolCallId="c1", output={"lat": 51.8})
        await room.post("tool-results", toolCallId="c1", output={"lat": 51.8})
        fold = await room.settled(2)
        assert len(agent.calls) == 2
    assert [turn.kind for turn in fold.turns] == ["message", "answers"]
    assert fold.messages[-1].text == "It is there."
    assert body(agent.calls[1])["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "locate", "arguments": '{"city":"Łódź"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"lat":51.8}'},
    ]


TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
VENDORS: dict[str, tuple[str, Any]] = {
    "openai": ("/v1/chat/completions", {"type": "function", "function": {"name": "weather", "parameters": TOOL}}),
    "openai-responses": ("/v1/responses", {"type": "function", "name": "weather", "parameters": TOOL}),
    "anthropic": ("/v1/messages", {"name": "weather", "input_schema": TOOL}),
}


@pytest.mark.parametrize("format", VENDORS)
async def test_a_vendors_model_is_called_answers_and_goes_on_with_a_tools_result(
    proxy: Proxy, vendor: str, format: str
) -> None:
    path, tool = VENDORS[format]
    template = {"model": "m", "max_tokens": 9, "tools": [tool], "metadata": {"fake-rate": 0, "fake-tokens": 9}}
    room = await Room(proxy.client).open(
        {"id": "a", "endpoint": f"{vendor}{path}", "format": format, "bodyTemplate": template}
    )
    await room.say("What is the weather?")
    fold = await room.settled()
    [call] = fold.tool_calls
    assert (call.name, call.state, list(call.input)) == ("weather", "executing", ["city"])
    await room.post("tool-results", toolCallId=call.id, output="rain")
    fold = await room.settled(2)
    assert (fold.messages[-1].ended_by, fold.messages[-1].error) == ("done", None)
    assert fold.messages[-1].text
    assert fold.statistics.total_tokens > 0 or format == "openai"


async def test_what_the_system_says_stands_behind_what_the_agents_owner_does(proxy: Proxy) -> None:
    async with upstream(saying("one")) as agent:
        spec = {"endpoint": agent.url, "format": "anthropic"}
        room = await Room(proxy.client).open(
            {"id": "a", **spec, "bodyTemplate": {"system": "Be kind."}},
            {"id": "b", **spec, "bodyTemplate": {"system": [{"type": "text", "text": "Be kind."}]}},
        )
        await room.say("Be brief.", "s", role="system")
        await room.say("Hi")
        await room.settled(2)
        sent = [body(call)["system"] for call in agent.calls]
    assert "Be kind.\n\nBe brief." in sent
    assert [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be brief."}] in sent


async def test_an_approval_by_somebody_else_has_the_agent_go_on(proxy: Proxy) -> None:
    ask: list[dict[str, Any]] = [
        {"type": "tool-input-available", "toolCallId": "c1", "toolName": "delete", "input": {"file": "a"}},
        {"type": "tool-approval-request", "toolCallId": "c1", "approvalId": "ok"},
        FINISH,
    ]

    async def play(exchange: Exchange) -> None:
        await answer(exchange, *(ask if len(agent.calls) == 1 else [text("Deleted."), FINISH]))

    async with upstream(play) as agent:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url, "format": "ai-sdk"})
        await room.say("Delete it", actorId="ann")
        assert (await room.settled()).approvals[0].status == "pending"
        await room.post("approvals/ok", approved=True, actorId="bob")
        fold = await room.settled(2)
    assert (fold.approvals[0].status, fold.messages[-1].text) == ("approved", "Deleted.")
    [_, asked] = body(agent.calls[1])["messages"]
    assert asked["parts"][0]["approval"] == {"id": "ok", "approved": True}


async def test_two_agents_that_would_answer_each_other_for_ever_come_to_an_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with upstream(saying("And you?")) as agent, serving(MemoryStore(), max_turns=4) as proxy:
        specs = [{"id": name, "endpoint": agent.url, "triggers": "all"} for name in ("a", "b")]
        room = await Room(proxy.client).open(*specs)
        with caplog.at_level(logging.WARNING):
            await room.say("Talk")
            fold = await room.settled(10)
        assert len(agent.calls) == 8
    assert [turn.depth for turn in fold.turns].count(5) == 2
    refused = [message for message in fold.messages if message.ended_by == "error"]
    assert len(refused) == 2
    assert "4 turns follow one message" in caplog.text


async def test_an_answer_that_is_under_way_can_be_stopped(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, SSE)
        await exchange.chunk(sse(text("Well")))
        await exchange.is_gone.wait()

    async with upstream(play) as agent:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        await room.when(lambda fold: len(fold.messages) == 2 and fold.messages[1].text == "Well")
        await room.post("stop", messageId=None)
        fold = await room.settled()
        async with asyncio.timeout(30):
            await agent.calls[0].is_gone.wait()
    assert (fold.messages[1].text, fold.messages[1].ended_by) == ("Well", "stop")


async def test_a_turn_can_be_stopped_before_its_agent_has_answered(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with upstream(play) as agent:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        await room.post("stop")
        fold = await room.settled()
    assert fold.messages[1].ended_by == "stop"


async def test_a_turn_that_is_stopped_before_its_call_never_calls() -> None:
    """This process has no room for calls, so the turn waits."""
    async with upstream(saying("no")) as agent, serving(MemoryStore(), max_generations=0) as proxy:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url})
        sent = await room.say("Hi")
        await room.post("stop", messageId=sent["turns"][0]["messageId"])
        fold = await room.settled()
        assert (fold.messages[1].ended_by, agent.calls) == ("stop", [])


async def test_a_session_with_nothing_to_do_is_let_go_and_found_again(proxy: Proxy) -> None:
    async def is_idle() -> bool:
        return proxy.service.session_runner.running == 0

    async with upstream(saying("Hello")) as agent:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        await room.settled()
        await until(is_idle)
        await room.say("Again", "m2")
        fold = await room.settled(2)
    assert [message.text for message in fold.messages] == ["Hi", "Hello", "Again", "Hello"]


async def test_an_answer_is_written_anew_in_the_place_of_another(proxy: Proxy) -> None:
    async def play(exchange: Exchange) -> None:
        await answer(exchange, text(f"answer {len(agent.calls)}"), FINISH)

    async with upstream(play) as agent:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        await room.settled()
        await room.post("regenerate", fromMessageId="m")
        fold = await room.when(lambda fold: not fold.pending_turns and fold.messages[-1].text == "answer 2")
    assert [message.text for message in fold.messages] == ["Hi", "answer 2"]
    assert body(agent.calls[1])["messages"] == [{"role": "user", "content": "Hi"}]


# Agents that misbehave


async def _early(exchange: Exchange) -> None:
    await exchange.head(200, SSE)
    await exchange.chunk(sse(text("Well")))
    await exchange.end()


async def _broken(exchange: Exchange) -> None:
    await exchange.head(200, SSE)
    await exchange.chunk(sse(text("Well")))
    exchange.reset()


async def _silent(exchange: Exchange) -> None:
    await exchange.head(200, SSE)
    await exchange.chunk(sse(text("Well")))
    await exchange.is_gone.wait()


async def _garbage(exchange: Exchange) -> None:
    await exchange.head(200, SSE)
    await exchange.chunk(b"\xff\xfe{{{]]\n\n" + b"data: {\x00\n\n" * 1000)
    await exchange.end()


async def _refusing(exchange: Exchange) -> None:
    await exchange.answer(401, b'{"error": "your key SECRET is wrong"}')


async def _leading_away(exchange: Exchange) -> None:
    await exchange.answer(302, b"", {"Location": "http://127.0.0.1/other"})


async def _failing(exchange: Exchange) -> None:
    await answer(exchange, text("Well"), {"type": "error", "errorText": "out of tokens"})


async def _endless(exchange: Exchange) -> None:
    await exchange.head(200, SSE)
    piece = sse(text("x" * 1_000_000))
    while not exchange.is_gone.is_set():
        await exchange.chunk(piece)


MISBEHAVING: dict[str, tuple[Script, str]] = {
    "closes early": (_early, "truncated"),
    "breaks off": (_broken, "upstream_failed"),
    "falls silent": (_silent, "stalled"),
    "streams garbage": (_garbage, "unknown_format"),
    "refuses": (_refusing, "agent_refused"),
    "leads away": (_leading_away, "redirect_refused"),
    "fails": (_failing, "agent_failed"),
    "never ends": (_endless, "too_large"),
}


@pytest.mark.parametrize("how", MISBEHAVING)
async def test_whatever_an_agent_does_its_answer_ends_and_says_why(how: str, caplog: pytest.LogCaptureFixture) -> None:
    play, expected = MISBEHAVING[how]
    idle_seconds = 0.3 if expected == "stalled" else 60.0
    async with upstream(play) as agent, serving(MemoryStore(), idle_seconds=idle_seconds) as proxy:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        fold = await room.settled()
        assert await code(room) == expected
        assert len(agent.calls) == 1
        rows = json.dumps(await room.rows())
    assert (fold.messages[1].ended_by, fold.active_generations) == ("error", ())
    assert len(rows) < 3 * MAX_ANSWER_CHARACTERS
    assert "SECRET" not in rows
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_agent_that_never_answers_is_not_waited_for() -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.is_gone.wait()

    async with upstream(play) as agent, serving(MemoryStore(), first_byte_seconds=1.0) as proxy:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        await room.settled()
        assert await code(room) == "timed_out"
        assert len(agent.calls) == 1


async def test_a_session_that_is_deleted_takes_its_agents_calls_along(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, SSE)
        while not exchange.is_gone.is_set():
            await exchange.chunk(sse(text("more ")))
            await asyncio.sleep(0.01)

    async def is_idle() -> bool:
        return proxy.service.session_runner.running == 0

    async with upstream(play) as agent:
        room = await Room(proxy.client).open({"id": "a", "endpoint": agent.url})
        await room.say("Hi")
        await room.when(lambda fold: len(fold.messages[-1].text) > 20)
        assert (await proxy.client.delete(room.path)).status_code in (202, 204)
        async with asyncio.timeout(60):
            await agent.calls[0].is_gone.wait()
        await until(is_idle)
        assert (await proxy.client.get(room.path)).status_code == 404
    assert not [record for record in caplog.records if record.exc_info]


async def test_what_may_not_or_cannot_be_called_is_an_error_in_the_answer(proxy: Proxy) -> None:
    async with upstream(saying("no")) as gone:
        pass
    room = await Room(proxy.client).open({"id": "a", "endpoint": gone.url})
    await room.say("Hi")
    await room.settled(within_seconds=40)
    assert await code(room) == "upstream_unreachable"


async def test_an_agent_that_left_while_it_was_to_answer_is_not_called() -> None:
    called = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        called.set()
        await exchange.is_gone.wait()

    async with upstream(play) as agent, serving(MemoryStore(), max_running=1) as proxy:
        room = await Room(proxy.client).open(*({"id": name, "endpoint": agent.url} for name in ("a", "b")))
        await room.say("Hi")
        await room.when(lambda fold: len(fold.pending_turns) == 1)
        assert await code(room) == "too_many_generations"
        await room.post("stop")
        await room.settled(2)


async def test_secrets_stand_nowhere(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    secret = "SECRET-81fe"
    spec = {
        "id": "a",
        "headers": {"authorization": f"Bearer {secret}"},
        "bodyTemplate": {"key": secret},
    }
    async with upstream(saying("Hello")) as agent:
        with caplog.at_level(logging.DEBUG):
            room = await Room(proxy.client).open({**spec, "endpoint": f"{agent.url}/a?key={secret}"})
            await room.say("Hi", agent={**spec, "id": "guest", "endpoint": f"{agent.url}/?key={secret}"})
            await room.settled(2)
            shown = [
                (await proxy.client.get(f"{room.path}{path}")).text for path in ("", "/agents", "/messages", "/export")
            ]
        assert len(agent.calls) == 2
        assert secret not in json.dumps(await room.rows())
        assert secret not in "".join(shown)
        logged = [record.getMessage() for record in caplog.records if record.name.startswith("streamkeep")]
        assert secret not in "".join(logged)
        assert secret not in repr(proxy.service.session_runner)
