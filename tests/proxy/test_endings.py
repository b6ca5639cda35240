"""The recognisers of end marks: by table, on recorded streams cut after every event, and split at every byte."""

from __future__ import annotations

import itertools
import json
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamkeep.proxy.rules.endings import FINAL, PARTIAL, Dialect, EndingObserver, Observation
from streamkeep.proxy.vendor_formats import (
    AnthropicMessages,
    Marks,
    OpenAIChat,
    OpenAICompletion,
    OpenAIResponses,
    make_reply,
)
from streamkeep.proxy.vendor_formats import (
    Dialect as VendorDialect,
)
from streamkeep.storage import Usage
from tests.replay import Trace

SSE = "text/event-stream; charset=utf-8"

CHAT = '{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}'
CHAT_STOP = '{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
TEXT = '{"object":"text_completion","choices":[{"index":0,"text":"x","finish_reason":null}]}'
RESPONSE = '{"type":"response.output_text.delta","delta":"x"}'
MESSAGE_START = '{"type":"message_start","message":{"usage":{"input_tokens":0,"output_tokens":1}}}'
BLOCK = '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}'
PART = '{"type":"text-delta","id":"1","delta":"x"}'
CANDIDATE = '{"candidates":[{"content":{"parts":[{"text":"x"}]}}],"usageMetadata":{"promptTokenCount":4}}'


def observe(chunks: Iterable[bytes], content_type: str | None = SSE, *, batch_bytes: int = 8192) -> Observation:
    observer = EndingObserver(content_type, batch_bytes=batch_bytes)
    for chunk in chunks:
        observer.feed(chunk)
    return observer.finish()


def stream(*data: str) -> bytes:
    return "".join(f"data: {item}\n\n" for item in data).encode()


def events(body: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]


MODEL = "gemma-3-270m"
WHOLE = {
    "chat-short": Observation(Dialect.OPENAI_CHAT, True, None, Usage(18, 48, FINAL), MODEL, ("length",)),
    "chat-long": Observation(Dialect.OPENAI_CHAT, True, model=MODEL, finish_reasons=("length",)),
    "chat-client-abort": Observation(Dialect.OPENAI_CHAT, False, model=MODEL),
    "chat-upstream-killed": Observation(Dialect.OPENAI_CHAT, False, model=MODEL),
    "anthropic-messages": Observation(
        Dialect.ANTHROPIC_MESSAGES, True, None, Usage(5, 48, FINAL), MODEL, ("max_tokens",)
    ),
    "openai-responses": Observation(Dialect.OPENAI_RESPONSES, True, None, Usage(18, 48, FINAL), MODEL, ("completed",)),
}
END_MARKS = {"chat-short": b'"finish_reason":"', "anthropic-messages": b"message_stop"}
END_MARKS |= {"chat-long": END_MARKS["chat-short"], "openai-responses": b"response.completed"}


@pytest.mark.parametrize("name", Trace.names())
def test_recorded_stream_is_recognised(name: str) -> None:
    assert observe(events(Trace.load(name).body)) == WHOLE[name]


@pytest.mark.parametrize("name", END_MARKS)
def test_recorded_stream_cut_after_any_event_has_ended_only_after_its_mark(name: str) -> None:
    pieces = events(Trace.load(name).body)
    mark = next(index for index, piece in enumerate(pieces) if END_MARKS[name] in piece)
    for count in range(len(pieces)):
        seen = observe(pieces[:count])
        assert seen.ended is (None if count == 0 else count > mark), count
        assert seen.failed is None


def test_cut_anthropic_stream_has_partial_usage() -> None:
    pieces = events(Trace.load("anthropic-messages").body)
    assert observe(pieces[:10]).usage == Usage(5, 0, PARTIAL)


def shortened(name: str) -> bytes:
    pieces = events(Trace.load(name).body)
    return b"".join(pieces[:3] + pieces[-5:])


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("name", ["chat-short", "anthropic-messages", "openai-responses"])
def test_split_at_any_byte_changes_nothing(name: str, line_end: bytes) -> None:
    body = b": a comment\nretry: 10\n\n" + shortened(name)
    body = body.replace(b"\n", line_end)
    for batch_bytes in (300, 8192):
        for index in range(len(body) + 1):
            assert observe([body[:index], body[index:]], batch_bytes=batch_bytes) == WHOLE[name], index
    assert observe((body[i : i + 1] for i in range(len(body))), batch_bytes=300) == WHOLE[name]


@pytest.mark.parametrize("name", ["chat-short", "anthropic-messages", "openai-responses"])
def test_cut_at_any_byte_never_ends_early(name: str) -> None:
    body = shortened(name)
    mark = body.index(END_MARKS[name])
    for index in range(mark):
        assert observe([body[:index]], batch_bytes=200).ended in (False, None), index


TABLE = [
    # OpenAI chat: any finish reason or [DONE], in any order, with usage before, between or after
    ("chat, both marks", [CHAT, CHAT_STOP, "[DONE]"], Dialect.OPENAI_CHAT, True, None),
    ("chat, no [DONE]", [CHAT, CHAT_STOP], Dialect.OPENAI_CHAT, True, None),
    ("chat, only [DONE]", [CHAT, "[DONE]"], Dialect.OPENAI_CHAT, True, None),
    ("chat, no mark", [CHAT, CHAT], Dialect.OPENAI_CHAT, False, None),
    ("chat, empty reason", [CHAT, CHAT_STOP.replace("stop", "")], Dialect.OPENAI_CHAT, False, None),
    ("chat, spaced", [CHAT, CHAT_STOP.replace(":", ": ")], Dialect.OPENAI_CHAT, True, None),
    ("chat, no object", [CHAT.replace("object", "o"), CHAT_STOP], Dialect.OPENAI_CHAT, True, None),
    ("chat, usage first", ['{"choices":[]}', CHAT, CHAT_STOP], Dialect.OPENAI_CHAT, True, None),
    ("chat, said in text", [CHAT.replace('"x"', r'"\"finish_reason\":\"stop\""')], Dialect.OPENAI_CHAT, False, None),
    ("chat, error", [CHAT, '{"error":{"message":"busy"}}', "[DONE]"], Dialect.OPENAI_CHAT, True, "busy"),
    ("chat, error as text", [CHAT, '{"error":"busy"}'], Dialect.OPENAI_CHAT, False, "busy"),
    ("chat, null error", [CHAT, '{"error":null,"choices":[]}', "[DONE]"], Dialect.OPENAI_CHAT, True, None),
    ("error first", ['{"error":{"message":"busy","code":503}}'], None, None, "busy"),
    ("completion", [TEXT, TEXT.replace("null", '"length"')], Dialect.OPENAI_COMPLETION, True, None),
    ("completion, cut", [TEXT], Dialect.OPENAI_COMPLETION, False, None),
    # Responses
    ("responses, cut", [RESPONSE], Dialect.OPENAI_RESPONSES, False, None),
    ("responses, whole", [RESPONSE, '{"type":"response.completed"}'], Dialect.OPENAI_RESPONSES, True, None),
    ("responses, short", [RESPONSE, '{"type":"response.incomplete"}'], Dialect.OPENAI_RESPONSES, True, None),
    (
        "responses, failed",
        [RESPONSE, '{"type":"response.failed","response":{"error":{"code":"x","message":"broke"}}}'],
        Dialect.OPENAI_RESPONSES,
        False,
        "broke",
    ),
    ("responses, error", [RESPONSE, '{"type":"error","message":"broke"}'], Dialect.OPENAI_RESPONSES, False, "broke"),
    # Anthropic
    ("messages, cut", [MESSAGE_START, BLOCK], Dialect.ANTHROPIC_MESSAGES, False, None),
    ("messages, whole", [MESSAGE_START, BLOCK, '{"type":"message_stop"}'], Dialect.ANTHROPIC_MESSAGES, True, None),
    (
        "messages, error",
        [MESSAGE_START, '{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'],
        Dialect.ANTHROPIC_MESSAGES,
        False,
        "Overloaded",
    ),
    ("messages, error first", ['{"type":"error","error":{"type":"x","message":"Busy"}}'], None, None, "Busy"),
    ("messages, ping alone", ['{"type":"ping"}'], None, None, None),
    # AI SDK
    ("parts, whole", [PART, '{"type":"finish"}', "[DONE]"], Dialect.AI_SDK, True, None),
    ("parts, no [DONE]", [PART, '{"type":"finish"}'], Dialect.AI_SDK, True, None),
    ("parts, cut", ['{"type":"start","messageId":"m"}', PART], Dialect.AI_SDK, False, None),
    ("parts, error", [PART, '{"type":"error","errorText":"broke"}', "[DONE]"], Dialect.AI_SDK, True, "broke"),
    ("parts, abort", [PART, '{"type":"abort"}'], Dialect.AI_SDK, False, "abort"),
    # Gemini
    ("candidates, cut", [CANDIDATE], Dialect.GEMINI, False, None),
    ("candidates, whole", [CANDIDATE, '{"candidates":[{"finishReason":"STOP"}]}'], Dialect.GEMINI, True, None),
    ("candidates, blocked", ['{"promptFeedback":{"blockReason":"S"},"usageMetadata":{}}'], Dialect.GEMINI, True, None),
    ("candidates, error", [CANDIDATE, '{"error":{"code":503,"message":"busy"}}'], Dialect.GEMINI, False, "busy"),
    # What nobody knows
    ("text", ["hello", "world"], None, None, None),
    ("numbers", ["1", "[2]", "null", '"three"'], None, None, None),
    ("other JSON", ['{"type":"finish","choices":"x"}', '{"candidates":1}'], None, None, None),
    ("an error, then more", ['{"error":{"message":"one lost"}}', '{"progress":1}'], None, None, None),
    ("unknown [DONE]", ['{"progress":1}', "[DONE]"], None, True, None),
    ("nothing", [], None, None, None),
    # Broken and hostile
    ("half of JSON", [CHAT, '{"choices":[{"finish_reason":"stop"'], Dialect.OPENAI_CHAT, False, None),
    ("bottomless", [CHAT, '{"a":' + "[" * 100_000], Dialect.OPENAI_CHAT, False, None),
    ("endless number", [CHAT, '{"a":' + "9" * 5000 + "}"], Dialect.OPENAI_CHAT, False, None),
    ("wrong types", [CHAT, '{"choices":{"finish_reason":"stop"},"usage":[1]}'], Dialect.OPENAI_CHAT, False, None),
    ("wrong choices", [CHAT, '{"choices":["stop",null,7]}'], Dialect.OPENAI_CHAT, False, None),
    ("half a surrogate", [CHAT, r'{"error":{"message":"\ud83d!"}}'], Dialect.OPENAI_CHAT, False, "?!"),
]


@pytest.mark.parametrize(
    ("data", "dialect", "ended", "failed"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_stream_is_recognised(data: list[str], dialect: Dialect | None, ended: bool | None, failed: str | None) -> None:
    for batch_bytes in (1, 8192):
        seen = observe([stream(item) for item in data], batch_bytes=batch_bytes)
        assert (seen.dialect, seen.ended, seen.failed) == (dialect, ended, failed)


FRAMING = [
    ("no space", f"data:{CHAT}\n\ndata:[DONE]\n\n"),
    ("comments", f": ping\n\ndata: {CHAT}\n\n: ping\n\ndata: [DONE]\n\n"),
    ("ids and retries", f"id: 1\nretry: 3\ndata: {CHAT}\n\nid: 2\ndata: [DONE]\n\n"),
    ("several data lines", f"data: {CHAT[:33]}\ndata:{CHAT[33:]}\n\ndata: [DONE]\n\n"),
    ("mixed line ends", f"data: {CHAT}\r\n\ndata: {CHAT}\n\r\ndata: [DONE]\r\r\n"),
    ("byte order mark", f"\ufeffdata: {CHAT}\n\ndata: [DONE]\n\n"),
    ("no empty line at the end", f"data: {CHAT}\n\ndata: [DONE]"),
    ("many empty lines", f"\n\n\n\ndata: {CHAT}\n\n\n\n\ndata: [DONE]\n\n\n"),
]


@pytest.mark.parametrize("text", [row[1] for row in FRAMING], ids=[row[0] for row in FRAMING])
def test_framing_of_events_does_not_matter(text: str) -> None:
    body = text.encode()
    for index in range(len(body)):
        for batch_bytes in (1, 8192):
            seen = observe([body[:index], body[index:]], batch_bytes=batch_bytes)
            assert (seen.dialect, seen.ended) == (Dialect.OPENAI_CHAT, True), index


def test_invalid_utf8_in_the_text_hides_nothing() -> None:
    broken = CHAT_STOP.encode().replace(b'"delta":{}', b'"delta":{"content":"\xff\xfe\xc3"}')
    assert observe([stream(CHAT), b"data: " + broken + b"\n\n"]).ended is True


def chat_usage(usage: object, *, finish: str | None = None, has_choices: bool = True) -> str:
    choices = [{"index": 0, "delta": {}, "finish_reason": finish}] if has_choices else []
    return json.dumps({"object": "chat.completion.chunk", "choices": choices, "usage": usage})


NAMED = {"prompt_tokens": 3, "completion_tokens": 5}
MESSAGE_END = '{"type":"message_delta","delta":{},"usage":{"output_tokens":0}}'
USAGE = [
    ("after the finish reason", [CHAT_STOP, chat_usage(NAMED, has_choices=False)], Usage(3, 5, FINAL)),
    ("with the finish reason", [CHAT, chat_usage(NAMED, finish="stop")], Usage(3, 5, FINAL)),
    ("in every chunk, cut", [chat_usage(NAMED), chat_usage(NAMED | {"completion_tokens": 6})], Usage(3, 6, PARTIAL)),
    ("null in every chunk", [chat_usage(None), chat_usage(None, finish="stop")], None),
    ("zeros", [CHAT_STOP, chat_usage({"prompt_tokens": 0, "completion_tokens": 0})], Usage(0, 0, FINAL)),
    ("one unknown", [CHAT_STOP, chat_usage({"completion_tokens": 5})], Usage(None, 5, FINAL)),
    ("empty", [CHAT_STOP, chat_usage({})], None),
    ("nonsense", [CHAT_STOP, chat_usage({"prompt_tokens": "3", "completion_tokens": -1})], None),
    ("booleans", [CHAT_STOP, chat_usage({"prompt_tokens": True, "completion_tokens": 1.5})], None),
    ("messages, cut", [MESSAGE_START, BLOCK], Usage(0, 1, PARTIAL)),
    ("messages, zero output", [MESSAGE_START, BLOCK, MESSAGE_END], Usage(0, 0, FINAL)),
    ("messages, new input", [MESSAGE_START, MESSAGE_END.replace('{"o', '{"input_tokens":7,"o')], Usage(7, 0, FINAL)),
    (
        "responses, short",
        [RESPONSE, '{"type":"response.incomplete","response":{"usage":{"input_tokens":1,"output_tokens":2}}}'],
        Usage(1, 2, FINAL),
    ),
    (
        "candidates, with thoughts",
        [
            CANDIDATE,
            '{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"candidatesTokenCount":2,"thoughtsTokenCount":3}}',
        ],
        Usage(4, 5, FINAL),
    ),
]


@pytest.mark.parametrize(("data", "usage"), [row[1:] for row in USAGE], ids=[row[0] for row in USAGE])
def test_usage_is_what_the_vendor_said(data: list[str], usage: Usage | None) -> None:
    assert observe([stream(*data)]).usage == usage


BODIES: list[tuple[object, Dialect | None, Usage | None]] = [
    ({"object": "chat.completion", "usage": NAMED}, Dialect.OPENAI_CHAT, Usage(3, 5, FINAL)),
    ({"object": "response", "usage": {"input_tokens": 0}}, Dialect.OPENAI_RESPONSES, Usage(0, None, FINAL)),
    ({"type": "message", "usage": {"output_tokens": 0}}, Dialect.ANTHROPIC_MESSAGES, Usage(None, 0, FINAL)),
    ({"usageMetadata": {"promptTokenCount": 2}}, Dialect.GEMINI, Usage(2, None, FINAL)),
    ({"object": "list", "data": [], "usage": {"prompt_tokens": 8}}, None, Usage(8, None, FINAL)),
    ({"choices": [{"message": {"usage": NAMED}}]}, None, None),
    ([{"usage": NAMED}], None, None),
    ("usage", None, None),
]


@pytest.mark.parametrize(("body", "dialect", "usage"), BODIES)
def test_json_body_has_usage_and_no_end_mark(body: object, dialect: Dialect | None, usage: Usage | None) -> None:
    data = json.dumps(body).encode()
    for index in range(len(data)):
        seen = observe([data[:index], data[index:]], "application/json")
        assert seen == Observation(dialect, None, None, usage)


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/octet-stream", "text/event-streams"])
def test_other_content_is_unknown(content_type: str | None) -> None:
    assert observe([stream(CHAT, CHAT_STOP)], content_type) == Observation()


@pytest.mark.parametrize(("encoding", "ended"), [("gzip", None), ("br", None), ("Identity", True), ("", True)])
def test_encoded_content_is_unknown(encoding: str, ended: bool | None) -> None:
    observer = EndingObserver("Text/Event-Stream", encoding)
    observer.feed(stream(CHAT, CHAT_STOP))
    assert observer.finish().ended is ended


def test_end_mark_far_before_the_end_is_seen() -> None:
    pings = [b": ping\n\n"] * 5000
    body = [stream(CHAT)] * 100 + [stream(CHAT_STOP)] + pings
    assert observe(body).ended is True
    assert observe([stream(CHAT)] * 101 + pings).ended is False


@pytest.mark.parametrize("first", [stream('{"hello":1}') * 100, stream(json.dumps({"hello": "x" * 20_000}))])
def test_a_dialect_that_shows_only_behind_the_first_block_is_known(first: bytes) -> None:
    body = first + stream(CHAT, CHAT_STOP) + b": ping\n\n" * 5000
    seen = observe(body[start : start + 200] for start in range(0, len(body), 200))
    assert (seen.dialect, seen.ended) == (Dialect.OPENAI_CHAT, True)


def test_has_ended_is_known_before_the_end() -> None:
    observer = EndingObserver(SSE)
    observer.feed(stream(CHAT))
    assert not observer.has_ended
    observer.feed(stream(CHAT_STOP))
    assert observer.has_ended
    observer.feed(stream(chat_usage(NAMED, has_choices=False)))
    assert observer.finish() == Observation(
        Dialect.OPENAI_CHAT, True, None, Usage(3, 5, FINAL), finish_reasons=("stop",)
    )
    assert observer.finish() is observer.finish()


def huge(head: str, tail: str = '"}}\n\n') -> Iterator[bytes]:
    yield head.encode()
    piece = b"x" * 65536
    for _ in range(320):
        yield piece
    yield tail.encode()


HUGE = [
    ("named", "event: response.completed\n", '{"response":{"output":"', True, None),
    ("typed", "", '{"type":"response.completed","response":{"output":"', True, None),
    ("failed", "event: response.failed\n", '{"response":{"output":"', False, "response.failed"),
    ("a delta", "event: response.output_text.delta\n", '{"delta":{"text":"', False, None),
]


@pytest.mark.parametrize(("name", "data", "ended", "failed"), [row[1:] for row in HUGE], ids=[row[0] for row in HUGE])
def test_huge_event_counts_by_its_name_and_is_not_kept(name: str, data: str, ended: bool, failed: str | None) -> None:
    chunks = huge(f"event: response.created\ndata: {RESPONSE}\n\n{name}data: {data}")
    tracemalloc.start()
    seen = observe(chunks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (seen.dialect, seen.ended, seen.failed) == (Dialect.OPENAI_RESPONSES, ended, failed)
    assert peak < 4 * 1024 * 1024


def test_events_after_a_huge_one_are_read() -> None:
    chunks = huge(stream(CHAT).decode() + 'data: {"choices":[],"x":{"y":"', '"}}\n\n' + stream(CHAT_STOP).decode())
    assert observe(chunks).ended is True


def test_huge_event_that_is_cut_does_not_count() -> None:
    chunks = huge(f"data: {RESPONSE}\n\nevent: response.completed\ndata: {{", "")
    assert observe(chunks).ended is False


def test_huge_json_body_is_not_kept() -> None:
    tracemalloc.start()
    seen = observe(huge('{"object":"chat.completion","x":"', '","usage":{"prompt_tokens":1}}'), "application/json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == Observation()
    assert peak < 4 * 1024 * 1024


VENDORS = [
    (OpenAIChat, Dialect.OPENAI_CHAT, {Marks.ALL, Marks.NO_DONE, Marks.NO_FINISH_REASON}),
    (OpenAICompletion, Dialect.OPENAI_COMPLETION, {Marks.ALL, Marks.NO_DONE, Marks.NO_FINISH_REASON}),
    (OpenAIResponses, Dialect.OPENAI_RESPONSES, {Marks.ALL, Marks.NO_DONE}),
    (AnthropicMessages, Dialect.ANTHROPIC_MESSAGES, {Marks.ALL}),
]


@pytest.mark.parametrize("marks", Marks)
@pytest.mark.parametrize(("vendor", "dialect", "genuine"), VENDORS)
def test_fake_vendor_is_recognised(
    vendor: type[OpenAIChat | OpenAICompletion | OpenAIResponses | AnthropicMessages],
    dialect: Dialect,
    genuine: set[Marks],
    marks: Marks,
) -> None:
    reply = make_reply(model="m", prompt="hello", question="hello", seed="1", tokens=7)
    said: VendorDialect = vendor(reply)
    tokens = [said.token(index) for index in range(7)]
    parts = [*said.opening(), *tokens, *said.ending(marks)]
    body = "".join(f"event: {part.name}\ndata: {part.data}\n\n" for part in parts).encode()
    assert observe([body]).dialect is dialect
    assert observe([body]).ended is (marks in genuine)
    broken = "".join(f"data: {part.data}\n\n" for part in (*tokens, *said.failure("it broke", after=7))).encode()
    assert observe([broken]).failed == "it broke"


ALPHABET = [*(event.encode() for event in (CHAT, CHAT_STOP, RESPONSE, MESSAGE_START, BLOCK, PART, CANDIDATE))]
ALPHABET += [
    b"data: ",
    b"data:",
    b"event: ",
    b"\n",
    b"\r",
    b"\n\n",
    b"\r\n",
    b"[DONE]",
    b"{",
    b"}",
    b'"',
    b"\xff",
    b"\x00",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(ALPHABET), st.binary(max_size=8)), max_size=60), st.integers(1, 64))
def test_no_bytes_raise_or_depend_on_batches(chunks: list[bytes], batch_bytes: int) -> None:
    body = b"".join(chunks)
    one, many = observe([body]), observe(chunks, batch_bytes=batch_bytes)
    assert (one.dialect, one.ended) == (many.dialect, many.ended)
    observe([body], "application/json")


WORDS = [
    (
        '{"object":"chat.completion","model":"a","choices":[{"finish_reason":"stop"},{"finish_reason":"length"}]}',
        "a",
        2,
    ),
    ('{"type":"message","model":"b","stop_reason":"end_turn"}', "b", 1),
    ('{"object":"response","model":"c","status":"incomplete"}', "c", 1),
    ('{"modelVersion":"d","candidates":[{"finishReason":"STOP"}],"usageMetadata":{}}', "d", 1),
    ('{"model":7,"choices":[{"finish_reason":["x"]},3,null]}', None, 0),
    ('{"model":"' + "x" * 500 + '","choices":"none"}', "x" * 200, 0),
]


@pytest.mark.parametrize(("body", "model", "reasons"), WORDS)
def test_a_whole_body_tells_its_model_and_why_it_ended(body: str, model: str | None, reasons: int) -> None:
    seen = observe([body.encode()], "application/json")
    assert (seen.model, len(seen.finish_reasons)) == (model, reasons)


def test_gemini_and_ai_sdk_streams_tell_why_they_ended() -> None:
    gemini = '{"modelVersion":"g","candidates":[{"finishReason":"MAX_TOKENS"}]}'
    seen = observe([stream(gemini)])
    assert (seen.model, seen.finish_reasons) == ("g", ("MAX_TOKENS",))
    seen = observe([stream('{"type":"text-start","id":"1"}', '{"type":"finish","finishReason":"stop"}')])
    assert (seen.model, seen.finish_reasons) == (None, ("stop",))


# Content, and what only keeps the connection open

SIGNS_OF_LIFE = [
    b": keep-alive\n\n",
    b":\n\n",
    b": OPENROUTER PROCESSING\n\n" * 3,
    b": " + b"x" * 500 + b"\n\n",
    b'event: ping\ndata: {"type": "ping"}\n\n',
    b'event: ping\r\ndata: {"type": "ping"}\r\n\r\n',
    b"event: ping\r\ndata: 2026-01-01T00:00:00Z\r\n\r\n" * 2,
    b"event:ping\rdata:1\r\r",
    b"event: heartbeat\ndata: " + b"x" * 500 + b"\n\n",
    b"event: ping\ndata: {" + b'"a": "b", ' * 50 + b"}\n\n",
    b'data: {"type":"keepalive","sequence_number":3}\n\n',
    b"data:\n\n",
    b"data: \n\n",
    b"id: 7\nretry: 1000\n\n",
    b"\n",
    b"\r\n\r\n",
]
CONTENT = [
    stream(CHAT),
    stream(CHAT) * 300,
    stream("x"),
    stream("x").replace(b"\n", b"\r\n"),
    stream("x").replace(b"\n", b"\r"),
    f"event: content_block_delta\ndata: {BLOCK}\n\n".encode(),
    f"event: response.output_text.delta\ndata: {RESPONSE}\n\n".encode(),
    stream(PART),
    stream('{"type":"pinged"}'),
    b"event: pinged\ndata: 1\n\n",
    b"what is no event stream at all\n",
    b"data: " + b"x" * 5000,
]


@pytest.mark.parametrize("body", SIGNS_OF_LIFE)
def test_signs_of_life_are_no_content_however_they_are_split(body: bytes) -> None:
    for size in (1, 2, 3, 7, 100, len(body)):
        observer = EndingObserver(SSE)
        for _ in range(3):
            assert not any(observer.feed(body[start : start + size]) for start in range(0, len(body), size)), size


@pytest.mark.parametrize("body", CONTENT)
def test_content_is_seen_however_it_is_split_and_whatever_came_before(body: bytes) -> None:
    for before in (b"", *SIGNS_OF_LIFE):
        for size in (1, 2, 7, 100, len(body)):
            observer = EndingObserver(SSE)
            observer.feed(before)
            assert any(observer.feed(body[start : start + size]) for start in range(0, len(body), size)), (before, size)


def test_every_part_of_a_long_event_is_content() -> None:
    observer = EndingObserver(SSE)
    observer.feed(b'data: {"type":"text-delta","delta":"')
    assert all(observer.feed(b"x" * 100) for _ in range(20))


def test_after_content_signs_of_life_are_none_again() -> None:
    observer = EndingObserver(SSE)
    for body in CONTENT[:-2]:
        assert observer.feed(body)
        for sign in SIGNS_OF_LIFE:
            assert not observer.feed(sign), (body[:50], sign)


@pytest.mark.parametrize(
    ("content_type", "encoding", "is_content"),
    [
        ("application/json", None, False),
        ("text/event-stream", None, False),
        ("text/event-stream", "gzip", True),
        ("text/plain", None, True),
        ("application/octet-stream", None, True),
        (None, None, True),
    ],
)
def test_empty_lines_are_content_where_the_format_is_not_known(
    content_type: str | None, encoding: str | None, is_content: bool
) -> None:
    assert EndingObserver(content_type, encoding).feed(b"\n") is is_content
    assert EndingObserver(content_type, encoding).feed(b'\n{"a": 1}\n')


@given(st.lists(st.sampled_from(SIGNS_OF_LIFE)), st.sampled_from(CONTENT), st.data())
def test_a_stream_has_content_if_any_part_of_it_does(signs: list[bytes], content: bytes, data: st.DataObject) -> None:
    whole = b"".join(signs) + content
    cuts = sorted({0, len(whole), *data.draw(st.lists(st.integers(0, len(whole)), max_size=10))})
    observer = EndingObserver(SSE)
    found = [observer.feed(whole[start:end]) for start, end in itertools.pairwise(cuts)]
    first = len(b"".join(signs))
    assert any(found)
    assert not any(is_content for is_content, end in zip(found, cuts[1:], strict=True) if end <= first)


@given(st.lists(st.binary(max_size=200)))
def test_whatever_comes_nothing_is_raised(chunks: list[bytes]) -> None:
    for content_type in (SSE, "application/json"):
        observer = EndingObserver(content_type)
        for chunk in chunks:
            observer.feed(chunk)


def test_lines_of_nothing_are_passed_over_without_a_closer_look() -> None:
    observer, looks = EndingObserver(SSE), 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal looks
        looks += event == "call"

    sys.setprofile(profile)
    try:
        assert not observer.feed(b"\n" * 10_000)
    finally:
        sys.setprofile(None)
    assert looks < 50
    assert not observer.feed(b"event: ping\ndata: {}\n\n")
    assert observer.feed(b"\ndata: {}\n\n")
