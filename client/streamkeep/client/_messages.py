"""Where a session's messages are kept, and who is told what a call asks and what is answered.

The client knows no vendor's format. A `MessageKeeper` is told the bytes and makes messages of them; the one in
`streamkeep.adapters.messages` reads the formats of OpenAI and Anthropic, and keeps what it reads in a `MessageStore`.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from streamkeep.client._body import Body
from streamkeep.client._channel import Channel
from streamkeep.client._errors import GenerationError
from streamkeep.client._rules.messages import Message, ToolCall, is_better, joined
from streamkeep.client._sqlite import SQLiteFile
from streamkeep.client._stores import KEEP_SECONDS

logger = logging.getLogger("streamkeep.client")

# A partial answer in the store is at most about this old, however its process ends.
_SAVE_SECONDS = 1.0


class AnswerKeeper(Protocol):
    """Told one answer, from its first byte on."""

    def receive(self, data: bytes) -> None:
        """The next bytes. Called where the answer is read, so it does no I/O."""

    def save(self, code: str | None) -> None:
        """Keep what has come. `code` is how the generation ended: `done`, or another; None when it may go on."""


class MessageKeeper(Protocol):
    """Told what goes through a client. Calls may come from several threads; the async client makes those that may do
    I/O in a worker thread."""

    def asked(self, session_id: str, request_id: str, content: bytes) -> None:
        """A call is about to be sent. An error fails it."""

    def answer(self, session_id: str, request_id: str, content_type: str | None) -> AnswerKeeper:
        """Its answer has begun, or is told again by a resume."""


class MessageStore(Protocol):
    """A place for messages, by session. Calls may come from several threads, and should be short."""

    def asked(self, session_id: str, messages: Sequence[Message], *, goes_on: bool) -> None:
        """Keep what a call asks, as `joined` says."""

    def answered(self, session_id: str, message: Message) -> None:
        """Keep an answer, in the place of what was kept of the same request's, where `is_better`; else as the last message."""

    def list(self, session_id: str) -> Sequence[Message]:
        """A session's messages, in their order."""

    def clear(self, session_id: str) -> None:
        """Forget a session's messages."""


class MemoryMessageStore(MessageStore):
    """Messages that last as long as the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: dict[str, Sequence[Message]] = {}

    def asked(self, session_id: str, messages: Sequence[Message], *, goes_on: bool) -> None:
        with self._lock:
            self._messages[session_id] = joined(self._messages.get(session_id, []), messages, goes_on=goes_on)

    def answered(self, session_id: str, message: Message) -> None:
        with self._lock:
            self._messages[session_id] = _with_answer(self._messages.get(session_id, []), message)

    def list(self, session_id: str) -> Sequence[Message]:
        with self._lock:
            return [*self._messages.get(session_id, [])]

    def clear(self, session_id: str) -> None:
        with self._lock:
            self._messages.pop(session_id, None)


class SQLiteMessageStore(MessageStore):
    """Messages in a SQLite file that any number of processes and threads may share.

    By default the file lies in the user's state directory; it is readable by its owner alone. A session that nothing was
    added to for `keep_seconds` is dropped. A database that cannot be used is a `LocalStoreFailed`.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, keep_seconds: float = KEEP_SECONDS) -> None:
        self._keep_seconds = keep_seconds
        instead = "a MemoryMessageStore()"
        self._file = SQLiteFile(path, "messages.sqlite3", _MIGRATIONS, on_open=self._sweep, instead=instead)
        self.path: Path = self._file.path
        self._questions = 0

    def __repr__(self) -> str:
        return f"SQLiteMessageStore({str(self.path)!r})"

    def asked(self, session_id: str, messages: Sequence[Message], *, goes_on: bool) -> None:
        with self._file.transaction() as database:
            self._questions += 1
            if self._questions % _QUESTIONS_PER_SWEEP == 0:
                self._sweep(database)
            known = self._messages(database, session_id)
            self._replace(database, session_id, known, joined(known, messages, goes_on=goes_on))

    def answered(self, session_id: str, message: Message) -> None:
        with self._file.transaction() as database:
            known = self._messages(database, session_id)
            self._replace(database, session_id, known, _with_answer(known, message))

    def list(self, session_id: str) -> Sequence[Message]:
        with self._file.database() as database:
            return [*self._messages(database, session_id)]

    _CLEAR = "DELETE FROM sessions WHERE session_id = ?"
    _CLEAR_MESSAGES = "DELETE FROM messages WHERE session_id = ? AND place >= ?"

    def clear(self, session_id: str) -> None:
        with self._file.transaction() as database:
            database.execute(self._CLEAR, (session_id,))
            database.execute(self._CLEAR_MESSAGES, (session_id, 0))

    def close(self) -> None:
        """Close the file. It is opened again when it is needed."""
        self._file.close()

    _LIST = """
        SELECT message FROM messages JOIN sessions USING (session_id)
        WHERE session_id = ? AND updated_at >= ? ORDER BY place
        """

    def _messages(self, database: sqlite3.Connection, session_id: str) -> Sequence[Message]:
        rows = database.execute(self._LIST, (session_id, self._oldest()))
        return tuple(_decoded(message) for (message,) in rows)

    _TOUCH = """
        INSERT INTO sessions (session_id, updated_at) VALUES (?, ?)
        ON CONFLICT (session_id) DO UPDATE SET updated_at = excluded.updated_at
        """
    _PUT = "INSERT INTO messages (session_id, place, message) VALUES (?, ?, ?)"

    def _replace(
        self, database: sqlite3.Connection, session_id: str, known: Sequence[Message], messages: Sequence[Message]
    ) -> None:
        """Write what has changed: usually the end."""
        pairs = zip(known, messages, strict=False)
        same = next((place for place, (old, new) in enumerate(pairs) if old != new), min(len(known), len(messages)))
        database.execute(self._TOUCH, (session_id, datetime.now(UTC).timestamp()))
        database.execute(self._CLEAR_MESSAGES, (session_id, same))
        rows = [(session_id, place, _encoded(message)) for place, message in enumerate(messages) if place >= same]
        database.executemany(self._PUT, rows)

    _SWEEP_MESSAGES = """
        DELETE FROM messages WHERE session_id NOT IN (SELECT session_id FROM sessions WHERE updated_at >= ?)
        """
    _SWEEP = "DELETE FROM sessions WHERE updated_at < ?"

    def _sweep(self, database: sqlite3.Connection) -> None:
        database.execute(self._SWEEP_MESSAGES, (self._oldest(),))
        database.execute(self._SWEEP, (self._oldest(),))

    def _oldest(self) -> float:
        return (datetime.now(UTC) - timedelta(seconds=self._keep_seconds)).timestamp()


_QUESTIONS_PER_SWEEP = 100

_MIGRATIONS = (
    "CREATE TABLE sessions (session_id TEXT PRIMARY KEY, updated_at REAL NOT NULL)",
    """
    CREATE TABLE messages (
        session_id TEXT NOT NULL,
        place INTEGER NOT NULL,
        message TEXT NOT NULL,
        PRIMARY KEY (session_id, place)
    )
    """,
)


class KeptBody(Body):
    """A generation's body, of which a keeper is told whatever is handed over."""

    def __init__(self, body: Body, answer: AnswerKeeper, channel: Channel) -> None:
        self._body = body
        self._answer = answer
        self._channel = channel
        self._saved_at = 0.0
        self._is_over = False

    async def next_chunk(self) -> bytes | None:
        """`GenerationBody.next_chunk`."""
        try:
            chunk = await self._body.next_chunk()
        except GenerationError as exc:
            await self._end(exc.code)
            raise
        if chunk is None:
            await self._end("done")
            return None
        self._answer.receive(chunk)
        now = time.monotonic()
        if now - self._saved_at >= _SAVE_SECONDS:
            self._saved_at = now
            await self._save(None)
        return chunk

    async def close(self) -> None:
        """`GenerationBody.close`."""
        await self._body.close()
        await self._end(None)

    async def _end(self, code: str | None) -> None:
        if not self._is_over:
            self._is_over = True
            await self._channel.finish(self._save(code))

    async def _save(self, code: str | None) -> None:
        """A store that fails now costs the message, and not the answer."""
        try:
            await self._channel.run(lambda: self._answer.save(code))
        except Exception:
            logger.warning("an answer's message was not kept", exc_info=True)


def _with_answer(known: Sequence[Message], message: Message) -> list[Message]:
    for place, other in enumerate(known):
        if other.is_answer and other.request_id == message.request_id:
            kept = replace(message, created_at=other.created_at) if is_better(message, other) else other
            return [*known[:place], kept, *known[place + 1 :]]
    return joined(known, [message], goes_on=True)


def _encoded(message: Message) -> str:
    return json.dumps({**asdict(message), "created_at": message.created_at.isoformat()})


def _decoded(message: str) -> Message:
    fields = json.loads(message)
    created_at = datetime.fromisoformat(fields.pop("created_at"))
    calls = tuple(ToolCall(**call) for call in fields.pop("tool_calls"))
    return Message(**fields, created_at=created_at, tool_calls=calls)
