"""CORS for every route, streams included: pure ASGI, nothing buffered (design, Interfaces)."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.rules import wire

_METHODS = "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"
_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "If-None-Match",
    wire.IDEMPOTENCY_KEY,
    "Streamkeep-Key",
    wire.UPSTREAM_URL,
    wire.UPSTREAM_METHOD,
    wire.UPSTREAM_AUTHORIZATION,
    wire.SIGNED_URL_TTL,
    wire.PROXY_URL,
    wire.PROXY_METHOD,
    wire.SESSION_ID,
    wire.REQUEST_ID,
    wire.VIEW,
    wire.RESUME_ACTIVE_GENERATION,
    wire.REPLAY_FROM_START,
    wire.ACTIVE_GENERATION_TTL,
    wire.LAST_EVENT_ID,
    wire.CLOSED,
    wire.STREAM_TTL,
    wire.STREAM_EXPIRES_AT,
    wire.STREAM_SEQ,
    wire.FORKED_FROM,
    wire.FORK_OFFSET,
    wire.FORK_SUB_OFFSET,
    wire.PRODUCER_ID,
    wire.PRODUCER_EPOCH,
    wire.PRODUCER_SEQ,
    wire.ON_DISCONNECT,
    wire.TIMEOUT,
    wire.ACTOR_ID,
    "X-Actor-Type",
    wire.SCHEMA,
)
# Browsers read `*` as a wildcard for requests without credentials; the list serves all others. It cannot name every
# upstream's headers, so those that this answer carries are added to it.
_EXPOSED = (
    "Content-Encoding",
    "Content-Type",
    "ETag",
    "Link",
    "Location",
    "Retry-After",
    wire.SESSION_ID,
    wire.REQUEST_ID,
    wire.NEXT_OFFSET,
    wire.UP_TO_DATE,
    wire.CLOSED,
    wire.CURSOR,
    wire.SSE_DATA_ENCODING,
    wire.STREAM_TTL,
    wire.STREAM_EXPIRES_AT,
    wire.PRODUCER_EPOCH,
    wire.PRODUCER_SEQ,
    wire.PRODUCER_EXPECTED_SEQ,
    wire.PRODUCER_RECEIVED_SEQ,
    wire.UPSTREAM_STATUS,
    wire.UPSTREAM_CONTENT_TYPE,
    wire.UPSTREAM_CONTENT_ENCODING,
    wire.REPLAYED,
    wire.STREAM_URL,
    wire.CONTROL_URL,
    wire.RECORDED_AS,
)
_ALWAYS_EXPOSED = b", ".join([b"*", *(name.encode() for name in _EXPOSED)])
_NEVER_ADDED = frozenset(
    [
        *(b"vary", b"date", b"server", b"content-length", b"cache-control", b"set-cookie"),
        *(name for name, _ in asgi.SECURITY_HEADERS),
        *(name.lower().encode() for name in _EXPOSED),
    ]
)
_MAX_AGE_SECONDS = 600


class Cors:
    """Answer preflights and add the headers; `origins` are exact origins, or `*` for any. No credentials."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._any_origin = "*" in origins
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        allowed = self._allowed(scope)
        if scope["method"] == "OPTIONS":
            await self._preflight(asgi.header(scope, b"access-control-request-headers"), allowed, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers(message["headers"], allowed)]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _allowed(self, scope: Scope) -> bytes | None:
        if self._any_origin:
            return b"*"
        origin = asgi.header(scope, b"origin")
        return origin.encode("latin-1") if origin is not None and origin in self._origins else None

    def _headers(self, answered: list[tuple[bytes, bytes]], allowed: bytes | None) -> list[tuple[bytes, bytes]]:
        vary = [] if self._any_origin else [(b"vary", b"Origin")]
        if allowed is None:
            return vary
        more = {name for name, _ in answered if name not in _NEVER_ADDED}
        exposed = b", ".join([_ALWAYS_EXPOSED, *sorted(more)]) if more else _ALWAYS_EXPOSED
        return [(b"access-control-allow-origin", allowed), (b"access-control-expose-headers", exposed), *vary]

    async def _preflight(self, asked: str | None, allowed: bytes | None, send: Send) -> None:
        headers = [(b"allow", _METHODS.encode()), *asgi.SECURITY_HEADERS]
        if allowed is not None:
            headers += [
                (b"access-control-allow-origin", allowed),
                (b"access-control-allow-methods", _METHODS.encode()),
                (b"access-control-allow-headers", self._allow_headers(asked)),
                (b"access-control-max-age", str(_MAX_AGE_SECONDS).encode()),
                (b"vary", b"Origin, Access-Control-Request-Headers"),
            ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _allow_headers(self, asked: str | None) -> bytes:
        """Our own, and those that the page asks for: an SDK's headers travel on to upstream."""
        names = [name.strip() for name in (asked or "")[:4096].encode("latin-1").split(b",")]
        ours = {name.lower().encode() for name in _REQUEST_HEADERS}
        more = [name for name in names if name and name.lower() not in ours and _is_token(name)]
        return b", ".join([*(name.encode() for name in _REQUEST_HEADERS), *more])


def _is_token(name: bytes) -> bool:
    return all(c in b"!#$%&'*+-.^_`|~" or 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 for c in name)
