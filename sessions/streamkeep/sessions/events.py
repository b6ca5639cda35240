"""The events of a session as they are written. Ids and times are the writer's; what is written here, the fold reads.

A row's key is `<message id>:<number>`. What a client answers to a tool call or an approval stands beside the message that
asked, under a key of its own, so that readers which group rows by message find no message more, and lose no row.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from streamkeep.sessions.state_events import delete, insert, upsert
from streamkeep.sessions.views import Agent, Presence, Role, SessionInfo, Turn

Event = dict[str, Any]
EndReason = Literal["done", "stop", "error"]

_ORDINARY_ID = re.compile(r"[A-Za-z0-9._~:@-]{1,200}")


def writer_id(kind: str, *ids: str) -> str:
    """The name of an idempotent writer of what bears these ids, so that a store takes the same thing once.

    `message` writes a message's rows, each by its number; `tool-result`, `approval` and `turn` write one event.
    """
    if len(ids) == 1 and _ORDINARY_ID.fullmatch(ids[0]):
        return f"{kind}:{ids[0]}"
    # Lengths are told, so that no two lists of ids make one text.
    named = "".join(f"{len(one)}:{one}" for one in ids)
    return f"{kind}#{hashlib.sha256(named.encode('utf-8', 'surrogatepass')).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Author:
    """Whoever writes a row."""

    actor_id: str
    name: str | None = None


def chunk_row(
    message_id: str,
    seq: int,
    chunk: Mapping[str, Any] | str,
    *,
    author: Author,
    role: Role,
    at: str,
    key: str | None = None,
) -> Event:
    """A row of a message; `key` where it is not that of its number. A chunk that is a text is JSON already."""
    value = {
        "messageId": message_id,
        "actorId": author.actor_id,
        "role": role,
        "chunk": chunk if isinstance(chunk, str) else json.dumps(chunk, ensure_ascii=False, separators=(",", ":")),
        "seq": seq,
        "createdAt": at,
        **_given(actorName=author.name),
    }
    return insert("chunk", key or row_key(message_id, seq), value)


def row_key(message_id: str, seq: int) -> str:
    return f"{message_id}:{seq}"


def whole_message(message_id: str, parts: Sequence[Mapping[str, Any]], *, author: Author, role: Role, at: str) -> Event:
    """A message that comes in one piece, whoever wrote it."""
    message = {"id": message_id, "role": role, "parts": list(parts), "createdAt": at}
    return chunk_row(message_id, 0, {"type": "user-message", "message": message}, author=author, role=role, at=at)


def tool_result(
    message_id: str, seq: int, tool_call_id: str, output: object, error: str | None, *, author: Author, at: str
) -> Event:
    """What a client's tool gave; `seq` is the number that follows those of the message with the call."""
    chunk = {"type": "tool-result", "toolCallId": tool_call_id, "output": output, "error": error}
    key = tool_result_key(message_id, tool_call_id)
    return chunk_row(message_id, seq, chunk, author=author, role="user", at=at, key=key)


def tool_result_key(message_id: str, tool_call_id: str) -> str:
    return f"{message_id}:tool-result:{tool_call_id}"


def approval_response(message_id: str, seq: int, approval_id: str, approved: bool, *, author: Author, at: str) -> Event:
    """Somebody's answer to an approval; `seq` is the number that follows those of the message that asked."""
    chunk = {"type": "approval-response", "approvalId": approval_id, "approved": approved}
    key = approval_key(message_id, approval_id)
    return chunk_row(message_id, seq, chunk, author=author, role="user", at=at, key=key)


def approval_key(message_id: str, approval_id: str) -> str:
    return f"{message_id}:approval:{approval_id}"


def message_start(turn: Turn, author: Author) -> dict[str, Any]:
    """The chunk with which an agent's answer begins."""
    return {"type": "message-start", "agentId": turn.agent_id, "turnId": turn.id, **_given(name=author.name)}


def answer_row(turn: Turn, seq: int, chunk: Mapping[str, Any] | str, *, author: Author, at: str) -> Event:
    """A row of an agent's answer."""
    return chunk_row(turn.message_id, seq, chunk, author=author, role="assistant", at=at)


def answer_end(
    turn: Turn, seq: int, reason: EndReason, *, author: Author, at: str, error: Mapping[str, Any] | None = None
) -> list[Event]:
    """The last rows of an answer that did not end by itself; from the first one on, where nothing was written yet."""
    begin = [answer_row(turn, 0, message_start(turn, author), author=author, at=at)] if seq == 0 else []
    last: dict[str, Any] = {"type": "stop", "reason": "aborted"} if error is None else {"type": "error", "error": error}
    seq += len(begin)
    return [
        *begin,
        answer_row(turn, seq, last, author=author, at=at),
        answer_row(turn, seq + 1, {"type": "message-end", "reason": reason}, author=author, at=at),
    ]


def turn_event(turn: Turn) -> Event:
    """An agent is called."""
    value = {
        "agentId": turn.agent_id,
        "messageId": turn.message_id,
        "causeId": turn.cause_id,
        "kind": turn.kind,
        "depth": turn.depth,
        "createdAt": turn.created_at,
        **_given(specId=turn.spec_id),
    }
    return insert("turn", turn.id, value)


def presence_event(presence: Presence) -> Event:
    """What an actor says of its presence."""
    value = {
        "actorId": presence.actor_id,
        "actorType": presence.actor_type,
        **_given(name=presence.name),
        "status": presence.status,
        "lastSeenAt": presence.last_seen_at,
        "typing": presence.typing,
    }
    return upsert("presence", presence.actor_id, value)


def agent_event(agent: Agent) -> Event:
    """An agent takes part. What is secret of it has no place here."""
    value = {"agentId": agent.id, **_given(name=agent.name, endpoint=agent.endpoint, triggers=agent.triggers)}
    return upsert("agent", agent.id, value)


def session_event(session: SessionInfo) -> Event:
    """A session's name, and where it came from."""
    value: dict[str, Any] = {**_given(name=session.name), "createdAt": session.created_at}
    origin = session.forked_from
    if origin is not None:
        value["forkedFrom"] = {"sessionId": origin.session_id, **_given(atMessageId=origin.at_message_id)}
    return upsert("session", session.id, value)


def removal(type: Literal["chunk", "turn", "presence", "agent"], key: str) -> Event:
    """What stands under this key is gone."""
    return delete(type, key)


def with_txid(events: Iterable[Event], txid: str | None) -> list[Event]:
    """The events of one write, the first of which tells the write's own id."""
    first, *rest = events
    if txid is not None:
        first = first | {"headers": first["headers"] | {"txid": txid}}
    return [first, *rest]


def _given(**fields: object) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}
