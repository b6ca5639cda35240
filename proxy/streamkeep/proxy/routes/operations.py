"""Operations: is the process alive, can it serve, and what has it done."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from streamkeep.proxy.metrics import Metrics
from streamkeep.proxy.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["operations"])
    exposition = Metrics(service)

    @routes.get("/health", summary="200 while the process lives")
    async def health() -> JSONResponse:
        return _answer(200, {"status": "ok", "version": version("streamkeep")})

    @routes.get(
        "/ready",
        summary="200 while requests are served: not draining, and the database answers",
        responses={503: {"description": "Draining, or the database does not answer"}},
    )
    async def ready() -> JSONResponse:
        process = "draining" if service.generations.is_draining else "ok" if service.is_ready else "failed"
        is_up = await service.probe.is_up()
        parts = {"process": process, "database": "ok" if is_up else "unavailable"}
        if process != "ok":
            return _answer(503, {"status": process, "parts": parts})
        if not is_up:
            return _answer(503, {"status": "storage_unavailable", "parts": parts})
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        running = service.generations.running
        return _answer(200, {"status": "ready", "parts": parts, "generations": running, "loop": loop})

    @routes.get(
        "/metrics",
        summary="What this process has done, for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def metrics(request: Request) -> Response:
        await service.access.check_operator(request.scope)
        body, content_type = exposition.render(
            is_database_up=await service.probe.is_up(), accept=request.headers.get("accept", "")
        )
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    return routes


def _answer(status: int, value: dict[str, object]) -> JSONResponse:
    return JSONResponse(value, status_code=status, headers={"Cache-Control": "no-store"})
