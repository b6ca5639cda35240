"""One message of a session as its chunks build it, and the tool calls in it.

The rules for parts are those of the `StreamProcessor` in version 0.1 of the npm package `@tanstack/ai`, whose chunks these
are. It differs from them in these points:

- An approval, and an output, stay with their tool call when its input completes after them.
- Text is shown once. What goes on after a tool call or a thought stands in a part of its own, without what was before it.
- Text without a `delta` grows by `content`; a name that comes later is taken where there was none.
- A `done` that announces tool calls ends the message only where one of them waits for a client: else its author goes on.
- Calls of one id, or of none, are apart when their pieces have another `index`: they get ids of their own. What then comes
  for the id they share is for the first of them that has none.
- A chunk that came before, by its number, is left out; what came first stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from streamkeep.sessions.chunks import Chunk, as_text, parsed_json, text_or_none
from streamkeep.sessions.views import (
    EndedBy,
    Message,
    OtherPart,
    Part,
    PartApproval,
    PartState,
    Place,
    Role,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolCallPart,
    ToolCallState,
    ToolResult,
    ToolResultPart,
)

_REASONS = frozenset(("done", "stop", "error"))
_ROLES = frozenset(get_args(Role))


class GrowingText:
    """Text that is appended to, and put together only when somebody looks."""

    __slots__ = ("_pieces",)

    def __init__(self, text: str = "") -> None:
        self._pieces = [text]

    def append(self, text: str) -> None:
        self._pieces.append(text)

    @property
    def value(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0]


@dataclass(slots=True)
class CallState:
    """A tool call. `has_part` when its arguments were streamed, so that it stands among its message's parts."""

    id: str
    message_id: str
    name: str
    actor_id: str
    created_at: str
    start: Place
    end: Place
    index: int | None = None
    arguments: GrowingText = field(default_factory=GrowingText)
    part_state: PartState = "awaiting-input"
    has_part: bool = False
    has_input: bool = False
    input: Any = None
    approval_id: str | None = None
    approved: bool | None = None
    result: ToolResult | None = None
    is_result_of_client: bool = False

    @property
    def state(self) -> ToolCallState:
        if self.result is not None:
            return "complete" if self.result.error is None else "error"
        if self.approved is False:
            return "denied"
        if self.approval_id is not None and self.approved is None:
            return "approval-requested"
        return "executing" if self.has_input or self.approved else "pending"

    @property
    def waits_for_client(self) -> bool:
        """Whether its author can do nothing before somebody answers."""
        return self.result is None and (self.has_input or (self.approval_id is not None and self.approved is None))

    @property
    def is_settled(self) -> bool:
        """Whether nobody else has to do anything: there is a result, or its author may run it, or it must not run."""
        return self.result is not None or self.approved is False or (self.approved is True and not self.has_input)

    def view(self) -> ToolCall:
        return ToolCall(
            id=self.id,
            message_id=self.message_id,
            name=self.name,
            arguments=self.arguments.value,
            input=self.input if self.has_input else parsed_json(self.arguments.value),
            state=self.state,
            actor_id=self.actor_id,
            created_at=self.created_at,
            approval_id=self.approval_id,
            result=self.result,
            start=self.start,
            end=self.end,
        )

    def part(self) -> ToolCallPart:
        state, output = self.part_state, None
        if self.approval_id is not None:
            state = "approval-requested" if self.approved is None else "approval-responded"
        if self.result is not None and self.is_result_of_client:
            state = "input-complete"
            output = self.result.output if self.result.error is None else {"error": self.result.error}
        approval = None if self.approval_id is None else PartApproval(self.approval_id, self.approved)
        return ToolCallPart(self.id, self.name, self.arguments.value, state, approval, output)


@dataclass(slots=True)
class TextState:
    """A part of text, or of thinking."""

    text: GrowingText
    is_thinking: bool = False

    def view(self) -> Part:
        return ThinkingPart(self.text.value) if self.is_thinking else TextPart(self.text.value)


@dataclass(slots=True)
class CallPlace:
    """Where among the parts a tool call stands."""

    call: CallState

    def view(self) -> Part:
        return self.call.part()


@dataclass(slots=True)
class FixedPart:
    """A part that is written whole."""

    part: Part

    def view(self) -> Part:
        return self.part


PartInProgress = TextState | CallPlace | FixedPart


@dataclass(frozen=True, slots=True)
class WholeMessage:
    """A message that comes in one piece, as users write them."""

    role: Role | None
    created_at: str | None
    parts: tuple[FixedPart, ...]

    @classmethod
    def parse(cls, message: dict[str, Any]) -> WholeMessage:
        """What stands in a message. What is malformed in it is left out."""
        role, parts = message.get("role"), message.get("parts")
        if not isinstance(parts, list):
            content = text_or_none(message.get("content"))
            parts = [] if content is None else [{"type": "text", "content": content}]
        return cls(
            cast("Role", role) if isinstance(role, str) and role in _ROLES else None,
            text_or_none(message.get("createdAt")),
            tuple(FixedPart(_whole_part(part)) for part in parts if isinstance(part, dict)),
        )


@dataclass(slots=True)
class MessageState:
    """A message in progress. Parts are named by their index: `segment` is the text so far, `results` are of tools.
    `namesakes` are the own ids of calls that their author gave one id."""

    id: str
    role: Role
    actor_id: str
    created_at: str
    start: Place
    end: Place
    last_chunk_at: str
    last_chunk_seq: int = 0
    is_whole: bool = False
    ended_by: EndedBy | None = None
    finish_reason: str | None = None
    error: str | None = None
    parts: list[PartInProgress] = field(default_factory=list)
    calls: dict[str, CallState] = field(default_factory=dict)
    namesakes: dict[str, list[str]] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=dict)
    approvals: list[str] = field(default_factory=list)
    thinking: int | None = None
    segment: list[int] = field(default_factory=list)
    has_open_calls: bool = False
    has_calls_since_text: bool = False
    has_start: bool = False
    has_end: bool = False
    actor_name: str | None = None
    next_seq: int = 0
    seqs_ahead: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    seen: Message | None = field(default=None, compare=False)
    seen_calls: tuple[ToolCall, ...] | None = field(default=None, compare=False)

    @property
    def is_complete(self) -> bool:
        return self.is_whole or self.ended_by is not None

    @property
    def is_written(self) -> bool:
        """Whether nothing more is to come: what announced its beginning announces its end too."""
        return self.has_end if self.has_start else self.is_complete

    def is_answered(self, answering: str | None) -> bool:
        """Whether it is complete, none of its tool calls is open, and people or their tools had a part in that. The call
        named `answering` counts as settled by them."""
        calls = self.calls.values()
        return (
            self.is_complete
            and all(call.is_settled or call.id == answering for call in calls)
            and any(call.is_result_of_client or call.approved is not None or call.id == answering for call in calls)
        )

    @property
    def is_deleted(self) -> bool:
        """Whether all its rows were deleted."""
        return len(self.deleted) == self.next_seq + len(self.seqs_ahead) > 0

    @property
    def numbers(self) -> list[int]:
        """The numbers of its rows."""
        return [*range(self.next_seq), *sorted(self.seqs_ahead)]

    def delete(self, seq: int) -> None:
        """One of its rows was deleted. Nothing changes before all of them are."""
        if seq < self.next_seq or seq in self.seqs_ahead:
            self.deleted.add(seq)

    def view(self) -> Message:
        """The message as it is now; the same object until it changes."""
        if self.seen is None:
            self.seen = Message(
                id=self.id,
                role=self.role,
                parts=tuple(part.view() for part in self.parts),
                actor_id=self.actor_id,
                created_at=self.created_at,
                is_complete=self.is_complete,
                ended_by=self.ended_by,
                finish_reason=self.finish_reason,
                error=self.error,
                start=self.start,
                end=self.end,
                actor_name=self.actor_name,
            )
        return self.seen

    def call_views(self) -> tuple[ToolCall, ...]:
        """Its tool calls as they are now; the same objects until it changes."""
        if self.seen_calls is None:
            self.seen_calls = tuple(call.view() for call in self.calls.values())
        return self.seen_calls

    def change(self) -> None:
        """What was seen of it does not hold any more."""
        self.seen = self.seen_calls = None

    def takes(self, seq: int | None) -> bool:
        """Whether a chunk of that number is a new one. One without a number always is."""
        if seq is None:
            return True
        if seq < self.next_seq or seq in self.seqs_ahead:
            return False
        self.seqs_ahead.add(seq)
        while self.next_seq in self.seqs_ahead:
            self.seqs_ahead.remove(self.next_seq)
            self.next_seq += 1
        return True

    def write_whole(self, message: WholeMessage) -> None:
        """It comes in one piece; its own role and time win over its row's."""
        self.is_whole = True
        self.role = message.role or self.role
        self.created_at = message.created_at or self.created_at
        self.parts = list(message.parts)

    def write(self, chunk: Chunk) -> None:
        """Take a chunk of a message that streams. What is malformed changes nothing."""
        fields = chunk.fields
        match chunk.type:
            case "content":
                self._complete_calls()
                self._write_text(fields)
            case "thinking":
                self._write_thinking(fields)
            case "done":
                self._complete_calls()
                self._finish(text_or_none(fields.get("finishReason")))
            case "error":
                self.error = _error_text(fields.get("error"))
                self._end("error")
            case "stop":
                self._end("stop")
            case "message-start":
                self.has_start = True
            case "message-end":
                self.has_end = True
                self._end(_reason(fields.get("reason")))

    def called_id(self, shared: str, index: int | None) -> str:
        """The own id of the call of which a piece came; empty where nothing tells it."""
        if index is None:
            return shared
        first = self.calls.get(shared)
        if shared and (first is None or first.index in (None, index)):
            return shared
        own = f"{shared or 'call'}-{index}"
        same = self.namesakes.setdefault(shared, [shared] if shared else [])
        if own not in same:
            same.append(own)
        return own

    def answered_id(self, shared: str, is_open: Callable[[CallState], bool]) -> str:
        """The own id of the call that something is for which names it by the id it may share."""
        return next((own for own in self.namesakes.get(shared, ()) if is_open(self.calls[own])), shared)

    def write_call(self, call: CallState, function: dict[str, Any]) -> None:
        """Take a piece of a tool call's arguments."""
        self.has_calls_since_text = True
        piece = text_or_none(function.get("arguments")) or ""
        if not call.has_part:
            call.has_part = True
            self.parts.append(CallPlace(call))
        if piece and call.part_state == "awaiting-input":
            call.part_state = "input-streaming"
        self.has_open_calls = self.has_open_calls or call.part_state != "input-complete"
        call.arguments.append(piece)
        call.name = call.name or text_or_none(function.get("name")) or ""

    def put_result(self, tool_call_id: str, output: object, error: str | None) -> None:
        """Show a tool's result; a later one takes the place of an earlier one."""
        made = FixedPart(
            ToolResultPart(tool_call_id, as_text(output), "complete" if error is None else "error", error),
        )
        index = self.results.setdefault(tool_call_id, len(self.parts))
        self.parts[index : index + 1] = [made]

    def end_if_it_waits(self) -> None:
        """Its author has announced tool calls, and one of them is a client's to run or to approve."""
        if self.finish_reason == "tool_calls" and any(call.waits_for_client for call in self.calls.values()):
            self._end("done")

    def _finish(self, reason: str | None) -> None:
        self.finish_reason = reason
        if reason == "tool_calls":
            self.end_if_it_waits()
        else:
            self._end("done")

    def _end(self, by: EndedBy) -> None:
        self.ended_by = self.ended_by or by
        self._complete_calls()

    def _complete_calls(self) -> None:
        if self.has_open_calls:
            self.has_open_calls = False
            for call in self.calls.values():
                call.part_state = "input-complete"

    def _write_text(self, fields: dict[str, Any]) -> None:
        delta, content = text_or_none(fields.get("delta")), text_or_none(fields.get("content"))
        if content is not None and self._has_begun_anew(content):
            self.segment = []
            self.has_calls_since_text = False
        added = delta or (_rest(content, self._segment_text) if content else "")
        if not added:
            return
        last = len(self.parts) - 1
        if self.segment and self.segment[-1] == last:
            cast("TextState", self.parts[last]).text.append(added)
        else:
            self.segment.append(len(self.parts))
            self.parts.append(TextState(GrowingText(added)))

    def _has_begun_anew(self, content: str) -> bool:
        """Whether what is said to be the whole text so far stands behind tool calls, and does not go on from the text."""
        return bool(self.segment) and self.has_calls_since_text and not content.startswith(self._segment_text)

    @property
    def _segment_text(self) -> str:
        """What was written since text began anew: agents tell the whole of it with every chunk. It is put together for those
        who do: for each piece of a long text that would take ever longer."""
        return "".join(cast("TextState", self.parts[index]).text.value for index in self.segment)

    def _write_thinking(self, fields: dict[str, Any]) -> None:
        if self.thinking is None:
            self.thinking = len(self.parts)
            self.parts.append(TextState(GrowingText(), is_thinking=True))
        thought = cast("TextState", self.parts[self.thinking])
        delta = text_or_none(fields.get("delta"))
        thought.text.append(delta or _rest(text_or_none(fields.get("content")) or "", thought.text.value))


def _reason(reason: object) -> EndedBy:
    """What an end says of itself."""
    return cast("EndedBy", reason) if isinstance(reason, str) and reason in _REASONS else "message-end"


def _whole_part(part: dict[str, Any]) -> Part:
    content = part.get("content")
    if part.get("type") == "text" and isinstance(content, str):
        return TextPart(content)
    return OtherPart(part)


def _rest(content: str, text: str) -> str:
    """What a cumulative text adds."""
    if content.startswith(text):
        return content[len(text) :]
    return "" if text.startswith(content) else content


def _error_text(error: object) -> str:
    """An error is a text, or an object with a message."""
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) and error else "the generation failed"
