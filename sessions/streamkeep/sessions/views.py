"""What a durable session is made of, as it is shown: values that never change. `as_json` writes them for other languages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal

Role = Literal["user", "assistant", "system"]
ToolCallState = Literal["pending", "approval-requested", "executing", "denied", "complete", "error"]
PartState = Literal[
    "awaiting-input",
    "input-streaming",
    "input-complete",
    "approval-requested",
    "approval-responded",
    "complete",
    "error",
]
ApprovalStatus = Literal["pending", "approved", "denied"]
EndedBy = Literal["done", "stop", "error", "message-end"]
TurnKind = Literal["message", "answers", "regenerate", "agent"]


@dataclass(frozen=True, slots=True)
class Place:
    """A place between two events of a session's stream.

    `position` says how many events stand before it. The place is reached by reading from `offset` and leaving out
    `sub_offset` messages; a fork takes both as they are. One place has many such addresses, so only `position` is compared.
    """

    position: int
    offset: str = field(compare=False)
    sub_offset: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text that was written in one go."""

    content: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, slots=True)
class ThinkingPart:
    """What a model thought before it answered."""

    content: str
    type: Literal["thinking"] = "thinking"


@dataclass(frozen=True, slots=True)
class PartApproval:
    """The approval that a tool call needs; `approved` is None until it is answered."""

    id: str
    approved: bool | None = None
    needs_approval: Literal[True] = True


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A tool call in its message. `arguments` is JSON text, and incomplete while it streams."""

    id: str
    name: str
    arguments: str
    state: PartState
    approval: PartApproval | None = None
    output: Any = None
    type: Literal["tool-call"] = "tool-call"


@dataclass(frozen=True, slots=True)
class ToolResultPart:
    """What a tool gave back, as text; JSON where it was none."""

    tool_call_id: str
    content: str
    state: PartState
    error: str | None = None
    type: Literal["tool-result"] = "tool-result"


@dataclass(frozen=True, slots=True)
class OtherPart:
    """A part of a user's message that is not text, as it was written."""

    value: dict[str, Any]
    type: Literal["other"] = "other"


Part = TextPart | ThinkingPart | ToolCallPart | ToolResultPart | OtherPart


@dataclass(frozen=True, slots=True)
class Message:
    """One message. From `start` to `end` stand all events that made it what it is, and maybe others among them.

    `is_complete` is false while its author goes on. `ended_by` says what ended it; a user's message is complete without.
    """

    id: str
    role: Role
    parts: tuple[Part, ...]
    actor_id: str
    created_at: str
    is_complete: bool
    ended_by: EndedBy | None
    finish_reason: str | None
    error: str | None
    start: Place
    end: Place
    actor_name: str | None = None

    @property
    def text(self) -> str:
        """All of its text, without what was thought."""
        return "".join(part.content for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a tool call: `output`, or an `error`. `actor_id` is whoever ran the tool."""

    tool_call_id: str
    message_id: str
    output: Any
    error: str | None
    actor_id: str
    created_at: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call. `input` is what its arguments say, or None while they are incomplete."""

    id: str
    message_id: str
    name: str
    arguments: str
    input: Any
    state: ToolCallState
    actor_id: str
    created_at: str
    approval_id: str | None
    result: ToolResult | None
    start: Place
    end: Place


@dataclass(frozen=True, slots=True)
class Approval:
    """A question whether a tool may run; the first answer counts."""

    id: str
    tool_call_id: str
    message_id: str
    tool_name: str
    input: Any
    status: ApprovalStatus
    requested_by: str
    requested_at: str
    responded_by: str | None
    responded_at: str | None


@dataclass(frozen=True, slots=True)
class ActiveGeneration:
    """A message whose author goes on. Times are those of its first and its last chunk; before the first one, that of its
    turn, and the number is -1."""

    message_id: str
    actor_id: str
    started_at: str
    last_chunk_at: str
    last_chunk_seq: int


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that takes part. Nothing secret stands in a session's stream."""

    id: str
    name: str | None
    endpoint: str | None
    triggers: Literal["all", "user-messages"] | None


@dataclass(frozen=True, slots=True)
class Turn:
    """One call of one agent, which answers `cause_id` in `message_id`; pending until that answer has ended.

    `kind` says why: a message was sent, or sent again; all its tool calls were answered; another agent has spoken. `depth`
    counts the turns from the message of a person on, beginning with 1. `spec_id` names what the server keeps of an agent that
    came with a message and is not registered. `start` is where the turn stands in the stream.
    """

    id: str
    agent_id: str
    message_id: str
    cause_id: str
    kind: TurnKind
    depth: int
    created_at: str
    start: Place
    spec_id: str | None = None
    is_pending: bool = True


@dataclass(frozen=True, slots=True)
class ForkedFrom:
    """Where a session branched off: behind the message of this id, or with None at the end."""

    session_id: str
    at_message_id: str | None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a session says of itself."""

    id: str
    name: str | None
    created_at: str
    forked_from: ForkedFrom | None


@dataclass(frozen=True, slots=True)
class Presence:
    """What an actor says of its own presence; `Participant` tells of everybody else too."""

    actor_id: str
    actor_type: Literal["user", "agent"]
    name: str | None
    status: Literal["online", "offline", "away"]
    last_seen_at: str
    typing: bool = False

    def is_stale(self, now: datetime, *, after_seconds: float = 60.0) -> bool:
        """Whether nothing was heard for so long; a time that cannot be read is long ago."""
        try:
            seen_at = datetime.fromisoformat(self.last_seen_at)
            return (now - seen_at).total_seconds() > after_seconds
        except (ValueError, TypeError):
            return True


@dataclass(frozen=True, slots=True)
class Participant:
    """Somebody who wrote, or was present. `last_active_at` is the time of what came last of him."""

    actor_id: str
    actor_type: Literal["user", "agent"]
    name: str | None
    message_count: int
    last_active_at: str


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """Counts over the whole session. Tokens are sums over all that was reported."""

    message_count: int = 0
    user_message_count: int = 0
    assistant_message_count: int = 0
    tool_call_count: int = 0
    approval_count: int = 0
    active_generation_count: int = 0
    first_message_at: str | None = None
    last_message_at: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SessionChanges:
    """What a batch of events touched: ids of messages (their tool calls and approvals too), actors, agents and turns, of those
    that are gone as well. `session` when the session's own name or origin was told."""

    message_ids: tuple[str, ...] = ()
    actor_ids: tuple[str, ...] = ()
    agent_ids: tuple[str, ...] = ()
    txids: tuple[str, ...] = ()
    was_reset: bool = False
    turn_ids: tuple[str, ...] = ()
    session: bool = False


def as_json(view: object) -> Any:
    """Any of these values, or a collection of them, as JSON; names in camel case, and None left out."""
    if isinstance(view, OtherPart):
        return view.value
    if is_dataclass(view) and not isinstance(view, type):
        named = ((camel, getattr(view, name)) for name, camel in _names(type(view)))
        return {camel: as_json(value) for camel, value in named if value is not None}
    if isinstance(view, list | tuple):
        return [as_json(one) for one in view]
    return view


def json_pieces(view: object) -> Iterator[str]:
    """The text of what `as_json` makes of a view, value by value. What an iterator gives is written as a list."""
    if isinstance(view, OtherPart):
        yield _text(view.value)
    elif is_dataclass(view) and not isinstance(view, type):
        separator = "{"
        for name, camel in _names(type(view)):
            value = getattr(view, name)
            if value is not None:
                yield f'{separator}"{camel}":'
                yield from json_pieces(value)
                separator = ","
        yield "{}" if separator == "{" else "}"
    elif isinstance(view, list | tuple | Iterator):
        separator = "["
        for one in view:
            yield separator
            yield from json_pieces(one)
            separator = ","
        yield "[]" if separator == "[" else "]"
    else:
        yield _text(view)


def _text(value: object) -> str:
    """`null` for what has no form in JSON: an immense number, or what is too deep to be written."""
    try:
        return _encode(value)
    except (RecursionError, ValueError):
        return "null"


@cache
def _names(view: type) -> tuple[tuple[str, str], ...]:
    """The names of a view's fields, and the same in camel case."""
    return tuple((one.name, _camel(one.name)) for one in fields(view))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
