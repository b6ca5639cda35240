"""Operations: is the process alive, and can it serve."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from streamkeep.proxy.service import Service
from streamkeep.storage import StoreUnavailable

_PING_SECONDS = 2.0


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    @routes.get("/health", summary="200 while the process lives")
    async def health() -> JSONResponse:
        return _answer(200, {"status": "ok", "version": version("streamkeep")})

    @routes.get(
        "/ready",
        summary="200 while requests are served: not draining, and the database answers",
        responses={503: {"description": "Draining, or the database does not answer"}},
    )
    async def ready() -> JSONResponse:
        if service.generations.is_draining:
            return _answer(503, {"status": "draining"})
        if not service.is_ready:
            return _answer(503, {"status": "failed"})
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await service.store.ping()
        except (StoreUnavailable, TimeoutError):
            return _answer(503, {"status": "storage_unavailable"})
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        return _answer(200, {"status": "ready", "generations": service.generations.running, "loop": loop})

    return routes


def _answer(status: int, value: dict[str, object]) -> JSONResponse:
    return JSONResponse(value, status_code=status, headers={"Cache-Control": "no-store"})
