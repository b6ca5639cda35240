"""PostgresStore: each method with its statement above it.

How writers are kept apart. Every write of a generation reads the owner's row `for share` in its own transaction; whoever
ends an owner takes that row `for update` and deletes it. So a write lands before the owner's end or not at all, and tails
that are read after the row was locked are final. `settle` does the same to one owner's own stray commits, with a number
that every commit carries.

What an append costs. A commit is one statement that inserts one row for each stream and updates nothing. Its position
is compared with the stream's tail in the database unless this store committed that tail itself: nobody else writes under
this owner, so the row's key (stream, start) is guard enough then. The comparison takes about 4 µs for each row, as much
as the insert.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import asyncpg

from streamkeep.storage._errors import (
    FingerprintMismatch,
    GenerationEnded,
    KeyUnavailable,
    OwnerFenced,
    StoreError,
    StoreUnavailable,
)
from streamkeep.storage._store import Listener
from streamkeep.storage._types import (
    Append,
    Appended,
    Claim,
    Created,
    Ending,
    Erased,
    Erasure,
    Generation,
    GenerationKey,
    GenerationPage,
    Gone,
    GoneReason,
    Lease,
    Owner,
    Refusal,
    Retention,
    SessionPage,
    Slice,
    StoreStatus,
    StreamAppend,
    StreamChange,
    StreamConfig,
    StreamInfo,
    StreamKey,
    Tail,
    Terms,
    UpstreamHead,
    Wanted,
)
from streamkeep.storage.encryption import Keyring
from streamkeep.storage.postgres._chunks import Chunks, end_of_chunks
from streamkeep.storage.postgres._database import Connection, Database, Statement
from streamkeep.storage.postgres._erasure import Erasing
from streamkeep.storage.postgres._key_log import KeyLog
from streamkeep.storage.postgres._keys import PostgresKeys
from streamkeep.storage.postgres._listen import CANCELS_CHANNEL, Feed, Notifier, format_payload, new_sender
from streamkeep.storage.postgres._listings import Listings
from streamkeep.storage.postgres._migrate import migrate
from streamkeep.storage.postgres._segments import SEALED, Codec, encoding_of, size_of
from streamkeep.storage.postgres._sessions import PostgresSessions
from streamkeep.storage.postgres._streams import ProtocolStreams
from streamkeep.storage.postgres._subscriptions import PostgresSubscriptions
from streamkeep.storage.postgres._upkeep import Upkeep
from streamkeep.storage.rules import limits
from streamkeep.storage.rules.generations import State, Usage, orphaned
from streamkeep.storage.rules.json_messages import encode_message

logger = logging.getLogger(__name__)

_SIGNING_KEY_BYTES = 32
_STREAM_ID = attrgetter("stream_id")
_MAX_CLAIM_ATTEMPTS = 10

# What is sealed with the key of a generation's data stream, beside its chunks.
_REFUSAL = b"refusal"

_FetchRow: TypeAlias = Callable[..., Awaitable["asyncpg.Record | None"]]

_COLUMNS = """id, tenant, session_id, request_id, epoch, state, owner_id, owner_epoch, data_stream, control_stream,
    fingerprint, created_at, head, refusal_body, is_refusal_sealed, code, message, is_cancel_requested, ended_at, is_swept, holder,
    cancel_after_seconds, retention_seconds, gone_at, gone_reason, upstream, usage"""


def _locked_owner(condition: str = "") -> str:
    """What every statement that writes for an owner begins with: its row, locked, or nothing.

    Durability is said here because a role's default may be otherwise.
    """
    return f"""
        select id, epoch, set_config('synchronous_commit', 'on', true)
        from streamkeep.owners
        where id = $1 and epoch = $2 {condition}
        for share
    """


def _fence(condition: str = "") -> str:
    """The owner's row for all parts of a statement."""
    return f"fence as materialized ({_locked_owner(condition)})"


# Spelled so that no index serves it: the row is found by its id, and an owner may have thousands.
_BELONGS_TO_FENCE = "(owner_id, owner_epoch) is not distinct from (fence.id, fence.epoch)"

# Likewise: an index of all that are live is not the way to a few of them.
_IS_LIVE = "coalesce(ended_at, 'infinity') = 'infinity'"


def _expected(stream_id: str, position: str) -> str:
    """That position if it is the tail of that stream and the stream is open; otherwise the statement fails."""
    return f"""case {position}
        when (
            select coalesce({end_of_chunks("stream.id")}, 0)
            from streamkeep.streams stream
            where stream.id = {stream_id} and stream.final_position is null
        ) then {position}
        else streamkeep.refuse(format('stream %s is not open at %s', {stream_id}, {position}))
    end"""


# Arrays in the order of their streams, unnested side by side as they are read: as a table, they would be stored once more.
_ITEMS = """
    unnest($4::bigint[]) as stream_id, unnest($5::bigint[]) as position,
    unnest($6::bytea[]) as data, unnest($7::boolean[]) as is_sealed
"""

# Where there is more to do for each of them, they hide their lengths: the server would make a plan for each.
_DOUBTFUL_ITEMS = """
    unnest((select $4::bigint[])) as stream_id, unnest((select $5::bigint[])) as position,
    unnest((select $6::bytea[])) as data, unnest((select $7::boolean[])) as is_sealed,
    unnest((select $8::boolean[])) as is_known
"""


def _write(items: str, position: str, fence: str = "fence") -> str:
    """Insert a row for each item, at a position that is an expression over it."""
    return f"""
        insert into streamkeep.chunks (stream_id, position, size, encoding, data)
        select item.stream_id,
               {position},
               {size_of("item.data", "item.is_sealed")},
               {encoding_of("item.is_sealed")},
               item.data
        from (select {items} from {fence}) as item
    """


# Behind a limit that the planner cannot see it expects a tenth of the rows, and looks up each of so few by its key. Otherwise it
# would read all of a table that is small when the plan is made, and keep that plan while the table grows.
_FEW = "limit (select null::bigint)"


def _append_and_end(write: str, final_position: str) -> str:
    """Append, and end generations, in one snapshot: an ending's `position` is the data stream's tail before this statement.
    `final_position` is an expression for that of the data stream."""
    return f"""
    with {_fence("and settled = $3")}, written as ({write}), ending as (
        select *
        from unnest(
            (select $9::bigint[]), (select $10::bigint[]), (select $11::text[]), (select $12::text[]),
            (select $13::text[]), (select $14::bigint[]), (select $15::bigint[]), (select $16::bytea[]),
            (select $17::boolean[]), (select $18::text[])
        ) as ending (id, epoch, state, code, message, position, final_position, event, is_sealed, usage)
        {_FEW}
    ), ended as (
        update streamkeep.generations
        set state = ending.state, code = ending.code, message = ending.message, usage = ending.usage::json,
            ended_at = clock_timestamp(), sweep_at = clock_timestamp() + make_interval(secs => retention_seconds)
        from fence, ending
        where generations.id = ending.id and generations.epoch = ending.epoch
          and {_BELONGS_TO_FENCE} and {_IS_LIVE}
        returning generations.id, data_stream, control_stream, ending.position, ending.final_position, ending.event,
                  ending.is_sealed, {size_of("ending.event", "ending.is_sealed")} as event_size
    ), event as (
        insert into streamkeep.chunks (stream_id, position, size, encoding, data)
        select control_stream, 0, event_size, {encoding_of("is_sealed")}, event from ended
    ), closing as (
        select data_stream as id, {final_position} as final_position, final_position > 0 as is_worth_merging
        from ended
        union all
        select control_stream, event_size, false from ended
        {_FEW}
    ), closed as (
        update streamkeep.streams
        set final_position = closing.final_position,
            closed_at = clock_timestamp(),
            merged_at = case when not closing.is_worth_merging then clock_timestamp() end
        from closing
        where streams.id = closing.id
    )
    select exists (select from fence) as is_fresh, array(select id from ended) as ended
    """


class PostgresStore:
    """The store on one PostgreSQL server, 15 or newer; see `Store` for what each method means.

    `direct_dsn` leads past a transaction-mode pooler; where it is given, `dsn` is taken for such a pooler, and LISTEN,
    NOTIFY and migrations go the direct way. `deadline_seconds` bounds every call. Streams that ended less than
    `merge_after_seconds` ago are not merged, so that readers who are nearly there are left in peace. What is stored for a
    tenant with a key on `keyring` is encrypted. One that `warms_up` opens with connections on which nothing that all
    generations need is slow for being new, if the server has them.
    """

    def __init__(
        self,
        dsn: str,
        *,
        direct_dsn: str | None = None,
        retention: Retention = Retention(),  # noqa: B008
        pool_size: int = 10,
        deadline_seconds: float = 10.0,
        merge_after_seconds: float = 10.0,
        keyring: Keyring = Keyring(),  # noqa: B008
        warms_up: bool = False,
    ) -> None:
        self._direct_dsn = direct_dsn or dsn
        self._deadline_seconds = deadline_seconds
        self._warms_up = warms_up
        self._database = Database(
            dsn, pool_size=pool_size, deadline_seconds=deadline_seconds, is_pooled=direct_dsn is not None
        )
        self._codec = Codec(keyring)
        self._key_log = KeyLog(self._database, self._codec.sealer)
        self._upkeep = Upkeep(self._database, self._codec, retention, merge_after_seconds=merge_after_seconds)
        self._chunks = Chunks(self._database, self._codec)
        self._listings = Listings(self._database, self._generation)
        self.subscriptions = PostgresSubscriptions(self._database)
        self.sessions = PostgresSessions(self._database, self._codec.sealer, self._key_log)
        self.keys = PostgresKeys(self._database, self.signing_key)
        self._streams = ProtocolStreams(
            self._database, self._chunks, self._codec, self._key_log, self._announce, self._upkeep.stream_grew
        )
        self._sender = new_sender()
        self._feed = Feed(
            self._direct_dsn, self._sender, cancel_requests=self._own_cancel_requests, deadline_seconds=deadline_seconds
        )
        self._notifier = Notifier(self._direct_dsn, self._sender, deadline_seconds=deadline_seconds)
        self._erasing = Erasing(self._database, self._announce_to_all, self._feed.cancel_requested, self._sender)
        self._tasks: list[asyncio.Task[None]] = []
        # Each lease of this process, with the number that its commits carry.
        self._settled: dict[Owner, int] = {}
        # Tails that this store committed last and that nobody else can have moved; of what it started, 0 at first.
        self._tails: dict[int, int] = {}
        self._has_company = True
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"PostgresStore(owners={len(self._settled)}, open_streams={len(self._tails)})"

    async def open(self) -> None:
        await migrate(self._direct_dsn, connect_seconds=self._deadline_seconds)
        await self._database.open(self._needed_by_all() if self._warms_up else ())
        self._tasks = [
            asyncio.create_task(self._feed.run(), name="streamkeep-feed"),
            asyncio.create_task(self._notifier.run(), name="streamkeep-notifier"),
            asyncio.create_task(self._key_log.warn_of_missing(), name="streamkeep-missing-keys"),
        ]
        for task in self._tasks:
            task.add_done_callback(_log_failure)

    def _needed_by_all(self) -> list[Statement]:
        """The statements of every generation and of whoever reads it, for an owner that is not, so that they change nothing."""
        nobody = (0, 0)
        return [
            (self._CLAIM, (*nobody, "", "", "", None, "", "", None, None, None, None)),
            (self._START, (*nobody, 0, 0, None, None)),
            (self._APPEND_TO_KNOWN, (*nobody, 0, *self._append_arrays([], [])[:-1])),
            (self._APPEND_TO_KNOWN_AND_END, (*nobody, 0, *self._append_arrays([], []), *self._ending_arrays([], []))),
            (self._GENERATION, ("", "", "")),
            *self._chunks.needed_by_all,
            *self._streams.needed_by_all,
        ]

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._database.close()

    async def ping(self) -> None:
        await self._database.fetch_row("select 1", is_urgent=True)

    def status(self) -> StoreStatus:
        connections, idle = self._database.connections
        return StoreStatus(connections, connections - idle, self._database.pool_size, self._feed.is_listening)

    def listen(self, listener: Listener) -> None:
        self._feed.add(listener)

    _SIGNING_KEY = """
    with made as (
        insert into streamkeep.secrets (name, value) values ('url_signing', $1)
        on conflict (name) do nothing
        returning value, set_config('synchronous_commit', 'on', true)
    )
    select value from made
    union all
    select value from streamkeep.secrets where name = 'url_signing'
    """

    async def signing_key(self) -> bytes:
        while True:
            # None: another process made it after this statement had begun; the next one sees it.
            row = await self._database.fetch_row(self._SIGNING_KEY, secrets.token_bytes(_SIGNING_KEY_BYTES))
            if row is not None:
                return bytes(row["value"])

    # Owners

    _REGISTER = """
    insert into streamkeep.owners default values returning id, epoch, set_config('synchronous_commit', 'on', true)
    """

    async def register_owner(self) -> Owner:
        row = _one(await self._database.fetch_row(self._REGISTER, is_urgent=True))
        owner = Owner(row["id"], row["epoch"])
        self._settled[owner] = 0
        return owner

    _RENEW = """
    update streamkeep.owners set beat = beat + 1, beat_at = clock_timestamp() where id = $1 and epoch = $2
    """

    async def renew(self, owner: Owner) -> None:
        if not await self._database.execute(self._RENEW, owner.id, owner.epoch, is_urgent=True):
            raise self._fenced(owner)

    async def release(self, owner: Owner) -> None:
        await self._finish(owner, beat=None)
        self._settled.pop(owner, None)

    _LEASES = "select id, epoch, beat from streamkeep.owners order by id"

    async def leases(self) -> list[Lease]:
        self._database.take_turns()
        rows = await self._database.fetch(self._LEASES, is_urgent=True)
        leases = [Lease(Owner(row["id"], row["epoch"]), row["beat"]) for row in rows]
        self._has_company = any(lease.owner not in self._settled for lease in leases)
        return leases

    async def recover(self, lease: Lease) -> int:
        return await self._finish(lease.owner, beat=lease.beat)

    _LOCK_OWNER = """
    select settled from streamkeep.owners where id = $1 and epoch = $2 and beat = coalesce($3, beat) for update
    """

    _LIVE = f"""
    select {_COLUMNS},
           coalesce({end_of_chunks("data_stream")}, 0) as tail,
           extract(epoch from clock_timestamp() - created_at)::float8 as age_seconds
    from streamkeep.generations
    where owner_id = $1 and owner_epoch = $2 and ended_at is null
    order by id
    for update of generations
    """

    _DELETE_OWNER = "delete from streamkeep.owners where id = $1 and epoch = $2"

    async def _finish(self, owner: Owner, *, beat: int | None) -> int:
        """End an owner and what it still records; if a beat is given, only while it is the owner's last."""

        async def work(connection: Connection) -> list[Generation]:
            lease = await connection.fetchrow(self._LOCK_OWNER, owner.id, owner.epoch, beat)
            if lease is None:
                return []
            # A statement of its own: it sees every commit that held the lock before.
            rows = await connection.fetch(self._LIVE, owner.id, owner.epoch)
            orphans = [self._generation(row) for row in rows]
            endings = [
                Ending(orphan, orphaned(row["tail"], row["age_seconds"], orphan.is_cancel_requested), row["tail"])
                for orphan, row in zip(orphans, rows, strict=True)
            ]
            await connection.fetchrow(
                self._APPEND_AND_END,
                *(owner.id, owner.epoch, lease["settled"], [], [], [], [], []),
                *self._ending_arrays(endings, []),
            )
            await self.sessions.release_all(connection, owner)
            await connection.execute(self._DELETE_OWNER, owner.id, owner.epoch)
            return orphans

        orphans = await self._database.transact(work, is_urgent=True)
        streams = [stream for orphan in orphans for stream in (orphan.data_stream, orphan.control_stream)]
        if streams:
            self._announce_to_all(streams)
        return len(orphans)

    # Generations

    _CLAIM = f"""
    with {_fence()}, claimed as (
        insert into streamkeep.generations
            (tenant, session_id, request_id, owner_id, owner_epoch, fingerprint, data_stream, control_stream,
             holder, cancel_after_seconds, retention_seconds, upstream)
        select $3, $4, $5, id, epoch, $6, nextval('streamkeep.streams_id_seq'), nextval('streamkeep.streams_id_seq'),
               $9, $10, coalesce($11, (select retention_seconds from streamkeep.tenants where tenant = $3)), $12
        from fence
        on conflict on constraint generations_key do nothing
        returning {_COLUMNS}
    ), streams as (
        insert into streamkeep.streams (id, tenant, path)
        select data_stream, tenant, $7 from claimed
        union all
        select control_stream, tenant, $8 from claimed
    )
    select exists (select from fence) as is_owner, claimed.*
    from (select 1) as one
    left join claimed on true
    """

    _CLAIM_REFUSED = f"""
    with {_fence()}, anew as (
        update streamkeep.generations
        set epoch = generations.epoch + 1, state = 'creating', owner_id = fence.id, owner_epoch = fence.epoch,
            fingerprint = $5, created_at = clock_timestamp(), ended_at = null, sweep_at = null, head = null,
            refusal_body = null, is_cancel_requested = false, holder = $6, cancel_after_seconds = $7,
            retention_seconds = coalesce(
                $8, (select tenants.retention_seconds from streamkeep.tenants where tenants.tenant = generations.tenant)
            ),
            upstream = $9
        from fence
        where generations.id = $3 and generations.epoch = $4 and state = 'refused'
        returning generations.*
    ), forgotten as (
        delete from streamkeep.audiences using anew where generation_id = anew.id
    )
    select * from anew
    """

    # The lock is a statement of its own: what counts after it sees every claim that held it before.
    _LOCK_HOLDER = "select pg_advisory_xact_lock(hashtextextended($1, hashtextextended($2, 0)))"

    _HELD = """
    select (
        select count(*) from streamkeep.generations where tenant = $1 and holder = $2 and ended_at is null
    ) as running, (
        select extract(epoch from clock_timestamp() - created_at)::float8
        from streamkeep.generations
        where tenant = $1 and holder = $2
        order by created_at desc
        offset $3::int - 1 limit 1
    ) as age_seconds, exists (
        select from streamkeep.generations
        where tenant = $1 and session_id = $4 and request_id = $5 and state <> 'refused'
    ) as is_found
    """

    async def claim(
        self,
        owner: Owner,
        key: GenerationKey,
        fingerprint: bytes | None,
        terms: Terms = Terms(),  # noqa: B008
    ) -> Claim:
        if terms.holder is None or not terms.is_limited:
            return await self._claim(self._database.fetch_row, owner, key, fingerprint, terms)
        holder = (key.tenant, terms.holder)

        async def work(connection: Connection) -> Claim:
            await connection.execute(self._LOCK_HOLDER, *holder)
            held = _one(
                await connection.fetchrow(self._HELD, *holder, terms.max_per_minute, key.session_id, key.request_id)
            )
            refused = limits.exceeded(terms, running=held["running"], age_seconds=held["age_seconds"])
            if refused is not None and not held["is_found"]:
                raise refused
            return await self._claim(connection.fetchrow, owner, key, fingerprint, terms)

        # Claims of one holder take turns here first, so that a crowd of them waits on one connection and not on all.
        async with self._turns.setdefault(holder, asyncio.Lock()):
            return await self._database.transact(work)

    async def _claim(
        self, fetch_row: _FetchRow, owner: Owner, key: GenerationKey, fingerprint: bytes | None, terms: Terms
    ) -> Claim:
        kept = (terms.holder, terms.cancel_after_seconds, terms.retention_seconds, terms.upstream)
        for _ in range(_MAX_CLAIM_ATTEMPTS):
            row = _one(
                await fetch_row(
                    self._CLAIM,
                    owner.id,
                    owner.epoch,
                    key.tenant,
                    key.session_id,
                    key.request_id,
                    fingerprint,
                    key.data_path,
                    key.control_path,
                    *kept,
                )
            )
            if not row["is_owner"]:
                raise self._fenced(owner)
            if row["id"] is not None:
                return Claim(self._generation(row), is_new=True)
            # A statement of its own: it sees a row that was made after the first one had begun.
            existing = await fetch_row(self._GENERATION, key.tenant, key.session_id, key.request_id)
            if existing is None:
                continue  # It was deleted meanwhile.
            found = self._generation(existing)
            if found.state is not State.REFUSED or found.gone is not None:
                if fingerprint is not None and found.fingerprint is not None and fingerprint != found.fingerprint:
                    raise FingerprintMismatch(f"{key} belongs to another request")
                return Claim(found, is_new=False)
            anew = await fetch_row(
                self._CLAIM_REFUSED, owner.id, owner.epoch, found.id, found.epoch, fingerprint, *kept
            )
            if anew is not None:
                return Claim(self._generation(anew), is_new=True)
        raise StoreUnavailable(f"{key} changed {_MAX_CLAIM_ATTEMPTS} times while it was being claimed")

    _START = f"""
    with {_fence()}
    update streamkeep.generations
    set state = 'running', fingerprint = $5, head = $6
    from fence
    where generations.id = $3 and generations.epoch = $4 and state = 'creating'
      and {_BELONGS_TO_FENCE}
    returning is_cancel_requested
    """

    async def start(self, generation: Generation, head: UpstreamHead, fingerprint: bytes | None) -> bool:
        is_cancel_requested = await self._leave_creating(self._START, generation, fingerprint, _head_json(head))
        self._tails.setdefault(generation.data_stream, 0)
        return is_cancel_requested

    _REFUSE = f"""
    with {_fence()}
    update streamkeep.generations
    set state = 'refused', fingerprint = $5, head = $6, refusal_body = $7, is_refusal_sealed = $8,
        ended_at = clock_timestamp(),
        sweep_at = clock_timestamp() + make_interval(secs => retention_seconds)
    from fence
    where generations.id = $3 and generations.epoch = $4 and state = 'creating'
      and {_BELONGS_TO_FENCE}
    returning is_cancel_requested
    """

    async def refuse(self, generation: Generation, refusal: Refusal, fingerprint: bytes | None) -> None:
        body, tenant = refusal.body, generation.key.tenant
        is_sealed = self._codec.sealer.seals(tenant)
        if is_sealed:
            await self._key_log.note([tenant])
            body = self._codec.sealer.seal(tenant, generation.data_stream, _REFUSAL, body)
        await self._leave_creating(self._REFUSE, generation, fingerprint, _head_json(refusal.head), body, is_sealed)

    _IS_OWNER = "select settled from streamkeep.owners where id = $1 and epoch = $2"

    async def _leave_creating(self, statement: str, generation: Generation, *values: object) -> bool:
        """Whether a cancel was requested before."""
        owner = generation.owner
        row = await self._database.fetch_row(statement, owner.id, owner.epoch, generation.id, generation.epoch, *values)
        if row is None:
            if await self._database.fetch_row(self._IS_OWNER, owner.id, owner.epoch) is None:
                raise self._fenced(owner)
            raise GenerationEnded(f"{generation.key} is not being created in epoch {generation.epoch}")
        self._announce(generation.data_stream, generation.control_stream)
        is_cancel_requested: bool = row["is_cancel_requested"]
        return is_cancel_requested

    _GENERATION = f"""
    select {_COLUMNS} from streamkeep.generations where tenant = $1 and session_id = $2 and request_id = $3
    """

    async def generation(self, key: GenerationKey) -> Generation | None:
        row = await self._database.fetch_row(self._GENERATION, key.tenant, key.session_id, key.request_id)
        return self._generation(row) if row is not None else None

    _SESSION = f"""
    select {_COLUMNS}
    from streamkeep.generations
    where tenant = $1 and session_id = $2 and state <> 'refused' and (ended_at is null or ended_at > $3)
    order by created_at desc, id desc
    """

    async def session_generations(self, tenant: str, session_id: str, *, ended_after: datetime) -> list[Generation]:
        rows = await self._database.fetch(self._SESSION, tenant, session_id, ended_after)
        return [self._generation(row) for row in rows]

    async def list_generations(self, wanted: Wanted, *, before: int | None = None, limit: int = 100) -> GenerationPage:
        return await self._listings.generations(wanted, before=before, limit=limit)

    async def list_sessions(self, wanted: Wanted, *, before: int | None = None, limit: int = 100) -> SessionPage:
        return await self._listings.sessions(wanted, before=before, limit=limit)

    # The notification belongs to the flag's transaction: a request is rare enough, and should not outrun its flag.
    _REQUEST_CANCEL = f"""
    with flagged as (
        update streamkeep.generations set is_cancel_requested = true
        where tenant = $1 and session_id = $2 and request_id = $3 and ended_at is null
        returning {_COLUMNS}, set_config('synchronous_commit', 'on', true)
    )
    select {_COLUMNS}, pg_notify('{CANCELS_CHANNEL}', $4 || id::text) from flagged
    union all
    select {_COLUMNS}, null
    from streamkeep.generations
    where tenant = $1 and session_id = $2 and request_id = $3 and not exists (select from flagged)
    """

    async def request_cancel(self, key: GenerationKey) -> Generation | None:
        prefix = format_payload(self._sender, [])
        row = await self._database.fetch_row(
            self._REQUEST_CANCEL, key.tenant, key.session_id, key.request_id, prefix, is_urgent=True
        )
        if row is None:
            return None
        generation = self._generation(row)
        if generation.state.is_live:
            self._feed.cancel_requested([generation.id])
        return generation

    _CANCEL_REQUESTS = """
    select id
    from streamkeep.generations
    where owner_id = $1 and owner_epoch = $2 and ended_at is null and is_cancel_requested
    order by id
    """

    async def cancel_requests(self, owner: Owner) -> list[int]:
        rows = await self._database.fetch(self._CANCEL_REQUESTS, owner.id, owner.epoch)
        return [row["id"] for row in rows]

    async def _own_cancel_requests(self) -> list[int]:
        return [found for owner in list(self._settled) for found in await self.cancel_requests(owner)]

    _SET_RETENTION = """
    insert into streamkeep.tenants (tenant, retention_seconds) values ($1, $2)
    on conflict (tenant) do update set retention_seconds = $2, updated_at = clock_timestamp()
    """

    async def set_retention(self, tenant: str, seconds: float | None) -> None:
        await self._database.execute(self._SET_RETENTION, tenant, seconds)

    _RETENTIONS = "select tenant, retention_seconds from streamkeep.tenants where retention_seconds is not null"

    async def retentions(self) -> dict[str, float]:
        return {row["tenant"]: row["retention_seconds"] for row in await self._database.fetch(self._RETENTIONS)}

    # Audiences

    _NOTE_READERS = """
    insert into streamkeep.audiences (generation_id, process, counts_until)
    select noted.generation_id, $1, clock_timestamp() + make_interval(secs => noted.seconds)
    from unnest($2::bigint[], $3::float8[]) as noted (generation_id, seconds)
    order by noted.generation_id
    on conflict (generation_id, process) do update set counts_until = excluded.counts_until
    """

    async def note_readers(self, process: str, counted_seconds: Mapping[int, float]) -> None:
        await self._database.execute(self._NOTE_READERS, process, list(counted_seconds), list(counted_seconds.values()))

    _READERLESS = """
    select generation_id, extract(epoch from clock_timestamp() - max(counts_until))::float8 as seconds
    from streamkeep.audiences
    where generation_id = any($1::bigint[])
    group by generation_id
    """

    async def readerless_seconds(self, generation_ids: Collection[int]) -> dict[int, float]:
        rows = await self._database.fetch(self._READERLESS, list(generation_ids))
        return {row["generation_id"]: row["seconds"] for row in rows}

    # Bytes

    _WRITE = _write(
        _DOUBTFUL_ITEMS,
        f"case when item.is_known then item.position else {_expected('item.stream_id', 'item.position')} end",
    )

    _APPEND = f"with {_fence('and settled = $3')} {_WRITE}"

    # What nearly every commit is. The comparison's estimated cost makes the server plan each of them anew, for as long as
    # all the rest of it takes; without it one plan serves all.
    _APPEND_TO_KNOWN = _write(_ITEMS, "item.position", fence=f"({_locked_owner('and settled = $3')}) as fence")

    _APPEND_AND_END = _append_and_end(_WRITE, f"final_position - position + {_expected('data_stream', 'position')}")

    # What nearly every end is.
    _APPEND_TO_KNOWN_AND_END = _append_and_end(_write(_DOUBTFUL_ITEMS, "item.position"), "final_position")

    async def commit(self, owner: Owner, appends: Sequence[Append], endings: Sequence[Ending]) -> frozenset[int]:
        appends = sorted([append for append in appends if append.data], key=_STREAM_ID)
        tails = self._tails
        # Forgotten until this commit is known to have happened.
        known = [tails.pop(append.stream_id, None) == append.position for append in appends]
        if not self._codec.is_plain:
            tenants = {append.tenant for append in appends} | {ending.generation.key.tenant for ending in endings}
            await self._key_log.note(tenants)
        values = (owner.id, owner.epoch, self._settled.get(owner, 0), *self._append_arrays(appends, known))
        ended: frozenset[int] = frozenset()
        if appends and not endings:
            if all(known):
                written = await self._database.execute(self._APPEND_TO_KNOWN, *values[:-1], is_urgent=True)
            else:
                written = await self._database.execute(self._APPEND, *values, is_urgent=True)
            is_fresh = written > 0
        else:
            is_known = self._are_at_tails(endings, appends) and all(known)
            statement = self._APPEND_TO_KNOWN_AND_END if is_known else self._APPEND_AND_END
            row = _one(
                await self._database.fetch_row(
                    statement, *values, *self._ending_arrays(endings, appends), is_urgent=True
                )
            )
            is_fresh, ended = row["is_fresh"], frozenset(row["ended"])
        if not is_fresh:
            if await self._database.fetch_row(self._IS_OWNER, owner.id, owner.epoch, is_urgent=True) is None:
                raise self._fenced(owner)
            raise StoreUnavailable("a later settle overtook this commit")
        for append in appends:
            tails[append.stream_id] = append.position + len(append.data)
        for ending in endings:
            tails.pop(ending.generation.data_stream, None)
        if self._has_company:
            changed = [append.stream_id for append in appends]
            for ending in endings:
                changed += (ending.generation.data_stream, ending.generation.control_stream)
            self._notifier.announce(changed)
        return ended

    def _are_at_tails(self, endings: Sequence[Ending], appends: Sequence[Append]) -> bool:
        """Whether the endings stand, behind the appends of their commit, where this store knows the tails; forgets these."""
        tails = {append.stream_id: append.position + len(append.data) for append in appends}
        for ending in endings:
            stream_id = ending.generation.data_stream
            if tails.setdefault(stream_id, self._tails.pop(stream_id, -1)) != ending.data_position:
                return False
        return True

    _SETTLE = "update streamkeep.owners set settled = settled + 1 where id = $1 and epoch = $2 returning settled"

    async def settle(self, owner: Owner, stream_ids: Collection[int]) -> dict[int, Tail]:
        async def work(connection: Connection) -> tuple[int, dict[int, Tail]] | None:
            # Waits for commits that hold the row; those that come later carry the wrong number.
            row = await connection.fetchrow(self._SETTLE, owner.id, owner.epoch)
            if row is None:
                return None
            return row["settled"], await self._chunks.writers_tails(stream_ids, connection)

        settled = await self._database.transact(work, is_urgent=True)
        if settled is None:
            raise self._fenced(owner)
        self._settled[owner], tails = settled
        return tails

    async def read(self, stream_id: int, position: int, max_bytes: int) -> Slice:
        return await self._chunks.read(stream_id, position, max_bytes)

    async def read_each(self, positions: Mapping[int, int], max_bytes: int) -> dict[int, Slice]:
        return await self._chunks.read_each(positions, max_bytes)

    async def tails(self, stream_ids: Collection[int]) -> dict[int, Tail]:
        return await self._chunks.tails(stream_ids)

    async def erase(self, what: Erasure, limit: int = 1000) -> Erased:
        return await self._erasing.erase(what, limit)

    # Streams of the open protocol

    async def create_stream(self, key: StreamKey, config: StreamConfig, data: bytes = b"") -> Created:
        return await self._streams.create(key, config, data)

    async def stream(self, key: StreamKey, *, is_touched: bool = True) -> StreamInfo:
        return await self._streams.stream(key, is_touched=is_touched)

    async def schema(self, stream_id: int) -> str | None:
        return await self._streams.schema(stream_id)

    async def append(self, appends: Sequence[StreamAppend]) -> list[Appended | StoreError]:
        return await self._streams.append(appends)

    async def delete_stream(self, key: StreamKey) -> None:
        await self._streams.delete(key)

    async def write_registries(self, encode: Callable[[StreamChange], bytes], limit: int = 500) -> list[int]:
        return await self._streams.write_registries(encode, limit)

    async def list_streams(
        self, tenant: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[StreamInfo]:
        return await self._streams.list_streams(tenant, prefix, after, limit)

    # Upkeep

    async def sweep(self, limit: int = 100) -> int:
        swept = await self._upkeep.sweep(limit) + await self._erasing.sweep(limit)
        return swept + await self._streams.sweep(limit)

    async def rekey(self, tenant: str) -> int:
        await self.sessions.rekey(tenant)
        return await self._upkeep.rekey(tenant)

    async def merge(self, limit: int = 20) -> int:
        return await self._upkeep.merge(limit)

    def _generation(self, row: asyncpg.Record) -> Generation:
        head = _head(row["head"]) if row["head"] is not None else None
        refusal = None
        if head is not None and row["refusal_body"] is not None:
            refusal = Refusal(head, self._refusal_body(row))
        return Generation(
            id=row["id"],
            key=GenerationKey(row["tenant"], row["session_id"], row["request_id"]),
            epoch=row["epoch"],
            state=State(row["state"]),
            owner=Owner(row["owner_id"], row["owner_epoch"]),
            data_stream=row["data_stream"],
            control_stream=row["control_stream"],
            fingerprint=row["fingerprint"],
            created_at=row["created_at"],
            head=head if refusal is None else None,
            refusal=refusal,
            code=row["code"],
            message=row["message"],
            is_cancel_requested=row["is_cancel_requested"],
            ended_at=row["ended_at"],
            gone=_gone(row),
            holder=row["holder"],
            cancel_after_seconds=row["cancel_after_seconds"],
            retention_seconds=row["retention_seconds"],
            upstream=row["upstream"],
            usage=_usage(row["usage"]),
        )

    def _refusal_body(self, row: asyncpg.Record) -> bytes:
        """Upstream's error body; empty when its key is gone: who waits for it still learns the status."""
        body: bytes = row["refusal_body"]
        if not row["is_refusal_sealed"]:
            return body
        try:
            return self._codec.sealer.open(row["tenant"], row["data_stream"], _REFUSAL, body)
        except KeyUnavailable:
            return b""

    def _append_arrays(
        self, appends: Sequence[Append], known: Sequence[bool]
    ) -> tuple[list[int], list[int], list[bytes], list[bool], Sequence[bool]]:
        """The rows of a commit, and for each whether it is sealed, and whether its position is known to be the tail."""
        if self._codec.is_plain:
            return (
                [append.stream_id for append in appends],
                [append.position for append in appends],
                [append.data for append in appends],
                [],
                known,
            )
        rows = [
            (append.stream_id, segment, is_known or segment.position != append.position)
            for append, is_known in zip(appends, known, strict=True)
            for segment in self._codec.written(append.tenant, append.stream_id, append.position, append.data)
        ]
        return (
            [stream_id for stream_id, _, _ in rows],
            [segment.position for _, segment, _ in rows],
            [segment.data for _, segment, _ in rows],
            [segment.encoding == SEALED for _, segment, _ in rows],
            [is_known for _, _, is_known in rows],
        )

    def _ending_arrays(self, endings: Sequence[Ending], appends: Sequence[Append]) -> tuple[list[Any], ...]:
        appended = {append.stream_id: len(append.data) for append in appends}
        tenants = [ending.generation.key.tenant for ending in endings]
        events = [
            self._codec.row(tenant, ending.generation.control_stream, 0, encode_message(ending.terminal.to_json()))
            for tenant, ending in zip(tenants, endings, strict=True)
        ]
        is_sealed = [event.encoding == SEALED for event in events]
        return (
            [ending.generation.id for ending in endings],
            [ending.generation.epoch for ending in endings],
            [ending.terminal.code.state.value for ending in endings],
            [ending.terminal.code.value for ending in endings],
            # It may quote upstream: where the event is sealed, it stands there alone.
            [
                None if is_quiet else _text(ending.terminal.detail)
                for ending, is_quiet in zip(endings, is_sealed, strict=True)
            ],
            [ending.data_position - appended.get(ending.generation.data_stream, 0) for ending in endings],
            [ending.data_position for ending in endings],
            [event.data for event in events],
            is_sealed,
            [_usage_json(ending.terminal.usage) for ending in endings],
        )

    def _announce_to_all(self, stream_ids: Sequence[int]) -> None:
        """Wake readers everywhere: no writer here tells those of this process."""
        self._feed.streams_changed(stream_ids)
        self._notifier.announce(stream_ids)

    def _announce(self, *stream_ids: int) -> None:
        """Wake readers in other processes, if the last scan of the leases saw any."""
        if self._has_company:
            self._notifier.announce(stream_ids)

    def _fenced(self, owner: Owner) -> OwnerFenced:
        self._settled.pop(owner, None)
        self._tails.clear()
        return OwnerFenced(f"{owner} holds no lease")


def _one(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise StoreError("a statement that always gives a row gave none")
    return row


def _gone(row: asyncpg.Record) -> Gone | None:
    if row["gone_at"] is not None:
        return Gone(GoneReason(row["gone_reason"]), row["gone_at"])
    # Swept before it was written down when.
    return Gone(GoneReason.RETENTION, row["ended_at"]) if row["is_swept"] else None


# JSON with nothing but ASCII: upstream may send header values that text in the database cannot hold.
def _head_json(head: UpstreamHead) -> str:
    return json.dumps([head.status, head.content_type, head.content_encoding, head.headers])


def _head(text: str) -> UpstreamHead:
    status, content_type, content_encoding, headers = json.loads(text)
    return UpstreamHead(status, content_type, content_encoding, tuple((name, value) for name, value in headers))


def _usage_json(usage: Usage | None) -> str | None:
    return None if usage is None else json.dumps([usage.input_tokens, usage.output_tokens, usage.source])


def _usage(text: str | None) -> Usage | None:
    return None if text is None else Usage(*json.loads(text))


def _text(value: str | None) -> str | None:
    """Text as the database can hold it: a message must not keep a generation from ending."""
    if value is None:
        return None
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("%s stopped", task.get_name(), exc_info=task.exception())
