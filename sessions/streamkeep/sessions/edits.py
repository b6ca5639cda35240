"""What goes when answers are written anew, and what ends where a session branches off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from streamkeep.sessions.events import (
    Author,
    Event,
    answer_end,
    approval_key,
    chunk_row,
    removal,
    row_key,
    tool_result_key,
)
from streamkeep.sessions.fold import SessionFold
from streamkeep.sessions.views import Message, Turn


@dataclass(frozen=True, slots=True)
class Cut:
    """A session is to go on from `cause`. What came after it goes: messages, and turns, of which those in `again` are to
    be taken once more; where there are none, whoever listens answers `cause`."""

    cause: Message
    message_ids: tuple[str, ...]
    turns: tuple[Turn, ...]
    again: tuple[Turn, ...]


def cut_at(fold: SessionFold, message_id: str, *, is_rewritten: bool) -> Cut | None:
    """The cut for answers that are to be written anew from a message on. What a person wrote stays, unless it is rewritten;
    an answer goes. None: there is no such message, or nothing that it answers."""
    messages = fold.messages
    index = next((index for index, one in enumerate(messages) if one.id == message_id), None)
    if index is None:
        return None
    turn = fold.turn_of(message_id)
    if turn is None:
        while messages[index].role == "assistant" and index > 0:
            index -= 1
        cause = messages[index]
        going = tuple(one.id for one in messages[index + (not is_rewritten) :])
        return Cut(cause, going, _turns(fold, going, cause.start.position), ())
    answered = fold.message(turn.cause_id)
    if answered is None:
        return None
    going = tuple(one.id for one in messages[index:])
    turns = _turns(fold, going, turn.start.position)
    return Cut(answered, going, turns, tuple(one for one in turns if one.cause_id == turn.cause_id))


def removals(fold: SessionFold, message_ids: Iterable[str], turns: Iterable[Turn]) -> Iterator[Event]:
    """The events that take messages and turns away, with what clients answered to them; the fold is looked at as they are
    asked for."""
    for message_id in message_ids:
        calls, approvals = fold.clients_answers(message_id)
        for number in fold.numbers(message_id):
            yield removal("chunk", row_key(message_id, number))
        for call_id in calls:
            yield removal("chunk", tool_result_key(message_id, call_id))
        for approval_id in approvals:
            yield removal("chunk", approval_key(message_id, approval_id))
    for turn in turns:
        yield removal("turn", turn.id)


def ends_of_open(fold: SessionFold, *, at: str) -> list[Event]:
    """The events that stop whatever is under way: in a fork of the session nobody goes on with it. Nobody is there, either."""
    turns = {turn.message_id: turn for turn in fold.pending_turns}
    names = {agent.id: agent.name for agent in fold.agents}
    events: list[Event] = []
    for turn in turns.values():
        author = Author(turn.agent_id, names.get(turn.agent_id))
        events += answer_end(turn, fold.next_seq(turn.message_id), "stop", author=author, at=at)
    for message in fold.messages:
        if not message.is_complete and message.id not in turns:
            events += _stopped(message, fold.next_seq(message.id), at)
    return [*events, *(removal("presence", one.actor_id) for one in fold.presence)]


def _turns(fold: SessionFold, going: Iterable[str], position: int) -> tuple[Turn, ...]:
    """Those whose answers go, and those behind a position whose answers have not begun."""
    ids = set(going)
    return tuple(
        turn
        for turn in fold.turns
        if turn.message_id in ids
        or (turn.is_pending and turn.start.position >= position and fold.message(turn.message_id) is None)
    )


def _stopped(message: Message, seq: int, at: str) -> list[Event]:
    author = Author(message.actor_id, message.actor_name)
    last: list[dict[str, object]] = [{"type": "stop", "reason": "aborted"}, {"type": "message-end", "reason": "stop"}]
    return [
        chunk_row(message.id, number, chunk, author=author, role=message.role, at=at)
        for number, chunk in enumerate(last, seq)
    ]
