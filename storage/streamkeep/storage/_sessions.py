"""Session records: what the service knows of a durable session beside its stream, and which process works for it.

A session is a stream; all that is not secret is derived from that. The record gives it a name and a place in listings,
keeps its agents with their secrets, and says who has to look at it: whoever writes something that a runner must act on
marks the session as due, a runner claims it, and settles it when nothing is left to do. A session is held by one owner at
a time, under that owner's lease: when the owner ends, however it ends, its sessions are free at once and due as before.

The agents are one document that no store looks into. It is encrypted where the tenant has a key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from streamkeep.storage._types import Owner

MAX_SESSION_NAME_LENGTH = 200
"""How long a session's name may be, in characters."""

MAX_AGENTS_BYTES = 256 * 1024
"""How large the document of a session's agents may be."""


@dataclass(frozen=True, slots=True)
class SessionKey:
    """What names a session."""

    tenant: str
    id: str


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session's row. `number` grows with every session that is made, so one that is made anew under a key has another.
    `updated_at` is when it was last renamed, given other agents, or marked as due."""

    key: SessionKey
    number: int
    created_at: datetime
    updated_at: datetime
    name: str | None = None


@dataclass(frozen=True, slots=True)
class DueSession:
    """A session that an owner holds; `due` counts how often it was marked."""

    session: SessionRecord
    due: int


@dataclass(frozen=True, slots=True)
class SessionRecordPage:
    """A part of a listing. `next_before` leads on, and is None at the end; a page may be empty and yet lead on."""

    rows: list[SessionRecord]
    next_before: int | None


ChangeAgents = Callable[[bytes], bytes]
"""From the document as it stands to the document as it is to be. Pure, as it may be called again; what it raises leaves
everything as it was."""


class SessionStore(Protocol):
    """The store's part of session records; each method is one transaction, and durable when it returns.

    Any method may raise `StoreUnavailable`; then a change may or may not have happened.
    """

    async def create(
        self, key: SessionKey, *, name: str | None = None, agents: bytes = b""
    ) -> tuple[SessionRecord, bool]:
        """Make a record, or find the one that there is and leave it as it is; whether this call made it.

        Raises:
            ItemRefused: the engine cannot keep the id or the name, or the name or the document is too long.
        """

    async def session(self, key: SessionKey) -> SessionRecord:
        """Raises: SessionNotFound."""

    async def page(
        self, tenant: str | None, *, text: str = "", before: int | None = None, limit: int = 100
    ) -> SessionRecordPage:
        """A tenant's sessions, or with None everybody's, whose id or name holds a text in whatever case: newest first, from
        below a number on. What one page costs is bounded, however many there are and however few are wanted."""

    async def rename(self, key: SessionKey, name: str | None) -> SessionRecord:
        """Give a session another name, or none.

        Raises:
            SessionNotFound: there is none.
            ItemRefused: as `create`.
        """

    async def agents(self, key: SessionKey) -> bytes:
        """The document of the agents, secrets included; empty when there never was one.

        Raises:
            SessionNotFound: there is none.
            KeyUnavailable: it is encrypted with a key that is not here.
        """

    async def change_agents(self, key: SessionKey, change: ChangeAgents) -> bytes:
        """Replace the document by what `change` makes of it, and return that. Of changes at once none is lost.

        Raises:
            SessionNotFound, KeyUnavailable: as `agents`.
            ItemRefused: the new document is too large; nothing was changed.
        """

    async def delete(self, key: SessionKey) -> None:
        """Delete the record, held or not. Its stream and its generations are the caller's to delete.

        Raises:
            SessionNotFound: there is none.
        """

    # Runners

    async def mark_due(self, key: SessionKey) -> int:
        """Have a runner look at a session; how often it has been marked. One that is held stays so: `held` shows the mark
        to its runner, and `settle` does not overlook it.

        Raises:
            SessionNotFound: there is none.
        """

    async def claim_due(self, owner: Owner) -> DueSession | None:
        """Hold the session that has been due for longest and that nobody holds; None when there is none. Cheap then.

        Raises:
            OwnerFenced: nothing was claimed.
        """

    async def held(self, owner: Owner) -> list[DueSession]:
        """The sessions that an owner holds, as they stand. One that was deleted is not among them any more."""

    async def settle(self, owner: Owner, held: DueSession) -> DueSession | None:
        """Say that everything is done that was due when `held` was given, and let the session go.

        When it was marked again meanwhile it stays held, and is given once more as it stands now. None: it is settled, or
        is not this owner's any more.
        """

    async def release(self, owner: Owner, held: DueSession) -> None:
        """Let a session go, due as it is, for another runner to claim; nothing if this owner does not hold it."""
