"""A session's messages: what a call adds to them, and which of two accounts of one answer is kept.

A call usually brings the whole conversation again, and sometimes only the end of it. `joined` finds where it lies in what is known,
so that nothing is kept twice, and an answer that was asked for again takes the place of the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MAX_MESSAGES = 1000
"""So many of a session are kept, the newest."""

MAX_MESSAGE_CHARACTERS = 1024 * 1024
"""So much text of one message is kept, and as much of a call's arguments."""

MAX_SESSION_CHARACTERS = 8 * 1024 * 1024
"""So much text of a session is kept, the newest."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that was called. `arguments` is JSON as text, or a piece of it while the answer is partial."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a session. `role` is user, assistant or tool; a tool's result names the call that it answers.

    `request_id` names the call that brought it: as its answer, or with what it asked. An answer that has not come to its end, so far, `is_partial`; `code` says
    how it ended (`truncated`, `cancelled`, …), and is None while nobody knows: it runs, or its reader left or died.
    """

    role: str
    text: str
    request_id: str
    created_at: datetime
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    is_answer: bool = False
    is_partial: bool = False
    code: str | None = None

    def says_the_same(self, other: Message) -> bool:
        """Whether both are one message, told twice."""
        return _said(self) == _said(other)


def joined(known: Sequence[Message], asked: Sequence[Message], *, goes_on: bool) -> list[Message]:
    """The session's messages when a call asks this.

    What it repeats stays as it is known, from the place at which most of it agrees; what was known to follow gives way to
    what the call says instead. A call that `goes_on` brings new messages alone.
    """
    start, agreeing = (len(known), 0) if goes_on else _place(known, asked)
    return _newest([*known[: start + agreeing], *asked[agreeing:]])


def is_better(told: Message, known: Message) -> bool:
    """Whether to keep what is told of an answer now, not what was known: a resume tells it from its beginning again."""
    if told.is_partial != known.is_partial:
        return known.is_partial
    return _length(told) >= _length(known)


def _place(known: Sequence[Message], asked: Sequence[Message]) -> tuple[int, int]:
    """Where the asked messages begin among the known ones, and how many agree; the later of equal places."""
    best = (len(known), 0)
    for start in range(len(known)):
        agreeing = 0
        for one, other in zip(known[start:], asked, strict=False):
            if not one.says_the_same(other):
                break
            agreeing += 1
        if agreeing and agreeing >= best[1]:
            best = (start, agreeing)
    return best


def _newest(messages: list[Message]) -> list[Message]:
    """As many as are kept of a session; the last one always."""
    size, first = 0, len(messages)
    while first > 0 and len(messages) - first < MAX_MESSAGES:
        size += _length(messages[first - 1])
        if size > MAX_SESSION_CHARACTERS and first < len(messages):
            break
        first -= 1
    return messages[first:]


def _said(message: Message) -> tuple[Any, ...]:
    return message.role, message.text, message.tool_calls, message.tool_call_id


def _length(message: Message) -> int:
    return len(message.text) + sum(len(call.arguments) for call in message.tool_calls)
