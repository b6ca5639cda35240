"""Sessions on the wire: where their routes are, what they are asked, and what their answers say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from streamkeep.client._errors import ProtocolError, ServerError, SessionNotFound, StreamGone, StreamNotFound
from streamkeep.client._rules import protocol
from streamkeep.sessions.agents import AgentFormat

Triggers = Literal["all", "user-messages"]

_ABSENT_CODES = frozenset(("not_found", "session_not_found", "gone"))


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """An agent: an HTTP endpoint that answers a conversation by a stream.

    `headers` go to it with each call. They are kept by the server and never told again. `triggers` says what wakes it:
    messages of people, or answers of other agents too ("all"). `body_template` goes along in each request. `format` says how
    it is told the session, and answers. Without one it is told as in chat completions, and may answer in any format.
    """

    id: str
    endpoint: str
    name: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    triggers: Triggers | None = None
    body_template: Mapping[str, Any] | None = None
    format: AgentFormat | None = None
    max_turns: int | None = None

    def as_json(self) -> dict[str, Any]:
        """As the server is told of it; with its secrets."""
        given = {
            "name": self.name,
            "headers": dict(self.headers) or None,
            "triggers": self.triggers,
            "bodyTemplate": None if self.body_template is None else dict(self.body_template),
            "format": self.format,
            "maxTurns": self.max_turns,
        }
        return {"id": self.id, "endpoint": self.endpoint, **present(given)}


@dataclass(frozen=True, slots=True)
class StartedTurn:
    """An agent that answers, and the id that its answer will have."""

    turn_id: str
    agent_id: str
    message_id: str


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that is stored, and the agents that answer it."""

    message_id: str
    turns: tuple[StartedTurn, ...]


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as its server lists it. Times are RFC 3339."""

    id: str
    name: str | None = None
    created_at: str | None = None
    updated_at: str | None = None


def session_url(base: str, *segments: str) -> str:
    """Where something of a session stands, beginning with its id; without one, the list of all."""
    return "/".join((base.rstrip("/"), "v1", "sessions", *(quote(segment, safe="") for segment in segments)))


def stream_url(base: str, session_id: str) -> str:
    """Where a session's events stand."""
    return f"{base.rstrip('/')}/v1/stream/sessions/{quote(session_id, safe='')}"


def present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def encoded(fields: Mapping[str, Any]) -> bytes:
    """A request's body. Raises: TypeError, ValueError: something in it is no JSON."""
    return json.dumps(fields, allow_nan=False).encode("ascii")


def refusal(error: ServerError, session_id: str) -> ServerError:
    """The same refusal in the words of sessions."""
    if not isinstance(error, StreamNotFound | StreamGone):
        return error
    if error.code in _ABSENT_CODES:
        return SessionNotFound(error.status, error.code, f"there is no session {session_id}")
    return ServerError(error.status, error.code, f"the session {session_id} has no such thing")


def parse_fields(content: bytes) -> dict[str, Any]:
    """An answer that is an object. Raises: ProtocolError."""
    found = protocol.parse_json(content, "the answer")
    if not isinstance(found, dict):
        raise ProtocolError("the answer is not a JSON object, so it is not the server's")
    return found


def parse_record(fields: object) -> SessionRecord:
    """Raises: ProtocolError."""
    if not isinstance(fields, dict):
        raise ProtocolError("the answer tells of no session")
    return SessionRecord(
        id=_text(fields, "sessionId"),
        name=_optional(fields, "name"),
        created_at=_optional(fields, "createdAt"),
        updated_at=_optional(fields, "updatedAt"),
    )


def parse_records(fields: Mapping[str, Any]) -> tuple[tuple[SessionRecord, ...], str | None]:
    """One page of sessions, and where the next one begins. Raises: ProtocolError."""
    rows = fields.get("sessions")
    if not isinstance(rows, list):
        raise ProtocolError("the answer is no list of sessions")
    return tuple(map(parse_record, rows)), _optional(fields, "next")


def parse_turns(fields: Mapping[str, Any]) -> tuple[StartedTurn, ...]:
    """The agents that answer. Raises: ProtocolError."""
    turns = fields.get("turns") or []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ProtocolError("the answer tells of no turns")
    return tuple(StartedTurn(_text(turn, "turnId"), _text(turn, "agentId"), _text(turn, "messageId")) for turn in turns)


def parse_offset(fields: Mapping[str, Any]) -> str | None:
    """The offset after what was stored, where the answer says it. Raises: ProtocolError."""
    return None if fields.get("offset") is None else protocol.check_offset(fields["offset"])


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise ProtocolError(f"the answer lacks `{name}`")
    return value


def _optional(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None
