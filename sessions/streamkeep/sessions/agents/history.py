"""What an agent is sent: a session up to a message, in the words of its format.

Messages of `openai` have `content`, `tool_calls` and `tool_call_id` as chat completions do, those of `openai-responses` are
items of the Responses API, and those of `anthropic` are made of content blocks. Models are told text and calls of tools.
They refuse calls without an outcome, so such calls are left out; an approval's answer is an outcome. What other agents of
the session said is told as somebody else's words, with their names. Front ends' formats, `ai-sdk` and `tanstack`, have parts,
and everything in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streamkeep.sessions.agents.formats import AgentFormat
from streamkeep.sessions.chunks import as_text, parsed_json
from streamkeep.sessions.fold import SessionFold
from streamkeep.sessions.views import (
    Message,
    OtherPart,
    Role,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolCallPart,
    as_json,
)

MAX_HISTORY_CHARACTERS = 1_000_000
"""The oldest messages are left out when all of them would be longer."""

Json = dict[str, Any]


Calls = Mapping[tuple[str, str], ToolCall]


@dataclass(frozen=True, slots=True)
class History:
    """A session up to a message, as it stood when this was made. It never changes, so it may be written in any thread."""

    messages: Sequence[Message]
    calls: Calls
    names: Mapping[str, str]

    @classmethod
    def of(cls, session: SessionFold, until: str) -> History | None:
        """The history that ends with the message `until`. None: there is no such message."""
        messages = session.messages
        end = next((index for index, message in enumerate(messages, 1) if message.id == until), None)
        if end is None:
            return None
        calls = {(call.message_id, call.id): call for call in session.tool_calls}
        return cls(messages[:end], calls, {agent.id: agent.name or agent.id for agent in session.agents})

    def request_fields(self, *, agent_id: str, format: AgentFormat | None = None) -> Json:
        """The fields of a request's body that tell it to an agent: `messages`, with what the system says as `system` for
        `anthropic`, or `input` for `openai-responses`. Without a format it is as for `openai`."""
        kept = self._newest(agent_id, format)
        if format == "anthropic":
            system = "\n\n".join(message.text for message, _ in kept if message.role == "system")
            messages = [one for message, ones in kept if message.role != "system" for one in ones]
            return {"messages": messages, **({"system": system} if system else {})}
        return {"input" if format == "openai-responses" else "messages": [one for _, ones in kept for one in ones]}

    def _newest(self, agent_id: str, format: AgentFormat | None) -> Sequence[tuple[Message, list[Json]]]:
        """As many of the newest messages as there is room for, with what is written for each; the last one whatever its
        size."""
        room = MAX_HISTORY_CHARACTERS
        kept: list[tuple[Message, list[Json]]] = []
        for message in reversed(self.messages):
            ones = self._written(message, agent_id, format)
            room -= sum(len(as_text(one)) for one in ones)
            if room < 0 and kept:
                break
            kept.append((message, ones))
        return kept[::-1]

    def _written(self, message: Message, agent_id: str, format: AgentFormat | None) -> list[Json]:
        speaker = None if message.actor_id == agent_id else self.names.get(message.actor_id)
        rounds = _rounds(message, self.calls, speaker)
        match format:
            case "ai-sdk":
                return [_ui_message(message, self.calls)]
            case "tanstack":
                return [_tanstack_message(message)]
            case "anthropic":
                return [one for part in rounds for one in _anthropic_messages(part)]
            case "openai-responses":
                return [one for part in rounds for one in _response_items(part)]
            case _:
                return [one for part in rounds for one in _chat_messages(part)]


@dataclass(frozen=True, slots=True)
class _Round:
    """What a model says in one go: text, and the calls behind it, each with an outcome."""

    role: Role
    text: str
    called: tuple[ToolCall, ...]


def _chat_messages(part: _Round) -> Iterator[Json]:
    if not part.called:
        yield {"role": part.role, "content": part.text}
        return
    tool_calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
        for call in part.called
    ]
    yield {"role": part.role, "content": part.text or None, "tool_calls": tool_calls}
    for call in part.called:
        yield {"role": "tool", "tool_call_id": call.id, "content": _outcome(call)[0]}


def _response_items(part: _Round) -> Iterator[Json]:
    if part.text:
        yield {"role": part.role, "content": part.text}
    for call in part.called:
        yield {"type": "function_call", "call_id": call.id, "name": call.name, "arguments": call.arguments or "{}"}
    for call in part.called:
        yield {"type": "function_call_output", "call_id": call.id, "output": _outcome(call)[0]}


def _anthropic_messages(part: _Round) -> Iterator[Json]:
    # Text of blanks alone is refused there.
    blocks = [_block(part.text)] if part.text.strip() else []
    blocks += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _input_object(call)} for call in part.called
    ]
    if blocks:
        yield {"role": part.role, "content": blocks}
    if part.called:
        yield {"role": "user", "content": [_anthropic_result(call) for call in part.called]}


def _anthropic_result(call: ToolCall) -> Json:
    content, is_error = _outcome(call)
    told = {"type": "tool_result", "tool_use_id": call.id, "content": content}
    return {**told, "is_error": True} if is_error else told


def _block(text: str) -> Json:
    return {"type": "text", "text": text}


def _rounds(message: Message, calls: Calls, speaker: str | None) -> Iterator[_Round]:
    """A message as a model made it: text and the calls behind it, then what it said to their results, and so on. Of another
    agent, whose name is `speaker`, only what it said: its calls are its own affair."""
    for text, called in _text_and_calls(message, calls):
        if speaker is None:
            yield _Round(message.role, text, tuple(called))
        elif text:
            yield _Round("user", f"{speaker}: {text}", ())


def _text_and_calls(message: Message, calls: Calls) -> Iterator[tuple[str, list[ToolCall]]]:
    text: list[str] = []
    called: list[ToolCall] = []
    for part in message.parts:
        match part:
            case TextPart():
                if called:
                    yield "".join(text), called
                    text, called = [], []
                text.append(part.content)
            case ToolCallPart():
                call = calls.get((message.id, part.id))
                if call is not None and _has_outcome(call):
                    called.append(call)
    if any(text) or called:
        yield "".join(text), called


def _has_outcome(call: ToolCall) -> bool:
    is_approved = call.approval_id is not None and call.state == "executing"
    return call.result is not None or call.state == "denied" or is_approved


def _outcome(call: ToolCall) -> tuple[str, bool]:
    """What came of a call, as text, and whether it failed."""
    if call.result is None:
        return json.dumps({"approved": call.state != "denied"}), call.state == "denied"
    if call.result.error is not None:
        return as_text({"error": call.result.error}), True
    return as_text(call.result.output), False


def _input_object(call: ToolCall) -> Json:
    value = call.input if call.input is not None else parsed_json(call.arguments)
    return value if isinstance(value, dict) else {}


def _tanstack_message(message: Message) -> Json:
    return {
        "id": message.id,
        "role": message.role,
        "parts": as_json(message.parts),
        "createdAt": message.created_at,
    }


def _ui_message(message: Message, calls: Calls) -> Json:
    return {"id": message.id, "role": message.role, "parts": list(_ui_parts(message, calls))}


def _ui_parts(message: Message, calls: Calls) -> Iterator[Json]:
    """The parts; results stand with their calls."""
    for part in message.parts:
        match part:
            case TextPart():
                yield _block(part.content)
            case ThinkingPart():
                yield {"type": "reasoning", "text": part.content}
            case ToolCallPart():
                yield _ui_tool(part, calls.get((message.id, part.id)))
            case OtherPart():
                yield part.value


def _ui_tool(part: ToolCallPart, call: ToolCall | None) -> Json:
    value = parsed_json(part.arguments) if call is None else call.input
    tool: Json = {"type": f"tool-{part.name}", "toolCallId": part.id, "state": "input-available", "input": value}
    if part.approval is not None:
        answer = {} if part.approval.approved is None else {"approved": part.approval.approved}
        tool["approval"] = {"id": part.approval.id, **answer}
        tool["state"] = "approval-responded" if answer else "approval-requested"
    if call is not None and call.result is not None:
        if call.result.error is None:
            tool |= {"state": "output-available", "output": call.result.output}
        else:
            tool |= {"state": "output-error", "errorText": call.result.error}
    return tool
