"""Reading bytes: where a stream ends, and what stands at a position.

A fork has no chunks below its fork position: they are its source's, or the source's source's, cut where each branched
off. A read goes there only for positions below that point, and what it finds there can no longer change or go away
while the fork exists. So it needs no snapshot in common with the fork's own chunks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter

import asyncpg

from streamkeep.storage._errors import KeyUnavailable, StoreError, StreamNotFound
from streamkeep.storage._types import Slice, Tail
from streamkeep.storage.postgres._database import Connection, Database, Statement
from streamkeep.storage.postgres._segments import RAW, SEALED, Codec, Segment

_MAX_ROWS_PER_READ = 8192
_TOGETHER_BYTES = 32 * 1024


def end_of_chunks(stream_id: str) -> str:
    """The tail of a generation's open stream, as an expression: the end of its last chunk, None when it has none."""
    return f"""(
        select last.position + last.size
        from streamkeep.chunks last
        where last.stream_id = {stream_id}
        order by last.position desc
        limit 1
    )"""


_IS_READABLE = "deleted_at is null and (ends_at is null or ends_at > clock_timestamp())"

_TAIL = f"""coalesce(final_position, tail, {end_of_chunks("streams.id")}, 0) as tail,
    final_position is not null as is_closed"""


def _tails_where(condition: str) -> str:
    """The tails of some streams. Each is looked up by its id, also by a plan that was made while there were few."""
    return f"""
    select stream.id, tail, is_closed
    from unnest((select $1::bigint[])) as wanted (id)
    cross join lateral (
        select streams.id, {_TAIL} from streamkeep.streams where streams.id = wanted.id and {condition} offset 0
    ) as stream
    """


# Bounded in rows too: a live stream may have come in single bytes. Of a large raw row only the part is fetched; others are small.
def _found(stream_id: str, position: str, max_bytes: str) -> str:
    """The rows of a stream that hold bytes from a position on, as a query over three expressions."""
    return f"""
    select position, size, encoding,
           case
               when encoding <> {RAW} or (position >= {position} and position + size <= {position} + {max_bytes}) then data
               else substring(
                   data
                   from (greatest({position} - position, 0) + 1)::int
                   for least(position + size - {position}, {max_bytes}, {position} + {max_bytes} - position)::int
               )
           end as data
    from streamkeep.chunks
    where stream_id = {stream_id}
      and position < {position} + {max_bytes}
      and position + size > {position}
      and position >= coalesce(
          (select max(first.position) from streamkeep.chunks first
           where first.stream_id = {stream_id} and first.position <= {position}),
          0
      )
    order by position
    limit {_MAX_ROWS_PER_READ}
"""


_FOUND = _found("$1", "$2", "$3::bigint")

# Raw rows are put together by the server: as thousands of small ones they would cost this process as much as all the rest of a read.
# Of what is put together `size` says how much lies between its ends.
_FOUND_TOGETHER = f"""
    select min(position) as position, (max(position + size) - min(position))::bigint as size, min(encoding) as encoding,
           string_agg(data, ''::bytea order by position) as data
    from ({_FOUND}) as piece
    group by position / {_TOGETHER_BYTES}, case when encoding <> {RAW} then position end
"""


def _reading(found: str) -> str:
    """One stream, and what of it is `found`: a row for each piece, or one without a piece."""
    return f"""
    with stream as materialized (
        select {_TAIL}, fork_position, tenant from streamkeep.streams where id = $1 and {_IS_READABLE}
    )
    select stream.tail, stream.is_closed, stream.fork_position, found.position, found.size, found.encoding, found.data,
           case when found.encoding >= {SEALED} then stream.tenant end as tenant
    from stream
    left join lateral ({found}) as found on true
    order by found.position
    """


class Chunks:
    def __init__(self, database: Database, codec: Codec) -> None:
        self._database = database
        self._codec = codec

    _TAILS = _tails_where(_IS_READABLE)

    async def tails(self, stream_ids: Collection[int]) -> dict[int, Tail]:
        """As `Store.tails`."""
        return _tails(await self._database.fetch(self._TAILS, list(stream_ids)))

    _WRITERS_TAILS = _tails_where("true")

    async def writers_tails(self, stream_ids: Collection[int], connection: Connection) -> dict[int, Tail]:
        """As their writer must see them: a stream that nobody may read any more is still written until it ends."""
        return _tails(await connection.fetch(self._WRITERS_TAILS, list(stream_ids)))

    _READ = _reading(_FOUND_TOGETHER)
    _READ_APART = _reading(_FOUND)

    @property
    def needed_by_all(self) -> list[Statement]:
        """What every reader asks, of a stream that is not."""
        return [(self._READ, (0, 0, 1))]

    async def read(self, stream_id: int, position: int, max_bytes: int) -> Slice:
        """As `Store.read`."""
        rows = await self._database.fetch(self._READ, stream_id, position, max_bytes)
        if any(_is_torn(row, position, position + max_bytes) for row in rows):
            # Something else lies between the raw rows.
            rows = await self._database.fetch(self._READ_APART, stream_id, position, max_bytes)
        if not rows:
            raise StreamNotFound(f"no stream {stream_id}")
        return await self._slice(stream_id, position, max_bytes, rows)

    async def _slice(self, stream_id: int, position: int, max_bytes: int, rows: Sequence[asyncpg.Record]) -> Slice:
        """What the rows of a read hold, of its sources too where it is a fork. Raises: KeyUnavailable, StreamNotFound."""
        stream = rows[0]
        tail = Tail(stream["tail"], stream["is_closed"])
        own = [row for row in rows if row["position"] is not None]
        end = position + max_bytes
        fork_position = stream["fork_position"]
        if fork_position is None or position >= fork_position:
            data = self._joined(stream_id, own, position, end)
            if not data and position < min(tail.position, end):
                raise StoreError(f"stream {stream_id} has a hole at {position}")
            return Slice(position, data, tail)
        inherited = await self._inherited(stream_id, position, min(end, fork_position))
        if position + len(inherited) == fork_position:
            inherited += self._joined(stream_id, own, fork_position, end)
        return Slice(position, inherited, tail)

    _READ_EACH = f"""
    select wanted.id, stream.tail, stream.is_closed, stream.fork_position,
           found.position, found.size, found.encoding, found.data,
           case when found.encoding >= {SEALED} then stream.tenant end as tenant
    from unnest((select $1::bigint[]), (select $2::bigint[])) as wanted (id, start)
    cross join lateral (
        select {_TAIL}, fork_position, tenant from streamkeep.streams where streams.id = wanted.id and {_IS_READABLE} offset 0
    ) as stream
    left join lateral ({_found("wanted.id", "wanted.start", "$3::bigint")}) as found on true
    order by wanted.id, found.position
    """

    async def read_each(self, positions: Mapping[int, int], max_bytes: int) -> dict[int, Slice]:
        """As `Store.read_each`."""
        rows = await self._database.fetch(self._READ_EACH, list(positions), list(positions.values()), max_bytes)
        read: dict[int, Slice] = {}
        for stream_id, of_stream in groupby(rows, key=itemgetter("id")):
            own = list(of_stream)
            with suppress(KeyUnavailable, StreamNotFound):
                read[stream_id] = await self._slice(stream_id, positions[stream_id], max_bytes, own)
        return read

    # A source holds the positions from its own fork position up to the lowest one on the way to it.
    _SOURCES = """
    with recursive line as (
        select id, tenant, source_id, fork_position, fork_position as upper, 1 as depth
        from streamkeep.streams
        where id = $1
        union all
        select source.id, tenant, source.source_id, source.fork_position, least(line.upper, source.fork_position), depth + 1
        from line
        cross join lateral (
            select id, source_id, fork_position from streamkeep.streams where id = line.source_id offset 0
        ) as source
        where line.fork_position > $2
    )
    select source_id as id, tenant, upper
    from line
    where source_id is not null and fork_position > $2
    order by upper, depth desc
    """

    async def _inherited(self, stream_id: int, position: int, end: int) -> bytes:
        """The bytes of a fork's sources from `position` on; up to `end`, or fewer when they lie in very many rows."""
        pieces = []
        start = position
        for source in await self._database.fetch(self._SOURCES, stream_id, position):
            upper = min(source["upper"], end)
            if position >= upper:
                continue
            rows = await self._database.fetch(_FOUND, source["id"], position, upper - position)
            pieces.append(self._joined(source["id"], rows, position, upper, tenant=source["tenant"]))
            position += len(pieces[-1])
            if position < upper:
                break
        if position == start < end:
            raise StreamNotFound(f"no stream {stream_id}")  # Deleted since, and its sources with it.
        return b"".join(pieces)

    def _joined(
        self, stream_id: int, rows: Sequence[asyncpg.Record], position: int, end: int, *, tenant: str | None = None
    ) -> bytes:
        """The bytes of these rows from `position` up to at most `end`. Rows that are sealed say their tenant, or it is
        given. Raises: KeyUnavailable."""
        pieces = []
        for row in rows:
            data = row["data"]
            start = max(row["position"], position)
            if row["encoding"] != RAW:
                skip = start - row["position"]
                segment = Segment(row["position"], row["size"], row["encoding"], data)
                data = self._codec.unpacked(tenant or row["tenant"] or "", stream_id, segment)[
                    skip : skip + end - start
                ]
            if start != position:
                raise StoreError(f"stream {stream_id} has a hole at {position}")
            pieces.append(data)
            position += len(data)
        return b"".join(pieces)


def _is_torn(row: asyncpg.Record, position: int, end: int) -> bool:
    """Whether what was put together is not all that lies between its ends, as far as it was asked for."""
    if row["encoding"] != RAW:
        return False
    start, stop = max(row["position"], position), min(row["position"] + row["size"], end)
    return bool(len(row["data"]) != stop - start)


def _tails(rows: Sequence[asyncpg.Record]) -> dict[int, Tail]:
    return {row["id"]: Tail(row["tail"], row["is_closed"]) for row in rows}
