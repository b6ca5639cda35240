"""Answers in the form of a chat front end: what a model says, what its tools say, and what it then says to that."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from streamkeep.adapters.chunks import ai_sdk_chunks, tanstack_chunks
from streamkeep.demos.model import Event, Message, Model, ModelError

Chunk = dict[str, Any]

_MAX_TURNS = 3
_WEATHER: Mapping[str, Mapping[str, object]] = {
    "Lisbon": {"sky": "sunny", "celsius": 24},
    "Nairobi": {"sky": "light clouds", "celsius": 21},
    "Tokyo": {"sky": "rain", "celsius": 17},
}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city now",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": list(_WEATHER)}},
                "required": ["city"],
            },
        },
    }
]


@dataclass(slots=True)
class ToolCall:
    """A tool that the model wants to be run; `arguments` are JSON."""

    id: str
    name: str
    arguments: str = ""

    def run(self) -> Mapping[str, object]:
        """The tool's answer; what cannot be run says why."""
        try:
            return _WEATHER[json.loads(self.arguments)["city"]]
        except (ValueError, KeyError, TypeError):
            return {"error": "there is no such tool, or no such city"}


class Form(Protocol):
    """How a front end wants an answer: the types of its first chunk and of its last, and all between."""

    @property
    def opening(self) -> str: ...
    @property
    def closing(self) -> str: ...

    def chunks(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Chunk, None]:
        """A model's answer as chunks, from `opening` to `closing`."""

    def note(self, chunk: Chunk, calls: dict[str, ToolCall]) -> None:
        """Take what a chunk says of tool calls."""

    def result(self, call: ToolCall, output: Mapping[str, object]) -> Chunk:
        """A tool's answer."""

    def failure(self, text: str) -> Chunk:
        """The last chunk of an answer that broke off."""


@dataclass(frozen=True, slots=True)
class AiSdkForm:
    """UI message chunks of the AI SDK."""

    message_id: str
    opening: str = "start"
    closing: str = "finish"

    def chunks(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Chunk, None]:
        return ai_sdk_chunks(events, message_id=self.message_id)

    def note(self, chunk: Chunk, calls: dict[str, ToolCall]) -> None:
        if chunk["type"] == "tool-input-available":
            call = ToolCall(chunk["toolCallId"], chunk["toolName"], json.dumps(chunk["input"]))
            calls[call.id] = call

    def result(self, call: ToolCall, output: Mapping[str, object]) -> Chunk:
        return {"type": "tool-output-available", "toolCallId": call.id, "output": output}

    def failure(self, text: str) -> Chunk:
        return {"type": "error", "errorText": text}


@dataclass(frozen=True, slots=True)
class TanStackForm:
    """AG-UI events, which TanStack AI reads. The thread is the chat, the run this answer."""

    thread_id: str
    run_id: str
    opening: str = "RUN_STARTED"
    closing: str = "RUN_FINISHED"

    def chunks(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Chunk, None]:
        return tanstack_chunks(events, thread_id=self.thread_id, run_id=self.run_id)

    def note(self, chunk: Chunk, calls: dict[str, ToolCall]) -> None:
        match chunk:
            case {"type": "TOOL_CALL_START", "toolCallId": id, "toolCallName": name}:
                calls[id] = ToolCall(id, name)
            case {"type": "TOOL_CALL_ARGS", "toolCallId": id, "delta": delta}:
                calls[id].arguments += delta

    def result(self, call: ToolCall, output: Mapping[str, object]) -> Chunk:
        message_id = f"{self.run_id}-{call.id}"
        return {
            "type": "TOOL_CALL_RESULT",
            "messageId": message_id,
            "toolCallId": call.id,
            "content": json.dumps(output),
            "role": "tool",
        }

    def failure(self, text: str) -> Chunk:
        return {"type": "RUN_ERROR", "message": text, "error": {"message": text}}


async def answer(model: Model, prompt: Sequence[Message], form: Form, *, payer: str) -> AsyncGenerator[Chunk, None]:
    """One answer, for which the model may be asked again after its tools were run; a failure is its last chunk."""
    told = list(prompt)
    for number in range(_MAX_TURNS):
        tools = _TOOLS if number < _MAX_TURNS - 1 else []
        calls: dict[str, ToolCall] = {}
        try:
            async with aclosing(form.chunks(model.stream(told, payer=payer, tools=tools))) as chunks:
                async for chunk in chunks:
                    form.note(chunk, calls)
                    is_again = chunk["type"] == form.opening and number > 0
                    if not is_again and not (chunk["type"] == form.closing and calls):
                        yield chunk
        except ModelError as exc:
            yield form.failure(str(exc))
            return
        if not calls:
            return
        outputs = {id: call.run() for id, call in calls.items()}
        for id, output in outputs.items():
            yield form.result(calls[id], output)
        told += _told(calls, outputs)


def _told(calls: Mapping[str, ToolCall], outputs: Mapping[str, Mapping[str, object]]) -> list[Message]:
    """What the model is told of the calls that it made, and what came of them."""
    made = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls.values()
    ]
    results = [{"role": "tool", "tool_call_id": id, "content": json.dumps(output)} for id, output in outputs.items()]
    return [{"role": "assistant", "content": None, "tool_calls": made}, *results]


def prompt_of(messages: Sequence[Any]) -> list[Message]:
    """The texts of a front end's messages, as a model reads them.

    Raises:
        ValueError: they have another form, or there are none.
    """
    prompt = []
    try:
        for message in messages:
            parts = [part for part in message["parts"] if part["type"] == "text"]
            text = "".join(part.get("text") or part.get("content") or "" for part in parts)
            if text and message["role"] in ("user", "assistant"):
                prompt.append({"role": message["role"], "content": text})
    except (AttributeError, KeyError, TypeError) as exc:
        raise ValueError("these are no messages") from exc
    if not prompt:
        raise ValueError("there is no question")
    return prompt
