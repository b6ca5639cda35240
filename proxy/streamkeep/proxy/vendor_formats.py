"""What the fake vendor says, in the vendors' own formats: values in, events and JSON out, no I/O.

A `Reply` is what a model would answer to a request; it follows from the request alone, ids and times too, so two equal
requests get equal bytes. A dialect wraps the reply's tokens in one vendor's events:

    opening()  token(0) … token(n-1)  ending()        one answer as a stream
    failure(after=k)                                  in place of the rest: the vendor's own way to say that it broke
    whole()                                           the same answer as one JSON body
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from streamkeep.proxy.vendor_text import markdown_tokens

# Mostly plain, and a rest that is not: characters of two, three and four bytes must survive as well.
_VOCABULARY = """
the river stream water carries every small letter down to sea and keeps it there for those who come late
a keeper writes what he hears night after night by one lamp while rain falls on roofs and boats return
café naïve Überfluss crème żółw 東京 水の流れ 河流 поток रेत 🌊 🛶
"""
_WORDS = tuple(_VOCABULARY.split())


class Finish(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL = "tool"


class Marks(StrEnum):
    """Which of its end marks a stream carries. Lax vendors leave one of two out, and their streams are whole all the
    same."""

    ALL = "all"
    NO_FINISH_REASON = "no-finish"
    NO_DONE = "no-done"


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `name` is its `event:` field."""

    data: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is put in a vendor's words. With a `tool_name` the tokens spell the call's JSON arguments."""

    digest: str
    model: str
    tokens: tuple[str, ...]
    input_tokens: int
    finish: Finish
    tool_name: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def created(self) -> int:
        """A time of day that is the same on every day: it follows from the request, as all the rest does."""
        return 1_700_000_000 + int(self.digest[:6], 16)

    def identifier(self, prefix: str, length: int = 24) -> str:
        return prefix + hashlib.sha256(f"{prefix}{self.digest}".encode()).hexdigest()[:length]


def make_reply(
    *,
    model: str,
    prompt: str,
    question: str,
    seed: str,
    tokens: int,
    max_tokens: int | None = None,
    tools: Mapping[str, Mapping[str, object]] | None = None,
    tool_choice: str | None = None,
    is_markdown: bool = False,
) -> Reply:
    """Think up the answer to a prompt: the same text for the same seed, model and prompt, cut at `max_tokens`.

    `tools` are the JSON schemas of arguments by tool name. One is called when `tool_choice` is its name or `required`,
    or when the `question`, which is the prompt's last part, speaks of it.
    """
    digest = hashlib.sha256(f"{seed}\n{model}\n{prompt}".encode(errors="surrogatepass")).hexdigest()
    source = random.Random(digest)
    input_tokens = len(prompt) // 4 + 1
    name = _wanted_tool(question, tools or {}, tool_choice)
    if name is not None:
        arguments = json.dumps(_example(source, (tools or {})[name]), ensure_ascii=False)
        return Reply(digest, model, tuple(_pieces(source, arguments)), input_tokens, Finish.TOOL, name)
    count = tokens if max_tokens is None else min(tokens, max_tokens)
    finish = Finish.LENGTH if count < tokens else Finish.STOP
    text = markdown_tokens(count) if is_markdown else _prose(source, count)
    return Reply(digest, model, tuple(text), input_tokens, finish)


class Dialect(Protocol):
    """One vendor's wire format around a reply."""

    def opening(self) -> Sequence[Event]: ...
    def token(self, index: int) -> Event: ...
    def ending(self, marks: Marks) -> Sequence[Event]: ...
    def failure(self, message: str, *, after: int) -> Sequence[Event]: ...
    def whole(self) -> dict[str, object]: ...


class OpenAIChat:
    """`POST /v1/chat/completions`: unnamed events; a chunk with `finish_reason`, the usage if asked for, `[DONE]`."""

    _FINISH: Mapping[Finish, str] = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.TOOL: "tool_calls"}

    def __init__(self, reply: Reply, *, include_usage: bool = False) -> None:
        self._reply = reply
        self._include_usage = include_usage

    def opening(self) -> Sequence[Event]:
        if self._reply.tool_name is None:
            return [self._delta({"role": "assistant", "content": "", "refusal": None})]
        call = {"index": 0, **self._tool_call(arguments="")}
        return [self._delta({"role": "assistant", "content": None, "tool_calls": [call], "refusal": None})]

    def token(self, index: int) -> Event:
        token = self._reply.tokens[index]
        if self._reply.tool_name is None:
            return self._delta({"content": token})
        return self._delta({"tool_calls": [{"index": 0, "function": {"arguments": token}}]})

    def ending(self, marks: Marks) -> Sequence[Event]:
        events = []
        if marks is not Marks.NO_FINISH_REASON:
            events.append(self._delta({}, finish_reason=self._FINISH[self._reply.finish]))
        if self._include_usage:
            events.append(self._chunk([], usage=_openai_usage(self._reply)))
        if marks is not Marks.NO_DONE:
            events.append(Event("[DONE]"))
        return events

    def failure(self, message: str, *, after: int) -> Sequence[Event]:
        return [Event(_text(openai_error(message, "server_error")))]

    def whole(self) -> dict[str, object]:
        is_tool = self._reply.tool_name is not None
        message: dict[str, object] = {"role": "assistant", "content": None if is_tool else self._reply.text}
        if is_tool:
            message["tool_calls"] = [self._tool_call(arguments=self._reply.text)]
        message |= {"refusal": None, "annotations": []}
        finish_reason = self._FINISH[self._reply.finish]
        return {
            "id": self._reply.identifier("chatcmpl-"),
            "object": "chat.completion",
            "created": self._reply.created,
            "model": self._reply.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
            "usage": _openai_usage(self._reply),
            "service_tier": "default",
            "system_fingerprint": "fp_fake",
        }

    def _tool_call(self, *, arguments: str) -> dict[str, object]:
        function = {"name": self._reply.tool_name, "arguments": arguments}
        return {"id": self._reply.identifier("call_"), "type": "function", "function": function}

    def _delta(self, delta: dict[str, object], *, finish_reason: str | None = None) -> Event:
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])

    def _chunk(self, choices: list[dict[str, object]], *, usage: dict[str, object] | None = None) -> Event:
        chunk: dict[str, object] = {
            "id": self._reply.identifier("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": self._reply.created,
            "model": self._reply.model,
            "service_tier": "default",
            "system_fingerprint": "fp_fake",
            "choices": choices,
        }
        if self._include_usage:
            chunk["usage"] = usage
        return Event(_text(chunk))


class OpenAICompletion:
    """`POST /v1/completions`, the older format: text instead of deltas, else as the chat's."""

    def __init__(self, reply: Reply, *, include_usage: bool = False) -> None:
        self._reply = reply
        self._include_usage = include_usage

    def opening(self) -> Sequence[Event]:
        return []

    def token(self, index: int) -> Event:
        return self._chunk([_completion_choice(self._reply.tokens[index], None)])

    def ending(self, marks: Marks) -> Sequence[Event]:
        events = []
        if marks is not Marks.NO_FINISH_REASON:
            events.append(self._chunk([_completion_choice("", self._reply.finish.value)]))
        if self._include_usage:
            events.append(self._chunk([], usage=_openai_usage(self._reply)))
        if marks is not Marks.NO_DONE:
            events.append(Event("[DONE]"))
        return events

    def failure(self, message: str, *, after: int) -> Sequence[Event]:
        return [Event(_text(openai_error(message, "server_error")))]

    def whole(self) -> dict[str, object]:
        choices = [_completion_choice(self._reply.text, self._reply.finish.value)]
        return {**self._head(), "choices": choices, "usage": _openai_usage(self._reply)}

    def _head(self) -> dict[str, object]:
        return {
            "id": self._reply.identifier("cmpl-"),
            "object": "text_completion",
            "created": self._reply.created,
            "model": self._reply.model,
        }

    def _chunk(self, choices: list[dict[str, object]], *, usage: dict[str, object] | None = None) -> Event:
        chunk = {**self._head(), "choices": choices}
        if self._include_usage:
            chunk["usage"] = usage
        return Event(_text(chunk))


class OpenAIResponses:
    """`POST /v1/responses`: named, numbered events around one output item; `response.completed` carries everything."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._before_tokens = 4 if reply.tool_name is None else 3

    def opening(self) -> Sequence[Event]:
        bodies: list[dict[str, object]] = [
            {"type": "response.created", "response": self._response("in_progress")},
            {"type": "response.in_progress", "response": self._response("in_progress")},
            {"type": "response.output_item.added", "output_index": 0, "item": self._item("in_progress")},
        ]
        if self._reply.tool_name is None:
            bodies.append({"type": "response.content_part.added", **self._part_place(), "part": self._part("")})
        return self._numbered(bodies, 0)

    def token(self, index: int) -> Event:
        token = self._reply.tokens[index]
        body: dict[str, object]
        if self._reply.tool_name is None:
            body = {"type": "response.output_text.delta", **self._part_place(), "delta": token, "logprobs": []}
        else:
            body = {"type": "response.function_call_arguments.delta", **self._item_place(), "delta": token}
        return self._numbered([body], self._before_tokens + index)[0]

    def ending(self, marks: Marks) -> Sequence[Event]:
        text = self._reply.text
        bodies: list[dict[str, object]]
        if self._reply.tool_name is None:
            bodies = [
                {"type": "response.output_text.done", **self._part_place(), "text": text, "logprobs": []},
                {"type": "response.content_part.done", **self._part_place(), "part": self._part(text)},
            ]
        else:
            bodies = [{"type": "response.function_call_arguments.done", **self._item_place(), "arguments": text}]
        bodies.append({"type": "response.output_item.done", "output_index": 0, "item": self._item(self._outcome)})
        if marks is not Marks.NO_FINISH_REASON:
            bodies.append({"type": f"response.{self._outcome}", "response": self.whole()})
        return self._numbered(bodies, self._before_tokens + len(self._reply.tokens))

    def failure(self, message: str, *, after: int) -> Sequence[Event]:
        failed = {**self._response("failed"), "error": {"code": "server_error", "message": message}}
        return self._numbered([{"type": "response.failed", "response": failed}], self._before_tokens + after)

    def whole(self) -> dict[str, object]:
        usage = {
            "input_tokens": self._reply.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": len(self._reply.tokens),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._reply.input_tokens + len(self._reply.tokens),
        }
        return {**self._response(self._outcome), "output": [self._item(self._outcome)], "usage": usage}

    @property
    def _outcome(self) -> str:
        return "incomplete" if self._reply.finish is Finish.LENGTH else "completed"

    def _response(self, status: str) -> dict[str, object]:
        return {
            "id": self._reply.identifier("resp_", 48),
            "object": "response",
            "created_at": self._reply.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "max_output_tokens": None,
            "model": self._reply.model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": True,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": None,
            "user": None,
            "metadata": {},
        }

    def _item(self, status: str) -> dict[str, object]:
        is_open = status == "in_progress"
        text = "" if is_open else self._reply.text
        if self._reply.tool_name is None:
            content = [] if is_open else [self._part(text)]
            kind = {"type": "message", "role": "assistant", "content": content}
            return {"id": self._item_id, "status": status, **kind}
        call = {"call_id": self._reply.identifier("call_"), "name": self._reply.tool_name, "arguments": text}
        return {"id": self._item_id, "type": "function_call", "status": status, **call}

    @property
    def _item_id(self) -> str:
        return self._reply.identifier("msg_" if self._reply.tool_name is None else "fc_", 48)

    def _item_place(self) -> dict[str, object]:
        return {"item_id": self._item_id, "output_index": 0}

    def _part_place(self) -> dict[str, object]:
        return {**self._item_place(), "content_index": 0}

    def _part(self, text: str) -> dict[str, object]:
        return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}

    def _numbered(self, bodies: Sequence[dict[str, object]], first: int) -> list[Event]:
        return [
            Event(_text({**body, "sequence_number": number}), str(body["type"]))
            for number, body in enumerate(bodies, first)
        ]


class AnthropicMessages:
    """`POST /v1/messages`: named events around one content block; `message_delta` has the usage, `message_stop` ends."""

    _FINISH: Mapping[Finish, str] = {Finish.STOP: "end_turn", Finish.LENGTH: "max_tokens", Finish.TOOL: "tool_use"}

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def opening(self) -> Sequence[Event]:
        message = {**self._message([], None), "usage": self._usage(output_tokens=1)}
        block = self._block("", {})
        return [
            self._event({"type": "message_start", "message": message}),
            self._event({"type": "content_block_start", "index": 0, "content_block": block}),
            self._event({"type": "ping"}),
        ]

    def token(self, index: int) -> Event:
        token = self._reply.tokens[index]
        if self._reply.tool_name is None:
            delta = {"type": "text_delta", "text": token}
        else:
            delta = {"type": "input_json_delta", "partial_json": token}
        return self._event({"type": "content_block_delta", "index": 0, "delta": delta})

    def ending(self, marks: Marks) -> Sequence[Event]:
        delta = {"stop_reason": self._FINISH[self._reply.finish], "stop_sequence": None, "stop_details": None}
        usage = self._usage(output_tokens=len(self._reply.tokens))
        usage.pop("service_tier")
        events = [
            self._event({"type": "content_block_stop", "index": 0}),
            self._event({"type": "message_delta", "delta": delta, "usage": usage}),
        ]
        if marks is Marks.ALL:
            events.append(self._event({"type": "message_stop"}))
        return events

    def failure(self, message: str, *, after: int) -> Sequence[Event]:
        return [self._event(anthropic_error(message, "overloaded_error"))]

    def whole(self) -> dict[str, object]:
        text = self._reply.text
        block = self._block(text, None if self._reply.tool_name is None else json.loads(text))
        message = self._message([block], self._FINISH[self._reply.finish])
        return {**message, "usage": self._usage(output_tokens=len(self._reply.tokens))}

    def _message(self, content: list[dict[str, object]], stop_reason: str | None) -> dict[str, object]:
        return {
            "id": self._reply.identifier("msg_"),
            "type": "message",
            "role": "assistant",
            "model": self._reply.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
            "stop_details": None,
        }

    def _block(self, text: str, arguments: object) -> dict[str, object]:
        if self._reply.tool_name is None:
            return {"type": "text", "text": text}
        call_id = self._reply.identifier("toolu_")
        return {"type": "tool_use", "id": call_id, "name": self._reply.tool_name, "input": arguments}

    def _usage(self, *, output_tokens: int) -> dict[str, object]:
        return {
            "input_tokens": self._reply.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
            "service_tier": "standard",
        }

    def _event(self, body: dict[str, object]) -> Event:
        return Event(_text(body), str(body["type"]))


def openai_error(message: str, kind: str, *, code: str | None = None) -> dict[str, object]:
    """An error body, and also an in-band error event, as OpenAI writes it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic_error(message: str, kind: str) -> dict[str, object]:
    """An error body, and also an in-band error event, as Anthropic writes it."""
    return {"type": "error", "error": {"type": kind, "message": message}}


def _completion_choice(text: str, finish_reason: str | None) -> dict[str, object]:
    return {"text": text, "index": 0, "logprobs": None, "finish_reason": finish_reason}


def _openai_usage(reply: Reply) -> dict[str, object]:
    return {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": len(reply.tokens),
        "total_tokens": reply.input_tokens + len(reply.tokens),
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _text(body: object) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def _wanted_tool(question: str, tools: Mapping[str, object], tool_choice: str | None) -> str | None:
    if not tools or tool_choice == "none":
        return None
    if tool_choice in tools:
        return tool_choice
    spoken_of = next((name for name in tools if name in question), None)
    return spoken_of or (next(iter(tools)) if tool_choice == "required" else None)


def _prose(source: random.Random, count: int) -> Iterator[str]:
    for index in range(count):
        pick = source.random()
        if index and pick < 0.06:
            yield source.choice((".", ",", " —", "!"))
        elif index and pick < 0.08:
            yield "\n\n"
        else:
            yield (" " if index else "") + source.choice(_WORDS)


def _pieces(source: random.Random, text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        size = source.randint(1, 6)
        yield text[start : start + size]
        start += size


def _example(source: random.Random, schema: Mapping[str, object]) -> object:
    """Some value that a JSON schema admits, as far as tools' arguments commonly go."""
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return source.choice(choices)
    match schema.get("type"):
        case "object":
            properties = schema.get("properties")
            if not isinstance(properties, dict):
                return {}
            return {name: _example(source, part) for name, part in properties.items() if isinstance(part, dict)}
        case "array":
            items = schema.get("items")
            return [_example(source, items)] if isinstance(items, dict) else []
        case "integer":
            return source.randint(0, 100)
        case "number":
            return source.randint(0, 1000) / 8
        case "boolean":
            return source.random() < 0.5
        case "null":
            return None
        case _:
            return source.choice(_WORDS)
