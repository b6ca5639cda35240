"""Which encryption keys were ever used for a tenant: what a start can compare with the keys that it was given."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from streamkeep.storage.encryption import Sealer
from streamkeep.storage.postgres._database import Connection, Database

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

    async def warn_of_missing(self) -> None:
        """Say which keys were used and are not here. Data under them cannot be read; destroying them may be the wish."""
        for row in await self._database.fetch(self._USED):
            if not self._sealer.has(row["tenant"], row["key_id"]):
                logger.error(
                    "tenant %s has data encrypted with key %s, which STREAMKEEP_ENCRYPTION_KEYS does not hold: "
                    "what is left of them cannot be read",
                    row["tenant"],
                    row["key_id"].hex(),
                )
