"""`streamkeep.adapters.chunks`: recorded answers, the real packages against the demo vendor, and answers by table."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from streamkeep.adapters._rules.ag_ui import messages_of
from streamkeep.adapters.chunks import Events, ai_sdk_chunks, tanstack_chunks
from tests.replay import Trace

TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
FAST = {"Fake-Rate": "0", "Fake-Tokens": "30"}


async def events_of(events: Iterable[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for event in events:
        yield event


def recorded(name: str) -> list[dict[str, Any]]:
    lines = Trace.load(name).body.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


async def ai_sdk(events: Events) -> list[dict[str, Any]]:
    return [chunk async for chunk in ai_sdk_chunks(events)]


async def tanstack(events: Events) -> list[dict[str, Any]]:
    return [chunk async for chunk in tanstack_chunks(events, thread_id="chat", run_id="1")]


def text_of(chunks: list[dict[str, Any]], *kinds: str) -> str:
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] in kinds)


def kinds_of(chunks: list[dict[str, Any]]) -> list[str]:
    """The chunks' types, repeats left out."""
    kinds = [chunk["type"] for chunk in chunks]
    return [kind for before, kind in zip([None, *kinds], kinds, strict=False) if kind != before]


def said(event: dict[str, Any]) -> str:
    """What an event of any vendor adds to the text."""
    if event.get("choices"):
        return str(event["choices"][0]["delta"].get("content") or "")
    delta = event.get("delta", "")
    return str(delta.get("text", "") if isinstance(delta, dict) else delta)


@pytest.mark.parametrize(
    ("name", "reason", "usage"),
    [
        ("chat-short", "length", (18, 48)),
        ("chat-long", "length", None),
        ("openai-responses", "stop", (18, 48)),
        ("anthropic-messages", "length", (5, 48)),
    ],
)
async def test_a_recorded_answer_is_told_whole(name: str, reason: str, usage: tuple[int, int] | None) -> None:
    events = recorded(name)
    text = "".join(said(event) for event in events)
    chunks = await ai_sdk(events_of(events))
    assert kinds_of(chunks) == [
        *("start", "start-step", "text-start", "text-delta", "text-end", "finish-step", "finish"),
    ]
    assert text_of(chunks, "text-delta") == text
    assert chunks[-1]["finishReason"] == reason
    counts: Any = usage and {"inputTokens": usage[0], "outputTokens": usage[1], "totalTokens": sum(usage)}
    assert chunks[-1].get("messageMetadata") == (counts and {"usage": counts})
    told = await tanstack(events_of(events))
    assert kinds_of(told) == [
        *("RUN_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "RUN_FINISHED"),
    ]
    assert text_of(told, "TEXT_MESSAGE_CONTENT") == text
    assert (told[-1]["finishReason"], told[-1].get("usage")) == (reason, counts and [counts])


@pytest.mark.parametrize("name", [name for name in Trace.names() if Trace.load(name).body])
async def test_what_ends_before_its_end_mark_is_an_error_wherever_it_is_cut(name: str) -> None:
    events = recorded(name)
    has_mark = Trace.load(name).is_complete
    for cut in range(0, len(events), 7):
        assert (await ai_sdk(events_of(events[:cut])))[-1]["type"] == "error"
        assert (await tanstack(events_of(events[:cut])))[-1]["type"] == "RUN_ERROR"
    assert (await ai_sdk(events_of(events)))[-1]["type"] == ("finish" if has_mark else "error")


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
@pytest.mark.parametrize("tools", [False, True], ids=["text", "tools"])
async def test_streams_of_the_real_packages(vendor: str, api: str, tools: bool) -> None:
    async with streamed(vendor, api, tools=tools) as stream:
        chunks = await ai_sdk(stream)
    async with streamed(vendor, api, tools=tools) as stream:
        events = await tanstack(stream)
    if not tools:
        assert kinds_of(chunks)[2:5] == ["text-start", "text-delta", "text-end"]
        assert text_of(chunks, "text-delta") == text_of(events, "TEXT_MESSAGE_CONTENT") != ""
        return
    assert kinds_of(chunks)[2:5] == ["tool-input-start", "tool-input-delta", "tool-input-available"]
    ready = next(chunk for chunk in chunks if chunk["type"] == "tool-input-available")
    arguments = "".join(chunk["inputTextDelta"] for chunk in chunks if "inputTextDelta" in chunk)
    assert ready["toolName"] == "weather"
    assert ready["input"] == json.loads(arguments) == json.loads(text_of(events, "TOOL_CALL_ARGS"))
    assert "city" in ready["input"]
    assert (chunks[-1]["finishReason"], events[-1]["finishReason"]) == ("tool-calls", "tool_calls")
    assert chunks[-1]["messageMetadata"]["usage"]["outputTokens"] > 0


async def test_a_failure_in_band_of_a_real_package_is_told(vendor: str) -> None:
    async with streamed(vendor, "responses", Fake_Fault="error@5") as stream:
        chunks = await ai_sdk(stream)
    assert (len(text_of(chunks, "text-delta")) > 0, chunks[-1]["type"]) == (True, "error")


@asynccontextmanager
async def streamed(vendor: str, api: str, *, tools: bool = False, **faults: str) -> AsyncIterator[Any]:
    """A stream of a vendor's own package."""
    question = "weather?" if tools else "Tell me a story"
    options: Any = {
        "api_key": "any",
        "max_retries": 0,
        "default_headers": {**FAST, **{name.replace("_", "-"): fault for name, fault in faults.items()}},
    }
    messages: Any = [{"role": "user", "content": question}]
    if api == "messages":
        wanted: Any = {"tools": [{"name": "weather", "input_schema": TOOL}]} if tools else {}
        async with anthropic.AsyncAnthropic(base_url=vendor, **options) as claude:
            yield await claude.messages.create(model="m", max_tokens=99, messages=messages, stream=True, **wanted)
        return
    function: Any = {"name": "weather", "parameters": TOOL}
    async with openai.AsyncOpenAI(base_url=f"{vendor}/v1", **options) as client:
        if api == "chat":
            wanted = {"tools": [{"type": "function", "function": function}]} if tools else {}
            usage: Any = {"include_usage": True}
            yield await client.chat.completions.create(
                model="m", messages=messages, stream=True, stream_options=usage, **wanted
            )
        else:
            wanted = {"tools": [{"type": "function", **function}]} if tools else {}
            yield await client.responses.create(model="m", input=question, stream=True, **wanted)


def chat(**delta: Any) -> dict[str, Any]:
    return {"id": "a", "choices": [{"index": 0, "delta": delta}]}


CHAT_END = {"id": "a", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


async def test_reasoning_comes_before_text_in_blocks_of_its_own() -> None:
    answers: list[list[dict[str, Any]]] = [
        [chat(reasoning_content="hm"), chat(reasoning_content="m"), chat(content="Yes"), CHAT_END],
        [
            {"type": "response.created", "response": {"id": "a"}},
            *(
                {"type": "response.reasoning_summary_text.delta", "item_id": "r", "summary_index": 0, "delta": piece}
                for piece in ("hm", "m")
            ),
            {"type": "response.output_item.done", "item": {"id": "r", "type": "reasoning"}},
            {"type": "response.output_text.delta", "item_id": "m", "content_index": 0, "delta": "Yes"},
            {"type": "response.completed", "response": {"status": "completed"}},
        ],
        [
            {"type": "message_start", "message": {"id": "a"}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": piece}}
                for piece in ("hm", "m")
            ),
            {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Yes"}},
            {"type": "content_block_stop", "index": 1},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 0}},
            {"type": "message_stop"},
        ],
    ]
    for events in answers:
        chunks = await ai_sdk(events_of(events))
        assert chunks[2:-2] == [
            {"type": "reasoning-start", "id": "0"},
            {"type": "reasoning-delta", "id": "0", "delta": "hm"},
            {"type": "reasoning-delta", "id": "0", "delta": "m"},
            {"type": "reasoning-end", "id": "0"},
            {"type": "text-start", "id": "1"},
            {"type": "text-delta", "id": "1", "delta": "Yes"},
            {"type": "text-end", "id": "1"},
        ]
        assert chunks[-1]["finishReason"] == "stop"
    assert chunks[-1]["messageMetadata"] == {"usage": {"outputTokens": 0}}, "a zero is said, and nothing is made up"
    told = await tanstack(events_of(answers[0]))
    assert [chunk["type"] for chunk in told[1:6]] == [
        *("REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT", "REASONING_MESSAGE_CONTENT"),
        "REASONING_MESSAGE_END",
    ]


async def test_calls_that_overlap_and_arguments_that_are_no_json() -> None:
    def call(index: int, arguments: str, **named: Any) -> dict[str, Any]:
        return chat(tool_calls=[{"index": index, **named, "function": {"name": "f", "arguments": arguments}}])

    events = [call(0, "{", id="a"), call(1, "{}", id="b"), call(0, '"x":1}'), call(2, "{oops", id="c"), CHAT_END]
    chunks = await ai_sdk(events_of(events))
    done = [chunk for chunk in chunks if chunk["type"].startswith("tool-input-") and "input" in chunk]
    assert [(chunk["toolCallId"], chunk["input"]) for chunk in done] == [("a", {"x": 1}), ("b", {}), ("c", "{oops")]
    assert [chunk["type"] for chunk in done] == [*["tool-input-available"] * 2, "tool-input-error"]


def test_messages_are_put_together_whatever_comes_between() -> None:
    named = {"toolCallId": "c", "parentMessageId": "a"}
    chunks: list[Any] = [
        {"type": "TEXT_MESSAGE_START", "messageId": "q", "role": "user"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "q", "delta": "Hi"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a", "delta": "Let"},
        *(
            "noise",
            None,
            7,
            {},
            {"type": "TEXT_MESSAGE_CONTENT"},
            {"type": "TOOL_CALL_ARGS", "toolCallId": "?", "delta": ""},
        ),
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "a", "delta": " me"},
        {"type": "TOOL_CALL_START", "toolCallName": "f", **named},
        {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "{}"},
        {"type": "TOOL_CALL_END", "toolCallId": "c"},
    ]
    called = {"type": "tool-call", "id": "c", "name": "f", "arguments": "{}", "state": "input-complete"}
    assert messages_of(chunks) == [
        {"id": "q", "role": "user", "parts": [{"type": "text", "content": "Hi"}]},
        {"id": "a", "role": "assistant", "parts": [{"type": "text", "content": "Let me"}, called]},
    ]


@pytest.mark.parametrize(
    "failure",
    [
        {"error": {"message": "overloaded"}},
        {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}},
        {"type": "error", "message": "overloaded"},
        {"type": "response.failed", "response": {"error": {"message": "overloaded"}}},
    ],
)
async def test_nothing_follows_a_failure(failure: dict[str, Any]) -> None:
    begun = (
        {"type": "response.created", "response": {}} if failure.get("type") == "response.failed" else chat(content="a")
    )
    chunks = await ai_sdk(events_of([begun, failure, CHAT_END]))
    assert chunks[-1] == {"type": "error", "errorText": "overloaded"}
    assert (await tanstack(events_of([begun, failure, CHAT_END])))[-1]["message"] == "overloaded"
