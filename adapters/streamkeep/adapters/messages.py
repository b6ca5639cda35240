"""The messages of a session, kept as they are sent and answered: text, calls of tools and their results.

For every client of this package, and for `FetchClient` and `DurableTransport`: what they are given as `messages` is told each call that
asks a model, in the formats of OpenAI (chat completions and Responses) and Anthropic, and each answer, also one that a
resume gives again. No vendor's package is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from streamkeep.adapters._rules.conversations import Turn, question_of
from streamkeep.adapters._rules.folding import fold_for
from streamkeep.client import Message, MessageKeeper, MessageStore, SQLiteMessageStore
from streamkeep.client._rules.messages import MAX_MESSAGE_CHARACTERS

__all__ = ["Messages"]


class Messages(MessageKeeper):
    """Keep messages in a store, by session: a `SQLiteMessageStore` in the user's state directory unless given.

    Nothing is kept unless a client is given this. An answer is kept while it comes, and marked `is_partial` until it is
    whole; a resume replaces it. Several clients may share one.
    """

    def __init__(self, store: MessageStore | None = None) -> None:
        self._store = SQLiteMessageStore() if store is None else store

    def __repr__(self) -> str:
        return f"Messages({self._store!r})"

    def list(self, session_id: str) -> Sequence[Message]:
        """A session's messages, in their order. Raises: LocalStoreFailed."""
        return self._store.list(session_id)

    def clear(self, session_id: str) -> None:
        """Forget a session's messages. Raises: LocalStoreFailed."""
        self._store.clear(session_id)

    def asked(self, session_id: str, request_id: str, content: bytes) -> None:
        """What a client tells; see `MessageKeeper`."""
        question = question_of(content)
        if question is not None:
            messages = [_message(turn, request_id) for turn in question.turns]
            self._store.asked(session_id, messages, goes_on=question.goes_on)

    def answer(self, session_id: str, request_id: str, content_type: str | None) -> _Answer:
        """What a client tells; see `MessageKeeper`."""
        return _Answer(self._store, session_id, request_id, content_type)


class _Answer:
    """One answer on its way into the store."""

    def __init__(self, store: MessageStore, session_id: str, request_id: str, content_type: str | None) -> None:
        self._store = store
        self._session_id = session_id
        self._request_id = request_id
        self._fold = fold_for(content_type)

    def receive(self, data: bytes) -> None:
        self._fold.receive(data)

    def save(self, code: str | None) -> None:
        turn = self._fold.turn()
        if turn is None:
            return
        # Whoever reads by a vendor's format may leave at its end mark, before the generation's own end.
        is_whole = (code == "done" or (code is None and self._fold.is_whole)) and not self._fold.is_too_large
        ended = "too_large" if self._fold.is_too_large else code
        message = _message(
            turn, self._request_id, is_answer=True, is_partial=not is_whole, code=None if is_whole else ended
        )
        self._store.answered(self._session_id, message)


def _message(
    turn: Turn, request_id: str, *, is_answer: bool = False, is_partial: bool = False, code: str | None = None
) -> Message:
    return Message(
        turn.role,
        turn.text[:MAX_MESSAGE_CHARACTERS],
        request_id,
        datetime.now(UTC),
        tool_calls=tuple(replace(call, arguments=call.arguments[:MAX_MESSAGE_CHARACTERS]) for call in turn.tool_calls),
        tool_call_id=turn.tool_call_id,
        is_answer=is_answer,
        is_partial=is_partial,
        code=code,
    )
