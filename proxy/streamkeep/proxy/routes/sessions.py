"""`/v1/sessions/…`: durable sessions. What becomes of a request is in `sessions.py`, and what it may say under `rules/`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from streamkeep.proxy import asgi
from streamkeep.proxy.errors import problem
from streamkeep.proxy.long_json import long_json
from streamkeep.proxy.request_body import CallerLeft, WholeBody
from streamkeep.proxy.rules import stream_paths, wire
from streamkeep.proxy.rules.access import Principal
from streamkeep.proxy.rules.session_bodies import MAX_BODY_BYTES, Fields, check_actor_id
from streamkeep.proxy.rules.session_requests import (
    Actor,
    MessagesQuery,
    NewAgents,
    NewApproval,
    NewFork,
    NewMessage,
    NewPresence,
    NewSession,
    NewToolResult,
    Regeneration,
    SessionsQuery,
    actor_of,
    new_name,
    own_actor_id,
    stop_request,
)
from streamkeep.proxy.rules.stream_headers import format_timestamp
from streamkeep.proxy.service import Service
from streamkeep.proxy.session_streams import stream_of
from streamkeep.proxy.sessions import Found, Written
from streamkeep.sessions import SessionFold, as_json
from streamkeep.sessions.comparison import compared
from streamkeep.storage import SessionKey, SessionRecord

T = TypeVar("T")

# Hostile JSON of this size takes some ten milliseconds.
_MAX_PARSED_AT_ONCE_BYTES = 64 * 1024

SessionId = Annotated[str, Path(description="The session: `[A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}`")]


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1/sessions", tags=["sessions"])
    _add_session(routes, service)
    _add_writes(routes, service)
    _add_agents(routes, service)
    _add_views(routes, service)
    return routes


def _add_session(routes: APIRouter, service: Service) -> None:
    @routes.get("", summary="Sessions, newest first, by a text in their ids and names")
    async def sessions(request: Request) -> JSONResponse:
        principal = await service.access.principal(request.scope)
        query = SessionsQuery.parse(wire.single_parameters(request.scope["query_string"]))
        page = await service.store.sessions.page(
            principal.tenant, text=query.search, before=query.before, limit=query.limit
        )
        rows = [_record(row) for row in page.rows]
        return _json({"sessions": rows, "next": None if page.next_before is None else str(page.next_before)})

    @routes.put("/{session_id}", summary="Make a session, or find it")
    async def create(session_id: SessionId, request: Request) -> JSONResponse:
        _, key = await _permitted(service, session_id, request)
        wanted = await _wanted(service, request, NewSession.parse)
        record, is_new = await service.sessions.create(key, wanted.name)
        return _json(_session(record, service, request), status=201 if is_new else 200)

    @routes.get("/{session_id}", summary="A session: its name, its stream, and counts")
    async def session(session_id: SessionId, request: Request) -> JSONResponse:
        _, key = await _permitted(service, session_id, request)
        found = await service.sessions.find(key)
        return _json(_session(found.record, service, request) | _told(found.fold))

    @routes.patch("/{session_id}", summary="Give a session another name")
    async def rename(session_id: SessionId, request: Request) -> JSONResponse:
        _, key = await _permitted(service, session_id, request)
        name, txid = await _wanted(service, request, new_name)
        return _json(_session(await service.sessions.rename(key, name, txid), service, request))

    @routes.delete("/{session_id}", summary="Delete a session with its stream and its generations", status_code=204)
    async def delete(session_id: SessionId, request: Request) -> Response:
        _, key = await _permitted(service, session_id, request)
        return _empty(202 if await service.sessions.delete(key) else 204)

    @routes.post("/{session_id}/fork", summary="A new session with this one's history", status_code=201)
    async def fork(session_id: SessionId, request: Request) -> JSONResponse:
        _, key = await _permitted(service, session_id, request)
        wanted = await _wanted(service, request, NewFork.parse)
        record, offset = await service.sessions.fork(key, wanted)
        return _json(_session(record, service, request) | {"offset": offset}, status=201)


def _add_writes(routes: APIRouter, service: Service) -> None:
    @routes.post("/{session_id}/messages", summary="Write a message, and call the agents that answer it")
    async def send(session_id: SessionId, request: Request) -> JSONResponse:
        principal, key = await _permitted(service, session_id, request)
        wanted = await _wanted(service, request, NewMessage.parse)
        return _written(await service.sessions.send(key, wanted, _actor(wanted.fields, request, principal), principal))

    @routes.post("/{session_id}/regenerate", summary="Have the answers from a message on written anew")
    async def regenerate(session_id: SessionId, request: Request) -> JSONResponse:
        principal, key = await _permitted(service, session_id, request)
        wanted = await _wanted(service, request, Regeneration.parse)
        actor = _actor(wanted.fields, request, principal)
        return _written(await service.sessions.regenerate(key, wanted, actor, principal))

    @routes.post("/{session_id}/stop", summary="Stop the answers under way, or one of them", status_code=204)
    async def stop(session_id: SessionId, request: Request) -> Response:
        _, key = await _permitted(service, session_id, request)
        message_id = await _wanted(service, request, stop_request)
        await service.sessions.stop(key, message_id)
        return _empty()

    @routes.post("/{session_id}/tool-results", summary="Tell what a tool gave that ran here", status_code=204)
    async def tool_result(session_id: SessionId, request: Request) -> Response:
        principal, key = await _permitted(service, session_id, request)
        wanted = await _wanted(service, request, NewToolResult.parse)
        actor = _actor(wanted.fields, request, principal)
        return _empty(offset=await service.sessions.answer_tool_call(key, wanted, actor))

    @routes.post(
        "/{session_id}/approvals/{approval_id:anything}", summary="Approve of a tool call, or not", status_code=204
    )
    async def approve(session_id: SessionId, approval_id: str, request: Request) -> Response:
        principal, key = await _permitted(service, session_id, request)
        wanted = await _wanted(service, request, NewApproval.parse)
        actor = _actor(wanted.fields, request, principal)
        return _empty(offset=await service.sessions.answer_approval(key, approval_id, wanted, actor))

    @routes.put("/{session_id}/presence/{actor_id:anything}", summary="Say that an actor is there", status_code=204)
    async def be_present(session_id: SessionId, actor_id: str, request: Request) -> Response:
        principal, key = await _permitted(service, session_id, request)
        own_actor_id(check_actor_id(actor_id), principal)
        wanted = await _wanted(service, request, NewPresence.parse)
        return _empty(offset=await service.sessions.be_present(key, actor_id, wanted))

    @routes.delete("/{session_id}/presence/{actor_id:anything}", summary="Say that an actor has left", status_code=204)
    async def leave(session_id: SessionId, actor_id: str, request: Request) -> Response:
        principal, key = await _permitted(service, session_id, request)
        own_actor_id(check_actor_id(actor_id), principal)
        await service.sessions.leave(key, actor_id)
        return _empty()


def _add_agents(routes: APIRouter, service: Service) -> None:
    @routes.get("/{session_id}/agents", summary="The agents of a session, without their secrets")
    async def agents(session_id: SessionId, request: Request) -> JSONResponse:
        _, key = await _permitted(service, session_id, request)
        book = await service.sessions.agents(key)
        return _json({"agents": [spec.shown() for spec in book.registered]})

    @routes.post("/{session_id}/agents", summary="Have agents take part")
    async def register(session_id: SessionId, request: Request) -> JSONResponse:
        principal, key = await _permitted(service, session_id, request)
        wanted = await _wanted(service, request, NewAgents.parse)
        await service.sessions.register(key, wanted.agents, wanted.txid, principal)
        return _json({"success": True})

    @routes.delete("/{session_id}/agents/{agent_id}", summary="Have an agent take part no more", status_code=204)
    async def unregister(session_id: SessionId, agent_id: str, request: Request) -> Response:
        _, key = await _permitted(service, session_id, request)
        await service.sessions.unregister(key, agent_id)
        return _empty()


def _add_views(routes: APIRouter, service: Service) -> None:
    @routes.get("/{session_id}/messages", summary="Messages, as the session's events make them")
    async def messages(session_id: SessionId, request: Request) -> StreamingResponse:
        _, key = await _permitted(service, session_id, request)
        query = MessagesQuery.parse(wire.single_parameters(request.scope["query_string"]))
        fold = (await service.sessions.find(key)).fold
        ids = fold.message_ids
        if query.before is not None:
            if query.before not in ids:
                raise problem(404, "message_not_found", "the session has no such message")
            ids = ids[: ids.index(query.before)]
        page = ids[-query.limit :]
        before = page[0] if len(page) < len(ids) else None
        found = tuple(fold.message(message_id) for message_id in page)
        return await long_json({"messages": found, "before": before, "offset": fold.offset})

    @routes.get("/{session_id}/compare/{other_id}", summary="What two sessions have in common, and what each has alone")
    async def compare(session_id: SessionId, other_id: str, request: Request) -> StreamingResponse:
        principal, key = await _permitted(service, session_id, request)
        other = SessionKey(principal.tenant, wire.check_session_id(other_id))
        ours = (await service.sessions.view(key)).fold.messages
        theirs = (await service.sessions.view(other)).fold.messages
        found = await asyncio.to_thread(compared, ours, theirs)
        return await long_json({"sessionId": key.id, "otherId": other.id, **found})

    @routes.get("/{session_id}/export", summary="All of a session as one JSON document")
    async def export(session_id: SessionId, request: Request) -> StreamingResponse:
        _, key = await _permitted(service, session_id, request)
        return await long_json(_exported(await service.sessions.view(key), service, request))


async def _permitted(service: Service, session_id: str, request: Request) -> tuple[Principal, SessionKey]:
    """In whose name a request acts, and the session of that tenant. Raises: ApiError, BadRequest."""
    principal = await service.access.principal(request.scope)
    return principal, SessionKey(principal.tenant, wire.check_session_id(session_id))


async def _wanted(service: Service, request: Request, parse: Callable[[bytes], T]) -> T:
    """What a request's body says; a large one is read while the loop goes on. Raises: ApiError, BadRequest."""
    try:
        async with WholeBody(request.receive, service.body_budget, max_bytes=MAX_BODY_BYTES) as body:
            if len(body) <= _MAX_PARSED_AT_ONCE_BYTES:
                return parse(body)
            return await asyncio.to_thread(parse, body)
    except CallerLeft:
        raise problem(400, "incomplete_body", "the body was cut short") from None


def _actor(fields: Fields, request: Request, principal: Principal) -> Actor:
    header = wire.single_headers(request.scope["headers"], (wire.ACTOR_ID,))[wire.ACTOR_ID]
    return actor_of(fields, header, principal, str(uuid.uuid4()))


def _session(record: SessionRecord, service: Service, request: Request) -> dict[str, Any]:
    base = asgi.base_url(request.scope, service.settings.public_url)
    return _record(record) | {"streamUrl": base + stream_paths.url_path(stream_of(record.key).path)}


def _record(record: SessionRecord) -> dict[str, Any]:
    return {
        "sessionId": record.key.id,
        "name": record.name,
        "createdAt": format_timestamp(record.created_at),
        "updatedAt": format_timestamp(record.updated_at),
    }


def _told(fold: SessionFold) -> dict[str, Any]:
    origin = None if fold.session is None else fold.session.forked_from
    return {"forkedFrom": as_json(origin), "statistics": as_json(fold.statistics), "offset": fold.offset}


def _exported(found: Found, service: Service, request: Request) -> dict[str, Any]:
    """All that the session is at this moment, as `long_json` takes it."""
    fold = found.fold
    views: dict[str, Any] = {
        "messages": fold.messages,
        "toolCalls": fold.tool_calls,
        "approvals": fold.approvals,
        "turns": fold.turns,
        "agents": fold.agents,
        "participants": fold.participants,
        "presence": fold.presence,
    }
    return _session(found.record, service, request) | _told(fold) | views


def _written(written: Written) -> JSONResponse:
    turns = [{"turnId": one.id, "agentId": one.agent_id, "messageId": one.message_id} for one in written.turns]
    return _json({"messageId": written.message_id, "turns": turns, "offset": written.offset})


def _json(value: object, status: int = 200) -> JSONResponse:
    return JSONResponse(value, status_code=status, headers={"Cache-Control": "no-store"})


def _empty(status: int = 204, *, offset: str | None = None) -> Response:
    headers = {"Cache-Control": "no-store"} | ({} if offset is None else {wire.NEXT_OFFSET: offset})
    return Response(status_code=status, headers=headers)
