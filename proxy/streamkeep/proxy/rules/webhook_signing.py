"""Signatures on webhooks, and the page of keys to verify them with (protocol 6.5, 7.1).

Webhook-Signature: t=<unix seconds>,kid=<key id>,ed25519=<base64url, unpadded>      over `<t>.<raw body>`
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from streamkeep.storage import WebhookKey

SIGNATURE = "Webhook-Signature"
ALGORITHM = "ed25519"
PUBLISHED_AFTER_RETIREMENT = timedelta(hours=1)
"""How long a retired key can still be needed: a receiver's window against replays, and the page's time in caches."""


def webhook_key(private_key: bytes) -> WebhookKey:
    """The key pair of 32 secret bytes, named by its thumbprint (RFC 7638)."""
    members = f'{{"crv":"Ed25519","kty":"OKP","x":"{_public(private_key)}"}}'
    return WebhookKey(f"ds_{_base64url(hashlib.sha256(members.encode()).digest())}", private_key)


def signature(key: WebhookKey, body: bytes, *, at: int) -> str:
    """The header's value for a raw body, sent at a unix second."""
    signed = Ed25519PrivateKey.from_private_bytes(key.private_key).sign(f"{at}.".encode() + body)
    return f"t={at},kid={key.kid},{ALGORITHM}={_base64url(signed)}"


def jwks(keys: Iterable[WebhookKey], *, now: datetime) -> dict[str, list[dict[str, str]]]:
    """The page of public keys: those in use, and retired ones while signatures of theirs may be on the way."""
    published = [key for key in keys if key.retired_at is None or now < key.retired_at + PUBLISHED_AFTER_RETIREMENT]
    return {
        "keys": [
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "x": _public(key.private_key),
                "kid": key.kid,
                "use": "sig",
                "alg": "EdDSA",
            }
            for key in published
        ]
    }


def _public(private_key: bytes) -> str:
    public = Ed25519PrivateKey.from_private_bytes(private_key).public_key()
    return _base64url(public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
