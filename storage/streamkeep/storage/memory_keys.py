"""MemoryKeys: the store's part of keys in one process's memory; nothing survives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from streamkeep.storage._errors import ItemRefused
from streamkeep.storage._keys import ApiKey, SigningKey


class MemoryKeys:
    """See `KeyStore` for what each method means."""

    def __init__(self, signing_key: bytes, now: Callable[[], datetime]) -> None:
        self._now = now
        self._keys: dict[str, ApiKey] = {}
        self._signing_keys = [SigningKey(1, signing_key, now())]

    def __repr__(self) -> str:
        return f"MemoryKeys({len(self._keys)})"

    async def create(self, key: ApiKey, *, if_first: bool = False) -> bool:
        if if_first and self._keys:
            return False
        if key.id in self._keys:
            raise ItemRefused("the id is taken")
        self._keys[key.id] = key
        return True

    async def find(self, id: str) -> ApiKey | None:
        return self._keys.get(id)

    async def exists(self) -> bool:
        return bool(self._keys)

    async def all(self, tenant: str | None = None) -> list[ApiKey]:
        return [key for key in self._keys.values() if tenant in (None, key.tenant)]

    async def revoke(self, id: str) -> ApiKey | None:
        key = self._keys.get(id)
        if key is not None and key.revoked_at is None:
            key = self._keys[id] = replace(key, revoked_at=self._now())
        return key

    async def signing_keys(self) -> list[SigningKey]:
        return list(self._signing_keys)

    async def rotate_signing_key(self, secret: bytes, *, is_only: bool = False) -> SigningKey:
        made = SigningKey(self._signing_keys[-1].id + 1, secret, self._now(), is_only)
        self._signing_keys.append(made)
        return made
