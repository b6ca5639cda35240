"""RemoteSessions: the store's part of session records, through the journal.

A change of agents is a function, and cannot be written down. So it is made here, on what the replica shows, and goes into
the journal with the document that it was made of; when that is not what stands there any more, it is made again.
"""

from __future__ import annotations

from typing import cast

from streamkeep.storage._sessions import ChangeAgents, DueSession, SessionKey, SessionRecord, SessionRecordPage
from streamkeep.storage._types import Owner
from streamkeep.storage.remote._journal import Journal
from streamkeep.storage.remote._replica import ReplicaSessions
from streamkeep.storage.rules.sessions import check_agents, check_id, check_name


class RemoteSessions:
    """See `SessionStore` for what each method means."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __repr__(self) -> str:
        return f"RemoteSessions({self._journal!r})"

    async def create(
        self, key: SessionKey, *, name: str | None = None, agents: bytes = b""
    ) -> tuple[SessionRecord, bool]:
        check_id(key.id)
        check_name(name)
        check_agents(agents)
        return cast("tuple[SessionRecord, bool]", await self._write("add", key, name, agents))

    async def session(self, key: SessionKey) -> SessionRecord:
        return await (await self._current()).session(key)

    async def page(
        self, tenant: str | None, *, text: str = "", before: int | None = None, limit: int = 100
    ) -> SessionRecordPage:
        return await (await self._current()).page(tenant, text=text, before=before, limit=limit)

    async def rename(self, key: SessionKey, name: str | None) -> SessionRecord:
        check_name(name)
        return cast("SessionRecord", await self._write("rename", key, name))

    async def agents(self, key: SessionKey) -> bytes:
        return await (await self._current()).agents(key)

    async def change_agents(self, key: SessionKey, change: ChangeAgents) -> bytes:
        while True:
            seen = await self.agents(key)
            agents = change(seen)
            check_agents(agents)
            if await self._write("replace_agents", key, seen, agents):
                return agents

    async def delete(self, key: SessionKey) -> None:
        await self._write("delete", key)

    async def mark_due(self, key: SessionKey) -> int:
        return cast("int", await self._write("mark_due", key))

    async def claim_due(self, owner: Owner) -> DueSession | None:
        if not (await self._current()).is_any_due:
            return None
        return cast("DueSession | None", await self._write("claim_due", owner))

    async def held(self, owner: Owner) -> list[DueSession]:
        return await (await self._current()).held(owner)

    async def settle(self, owner: Owner, held: DueSession) -> DueSession | None:
        return cast("DueSession | None", await self._write("settle", owner, held))

    async def release(self, owner: Owner, held: DueSession) -> None:
        await self._write("release", owner, held)

    async def _current(self) -> ReplicaSessions:
        await self._journal.catch_up()
        return self._journal.replica.sessions

    async def _write(self, name: str, *arguments: object) -> object:
        return await self._journal.write(f"sessions.{name}", *arguments)
