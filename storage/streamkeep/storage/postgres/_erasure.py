"""Deletion on request: generations and their streams, whatever was forked from them, and all that a tenant has.

Three steps, each of which finds its work in the tables, so that a crash only leaves it for the next call or sweep.
*Mark*: the generation's row says that its data are gone, its streams are not readable any more, and a running one is
flagged for its owner to stop. *Erase*: once it has ended, nothing of upstream's stays in the row, and its streams and their
forks lose their paths. *Purge*: chunks go, a bounded batch at a time, and the streams with the last of them.

Forks go too: they read the bytes that somebody wants gone. Whoever makes a fork locks the sources, as erasing does, and
sees that they are deleted; so none is made meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streamkeep.storage._types import Erased, Erasure
from streamkeep.storage.postgres._database import Connection, Database
from streamkeep.storage.postgres._listen import CANCELS_CHANNEL, format_payload

_DEADLINE_SECONDS = 60.0
_CHUNKS_PER_PURGE = 10_000
_STREAMS_PER_PURGE = 100
# So many ids fit into a notification.
_CANCELS_PER_NOTIFICATION = 200

_SCOPE = {
    (False, False): "tenant = $1 and $2::text is null and $3::text is null",
    (True, False): "tenant = $1 and session_id = $2 and $3::text is null",
    (True, True): "tenant = $1 and session_id = $2 and request_id = $3",
}


class Erasing:
    """`announce` tells readers in every process which streams changed; `cancel` the owner here which generations are to
    stop, and `sender` names this process in the notification for the others."""

    def __init__(
        self,
        database: Database,
        announce: Callable[[Sequence[int]], None],
        cancel: Callable[[Sequence[int]], None],
        sender: str,
    ) -> None:
        self._database = database
        self._announce = announce
        self._cancel = cancel
        self._sender = sender

    async def erase(self, what: Erasure, limit: int) -> Erased:
        """As `Store.erase`."""
        scope = _SCOPE[what.session_id is not None, what.request_id is not None]
        names = (what.tenant, what.session_id, what.request_id)

        async def work(connection: Connection) -> tuple[int, list[int], list[int]]:
            rows = await connection.fetch(_MARK.format(scope=scope), *names, limit)
            streams = [stream for row in rows for stream in (row["data_stream"], row["control_stream"])]
            live = [row["id"] for row in rows if row["is_live"]]
            await connection.fetch(_LOCK_STREAMS, streams)
            await connection.execute(_HIDE, streams)
            for start in range(0, len(live), _CANCELS_PER_NOTIFICATION):
                payload = format_payload(self._sender, live[start : start + _CANCELS_PER_NOTIFICATION])
                await connection.execute("select pg_notify($1, $2)", CANCELS_CHANNEL, payload)
            ended = [row["id"] for row in rows if not row["is_live"]]
            streams += await self._erase_generations(connection, ended)
            if what.request_id is None:
                await connection.execute(_DELETE_SESSIONS, what.tenant, what.session_id, limit)
            if what.session_id is None:
                streams += await self._erase_streams(connection, _LOCK_TENANT, what.tenant, limit)
                await connection.execute(_DELETE_SUBSCRIPTIONS, what.tenant, limit)
                await connection.execute(_DELETE_CHANGES, what.tenant)
            return len(rows), live, streams

        marked, live, streams = await self._database.transact(work, deadline_seconds=_DEADLINE_SECONDS)
        if streams:
            self._announce(streams)
        if live:
            self._cancel(live)
        await self.sweep(limit)
        if what.session_id is None:
            (left,) = await self._database.fetch(_REMAINING_OF_TENANT, what.tenant)
        else:
            (left,) = await self._database.fetch(_REMAINING_STREAMS.format(scope=scope), *names)
        return Erased(marked, left["remaining"])

    async def sweep(self, limit: int) -> int:
        """Erase what was marked while it ran and has ended since, and purge; return how many rows were touched."""

        async def work(connection: Connection) -> tuple[int, list[int]]:
            ids = [row["id"] for row in await connection.fetch(_LOCK_ENDED, limit)]
            return len(ids), await self._erase_generations(connection, ids)

        touched, streams = await self._database.transact(work, deadline_seconds=_DEADLINE_SECONDS)
        if streams:
            self._announce(streams)
        return touched + await self.purge()

    async def purge(self) -> int:
        """Delete a batch of what is erased; return how many chunks and streams."""

        async def work(connection: Connection) -> int:
            ids = [row["id"] for row in await connection.fetch(_LOCK_ERASED, _STREAMS_PER_PURGE)]
            if not ids:
                return 0
            chunks = int((await connection.execute(_PURGE_CHUNKS, ids, _CHUNKS_PER_PURGE)).rpartition(" ")[2])
            if chunks == _CHUNKS_PER_PURGE:
                return chunks  # There may be more.
            await connection.execute(_PURGE_PRODUCERS, ids)
            await connection.execute(_PURGE_STREAMS, ids)
            return chunks + len(ids)

        return await self._database.transact(work, deadline_seconds=_DEADLINE_SECONDS)

    async def _erase_generations(self, connection: Connection, ids: list[int]) -> list[int]:
        """Take everything out of ended, locked generations; the ids of the streams that went with them."""
        if not ids:
            return []
        rows = await connection.fetch(_STREAMS_OF, ids)
        roots = [stream for row in rows for stream in (row["data_stream"], row["control_stream"])]
        await connection.fetch(_LOCK_STREAMS, roots)
        # A statement of its own: it sees the forks that were made while this waited for their sources.
        streams = await self._erase_streams(connection, _LOCK_FORKS, roots)
        await connection.execute(_DELETE_REFUSED, ids)
        await connection.execute(_EMPTY, ids)
        return streams

    async def _erase_streams(self, connection: Connection, lock: str, *values: object) -> list[int]:
        """Take the paths of the streams that a statement locks; their ids."""
        ids = [row["id"] for row in await connection.fetch(lock, *values)]
        await connection.execute(_ERASE, ids)
        return ids


_MARK = """
update streamkeep.generations
set gone_at = clock_timestamp(), gone_reason = 'deleted', is_swept = false,
    is_cancel_requested = is_cancel_requested or ended_at is null
where id = any(array(
    select id
    from streamkeep.generations
    where {scope} and gone_reason is distinct from 'deleted'
    order by id
    limit $4
    for update
))
returning id, data_stream, control_stream, ended_at is null as is_live
"""

_LOCK_STREAMS = "select id from streamkeep.streams where id = any($1::bigint[]) order by id for update"

_HIDE = """
update streamkeep.streams set deleted_at = clock_timestamp() where id = any($1::bigint[]) and deleted_at is null
"""

_LOCK_ENDED = """
select id
from streamkeep.generations
where gone_reason = 'deleted' and not is_swept and ended_at is not null
order by id
limit $1
for update skip locked
"""

_STREAMS_OF = "select data_stream, control_stream from streamkeep.generations where id = any($1::bigint[])"

_LOCK_FORKS = """
with recursive family as (
    select id from unnest($1::bigint[]) as root (id)
    union
    select fork.id
    from family
    cross join lateral (select id from streamkeep.streams where source_id = family.id offset 0) as fork
)
select id
from streamkeep.streams
where id = any(array(select id from family))
order by id
for update
"""

# Forks come after their sources, and go before them: what is left of a tenant can be read until it goes.
_LOCK_TENANT = """
select id
from streamkeep.streams
where tenant = $1 and content_type is not null and not is_erased
order by id desc
limit $2
for update
"""

_ERASE = """
with noted as (
    insert into streamkeep.stream_changes (tenant, path, content_type, created_at, is_deletion)
    select tenant, path, content_type, created_at, true
    from streamkeep.streams
    where id = any($1::bigint[]) and content_type is not null and deleted_at is null
)
update streamkeep.streams
set is_erased = true, deleted_at = coalesce(deleted_at, clock_timestamp()), path = null,
    merged_at = coalesce(merged_at, clock_timestamp())
where id = any($1::bigint[])
"""

# A refused generation guards nothing, so its row goes with its error body.
_DELETE_REFUSED = "delete from streamkeep.generations where id = any($1::bigint[]) and state = 'refused'"

_EMPTY = """
update streamkeep.generations
set is_swept = true, head = null, refusal_body = null, message = null, upstream = null, usage = null
where id = any($1::bigint[])
"""

_DELETE_SUBSCRIPTIONS = """
delete from streamkeep.subscriptions
where tenant = $1 and id = any(array(select id from streamkeep.subscriptions where tenant = $1 limit $2))
"""

_DELETE_SESSIONS = """
delete from streamkeep.sessions
where number = any(array(
    select number from streamkeep.sessions where tenant = $1 and id = coalesce($2, id) limit $3
))
"""

# Nobody is left to be told.
_DELETE_CHANGES = "delete from streamkeep.stream_changes where tenant = $1"

# Forks first, so that those that remain can be found from their sources.
_LOCK_ERASED = """
select id from streamkeep.streams where is_erased order by id desc limit $1 for update skip locked
"""

_PURGE_CHUNKS = """
delete from streamkeep.chunks
where ctid = any(array(select ctid from streamkeep.chunks where stream_id = any($1::bigint[]) limit $2))
"""

_PURGE_PRODUCERS = "delete from streamkeep.producers where stream_id = any($1::bigint[])"

_PURGE_STREAMS = "delete from streamkeep.streams where id = any($1::bigint[])"

_REMAINING_STREAMS = """
with recursive family as (
    select unnest(array[data_stream, control_stream]) as id from streamkeep.generations where {scope}
    union
    select fork.id
    from family
    cross join lateral (select id from streamkeep.streams where source_id = family.id offset 0) as fork
)
select count(*) as remaining from streamkeep.streams where id = any(array(select id from family))
"""

_REMAINING_OF_TENANT = """
select (select count(*) from streamkeep.streams where tenant = $1)
     + (select count(*) from streamkeep.subscriptions where tenant = $1)
     + (select count(*) from streamkeep.sessions where tenant = $1) as remaining
"""
