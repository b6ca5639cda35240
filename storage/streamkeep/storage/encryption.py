"""Encryption at rest: which keys a tenant has, and how stored bytes are sealed with them.

Each stream has a key of its own, derived (HKDF) from its tenant's, so that the bound on random nonces, 2^32 rows for one
key, is a stream's and not a tenant's. Nonces are random and not made from positions: a commit that broke off may write
other bytes to the position once more. What names the row, its stream and its place there, is authenticated with it, so a
row that was moved or swapped does not open.

    sealed = key id (8 bytes) | nonce (12) | AES-256-GCM ciphertext | tag (16)

A key's id is derived from it and tells nothing of it. A tenant's newest key seals; every key opens what it sealed.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from streamkeep.storage._errors import KeyUnavailable, StoreError

_KEY_BYTES = 32
ID_BYTES = 8
_NONCE_BYTES = 12
_TAG_BYTES = 16
OVERHEAD_BYTES = ID_BYTES + _NONCE_BYTES + _TAG_BYTES
"""By how much sealed bytes are more than what they hold."""

_EVERYBODY = "*"
_CACHED_CIPHERS = 4096


class InvalidKeyring(ValueError):
    """The text holds no keys that can be used; the message quotes none."""


@dataclass(frozen=True, slots=True)
class Key:
    """32 secret bytes, and the name by which sealed bytes know them."""

    id: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: bytes) -> Key:
        return cls(hmac.digest(secret, b"streamkeep key id", "sha256")[:ID_BYTES], secret)


class Keyring:
    """Each tenant's keys, the newest first; those of `*` are for tenants that have none of their own."""

    def __init__(self, keys: Mapping[str, Sequence[Key]] | None = None) -> None:
        self._keys = dict(keys or {})

    def __repr__(self) -> str:
        return f"Keyring({', '.join(sorted(self._keys))})"

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Read `tenant=KEY,tenant=KEY,*=KEY`: 32 bytes in base64, a tenant's newest key first.

        Raises:
            InvalidKeyring: naming the entry by its number.
        """
        keys: dict[str, list[Key]] = {}
        for number, entry in enumerate(text.split(","), start=1):
            tenant, equals, encoded = entry.strip().partition("=")
            try:
                secret = base64.b64decode(encoded.strip().replace("-", "+").replace("_", "/"), validate=True)
            except binascii.Error:
                secret = b""
            if not tenant or not equals or len(secret) != _KEY_BYTES:
                raise InvalidKeyring(f"entry {number} must be a tenant or *, =, and {_KEY_BYTES} bytes in base64")
            keys.setdefault(tenant, []).append(Key.of(secret))
        return cls(keys)

    @property
    def is_empty(self) -> bool:
        return not self._keys

    def newest(self, tenant: str) -> Key | None:
        """The key that seals; None: the tenant's bytes are stored as they come."""
        found = self._keys.get(tenant) or self._keys.get(_EVERYBODY)
        return found[0] if found else None

    def find(self, tenant: str, key_id: bytes) -> Key | None:
        """The key that opens, among a tenant's own and everybody's."""
        found = (*self._keys.get(tenant, ()), *self._keys.get(_EVERYBODY, ()))
        return next((key for key in found if key.id == key_id), None)


class Sealer:
    """Seals and opens bytes with the keys of a ring. May be used in several threads at once."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._cipher = lru_cache(maxsize=_CACHED_CIPHERS)(_cipher)

    def seals(self, tenant: str) -> bool:
        """Whether what is written for a tenant is sealed."""
        return self._keyring.newest(tenant) is not None

    def key_id(self, tenant: str) -> bytes | None:
        """Which key seals for a tenant."""
        key = self._keyring.newest(tenant)
        return None if key is None else key.id

    def has(self, tenant: str, key_id: bytes) -> bool:
        return self._keyring.find(tenant, key_id) is not None

    def seal(self, tenant: str, stream_id: int, place: bytes, data: bytes) -> bytes:
        """Seal a tenant's bytes; it must have a key. `place` says what they are within their stream."""
        key = self._keyring.newest(tenant)
        assert key is not None, "the tenant has no key"
        nonce = os.urandom(_NONCE_BYTES)
        return key.id + nonce + self._cipher(key.secret, tenant, stream_id).encrypt(nonce, data, place)

    def open(self, tenant: str, stream_id: int, place: bytes, sealed: bytes) -> bytes:
        """The bytes that were sealed for this place.

        Raises:
            KeyUnavailable: the key is not on the ring.
            StoreError: these are not bytes that were sealed for it.
        """
        key = self._keyring.find(tenant, sealed[:ID_BYTES])
        if key is None:
            raise KeyUnavailable(f"stream {stream_id} is encrypted with a key that is not here")
        nonce, ciphertext = sealed[ID_BYTES : ID_BYTES + _NONCE_BYTES], sealed[ID_BYTES + _NONCE_BYTES :]
        try:
            return self._cipher(key.secret, tenant, stream_id).decrypt(nonce, ciphertext, place)
        except (InvalidTag, ValueError) as exc:
            raise StoreError(f"stream {stream_id} has encrypted bytes that are not its own or damaged") from exc


def _cipher(secret: bytes, tenant: str, stream_id: int) -> AESGCM:
    info = f"streamkeep stream\0{tenant}\0{stream_id}".encode(errors="surrogatepass")
    return AESGCM(HKDFExpand(hashes.SHA256(), _KEY_BYTES, info).derive(secret))
