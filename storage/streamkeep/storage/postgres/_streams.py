"""Streams of the open protocol: made, forked, written and deleted by anybody, in any process.

Everything that changes such a stream holds its row's lock, and looks at other tables in a statement after the one that
took the lock, so that it sees what whoever held the lock before has left. An append looks first, unless it knows how the
last one left the stream, and locks when it writes: it writes only what was decided about a stream that is still as it was.
Locks are taken in the order of ids, those of one transaction in one statement. A source is always older than its forks,
and whoever makes or removes a fork locks the whole line of sources with it.

A plan is made once and kept, often while a table is small. So statements are written such that there is no choice but
to look rows up by key: `= any(…)` instead of a join, and `offset 0`, which keeps a lookup for each row what it is. What
runs for every batch hides the length of its arrays behind `(select $1)`: for a length that it sees, Postgres makes the
plan anew each time, which takes longer than running it.

Whether a stream has expired is asked of the database's clock in every statement that finds a stream. The sweep only
tidies up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import asyncpg

from streamkeep.storage._errors import (
    ItemRefused,
    StoreError,
    StoreUnavailable,
    StreamExists,
    StreamGone,
    StreamNotFound,
)
from streamkeep.storage._types import (
    GENERATIONS,
    REGISTRY,
    REGISTRY_CONFIG,
    Appended,
    Created,
    Expiry,
    ForkPoint,
    Producer,
    StreamAppend,
    StreamChange,
    StreamConfig,
    StreamInfo,
    StreamKey,
    Tail,
    generation_of,
)
from streamkeep.storage.postgres._chunks import Chunks, end_of_chunks
from streamkeep.storage.postgres._database import Connection, Database, Statement
from streamkeep.storage.postgres._key_log import KeyLog
from streamkeep.storage.postgres._last_left import Known, LastLeft
from streamkeep.storage.postgres._segments import SEALED, Codec, Segment, encoding_of, size_of
from streamkeep.storage.rules import content_types, forks
from streamkeep.storage.rules.appends import Change, StreamState, decide_batch
from streamkeep.storage.rules.expiry import life_seconds, moved_end
from streamkeep.storage.rules.schemas import schema_id
from streamkeep.storage.rules.texts import is_storable

_MAX_ATTEMPTS = 10

# Sorts after every character that a path can have.
_LAST_CHARACTER = "\U0010ffff"

_IS_OVER = "coalesce(streams.ends_at <= clock_timestamp(), false)"

# One instance tells the registries at a time, so that a stream's end is not told before its beginning.
_REGISTRIES_LOCK = 0x7265676973747279  # "registry"

_HAS_FORKS = "exists (select from streamkeep.streams fork where fork.source_id = streams.id)"

# Whether forks need a stream is asked only where it matters: of one that has expired.
_COLUMNS = f"""streams.id, tenant, path, content_type, is_message_stream, streams.created_at,
    coalesce(final_position, tail, {end_of_chunks("streams.id")}, 0) as tail, final_position is not null as is_closed,
    ttl_seconds, ends_at, is_expiry_inherited, source_id, fork_position, source_path, asked_position, asked_sub_offset,
    writer_sequence, closing_producer, closing_epoch, closing_sequence, schema_id,
    deleted_at is not null as is_deleted,
    {_IS_OVER} as is_over,
    {_IS_OVER} and {_HAS_FORKS} as is_over_for_readers_only,
    clock_timestamp() as now"""


class ProtocolStreams:
    """The part of the store that is addressed by path. `announce` tells other processes which streams changed,
    `grew` takes streams with their tails before and after an append."""

    def __init__(
        self,
        database: Database,
        chunks: Chunks,
        codec: Codec,
        key_log: KeyLog,
        announce: Callable[..., None],
        grew: Callable[[int, int, int], None],
    ) -> None:
        self._database = database
        self._chunks = chunks
        self._codec = codec
        self._key_log = key_log
        self._announce = announce
        self._grew = grew
        self._last_left = LastLeft()

    # Creation

    _CREATE = f"""
    with made as (
        insert into streamkeep.streams (
            id, tenant, path, content_type, is_message_stream, tail, final_position, closed_at, merged_at,
            ttl_seconds, ends_at, is_expiry_inherited,
            source_id, fork_position, source_path, asked_position, asked_sub_offset, schema, schema_id
        )
        select coalesce($16::bigint, nextval('streamkeep.streams_id_seq')), $1::text, $2::text, $3::text, $4::boolean, tail,
               case when $5::boolean then tail end,
               case when $5 then clock_timestamp() end,
               case when $5 and tail = coalesce($11, 0) then clock_timestamp() end,
               $7::bigint, coalesce(clock_timestamp() + make_interval(secs => $8), $9::timestamptz), $10::boolean,
               $12::bigint, $11, $13::text, $14::bigint, $15::bigint, $20::text, $21::bytea
        from (select coalesce($11::bigint, 0) + $6::bigint as tail) as content
        on conflict (tenant, path) do nothing
        returning id, tail, created_at, set_config('synchronous_commit', 'on', true)
    ), written as (
        insert into streamkeep.chunks (stream_id, position, size, encoding, data)
        select id, piece.position, {size_of("piece.data", "piece.is_sealed")}, {encoding_of("piece.is_sealed")}, piece.data
        from made
        cross join unnest($17::bigint[], $18::bytea[], $19::boolean[]) as piece (position, data, is_sealed)
    ), noted as (
        insert into streamkeep.stream_changes (tenant, path, content_type, created_at, is_deletion)
        select $1, $2, $3, created_at, false from made where $2 <> '{REGISTRY}'
    )
    select id, tail, created_at from made
    """

    async def create(self, key: StreamKey, config: StreamConfig, data: bytes) -> Created:
        if key.path.startswith(GENERATIONS) or not is_storable(key.path):
            raise ItemRefused(f"no stream can be made at {key.path!r}")
        for _ in range(_MAX_ATTEMPTS):
            if config.fork is None:
                made = await self._insert(self._database, _Plan.of(key, config), data)
                if made is not None:
                    return Created(made, is_new=True)
            found = await self._find(key)
            if found is None:
                if config.fork is None:
                    continue  # Deleted meanwhile.
            elif not found["is_over"] or _is_gone(found):
                if _is_gone(found):
                    raise StreamExists(f"{key.path} is deleted, and forks need it")
                if not forks.is_same_configuration(_standing(found), config):
                    raise StreamExists(f"{key.path} has another configuration")
                return Created(_info(found), is_new=False)
            plan = _Plan.of(key, config) if config.fork is None else await self._plan_fork(key, config, config.fork)
            if (made := await self._replace(plan, data)) is not None:
                return Created(made, is_new=True)
        raise StoreUnavailable(f"{key.path} changed {_MAX_ATTEMPTS} times while it was being made")

    async def _plan_fork(self, key: StreamKey, config: StreamConfig, point: ForkPoint) -> _Plan:
        """What the fork will be. The source may be looked at without a lock: its bytes never change."""
        source = await self._find(point.source) if point.source.tenant == key.tenant else None
        if source is None or (source["is_over"] and not _is_gone(source)):
            raise StreamNotFound(f"no stream {point.source.path!r}")
        if _is_gone(source):
            raise StreamExists(f"the source {point.source.path} is deleted")
        info = _info(source)
        content_type = forks.inherited_content_type(config, info.content_type)
        source_schema = None if info.schema_id is None else await self.schema(info.id)
        config = replace(config, schema=forks.inherited_schema(config, source_schema))
        search = forks.resolve(point, tail=info.tail.position, is_message_stream=info.is_message_stream)
        found: bytes | None = None
        while True:
            try:
                start, size = next(search) if found is None else search.send(found)
            except StopIteration as end:
                return _Plan(
                    key,
                    config,
                    content_type,
                    info.is_message_stream,
                    info.expiry if config.expiry is None else config.expiry,
                    info.id,
                    end.value,
                )
            found = (await self._chunks.read(info.id, start, size)).data

    async def _replace(self, plan: _Plan, data: bytes) -> StreamInfo | None:
        """Make a stream in the place of an expired one, if there is one; None when things have changed meanwhile."""

        async def work(connection: Connection) -> tuple[StreamInfo | None, list[int]]:
            family = await self._lock_family(connection, plan.key.tenant, plan.paths)
            removed: list[int] = []
            if plan.source_id is not None:
                source = family.get(plan.source_id)
                if source is None or source["path"] is None or source["is_over"] or source["is_deleted"]:
                    return None, []
            for row in family.values():
                if row["path"] == plan.key.path:
                    if not row["is_over"] or row["is_deleted"]:
                        return None, []
                    removed = await self._remove(connection, row, family)
                    if row["id"] not in removed:
                        return None, []
            return await self._insert(connection, plan, data), removed

        made, removed = await self._database.transact(work)
        self._announce(*removed)
        return made

    _NEXT_ID = "select nextval('streamkeep.streams_id_seq') as id"

    async def _insert(self, on: Database | Connection, plan: _Plan, data: bytes) -> StreamInfo | None:
        stream_id: int | None = None
        segments: list[Segment] = []
        if data:
            if self._codec.sealer.seals(plan.key.tenant):
                # What is sealed is sealed for its stream, so the id is needed first.
                await self._key_log.note([plan.key.tenant], on)
                (row,) = await on.fetch(self._NEXT_ID)
                stream_id = row["id"]
            segments = self._codec.written(plan.key.tenant, stream_id or 0, plan.fork_position or 0, data)
        rows = (
            [segment.position for segment in segments],
            [segment.data for segment in segments],
            [segment.encoding == SEALED for segment in segments],
        )
        made = await on.fetch(
            self._CREATE, *plan.values(len(data)), stream_id, *rows, plan.config.schema, plan.schema_id
        )
        if not made:
            return None
        (row,) = made
        return StreamInfo(
            row["id"],
            plan.key,
            plan.content_type,
            plan.is_message_stream,
            Tail(row["tail"], plan.config.is_closed),
            plan.expiry,
            row["created_at"],
            plan.schema_id,
        )

    # Finding

    _FIND = f"""
    select {_COLUMNS}, (
        select generations.head
        from streamkeep.generations
        where generations.tenant = $1 and session_id = $3 and request_id = $4 and refusal_body is null
    ) as head
    from streamkeep.streams
    where tenant = $1 and path = $2
    """

    @property
    def needed_by_all(self) -> list[Statement]:
        """What every reader asks, of a stream that is not."""
        return [(self._FIND, ("", "", None, None))]

    async def _find(self, key: StreamKey) -> asyncpg.Record | None:
        if not is_storable(key.path):
            return None
        generation = generation_of(key)
        ids = (None, None) if generation is None else (generation.session_id, generation.request_id)
        return await self._database.fetch_row(self._FIND, key.tenant, key.path, *ids)

    # The end of a busy stream may be lost with a crash by as much as it may be late.
    _TOUCH = """
    update streamkeep.streams set ends_at = greatest(ends_at, $2)
    from (select set_config('synchronous_commit', 'off', true)) as setting
    where id = $1 and deleted_at is null and ends_at > clock_timestamp()
    """

    async def stream(self, key: StreamKey, *, is_touched: bool) -> StreamInfo:
        row = _readable(key, await self._find(key))
        if is_touched:
            end = moved_end(row["ttl_seconds"], row["ends_at"], row["now"])
            if end is not None and not await self._database.execute(self._TOUCH, row["id"], end):
                raise StreamNotFound(f"no stream {key.path!r}")
        return _info(row)

    _SCHEMA = "select schema from streamkeep.streams where id = $1"

    async def schema(self, stream_id: int) -> str | None:
        row = await self._database.fetch_row(self._SCHEMA, stream_id)
        return None if row is None else row["schema"]

    _LIST = f"""
    select {_COLUMNS}, null as head
    from streamkeep.streams
    where tenant = $1 and content_type is not null and deleted_at is null and not {_IS_OVER}
      and path collate "C" >= $2 and path collate "C" < $3 and path collate "C" > $4
    order by path collate "C"
    limit $5
    """

    async def list_streams(self, tenant: str, prefix: str, after: str, limit: int) -> list[StreamInfo]:
        if not is_storable(prefix + after):
            return []
        rows = await self._database.fetch(self._LIST, tenant, prefix, prefix + _LAST_CHARACTER, after, limit)
        return [_info(row) for row in rows]

    # Appends

    # A row for each stream and producer that is asked about; the stream's columns are the same in all of its rows.
    _STATES = f"""
    select {_COLUMNS}, producer_id, epoch, last_sequence
    from unnest((select $1::text[]), (select $2::text[]), (select $3::text[]))
        as wanted (wanted_tenant, wanted_path, wanted_producer)
    cross join lateral (
        select * from streamkeep.streams where tenant = wanted_tenant and path = wanted_path offset 0
    ) as streams
    left join lateral (
        select producer_id, epoch, last_sequence
        from streamkeep.producers
        where stream_id = streams.id and producer_id = wanted_producer
        offset 0
    ) as producer on true
    """

    # Whatever an append changes, it moves the tail or closes the stream. So an open stream whose tail is where it was has
    # nothing new, of its producers neither. Changes come in the order of ids, and are locked in it. For the update a plan
    # may read all of a table that is small; it is made anew when the table's statistics are.
    _WRITE = f"""
    with change as (
        select *
        from unnest(
            (select $1::bigint[]), (select $2::bigint[]), (select $3::bigint[]), (select $4::boolean[]),
            (select $5::text[]), (select $6::timestamptz[]), (select $7::text[]), (select $8::bigint[]),
            (select $9::bigint[])
        ) as change (id, position, tail, is_closed, writer_sequence, ends_at, producer, epoch, sequence)
    ), unchanged as materialized (
        select locked.id
        from change
        cross join lateral (
            select streams.id
            from streamkeep.streams
            where streams.id = change.id
              and streams.tail = change.position and final_position is null and deleted_at is null
              and (streams.ends_at is null or streams.ends_at > clock_timestamp())
            for no key update
        ) as locked
    ), decision as materialized (
        select count(*) = cardinality($1) as is_valid from unchanged
    ), written as (
        insert into streamkeep.chunks (stream_id, position, size, encoding, data)
        select stream_id, position, {size_of("data", "is_sealed")}, {encoding_of("is_sealed")}, data
        from unnest(
            (select $14::bigint[]), (select $15::bigint[]), (select $16::bytea[]), (select $17::boolean[])
        ) as piece (stream_id, position, data, is_sealed), decision
        where is_valid
    ), updated as (
        update streamkeep.streams
        set tail = change.tail,
            final_position = case when change.is_closed then change.tail end,
            closed_at = case when change.is_closed then clock_timestamp() end,
            merged_at = case when change.is_closed and change.tail = coalesce(fork_position, 0) then clock_timestamp() end,
            writer_sequence = change.writer_sequence,
            ends_at = greatest(streams.ends_at, change.ends_at),
            closing_producer = change.producer,
            closing_epoch = change.epoch,
            closing_sequence = change.sequence
        from change, decision
        where is_valid and streams.id = change.id and streams.id = any(array(select id from unchanged))
    ), moved as (
        insert into streamkeep.producers (stream_id, producer_id, epoch, last_sequence)
        select moved.*
        from unnest(
            (select $10::bigint[]), (select $11::text[]), (select $12::bigint[]), (select $13::bigint[])
        ) as moved, decision
        where is_valid
        on conflict (stream_id, producer_id) do update
        set epoch = excluded.epoch, last_sequence = excluded.last_sequence, updated_at = clock_timestamp()
    )
    select is_valid, set_config('synchronous_commit', 'on', true) from decision
    """

    _LOCK = """
    select streams.id
    from streamkeep.streams
    where streams.id = any(array(
        select found.id
        from unnest($1::text[], $2::text[]) as wanted (tenant, path)
        cross join lateral (
            select id from streamkeep.streams where tenant = wanted.tenant and path = wanted.path offset 0
        ) as found
    ))
    order by streams.id
    for no key update of streams
    """

    async def append(self, appends: Sequence[StreamAppend]) -> list[Appended | StoreError]:
        # One round trip for streams that nobody else writes, and two as long as nobody does at the same moment. Who was
        # overtaken once holds the locks from the start.
        decided = None
        known = self._last_left.known(appends)
        if known.states:
            decided = await self._append_unless_overtaken(self._database, appends, known)
            self._last_left.tried(decided is not None)
            if decided is None:
                self._last_left.doubt(known.states)
        if decided is None:
            decided = await self._append_unless_overtaken(self._database, appends, Known({}, {}, appends))
        for _ in range(_MAX_ATTEMPTS):
            if decided is not None:
                results, changes = decided
                self._announce(*(change.state.id for change in changes))
                for change in changes:
                    self._grew(change.state.id, change.position, change.state.tail.position)
                return results
            decided = await self._database.transact(lambda connection: self._append_locked(connection, appends))
        raise StoreUnavailable(f"streams changed {_MAX_ATTEMPTS} times while they were being written")

    async def _append_unless_overtaken(
        self, on: Database | Connection, appends: Sequence[StreamAppend], known: Known
    ) -> tuple[list[Appended | StoreError], list[Change]] | None:
        """Decide about a batch, and write it if all is still as it was then; None, and nothing written, if not.

        Streams that are known are not looked up. Of them None also says that something was not accepted as new.
        """
        states, producers = known.states, known.producers
        remembered = set(states)
        rows = await on.fetch(self._STATES, *_wanted_arrays(known.unknown)) if known.unknown else []
        found = [row for row in rows if not row["is_over"] or _is_gone(row)]
        for row in found:
            states[StreamKey(row["tenant"], row["path"])] = _state(row)
            if row["producer_id"] is not None:
                producer = Producer(row["producer_id"], row["epoch"], row["last_sequence"])
                producers[row["id"], producer.id] = producer
        results, changes = decide_batch(appends, states, producers)
        outcomes = zip(appends, results, strict=True)
        if any(not _is_new(result) and append.key in remembered for append, result in outcomes):
            return None
        if changes:
            ends = {
                row["id"]: moved_end(row["ttl_seconds"], row["ends_at"], row["now"]) or row["ends_at"] for row in found
            }
            keys = {state.id: key for key, state in states.items()}
            chunks = await self._chunk_arrays(changes, keys, on)
            written = await on.fetch(self._WRITE, *_change_arrays(changes, ends), *_producer_arrays(changes), *chunks)
            if not written[0]["is_valid"]:
                return None
            # Not what may still be rolled back, and no stream whose life ends.
            if on is self._database:
                for change in changes:
                    if ends.get(change.state.id) is None:
                        self._last_left.note(keys[change.state.id], change)
        return results, changes

    async def _chunk_arrays(
        self, changes: Sequence[Change], keys: Mapping[int, StreamKey], on: Database | Connection
    ) -> tuple[list[object], ...]:
        """The rows of these changes."""
        if not self._codec.is_plain:
            await self._key_log.note((keys[change.state.id].tenant for change in changes), on)
        rows = [
            (change.state.id, segment)
            for change in changes
            if (data := change.data)
            for segment in self._codec.written(keys[change.state.id].tenant, change.state.id, change.position, data)
        ]
        return (
            [stream_id for stream_id, _ in rows],
            [segment.position for _, segment in rows],
            [segment.data for _, segment in rows],
            [segment.encoding == SEALED for _, segment in rows],
        )

    async def _append_locked(
        self, connection: Connection, appends: Sequence[StreamAppend]
    ) -> tuple[list[Appended | StoreError], list[Change]] | None:
        # Generations' rows are left alone: their owners write them, and not in the order of ids.
        keys = {append.key for append in appends if is_storable(append.key.path) and generation_of(append.key) is None}
        await connection.fetch(self._LOCK, [key.tenant for key in keys], [key.path for key in keys])
        return await self._append_unless_overtaken(connection, appends, Known({}, {}, appends))

    # Deletion

    _LOCK_FAMILY = f"""
    with recursive family as (
        select id, source_id from streamkeep.streams where tenant = $1 and path = any($2::text[])
        union
        select source.id, source.source_id
        from family
        cross join lateral (
            select id, source_id from streamkeep.streams where id = family.source_id offset 0
        ) as source
    )
    select {_COLUMNS}
    from streamkeep.streams
    where streams.id = any(array(select id from family))
    order by streams.id
    for update of streams
    """

    async def _lock_family(
        self, connection: Connection, tenant: str, paths: Sequence[str]
    ) -> dict[int, asyncpg.Record]:
        """Lock the streams under these paths and all that they come from; by id."""
        rows = await connection.fetch(self._LOCK_FAMILY, tenant, paths)
        return {row["id"]: row for row in rows}

    _KEEP = f"""
    update streamkeep.streams set deleted_at = coalesce(deleted_at, clock_timestamp())
    where id = $1 and {_HAS_FORKS}
    """

    _DELETE = """
    with chunks as (
        delete from streamkeep.chunks where stream_id = $1
    ), producers as (
        delete from streamkeep.producers where stream_id = $1
    )
    delete from streamkeep.streams where id = $1
    """

    _NOTE_DELETION = """
    insert into streamkeep.stream_changes (tenant, path, content_type, created_at, is_deletion)
    values ($1, $2, $3, $4, true)
    """

    async def _remove(
        self, connection: Connection, row: asyncpg.Record, family: dict[int, asyncpg.Record]
    ) -> list[int]:
        """Delete a locked stream, or mark it where forks need it; then the sources that only waited for this. The ids of
        those that no longer exist."""
        removed: list[int] = []
        gone: asyncpg.Record | None = row
        while gone is not None:
            if not gone["is_deleted"]:
                values = (gone["tenant"], gone["path"], gone["content_type"], gone["created_at"])
                await connection.execute(self._NOTE_DELETION, *values)
            kept = await connection.execute(self._KEEP, gone["id"])
            if kept != "UPDATE 0":
                break
            await connection.execute(self._DELETE, gone["id"])
            removed.append(gone["id"])
            source = family.get(gone["source_id"])
            gone = source if source is not None and (source["is_deleted"] or source["is_over"]) else None
        return removed

    async def delete(self, key: StreamKey) -> None:
        async def work(connection: Connection) -> list[int]:
            family = await self._lock_family(connection, key.tenant, [key.path])
            row = _readable(key, next((row for row in family.values() if row["path"] == key.path), None))
            if row["content_type"] is None:
                raise ItemRefused(f"{key.path} goes with its generation")
            return [row["id"], *await self._remove(connection, row, family)]

        if not is_storable(key.path):
            raise StreamNotFound(f"no stream {key.path!r}")
        self._announce(*await self._database.transact(work))

    _OVER = """
    select tenant, path
    from streamkeep.streams
    where ends_at <= clock_timestamp() and deleted_at is null
    order by ends_at
    limit $1
    """

    async def sweep(self, limit: int) -> int:
        """Delete streams that have expired, or mark those that forks need; return how many."""
        touched = 0
        for found in await self._database.fetch(self._OVER, limit):
            key = StreamKey(found["tenant"], found["path"])

            async def work(connection: Connection, key: StreamKey = key) -> list[int]:
                family = await self._lock_family(connection, key.tenant, [key.path])
                row = next((row for row in family.values() if row["path"] == key.path), None)
                if row is None or row["is_deleted"] or not row["is_over"]:
                    return []
                return [row["id"], *await self._remove(connection, row, family)]

            ids = await self._database.transact(work)
            self._announce(*ids)
            touched += bool(ids)
        return touched

    # Registries

    _HAS_CHANGES = "select 1 from streamkeep.stream_changes limit 1"

    _LOCK_REGISTRIES = f"select pg_advisory_xact_lock({_REGISTRIES_LOCK})"

    _TAKE_CHANGES = """
    with taken as (
        delete from streamkeep.stream_changes
        where id = any(array(select id from streamkeep.stream_changes order by id limit $1))
        returning *
    )
    select * from taken order by id
    """

    async def write_registries(self, encode: Callable[[StreamChange], bytes], limit: int) -> list[int]:
        async def work(connection: Connection) -> list[int]:
            await connection.fetch(self._LOCK_REGISTRIES)
            messages: dict[StreamKey, list[bytes]] = {}
            for row in await connection.fetch(self._TAKE_CHANGES, limit):
                key = StreamKey(row["tenant"], row["path"])
                change = StreamChange(key, row["content_type"], row["created_at"], row["is_deletion"])
                messages.setdefault(StreamKey(key.tenant, REGISTRY), []).append(encode(change))
            for key in messages:
                await self._insert(connection, _Plan.of(key, REGISTRY_CONFIG), b"")
            appends = [
                StreamAppend(key, b"".join(data), REGISTRY_CONFIG.content_type) for key, data in messages.items()
            ]
            decided = await self._append_locked(connection, appends)
            if decided is None:
                raise StoreUnavailable("a registry changed while it was being written")
            for result in decided[0]:
                if isinstance(result, StoreError):
                    raise result
            return [change.state.id for change in decided[1]]

        if await self._database.fetch_row(self._HAS_CHANGES) is None:
            return []
        written = await self._database.transact(work)
        self._announce(*written)
        return written


class _Plan:
    """A stream that is to be made, with everything resolved."""

    __slots__ = ("config", "content_type", "expiry", "fork_position", "is_message_stream", "key", "source_id")

    def __init__(
        self,
        key: StreamKey,
        config: StreamConfig,
        content_type: str,
        is_message_stream: bool,
        expiry: Expiry,
        source_id: int | None = None,
        fork_position: int | None = None,
    ) -> None:
        self.key = key
        self.config = config
        self.content_type = content_type
        self.is_message_stream = is_message_stream
        self.expiry = expiry
        self.source_id = source_id
        self.fork_position = fork_position

    @classmethod
    def of(cls, key: StreamKey, config: StreamConfig) -> _Plan:
        """A stream of its own."""
        content_type = config.content_type or content_types.DEFAULT
        return cls(key, config, content_type, content_types.is_json(content_type), config.expiry or Expiry())

    @property
    def schema_id(self) -> bytes | None:
        return None if self.config.schema is None else schema_id(self.config.schema)

    @property
    def paths(self) -> list[str]:
        return [self.key.path] if self.config.fork is None else [self.key.path, self.config.fork.source.path]

    def values(self, size: int) -> tuple[object, ...]:
        fork, ttl_seconds = self.config.fork, self.expiry.ttl_seconds
        return (
            self.key.tenant,
            self.key.path,
            self.content_type,
            self.is_message_stream,
            self.config.is_closed,
            size,
            ttl_seconds,
            None if ttl_seconds is None else life_seconds(ttl_seconds),
            self.expiry.expires_at,
            self.config.expiry is None,
            self.fork_position,
            self.source_id,
            fork and fork.source.path,
            fork and fork.position,
            fork and fork.sub_offset,
        )


def _is_gone(row: asyncpg.Record) -> bool:
    """Whether forks are all that it is still there for."""
    return bool(row["is_deleted"] or row["is_over_for_readers_only"])


def _readable(key: StreamKey, row: asyncpg.Record | None) -> asyncpg.Record:
    if row is not None and _is_gone(row):
        raise StreamGone(f"{key.path} is deleted")
    if row is None or row["is_over"]:
        raise StreamNotFound(f"no stream {key.path!r}")
    return row


def _info(row: asyncpg.Record) -> StreamInfo:
    key = StreamKey(row["tenant"], row["path"])
    content_type, is_message_stream = row["content_type"], row["is_message_stream"]
    if content_type is None:
        is_message_stream = key.path.endswith("/control")
        content_type = content_types.JSON if is_message_stream else _content_type_of_head(row["head"])
    return StreamInfo(
        row["id"],
        key,
        content_type,
        is_message_stream,
        Tail(row["tail"], row["is_closed"]),
        _expiry(row),
        row["created_at"],
        row["schema_id"],
    )


def _content_type_of_head(head: str | None) -> str:
    return (json.loads(head)[1] if head is not None else None) or content_types.DEFAULT


def _expiry(row: asyncpg.Record) -> Expiry:
    return Expiry(row["ttl_seconds"], row["ends_at"] if row["ttl_seconds"] is None else None)


def _standing(row: asyncpg.Record) -> forks.Standing:
    fork = None
    if row["source_id"] is not None:
        source = StreamKey(row["tenant"], row["source_path"])
        fork = ForkPoint(source, row["asked_position"], row["asked_sub_offset"])
    expiry = _expiry(row)
    asked = StreamConfig(expiry=None if row["is_expiry_inherited"] else expiry, fork=fork)
    return forks.Standing(asked, row["content_type"], expiry, row["is_closed"], row["fork_position"], row["schema_id"])


def _state(row: asyncpg.Record) -> StreamState:
    closed_by = None
    if row["closing_producer"] is not None:
        closed_by = Producer(row["closing_producer"], row["closing_epoch"], row["closing_sequence"])
    return StreamState(
        row["id"],
        row["content_type"] or content_types.DEFAULT,
        Tail(row["tail"], row["is_closed"]),
        row["writer_sequence"],
        closed_by,
        is_generation=row["content_type"] is None,
        is_gone=_is_gone(row),
        schema_id=row["schema_id"],
    )


def _wanted_arrays(appends: Iterable[StreamAppend]) -> tuple[list[object], ...]:
    wanted = {
        (append.key, append.producer.id if append.producer and is_storable(append.producer.id) else None)
        for append in appends
        if is_storable(append.key.path)
    }
    return (
        [key.tenant for key, _ in wanted],
        [key.path for key, _ in wanted],
        [producer for _, producer in wanted],
    )


def _is_new(result: Appended | StoreError) -> bool:
    return isinstance(result, Appended) and not result.is_duplicate


def _change_arrays(changes: Sequence[Change], ends: Mapping[int, object]) -> tuple[list[object], ...]:
    changes = sorted(changes, key=lambda change: change.state.id)
    states = [change.state for change in changes]
    return (
        [state.id for state in states],
        [change.position for change in changes],
        [state.tail.position for state in states],
        [state.tail.is_closed for state in states],
        [state.writer_sequence for state in states],
        [ends.get(state.id) for state in states],
        [state.closed_by and state.closed_by.id for state in states],
        [state.closed_by and state.closed_by.epoch for state in states],
        [state.closed_by and state.closed_by.sequence for state in states],
    )


def _producer_arrays(changes: Sequence[Change]) -> tuple[list[object], ...]:
    moved = [(change.state.id, producer) for change in changes for producer in change.producers.values()]
    return (
        [stream for stream, _ in moved],
        [producer.id for _, producer in moved],
        [producer.epoch for _, producer in moved],
        [producer.sequence for _, producer in moved],
    )
