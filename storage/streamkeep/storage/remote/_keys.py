"""RemoteKeys: the store's part of keys, through the journal."""

from __future__ import annotations

from typing import cast

from streamkeep.storage._keys import ApiKey, SigningKey
from streamkeep.storage.remote._journal import Journal
from streamkeep.storage.remote._replica import ReplicaKeys


class RemoteKeys:
    """See `KeyStore` for what each method means."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __repr__(self) -> str:
        return f"RemoteKeys({self._journal!r})"

    async def create(self, key: ApiKey, *, if_first: bool = False) -> bool:
        return cast("bool", await self._journal.write("keys.add", key, if_first))

    async def find(self, id: str) -> ApiKey | None:
        return await (await self._current()).find(id)

    async def exists(self) -> bool:
        return await (await self._current()).exists()

    async def all(self, tenant: str | None = None) -> list[ApiKey]:
        return await (await self._current()).all(tenant)

    async def revoke(self, id: str) -> ApiKey | None:
        return cast("ApiKey | None", await self._journal.write("keys.revoke", id))

    async def signing_keys(self) -> list[SigningKey]:
        return await (await self._current()).signing_keys()

    async def rotate_signing_key(self, secret: bytes, *, is_only: bool = False) -> SigningKey:
        return cast("SigningKey", await self._journal.write("keys.rotate", secret, is_only))

    async def _current(self) -> ReplicaKeys:
        await self._journal.catch_up()
        return self._journal.replica.keys
