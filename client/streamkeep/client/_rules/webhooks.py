"""Whether a webhook is what its signature says (protocol 7.1).

Webhook-Signature: t=<unix seconds>,kid=<key id>,ed25519=<base64url>      over `<t>.<raw body>`
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from streamkeep.client._errors import ProtocolError, WebhookRefused
from streamkeep.client._rules import protocol

SIGNATURE = "Webhook-Signature"

_HEADER = re.compile(r"t=([0-9]{1,12}),kid=([\x21-\x2b\x2d-\x7e]{1,200}),ed25519=([A-Za-z0-9_-]{86})")


@dataclass(frozen=True, slots=True)
class WebhookSignature:
    """A signature's header, taken apart."""

    at: int
    key_id: str
    signature: bytes


def check_is_possible() -> None:
    """Raises: ImportError: a package is missing, which reading and writing streams does not need."""
    if find_spec("cryptography") is None:
        raise ImportError("checking webhooks needs the package cryptography: pip install 'streamkeep[webhooks]'")


def parse_signature(header: str | None) -> WebhookSignature:
    """Raises: WebhookRefused."""
    found = _HEADER.fullmatch(header or "")
    if found is None:
        raise WebhookRefused("the webhook has no signature that can be read")
    return WebhookSignature(int(found[1]), found[2], _base64url(found[3]))


def parse_keys(content: bytes) -> dict[str, bytes]:
    """The Ed25519 keys of a page, by their ids; others are passed over. Raises: ProtocolError."""
    page = protocol.parse_json(content, "the page of keys")
    keys = page.get("keys") if isinstance(page, dict) else None
    if not isinstance(keys, list):
        raise ProtocolError("the page of keys holds none")
    return {
        key["kid"]: _base64url(key["x"])
        for key in keys
        if isinstance(key, dict)
        and (key.get("kty"), key.get("crv")) == ("OKP", "Ed25519")
        and isinstance(key.get("kid"), str)
        and isinstance(key.get("x"), str)
        and re.fullmatch(r"[A-Za-z0-9_-]{43}", key["x"])
    }


def verify(
    body: bytes, signature: WebhookSignature, keys: Mapping[str, bytes], *, now: float, tolerance_seconds: float
) -> None:
    """Raises: WebhookRefused: somebody else signed it, or something else, or long ago; `now` is unix time."""
    # Only who receives webhooks needs this package, which is large.
    check_is_possible()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if abs(now - signature.at) > tolerance_seconds:
        raise WebhookRefused("the webhook was signed too long ago, or clocks differ")
    key = keys.get(signature.key_id)
    if key is None:
        raise WebhookRefused("the webhook's key is not published")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature.signature, f"{signature.at}.".encode() + body)
    except (InvalidSignature, ValueError):
        raise WebhookRefused("the webhook's signature is not right") from None


def _base64url(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        raise WebhookRefused("the webhook has no signature that can be read") from None
