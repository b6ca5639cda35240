"""What a call asks, and what it is answered, as messages: OpenAI's chat completions and Responses, Anthropic's messages.

Only what people and models say to each other is read: text, calls of tools and their results. Instructions, reasoning,
images and whatever else there may be are left out. What is of no known shape gives no message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamkeep.client import ToolCall

_TEXT_PARTS = {"text", "input_text", "output_text"}
_SPEAKERS = {"user", "assistant", "tool"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, as it stands in a body."""

    role: str
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a call asks. One that `goes_on` names the earlier answer on the vendor's side, and brings new turns alone."""

    turns: tuple[Turn, ...]
    goes_on: bool = False


def question_of(content: bytes) -> Question | None:
    """What a request's body asks; None where it is none of the formats."""
    body = _object(content)
    if body is None:
        return None
    if isinstance(body.get("messages"), list):
        turns = tuple(turn for message in body["messages"] for turn in _turns(message))
        return Question(turns) if turns else None
    asked = body.get("input")
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    if not isinstance(asked, list):
        return None
    turns = tuple(_of_items(asked))
    return (
        Question(turns, goes_on=bool(body.get("previous_response_id") or body.get("conversation"))) if turns else None
    )


def answer_of(content: bytes) -> Turn | None:
    """What the body of a whole answer says that was not streamed; None where it is none of the formats."""
    body = _object(content) or {}
    choices, output = body.get("choices"), body.get("output")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        turns = [*_turns(choices[0].get("message"))]
    elif isinstance(output, list):
        turns = [*_of_items(output)]
    else:
        turns = [*_turns(body)]
    return turns[0] if turns and turns[0].role == "assistant" else None


def as_written(arguments: object) -> str:
    """A call's arguments in one way of writing them, since vendors give text here and objects there."""
    try:
        value = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        return json.dumps(value, sort_keys=True)
    except (ValueError, RecursionError):
        return str(arguments)


def _object(content: bytes) -> Mapping[str, Any] | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, Mapping) else None


def _turns(message: object) -> Iterator[Turn]:
    """A message of chat completions, or of Anthropic, whose tools' results stand inside a user's message."""
    if not isinstance(message, Mapping) or _string(message.get("role")) not in _SPEAKERS:
        return
    parts = _parts(message.get("content"))
    for part in parts:
        if part.get("type") == "tool_result":
            yield Turn("tool", _text(_parts(part.get("content"))), tool_call_id=_string(part.get("tool_use_id")))
    calls = [
        ToolCall(_string(part.get("id")), _string(part.get("name")), as_written(part.get("input")))
        for part in parts
        if part.get("type") == "tool_use"
    ]
    for call in _objects(message.get("tool_calls")):
        function = call.get("function")
        if isinstance(function, Mapping):
            name, arguments = _string(function.get("name")), as_written(function.get("arguments"))
            calls.append(ToolCall(_string(call.get("id")), name, arguments))
    text = _text(parts) or _string(message.get("refusal"))
    if text or calls or not any(part.get("type") == "tool_result" for part in parts):
        answers = _string(message.get("tool_call_id")) or None
        yield Turn(message["role"], text, tuple(calls), answers)


def _of_items(items: Sequence[object]) -> Iterator[Turn]:
    """The items of the Responses API, where an answer's text and its calls are several in a row."""
    open_: Turn | None = None
    for item in _objects(items):
        turn = _of_item(item)
        if turn is None:
            continue
        if open_ is not None and open_.role == turn.role == "assistant":
            open_ = replace(open_, text=open_.text + turn.text, tool_calls=open_.tool_calls + turn.tool_calls)
            continue
        if open_ is not None:
            yield open_
        open_ = turn
    if open_ is not None:
        yield open_


def _of_item(item: Mapping[str, Any]) -> Turn | None:
    match item.get("type", "message"):
        case "message":
            return next(_turns(item), None)
        case "function_call":
            arguments = as_written(item.get("arguments"))
            call = ToolCall(_string(item.get("call_id")), _string(item.get("name")), arguments)
            return Turn("assistant", tool_calls=(call,))
        case "function_call_output":
            return Turn("tool", _text(_parts(item.get("output"))), tool_call_id=_string(item.get("call_id")))
    return None


def _parts(content: object) -> list[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else _objects(content)


def _text(parts: Iterable[Mapping[str, Any]]) -> str:
    said = (part.get("text") if _string(part.get("type")) in _TEXT_PARTS else part.get("refusal") for part in parts)
    return "".join(text for text in said if isinstance(text, str))


def _objects(found: object) -> list[Mapping[str, Any]]:
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
