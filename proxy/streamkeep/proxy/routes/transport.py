"""The transport API: create a generation, find it, cancel it (design, Interfaces)."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi, deletion
from streamkeep.proxy.attempts import NOT_UPSTREAMS
from streamkeep.proxy.errors import ApiError, not_found, problem
from streamkeep.proxy.forwarding import Destination
from streamkeep.proxy.long_json import long_json
from streamkeep.proxy.request_body import CallerLeft
from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.access import Credentials, Principal, Right
from streamkeep.proxy.rules.signing import is_signed
from streamkeep.proxy.service import Service
from streamkeep.storage import Code, Erasure, Generation, GenerationKey, Refusal, SessionKey, SessionNotFound, State

# Longer than an owner takes to stop, anywhere.
_DELETE_SECONDS = 5.0

# What the creation of a generation that never got upstream's verdict is answered with, by how it ended.
_STATUS_WITHOUT_VERDICT = {
    Code.CANCELLED: 409,
    Code.TIMED_OUT: 504,
    Code.STALLED: 504,
    Code.STORAGE_UNAVAILABLE: 503,
    Code.SHUTDOWN: 503,
}

SessionId = Annotated[str, Path(description="The chat: `[A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}`")]
RequestId = Annotated[str, Path(description="One call in it; same form, and not `active`")]


class CreateGeneration:
    """`POST /api/{session_id}/{request_id}`: forward the request, and answer as soon as upstream has accepted it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = await self._service.access.principal(scope, Credentials.VENDORS)
        ids = scope["path_params"]
        key = _key(principal.tenant, ids["session_id"], ids["request_id"])
        headers = wire.single_headers(
            scope["headers"], (wire.PROXY_URL, wire.PROXY_METHOD, wire.RESUME_ACTIVE_GENERATION)
        )
        if wire.is_resume(headers[wire.RESUME_ACTIVE_GENERATION]):
            await self._resume(key, scope, send)
            return
        method = wire.upstream_method(headers[wire.PROXY_METHOD])
        destination = self._destination(principal, headers[wire.PROXY_URL])
        try:
            row, is_replay = await self._service.forwarder.forward(principal, key, method, destination, scope, receive)
        except CallerLeft:
            return
        await self._answer(row, scope, send, is_replay=is_replay)

    async def _resume(self, key: GenerationKey, scope: Scope, send: Send) -> None:
        row = await self._service.generations.resumable(key)
        if row is None:
            await asgi.answer(send, 204, b"", [asgi.NO_STORE])
        else:
            await self._answer_found(row, scope, send, is_replay=True)

    def _destination(self, principal: Principal, url: str | None) -> Destination:
        if url is None or not url.strip():
            raise problem(400, "missing_upstream_url", f"the header {wire.PROXY_URL} names the URL to call")
        return self._service.forwarder.allowed(principal, url.strip())

    async def _answer(self, row: Generation, scope: Scope, send: Send, *, is_replay: bool) -> None:
        if row.state is State.REFUSED and row.refusal is not None:
            await answer_refusal(row.refusal, send)
        elif row.head is None:
            raise without_verdict(row, self._service, scope)
        else:
            await self._answer_found(row, scope, send, is_replay=is_replay)

    async def _answer_found(self, row: Generation, scope: Scope, send: Send, *, is_replay: bool) -> None:
        headers = [(wire.SESSION_ID, row.key.session_id), (wire.REQUEST_ID, row.key.request_id)]
        if is_replay:
            headers.append((wire.REPLAYED, "true"))
        await asgi.answer_json(send, 200, describe(row, self._service, scope), headers)


def describe(row: Generation, service: Service, scope: Scope) -> dict[str, Any]:
    """A generation as the API shows it, with URLs that are signed anew; that of the data leads to the view asked for."""
    base = asgi.base_url(scope, service.settings.public_url)
    query = service.access.signed_query(row.key)
    view = wire.view_header(scope["headers"])
    found: dict[str, Any] = {
        "sessionId": row.key.session_id,
        "requestId": row.key.request_id,
        "streamUrl": f"{base}/stream/data?{query if view is None else f'as={view}&{query}'}",
        "controlUrl": f"{base}/stream/control?{query}",
        "state": row.state.value,
        "createdAt": row.created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    head = row.head
    # Where there is none the field is absent: clients that check its type take no null.
    if head is not None and head.content_type is not None:
        found["contentType"] = head.content_type
    found["upstreamStatus"] = head and head.status
    found["upstreamHeaders"] = {}
    if head is not None:
        for name, value in head.headers:
            known = found["upstreamHeaders"].get(name)
            found["upstreamHeaders"][name] = value if known is None else f"{known}, {value}"
        if head.content_encoding is not None:
            found["upstreamHeaders"]["content-encoding"] = head.content_encoding
    found["retentionSeconds"] = (
        service.settings.retention_seconds if row.retention_seconds is None else row.retention_seconds
    )
    if row.code is not None:
        found["code"] = row.code
    return found


def without_verdict(row: Generation, service: Service, scope: Scope) -> ApiError:
    """The call ended before upstream answered, or the answer never came: it is not repeated."""
    code = Code(row.code) if row.code else Code.OWNER_LOST
    found = describe(row, service, scope)
    extra = {name: found[name] for name in ("sessionId", "requestId", "streamUrl", "controlUrl", "state")}
    message = row.message or "the call ended before upstream answered; use new ids to call again"
    return problem(_STATUS_WITHOUT_VERDICT.get(code, 502), code.value, message, extra=extra)


async def answer_refusal(refusal: Refusal, send: Send) -> None:
    """Upstream's error as it came, or ours. Raises: ApiError."""
    head = refusal.head
    if head.status == NOT_UPSTREAMS:
        ours = json.loads(refusal.body)
        raise problem(ours["status"], ours["error"], ours["message"])
    headers = [*head.headers, asgi.NO_STORE, asgi.SANDBOX, (wire.UPSTREAM_STATUS, str(head.status))]
    if head.content_type is not None:
        headers.append(("Content-Type", head.content_type))
    if head.content_encoding is not None:
        headers.append(("Content-Encoding", head.content_encoding))
    await asgi.answer(send, head.status, refusal.body, headers)


def _key(tenant: str, session_id: str, request_id: str) -> GenerationKey:
    return GenerationKey(
        wire.check_tenant(tenant), wire.check_session_id(session_id), wire.check_request_id(request_id)
    )


def router(service: Service) -> APIRouter:
    """The management routes of the transport."""
    routes = APIRouter(prefix="/api", tags=["transport"])

    @routes.get("/{session_id}/active", summary="A session's running generations, and those that ended within the hour")
    async def active(session_id: SessionId, request: Request) -> StreamingResponse:
        principal = await service.access.principal(request.scope)
        rows = await service.generations.active(principal.tenant, wire.check_session_id(session_id))
        return await long_json(describe(row, service, request.scope) for row in rows)

    @routes.get("/{session_id}/{request_id}", summary="A generation, with fresh URLs")
    async def generation(session_id: SessionId, request_id: RequestId, request: Request) -> JSONResponse:
        principal = await service.access.principal(request.scope)
        row = await service.generations.find(_key(principal.tenant, session_id, request_id))
        return _json(describe(row, service, request.scope))

    @routes.post("/{session_id}/{request_id}/cancel", summary="Stop the upstream call; every reader sees it")
    async def cancel(session_id: SessionId, request_id: RequestId, request: Request) -> JSONResponse:
        parameters = wire.single_parameters(request.scope["query_string"])
        permit = await service.access.permit(
            request.scope,
            parameters,
            Right.CANCEL,
            lambda tenant: _key(tenant, session_id, request_id),
        )
        key = permit.key
        if not is_signed(parameters) and parameters.get("tenant", key.tenant) != key.tenant:
            await service.access.check_operator(request.scope)
            key = _key(parameters["tenant"], session_id, request_id)
        return _json({"state": await service.generations.cancel(key)})

    @routes.delete("/{session_id}/{request_id}", summary="Delete a generation's data, now and for good")
    async def delete_generation(session_id: SessionId, request_id: RequestId, request: Request) -> JSONResponse:
        principal = await service.access.principal(request.scope)
        key = _key(principal.tenant, session_id, request_id)
        if await service.store.generation(key) is None:
            raise not_found()
        return await _delete(service, Erasure.of(key), state="deleted")

    @routes.delete("/{session_id}", summary="Delete the data of all of a session's generations, now and for good")
    async def delete_session(session_id: SessionId, request: Request) -> JSONResponse:
        principal = await service.access.principal(request.scope)
        key = SessionKey(principal.tenant, wire.check_session_id(session_id))
        with suppress(SessionNotFound):
            await service.sessions.delete_stream(key)
        return await _delete(service, Erasure(key.tenant, key.id))

    return routes


async def _delete(service: Service, what: Erasure, **found: str) -> JSONResponse:
    deleted = await deletion.delete(service.store, what, within_seconds=_DELETE_SECONDS)
    service.registry.streams_changed()
    counts = {"generations": deleted.generations, "rowsRemaining": deleted.rows_remaining}
    return _json({**found, **counts}, status=202 if deleted.rows_remaining else 200)


def _json(value: object, status: int = 200) -> JSONResponse:
    return JSONResponse(value, status_code=status, headers={"Cache-Control": "no-store"})
