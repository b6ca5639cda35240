"""Make room: delete what is past its retention, and merge the chunks of closed streams into larger segments.

Both lock rows of `streams` before they look at `chunks`, in a statement of its own, so that neither works on what it saw
before the other had finished; rows that somebody else holds are left to that somebody.
"""

from __future__ import annotations

import asyncio
import logging

from streamkeep.storage._types import Retention
from streamkeep.storage.postgres._database import Connection, Database
from streamkeep.storage.postgres._segments import RAW, SEGMENT_BYTES, pack

logger = logging.getLogger(__name__)

_DEADLINE_SECONDS = 60.0


class Upkeep:
    def __init__(self, database: Database, retention: Retention, *, merge_after_seconds: float) -> None:
        self._database = database
        self._retention = retention
        self._merge_after_seconds = merge_after_seconds

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

    async def merge(self, limit: int) -> int:
        """Merge up to `limit` streams, each in a transaction of its own."""
        for merged in range(limit):
            if not await self._database.transact(self._merge_next, deadline_seconds=_DEADLINE_SECONDS):
                return merged
        return limit

    async def _merge_next(self, connection: Connection) -> bool:
        """Merge one stream, a segment at a time. Readers see all old rows or all new ones, which hold the same bytes."""
        stream = await connection.fetchrow(_LOCK_UNMERGED, self._merge_after_seconds)
        if stream is None:
            return False
        stream_id, position, final_position = stream["id"], stream["start"], stream["final_position"]
        while position < final_position:
            run = await connection.fetchrow(_RUN, stream_id, position, SEGMENT_BYTES)
            if run is None or run["data"] is None or run["run_end"] - position != len(run["data"]):
                # Nothing writes such rows. Should they exist all the same, keep them for whoever comes to look.
                logger.error("stream %s has no whole chunks at %s; it is left as it is", stream_id, position)
                break
            segments = await asyncio.to_thread(pack, position, run["data"])
            if run["chunks"] > len(segments) or any(segment.encoding != RAW for segment in segments):
                await connection.execute(_DELETE_RUN, stream_id, position, run["run_end"])
                await connection.execute(
                    _INSERT_SEGMENTS,
                    stream_id,
                    [segment.position for segment in segments],
                    [segment.size for segment in segments],
                    [segment.encoding for segment in segments],
                    [segment.data for segment in segments],
                )
            position = run["run_end"]
        await connection.execute(_MARK_MERGED, stream_id)
        return True


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
select id, coalesce(fork_position, 0) as start, final_position
from streamkeep.streams
where closed_at <= clock_timestamp() - make_interval(secs => $1) and merged_at is null
order by closed_at
limit 1
for update skip locked
"""

# The chunks that begin within one segment's length. Joined by the server: a stream may have come in single bytes.
_RUN = """
select count(*) as chunks, max(position + size) as run_end, string_agg(data, ''::bytea order by position) as data
from streamkeep.chunks
where stream_id = $1 and position >= $2 and position < $2 + $3::bigint and encoding = 0
"""

_DELETE_RUN = "delete from streamkeep.chunks where stream_id = $1 and position >= $2 and position < $3"

_INSERT_SEGMENTS = """
insert into streamkeep.chunks (stream_id, position, size, encoding, data)
select $1, segment.*
from unnest($2::bigint[], $3::int[], $4::smallint[], $5::bytea[]) as segment
"""

_MARK_MERGED = "update streamkeep.streams set merged_at = clock_timestamp() where id = $1"
