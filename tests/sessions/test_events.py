"""What is written as a session's events, read back by its fold."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from streamkeep.sessions import SessionFold, events
from streamkeep.sessions.events import Author
from streamkeep.sessions.views import Agent, ForkedFrom, Place, Presence, SessionInfo, TextPart, ToolCallPart, Turn
from tests.sessions.session_rows import Author as Writer

AT = "2030-01-01T00:00:00.000Z"
ANN = Author("ann", "Ann")
TURN = Turn("t", "helper", "a", "u", "message", 1, AT, Place(1, "-1"), spec_id="x")


def folded(*written: events.Event) -> SessionFold:
    fold = SessionFold()
    fold.apply([json.loads(json.dumps(event)) for event in written], "1")
    return fold


def test_a_whole_message_comes_back_with_its_author_and_role() -> None:
    row = events.whole_message("u", [{"type": "text", "content": "Hi \N{SUN}"}], author=ANN, role="system", at=AT)
    [message] = folded(row).messages
    assert (message.id, message.role, message.parts) == ("u", "system", (TextPart("Hi \N{SUN}"),))
    assert (message.actor_id, message.actor_name, message.created_at) == ("ann", "Ann", AT)
    assert (row["key"], row["value"]["seq"]) == ("u:0", 0)


def test_answers_of_clients_settle_calls_and_take_the_place_of_no_row() -> None:
    author = Writer("a")
    rows = [author.call("call", "{}"), author.ask("call", "ok?"), author.call("other", "{}"), author.done("tool_calls")]
    answered = [
        events.approval_response("a", 4, "ok?", True, author=ANN, at=AT),
        events.tool_result("a", 4, "other", {"n": 1}, None, author=ANN, at=AT),
    ]
    fold = folded(*rows, *answered)
    assert len({row["key"] for row in [*rows, *answered]}) == 6
    assert (fold.approvals[0].status, fold.approvals[0].responded_by) == ("approved", "ann")
    assert [call.state for call in fold.tool_calls] == ["executing", "complete"]
    assert fold.is_answered("a")
    assert [part.id for part in fold.messages[0].parts if isinstance(part, ToolCallPart)] == ["call", "other"]


@pytest.mark.parametrize("begun", [False, True])
def test_an_answer_that_did_not_end_by_itself_gets_its_end(begun: bool) -> None:
    author = Author("helper", "Helper")
    rows = [events.turn_event(TURN)]
    if begun:
        rows += [events.answer_row(TURN, 0, events.message_start(TURN, author), author=author, at=AT)]
        rows += [events.answer_row(TURN, 1, {"type": "content", "delta": "x"}, author=author, at=AT)]
    fold = folded(*rows)
    assert fold.pending_turns == (fold.turn("t"),)
    end = events.answer_end(
        TURN, fold.next_seq("a"), "error", author=author, at=AT, error={"message": "no", "code": "x"}
    )
    fold.apply(end, "2")
    [message] = fold.messages
    assert (message.ended_by, message.error, message.actor_name) == ("error", "no", "Helper")
    assert not fold.pending_turns
    assert fold.numbers("a") == list(range(4 if begun else 3))
    told = fold.turns[0]
    assert (told.id, told.agent_id, told.cause_id, told.kind, told.spec_id) == ("t", "helper", "u", "message", "x")


def test_presence_agents_and_the_session_come_back_as_they_were() -> None:
    presence = Presence("ann", "user", "Ann", "away", AT, typing=True)
    agent = Agent("helper", None, "https://agents.example/a", "all")
    info = SessionInfo("s", "Trip", AT, ForkedFrom("r", None))
    fold = folded(events.presence_event(presence), events.agent_event(agent), events.session_event(info))
    assert (fold.presence, fold.agents, fold.session) == ((presence,), (agent,), info)
    assert not presence.is_stale(datetime(2030, 1, 1, tzinfo=UTC))
    fold.apply([events.removal("presence", "ann"), events.removal("agent", "helper")], "2")
    assert (fold.presence, fold.agents) == ((), ())


def test_a_write_tells_its_own_id_once() -> None:
    written = [events.removal("turn", "t"), events.removal("turn", "s")]
    assert [event["headers"].get("txid") for event in events.with_txid(written, "x")] == ["x", None]
    assert events.with_txid(written, None) == written
    assert folded(*events.with_txid(written, "x")).position == 2
