"""What a chat shows: a session as its stream tells it, and over that what this chat wrote and the stream has not brought yet.

A write is shown at once. It leaves this place when the stream has brought it, which its transaction's id tells, or the id of
what it wrote, or the offset that the server answered with; and when the server refused it. When nobody answered, it may be
stored or not: it stays, `unconfirmed`, until the stream tells, or it is sent again under the same ids, or given up.

What is shown is the fold of the stream's events, with those behind them that the writes will become. So nothing is shown
twice, whatever comes first: the answer, the event, a refusal, or the end of a connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from streamkeep.sessions.fold import SessionFold
from streamkeep.sessions.views import Message, ToolCall

ConnectionStatus = Literal["disconnected", "connecting", "connected", "error"]
WriteKind = Literal["message", "tool-result", "approval"]
WriteStatus = Literal["sending", "stored", "unconfirmed"]
WriteKey = tuple[WriteKind, str]


@dataclass(frozen=True, slots=True)
class PendingWrite:
    """What this chat wrote and the stream has not brought yet. `id` is the message's, the tool call's, or the approval's.

    It is being sent; or stored, as the server said; or unconfirmed, when there was no answer that says what became of it.
    """

    kind: WriteKind
    id: str
    txid: str
    event: Mapping[str, Any] = field(repr=False)
    body: bytes = field(repr=False)
    status: WriteStatus = "sending"
    offset: str | None = None

    @property
    def key(self) -> WriteKey:
        """Kind and id."""
        return self.kind, self.id

    def is_in(self, fold: SessionFold) -> bool:
        """Whether the stream has brought it, or something else under the same id."""
        if self.offset is not None and fold.offset >= self.offset:
            return True
        match self.kind:
            case "message":
                return fold.message(self.id) is not None or fold.is_gone(self.id)
            case "tool-result":
                call = fold.tool_call(self.id)
                return call is not None and call.result is not None
            case "approval":
                approval = fold.approval(self.id)
                return approval is not None and approval.status != "pending"


@dataclass(frozen=True, slots=True)
class ChatChanges:
    """What has changed in a chat: messages by their ids (and their tool calls and approvals), actors, agents; and with
    `status` its connection, its error, what is pending or who goes on. With `was_reset` all of it may have."""

    message_ids: tuple[str, ...] = ()
    actor_ids: tuple[str, ...] = ()
    agent_ids: tuple[str, ...] = ()
    status: bool = False
    was_reset: bool = False

    def __or__(self, later: ChatChanges) -> ChatChanges:
        return ChatChanges(
            _union(self.message_ids, later.message_ids),
            _union(self.actor_ids, later.actor_ids),
            _union(self.agent_ids, later.agent_ids),
            self.status or later.status,
            self.was_reset or later.was_reset,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What one step brought: changes, messages that were not there before, answers that have ended, calls to run."""

    changes: ChatChanges
    came: tuple[Message, ...] = ()
    finished: tuple[Message, ...] = ()
    calls: tuple[ToolCall, ...] = ()


# A stream that somebody else has written to may hold turns that go round in a circle.
_MAX_TURNS = 10_000

ALL = ChatChanges(status=True, was_reset=True)
STATUS = Step(ChatChanges(status=True))


class ChatState:
    """The state of one chat. It runs the tools in `tool_names` for `caller_id`, who wrote what led to the call; or with None
    for everybody."""

    def __init__(self, tool_names: Iterable[str] = (), *, caller_id: str | None = None) -> None:
        self.fold = SessionFold()
        self.caller_id = caller_id
        self.status: ConnectionStatus = "disconnected"
        self.error: Exception | None = None
        self.is_loaded = False
        self._tool_names = frozenset(tool_names)
        self._writes: dict[WriteKey, PendingWrite] = {}
        self._expected = ""
        self._shown: SessionFold | None = None
        self._known: set[str] = set()
        self._finished: set[str] = set()
        self._called: set[tuple[str, str]] = set()

    @property
    def shown(self) -> SessionFold:
        """The session with what is pending in it."""
        if not self._writes:
            return self.fold
        if self._shown is None:
            self._shown = self.fold.foreseen([write.event for write in self._writes.values()])
        return self._shown

    @property
    def writes(self) -> tuple[PendingWrite, ...]:
        """What is pending, in the order in which it was written."""
        return tuple(self._writes.values())

    @property
    def is_idle(self) -> bool:
        """Whether everything written has come back, and nobody goes on. Behind an answer's last word its turn ends."""
        is_behind = self.fold.offset < self._expected
        return not (is_behind or self._writes or self.fold.active_generations or self.fold.pending_turns)

    def expect(self, offset: str | None) -> None:
        """The server has written up to this offset because this chat asked for it."""
        self._expected = max(self._expected, offset or "")

    def write(self, key: WriteKey) -> PendingWrite | None:
        """What is pending under a key."""
        return self._writes.get(key)

    def restart(self, fold: SessionFold) -> Step:
        """Go on from another fold: one that was kept, or one of nothing when the stream cannot be read on."""
        self.fold = fold
        self.is_loaded, self._expected = False, ""
        self._confirm(())
        return Step(ALL)

    def take(self, events: Iterable[object], offset: str, *, is_up_to_date: bool) -> Step:
        """Events that were read, in the order of the stream. Before the tail was reached once, what comes is not news."""
        told = self.fold.apply(events, offset)
        confirmed = self._confirm(told.txids)
        message_ids = _union(told.message_ids, confirmed)
        changes = ChatChanges(message_ids, told.actor_ids, told.agent_ids, status=True, was_reset=told.was_reset)
        was_loaded, self.is_loaded = self.is_loaded, self.is_loaded or is_up_to_date
        if not self.is_loaded:
            return Step(changes)
        if not was_loaded:
            self._learn_all()
            return Step(changes, calls=self._calls_of(message.id for message in self.fold.messages))
        came, finished = self._news_of(message_ids)
        return Step(changes, came, finished, self._calls_of(message_ids))

    def begin(self, write: PendingWrite) -> Step:
        """Show a write that is about to be sent; once more, if it is sent again."""
        self.error = None
        self._put(replace(write, status="sending"))
        came: tuple[Message, ...] = ()
        if write.kind == "message" and write.id not in self._known:
            self._known.add(write.id)
            message = self.shown.message(write.id)
            came = () if message is None else (message,)
        return Step(ChatChanges(self._touched_by(write), status=True), came)

    def accept(self, key: WriteKey, offset: str | None) -> Step:
        """The server has stored a write; the stream has it before this offset."""
        write = self._writes.get(key)
        if write is not None:
            self._put(replace(write, status="stored", offset=offset))
            self._confirm(())
        return STATUS

    def doubt(self, key: WriteKey) -> Step:
        """Nobody said what became of a write."""
        write = self._writes.get(key)
        if write is not None and write.status == "sending":
            self._put(replace(write, status="unconfirmed"))
        return STATUS

    def take_back(self, key: WriteKey) -> Step:
        """The server has refused a write, or it was given up: show it no more."""
        write = self._writes.pop(key, None)
        self._shown = None
        if write is None:
            return STATUS
        if self.fold.message(write.id) is None:
            self._known.discard(write.id)
        return Step(ChatChanges(self._touched_by(write), status=True))

    def _put(self, write: PendingWrite) -> None:
        self._writes[write.key] = write
        self._shown = None

    def _confirm(self, txids: Iterable[str]) -> tuple[str, ...]:
        """Drop the writes that the stream has brought; the messages that they changed."""
        self._shown = None
        brought = [one for one in self._writes.values() if one.txid in txids or one.is_in(self.fold)]
        for write in brought:
            del self._writes[write.key]
        return tuple(message_id for write in brought for message_id in self._touched_by(write))

    def _touched_by(self, write: PendingWrite) -> tuple[str, ...]:
        match write.kind:
            case "message":
                return (write.id,)
            case "tool-result":
                call = self.fold.tool_call(write.id)
                return () if call is None else (call.message_id,)
            case "approval":
                approval = self.fold.approval(write.id)
                return () if approval is None else (approval.message_id,)

    def _learn_all(self) -> None:
        messages = self.fold.messages
        self._known.update(message.id for message in messages)
        self._finished.update(message.id for message in messages if message.is_complete)

    def _news_of(self, message_ids: Iterable[str]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        touched = [message for message in map(self.fold.message, message_ids) if message is not None]
        came = tuple(one for one in touched if one.id not in self._known)
        finished = tuple(one for one in touched if _has_finished(one) and one.id not in self._finished)
        self._known.update(one.id for one in came)
        self._finished.update(one.id for one in finished)
        return came, finished

    def _calls_of(self, message_ids: Iterable[str]) -> tuple[ToolCall, ...]:
        """The tool calls that wait for this client, each of them once. Some models count their calls anew in each answer."""
        if not self._tool_names:
            return ()
        found = tuple(
            call
            for message_id in message_ids
            for call in self.fold.calls_of(message_id)
            if (call.message_id, call.id) not in self._called and self._waits_for_us(call)
        )
        self._called.update((call.message_id, call.id) for call in found)
        return found

    def _waits_for_us(self, call: ToolCall) -> bool:
        """Its author has gone, nothing but its result is missing, and it is ours to give."""
        message = self.fold.message(call.message_id)
        return (
            call.name in self._tool_names
            and call.state == "executing"
            and self.fold.is_clients_to_run(call.message_id, call.id)
            and message is not None
            and message.ended_by in ("done", "message-end")
            and (self.caller_id is None or self._led_to(call.message_id) == self.caller_id)
        )

    def _led_to(self, message_id: str) -> str | None:
        """Whoever wrote the message which the turns that led to this one began with."""
        for _ in range(_MAX_TURNS):
            message = self.fold.message(message_id)
            if message is not None and message.role == "user":
                return message.actor_id
            turn = self.fold.turn_of(message_id)
            if turn is None:
                break
            message_id = turn.cause_id
        return None


def _has_finished(message: Message) -> bool:
    return message.is_complete and message.role == "assistant"


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))
