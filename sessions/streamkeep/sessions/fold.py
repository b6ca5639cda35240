"""A durable session out of its events, one after the other: the stream is the only truth, and this is what it says.

The order is that of the stream; clocks of writers decide nothing. An event changes one message, one actor or one agent, in
a time that does not grow with the session. What is malformed, and what comes a second time, changes nothing, so it does not
matter how events were gathered into batches, nor whether a batch is folded from a snapshot on.

Where the wire's own habits contradict each other, these rules hold:

- A tool's result counts whether it was written as `tool_result` with `content` or as `tool-result` with `output`.
- The answer to an approval settles it, for everybody and for ever. The first one counts.
- Results and answers of clients belong to their tool call. They are no messages, whatever message id they carry; they end
  nothing, and take the place of no chunk.
- What comes before the tool call or the approval that it answers waits for it.
- A generation is active until a chunk ends it: `stop`, `error`, `message-end`, or a `done` after which nobody goes on. Its
  times are those of its own chunks.
- A turn is pending until its answer has ended, and counts as an active generation before that answer has begun.
- A whole message keeps the role that it was written with.
- A message is gone when all its rows were deleted; deleting some of them changes nothing. What is gone does not come back.
  So is the answer of a turn that was deleted before it began.
- Messages stand in the order of their first events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, Self

from streamkeep.sessions import snapshot
from streamkeep.sessions.chunks import (
    Chunk,
    as_text,
    call_index,
    parse_agent,
    parse_presence,
    parse_row_key,
    parse_session,
    parse_turn,
    text_or_none,
    tokens,
)
from streamkeep.sessions.messages import CallState, MessageState, WholeMessage
from streamkeep.sessions.reading import Reading, read_event
from streamkeep.sessions.snapshot import EarlyAnswer, EarlyResult, SessionState
from streamkeep.sessions.state_events import Change
from streamkeep.sessions.views import (
    ActiveGeneration,
    Agent,
    Approval,
    Message,
    Participant,
    Place,
    Presence,
    SessionChanges,
    SessionInfo,
    SessionStatistics,
    ToolCall,
    ToolResult,
    Turn,
)

ActorKind = Literal["user", "agent"]

_START = "-1"


class _Touched:
    """What a batch changed, in order and once each."""

    def __init__(self) -> None:
        self.messages: dict[str, None] = {}
        self.actors: dict[str, None] = {}
        self.agents: dict[str, None] = {}
        self.txids: dict[str, None] = {}
        self.turns: dict[str, None] = {}
        self.was_reset = False
        self.session = False

    def told(self) -> SessionChanges:
        return SessionChanges(
            tuple(self.messages),
            tuple(self.actors),
            tuple(self.agents),
            tuple(self.txids),
            self.was_reset,
            tuple(self.turns),
            self.session,
        )


class SessionFold:
    """A session as its events so far make it. Read on from `offset`; `position` is how many events were taken.

    Values that are given out never change, and are the same objects until what they tell of changes. One thread at a time.
    """

    def __init__(self, offset: str = _START) -> None:
        self.offset: str = offset
        self.position: int = 0
        self._state = SessionState()
        self._touched = _Touched()
        self._before = self._after = Place(0, offset)

    def __repr__(self) -> str:
        return f"<SessionFold of {self.position} events, {len(self._state.messages)} messages at {self.offset}>"

    @classmethod
    def from_json(cls, kept: object) -> Self:
        """A fold that goes on where another one stood when `to_json` was called. Raises: ValueError: it is no snapshot."""
        offset, position, state = snapshot.load(kept)
        fold = cls(offset)
        fold.position, fold._state = position, state
        return fold

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON, for a cache; `offset` in it says where to read on."""
        return snapshot.dump(self.offset, self.position, self._state)

    def apply(self, events: Iterable[object], offset: str) -> SessionChanges:
        """Take the events that come next, as they stand in the stream or as `read_event` read them; `offset` is the one after
        them."""
        self._touched = _Touched()
        batch = list(events)
        begin, self._after = self.offset, Place(self.position, self.offset)
        for index, event in enumerate(batch, 1):
            self._before = self._after
            is_last = index == len(batch)
            position = self._before.position + 1
            self._after = Place(position, offset) if is_last else Place(position, begin, index)
            self._take(event)
        self.position, self.offset = self._after.position, offset
        return self._touched.told()

    def foreseen(self, events: Iterable[object]) -> SessionFold:
        """What this would be if these events came next; this one stays as it is."""
        batch = [_read(event) for event in events]
        fold = SessionFold(self.offset)
        fold.position, fold._state = self.position, snapshot.copied(self._state, self._reached(batch))
        fold.apply(batch, self.offset)
        return fold

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, in the order of the stream."""
        return tuple(message.view() for message in self._state.messages.values())

    @property
    def message_ids(self) -> tuple[str, ...]:
        """The ids of all messages, in the order of the stream."""
        return tuple(self._state.messages)

    def message(self, message_id: str) -> Message | None:
        """One message, or None."""
        found = self._state.messages.get(message_id)
        return None if found is None else found.view()

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """All tool calls, in the order of the stream within each message."""
        return tuple(call for message in self._state.messages.values() for call in message.call_views())

    def calls_of(self, message_id: str) -> tuple[ToolCall, ...]:
        """A message's tool calls."""
        message = self._state.messages.get(message_id)
        return () if message is None else message.call_views()

    def tool_call(self, tool_call_id: str) -> ToolCall | None:
        """The tool call of this id, the newest if there are several, or None."""
        found = self._state.calls.get(tool_call_id)
        return None if found is None else found.view()

    @property
    def tool_results(self) -> tuple[ToolResult, ...]:
        """The results of tool calls, in the order of those."""
        calls = (call for message in self._state.messages.values() for call in message.calls.values())
        return tuple(call.result for call in calls if call.result is not None)

    @property
    def approvals(self) -> tuple[Approval, ...]:
        """All approvals that were asked for, answered or not."""
        return tuple(self._state.approvals.values())

    def approval(self, approval_id: str) -> Approval | None:
        """One approval, or None."""
        return self._state.approvals.get(approval_id)

    @property
    def active_generations(self) -> tuple[ActiveGeneration, ...]:
        """The messages whose authors go on, and then the turns whose answers have not begun."""
        begun = (
            ActiveGeneration(one.id, one.actor_id, one.created_at, one.last_chunk_at, one.last_chunk_seq)
            for one in self._state.active.values()
        )
        awaited = (
            ActiveGeneration(turn.message_id, turn.agent_id, turn.created_at, turn.created_at, -1)
            for turn in self._state.pending.values()
            if turn.message_id not in self._state.messages
        )
        return (*begun, *awaited)

    @property
    def session(self) -> SessionInfo | None:
        """What the session says of itself; None where nothing was said."""
        return self._state.session

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns of agents, in the order of the stream."""
        return tuple(self._state.turns.values())

    @property
    def pending_turns(self) -> tuple[Turn, ...]:
        """The turns whose answers have not ended, in the order of the stream."""
        return tuple(self._state.pending.values())

    def turn(self, turn_id: str) -> Turn | None:
        """One turn, or None."""
        return self._state.turns.get(turn_id)

    def turn_of(self, message_id: str) -> Turn | None:
        """The turn whose answer a message is, or will be."""
        turn_id = self._state.answers.get(message_id)
        return None if turn_id is None else self._state.turns.get(turn_id)

    def is_answered(self, message_id: str, *, answering: str | None = None) -> bool:
        """Whether a message is complete, none of its tool calls is open, and somebody else than its author settled one.
        That of the id `answering` counts as settled: somebody is about to."""
        message = self._state.messages.get(message_id)
        return message is not None and message.is_answered(answering)

    def is_clients_to_run(self, message_id: str, tool_call_id: str) -> bool:
        """Whether a tool is for somebody else than its caller to run, once it may."""
        message = self._state.messages.get(message_id)
        call = None if message is None else message.calls.get(tool_call_id)
        return call is not None and call.has_input

    def clients_answers(self, message_id: str) -> tuple[list[str], list[str]]:
        """The ids of a message's tool calls that have a client's result, and of its approvals that were answered."""
        message = self._state.messages.get(message_id)
        if message is None:
            return [], []
        approvals = (self._state.approvals[approval_id] for approval_id in message.approvals)
        return (
            [call.id for call in message.calls.values() if call.is_result_of_client],
            [approval.id for approval in approvals if approval.status != "pending"],
        )

    def is_gone(self, message_id: str) -> bool:
        """Whether a message was there and was deleted. Its id cannot be used again."""
        return message_id in self._state.gone

    def next_seq(self, message_id: str) -> int:
        """The number of a message's next row."""
        message = self._state.messages.get(message_id)
        return 0 if message is None else message.next_seq

    def numbers(self, message_id: str) -> list[int]:
        """The numbers of a message's rows."""
        message = self._state.messages.get(message_id)
        return [] if message is None else message.numbers

    @property
    def agents(self) -> tuple[Agent, ...]:
        """The agents that take part."""
        return tuple(self._state.agents.values())

    @property
    def presence(self) -> tuple[Presence, ...]:
        """What actors say of their presence. Whether that is stale, `Presence.is_stale` tells."""
        return tuple(self._state.presence.values())

    @property
    def participants(self) -> tuple[Participant, ...]:
        """Everybody who ever wrote or was present, in the order in which they came."""
        return tuple(self._state.participants.values())

    @property
    def statistics(self) -> SessionStatistics:
        """Counts over the whole session; they are kept, not counted anew."""
        return replace(
            self._state.counts,
            message_count=len(self._state.messages),
            tool_call_count=sum(len(message.calls) for message in self._state.messages.values()),
            approval_count=len(self._state.approvals),
            active_generation_count=len(self.active_generations),
        )

    def _reached(self, events: Iterable[object]) -> set[str]:
        """The messages that events may change: those they name, and those of the calls that they answer."""
        reached: set[str] = set()
        for event in events:
            reading = _read(event)
            change, chunk = reading.event, reading.chunk
            if chunk is not None:
                call = self._state.calls.get(str(chunk.fields.get("toolCallId")))
                approval = self._state.approvals.get(str(chunk.fields.get("approvalId")))
                reached |= {chunk.message_id} | {one.message_id for one in (call, approval) if one is not None}
            elif isinstance(change, Change) and (named := parse_row_key(change.key)) is not None:
                reached.add(named[0])
        return reached

    def _take(self, event: object) -> None:
        reading = _read(event)
        found = reading.event
        if found is None:
            return
        if not isinstance(found, Change):
            if found.kind == "reset":
                self._state = SessionState()
                self._touched.was_reset = True
            return
        if found.txid is not None:
            self._touched.txids[found.txid] = None
        match found.type:
            case "chunk" if found.operation == "delete":
                self._delete_row(found.key)
            case "chunk":
                if reading.chunk is not None:
                    self._take_chunk(reading.chunk, reading.whole)
            case "turn":
                self._take_turn(found)
            case "session":
                self._state.session = parse_session(found) or self._state.session
                self._touched.session = True
            case "presence":
                self._take_presence(found)
            case "agent":
                self._take_agent(found)

    def _delete_row(self, key: str) -> None:
        named = parse_row_key(key)
        message = None if named is None else self._state.messages.get(named[0])
        if named is not None and message is not None:
            message.delete(named[1])
            if message.is_deleted:
                self._delete_message(message)

    def _delete_message(self, message: MessageState) -> None:
        state, counts = self._state, self._state.counts
        del state.messages[message.id]
        state.active.pop(message.id, None)
        state.gone[message.id] = None
        for call in message.calls.values():
            if state.calls.get(call.id) is call:
                del state.calls[call.id]
        for approval_id in message.approvals:
            del state.approvals[approval_id]
        state.counts = replace(
            counts,
            user_message_count=counts.user_message_count - (message.role == "user"),
            assistant_message_count=counts.assistant_message_count - (message.role == "assistant"),
        )
        author = state.participants[message.actor_id]
        state.participants[author.actor_id] = replace(author, message_count=author.message_count - 1)
        self._settle_turn(message.id)
        self._touched.messages[message.id] = None
        self._touched.actors[message.actor_id] = None

    def _take_turn(self, change: Change) -> None:
        if change.operation == "delete":
            turn = self._state.turns.pop(change.key, None)
            if turn is not None:
                self._state.pending.pop(turn.message_id, None)
                self._touched.turns[turn.id] = None
                if turn.message_id not in self._state.messages:
                    self._state.gone[turn.message_id] = None
            return
        found = parse_turn(change, self._before)
        if found is None or found.id in self._state.turns or found.message_id in self._state.answers:
            return
        message = self._state.messages.get(found.message_id)
        if found.message_id in self._state.gone or (message is not None and message.is_written):
            found = replace(found, is_pending=False)
        else:
            self._state.pending[found.message_id] = found
        self._state.turns[found.id] = found
        self._state.answers[found.message_id] = found.id
        self._touched.turns[found.id] = None

    def _settle_turn(self, message_id: str) -> None:
        """Its answer has ended, or is gone."""
        turn = self._state.pending.pop(message_id, None)
        if turn is not None:
            self._state.turns[turn.id] = replace(turn, is_pending=False)
            self._touched.turns[turn.id] = None

    def _take_chunk(self, chunk: Chunk, whole: WholeMessage | None) -> None:
        if chunk.message_id in self._state.gone:
            return
        if chunk.type == "tool-result":
            self._take_result_of_client(chunk)
        elif chunk.type == "approval-response":
            self._take_answer(chunk)
        else:
            self._write(chunk, whole)

    def _write(self, chunk: Chunk, whole: WholeMessage | None) -> None:
        message = self._state.messages.get(chunk.message_id)
        is_new = message is None
        if message is None:
            if chunk.type == "user-message" and whole is None:
                return
            message = self._begin(chunk, whole)
        elif message.is_whole:
            return
        if not message.takes(chunk.seq):
            return
        message.change()
        message.end, message.last_chunk_at = self._after, chunk.created_at
        message.last_chunk_seq = message.last_chunk_seq if chunk.seq is None else chunk.seq
        self._count_tokens(chunk.fields)
        if not message.is_whole:
            self._write_on(message, chunk)
            if message.is_complete:
                self._state.active.pop(message.id, None)
        if message.is_written:
            self._settle_turn(message.id)
        self._saw(chunk, messages=int(is_new))
        self._touched.messages[message.id] = None

    def _begin(self, chunk: Chunk, whole: WholeMessage | None) -> MessageState:
        message = MessageState(
            id=chunk.message_id,
            role=chunk.role,
            actor_id=chunk.actor_id,
            created_at=chunk.created_at,
            start=self._before,
            end=self._after,
            last_chunk_at=chunk.created_at,
            actor_name=chunk.actor_name,
        )
        if whole is not None:
            message.write_whole(whole)
        else:
            self._state.active[message.id] = message
        self._state.messages[message.id] = message
        counts, at = self._state.counts, message.created_at or None
        self._state.counts = replace(
            counts,
            user_message_count=counts.user_message_count + (message.role == "user"),
            assistant_message_count=counts.assistant_message_count + (message.role == "assistant"),
            first_message_at=counts.first_message_at or at,
            last_message_at=at or counts.last_message_at,
        )
        return message

    def _write_on(self, message: MessageState, chunk: Chunk) -> None:
        match chunk.type:
            case "tool_call":
                called = chunk.fields.get("toolCall")
                function = called.get("function") if isinstance(called, dict) else None
                if isinstance(called, dict) and isinstance(function, dict):
                    shared, index = text_or_none(called.get("id")), call_index(chunk.fields)
                    call = None if shared is None else self._call(message, chunk, message.called_id(shared, index))
                    if call is not None:
                        call.index = index if call.index is None else call.index
                        message.write_call(call, function)
                        self._settle_early(call)
            case "tool-input-available":
                call_id = _call_id(message, chunk, lambda call: not call.has_input)
                call = self._call(message, chunk, call_id)
                if call is not None:
                    call.has_input, call.input = True, chunk.fields.get("input")
                    self._settle_early(call)
                    message.end_if_it_waits()
            case "approval-requested":
                self._ask(message, chunk)
                message.end_if_it_waits()
            case "tool_result":
                self._take_result_of_agent(message, chunk)
            case _:
                message.write(chunk)

    def _call(self, message: MessageState, chunk: Chunk, call_id: str) -> CallState | None:
        """The tool call that a chunk is about; a new one where there is none."""
        if not call_id:
            return None
        call = message.calls.get(call_id)
        if call is None:
            call = CallState(
                id=call_id,
                message_id=message.id,
                name="",
                actor_id=chunk.actor_id,
                created_at=chunk.created_at,
                start=self._before,
                end=self._after,
            )
            message.calls[call_id] = self._state.calls[call_id] = call
        call.name = call.name or text_or_none(chunk.fields.get("toolName")) or ""
        call.end = self._after
        return call

    def _ask(self, message: MessageState, chunk: Chunk) -> None:
        approval = chunk.fields.get("approval")
        approval_id = approval.get("id") if isinstance(approval, dict) else None
        if not isinstance(approval_id, str) or not approval_id or approval_id in self._state.approvals:
            return
        call = self._call(message, chunk, _call_id(message, chunk, lambda call: call.approval_id is None))
        if call is None:
            return
        call.approval_id, call.approved = approval_id, None
        asked = Approval(
            id=approval_id,
            tool_call_id=call.id,
            message_id=message.id,
            tool_name=call.name,
            input=chunk.fields.get("input"),
            status="pending",
            requested_by=chunk.actor_id,
            requested_at=chunk.created_at,
            responded_by=None,
            responded_at=None,
        )
        self._state.approvals[approval_id] = asked
        message.approvals.append(approval_id)
        early = self._state.early_answers.pop(approval_id, None)
        if early is not None:
            self._answer(asked, early)
        self._settle_early(call)

    def _take_answer(self, chunk: Chunk) -> None:
        approval_id, approved = chunk.fields.get("approvalId"), chunk.fields.get("approved")
        if not isinstance(approval_id, str) or not isinstance(approved, bool):
            return
        self._saw(chunk)
        answer = EarlyAnswer(approved, chunk.actor_id, chunk.created_at)
        approval = self._state.approvals.get(approval_id)
        if approval is None:
            self._state.early_answers.setdefault(approval_id, answer)
        elif approval.status == "pending":
            self._answer(approval, answer)

    def _answer(self, approval: Approval, answer: EarlyAnswer) -> None:
        self._state.approvals[approval.id] = replace(
            approval,
            status="approved" if answer.approved else "denied",
            responded_by=answer.actor_id,
            responded_at=answer.at,
        )
        call = self._state.messages[approval.message_id].calls[approval.tool_call_id]
        if call.approval_id == approval.id:
            call.approved = answer.approved
        self._changed(call)

    def _take_result_of_agent(self, message: MessageState, chunk: Chunk) -> None:
        call_id = _call_id(message, chunk, lambda call: call.result is None)
        if not call_id or "content" not in chunk.fields:
            return
        output, error = chunk.fields["content"], text_or_none(chunk.fields.get("error")) or None
        message.put_result(call_id, output, error)
        result = ToolResult(call_id, message.id, output, error, chunk.actor_id, chunk.created_at)
        self._settle(message, EarlyResult(result, is_of_client=False))

    def _take_result_of_client(self, chunk: Chunk) -> None:
        fields = chunk.fields
        call_id = fields.get("toolCallId")
        if not isinstance(call_id, str) or not call_id:
            return
        self._saw(chunk)
        error = None if fields.get("error") is None else as_text(fields["error"])
        result = ToolResult(call_id, chunk.message_id, fields.get("output"), error, chunk.actor_id, chunk.created_at)
        self._settle(self._state.messages.get(chunk.message_id), EarlyResult(result, is_of_client=True))

    def _settle(self, named: MessageState | None, came: EarlyResult) -> None:
        """Give a result to its call: that of the message it names, or else the newest, in whatever message it was made."""
        call_id = came.result.tool_call_id
        call = (named.calls.get(call_id) if named is not None else None) or self._state.calls.get(call_id)
        if call is None:
            self._state.early_results[call_id] = came
            return
        call.result = replace(came.result, message_id=call.message_id)
        call.is_result_of_client = came.is_of_client
        if came.is_of_client:
            self._state.messages[call.message_id].put_result(call_id, came.result.output, came.result.error)
        self._changed(call)

    def _settle_early(self, call: CallState) -> None:
        early = self._state.early_results.pop(call.id, None)
        if early is not None:
            self._settle(self._state.messages[call.message_id], early)

    def _changed(self, call: CallState) -> None:
        call.end = self._after
        self._state.messages[call.message_id].change()
        self._touched.messages[call.message_id] = None

    def _take_presence(self, change: Change) -> None:
        if change.operation == "delete":
            if self._state.presence.pop(change.key, None) is not None:
                self._touched.actors[change.key] = None
            return
        presence = parse_presence(change)
        if presence is not None:
            self._state.presence[change.key] = presence
            self._participate(change.key, presence.actor_type, presence.last_seen_at, name=presence.name)
            self._touched.actors[change.key] = None

    def _take_agent(self, change: Change) -> None:
        if change.operation == "delete":
            if self._state.agents.pop(change.key, None) is not None:
                self._touched.agents[change.key] = None
            return
        agent = parse_agent(change)
        if agent is not None:
            self._state.agents[change.key] = agent
            if change.key in self._state.participants:
                self._participate(change.key, "agent", "", name=agent.name)
            self._touched.agents[change.key] = None

    def _saw(self, chunk: Chunk, *, messages: int = 0) -> None:
        kind: ActorKind = "agent" if chunk.role == "assistant" else "user"
        self._participate(chunk.actor_id, kind, chunk.created_at, messages, chunk.actor_name)
        self._touched.actors[chunk.actor_id] = None

    def _participate(self, actor_id: str, kind: ActorKind, at: str, messages: int = 0, name: str | None = None) -> None:
        known = self._state.participants.get(actor_id) or Participant(actor_id, "user", None, 0, "")
        agent = self._state.agents.get(actor_id)
        self._state.participants[actor_id] = Participant(
            actor_id,
            "agent" if kind == "agent" or agent is not None else known.actor_type,
            name or known.name or (None if agent is None else agent.name),
            known.message_count + messages,
            at or known.last_active_at,
        )

    def _count_tokens(self, fields: dict[str, Any]) -> None:
        prompt, completion, total = tokens(fields)
        if prompt or completion or total:
            counts = self._state.counts
            self._state.counts = replace(
                counts,
                prompt_tokens=counts.prompt_tokens + prompt,
                completion_tokens=counts.completion_tokens + completion,
                total_tokens=counts.total_tokens + total,
            )


def _call_id(message: MessageState, chunk: Chunk, is_open: Callable[[CallState], bool]) -> str:
    """The own id of the call that a chunk names; empty where it names none."""
    return message.answered_id(text_or_none(chunk.fields.get("toolCallId")) or "", is_open)


def _read(event: object) -> Reading:
    return event if isinstance(event, Reading) else read_event(event)
