"""The steps of an answer as AG-UI events, which are TanStack AI's chunks; and the messages that such chunks come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from streamkeep.sessions.answers import (
    Began,
    BlockEnded,
    CallBegan,
    CallInput,
    CallReady,
    Failed,
    Finished,
    Said,
    Step,
    Thought,
)

Chunk = dict[str, Any]


class AgUiWriter:
    """One answer, which is one run. All of its text is one message; each block of reasoning has a message of its own."""

    def __init__(self, thread_id: str, run_id: str, message_id: str | None) -> None:
        self._run = {"threadId": thread_id, "runId": run_id}
        self._message_id = message_id or f"{run_id}-answer"
        self._has_text = False
        self._thinking: dict[str, str] | None = None

    def write(self, step: Step) -> Iterator[Chunk]:
        message = {"messageId": self._message_id}
        match step:
            case Began():
                yield {"type": "RUN_STARTED", **self._run}
            case Said():
                if not self._has_text:
                    self._has_text = True
                    yield {"type": "TEXT_MESSAGE_START", **message, "role": "assistant"}
                yield {"type": "TEXT_MESSAGE_CONTENT", **message, "delta": step.text}
            case Thought():
                if self._thinking is None:
                    self._thinking = {"messageId": f"{self._message_id}-{step.block}"}
                    yield {"type": "REASONING_START", **self._thinking}
                    yield {"type": "REASONING_MESSAGE_START", **self._thinking, "role": "reasoning"}
                yield {"type": "REASONING_MESSAGE_CONTENT", **self._thinking, "delta": step.text}
            case BlockEnded():
                if self._thinking is not None:
                    yield {"type": "REASONING_MESSAGE_END", **self._thinking}
                    yield {"type": "REASONING_END", **self._thinking}
                    self._thinking = None
            case CallBegan():
                named = {"toolCallId": step.id, "toolCallName": step.name}
                yield {"type": "TOOL_CALL_START", **named, "parentMessageId": self._message_id}
            case CallInput():
                yield {"type": "TOOL_CALL_ARGS", "toolCallId": step.id, "delta": step.text}
            case CallReady():
                yield {"type": "TOOL_CALL_END", "toolCallId": step.id}
            case Finished():
                if self._has_text:
                    yield {"type": "TEXT_MESSAGE_END", **message}
                reason = None if step.reason == "other" else step.reason
                yield {"type": "RUN_FINISHED", **self._run, "finishReason": reason, **_usage(step)}
            case Failed():
                error = {"message": step.message}
                yield {"type": "RUN_ERROR", **self._run, **error, "error": error}


def _usage(finished: Finished) -> Chunk:
    if finished.usage is None:
        return {}
    usage = finished.usage
    counts = {"inputTokens": usage.input, "outputTokens": usage.output, "totalTokens": usage.total}
    return {"usage": [{name: count for name, count in counts.items() if count is not None}]}


def messages_of(chunks: Iterable[Any]) -> list[dict[str, Any]]:
    """A chat's messages as TanStack AI's front end keeps them: text and tool calls, in parts. Reasoning and all other
    chunks are passed over."""
    messages: dict[str, dict[str, Any]] = {}
    calls: dict[str, dict[str, Any]] = {}
    for chunk in chunks:
        match chunk:
            case {"type": "TEXT_MESSAGE_START", "messageId": str(name), "role": str(role)}:
                _message(messages, name, "assistant" if role == "tool" else role)
            case {"type": "TEXT_MESSAGE_CONTENT", "messageId": str(name), "delta": str(delta)}:
                _say(_message(messages, name, "assistant"), delta)
            case {
                "type": "TOOL_CALL_START",
                "toolCallId": str(call),
                "toolCallName": str(tool),
                "parentMessageId": str(name),
            }:
                calls[call] = {
                    "type": "tool-call",
                    "id": call,
                    "name": tool,
                    "arguments": "",
                    "state": "awaiting-input",
                }
                _message(messages, name, "assistant")["parts"].append(calls[call])
            case {"type": "TOOL_CALL_ARGS", "toolCallId": str(call), "delta": str(delta)} if call in calls:
                calls[call]["arguments"] += delta
                calls[call]["state"] = "input-streaming"
            case {"type": "TOOL_CALL_END", "toolCallId": str(call)} if call in calls:
                calls[call]["state"] = "input-complete"
    return list(messages.values())


def _message(messages: dict[str, dict[str, Any]], name: str, role: str) -> dict[str, Any]:
    return messages.setdefault(name, {"id": name, "role": role, "parts": []})


def _say(message: dict[str, Any], delta: str) -> None:
    parts = message["parts"]
    if not parts or parts[-1]["type"] != "text":
        parts.append({"type": "text", "content": ""})
    parts[-1]["content"] += delta
