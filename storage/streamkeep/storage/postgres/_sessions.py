"""PostgresSessions: the store's part of session records, each method one transaction.

Whoever claims a session holds its owner's row `for share` meanwhile, and whoever ends an owner holds that row `for update`
and then frees the owner's sessions. So a session is never claimed for an owner that has ended.
"""

from __future__ import annotations

import logging

import asyncpg

from streamkeep.storage._errors import KeyUnavailable, OwnerFenced, SessionNotFound
from streamkeep.storage._sessions import ChangeAgents, DueSession, SessionKey, SessionRecord, SessionRecordPage
from streamkeep.storage._types import Owner
from streamkeep.storage.encryption import ID_BYTES, Sealer
from streamkeep.storage.postgres._database import Connection, Database
from streamkeep.storage.postgres._key_log import KeyLog
from streamkeep.storage.rules.sessions import check_agents, check_id, check_name
from streamkeep.storage.rules.texts import is_storable

logger = logging.getLogger(__name__)

_LOOKED_AT = 5000
_SESSIONS_PER_REKEY = 100

# What the document of the agents is sealed as, with the key of a stream that has the session's number: no stream's bytes
# have a place of that length.
_AGENTS = b"agents"

_COLUMNS = "number, tenant, id, name, created_at, updated_at"


class PostgresSessions:
    """See `SessionStore` for what each method means."""

    def __init__(self, database: Database, sealer: Sealer, key_log: KeyLog) -> None:
        self._database = database
        self._sealer = sealer
        self._key_log = key_log

    def __repr__(self) -> str:
        return "PostgresSessions()"

    _CREATE = f"""
    insert into streamkeep.sessions (tenant, id, name, created_at, updated_at)
    select $1, $2, $3, clock.now, clock.now from (select clock_timestamp() as now) as clock
    on conflict (tenant, id) do nothing
    returning {_COLUMNS}
    """

    async def create(
        self, key: SessionKey, *, name: str | None = None, agents: bytes = b""
    ) -> tuple[SessionRecord, bool]:
        check_id(key.id)
        check_name(name)
        check_agents(agents)
        await self._note_key(key.tenant)

        async def work(connection: Connection) -> tuple[SessionRecord, bool]:
            while True:
                made = await connection.fetchrow(self._CREATE, key.tenant, key.id, name)
                if made is not None:
                    if agents:
                        await self._put_agents(connection, key.tenant, made["number"], agents)
                    return _session(made), True
                found = await connection.fetchrow(self._SESSION, key.tenant, key.id)
                if found is not None:  # Else it was deleted between the two statements.
                    return _session(found), False

        return await self._database.transact(work)

    _SESSION = f"select {_COLUMNS} from streamkeep.sessions where tenant = $1 and id = $2"

    async def session(self, key: SessionKey) -> SessionRecord:
        return _session(_found(await self._database.fetch_row(self._SESSION, key.tenant, key.id), key))

    async def page(
        self, tenant: str | None, *, text: str = "", before: int | None = None, limit: int = 100
    ) -> SessionRecordPage:
        if not is_storable(text):
            return SessionRecordPage([], None)
        scope = _EVERYBODYS if tenant is None else _TENANTS
        found = await self._database.fetch(_PAGE.format(scope=scope), tenant, before, text, limit)
        rows = [_session(row) for row in found]
        if len(rows) == limit:
            return SessionRecordPage(rows, rows[-1].number)
        last = await self._database.fetch_row(_LAST_LOOKED_AT.format(scope=scope), tenant, before)
        return SessionRecordPage(rows, None if last is None else last["number"])

    _RENAME = f"""
    update streamkeep.sessions set name = $3, updated_at = clock_timestamp() where tenant = $1 and id = $2
    returning {_COLUMNS}
    """

    async def rename(self, key: SessionKey, name: str | None) -> SessionRecord:
        check_name(name)

        async def work(connection: Connection) -> SessionRecord:
            return _session(_found(await connection.fetchrow(self._RENAME, key.tenant, key.id, name), key))

        return await self._database.transact(work)

    _DOCUMENT = "select number, agents, is_agents_sealed from streamkeep.sessions where tenant = $1 and id = $2"

    async def agents(self, key: SessionKey) -> bytes:
        row = _found(await self._database.fetch_row(self._DOCUMENT, key.tenant, key.id), key)
        return self._opened(key.tenant, row)

    _TOUCH = "update streamkeep.sessions set updated_at = clock_timestamp() where number = $1"

    async def change_agents(self, key: SessionKey, change: ChangeAgents) -> bytes:
        await self._note_key(key.tenant)

        async def work(connection: Connection) -> bytes:
            row = _found(await connection.fetchrow(f"{self._DOCUMENT} for update", key.tenant, key.id), key)
            agents = change(self._opened(key.tenant, row))
            check_agents(agents)
            await self._put_agents(connection, key.tenant, row["number"], agents)
            await connection.execute(self._TOUCH, row["number"])
            return agents

        return await self._database.transact(work)

    _DELETE = "delete from streamkeep.sessions where tenant = $1 and id = $2 returning number"

    async def delete(self, key: SessionKey) -> None:
        async def work(connection: Connection) -> None:
            _found(await connection.fetchrow(self._DELETE, key.tenant, key.id), key)

        await self._database.transact(work)

    # Runners

    _MARK = """
    update streamkeep.sessions
    set due = due + 1, due_at = coalesce(due_at, clock_timestamp()), updated_at = clock_timestamp()
    where tenant = $1 and id = $2
    returning due
    """

    async def mark_due(self, key: SessionKey) -> int:
        async def work(connection: Connection) -> int:
            due: int = _found(await connection.fetchrow(self._MARK, key.tenant, key.id), key)["due"]
            return due

        return await self._database.transact(work)

    _IS_ANY_DUE = "select 1 from streamkeep.sessions where due_at is not null and owner_id is null limit 1"

    _HOLD_OWNER = "select 1 from streamkeep.owners where id = $1 and epoch = $2 for share"

    _CLAIM = f"""
    update streamkeep.sessions set owner_id = $1, owner_epoch = $2
    where number = any(array(
        select number
        from streamkeep.sessions
        where due_at is not null and owner_id is null
        order by due_at
        limit 1
        for update skip locked
    ))
    returning {_COLUMNS}, due
    """

    async def claim_due(self, owner: Owner) -> DueSession | None:
        # Each process asks about once a second. No lock is taken, and so nothing written, while the answer is no.
        if await self._database.fetch_row(self._IS_ANY_DUE) is None:
            return None

        async def work(connection: Connection) -> DueSession | None:
            if await connection.fetchrow(self._HOLD_OWNER, owner.id, owner.epoch) is None:
                raise OwnerFenced(f"{owner} holds no lease")
            row = await connection.fetchrow(self._CLAIM, owner.id, owner.epoch)
            return None if row is None else _due_session(row)

        return await self._database.transact(work)

    _HELD = f"""
    select {_COLUMNS}, due from streamkeep.sessions where owner_id = $1 and owner_epoch = $2 order by number
    """

    async def held(self, owner: Owner) -> list[DueSession]:
        return [_due_session(row) for row in await self._database.fetch(self._HELD, owner.id, owner.epoch)]

    _LOCK_HELD = f"""
    select {_COLUMNS}, due
    from streamkeep.sessions
    where number = $1 and owner_id = $2 and owner_epoch = $3
    for update
    """

    _SETTLE = "update streamkeep.sessions set due_at = null, owner_id = null, owner_epoch = null where number = $1"

    async def settle(self, owner: Owner, held: DueSession) -> DueSession | None:
        async def work(connection: Connection) -> DueSession | None:
            row = await connection.fetchrow(self._LOCK_HELD, held.session.number, owner.id, owner.epoch)
            if row is None:
                return None
            if row["due"] != held.due:
                return _due_session(row)
            await connection.execute(self._SETTLE, held.session.number)
            return None

        return await self._database.transact(work)

    _RELEASE = """
    update streamkeep.sessions set owner_id = null, owner_epoch = null
    where number = $1 and owner_id = $2 and owner_epoch = $3
    """

    async def release(self, owner: Owner, held: DueSession) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(self._RELEASE, held.session.number, owner.id, owner.epoch)

        await self._database.transact(work)

    _RELEASE_ALL = """
    update streamkeep.sessions set owner_id = null, owner_epoch = null where owner_id = $1 and owner_epoch = $2
    """

    async def release_all(self, connection: Connection, owner: Owner) -> None:
        """Free what an owner holds that is being ended, in the transaction that ends it."""
        await connection.execute(self._RELEASE_ALL, owner.id, owner.epoch)

    # Encryption

    _SEALED_OTHERWISE = f"""
    select number, id
    from streamkeep.sessions
    where tenant = $1 and number > $2 and agents <> ''
      and (not is_agents_sealed or substring(agents for {ID_BYTES}) <> $3)
    order by number
    limit {_SESSIONS_PER_REKEY}
    """

    async def rekey(self, tenant: str) -> None:
        """Seal the documents of a tenant's agents with its newest key, where they are not."""
        key_id, last = self._sealer.key_id(tenant), 0
        await self._note_key(tenant)
        while key_id is not None and (rows := await self._database.fetch(self._SEALED_OTHERWISE, tenant, last, key_id)):
            for row in rows:
                await self._reseal(SessionKey(tenant, row["id"]))
            last = rows[-1]["number"]

    async def _reseal(self, key: SessionKey) -> None:
        async def work(connection: Connection) -> None:
            row = await connection.fetchrow(f"{self._DOCUMENT} for update", key.tenant, key.id)
            if row is not None:
                await self._put_agents(connection, key.tenant, row["number"], self._opened(key.tenant, row))

        try:
            await self._database.transact(work)
        except KeyUnavailable as exc:
            logger.warning("the agents of session %s are left as they are: %s", key.id, exc)

    async def _note_key(self, tenant: str) -> None:
        if self._sealer.seals(tenant):
            await self._key_log.note([tenant])

    _PUT_AGENTS = "update streamkeep.sessions set agents = $2, is_agents_sealed = $3 where number = $1"

    async def _put_agents(self, connection: Connection, tenant: str, number: int, agents: bytes) -> None:
        is_sealed = self._sealer.seals(tenant)
        stored = self._sealer.seal(tenant, number, _AGENTS, agents) if is_sealed else agents
        await connection.execute(self._PUT_AGENTS, number, stored, is_sealed)

    def _opened(self, tenant: str, row: asyncpg.Record) -> bytes:
        """Raises: KeyUnavailable."""
        stored = bytes(row["agents"])
        return self._sealer.open(tenant, row["number"], _AGENTS, stored) if row["is_agents_sealed"] else stored


# A page looks at so many rows at most: where few of them are wanted, it ends early and leads on.
_TENANTS = "tenant = $1"
_EVERYBODYS = "$1::text is null"

_PAGE = f"""
select {_COLUMNS}
from (
    select {_COLUMNS}
    from streamkeep.sessions
    where {{scope}} and number < coalesce($2::bigint, 9223372036854775807)
    order by number desc
    limit {_LOOKED_AT}
) as looked_at
where strpos(lower(id || ' ' || coalesce(name, '')), lower($3::text)) > 0
order by number desc
limit $4
"""

_LAST_LOOKED_AT = f"""
select number
from streamkeep.sessions
where {{scope}} and number < coalesce($2::bigint, 9223372036854775807)
order by number desc
offset {_LOOKED_AT} - 1
limit 1
"""


def _found(row: asyncpg.Record | None, key: SessionKey) -> asyncpg.Record:
    if row is None:
        raise SessionNotFound(f"no session {key.id}")
    return row


def _session(row: asyncpg.Record) -> SessionRecord:
    key = SessionKey(row["tenant"], row["id"])
    return SessionRecord(key, row["number"], row["created_at"], row["updated_at"], row["name"])


def _due_session(row: asyncpg.Record) -> DueSession:
    return DueSession(_session(row), row["due"])
