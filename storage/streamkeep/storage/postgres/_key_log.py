"""Which encryption keys were ever used for a tenant: what a start can compare with the keys that it was given."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from streamkeep.storage._errors import StoreUnavailable
from streamkeep.storage.encryption import ID_BYTES, Sealer
from streamkeep.storage.postgres._database import Connection, Database
from streamkeep.storage.postgres._segments import SEALED

logger = logging.getLogger(__name__)


class KeyLog:
    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer
        self._noted: set[str] = set()

    _NOTE = """
    insert into streamkeep.sealing_keys (tenant, key_id) select * from unnest($1::text[], $2::bytea[])
    on conflict do nothing
    """

    async def note(self, tenants: Iterable[str], on: Database | Connection | None = None) -> None:
        """Write down that these tenants' keys are being used; a query for the first use in this process alone."""
        fresh = set(tenants) - self._noted
        if not fresh:
            return
        used = {tenant: key_id for tenant in fresh if (key_id := self._sealer.key_id(tenant)) is not None}
        if used:
            await (on or self._database).execute(self._NOTE, list(used), list(used.values()))
        self._noted |= fresh

    _USED = "select tenant, key_id from streamkeep.sealing_keys order by tenant, first_used_at"

    _IS_USED = f"""
    select 1
    from streamkeep.streams
    cross join lateral (
        select 1
        from streamkeep.chunks
        where stream_id = streams.id and encoding >= {SEALED} and substring(data for {ID_BYTES}) = $2
        limit 1
    ) as sealed
    where tenant = $1
    union all
    select 1
    from streamkeep.sessions
    where tenant = $1 and is_agents_sealed and substring(agents for {ID_BYTES}) = $2
    limit 1
    """

    _FORGET = "delete from streamkeep.sealing_keys where tenant = $1 and key_id = $2"

    async def warn_of_missing(self) -> None:
        """Say which keys are not here and have sealed what is still stored; forget those that have not."""
        for row in await self._database.fetch(self._USED):
            tenant, key_id = row["tenant"], row["key_id"]
            if self._sealer.has(tenant, key_id):
                continue
            try:
                is_used = await self._database.fetch_row(self._IS_USED, tenant, key_id) is not None
            except StoreUnavailable:
                is_used = True  # Too much to look through.
            if is_used:
                logger.error(
                    "tenant %s has data encrypted with key %s, which STREAMKEEP_ENCRYPTION_KEYS does not hold: "
                    "they cannot be read",
                    tenant,
                    key_id.hex(),
                )
            else:
                await self._database.execute(self._FORGET, tenant, key_id)
