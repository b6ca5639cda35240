"""Keys: who may use the service, and the secrets that sign its URLs.

An API key's secret is stored as its SHA-256 alone. It is 32 random bytes, so there is nothing that guessing could shorten:
a slow hash, which protects what people think up, would only make each request dear.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it is stored: whose it is, and what it may do. `digest` is the SHA-256 of its secret.

    `upstreams` are the named upstreams and URL globs that it may call; None: all that the service may. A revoked key stays,
    so that the service knows that it once had keys.
    """

    id: str
    tenant: str
    digest: bytes = field(repr=False)
    created_at: datetime
    name: str | None = None
    upstreams: tuple[str, ...] | None = None
    max_running: int | None = None
    max_per_minute: int | None = None
    is_operator: bool = False
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret that signs URLs. `is_only`: what was signed with earlier ones is good no more."""

    id: int
    secret: bytes = field(repr=False)
    created_at: datetime
    is_only: bool = False


class KeyStore(Protocol):
    """The part of a store that knows keys. Any method may raise `StoreUnavailable`."""

    async def create(self, key: ApiKey, *, if_first: bool = False) -> bool:
        """Add a key. With `if_first`: unless there is one, or was one; of many who try at once, one succeeds.

        Raises:
            ItemRefused: the id is taken.
        """

    async def find(self, id: str) -> ApiKey | None:
        """The key with an id, revoked and expired ones too."""

    async def exists(self) -> bool:
        """Whether a key was ever made."""

    async def all(self, tenant: str | None = None) -> list[ApiKey]:
        """All keys, or a tenant's, oldest first."""

    async def revoke(self, id: str) -> ApiKey | None:
        """Make a key useless, if there is one; a second time changes nothing."""

    async def signing_keys(self) -> list[SigningKey]:
        """Oldest first, never none. The first has the number 1 and is the store's own `signing_key`."""

    async def rotate_signing_key(self, secret: bytes, *, is_only: bool = False) -> SigningKey:
        """Add a signing key; its number is greater than all before."""
