"""MemorySessions: the store's part of session records in one process's memory; nothing survives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from streamkeep.storage._errors import SessionNotFound
from streamkeep.storage._sessions import (
    ChangeAgents,
    DueSession,
    SessionKey,
    SessionRecord,
    SessionRecordPage,
)
from streamkeep.storage._types import Owner
from streamkeep.storage.rules.sessions import check_agents, check_id, check_name, is_wanted


@dataclass(slots=True)
class _Row:
    """`due` counts the marks; `due_at` is when the first was made of those that are not settled."""

    session: SessionRecord
    agents: bytes = field(default=b"", repr=False)
    due: int = 0
    due_at: datetime | None = None
    owner: Owner | None = None


class MemorySessions:
    """See `SessionStore` for what each method means. `next_id` numbers the sessions; `check` raises `OwnerFenced`."""

    def __init__(self, now: Callable[[], datetime], next_id: Callable[[], int], check: Callable[[Owner], None]) -> None:
        self._now = now
        self._next_id = next_id
        self._check = check
        self._rows: dict[SessionKey, _Row] = {}

    def __repr__(self) -> str:
        return f"MemorySessions({len(self._rows)})"

    async def create(
        self, key: SessionKey, *, name: str | None = None, agents: bytes = b""
    ) -> tuple[SessionRecord, bool]:
        check_id(key.id)
        check_name(name)
        check_agents(agents)
        found = self._rows.get(key)
        if found is not None:
            return found.session, False
        now = self._now()
        made = SessionRecord(key, self._next_id(), now, now, name)
        self._rows[key] = _Row(made, agents)
        return made, True

    async def session(self, key: SessionKey) -> SessionRecord:
        return self._row(key).session

    async def page(
        self, tenant: str | None, *, text: str = "", before: int | None = None, limit: int = 100
    ) -> SessionRecordPage:
        wanted = [row.session for row in self._rows.values() if is_wanted(row.session, tenant, text)]
        rows = sorted(
            (session for session in wanted if before is None or session.number < before),
            key=lambda session: session.number,
            reverse=True,
        )[:limit]
        return SessionRecordPage(rows, rows[-1].number if len(rows) == limit else None)

    async def rename(self, key: SessionKey, name: str | None) -> SessionRecord:
        check_name(name)
        row = self._row(key)
        row.session = replace(row.session, name=name, updated_at=self._now())
        return row.session

    async def agents(self, key: SessionKey) -> bytes:
        return self._row(key).agents

    async def change_agents(self, key: SessionKey, change: ChangeAgents) -> bytes:
        row = self._row(key)
        agents = change(row.agents)
        check_agents(agents)
        row.agents = agents
        row.session = replace(row.session, updated_at=self._now())
        return agents

    async def delete(self, key: SessionKey) -> None:
        self._row(key)
        del self._rows[key]

    async def mark_due(self, key: SessionKey) -> int:
        row = self._row(key)
        row.due += 1
        row.due_at = row.due_at or self._now()
        row.session = replace(row.session, updated_at=self._now())
        return row.due

    async def claim_due(self, owner: Owner) -> DueSession | None:
        row = self._longest_due()
        if row is None:
            return None
        self._check(owner)
        row.owner = owner
        return DueSession(row.session, row.due)

    async def held(self, owner: Owner) -> list[DueSession]:
        return [DueSession(row.session, row.due) for row in self._rows.values() if row.owner == owner]

    async def settle(self, owner: Owner, held: DueSession) -> DueSession | None:
        row = self._held_row(owner, held)
        if row is None:
            return None
        if row.due != held.due:
            return DueSession(row.session, row.due)
        row.due_at = row.owner = None
        return None

    async def release(self, owner: Owner, held: DueSession) -> None:
        row = self._held_row(owner, held)
        if row is not None:
            row.owner = None

    def release_all(self, owner: Owner) -> None:
        """Let go what an owner holds that is finished."""
        for row in self._rows.values():
            if row.owner == owner:
                row.owner = None

    def erase(self, tenant: str, id: str | None = None) -> None:
        """Forget a session of a tenant's, or with None all of them."""
        self._rows = {
            key: row for key, row in self._rows.items() if key.tenant != tenant or (id is not None and key.id != id)
        }

    def _longest_due(self) -> _Row | None:
        due = [(row.due_at, row) for row in self._rows.values() if row.due_at is not None and row.owner is None]
        return min(due, key=lambda one: one[0])[1] if due else None

    def _held_row(self, owner: Owner, held: DueSession) -> _Row | None:
        row = self._rows.get(held.session.key)
        is_it = row is not None and (row.owner, row.session.number) == (owner, held.session.number)
        return row if is_it else None

    def _row(self, key: SessionKey) -> _Row:
        try:
            return self._rows[key]
        except KeyError:
            raise SessionNotFound(f"no session {key.id}") from None
