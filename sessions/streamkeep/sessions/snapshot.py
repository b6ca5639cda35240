"""All that the fold of a session knows, and the same as JSON, so that a client can keep it and read on from there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from streamkeep.sessions.messages import (
    CallPlace,
    CallState,
    FixedPart,
    GrowingText,
    MessageState,
    PartInProgress,
    TextState,
)
from streamkeep.sessions.views import (
    Agent,
    Approval,
    ForkedFrom,
    OtherPart,
    Participant,
    Place,
    Presence,
    SessionInfo,
    SessionStatistics,
    TextPart,
    ToolResult,
    ToolResultPart,
    Turn,
)

_VERSION = 3


@dataclass(frozen=True, slots=True)
class EarlyResult:
    """A result that came before its tool call."""

    result: ToolResult
    is_of_client: bool


@dataclass(frozen=True, slots=True)
class EarlyAnswer:
    """An answer that came before its question."""

    approved: bool
    actor_id: str
    at: str


@dataclass(slots=True)
class SessionState:
    """All that a fold knows. `calls` are the newest by their ids; what came early waits by the id that it answers.

    `turns` are by their ids, `answers` those ids by their answers, and `pending` the turns by answers that have not ended.
    `gone` are ids of deleted messages.
    """

    messages: dict[str, MessageState] = field(default_factory=dict)
    active: dict[str, MessageState] = field(default_factory=dict)
    calls: dict[str, CallState] = field(default_factory=dict)
    approvals: dict[str, Approval] = field(default_factory=dict)
    early_results: dict[str, EarlyResult] = field(default_factory=dict)
    early_answers: dict[str, EarlyAnswer] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    presence: dict[str, Presence] = field(default_factory=dict)
    participants: dict[str, Participant] = field(default_factory=dict)
    session: SessionInfo | None = None
    turns: dict[str, Turn] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    pending: dict[str, Turn] = field(default_factory=dict)
    gone: dict[str, None] = field(default_factory=dict)
    counts: SessionStatistics = field(default_factory=SessionStatistics)


def copied(state: SessionState, message_ids: Iterable[str]) -> SessionState:
    """The same state with collections of its own. Messages stay shared, but for those whose ids are given."""
    own_state = copy(state)
    for one in fields(SessionState):
        value = getattr(state, one.name)
        if isinstance(value, dict):
            setattr(own_state, one.name, dict(value))
    for message_id in message_ids:
        message = state.messages.get(message_id)
        if message is None:
            continue
        own = own_state.messages[message_id] = deepcopy(message)
        if message_id in own_state.active:
            own_state.active[message_id] = own
        newest = (call_id for call_id, call in message.calls.items() if state.calls.get(call_id) is call)
        own_state.calls.update({call_id: own.calls[call_id] for call_id in newest})
    return own_state


def dump(offset: str, position: int, state: SessionState) -> dict[str, Any]:
    """A snapshot."""
    return {
        "version": _VERSION,
        "offset": offset,
        "position": position,
        "messages": [_dump_message(message) for message in state.messages.values()],
        "calls": {call.id: call.message_id for call in state.calls.values()},
        "approvals": [asdict(one) for one in state.approvals.values()],
        "earlyResults": [asdict(one) for one in state.early_results.values()],
        "earlyAnswers": {approval_id: asdict(one) for approval_id, one in state.early_answers.items()},
        "agents": [asdict(one) for one in state.agents.values()],
        "presence": [asdict(one) for one in state.presence.values()],
        "participants": [asdict(one) for one in state.participants.values()],
        "session": None if state.session is None else asdict(state.session),
        "turns": [asdict(one) for one in state.turns.values()],
        "answers": dict(state.answers),
        "gone": list(state.gone),
        "counts": asdict(state.counts),
    }


def load(snapshot: object) -> tuple[str, int, SessionState]:
    """Offset, position and state out of a snapshot. Raises: ValueError: it is none, or one of another version."""
    if not isinstance(snapshot, dict) or snapshot.get("version") != _VERSION:
        raise ValueError("this is no snapshot of a session, or one of another version")
    try:
        return str(snapshot["offset"]), int(snapshot["position"]), _load_state(snapshot)
    except (AttributeError, IndexError, KeyError, TypeError) as exc:
        raise ValueError("the snapshot of the session is damaged") from exc


def _load_state(snapshot: Mapping[str, Any]) -> SessionState:
    messages = {message.id: message for message in map(_load_message, snapshot["messages"])}
    early_results = [
        EarlyResult(ToolResult(**one["result"]), is_of_client=one["is_of_client"]) for one in snapshot["earlyResults"]
    ]
    turns = {turn.id: turn for turn in map(_load_turn, snapshot["turns"])}
    return SessionState(
        messages=messages,
        active={message.id: message for message in messages.values() if not message.is_complete},
        calls={call_id: messages[message_id].calls[call_id] for call_id, message_id in snapshot["calls"].items()},
        approvals={one["id"]: Approval(**one) for one in snapshot["approvals"]},
        early_results={one.result.tool_call_id: one for one in early_results},
        early_answers={approval_id: EarlyAnswer(**one) for approval_id, one in snapshot["earlyAnswers"].items()},
        agents={one["id"]: Agent(**one) for one in snapshot["agents"]},
        presence={one["actor_id"]: Presence(**one) for one in snapshot["presence"]},
        participants={one["actor_id"]: Participant(**one) for one in snapshot["participants"]},
        session=_load_session(snapshot["session"]),
        turns=turns,
        answers=dict(snapshot["answers"]),
        pending={turn.message_id: turn for turn in turns.values() if turn.is_pending},
        gone=dict.fromkeys(snapshot["gone"]),
        counts=SessionStatistics(**snapshot["counts"]),
    )


def _load_turn(dumped: dict[str, Any]) -> Turn:
    return Turn(**dumped | {"start": Place(**dumped["start"])})


def _load_session(dumped: dict[str, Any] | None) -> SessionInfo | None:
    if dumped is None:
        return None
    origin = dumped["forked_from"]
    return SessionInfo(**dumped | {"forked_from": None if origin is None else ForkedFrom(**origin)})


def _dump_message(message: MessageState) -> dict[str, Any]:
    dumped = {one.name: getattr(message, one.name) for one in fields(MessageState) if one.compare}
    return dumped | {
        "start": asdict(message.start),
        "end": asdict(message.end),
        "parts": [_dump_part(part) for part in message.parts],
        "calls": [_dump_call(call) for call in message.calls.values()],
        "namesakes": {shared: list(ids) for shared, ids in message.namesakes.items()},
        "results": dict(message.results),
        "approvals": list(message.approvals),
        "segment": list(message.segment),
        "seqs_ahead": sorted(message.seqs_ahead),
        "deleted": sorted(message.deleted),
    }


def _load_message(dumped: dict[str, Any]) -> MessageState:
    calls = {call.id: call for call in map(_load_call, dumped["calls"])}
    return MessageState(
        **dumped
        | {
            "start": Place(**dumped["start"]),
            "end": Place(**dumped["end"]),
            "parts": [_load_part(part, calls) for part in dumped["parts"]],
            "calls": calls,
            "namesakes": {shared: list(ids) for shared, ids in dumped["namesakes"].items()},
            "results": dict(dumped["results"]),
            "approvals": list(dumped["approvals"]),
            "segment": list(dumped["segment"]),
            "seqs_ahead": set(dumped["seqs_ahead"]),
            "deleted": set(dumped["deleted"]),
        }
    )


def _dump_call(call: CallState) -> dict[str, Any]:
    dumped = {one.name: getattr(call, one.name) for one in fields(CallState)}
    return dumped | {
        "start": asdict(call.start),
        "end": asdict(call.end),
        "arguments": call.arguments.value,
        "result": None if call.result is None else asdict(call.result),
    }


def _load_call(dumped: dict[str, Any]) -> CallState:
    return CallState(
        **dumped
        | {
            "start": Place(**dumped["start"]),
            "end": Place(**dumped["end"]),
            "arguments": GrowingText(dumped["arguments"]),
            "result": None if dumped["result"] is None else ToolResult(**dumped["result"]),
        }
    )


def _dump_part(part: PartInProgress) -> dict[str, Any]:
    match part:
        case TextState():
            return {"kind": "thinking" if part.is_thinking else "text", "text": part.text.value}
        case CallPlace():
            return {"kind": "call", "id": part.call.id}
        case FixedPart():
            return {"kind": "fixed", "part": asdict(part.part)}


def _load_part(dumped: dict[str, Any], calls: Mapping[str, CallState]) -> PartInProgress:
    match dumped["kind"]:
        case "text" | "thinking" as kind:
            return TextState(GrowingText(dumped["text"]), is_thinking=kind == "thinking")
        case "call":
            return CallPlace(calls[dumped["id"]])
    fixed = {"text": TextPart, "tool-result": ToolResultPart, "other": OtherPart}[dumped["part"]["type"]]
    return FixedPart(fixed(**dumped["part"]))
