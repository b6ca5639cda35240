"""Rows of durable sessions, as they stand in a stream."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

Row = dict[str, Any]


class Author:
    """Writes one message, numbering its chunks. Each row is a second later than the one before, whoever wrote that."""

    def __init__(self, message_id: str, role: str = "assistant", actor_id: str = "agent") -> None:
        self.message_id = message_id
        self.role = role
        self.actor_id = actor_id
        self._seq = count()

    def row(self, type: str, **fields: Any) -> Row:
        return row(
            self.message_id,
            {"type": type, **fields},
            role=self.role,
            actor_id=self.actor_id,
            seq=next(self._seq),
        )

    def content(self, delta: str, content: str = "") -> Row:
        return self.row("content", delta=delta, content=content, id="c", model="m", timestamp=0)

    def call(self, call_id: str, arguments: str, name: str = "weather") -> Row:
        function = {"name": name, "arguments": arguments}
        return self.row("tool_call", toolCall={"id": call_id, "type": "function", "function": function}, index=0)

    def ask(self, call_id: str, approval_id: str) -> Row:
        approval = {"id": approval_id, "needsApproval": True}
        return self.row("approval-requested", toolCallId=call_id, toolName="weather", input={}, approval=approval)

    def done(self, reason: str | None = "stop", **usage: int) -> Row:
        return self.row("done", finishReason=reason, **({"usage": usage} if usage else {}))


def row(
    message_id: str,
    chunk: object,
    *,
    role: str = "user",
    actor_id: str = "ann",
    seq: int = 0,
    at: str | None = None,
    txid: str | None = None,
) -> Row:
    value = {
        "messageId": message_id,
        "actorId": actor_id,
        "role": role,
        "chunk": chunk if isinstance(chunk, str) else json.dumps(chunk),
        "seq": seq,
        "createdAt": at or f"2030-01-01T00:00:{seq % 60:02d}.000Z",
    }
    headers = {"operation": "insert"} | ({} if txid is None else {"txid": txid})
    return {"type": "chunk", "key": f"{message_id}:{seq}", "value": value, "headers": headers}


def said(message_id: str, text: str, *, role: str = "user", actor_id: str = "ann", **options: Any) -> Row:
    message = {"id": message_id, "role": role, "parts": [{"type": "text", "content": text}]}
    return row(message_id, {"type": "user-message", "message": message}, actor_id=actor_id, **options)


def result(call_id: str, output: object, *, message_id: str = "result", error: object = None, **options: Any) -> Row:
    chunk = {"type": "tool-result", "toolCallId": call_id, "output": output, "error": error}
    return row(message_id, chunk, **options)


def answer(approval_id: str, approved: bool, *, message_id: str = "answer", **options: Any) -> Row:
    return row(message_id, {"type": "approval-response", "approvalId": approval_id, "approved": approved}, **options)


def presence(actor_id: str, status: str = "online", *, kind: str = "user", **fields: Any) -> Row:
    value = {"actorId": actor_id, "actorType": kind, "status": status, "lastSeenAt": "2030-01-01T00:00:00Z", **fields}
    return {"type": "presence", "key": actor_id, "value": value, "headers": {"operation": "upsert"}}


def agent(agent_id: str, **fields: Any) -> Row:
    value = {"agentId": agent_id, "endpoint": "https://agents.example/a", **fields}
    return {"type": "agent", "key": agent_id, "value": value, "headers": {"operation": "upsert"}}


def turn(turn_id: str, message_id: str, *, cause_id: str = "u", agent_id: str = "agent", **fields: Any) -> Row:
    value = {"agentId": agent_id, "messageId": message_id, "causeId": cause_id, "kind": "message", "depth": 1}
    value["createdAt"] = "2030-01-01T00:00:00Z"
    return {"type": "turn", "key": turn_id, "value": {**value, **fields}, "headers": {"operation": "insert"}}


def removed(type: str, key: str) -> Row:
    return {"type": type, "key": key, "headers": {"operation": "delete"}}


def recorded_session() -> list[Row]:
    """A session of 36 rows: two questions, and answers of 12 and of 22 rows, the second with a tool that ran."""
    first, second = Author("a1"), Author("a2")
    words = ["The", " sun", " is", " a", " star", ",", " as", " you", " know", ".", " ☀"]
    again = ["In", " Łódź", " it", " is", " 21", " °C", ".", " Nothing", " but", " sun", ",", " all", " day", "."]
    return [
        said("u1", "What is the sun?"),
        *(first.content(word, "".join(words[: number + 1])) for number, word in enumerate(words)),
        first.done("stop", promptTokens=51, completionTokens=11, totalTokens=62),
        said("u2", "And the weather?"),
        second.row("thinking", delta="Hm.", content="Hm."),
        second.call("call", ""),
        second.call("call", '{"city": '),
        second.call("call", '"Łódź"}'),
        second.done("tool_calls"),
        second.row("tool_result", toolCallId="call", content='{"celsius": 21}'),
        *(second.content(word, "".join(again[: number + 1])) for number, word in enumerate(again)),
        second.row("thinking", delta="", content="Hm."),
        second.done("stop", prompt_tokens=100, completion_tokens=10, total_tokens=110),
    ]
