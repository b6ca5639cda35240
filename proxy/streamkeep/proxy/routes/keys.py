"""Keys for operators: list, make and revoke; and for everybody, whose key this is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from streamkeep.proxy.errors import problem
from streamkeep.proxy.keys_command import key_template, make_key
from streamkeep.proxy.rules.key_requests import MAX_BODY_BYTES, KeyRequest
from streamkeep.proxy.rules.stream_headers import format_timestamp
from streamkeep.proxy.service import Service
from streamkeep.storage import ApiKey

_PREFIX = "stk_"


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/api", tags=["keys"])

    @routes.get("/whoami", summary="In whose name a request acts, and what it may do")
    async def whoami(request: Request) -> JSONResponse:
        principal = await service.access.principal(request.scope)
        return _json(
            {
                "tenant": principal.tenant,
                "keyId": principal.key_id,
                "subject": principal.subject,
                "isOperator": principal.is_operator,
                "isOpen": await service.access.is_open(),
                "maxRunning": principal.limits.max_running or service.settings.max_running,
                "maxPerMinute": principal.limits.max_per_minute or service.settings.max_per_minute,
                "upstreams": principal.upstreams,
            }
        )

    @routes.get("/keys", summary="All API keys, oldest first; their secrets are not known here")
    async def keys(request: Request) -> JSONResponse:
        await service.access.check_operator(request.scope)
        now = datetime.now(UTC)
        return _json({"keys": [_key(key, now) for key in await service.store.keys.all()]})

    @routes.post("/keys", summary="Make an API key; the answer alone shows it whole", status_code=201)
    async def create(request: Request) -> JSONResponse:
        await service.access.check_operator(request.scope)
        wanted = KeyRequest.parse(await _body(request))
        if not wanted.is_operator and await service.access.is_open():
            # It would lock out whoever made it, and with them everybody who could make another.
            raise problem(409, "first_key", "the first key ends development mode, and must be an operator's")
        template = replace(
            key_template(wanted.tenant, name=wanted.name, is_operator=wanted.is_operator),
            upstreams=wanted.upstreams,
            max_running=wanted.max_running,
            max_per_minute=wanted.max_per_minute,
            expires_at=wanted.expires_at(datetime.now(UTC)),
        )
        return _json({"key": await make_key(service.store.keys, template)}, status=201)

    @routes.post("/keys/{id}/revoke", summary="Make an API key useless, on every server within five seconds")
    async def revoke(request: Request, id: str = Path(description="`stk_…`, without the secret")) -> JSONResponse:
        await service.access.check_operator(request.scope)
        key = await service.store.keys.revoke(id.removeprefix(_PREFIX)) if id.isprintable() else None
        if key is None:
            raise problem(404, "not_found", "there is no such key")
        return _json(_key(key, datetime.now(UTC)))

    return routes


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async for data in request.stream():
            body += data
            if len(body) > MAX_BODY_BYTES:
                raise problem(413, "body_too_large", f"the body may have up to {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        raise problem(400, "incomplete_body", "the body was cut short") from None
    return body


def _key(key: ApiKey, now: datetime) -> dict[str, Any]:
    state = "expired" if key.expires_at is not None and key.expires_at <= now else "active"
    return {
        "id": _PREFIX + key.id,
        "tenant": key.tenant,
        "name": key.name,
        "isOperator": key.is_operator,
        "upstreams": key.upstreams,
        "maxRunning": key.max_running,
        "maxPerMinute": key.max_per_minute,
        "createdAt": format_timestamp(key.created_at),
        "expiresAt": key.expires_at and format_timestamp(key.expires_at),
        "state": state if key.revoked_at is None else "revoked",
    }


def _json(value: object, status: int = 200) -> JSONResponse:
    return JSONResponse(value, status_code=status, headers={"Cache-Control": "no-store"})
