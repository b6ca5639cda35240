"""Signed URLs: who holds one may do what it says until it expires (design, Decided).

The signature covers tenant, session, request, permission and expiry, each preceded by its length, so that no two
different grants have the same text. It begins with the number of the scheme, for keys to be rotated later.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlencode

from streamkeep.storage import DEFAULT_TENANT, GenerationKey

_SCHEME = "1"
_EXPIRES = re.compile(r"[0-9]{1,12}")
_MAX_SIGNATURE_CHARACTERS = 128


class SignatureProblem(StrEnum):
    """Why a signed URL is refused; the values are the error codes."""

    MISSING = "signature_missing"
    INVALID = "signature_invalid"
    EXPIRED = "signature_expired"


class Permission(StrEnum):
    READ = "read"


@dataclass(frozen=True, slots=True)
class Signer:
    """Sign URLs for generations' streams with one secret key."""

    key: bytes

    def query(self, generation: GenerationKey, *, expires: int, permission: Permission = Permission.READ) -> str:
        """The query string that grants `permission` on a generation's two streams until unix second `expires`."""
        parameters = {
            "sessionId": generation.session_id,
            "requestId": generation.request_id,
            "expires": str(expires),
            "signature": self._signature(generation, permission, expires),
        }
        if generation.tenant != DEFAULT_TENANT:
            parameters["tenant"] = generation.tenant
        return urlencode(sorted(parameters.items()))

    def check(
        self,
        generation: GenerationKey,
        parameters: Mapping[str, str],
        *,
        now: float,
        permission: Permission = Permission.READ,
    ) -> SignatureProblem | None:
        """Why the parameters do not grant `permission` now, or None when they do."""
        signature, expires = parameters.get("signature"), parameters.get("expires")
        if signature is None and expires is None:
            return SignatureProblem.MISSING
        if (
            signature is None
            or expires is None
            or not _EXPIRES.fullmatch(expires)
            or len(signature) > _MAX_SIGNATURE_CHARACTERS
        ):
            return SignatureProblem.INVALID
        expected = self._signature(generation, permission, int(expires))
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            return SignatureProblem.INVALID
        return SignatureProblem.EXPIRED if now >= int(expires) else None

    def _signature(self, generation: GenerationKey, permission: Permission, expires: int) -> str:
        parts = (_SCHEME, generation.tenant, generation.session_id, generation.request_id, permission, str(expires))
        text = "".join(f"{len(part.encode())}:{part}" for part in parts)
        digest = hmac.new(self.key, text.encode(), hashlib.sha256).digest()
        return f"{_SCHEME}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
