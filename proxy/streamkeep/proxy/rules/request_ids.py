"""Which generation a plain HTTP request means: its ids, from headers that SDKs and gateways send anyway.

The same ids with the same request join or replay, so a retry with the same `Idempotency-Key` is never a second call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.wire import BadRequest

_DIGEST_CHARACTERS = 40


def ids_of(headers: Mapping[str, str | None], *, otherwise: str) -> tuple[str, str]:
    """Session and request id. The request's is `Idempotency-Key`, else `X-Request-ID`, else `otherwise`; a key that cannot
    be an id becomes a digest. Without `X-Session-ID` the request is a session of its own.

    Raises:
        BadRequest: the session id cannot be one.
    """
    key = headers[wire.IDEMPOTENCY_KEY] or headers[wire.REQUEST_ID]
    request_id = _request_id(key) if key else otherwise
    session_id = headers[wire.SESSION_ID]
    return (wire.check_session_id(session_id) if session_id else request_id), request_id


def _request_id(key: str) -> str:
    try:
        return wire.check_request_id(key)
    except BadRequest:
        return f"key-{hashlib.sha256(key.encode()).hexdigest()[:_DIGEST_CHARACTERS]}"
