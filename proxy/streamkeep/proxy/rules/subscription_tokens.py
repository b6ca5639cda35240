"""Tokens of wakes: who holds one may acknowledge for one generation of one subscription (protocol 7, 12).

    1.<generation>.<expires, unix seconds>.<base64url HMAC-SHA256>

The signature also covers tenant and subscription, each part preceded by its length. What the token says is not enough: the
generation must still be the current one, and its lease must run.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from streamkeep.storage import SubscriptionKey

LIFETIME_SECONDS = 24 * 3600
"""Longer than any work under one lease should take; the lease is the real bound."""

_SCHEME = "1"
_TOKEN = re.compile(r"1\.([0-9]{1,18})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})")
_PURPOSE = b"streamkeep subscription tokens"


class TokenInvalid(Exception):
    """No token, not one of ours, or one for another subscription."""


class TokenExpired(Exception):
    """Once a good token."""


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """Issue and check tokens with one secret key."""

    key: bytes = field(repr=False)

    @classmethod
    def derived(cls, secret: bytes) -> TokenSigner:
        """A signer whose key follows from a secret that serves other purposes as well."""
        return cls(hmac.new(secret, _PURPOSE, hashlib.sha256).digest())

    def issue(self, subscription: SubscriptionKey, generation: int, *, now: float) -> str:
        expires = int(now) + LIFETIME_SECONDS
        return f"{_SCHEME}.{generation}.{expires}.{self._signature(subscription, generation, expires)}"

    def generation(self, token: str, subscription: SubscriptionKey, *, now: float) -> int:
        """The generation that a token is for. Raises: TokenInvalid, TokenExpired."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise TokenInvalid
        generation, expires = int(match[1]), int(match[2])
        # Compared with the text itself, so that no other spelling of the same numbers passes.
        expected = f"{_SCHEME}.{generation}.{expires}.{self._signature(subscription, generation, expires)}"
        if not hmac.compare_digest(expected, token):
            raise TokenInvalid
        if now >= expires:
            raise TokenExpired
        return generation

    def _signature(self, subscription: SubscriptionKey, generation: int, expires: int) -> str:
        parts = (_SCHEME, subscription.tenant, subscription.id, str(generation), str(expires))
        text = "".join(f"{len(part.encode())}:{part}" for part in parts)
        digest = hmac.new(self.key, text.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
