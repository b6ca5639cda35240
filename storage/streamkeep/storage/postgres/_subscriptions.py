"""PostgresSubscriptions: the store's part of subscriptions, each method one transaction.

Whoever changes a subscription or its links holds the row of the subscription `for update`, taken first and in the order of
their keys. What is due is taken with `skip locked`, so instances never wait for one another and never take the same one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import asyncpg

from streamkeep.storage._subscriptions import (
    MAX_EXPLICIT_LINKS,
    MAX_WAKE_STREAMS,
    Change,
    Decide,
    Delivery,
    Glob,
    Link,
    Locked,
    Phase,
    StreamNews,
    Subscription,
    SubscriptionConfig,
    SubscriptionExists,
    SubscriptionKey,
    SubscriptionNotFound,
    T,
    TooManyLinks,
    Wake,
    Watch,
    WebhookKey,
)
from streamkeep.storage.postgres._database import Connection, Database
from streamkeep.storage.rules.subscriptions import discovered, forgotten, noticed, refreshed

# More than a wake can name, so that after all of its streams are acknowledged the rest still shows.
_MAX_PENDING = 2 * MAX_WAKE_STREAMS + 1
_TOMBSTONE_DAYS = 30

_COLUMNS = """tenant, id, delivery, pattern, streams, lease_ttl_ms, webhook_url, wake_stream, description, config_hash, base_url,
    created_at, deleted_at, phase, generation, wake_id, holder, lease_until, attempts, due_at"""

_LINK = "path, is_explicit, is_glob, stream_id, acked, tail"


class PostgresSubscriptions:
    """See `SubscriptionStore` for what each method means."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _FIND = f"""
    select {_COLUMNS}, clock_timestamp() as now from streamkeep.subscriptions where tenant = $1 and id = $2 for update
    """

    _CREATE = f"""
    insert into streamkeep.subscriptions (
        tenant, id, delivery, pattern, streams, lease_ttl_ms, webhook_url, wake_stream, description, config_hash, base_url
    )
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    on conflict (tenant, id) do update
    set delivery = excluded.delivery, pattern = excluded.pattern, streams = excluded.streams,
        lease_ttl_ms = excluded.lease_ttl_ms, webhook_url = excluded.webhook_url, wake_stream = excluded.wake_stream,
        description = excluded.description, config_hash = excluded.config_hash, base_url = excluded.base_url,
        created_at = clock_timestamp(), deleted_at = null
    where subscriptions.deleted_at is not null
    returning {_COLUMNS}
    """

    async def create(
        self, key: SubscriptionKey, config: SubscriptionConfig, config_hash: bytes, base_url: str, links: Sequence[Link]
    ) -> tuple[Subscription, bool]:
        async def work(connection: Connection) -> tuple[Subscription, bool]:
            made = await connection.fetchrow(
                self._CREATE,
                *(key.tenant, key.id, config.delivery.value, config.pattern, list(config.streams), config.lease_ttl_ms),
                *(config.webhook_url, config.wake_stream, config.description, config_hash, base_url),
            )
            if made is not None:
                await _put(connection, key, links)
                return _subscription(made), True
            found = await connection.fetchrow(self._FIND, key.tenant, key.id)
            if found is None or found["config_hash"] != config_hash:
                raise SubscriptionExists(f"{key.id} has another configuration")
            return _subscription(found), False

        return await self._database.transact(work)

    _GET = f"select {_COLUMNS} from streamkeep.subscriptions where tenant = $1 and id = $2 and deleted_at is null"

    async def subscription(self, key: SubscriptionKey) -> Subscription:
        row = await self._database.fetch_row(self._GET, key.tenant, key.id)
        if row is None:
            raise SubscriptionNotFound(f"no subscription {key.id}")
        return _subscription(row)

    _LINKS = f"""
    select {_LINK}
    from streamkeep.subscription_links
    where tenant = $1 and subscription_id = $2 and path > $3
    order by path
    limit $4
    """

    async def links(self, key: SubscriptionKey, *, after: str = "", limit: int = MAX_WAKE_STREAMS) -> list[Link]:
        return [_link(row) for row in await self._database.fetch(self._LINKS, key.tenant, key.id, after, limit)]

    _DELETE = """
    update streamkeep.subscriptions
    set deleted_at = clock_timestamp(), phase = 'idle', wake_id = null, holder = null, lease_until = null, attempts = 0,
        due_at = null
    where tenant = $1 and id = $2 and deleted_at is null
    """

    _DELETE_LINKS = "delete from streamkeep.subscription_links where tenant = $1 and subscription_id = $2"

    async def delete(self, key: SubscriptionKey) -> None:
        async def work(connection: Connection) -> None:
            if await connection.execute(self._DELETE, key.tenant, key.id) != "UPDATE 1":
                raise SubscriptionNotFound(f"no subscription {key.id}")
            await connection.execute(self._DELETE_LINKS, key.tenant, key.id)

        await self._database.transact(work)

    _COUNT_EXPLICIT = """
    select count(*) from streamkeep.subscription_links where tenant = $1 and subscription_id = $2 and is_explicit
    """

    async def link(self, key: SubscriptionKey, links: Sequence[Link]) -> None:
        async def work(connection: Connection) -> None:
            await _lock(connection, key)
            found = await _named(connection, key, [link.path for link in links])
            await _put(connection, key, [replace(found.get(link.path, link), is_explicit=True) for link in links])
            if await connection.fetchval(self._COUNT_EXPLICIT, key.tenant, key.id) > MAX_EXPLICIT_LINKS:
                raise TooManyLinks(f"a subscription may name {MAX_EXPLICIT_LINKS} streams")

        await self._database.transact(work)

    _UNLINK = """
    delete from streamkeep.subscription_links where tenant = $1 and subscription_id = $2 and path = $3 and not is_glob
    """

    async def unlink(self, key: SubscriptionKey, path: str) -> None:
        async def work(connection: Connection) -> None:
            await _lock(connection, key)
            found = (await _named(connection, key, [path])).get(path)
            if found is not None and found.is_glob:
                await _put(connection, key, [replace(found, is_explicit=False)])
            else:
                await connection.execute(self._UNLINK, key.tenant, key.id, path)

        await self._database.transact(work)

    _TENANTS = "select distinct tenant from streamkeep.subscriptions where deleted_at is null"

    _GLOBS = """
    select tenant, id, pattern, wake_stream
    from streamkeep.subscriptions
    where pattern is not null and deleted_at is null
    order by tenant, id
    """

    async def watch(self) -> Watch:
        tenants = await self._database.fetch(self._TENANTS)
        globs = await self._database.fetch(self._GLOBS)
        return Watch(
            frozenset(row["tenant"] for row in tenants),
            tuple(Glob(SubscriptionKey(row["tenant"], row["id"]), row["pattern"], row["wake_stream"]) for row in globs),
        )

    _LOCK_CONCERNED = f"""
    select {_COLUMNS}, clock_timestamp() as now
    from streamkeep.subscriptions
    where tenant = $1 and deleted_at is null and id in (
        select subscription_id from streamkeep.subscription_links where tenant = $1 and path = any($2::text[])
        union
        select unnest($3::text[])
    )
    order by id
    for update
    """

    _SET_DUE = "update streamkeep.subscriptions set due_at = $3 where tenant = $1 and id = $2"

    async def note(
        self, tenant: str, news: Sequence[StreamNews], matches: Sequence[tuple[str, str]]
    ) -> Collection[SubscriptionKey]:
        by_path = {one.path: one for one in news}

        async def work(connection: Connection) -> list[SubscriptionKey]:
            due = []
            rows = await connection.fetch(self._LOCK_CONCERNED, tenant, list(by_path), [id for id, _ in matches])
            for row in rows:
                key = SubscriptionKey(tenant, row["id"])
                found = await _named(connection, key, by_path)
                changed = {path: refreshed(link, by_path[path]) for path, link in found.items()}
                for path in (path for id, path in matches if id == key.id):
                    known = changed.get(path)
                    changed[path] = replace(known, is_glob=True) if known is not None else discovered(by_path[path])
                await _put(connection, key, [link for path, link in changed.items() if link != found.get(path)])
                wake = _wake(row)
                if any(link.is_pending for link in changed.values()) and noticed(wake, row["now"]) != wake:
                    await connection.execute(self._SET_DUE, tenant, key.id, noticed(wake, row["now"]).due_at)
                    due.append(key)
            return due

        return await self._database.transact(work)

    _LINKED_TO = f"""
    select subscription_id, {_LINK}
    from streamkeep.subscription_links
    where tenant = $1 and stream_id = any($2::bigint[])
    order by subscription_id
    """

    _DELETE_LINK = "delete from streamkeep.subscription_links where tenant = $1 and subscription_id = $2 and path = $3"

    async def forget(self, tenant: str, stream_ids: Collection[int]) -> None:
        async def work(connection: Connection) -> None:
            rows = await connection.fetch(self._LINKED_TO, tenant, list(stream_ids))
            await connection.fetch(self._LOCK_CONCERNED, tenant, [], [row["subscription_id"] for row in rows])
            # Once more: the first look was before the locks.
            for row in await connection.fetch(self._LINKED_TO, tenant, list(stream_ids)):
                key, link = SubscriptionKey(tenant, row["subscription_id"]), forgotten(_link(row))
                if link is not None:
                    await _put(connection, key, [link])
                else:
                    await connection.execute(self._DELETE_LINK, tenant, key.id, row["path"])

        await self._database.transact(work)

    async def change(self, key: SubscriptionKey, decide: Decide[T], *, paths: Collection[str] = ()) -> T:
        async def work(connection: Connection) -> T:
            return await _change(connection, await _lock(connection, key), decide, paths)

        return await self._database.transact(work)

    _TAKE_DUE = f"""
    select {_COLUMNS}, clock_timestamp() as now
    from streamkeep.subscriptions
    where due_at <= clock_timestamp()
    order by due_at
    limit 1
    for update skip locked
    """

    async def change_due(self, decide: Decide[T]) -> T | None:
        async def work(connection: Connection) -> T | None:
            row = await connection.fetchrow(self._TAKE_DUE)
            if row is None:
                return None
            answer: T = await _change(connection, row, decide, ())
            return answer

        return await self._database.transact(work)

    _ALL_LINKS = f"""
    select tenant, subscription_id, {_LINK}
    from streamkeep.subscription_links
    where (tenant, subscription_id, path) > ($1, $2, $3)
    order by tenant, subscription_id, path
    limit $4
    """

    async def all_links(
        self, *, after: tuple[str, str, str] = ("", "", ""), limit: int
    ) -> list[tuple[SubscriptionKey, Link]]:
        rows = await self._database.fetch(self._ALL_LINKS, *after, limit)
        return [(SubscriptionKey(row["tenant"], row["subscription_id"]), _link(row)) for row in rows]

    _CLAIM_ROUND = """
    update streamkeep.subscription_rounds
    set next_at = clock_timestamp() + make_interval(secs => $1)
    where next_at <= clock_timestamp()
    """

    _FORGET_TOMBSTONES = f"""
    delete from streamkeep.subscriptions where deleted_at < clock_timestamp() - interval '{_TOMBSTONE_DAYS} days'
    """

    async def claim_round(self, seconds: float) -> bool:
        if not await self._database.execute(self._CLAIM_ROUND, seconds):
            return False
        await self._database.execute(self._FORGET_TOMBSTONES)
        return True

    _MAKE_KEY = """
    insert into streamkeep.webhook_keys (kid, private_key)
    select $1, $2 where not exists (select from streamkeep.webhook_keys where retired_at is null)
    on conflict do nothing
    """

    _KEYS = """
    select kid, private_key, created_at, retired_at
    from streamkeep.webhook_keys
    order by retired_at is not null, created_at desc
    """

    async def webhook_keys(self, candidate: WebhookKey) -> list[WebhookKey]:
        await self._database.execute(self._MAKE_KEY, candidate.kid, candidate.private_key)
        return [WebhookKey(**dict(row)) for row in await self._database.fetch(self._KEYS)]


_LOCK = f"""
select {_COLUMNS}, clock_timestamp() as now
from streamkeep.subscriptions
where tenant = $1 and id = $2 and deleted_at is null
for update
"""


async def _lock(connection: Connection, key: SubscriptionKey) -> asyncpg.Record:
    """Raises: SubscriptionNotFound."""
    row = await connection.fetchrow(_LOCK, key.tenant, key.id)
    if row is None:
        raise SubscriptionNotFound(f"no subscription {key.id}")
    return row


_PENDING = f"""
select {_LINK}
from streamkeep.subscription_links
where tenant = $1 and subscription_id = $2 and tail > acked
order by path
limit {_MAX_PENDING}
"""

_SET_WAKE = """
update streamkeep.subscriptions
set phase = $3, generation = $4, wake_id = $5, holder = $6, lease_until = $7, attempts = $8, due_at = $9
where tenant = $1 and id = $2
"""


async def _change(connection: Connection, row: asyncpg.Record, decide: Decide[T], paths: Collection[str]) -> T:
    subscription = _subscription(row)
    key = subscription.key
    links = await _named(connection, key, paths) if paths else {}
    links |= {found["path"]: _link(found) for found in await connection.fetch(_PENDING, key.tenant, key.id)}
    change: Change[T] = decide(Locked(subscription, links, row["now"]))
    wake = change.wake
    if wake != subscription.wake:
        await connection.execute(
            _SET_WAKE,
            *(key.tenant, key.id, wake.phase.value, wake.generation, wake.id, wake.holder, wake.lease_until),
            *(wake.attempts, wake.due_at),
        )
    await _put(connection, key, change.links)
    return change.answer


_NAMED = f"""
select {_LINK}
from streamkeep.subscription_links
where tenant = $1 and subscription_id = $2 and path = any($3::text[])
"""


async def _named(connection: Connection, key: SubscriptionKey, paths: Iterable[str]) -> dict[str, Link]:
    return {row["path"]: _link(row) for row in await connection.fetch(_NAMED, key.tenant, key.id, list(paths))}


_PUT = """
insert into streamkeep.subscription_links
    (tenant, subscription_id, path, is_explicit, is_glob, stream_id, acked, tail)
select $1, $2, link.*
from unnest($3::text[], $4::boolean[], $5::boolean[], $6::bigint[], $7::bigint[], $8::bigint[]) as link
on conflict (tenant, subscription_id, path) do update
set is_explicit = excluded.is_explicit, is_glob = excluded.is_glob, stream_id = excluded.stream_id,
    acked = excluded.acked, tail = excluded.tail
"""


async def _put(connection: Connection, key: SubscriptionKey, links: Sequence[Link]) -> None:
    if links:
        await connection.execute(
            _PUT,
            *(key.tenant, key.id),
            [link.path for link in links],
            [link.is_explicit for link in links],
            [link.is_glob for link in links],
            [link.stream_id for link in links],
            [link.acked for link in links],
            [link.tail for link in links],
        )


def _link(row: asyncpg.Record) -> Link:
    return Link(row["path"], row["is_explicit"], row["is_glob"], row["stream_id"], row["acked"], row["tail"])


def _wake(row: asyncpg.Record) -> Wake:
    return Wake(
        phase=Phase(row["phase"]),
        generation=row["generation"],
        id=row["wake_id"],
        holder=row["holder"],
        lease_until=row["lease_until"],
        attempts=row["attempts"],
        due_at=row["due_at"],
    )


def _subscription(row: asyncpg.Record) -> Subscription:
    config = SubscriptionConfig(
        delivery=Delivery(row["delivery"]),
        pattern=row["pattern"],
        streams=tuple(row["streams"]),
        lease_ttl_ms=row["lease_ttl_ms"],
        webhook_url=row["webhook_url"],
        wake_stream=row["wake_stream"],
        description=row["description"],
    )
    return Subscription(
        SubscriptionKey(row["tenant"], row["id"]), config, row["base_url"], row["created_at"], _wake(row)
    )
