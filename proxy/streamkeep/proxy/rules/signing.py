"""Signed URLs: who holds one may do what it says until it expires (design, Decided).

The signature covers the tenant, what is addressed in it, the rights and the expiry, each preceded by its length, so that
no two different grants have the same text. It begins with the number of the key that made it.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from urllib.parse import urlencode

from streamkeep.proxy.rules.access import Right
from streamkeep.storage import DEFAULT_TENANT, GenerationKey, SigningKey, StreamKey

SETTLE_SECONDS = 10.0
"""How old a key is before it signs: by then every instance knows it."""

MAX_LIFETIME_SECONDS = 31 * 24 * 3600
"""How long a signed URL may be good, and so for how long a key verifies after another took its place."""

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_EXPIRES = re.compile(r"[0-9]{1,12}")
_MAX_SIGNATURE_CHARACTERS = 128
_MAX_RIGHTS_CHARACTERS = 64
_READ_ONLY = Right.READ.value

Signed = GenerationKey | StreamKey
"""What a URL can be signed for: a generation with its two streams, or a stream of the open protocol."""


class SignatureProblem(StrEnum):
    """Why a signed URL is refused; the values are the error codes."""

    MISSING = "signature_missing"
    INVALID = "signature_invalid"
    EXPIRED = "signature_expired"


def is_signed(parameters: Mapping[str, str]) -> bool:
    """Whether a URL claims to be signed; then it must be, and well."""
    return "signature" in parameters or "expires" in parameters


@dataclass(frozen=True, slots=True)
class Signer:
    """Sign URLs with the current one of several keys, and verify with those whose URLs can still be good."""

    current: int
    secrets: Mapping[int, bytes] = field(repr=False)

    @classmethod
    def of(cls, keys: Sequence[SigningKey], *, now: datetime) -> Signer:
        """The signer that a store's keys, oldest first, make at an instant."""
        settled = [key for key in keys if key.created_at + timedelta(seconds=SETTLE_SECONDS) <= now] or [keys[0]]
        only = max((key.id for key in settled if key.is_only), default=0)
        outlived = timedelta(seconds=SETTLE_SECONDS + MAX_LIFETIME_SECONDS)
        replaced = max((key.id for key in settled if key.created_at + outlived <= now), default=0)
        return cls(settled[-1].id, {key.id: key.secret for key in keys if key.id >= max(only, replaced)})

    def knows(self, parameters: Mapping[str, str]) -> bool:
        """Whether the key that a signature names is known here."""
        return _key_id(parameters.get("signature", "")) in self.secrets

    def query(self, subject: Signed, *, expires: int, rights: Iterable[Right] = (Right.READ,)) -> str:
        """The query string that permits `rights` on a generation's two streams, or on a stream, until unix second
        `expires`. `rights` stands in it unless it is reading alone, `tenant` unless it is the default one."""
        text = _rights_text(rights)
        parameters = {"expires": str(expires), "signature": self._signature(self.current, subject, text, str(expires))}
        if isinstance(subject, GenerationKey):
            parameters |= {"sessionId": subject.session_id, "requestId": subject.request_id}
        if text != _READ_ONLY:
            parameters["rights"] = text
        if subject.tenant != DEFAULT_TENANT:
            parameters["tenant"] = subject.tenant
        return urlencode(sorted(parameters.items()))

    def check(
        self, subject: Signed, parameters: Mapping[str, str], *, now: float, right: Right = Right.READ
    ) -> SignatureProblem | None:
        """Why the parameters do not permit `right` now, or None when they do."""
        signature, expires = parameters.get("signature"), parameters.get("expires")
        rights = parameters.get("rights", _READ_ONLY)
        if signature is None and expires is None:
            return SignatureProblem.MISSING
        if (
            signature is None
            or expires is None
            or not _EXPIRES.fullmatch(expires)
            or len(signature) > _MAX_SIGNATURE_CHARACTERS
            or len(rights) > _MAX_RIGHTS_CHARACTERS
        ):
            return SignatureProblem.INVALID
        key_id = _key_id(signature)
        if key_id is None or key_id not in self.secrets:
            return SignatureProblem.INVALID
        # Over the text as it stands, so that no other spelling of the same number passes.
        expected = self._signature(key_id, subject, rights, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            return SignatureProblem.INVALID
        if right not in rights.split("."):
            return SignatureProblem.INVALID
        return SignatureProblem.EXPIRED if now >= int(expires) else None

    def _signature(self, key_id: int, subject: Signed, rights: str, expires: str) -> str:
        parts = (str(key_id), subject.tenant, *_name(subject), rights, expires)
        text = "".join(f"{len(part.encode())}:{part}" for part in parts)
        digest = hmac.digest(self.secrets[key_id], text.encode(), "sha256")
        return f"{key_id}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def _name(subject: Signed) -> tuple[str, ...]:
    """What is addressed, within its tenant. A generation has two parts and a stream one, so neither passes for the other."""
    if isinstance(subject, GenerationKey):
        return subject.session_id, subject.request_id
    return (subject.path,)


def _key_id(signature: str) -> int | None:
    number = signature.partition(".")[0]
    return int(number) if _NUMBER.fullmatch(number) else None


def _rights_text(rights: Iterable[Right]) -> str:
    return ".".join(sorted(set(rights)))
