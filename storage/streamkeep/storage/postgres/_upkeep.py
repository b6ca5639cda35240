"""Make room: delete what is past its retention, and merge chunks into larger segments: those of closed streams, and old
ones of open streams that grow long.

All of it locks rows of `streams` before they look at `chunks`, in a statement of its own, so that none works on what it saw
before another had finished; rows that somebody else holds are left to that somebody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from streamkeep.storage._errors import KeyUnavailable
from streamkeep.storage._types import Retention
from streamkeep.storage.postgres._database import Connection, Database
from streamkeep.storage.postgres._segments import RAW, SEGMENT_BYTES, Codec, Segment

logger = logging.getLogger(__name__)

_DEADLINE_SECONDS = 60.0
_PACKED_ROWS_PER_RUN = 4096
_STREAMS_PER_REKEY = 5000

PIECE_BYTES = 64 * SEGMENT_BYTES
"""What one transaction merges."""

OPEN_BYTES = 4 * SEGMENT_BYTES
"""An open stream is looked at each time that it has grown by this much, and as much is left as it came."""


class Upkeep:
    def __init__(self, database: Database, codec: Codec, retention: Retention, *, merge_after_seconds: float) -> None:
        self._database = database
        self._codec = codec
        self._retention = retention
        self._merge_after_seconds = merge_after_seconds
        # Open streams that grew here. It may be forgotten: they come again as they grow, or when they are closed.
        self._grown: set[int] = set()

    async def sweep(self, limit: int) -> int:
        """One batch: the data of generations past their retention, rows past theirs, audiences of what has ended."""

        async def work(connection: Connection) -> int:
            due = await connection.fetch(_LOCK_DUE, self._retention.data_seconds, limit)
            if due:
                ids = [row["id"] for row in due]
                streams = [stream for row in due for stream in (row["data_stream"], row["control_stream"])]
                await connection.fetch(_LOCK_STREAMS, streams)
                kept = {row["id"] for row in await connection.fetch(_KEEP_FOR_FORKS, streams)}
                streams = [stream for stream in streams if stream not in kept]
                await connection.execute(_DELETE_CHUNKS, streams)
                await connection.execute(_DELETE_STREAMS, streams)
                await connection.execute(_DELETE_REFUSED, ids)
                await connection.execute(_MARK_SWEPT, ids)
            expired = await connection.execute(_DELETE_ROWS, self._retention.row_seconds, limit)
            unwatched = await connection.execute(_DELETE_AUDIENCES, limit)
            return len(due) + sum(int(status.rpartition(" ")[2]) for status in (expired, unwatched))

        return await self._database.transact(work, deadline_seconds=_DEADLINE_SECONDS)

    def stream_grew(self, stream_id: int, position: int, tail: int) -> None:
        """An open stream of the open protocol grew from one position to another; it may have become worth a merge."""
        if position // OPEN_BYTES != tail // OPEN_BYTES:
            self._grown.add(stream_id)

    async def merge(self, limit: int) -> int:
        """Merge up to `limit` pieces, each in a transaction of its own: of closed streams, then of open ones."""
        for merged in range(limit):
            if not await self._database.transact(self._merge_closed, deadline_seconds=_DEADLINE_SECONDS):
                return merged + await self._merge_grown(limit - merged)
        return limit

    async def rekey(self, tenant: str) -> int:
        """Forget of a tenant's closed streams that they were merged; return how many."""
        marked = last = 0
        while rows := await self._database.fetch(_UNMERGE, tenant, last, _STREAMS_PER_REKEY):
            marked += len(rows)
            last = max(row["id"] for row in rows)
        return marked

    async def _merge_grown(self, limit: int) -> int:
        for merged in range(limit):
            if not self._grown:
                return merged
            stream_id = self._grown.pop()
            work = partial(self._merge_open, stream_id=stream_id)
            if await self._database.transact(work, deadline_seconds=_DEADLINE_SECONDS):
                self._grown.add(stream_id)
        return limit

    async def _merge_closed(self, connection: Connection) -> bool:
        """Merge a piece of one closed stream; whether there was one."""
        stream = await connection.fetchrow(_LOCK_UNMERGED, self._merge_after_seconds)
        if stream is None:
            return False
        stream_id, start, final_position = stream["id"], stream["start"], stream["final_position"]
        piece_end = min(start + PIECE_BYTES, final_position)
        end = await self._merge_piece(connection, stream["tenant"], stream_id, start, piece_end)
        await connection.execute(_MARK_PIECE, stream_id, end)
        # A piece that ends where it began cannot be merged at all.
        if end >= final_position or end == start:
            await connection.execute(_MARK_MERGED, stream_id)
        return True

    async def _merge_open(self, connection: Connection, *, stream_id: int) -> bool:
        """Merge a piece of an open stream, but for its last `OPEN_BYTES`, which may still have readers; whether more of
        it is to be merged. Only the stream's deletion waits for this, appends do not."""
        if not await connection.fetchval(_TRY_TURN, stream_id):
            return False
        stream = await connection.fetchrow(_HOLD_OPEN, stream_id)
        if stream is None:
            return False
        start, last = stream["start"], stream["tail"] - OPEN_BYTES
        end = await self._merge_piece(connection, stream["tenant"], stream_id, start, min(start + PIECE_BYTES, last))
        if end <= start:
            return False
        await connection.execute(_MARK_PIECE, stream_id, end)
        return bool(end < last)

    async def _merge_piece(self, connection: Connection, tenant: str, stream_id: int, position: int, end: int) -> int:
        """Merge the chunks that begin between two positions, a segment at a time; the position up to which it was done.
        Readers see all old rows or all new ones, which hold the same bytes. What is encrypted gets the newest key."""
        while position < end:
            try:
                chunks, run_end, data = await self._run(connection, tenant, stream_id, position)
            except KeyUnavailable as exc:
                logger.warning("%s; it is left as it is", exc)
                break
            if not data or run_end - position != len(data):
                # Nothing writes such rows. Should they exist all the same, keep them for whoever comes to look.
                logger.error("stream %s has no whole chunks at %s; it is left as it is", stream_id, position)
                break
            segments = await asyncio.to_thread(self._codec.packed, tenant, stream_id, position, data)
            if chunks > len(segments) or any(segment.encoding != RAW for segment in segments):
                await connection.execute(_DELETE_RUN, stream_id, position, run_end)
                await connection.execute(
                    _INSERT_SEGMENTS,
                    stream_id,
                    [segment.position for segment in segments],
                    [segment.size for segment in segments],
                    [segment.encoding for segment in segments],
                    [segment.data for segment in segments],
                )
            position = run_end
        return position

    async def _run(
        self, connection: Connection, tenant: str, stream_id: int, position: int
    ) -> tuple[int, int, bytes | None]:
        """The chunks that begin within one segment's length: how many, where they end, and their bytes.

        Raises:
            KeyUnavailable: they cannot be opened.
        """
        run = await connection.fetchrow(_RUN, stream_id, position, SEGMENT_BYTES)
        if run is None or not run["is_packed"]:
            return (0, position, None) if run is None else (run["chunks"], run["run_end"], run["data"])
        rows = await connection.fetch(_ROWS, stream_id, position, SEGMENT_BYTES, _PACKED_ROWS_PER_RUN)
        segments = [Segment(row["position"], row["size"], row["encoding"], row["data"]) for row in rows]
        data = await asyncio.to_thread(self._opened, tenant, stream_id, segments)
        return len(rows), segments[-1].position + segments[-1].size, data

    def _opened(self, tenant: str, stream_id: int, segments: Sequence[Segment]) -> bytes:
        return b"".join(self._codec.unpacked(tenant, stream_id, segment) for segment in segments)


_LOCK_DUE = """
select id, data_stream, control_stream
from streamkeep.generations
where not is_swept and gone_at is null
  and id = any(array(
      (
          select id
          from streamkeep.generations
          where not is_swept and gone_at is null and ended_at is not null and sweep_at is null
            and ended_at <= clock_timestamp() - make_interval(secs => $1)
          order by ended_at
          limit $2
      ) union all (
          select id
          from streamkeep.generations
          where not is_swept and gone_at is null and sweep_at is not null and sweep_at <= clock_timestamp()
          order by sweep_at
          limit $2
      )
  ))
limit $2
for update skip locked
"""

_LOCK_STREAMS = "select id from streamkeep.streams where id = any($1::bigint[]) order by id for update"

# Without a path: the generation's key may be claimed anew while forks still read the bytes.
_KEEP_FOR_FORKS = """
update streamkeep.streams set path = null, deleted_at = clock_timestamp()
where id = any($1::bigint[]) and exists (select from streamkeep.streams fork where fork.source_id = streams.id)
returning id
"""

_DELETE_CHUNKS = "delete from streamkeep.chunks where stream_id = any($1::bigint[])"

_DELETE_STREAMS = "delete from streamkeep.streams where id = any($1::bigint[])"

# A refused generation guards nothing: its key may be claimed anew, so its row goes with its error body.
_DELETE_REFUSED = "delete from streamkeep.generations where id = any($1::bigint[]) and state = 'refused'"

_MARK_SWEPT = """
update streamkeep.generations set is_swept = true, gone_at = clock_timestamp(), gone_reason = 'retention'
where id = any($1::bigint[])
"""

_DELETE_ROWS = """
delete from streamkeep.generations
where id in (
    select id
    from streamkeep.generations
    where is_swept and coalesce(gone_at, ended_at) <= clock_timestamp() - make_interval(secs => $1)
    order by coalesce(gone_at, ended_at)
    limit $2
    for update skip locked
)
"""

_DELETE_AUDIENCES = """
delete from streamkeep.audiences
where (generation_id, process) in (
    select generation_id, process
    from streamkeep.audiences
    where not exists (
        select from streamkeep.generations where generations.id = audiences.generation_id and ended_at is null
    )
    limit $1
    for update skip locked
)
"""

_LOCK_UNMERGED = """
select id, tenant, coalesce(merged_position, fork_position, 0) as start, final_position
from streamkeep.streams
where closed_at <= clock_timestamp() - make_interval(secs => $1) and merged_at is null
order by closed_at
limit 1
for update skip locked
"""

_TRY_TURN = "select pg_try_advisory_xact_lock(hashtextextended('streamkeep merge ' || $1::bigint, 0))"

_HOLD_OPEN = """
select tenant, coalesce(merged_position, fork_position, 0) as start, tail
from streamkeep.streams
where id = $1 and content_type is not null and final_position is null and deleted_at is null
for key share
"""

# The chunks that begin within one segment's length. Joined by the server: a stream may have come in single bytes.
_RUN = f"""
select count(*) as chunks, max(position + size) as run_end, bool_or(encoding <> {RAW}) as is_packed,
       string_agg(data, ''::bytea order by position) filter (where encoding = {RAW}) as data
from streamkeep.chunks
where stream_id = $1 and position >= $2 and position < $2 + $3::bigint
"""

# Some of them not raw: fewer at once, since each comes as it is.
_ROWS = """
select position, size, encoding, data
from streamkeep.chunks
where stream_id = $1 and position >= $2 and position < $2 + $3::bigint
order by position
limit $4
"""

_DELETE_RUN = "delete from streamkeep.chunks where stream_id = $1 and position >= $2 and position < $3"

_INSERT_SEGMENTS = """
insert into streamkeep.chunks (stream_id, position, size, encoding, data)
select $1, segment.*
from unnest($2::bigint[], $3::int[], $4::smallint[], $5::bytea[]) as segment
"""

_UNMERGE = """
update streamkeep.streams set merged_at = null, merged_position = null
where id = any(array(
    select id from streamkeep.streams
    where tenant = $1 and id > $2 and closed_at is not null and not is_erased
    order by id
    limit $3
))
returning id
"""

_MARK_PIECE = "update streamkeep.streams set merged_position = $2 where id = $1"

_MARK_MERGED = "update streamkeep.streams set merged_at = clock_timestamp() where id = $1"
