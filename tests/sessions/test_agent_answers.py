"""An agent's answer: the same chunks whatever the format, the framing and the cutting, and nothing that is not the agent's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkeep.proxy.vendor_formats import AnthropicMessages, Dialect, Marks, OpenAIChat, OpenAIResponses, make_reply
from streamkeep.sessions import SessionFold
from streamkeep.sessions.agents import AgentAnswer, AgentFormat, AnswerEnd
from streamkeep.sessions.agents.framing import MAX_EVENT_BYTES
from tests.replay import Trace
from tests.sessions.session_rows import row
from tests.upstream import upstream, whole

DONE = AnswerEnd("done")
BROKEN = AnswerEnd("error", "owner_lost", "the process died")
TOOL = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}

Chunk = dict[str, Any]


def chunks(
    body: bytes, *, end: AnswerEnd = DONE, format: AgentFormat | None = None, step: int | None = None
) -> list[Chunk]:
    answer, step = AgentAnswer(format), step or max(len(body), 1)
    written = [text for start in range(0, len(body), step) for text in answer.feed(body[start : start + step])]
    return [json.loads(text) for text in (*written, *answer.end(end))]


def stream(*events: object, end: str = "\n\n") -> bytes:
    return "".join(f"data: {one if isinstance(one, str) else json.dumps(one)}{end}" for one in events).encode()


def folded(written: Iterable[Chunk]) -> SessionFold:
    fold = SessionFold()
    fold.apply([row("a", one, role="assistant", actor_id="agent", seq=seq) for seq, one in enumerate(written)], "1")
    return fold


def said(written: Iterable[Chunk]) -> str:
    return folded(written).messages[0].text


def spoken(dialect: Dialect, tokens: int, marks: Marks = Marks.ALL) -> bytes:
    """A vendor's answer as it stands in the body."""
    events = [*dialect.opening(), *(dialect.token(index) for index in range(tokens)), *dialect.ending(marks)]
    return "".join(
        f"{f'event: {one.name}' + chr(10) if one.name else ''}data: {one.data}\n\n" for one in events
    ).encode()


def reply(*, calls_tool: bool) -> Any:
    tools = {"weather": TOOL} if calls_tool else None
    question = "What is the weather? 東京 🌊"
    return make_reply(model="m", prompt=question, question=question, seed="s", tokens=20, tools=tools)


# What vendors' own packages make of the same bytes

Seen = tuple[str, str | None, list[tuple[str, str, Any]], tuple[int, int]]


async def by_chat_sdk(body: bytes) -> Seen:
    async with upstream(whole(body)) as server, openai.AsyncOpenAI(base_url=server.url, api_key="k") as client:
        ask: Any = {"model": "m", "messages": []}
        try:
            async with client.chat.completions.stream(**ask) as events:
                made: Any = await events.get_final_completion()
        except openai.LengthFinishReasonError as exc:
            made = exc.completion
    choice, usage = made.choices[0], made.usage
    calls = [(one.id, one.function.name, json.loads(one.function.arguments)) for one in choice.message.tool_calls or ()]
    counted = (0, 0) if usage is None else (usage.prompt_tokens, usage.completion_tokens)
    return choice.message.content or "", choice.finish_reason, calls, counted


async def by_responses_sdk(body: bytes) -> Seen:
    async with upstream(whole(body)) as server, openai.AsyncOpenAI(base_url=server.url, api_key="k") as client:
        ask: Any = {"model": "m", "input": "x", "stream": True}
        events = [event async for event in await client.responses.create(**ask)]
    made = events[-1].response
    calls = [(one.call_id, one.name, json.loads(one.arguments)) for one in made.output if one.type == "function_call"]
    assert made.usage is not None
    return (
        made.output_text,
        "tool_calls" if calls else "stop",
        calls,
        (made.usage.input_tokens, made.usage.output_tokens),
    )


async def by_anthropic_sdk(body: bytes) -> Seen:
    async with upstream(whole(body)) as server, anthropic.AsyncAnthropic(base_url=server.url, api_key="k") as client:
        ask: Any = {"model": "m", "max_tokens": 9, "messages": []}
        async with client.messages.stream(**ask) as events:
            made = await events.get_final_message()
    text = "".join(block.text for block in made.content if block.type == "text")
    calls = [(block.id, block.name, block.input) for block in made.content if block.type == "tool_use"]
    reasons = {"max_tokens": "length", "end_turn": "stop", "tool_use": "tool_calls"}
    return text, reasons[str(made.stop_reason)], calls, (made.usage.input_tokens, made.usage.output_tokens)


def by_us(body: bytes) -> Seen:
    written = chunks(body)
    fold = folded(written)
    calls = [(call.id, call.name, call.input) for call in fold.tool_calls]
    assert all(call.state == "executing" for call in fold.tool_calls)
    assert written[-1] == {"type": "message-end", "reason": "done"}
    stats = fold.statistics
    return fold.messages[0].text, fold.messages[0].finish_reason, calls, (stats.prompt_tokens, stats.completion_tokens)


@pytest.mark.parametrize("name", ["chat-short", "chat-long"])
async def test_recorded_chat_completions_are_what_the_vendors_package_makes_of_them(name: str) -> None:
    body = Trace.load(name).body
    assert by_us(body) == await by_chat_sdk(body)


async def test_a_recorded_response_is_what_the_vendors_package_makes_of_it() -> None:
    body = Trace.load("openai-responses").body
    assert by_us(body) == await by_responses_sdk(body)


async def test_recorded_messages_are_what_the_vendors_package_makes_of_them() -> None:
    body = Trace.load("anthropic-messages").body
    assert by_us(body) == await by_anthropic_sdk(body)


async def test_tool_calls_are_what_the_vendors_packages_make_of_them() -> None:
    made = reply(calls_tool=True)
    tokens = len(made.tokens)
    chat = spoken(OpenAIChat(made, include_usage=True), tokens)
    assert by_us(chat) == await by_chat_sdk(chat)
    responses = spoken(OpenAIResponses(made), tokens)
    assert by_us(responses) == await by_responses_sdk(responses)
    messages = spoken(AnthropicMessages(made), tokens)
    assert by_us(messages) == await by_anthropic_sdk(messages)
    assert len(by_us(chat)[2]) == 1


@pytest.mark.parametrize("name", ["chat-upstream-killed", "chat-client-abort"])
def test_a_recorded_answer_that_broke_off_is_an_error(name: str) -> None:
    written = chunks(Trace.load(name).body)
    assert written[-2]["error"]["code"] == "truncated"
    assert written[-1] == {"type": "message-end", "reason": "error"}
    assert folded(written).messages[0].ended_by == "error"


# Framing


def texts(*events: str) -> bytes:
    return stream(*({"type": "text-delta", "id": "1", "delta": one} for one in events), {"type": "finish"})


ANSWERS = [
    Trace.load("chat-short").body,
    Trace.load("anthropic-messages").body,
    spoken(OpenAIResponses(reply(calls_tool=True)), len(reply(calls_tool=True).tokens)),
    texts("one ", "two 水 🌊", "", "three"),
    texts("one ", "two").replace(b"\n", b"\r\n"),
    b"\xef\xbb\xbf" + texts("one ", "two").replace(b"\n", b"\r").replace(b"data: ", b": comment\rid: 7\rdata:"),
    b'data: {"type":\ndata:"content",\ndata: "delta": "a"}\n\ndata: {"type":"done"}',
    b'\n\n{"type":"content","delta":"a"}\r\n\n{"type":"content","delta":"b\xc3\xa4"}\n{"type":"done"}',
    json.dumps([{"type": "content", "delta": "a"}, {"type": "done"}], indent=2).encode(),
    json.dumps(OpenAIChat(reply(calls_tool=True)).whole(), indent=1).encode(),
    b'event: error\ndata: "so, no"\n\n',
    b"<html>\n\n<body>no</body>",
    b"",
]


@pytest.mark.parametrize("body", ANSWERS)
def test_the_cutting_of_bytes_changes_nothing(body: bytes) -> None:
    expected = chunks(body)
    for step in (1, 2, 3, 7, 64, 1000):
        assert chunks(body, step=step) == expected


@given(
    st.binary(max_size=60).map(lambda noise: b'data: {"type":"content","delta":"x"}\n\n' + noise), st.integers(1, 70)
)
@settings(max_examples=200, deadline=None)
def test_noise_raises_nothing_and_is_cut_alike(body: bytes, step: int) -> None:
    expected = chunks(body)
    assert expected[-1]["type"] == "message-end"
    assert chunks(body, step=step) == expected


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (texts("a", "b"), "ab"),
        (texts("a", "b").replace(b"data: ", b"data:"), "ab"),
        (texts("a", "b").replace(b"\n\n", b"\n"), "ab"),
        (b": hello\n\nretry: 5\n" + texts("a") + b"data: [DONE]\n\n", "a"),
        (b'event: text-delta\ndata: {"id":"1","delta":"a"}\n\nevent: finish\ndata: {}\n\n', "a"),
        (b'{"type":"content","delta":"a"}\n{"type":"done"}\n', "a"),
        (b'data: {"type":"content","delta":"a"}\n\ndata: nonsense\n\ndata: [1]\n\ndata: {"type":"done"}', "a"),
        (
            stream({"type": "content", "delta": "\ud83d"}, {"type": "content", "delta": "\ude00!"}, {"type": "done"}),
            "😀!",
        ),
    ],
)
def test_what_frames_events_does_not_matter(body: bytes, text: str) -> None:
    written = chunks(body)
    assert (said(written), written[-1]["reason"]) == (text, "done")


@pytest.mark.parametrize("marks", [Marks.NO_DONE, Marks.NO_FINISH_REASON])
def test_lax_models_may_leave_one_of_two_end_marks_out(marks: Marks) -> None:
    assert chunks(spoken(OpenAIChat(reply(calls_tool=False)), 20, marks))[-1]["reason"] == "done"


@pytest.mark.parametrize(
    "whole_answer",
    [OpenAIChat, OpenAIResponses, AnthropicMessages],
)
@pytest.mark.parametrize("calls_tool", [False, True])
def test_an_answer_in_one_piece_says_what_the_streamed_one_does(whole_answer: Any, calls_tool: bool) -> None:
    made = reply(calls_tool=calls_tool)
    dialect = whole_answer(made)
    in_pieces = folded(chunks(spoken(dialect, len(made.tokens))))
    at_once = folded(chunks(json.dumps(dialect.whole()).encode()))
    assert at_once.messages[0].text == in_pieces.messages[0].text
    assert at_once.messages[0].finish_reason == in_pieces.messages[0].finish_reason
    assert [(one.id, one.name, one.input) for one in at_once.tool_calls] == [
        (one.id, one.name, one.input) for one in in_pieces.tool_calls
    ]


# Calls that a vendor does not tell apart


def chat_calls(*deltas: list[dict[str, Any]]) -> bytes:
    """Chunks of a chat completion, each with some pieces of calls: `name`, `text`, and `id` and `index` where they are told."""
    events: list[object] = []
    for pieces in deltas:
        told = [
            {
                **{key: piece[key] for key in ("id", "index") if key in piece},
                "function": {
                    "arguments": piece.get("text", ""),
                    **({"name": piece["name"]} if "name" in piece else {}),
                },
            }
            for piece in pieces
        ]
        events.append({"choices": [{"index": 0, "delta": {"tool_calls": told}}]})
    return stream(*events, {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}, "[DONE]")


def responses_calls(*ids: tuple[str, str]) -> bytes:
    """A response with calls of these item ids and call ids, which overlap."""
    items = [
        {"id": item, "type": "function_call", "call_id": call, "name": name, "arguments": ""}
        for (item, call), name in zip(ids, "abc", strict=False)
    ]
    begun = [{"type": "response.output_item.added", "output_index": at, "item": one} for at, one in enumerate(items)]
    said = [
        {
            "type": "response.function_call_arguments.delta",
            "output_index": at,
            "item_id": one["id"],
            "delta": f'{{"n":{at}}}',
        }
        for at, one in enumerate(items)
    ]
    ended = [{"type": "response.output_item.done", "output_index": at, "item": one} for at, one in enumerate(items)]
    return stream(*begun, *said, *ended, {"type": "response.completed", "response": {"status": "completed"}})


def message_calls(*ids: str) -> bytes:
    blocks: list[object] = []
    for at, (id, name) in enumerate(zip(ids, "abc", strict=False)):
        block = {"type": "tool_use", "id": id, "name": name, "input": {}}
        blocks.append({"type": "content_block_start", "index": at, "content_block": block})
    for at in range(len(ids)):
        delta = {"type": "input_json_delta", "partial_json": f'{{"n":{at}}}'}
        blocks.append({"type": "content_block_delta", "index": at, "delta": delta})
        blocks.append({"type": "content_block_stop", "index": at})
    ended = [{"type": "message_delta", "delta": {"stop_reason": "tool_use"}}, {"type": "message_stop"}]
    return stream({"type": "message_start", "message": {"id": "m"}}, *blocks, *ended)


A, B = {"name": "a", "text": '{"n":0}'}, {"name": "b", "text": '{"n":1}'}
UNNAMED, TWICE = ["call-1", "call-2"], ["x", "x-1"]


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (chat_calls([{**A, "id": "", "index": 0}, {**B, "id": "", "index": 1}]), UNNAMED),
        (chat_calls([{**A, "index": 0}], [{**B, "index": 1}]), UNNAMED),
        (chat_calls([{**A, "id": "x", "index": 0}], [{**B, "id": "x", "index": 1}]), TWICE),
        (chat_calls([{**A, "id": "x", "index": 0}], [{**B, "id": "y", "index": 0}]), ["x", "y"]),
        (chat_calls([{**A, "id": ""}, {**B, "id": ""}]), UNNAMED),
        (chat_calls([{**A, "id": "x"}, {**B, "id": "x"}]), TWICE),
        (chat_calls([{**A, "id": ""}], [{**B, "id": ""}]), UNNAMED),
        (chat_calls([A], [B]), UNNAMED),
        (chat_calls([{**A, "id": "x"}], [{**B, "id": "y"}]), ["x", "y"]),
        (
            # Pieces of both by turns, by their index alone.
            chat_calls(
                [{"id": "", "index": 0, "name": "a", "text": '{"n'}],
                [{"id": "", "index": 1, "name": "b", "text": '{"n"'}],
                [{"id": "", "index": 0, "text": '":0}'}],
                [{"index": 1, "text": ":1}"}],
            ),
            UNNAMED,
        ),
        (
            # An id that is new with each piece, and a name that each piece repeats.
            chat_calls(
                [{"id": "x", "index": 0, "name": "a", "text": '{"n"'}, {"id": "y", "index": 1, "name": "b"}],
                [{"id": "z", "index": 0, "text": ":0}"}, {"index": 1, "name": "b", "text": '{"n":1}'}],
            ),
            ["x", "y"],
        ),
        (
            # Both at once.
            chat_calls(
                [{"id": "x", "index": 0, "name": "a", "text": '{"n"'}, {"id": "y", "index": 1, "name": "b"}],
                [{"id": "z", "index": 0, "name": "a", "text": ":0}"}, {**B, "id": "w", "index": 1}],
            ),
            ["x", "y"],
        ),
        (responses_calls(("i", ""), ("j", "")), UNNAMED),
        (responses_calls(("i", "x"), ("i", "x")), TWICE),
        (message_calls("", ""), UNNAMED),
        (message_calls("x", "x"), TWICE),
        (
            json.dumps(
                {
                    "choices": [
                        {
                            "message": {
                                "tool_calls": [
                                    {"function": {"name": one["name"], "arguments": one["text"]}} for one in (A, B)
                                ]
                            }
                        },
                    ]
                }
            ).encode(),
            UNNAMED,
        ),
    ],
)
def test_calls_that_a_vendor_does_not_tell_apart_stay_apart(body: bytes, ids: list[str]) -> None:
    fold = folded(chunks(body))
    assert [(one.id, one.name, one.input, one.state) for one in fold.tool_calls] == [
        (ids[0], "a", {"n": 0}, "executing"),
        (ids[1], "b", {"n": 1}, "executing"),
    ]


# Agents that stream to front ends


def types(written: Iterable[Chunk]) -> list[str]:
    return [one["type"] for one in written]


def test_ui_messages_with_thoughts_tools_and_an_approval() -> None:
    call = {"toolCallId": "c1", "toolName": "delete"}
    written = chunks(
        stream(
            {"type": "start", "messageId": "m"},
            {"type": "reasoning-delta", "id": "0", "delta": "hm"},
            {"type": "text-delta", "id": "1", "delta": "I"},
            {"type": "tool-input-start", **call},
            {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": '{"a":'},
            {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": "1}"},
            {"type": "tool-input-available", **call, "input": {"a": 1}},
            {"type": "tool-approval-request", "toolCallId": "c1", "approvalId": "ok"},
            {"type": "tool-input-available", "toolCallId": "c2", "toolName": "look", "input": {"b": 2}},
            {"type": "tool-output-available", "toolCallId": "c2", "output": {"seen": True}},
            {"type": "tool-input-available", "toolCallId": "c3", "toolName": "locate", "input": {}},
            {"type": "text-delta", "id": "2", "delta": "I think"},
            {"type": "data-weather", "data": {}},
            {"type": "finish", "messageMetadata": {"usage": {"inputTokens": 3, "outputTokens": 4}}},
        )
    )
    fold = folded(written)
    states = [(one.id, one.name, one.input, one.state) for one in fold.tool_calls]
    assert states == [
        ("c1", "delete", {"a": 1}, "approval-requested"),
        ("c2", "look", {"b": 2}, "complete"),
        ("c3", "locate", {}, "executing"),
    ]
    assert [one.input for one in fold.approvals] == [{"a": 1}]
    assert [one.type for one in fold.messages[0].parts] == [
        *("thinking", "text", "tool-call", "tool-call", "tool-result", "tool-call", "text"),
    ]
    assert fold.messages[0].text == "II think", "text behind a call stands alone, even where it begins as before"
    assert fold.messages[0].finish_reason == "tool_calls"
    assert fold.statistics.total_tokens == 7


def test_chunks_of_sessions_are_handed_on_without_what_they_repeat() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    about = {"id": "x", "model": "m", "timestamp": 1}
    sent: list[Chunk] = [
        {"type": "content", **about, "delta": "a", "content": "a"},
        {"type": "content", **about, "delta": "b", "content": "ab"},
        {"type": "tool_call", **about, "index": 0, "toolCall": call},
        {"type": "done", **about, "finishReason": "tool_calls", "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        {"type": "tool_result", **about, "toolCallId": "c", "content": "21"},
        {"type": "content", **about, "delta": "c", "content": "c"},
        {"type": "content", **about, "delta": "d", "content": "cd"},
        {"type": "done", **about, "finishReason": "stop"},
        {"type": "content", **about, "delta": "too late", "content": "too late"},
    ]
    written = chunks(stream(*sent))
    assert written[:4] == [
        {"type": "content", "delta": "a", "content": "a"},
        {"type": "content", "delta": "b"},
        {"type": "tool_call", "index": 0, "toolCall": call},
        {
            "type": "done",
            "finishReason": "tool_calls",
            "usage": {"promptTokens": 1, "completionTokens": 2, "totalTokens": 3},
        },
    ]
    assert types(written)[4:] == ["tool_result", "content", "content", "done", "message-end"]
    assert [part.type for part in folded(written).messages[0].parts] == ["text", "tool-call", "tool-result", "text"]
    assert said(written) == "abcd"


def test_ag_ui_events_of_two_runs() -> None:
    asked = {"toolCallId": "c2", "toolName": "pay", "input": {"x": 1}, "approval": {"id": "ok", "needsApproval": True}}
    written = chunks(
        stream(
            {"type": "RUN_STARTED", "runId": "r", "threadId": "t"},
            {"type": "STEP_FINISHED", "delta": "hm"},
            {"type": "TEXT_MESSAGE_START", "messageId": "m"},
            {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "a"},
            {"type": "TOOL_CALL_START", "toolCallId": "c1", "toolCallName": "look"},
            {"type": "TOOL_CALL_ARGS", "toolCallId": "c1", "delta": "{}"},
            {"type": "TOOL_CALL_END", "toolCallId": "c1"},
            {"type": "RUN_FINISHED", "runId": "r", "finishReason": "tool_calls"},
            {"type": "TOOL_CALL_RESULT", "toolCallId": "c1", "content": "seen"},
            {"type": "RUN_STARTED", "runId": "s", "threadId": "t"},
            {"type": "TEXT_MESSAGE_CONTENT", "messageId": "n", "delta": "b"},
            {"type": "CUSTOM", "name": "approval-requested", "value": asked},
            {"type": "RUN_FINISHED", "runId": "s", "usage": [{"inputTokens": 1, "outputTokens": 2}]},
        )
    )
    fold = folded(written)
    assert [(one.id, one.state, one.input) for one in fold.tool_calls] == [
        ("c1", "complete", {}),
        ("c2", "approval-requested", {"x": 1}),
    ]
    assert (fold.messages[0].text, fold.messages[0].finish_reason) == ("ab", "tool_calls")
    assert fold.statistics.total_tokens == 3


FOREIGN: list[Chunk] = [
    {"type": "approval-response", "approvalId": "ok", "approved": True},
    {"type": "tool-result", "toolCallId": "c", "output": 1},
    {"type": "user-message", "message": {"id": "u", "role": "user", "parts": []}},
    {"type": "message-start", "agentId": "other"},
    {"type": "message-end"},
    {"type": "stop"},
]


def test_agents_write_in_nobody_elses_name() -> None:
    written = chunks(stream({"type": "content", "delta": "a"}, *FOREIGN, {"type": "done"}))
    assert types(written) == ["content", "done", "message-end"]


# Ends


@pytest.mark.parametrize(
    ("body", "end", "code"),
    [
        (b"", DONE, "unknown_format"),
        (b"<html></html>", DONE, "unknown_format"),
        (stream({"type": "text-delta", "delta": "a"}), DONE, "truncated"),
        (stream({"type": "content", "delta": "a"}), DONE, "truncated"),
        (stream({"type": "RUN_STARTED"}), DONE, "truncated"),
        (stream({"type": "content", "delta": "a"}), BROKEN, "owner_lost"),
        (stream({"type": "done", "finishReason": "tool_calls"}), BROKEN, "owner_lost"),
        (stream({"type": "start"}, {"type": "error", "errorText": "no"}), DONE, "agent_failed"),
        (stream({"error": {"message": "no", "code": "quota"}}), DONE, "quota"),
        (stream({"type": "RUN_STARTED"}, {"type": "RUN_ERROR", "message": "no", "code": "E1"}), DONE, "E1"),
        (b'{"error": {"message": "no", "type": "overloaded"}}', DONE, "overloaded"),
        (b"data: " + b"x" * (MAX_EVENT_BYTES + 1) + b"\n\n", DONE, "too_large"),
        (stream({"type": "content", "delta": "a"}) + b'data: {"a":1}\n' * (MAX_EVENT_BYTES // 4), DONE, "too_large"),
    ],
)
def test_what_does_not_end_as_its_format_says_is_an_error(body: bytes, end: AnswerEnd, code: str) -> None:
    written = chunks(body, end=end)
    assert written[-2]["type"] == "error"
    assert written[-2]["error"]["code"] == code
    assert written[-1] == {"type": "message-end", "reason": "error"}


def test_what_was_whole_before_it_broke_off_is_whole() -> None:
    for body in (texts("a"), Trace.load("anthropic-messages").body, Trace.load("chat-short").body):
        assert chunks(body, end=BROKEN)[-1]["reason"] == "done"


def test_what_was_stopped_says_so() -> None:
    written = chunks(stream({"type": "text-delta", "delta": "a"}), end=AnswerEnd("stop"))
    assert written[1:] == [{"type": "stop", "reason": "aborted"}, {"type": "message-end", "reason": "stop"}]


@pytest.mark.parametrize(
    ("events", "is_last_word"),
    [
        ([{"type": "content", "delta": "a"}, {"type": "done"}], True),
        ([{"type": "content", "delta": "a"}], False),
        ([{"type": "tool-input-available", "toolCallId": "c", "toolName": "f"}, {"type": "finish"}], False),
        (
            [
                {"type": "tool-input-available", "toolCallId": "c", "toolName": "f"},
                {"type": "tool-output-available", "toolCallId": "c", "output": 1},
                {"type": "finish"},
            ],
            True,
        ),
    ],
)
def test_an_answer_that_waits_for_somebody_or_broke_off_is_no_last_word(
    events: list[Chunk], is_last_word: bool
) -> None:
    answer = AgentAnswer()
    answer.feed(stream({"type": "start"}, *events) if events[0]["type"] != "content" else stream(*events))
    answer.end(DONE)
    assert answer.is_last_word is is_last_word


def test_what_ends_a_message_comes_with_the_end_of_its_answer() -> None:
    answer = AgentAnswer()
    answer.feed(stream({"type": "content", "delta": "x"}))
    assert answer.feed(stream({"type": "done", "finishReason": "stop"})) == []
    assert [json.loads(chunk)["type"] for chunk in answer.end(DONE)] == ["done", "message-end"]


def test_an_answer_has_a_largest_size() -> None:
    piece, answer = stream({"type": "content", "delta": "x" * 1_000_000}), AgentAnswer()
    count = 0
    while not answer.is_too_large:
        count += len(answer.feed(piece))
        assert count < 20
    assert answer.feed(piece) == []
    assert len(answer.end(DONE)) == 2


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 70 + "]" * 70, "1e999", "9" * 400, "NaN"])
def test_no_value_is_handed_on_that_others_cannot_read(text: str) -> None:
    odd = f'{{"type":"tool-input-available","toolCallId":"c","toolName":"f","input":{text}}}'
    written = chunks(stream({"type": "content", "delta": "a"}, odd, {"type": "done"}))
    assert types(written) == ["content", "done", "message-end"]


def test_a_format_that_is_named_is_the_only_one() -> None:
    assert chunks(texts("a"), format="openai")[-2]["error"]["code"] == "unknown_format"
    assert said(chunks(texts("a"), format="ai-sdk")) == "a"
