"""A durable session folded out of its events: what they make, whatever the batches, and whatever is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkeep.client.sessions import (
    SessionFold,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolResultPart,
    as_json,
)
from tests.sessions.session_rows import (
    Author,
    Row,
    agent,
    answer,
    presence,
    recorded_session,
    removed,
    result,
    row,
    said,
    turn,
)


def folded(rows: Sequence[object], sizes: Sequence[int] = ()) -> SessionFold:
    """The rows in batches of these sizes, and the rest in one."""
    fold, at = SessionFold(), 0
    for size in (*sizes, len(rows)):
        fold.apply(rows[at : at + size], f"{min(at + size, len(rows)):04d}")
        at += size
    return fold


def seen(fold: SessionFold) -> dict[str, Any]:
    """Everything that a fold tells; places are compared by their position."""
    names = (
        *("messages", "tool_calls", "tool_results", "approvals", "active_generations"),
        *("agents", "presence", "participants", "statistics", "position", "offset"),
        *("session", "turns", "pending_turns"),
    )
    return {name: getattr(fold, name) for name in names}


def test_a_recorded_session_of_36_rows() -> None:
    rows = recorded_session()
    assert len(rows) == 36
    fold = folded(rows)
    assert [(one.id, one.role, one.is_complete) for one in fold.messages] == [
        ("u1", "user", True),
        ("a1", "assistant", True),
        ("u2", "user", True),
        ("a2", "assistant", True),
    ]
    assert fold.messages[1].text == "The sun is a star, as you know. ☀"
    assert [type(part) for part in fold.messages[3].parts] == [ThinkingPart, ToolCallPart, ToolResultPart, TextPart]
    assert fold.messages[3].text == "In Łódź it is 21 °C. Nothing but sun, all day."
    [tool_call] = fold.tool_calls
    assert (tool_call.state, tool_call.input) == ("complete", {"city": "Łódź"})
    stats = fold.statistics
    assert (stats.prompt_tokens, stats.completion_tokens, stats.total_tokens) == (151, 21, 172)
    assert (stats.message_count, stats.user_message_count, stats.assistant_message_count) == (4, 2, 2)
    assert (fold.active_generations, stats.tool_call_count) == ((), 1)


def test_messages_and_tool_calls_know_where_they_begin_and_end() -> None:
    fold = folded(recorded_session(), [1, 5])
    assert [(one.start.position, one.end.position) for one in fold.messages] == [(0, 1), (1, 13), (13, 14), (14, 36)]
    assert [(one.start.offset, one.start.sub_offset) for one in fold.messages[:3]] == [
        ("-1", 0),
        ("0001", 0),
        ("0006", 7),
    ]
    assert (fold.messages[3].end.offset, fold.messages[3].end.sub_offset) == ("0036", 0)
    [tool_call] = fold.tool_calls
    assert (tool_call.start.position, tool_call.end.position) == (15, 20)


def test_text_grows_as_it_streams_and_the_generation_is_active_meanwhile() -> None:
    author, fold = Author("a"), SessionFold()
    texts = []
    for number, word in enumerate(["one", "two", "three"]):
        changes = fold.apply([author.content(word)], f"{number}")
        assert changes.message_ids == ("a",)
        [active] = fold.active_generations
        assert active.last_chunk_at == f"2030-01-01T00:00:{number:02d}.000Z"
        assert (active.started_at, active.last_chunk_seq) == ("2030-01-01T00:00:00.000Z", number)
        texts.append(fold.messages[0].text)
    assert texts == ["one", "onetwo", "onetwothree"]
    fold.apply([author.done()], "9")
    assert (fold.active_generations, fold.messages[0].is_complete) == ((), True)


def test_a_message_that_did_not_change_is_the_same_object() -> None:
    first, second = Author("a"), Author("b")
    fold = folded([first.content("x"), second.content("y")])
    before = fold.messages
    fold.apply([second.content("z")], "9")
    assert fold.messages[0] is before[0]
    assert before[1].text == "y"


def test_two_generations_interleave_and_users_write_between() -> None:
    first, second = Author("a", actor_id="one"), Author("b", actor_id="two")
    rows = [
        said("u1", "Hi"),
        first.content("A"),
        second.content("B"),
        said("u2", "?", actor_id="bob"),
        first.content("a"),
        second.done(),
        first.done(),
    ]
    fold = folded(rows)
    assert [(one.id, one.text) for one in fold.messages] == [("u1", "Hi"), ("a", "Aa"), ("b", "B"), ("u2", "?")]
    assert [(one.actor_id, one.actor_type, one.message_count) for one in fold.participants] == [
        ("ann", "user", 1),
        ("one", "agent", 1),
        ("two", "agent", 1),
        ("bob", "user", 1),
    ]


def test_the_order_is_that_of_the_stream_and_not_of_clocks() -> None:
    fold = folded([said("late", "1", at="2030-01-02T00:00:00Z"), said("early", "2", at="2029-01-01T00:00:00Z")])
    assert [one.id for one in fold.messages] == ["late", "early"]


def test_what_comes_twice_counts_once() -> None:
    rows = recorded_session()
    doubled = [row_ for one in rows for row_ in (one, one)]
    once, twice = seen(folded(rows)), seen(folded(doubled))
    assert as_json(once["statistics"]) == as_json(twice["statistics"])
    assert [one.parts for one in once["messages"]] == [one.parts for one in twice["messages"]]
    assert [one.parts for one in folded(rows + rows).messages] == [one.parts for one in once["messages"]]


def test_a_sent_message_keeps_its_role() -> None:
    fold = folded([said("s", "Be brief", role="system"), said("a", "Hello", role="assistant")])
    assert [one.role for one in fold.messages] == ["system", "assistant"]
    assert fold.active_generations == ()


def test_text_around_tool_calls_and_thoughts_is_shown_once() -> None:
    author = Author("a")
    rows = [author.content("A", "A"), author.row("thinking", delta="?", content="?"), author.content("B", "AB")]
    rows += [
        author.call("call", "{}"),
        author.content("C", "ABC"),
        author.content("", "ABCD"),
        author.content("E", "E"),
    ]
    [message] = folded(rows).messages
    call_part = ToolCallPart("call", "weather", "{}", "input-complete")
    assert message.parts == (
        *(TextPart("A"), ThinkingPart("?"), TextPart("B"), call_part, TextPart("CD"), TextPart("E")),
    )


@pytest.mark.parametrize("message_id", ["result", "a", "another"])
def test_a_result_of_a_client_belongs_to_its_call_whatever_message_it_names(message_id: str) -> None:
    author = Author("a")
    rows = [author.call("call", "{}"), author.row("tool-input-available", toolCallId="call", toolName="w", input={})]
    fold = folded([*rows, author.done("tool_calls"), result("call", {"ok": 1}, message_id=message_id, actor_id="bob")])
    [message] = fold.messages
    [tool_call] = fold.tool_calls
    assert (tool_call.state, fold.active_generations) == ("complete", ())
    assert fold.tool_results == (tool_call.result,)
    assert tool_call.result is not None
    assert (tool_call.result.output, tool_call.result.actor_id) == ({"ok": 1}, "bob")
    assert message.parts == (
        ToolCallPart("call", "weather", "{}", "input-complete", output={"ok": 1}),
        ToolResultPart("call", '{"ok":1}', "complete"),
    )
    assert fold.statistics.user_message_count == 0


def test_a_result_that_is_an_error() -> None:
    author = Author("a")
    fold = folded([author.call("call", "{}"), result("call", None, error="no such city")])
    assert (fold.tool_calls[0].state, fold.messages[0].parts[1]) == (
        "error",
        ToolResultPart("call", "null", "error", "no such city"),
    )


def test_a_tool_that_failed_where_its_agent_ran_it_has_failed() -> None:
    author = Author("a")
    failed = author.row("tool_result", toolCallId="call", content='{"error":"no such city"}', error="no such city")
    fold = folded([author.call("call", "{}"), failed])
    assert (fold.tool_calls[0].state, fold.tool_results[0].error) == ("error", "no such city")


def test_an_agent_goes_on_in_another_message_with_the_result_of_a_call() -> None:
    first, second = Author("a"), Author("b")
    rows = [first.call("call", "{}"), first.done("tool_calls")]
    fold = folded([*rows, second.row("tool_result", toolCallId="call", content="21")])
    assert fold.tool_calls[0].state == "complete"
    assert fold.messages[1].parts == (ToolResultPart("call", "21", "complete"),)


@pytest.mark.parametrize("approved", [True, False])
def test_an_answered_approval_is_answered_for_all_and_the_first_answer_counts(approved: bool) -> None:
    author = Author("a")
    rows = [author.call("call", "{}"), author.ask("call", "ok?"), author.done("tool_calls")]
    fold = folded(rows)
    assert (fold.approvals[0].status, fold.tool_calls[0].state) == ("pending", "approval-requested")
    assert fold.messages[0].is_complete, "its author waits for an answer"
    changes = fold.apply([answer("ok?", approved), answer("ok?", not approved, actor_id="eve")], "9")
    assert changes.message_ids == ("a",)
    [asked] = fold.approvals
    assert (asked.status, asked.responded_by) == ("approved" if approved else "denied", "ann")
    assert fold.tool_calls[0].state == ("executing" if approved else "denied")
    [part] = fold.messages[0].parts
    assert isinstance(part, ToolCallPart)
    assert part.approval is not None
    assert (part.state, part.approval.approved) == ("approval-responded", approved)
    assert len(fold.messages) == 1


def test_answers_and_results_that_come_first_wait() -> None:
    author = Author("a")
    rows = [answer("ok?", True), result("call", 1), author.call("call", "{}"), author.ask("call", "ok?")]
    fold = folded(rows)
    assert (fold.approvals[0].status, fold.tool_calls[0].state) == ("approved", "complete")
    assert [type(part) for part in fold.messages[0].parts] == [ToolCallPart, ToolResultPart]


@pytest.mark.parametrize(
    ("end", "ended_by", "error"),
    [
        ({"type": "done", "finishReason": "length"}, "done", None),
        ({"type": "done", "finishReason": None}, "done", None),
        ({"type": "stop", "reason": "aborted"}, "stop", None),
        ({"type": "message-end"}, "message-end", None),
        ({"type": "message-end", "reason": "done"}, "done", None),
        ({"type": "message-end", "reason": "stop"}, "stop", None),
        ({"type": "message-end", "reason": ["stop"]}, "message-end", None),
        ({"type": "error", "error": {"message": "no", "code": "x"}}, "error", "no"),
        ({"type": "error", "error": "no"}, "error", "no"),
        ({"type": "error"}, "error", "the generation failed"),
    ],
)
def test_what_ends_a_message(end: dict[str, Any], ended_by: str, error: str | None) -> None:
    author = Author("a")
    [message] = folded([author.content("x"), author.row(**end)]).messages
    assert (message.is_complete, message.ended_by, message.error) == (True, ended_by, error)


def piece(author: Author, call_id: str, index: int | None, arguments: str, name: str = "f") -> Row:
    called = {"id": call_id, "function": {"name": name, "arguments": arguments}}
    return author.row("tool_call", toolCall=called, **({} if index is None else {"index": index}))


@pytest.mark.parametrize(("call_id", "ids"), [("x", ["x", "x-1", "x-2"]), ("", ["call-0", "call-1", "call-2"])])
def test_calls_of_one_id_or_none_stay_apart_by_their_index(call_id: str, ids: list[str]) -> None:
    author = Author("a")
    rows = [
        piece(author, call_id, 0, '{"n"', "first"),
        piece(author, call_id, 1, '{"n":', "second"),
        piece(author, call_id, 0, ":0}"),
        piece(author, call_id, 1, "1}"),
        piece(author, call_id, 2, "{}", "third"),
    ]
    fold = folded(rows)
    assert [(one.id, one.name, one.input) for one in fold.tool_calls] == [
        (ids[0], "first", {"n": 0}),
        (ids[1], "second", {"n": 1}),
        (ids[2], "third", {}),
    ]
    assert [part.id for part in fold.messages[0].parts if isinstance(part, ToolCallPart)] == ids
    told = [author.row("tool_result", toolCallId=call_id, content=text) for text in ("one", "two")]
    approval = {"id": "ok?", "needsApproval": True}
    asked = author.row("approval-requested", toolCallId=call_id, toolName="third", approval=approval)
    offered = author.row("tool-input-available", toolCallId=call_id, toolName="first", input={"n": 9})
    fold.apply([*told, asked, offered, result(ids[2], "three", message_id="a")], "9")
    assert [one.result and one.result.output for one in fold.tool_calls] == ["one", "two", "three"]
    assert [one.approval_id for one in fold.tool_calls] == ["ok?", None, None], "each is for the first that has none"
    assert [one.input for one in fold.tool_calls] == [{"n": 9}, {"n": 1}, {}]
    assert [one.tool_call_id for one in fold.tool_results] == ids


def test_pieces_without_an_index_or_with_a_wild_one_are_told_apart_by_their_id_alone() -> None:
    author = Author("a")
    indexes: list[Any] = [None, 0, -1, 1000, 10**30, True, 0.5, "1", [1]]
    fold = folded([piece(author, "x", index, "1") for index in indexes])
    assert [(one.id, one.arguments) for one in fold.tool_calls] == [("x", "1" * len(indexes))]
    nameless = Author("b")
    assert folded([piece(nameless, "", None, "{}")]).tool_calls == ()


def test_a_tool_loop_goes_on_after_done() -> None:
    author = Author("a")
    fold = folded([author.call("call", "{}"), author.done("tool_calls")])
    assert len(fold.active_generations) == 1
    fold.apply([author.row("tool_result", toolCallId="call", content="1"), author.content("So."), author.done()], "9")
    assert not fold.active_generations
    assert fold.messages[0].is_complete


def test_presence_and_agents_come_and_go() -> None:
    fold = folded(
        [presence("ann", name="Ann"), agent("helper", name="Helper", triggers="all"), Author("h").content("x")]
    )
    assert [(one.actor_id, one.name, one.status) for one in fold.presence] == [("ann", "Ann", "online")]
    assert [(one.id, one.name, one.triggers) for one in fold.agents] == [("helper", "Helper", "all")]
    near, far = datetime(2030, 1, 1, 0, 1, tzinfo=UTC), datetime(2030, 1, 1, 0, 1, 1, tzinfo=UTC)
    assert [fold.presence[0].is_stale(now) for now in (near, far)] == [False, True]
    changes = fold.apply([removed("presence", "ann"), removed("agent", "helper"), removed("agent", "other")], "9")
    assert (changes.actor_ids, changes.agent_ids) == (("ann",), ("helper",))
    assert (fold.presence, fold.agents) == ((), ())
    assert [(one.actor_id, one.name) for one in fold.participants] == [("ann", "Ann"), ("agent", None)]


def test_a_turn_is_a_generation_from_its_event_on_until_its_answer_has_ended() -> None:
    author, fold = Author("a"), folded([said("u", "Hi"), turn("t", "a")])
    [awaited] = fold.active_generations
    assert (awaited.message_id, awaited.actor_id, awaited.last_chunk_seq) == ("a", "agent", -1)
    fold.apply([author.row("message-start", turnId="t"), author.content("Ho"), author.done()], "5")
    assert (fold.active_generations, fold.statistics.active_generation_count) == ((), 0)
    assert [one.id for one in fold.pending_turns] == ["t"], "what began with message-start ends with message-end"
    changes = fold.apply([author.row("message-end", reason="done")], "6")
    assert (changes.turn_ids, fold.pending_turns) == (("t",), ())
    assert fold.turn_of("a") == fold.turn("t") == fold.turns[0]
    assert (fold.turns[0].is_pending, fold.turns[0].start.position, fold.next_seq("a")) == (False, 1, 4)


def test_a_turn_counts_once_and_can_be_taken_back() -> None:
    author = Author("b")
    rows = [turn("t", "a"), turn("t", "x"), turn("other", "a"), author.content("x"), author.done(), turn("late", "b")]
    fold = folded(rows)
    assert [(one.id, one.message_id, one.is_pending) for one in fold.turns] == [("t", "a", True), ("late", "b", False)]
    changes = fold.apply([removed("turn", "t"), removed("turn", "t")], "9")
    assert (changes.turn_ids, fold.active_generations, [one.id for one in fold.turns]) == (("t",), (), ["late"])
    fold.apply([Author("a").row("message-start", turnId="t")], "10")
    assert (fold.message("a"), fold.is_gone("a")) == (None, True), "nobody waits for its answer any more"


def test_a_message_is_gone_when_all_its_rows_are_deleted_and_does_not_come_back() -> None:
    author = Author("a")
    rows = [said("u", "Hi"), turn("t", "a"), author.call("call", "{}"), author.ask("call", "ok?"), author.content("x")]
    fold = folded(rows)
    fold.apply([removed("chunk", "a:0"), removed("chunk", "a:2"), removed("chunk", "a:2")], "8")
    assert fold.messages[1].text == "x"
    changes = fold.apply([removed("chunk", "a:1"), author.content("late"), answer("ok?", True, message_id="a")], "9")
    assert ([one.id for one in fold.messages], changes.message_ids) == (["u"], ("a",))
    assert (fold.tool_calls, fold.approvals, fold.active_generations, fold.pending_turns) == ((), (), (), ())
    assert fold.is_gone("a")
    assert (fold.numbers("u"), fold.numbers("a")) == ([0], [])
    assert [(one.actor_id, one.message_count) for one in fold.participants] == [("ann", 1), ("agent", 0)]
    assert fold.statistics.assistant_message_count == 0


def test_a_session_says_its_name_and_where_it_came_from() -> None:
    value = {"name": "Trip", "createdAt": "2030-01-01T00:00:00Z", "forkedFrom": {"sessionId": "s", "atMessageId": "u"}}
    fold = SessionFold()
    changes = fold.apply([{"type": "session", "key": "f", "value": value, "headers": {"operation": "upsert"}}], "1")
    assert changes.session
    assert as_json(fold.session) == {"id": "f", "name": "Trip", "createdAt": value["createdAt"]} | {
        "forkedFrom": value["forkedFrom"]
    }


def test_whoever_types_says_so_and_rows_name_their_authors() -> None:
    named = said("u", "Hi")
    named["value"]["actorName"] = "Ann"
    fold = folded([presence("bob", typing=True), named])
    assert [(one.actor_id, one.typing) for one in fold.presence] == [("bob", True)]
    assert (fold.messages[0].actor_name, fold.participants[1].name) == ("Ann", "Ann")


def test_a_reset_forgets_all_and_txids_are_told() -> None:
    fold = folded([said("u", "Hi")])
    changes = fold.apply([{"headers": {"control": "reset"}}, said("v", "Ho", txid="t")], "9")
    assert (changes.was_reset, changes.txids) == (True, ("t",))
    assert [one.id for one in fold.messages] == ["v"]


DEEP = "[" * 100_000


def nested(depth: int) -> str:
    """A chunk that nests so often, among brackets that do not."""
    inner = '{"a":' * (depth - 1) + r'"]\"[[["' + "}" * (depth - 1)
    return f'{{"type": "content", "delta": "x", "more": {inner}, "wide": [{", ".join(["[]"] * depth)}]}}'


NO_MESSAGES: list[object] = [None, 1, []]
BAD: list[object] = [
    *(None, 1, "x", [], {}, {"headers": 1}, {"headers": {"operation": "burn"}}, {"headers": {"control": "x"}}),
    {"type": "chunk", "key": "k", "value": None, "headers": {"operation": "insert"}},
    {"type": "chunk", "key": "k", "headers": {"operation": "insert"}},
    {"type": "chunk", "key": "", "value": {}, "headers": {"operation": "insert"}},
    {"type": "elsewhere", "key": "k", "value": {}, "headers": {"operation": "insert"}},
    *(row("a", chunk) for chunk in ("", "no", "[]", "{}", '{"type": 1}', "NaN", '{"type": "content", "x": NaN}', DEEP)),
    *(row("a", nested(depth)) for depth in (101, 500, 100_000)),
    *(
        row("a", f'{{"type": "content", "x": [{number}]}}')
        for number in ("1e999", "-1E+400", "9" * 400, "-" + "9" * 5000)
    ),
    *(row("m", {"type": "user-message", "message": message}) for message in NO_MESSAGES),
    row("r", {"type": "content", "delta": "x"}, role="root"),
    {**row("x", {"type": "content"}), "value": {**row("x", {"type": "content"})["value"], "role": {"a": 1}}},
    presence("x", "asleep"),
    presence("x", kind="robot"),
    {"type": "presence", "key": "x", "value": 1, "headers": {"operation": "upsert"}},
    {"type": "agent", "key": "x", "value": [], "headers": {"operation": "upsert"}},
    {"type": "session", "key": "x", "value": [], "headers": {"operation": "upsert"}},
    {"type": "turn", "key": "x", "value": [], "headers": {"operation": "insert"}},
    turn("x", "b", kind="whim"),
    turn("x", "b", kind=["message"]),
    turn("x", "b", depth=True),
    turn("x", "b", depth=10**30),
    turn("x", ""),
    removed("turn", "x"),
    *(removed("chunk", key) for key in ("b", "b:", ":0", "b:x", "b:²", "b:9", "b:" + "9" * 5000)),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: repr(bad)[:60])
def test_what_is_malformed_changes_nothing_and_blocks_nobody(bad: object) -> None:
    author = Author("b")
    rows = [said("u", "Hi"), author.content("A"), bad, author.content("B"), author.done()]
    fold = folded(rows)
    assert [one.text for one in fold.messages] == ["Hi", "AB"]
    assert (fold.position, fold.presence, fold.agents, fold.turns, fold.session) == (5, (), (), (), None)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "content"},
        {"type": "content", "delta": 1, "content": []},
        {"type": "thinking", "delta": None},
        {"type": "tool_call"},
        {"type": "tool_call", "toolCall": {"id": 1, "function": {}}},
        {"type": "tool_call", "toolCall": {"id": "c", "function": 1}},
        {"type": "tool_result", "toolCallId": "c"},
        {"type": "tool-input-available", "toolCallId": None},
        {"type": "approval-requested", "toolCallId": "c", "approval": {"id": 1}},
        {"type": "approval-requested", "toolCallId": 1, "approval": {"id": "x"}},
        {"type": "tool-result", "toolCallId": []},
        {"type": "approval-response", "approvalId": "x", "approved": "yes"},
        {"type": "content", "usage": {"promptTokens": "1", "totalTokens": -1, "completionTokens": 10**30}},
        {"type": "what is this"},
    ],
    ids=str,
)
def test_a_malformed_chunk_spoils_no_message(fields: dict[str, Any]) -> None:
    author = Author("a")
    fold = folded([author.content("A"), author.row(**fields), author.content("B"), author.done()])
    [message] = fold.messages
    assert (message.text, message.is_complete) == ("AB", True)
    assert (fold.tool_calls, fold.approvals, fold.statistics.total_tokens) == ((), (), 0)
    json.dumps(fold.to_json())


def test_what_is_nested_a_hundred_times_is_read_and_no_deeper() -> None:
    author = Author("a")
    fold = folded([row("a", nested(100), role="assistant", actor_id="agent"), row("b", nested(101))])
    assert [one.text for one in fold.messages] == ["x"]
    arguments = ["[" * depth + "]" * depth for depth in (100, 101)]
    fold = folded([author.call(f"c{at}", text) for at, text in enumerate(arguments)])
    assert [one.input is None for one in fold.tool_calls] == [False, True]


def test_parts_that_are_no_text_come_back_as_they_were() -> None:
    image: Row = {"type": "image", "source": {"url": "https://example.com/a.png"}}
    message: Row = {"id": "u", "role": "user", "parts": [image, {"type": "text", "content": "What is it?"}]}
    fold = folded([row("u", {"type": "user-message", "message": message})])
    assert as_json(fold.messages[0])["parts"] == [image, {"type": "text", "content": "What is it?"}]


CALLS = st.sampled_from(["c1", "c2", ""])
APPROVALS = st.sampled_from(["ok1", "ok2"])
MESSAGES = st.sampled_from(["m1", "m2", "m3"])
TEXTS = st.text(alphabet="ab\N{SUN}", max_size=3)
CHUNKS = st.one_of(
    st.builds(lambda delta, content: {"type": "content", "delta": delta, "content": content}, TEXTS, TEXTS),
    st.builds(lambda delta: {"type": "thinking", "delta": delta, "content": ""}, TEXTS),
    st.builds(
        lambda call_id, piece, index: {
            "type": "tool_call",
            "toolCall": {"id": call_id, "function": {"name": "f", "arguments": piece}},
            **index,
        },
        CALLS,
        TEXTS,
        st.sampled_from([{}, {"index": 0}, {"index": 1}]),
    ),
    st.builds(
        lambda call_id, text, error: {"type": "tool_result", "toolCallId": call_id, "content": text, "error": error},
        CALLS,
        TEXTS,
        st.sampled_from([None, "", "broken"]),
    ),
    st.builds(lambda call_id: {"type": "tool-input-available", "toolCallId": call_id, "input": {}}, CALLS),
    st.builds(
        lambda call_id, ok: {"type": "approval-requested", "toolCallId": call_id, "approval": {"id": ok}},
        CALLS,
        APPROVALS,
    ),
    st.builds(
        lambda reason: {"type": "done", "finishReason": reason, "usage": {"totalTokens": 3}},
        st.sampled_from(["stop", "tool_calls"]),
    ),
    st.just({"type": "stop"}),
    st.just({"type": "message-start", "turnId": "t1"}),
    st.builds(lambda reason: {"type": "message-end", "reason": reason}, st.sampled_from(["done", "error"])),
)
SOUND_EVENTS = st.one_of(
    st.builds(
        lambda message_id, chunk, seq: row(message_id, chunk, role="assistant", actor_id="agent", seq=seq),
        MESSAGES,
        CHUNKS,
        st.integers(0, 12),
    ),
    st.builds(said, MESSAGES, TEXTS, actor_id=st.sampled_from(["ann", "bob"])),
    st.builds(result, CALLS, TEXTS, message_id=MESSAGES),
    st.builds(answer, APPROVALS, st.booleans(), message_id=MESSAGES),
    st.builds(presence, st.sampled_from(["ann", "agent"])),
    st.builds(agent, st.just("agent"), name=TEXTS),
    st.builds(removed, st.sampled_from(["presence", "agent"]), st.just("agent")),
    st.builds(turn, st.sampled_from(["t1", "t2"]), MESSAGES),
    st.builds(removed, st.just("turn"), st.sampled_from(["t1", "t2"])),
    st.builds(lambda message_id, seq: removed("chunk", f"{message_id}:{seq}"), MESSAGES, st.integers(0, 2)),
    st.just({"type": "session", "key": "s", "value": {"name": "A"}, "headers": {"operation": "upsert"}}),
)
EVENTS = st.one_of(SOUND_EVENTS, st.sampled_from(BAD))


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=40), st.lists(st.integers(0, 7), max_size=8))
def test_batches_and_snapshots_make_no_difference(rows: list[object], sizes: list[int]) -> None:
    whole = folded(rows)
    fold, at = SessionFold(), 0
    for size in (*sizes, len(rows)):
        fold.apply(rows[at : at + size], f"{min(at + size, len(rows)):04d}")
        at += size
        fold = SessionFold.from_json(json.loads(json.dumps(fold.to_json())))
    assert seen(fold) == seen(whole) == seen(folded(rows, sizes))


@settings(max_examples=100, deadline=None)
@given(st.lists(SOUND_EVENTS, max_size=40))
def test_a_session_keeps_its_promises(rows: list[Row]) -> None:
    fold = folded(rows)
    there = {one.id for one in fold.messages}
    awaited = {one.message_id for one in fold.pending_turns if one.message_id not in there}
    writing = {one.id for one in fold.messages if not one.is_complete}
    assert {one.message_id for one in fold.active_generations} == writing | awaited
    assert fold.pending_turns == tuple(one for one in fold.turns if one.is_pending)
    assert writing & {one.message_id for one in fold.turns} <= {one.message_id for one in fold.pending_turns}
    assert not any(fold.is_gone(message_id) for message_id in there)
    assert fold.statistics.message_count == len(there) == len(fold.messages)
    assert fold.statistics.user_message_count == sum(one.role == "user" for one in fold.messages)
    assert [one.start.position for one in fold.messages] == sorted(one.start.position for one in fold.messages)
    for message in fold.messages:
        assert message.start.position < message.end.position <= len(rows)
        parts = {part.id for part in message.parts if isinstance(part, ToolCallPart)}
        assert parts <= {one.id for one in fold.tool_calls if one.message_id == message.id}
    answers: dict[str, bool] = {}
    for one in rows:
        chunk = json.loads(one["value"]["chunk"]) if one["type"] == "chunk" and "value" in one else {}
        if chunk.get("type") == "approval-response":
            answers.setdefault(chunk["approvalId"], chunk["approved"])
    for approval in fold.approvals:
        assert approval.message_id in there
        settled = {None: "pending", True: "approved", False: "denied"}
        # An answer to a message that is gone counts for no other one.
        if not any(fold.is_gone(message_id) for message_id in ("m1", "m2", "m3")):
            assert approval.status == settled[answers.get(approval.id)]


@pytest.mark.parametrize(
    "damaged", [None, [], {}, {"version": 2}, {"version": 3}, {"version": 3, "offset": "1", "position": 1}]
)
def test_a_damaged_snapshot_is_refused(damaged: object) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        SessionFold.from_json(damaged)


def test_what_would_come_is_foreseen_without_changing_what_is() -> None:
    rows = [*recorded_session(), said("u3", "more"), removed("chunk", "u1:0")]
    for at in range(len(rows)):
        fold = folded(rows[:at])
        before = seen(fold)
        assert seen(fold.foreseen(rows[at:])) | {"offset": ""} == seen(folded(rows)) | {"offset": ""}
        assert seen(fold) == before
        assert seen(folded(rows)) == seen(SessionFold.from_json(folded(rows).to_json()))
