"""PostgresKeys: the store's part of keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg

from streamkeep.storage._keys import ApiKey, SigningKey
from streamkeep.storage.postgres._database import Connection, Database

_COLUMNS = """id, tenant, digest, created_at, name, upstreams, max_running, max_per_minute, is_operator, expires_at,
    revoked_at"""


class PostgresKeys:
    """See `KeyStore` for what each method means. `first_signing_key` makes the store's own where there is none."""

    def __init__(self, database: Database, first_signing_key: Callable[[], Awaitable[bytes]]) -> None:
        self._database = database
        self._first_signing_key = first_signing_key

    def __repr__(self) -> str:
        return "PostgresKeys()"

    # Excludes other creations, and no reader.
    _LOCK = "lock table streamkeep.api_keys in share row exclusive mode"

    _CREATE = f"""
    insert into streamkeep.api_keys ({_COLUMNS})
    select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11
    where not $12 or not exists (select from streamkeep.api_keys)
    returning id
    """

    async def create(self, key: ApiKey, *, if_first: bool = False) -> bool:
        async def work(connection: Connection) -> bool:
            if if_first:
                # A statement of its own: the next one sees what was made by whoever held the lock before.
                await connection.execute(self._LOCK)
            made = await connection.fetchrow(
                self._CREATE,
                key.id,
                key.tenant,
                key.digest,
                key.created_at,
                key.name,
                None if key.upstreams is None else list(key.upstreams),
                key.max_running,
                key.max_per_minute,
                key.is_operator,
                key.expires_at,
                key.revoked_at,
                if_first,
            )
            return made is not None

        return await self._database.transact(work)

    _FIND = f"select {_COLUMNS} from streamkeep.api_keys where id = $1"

    async def find(self, id: str) -> ApiKey | None:
        row = await self._database.fetch_row(self._FIND, id)
        return None if row is None else _api_key(row)

    async def exists(self) -> bool:
        row = await self._database.fetch_row("select exists (select from streamkeep.api_keys) as is_found")
        return row is not None and bool(row["is_found"])

    _ALL = f"""
    select {_COLUMNS} from streamkeep.api_keys where $1::text is null or tenant = $1 order by created_at, id
    """

    async def all(self, tenant: str | None = None) -> list[ApiKey]:
        return [_api_key(row) for row in await self._database.fetch(self._ALL, tenant)]

    _REVOKE = f"""
    update streamkeep.api_keys set revoked_at = coalesce(revoked_at, clock_timestamp()) where id = $1
    returning {_COLUMNS}
    """

    async def revoke(self, id: str) -> ApiKey | None:
        async def work(connection: Connection) -> ApiKey | None:
            row = await connection.fetchrow(self._REVOKE, id)
            return None if row is None else _api_key(row)

        return await self._database.transact(work)

    _SIGNING_KEYS = """
    select 1 as id, value as secret, created_at, false as is_only from streamkeep.secrets where name = 'url_signing'
    union all
    select id, secret, created_at, is_only from streamkeep.signing_keys
    order by id
    """

    async def signing_keys(self) -> list[SigningKey]:
        rows = await self._database.fetch(self._SIGNING_KEYS)
        if not rows or rows[0]["id"] != 1:
            await self._first_signing_key()
            rows = await self._database.fetch(self._SIGNING_KEYS)
        return [_signing_key(row) for row in rows]

    _ROTATE = """
    insert into streamkeep.signing_keys (secret, is_only) values ($1, $2) returning id, secret, created_at, is_only
    """

    async def rotate_signing_key(self, secret: bytes, *, is_only: bool = False) -> SigningKey:
        async def work(connection: Connection) -> SigningKey:
            row = await connection.fetchrow(self._ROTATE, secret, is_only)
            assert row is not None
            return _signing_key(row)

        return await self._database.transact(work)


def _api_key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        id=row["id"],
        tenant=row["tenant"],
        digest=bytes(row["digest"]),
        created_at=row["created_at"],
        name=row["name"],
        upstreams=None if row["upstreams"] is None else tuple(row["upstreams"]),
        max_running=row["max_running"],
        max_per_minute=row["max_per_minute"],
        is_operator=row["is_operator"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )


def _signing_key(row: asyncpg.Record) -> SigningKey:
    return SigningKey(row["id"], bytes(row["secret"]), row["created_at"], row["is_only"])
