"""What the events of a session's stream say. Whatever is malformed, or of another type, is None: it blocks nobody else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from streamkeep.sessions.json_text import json_value, whole_number
from streamkeep.sessions.state_events import Change
from streamkeep.sessions.views import Agent, ForkedFrom, Place, Presence, Role, SessionInfo, Turn, TurnKind

_ROLES = frozenset(get_args(Role))
_TURN_KINDS = frozenset(get_args(TurnKind))
MAX_DEPTH = 100
"""How often arrays and objects may be nested in a chunk, and in a call's arguments; what is deeper is malformed."""

# Beyond it other languages take one number for the next, so sums of tokens must stay below.
_MAX_NUMBER = 2**53 - 1
_MAX_TOKENS = 10**9
_MAX_TURN_DEPTH = 10**6
_MAX_DIGITS = 15
# So many calls of a message may share an id.
_MAX_INDEX = 999


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a message, or an answer to one. `fields` is what stood in it, `type` its kind."""

    message_id: str
    actor_id: str
    role: Role
    seq: int | None
    created_at: str
    type: str
    fields: dict[str, Any]
    actor_name: str | None = None


def parse_chunk(change: Change) -> Chunk | None:
    """The chunk in a change of type `chunk`."""
    value = change.value
    if change.operation == "delete" or not isinstance(value, dict):
        return None
    message_id, actor_id, role = value.get("messageId"), value.get("actorId"), value.get("role")
    seq, created_at = whole_number(value.get("seq"), -_MAX_NUMBER, _MAX_NUMBER), value.get("createdAt")
    fields = _parsed(value.get("chunk"))
    if not (isinstance(message_id, str) and message_id and isinstance(actor_id, str) and isinstance(role, str)):
        return None
    if role not in _ROLES or fields is None or not isinstance(fields.get("type"), str):
        return None
    return Chunk(
        message_id=message_id,
        actor_id=actor_id,
        role=cast("Role", role),
        seq=seq,
        created_at=created_at if isinstance(created_at, str) else "",
        type=fields["type"],
        fields=fields,
        actor_name=text_or_none(value.get("actorName")) or None,
    )


def parse_row_key(key: str) -> tuple[str, int] | None:
    """Message id and number out of a chunk row's key."""
    message_id, _, number = key.rpartition(":")
    if not message_id or not (number.isascii() and number.isdigit()) or len(number) > _MAX_DIGITS:
        return None
    return message_id, int(number)


def parse_presence(change: Change) -> Presence | None:
    """What a change of type `presence` says of its actor, whose id is the key."""
    value = change.value
    if not isinstance(value, dict):
        return None
    kind, status = value.get("actorType"), value.get("status")
    if kind not in ("user", "agent") or status not in ("online", "offline", "away"):
        return None
    return Presence(
        change.key,
        kind,
        text_or_none(value.get("name")),
        status,
        text_or_none(value.get("lastSeenAt")) or "",
        typing=value.get("typing") is True,
    )


def parse_agent(change: Change) -> Agent | None:
    """What a change of type `agent` says of the agent whose id is the key."""
    value = change.value
    if not isinstance(value, dict):
        return None
    triggers = value.get("triggers")
    known = cast('Literal["all", "user-messages"]', triggers) if triggers in ("all", "user-messages") else None
    return Agent(change.key, text_or_none(value.get("name")), text_or_none(value.get("endpoint")), known)


def parse_turn(change: Change, start: Place) -> Turn | None:
    """The turn in a change of type `turn`, whose id is the key."""
    value = change.value
    if not isinstance(value, dict):
        return None
    agent_id, message_id, cause_id = value.get("agentId"), value.get("messageId"), value.get("causeId")
    kind, depth = value.get("kind"), whole_number(value.get("depth"), 1, _MAX_TURN_DEPTH)
    if not (isinstance(agent_id, str) and isinstance(message_id, str) and message_id and isinstance(cause_id, str)):
        return None
    if not (isinstance(kind, str) and kind in _TURN_KINDS) or depth is None:
        return None
    return Turn(
        id=change.key,
        agent_id=agent_id,
        message_id=message_id,
        cause_id=cause_id,
        kind=cast("TurnKind", kind),
        depth=depth,
        created_at=text_or_none(value.get("createdAt")) or "",
        start=start,
        spec_id=text_or_none(value.get("specId")),
    )


def parse_session(change: Change) -> SessionInfo | None:
    """What a change of type `session` says of the session whose id is the key."""
    value = change.value
    if not isinstance(value, dict):
        return None
    forked = value.get("forkedFrom")
    source = text_or_none(forked.get("sessionId")) if isinstance(forked, dict) else None
    origin = None
    if isinstance(forked, dict) and source:
        origin = ForkedFrom(source, text_or_none(forked.get("atMessageId")))
    name, created_at = text_or_none(value.get("name")), text_or_none(value.get("createdAt")) or ""
    return SessionInfo(change.key, name, created_at, origin)


def call_index(fields: dict[str, Any]) -> int | None:
    """Where among its message's calls stands the one that a chunk is of."""
    return whole_number(fields.get("index"), 0, _MAX_INDEX)


def text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def parsed_json(text: str) -> Any:
    """What a text of JSON says; None for what is none, or cannot be read by all."""
    try:
        return json_value(text, max_depth=MAX_DEPTH)
    except ValueError:
        return None


def as_text(value: object) -> str:
    """A tool's output as text: a text as it is, and anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def tokens(fields: dict[str, Any]) -> tuple[int, int, int]:
    """Prompt, completion and total tokens that a chunk reports, in either spelling."""
    usage = fields.get("usage")
    if not isinstance(usage, dict):
        return 0, 0, 0
    return (
        _count(usage, "promptTokens", "prompt_tokens"),
        _count(usage, "completionTokens", "completion_tokens"),
        _count(usage, "totalTokens", "total_tokens"),
    )


def _parsed(text: object) -> dict[str, Any] | None:
    found = parsed_json(text) if isinstance(text, str) else None
    return found if isinstance(found, dict) else None


def _count(usage: dict[str, Any], *names: str) -> int:
    counts = (whole_number(usage.get(name), 1, _MAX_TOKENS) for name in names)
    return next(filter(None, counts), 0)
