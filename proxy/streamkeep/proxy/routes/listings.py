"""Listings of generations, sessions and streams, page by page, for people and for scripts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.listing import ListingQuery, StreamQuery
from streamkeep.proxy.rules.stream_headers import format_timestamp
from streamkeep.proxy.service import Service
from streamkeep.storage import Generation, Session, StreamInfo, Tail, Usage


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/api", tags=["listings"])

    @routes.get("/generations", summary="Generations, newest first: what runs, and what ran")
    async def generations(request: Request) -> JSONResponse:
        query = await _query(service, request)
        page = await service.store.list_generations(query.wanted, before=query.before, limit=query.limit)
        tails = await service.store.tails([row.data_stream for row in page.rows]) if page.rows else {}
        rows = [_generation(row, tails.get(row.data_stream), service) for row in page.rows]
        return _page("generations", rows, page.next_before)

    @routes.get("/sessions", summary="Sessions, by their newest generation")
    async def sessions(request: Request) -> JSONResponse:
        query = await _query(service, request)
        page = await service.store.list_sessions(query.wanted, before=query.before, limit=query.limit)
        return _page("sessions", [_session(row) for row in page.rows], page.next_before)

    @routes.get("/streams", summary="Streams of the open protocol, by path")
    async def streams(request: Request) -> JSONResponse:
        principal = await service.access.principal(request.scope)
        query = StreamQuery.parse(wire.single_parameters(request.scope["query_string"]))
        found = await service.store.list_streams(
            principal.tenant, prefix=query.prefix, after=query.after, limit=query.limit
        )
        is_full = len(found) == query.limit
        return _page("streams", [_stream(row) for row in found], found[-1].key.path if is_full else None)

    return routes


async def _query(service: Service, request: Request) -> ListingQuery:
    principal = await service.access.principal(request.scope)
    return ListingQuery.parse(wire.single_parameters(request.scope["query_string"]), principal)


def _page(name: str, rows: list[dict[str, Any]], next_page: object | None) -> JSONResponse:
    found = {name: rows, "next": None if next_page is None else str(next_page)}
    return JSONResponse(found, headers={"Cache-Control": "no-store"})


def _generation(row: Generation, tail: Tail | None, service: Service) -> dict[str, Any]:
    """A row without its URLs: those are signed one by one, when they are asked for. Readers are those of this process."""
    chunks = service.generations.chunks_so_far(row)
    return {
        "tenant": row.key.tenant,
        "sessionId": row.key.session_id,
        "requestId": row.key.request_id,
        "state": row.state.value,
        "code": row.code,
        "createdAt": format_timestamp(row.created_at),
        "endedAt": row.ended_at and format_timestamp(row.ended_at),
        "goneAt": row.gone and format_timestamp(row.gone.at),
        "upstream": row.upstream,
        "upstreamStatus": (row.head and row.head.status) or None,
        "contentType": row.head and row.head.content_type,
        "bytes": None if tail is None else tail.position,
        "chunks": chunks,
        "usage": _usage(service.generations.usage_so_far(row)),
        "readers": service.readers.of(row.data_stream),
        "owner": {"id": row.owner.id, "isHere": chunks is not None} if row.state.is_live else None,
    }


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {"inputTokens": usage.input_tokens, "outputTokens": usage.output_tokens, "source": usage.source}


def _stream(row: StreamInfo) -> dict[str, Any]:
    return {
        "path": row.key.path,
        "contentType": row.content_type,
        "bytes": row.tail.position,
        "isClosed": row.tail.is_closed,
        "createdAt": format_timestamp(row.created_at),
        "ttlSeconds": row.expiry.ttl_seconds,
        "expiresAt": row.expiry.expires_at and format_timestamp(row.expiry.expires_at),
    }


def _session(row: Session) -> dict[str, Any]:
    return {
        "tenant": row.tenant,
        "sessionId": row.session_id,
        "generations": row.generations,
        "live": row.live,
        "firstAt": format_timestamp(row.first_at),
        "lastAt": format_timestamp(row.last_at),
    }
