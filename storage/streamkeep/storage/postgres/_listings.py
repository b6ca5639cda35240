"""Listings of generations and of sessions, page by page.

A page begins below an id and walks an index downwards, so that the last page costs what the first does. It looks at so many
rows at most: where few of them are wanted, it ends early and leads on from the last one that was looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import asyncpg

from streamkeep.storage._types import Generation, GenerationPage, Session, SessionPage, Wanted
from streamkeep.storage.postgres._database import Database
from streamkeep.storage.rules.generations import LIVE

_LOOKED_AT = 5000

# Error bodies stay where they are: a page of them would be megabytes.
_COLUMNS = """id, tenant, session_id, request_id, epoch, state, owner_id, owner_epoch, data_stream, control_stream,
    fingerprint, created_at, head, null::bytea as refusal_body, is_refusal_sealed, code, message, is_cancel_requested,
    ended_at, is_swept, holder, cancel_after_seconds, retention_seconds, gone_at, gone_reason, upstream, usage"""

_MEANT = """($1::text is null or tenant = $1)
      and ($2::text is null or session_id = $2)
      and ($3::text is null or request_id = $3)
      and ($5::text[] is null or state = any($5))
      and strpos(lower(session_id || '/' || request_id || ' ' || coalesce(upstream, '')), lower($6::text)) > 0
      and gone_reason is distinct from 'deleted'"""

_LIVE = "id = any(array(select id from streamkeep.generations where ended_at is null))"


def _looked_at(scope: str) -> str:
    """The rows that a page looks at."""
    return f"""
        select *
        from streamkeep.generations
        where {scope} and id < coalesce($4::bigint, 9223372036854775807)
        order by id desc
        limit {_LOOKED_AT}
    """


def _generations(scope: str) -> str:
    return f"""
    select {_COLUMNS}
    from ({_looked_at(scope)}) as looked_at
    where {_MEANT}
    order by id desc
    limit $7
    """


def _sessions(scope: str) -> str:
    return f"""
    select newest.id, newest.tenant, newest.session_id, totals.*
    from (
        select distinct on (tenant, session_id) tenant, session_id, id
        from ({_looked_at(scope)}) as looked_at
        where {_MEANT}
        order by tenant, session_id, id desc
    ) as newest
    cross join lateral (
        select count(*) as generations, count(*) filter (where ended_at is null) as live,
               min(created_at) as first_at, max(created_at) as last_at
        from streamkeep.generations
        where tenant = newest.tenant and session_id = newest.session_id and gone_reason is distinct from 'deleted'
    ) as totals
    where not exists (
        select from streamkeep.generations
        where tenant = newest.tenant and session_id = newest.session_id and id >= $4 and {_MEANT}
    )
    order by newest.id desc
    limit $7
    """


def _last_looked_at(scope: str) -> str:
    """Where a page that is not full leads on, if it does."""
    return f"""
    select id
    from streamkeep.generations
    where {scope} and id < coalesce($4::bigint, 9223372036854775807)
      and ($1::text is null or true) and ($2::text is null or true) and ($3::text is null or true)
    order by id desc
    offset {_LOOKED_AT} - 1
    limit 1
    """


class Listings:
    """See `Store` for what each method means. `generation` makes a generation of a row."""

    def __init__(self, database: Database, generation: Callable[[asyncpg.Record], Generation]) -> None:
        self._database = database
        self._generation = generation

    async def generations(self, wanted: Wanted, *, before: int | None, limit: int) -> GenerationPage:
        rows, next_before = await self._page(_generations, wanted, before, limit)
        return GenerationPage([self._generation(row) for row in rows], next_before)

    async def sessions(self, wanted: Wanted, *, before: int | None, limit: int) -> SessionPage:
        rows, next_before = await self._page(_sessions, wanted, before, limit)
        return SessionPage([_session(row) for row in rows], next_before)

    async def _page(
        self, statement: Callable[[str], str], wanted: Wanted, before: int | None, limit: int
    ) -> tuple[list[asyncpg.Record], int | None]:
        scope = _scope(wanted)
        states = None if wanted.states is None else [state.value for state in wanted.states]
        place = (wanted.tenant, wanted.session_id, wanted.request_id, before)
        rows = await self._database.fetch(statement(scope), *place, states, wanted.text, limit)
        if len(rows) == limit:
            return rows, rows[-1]["id"]
        last = await self._database.fetch_row(_last_looked_at(scope), *place)
        return rows, None if last is None else last["id"]


def _scope(wanted: Wanted) -> str:
    """The condition that the best index serves; the others are looked at row by row."""
    if wanted.states is not None and wanted.states <= LIVE:
        return _LIVE
    if wanted.tenant is None:
        return "true"
    if wanted.session_id is None:
        return "tenant = $1 and id > 0"
    of_session = "tenant = $1 and session_id = $2"
    return of_session if wanted.request_id is None else f"{of_session} and request_id = $3"


def _session(row: asyncpg.Record) -> Session:
    return Session(row["tenant"], row["session_id"], row["generations"], row["live"], row["first_at"], row["last_at"])
