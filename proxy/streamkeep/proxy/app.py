"""The application: builds the parts, owns them for its lifetime, and puts every route in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi, openapi
from streamkeep.proxy.asgi import Guarded, RawRoutes
from streamkeep.proxy.cors import Cors
from streamkeep.proxy.errors import ApiError, Problem, problem_of
from streamkeep.proxy.front import Front
from streamkeep.proxy.routes import browser_modules, keys, listings, operations, reference, sessions, transport
from streamkeep.proxy.routes.console import Console
from streamkeep.proxy.routes.drop_in import DropIn
from streamkeep.proxy.routes.protocol import StreamByAnyPath
from streamkeep.proxy.routes.proxy_protocol import ProxyProtocol
from streamkeep.proxy.routes.sharing import Share
from streamkeep.proxy.routes.streams import StreamByIds, StreamByPath, Which
from streamkeep.proxy.routes.subscriptions import SubscriptionRoutes
from streamkeep.proxy.rules.session_requests import ForeignActor
from streamkeep.proxy.rules.wire import BadRequest
from streamkeep.proxy.service import Service
from streamkeep.proxy.settings import Settings
from streamkeep.proxy.store import chosen_store
from streamkeep.proxy.upstream import Resolver, system_resolver
from streamkeep.storage import Store, StoreError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_CODES = {404: "not_found", 405: "method_not_allowed"}
_FORESEEN: tuple[type[Exception], ...] = (ApiError, BadRequest, ForeignActor, StoreError)


def create_app(
    *,
    store: Store | None = None,
    settings: Settings | None = None,
    resolve: Resolver = system_resolver,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """The proxy as an ASGI application, over any store; when none is given, over that at `settings.streams_url` or
    Postgres at `settings.database_url`.

    The store is opened and closed with the application. `resolve` finds the addresses of upstreams and webhooks; they
    are checked whoever found them. A `tracer_provider` turns traces on (the extra `otel`). `app.state.service` gives
    access to its parts.

    Raises:
        ValueError: no store, and no URL of one.
    """
    settings = settings or Settings()
    service = Service(store or chosen_store(settings, warms_up=True), settings, resolve, tracer_provider)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.open():
            yield

    app = _Application(service, lifespan)
    app.include_router(listings.router(service))
    app.include_router(keys.router(service))
    app.include_router(transport.router(service))
    app.include_router(sessions.router(service))
    app.include_router(operations.router(service))
    app.include_router(browser_modules.router())
    app.include_router(reference.router())
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    for foreseen in _FORESEEN:
        app.add_exception_handler(foreseen, _problem_error)
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


class _Application(FastAPI):
    """FastAPI behind our own front: requests that a raw route takes go to it directly, all others to the framework, which
    knows the raw routes too and so can tell a wrong method from an unknown path."""

    def __init__(self, service: Service, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> None:
        super().__init__(
            title="streamkeep",
            version=version("streamkeep"),
            lifespan=lifespan,
            redirect_slashes=False,
            docs_url=None,
            redoc_url=None,
        )
        self.state.service = service
        routes = _raw_routes(service)
        self.router.routes.extend(routes)
        self._front = Front(
            Cors(RawRoutes(self._framework, routes), origins=service.settings.origins), tally=service.requests
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._front(scope, receive, send)

    async def _framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        """FastAPI itself, whose routes for GET refuse HEAD. Here it is answered as GET is, and the server sends no body."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await super().__call__(scope, receive, send)


def _raw_routes(service: Service) -> list[Route]:
    """Creation and reads pass FastAPI by: no request object, no validation, no response object per call."""
    generation = "/v1/stream/generations/{session_id}/{request_id}"
    protocol = ["GET", "HEAD", "PUT", "POST", "DELETE"]
    every = ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"]
    console = Guarded(Console())
    return [
        Route("/v1/proxy", Guarded(ProxyProtocol(service)), methods=["POST"]),
        Route(
            "/v1/proxy/{id:anything}",
            Guarded(ProxyProtocol(service)),
            methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
        ),
        Route("/u/{upstream}/{path:anything}", Guarded(DropIn(service)), methods=every),
        Route("/api/share", Guarded(Share(service)), methods=["POST"]),
        Route("/api/{session_id}/{request_id}", Guarded(transport.CreateGeneration(service)), methods=["POST"]),
        *(Route(f"/stream/{which}", Guarded(StreamByIds(service, which)), methods=["GET", "HEAD"]) for which in Which),
        *(Route(f"{generation}/{which}", Guarded(StreamByPath(service, which)), methods=every) for which in Which),
        Route(
            "/v1/stream/__ds/{path:anything}",
            Guarded(SubscriptionRoutes(service)),
            methods=every,
            include_in_schema=False,
        ),
        Route("/v1/stream/{path:anything}", Guarded(StreamByAnyPath(service)), methods=protocol),
        Route("/console/{name}", console, methods=["GET", "HEAD"], include_in_schema=False),
        # Last: every path begins like this one.
        Route("/", console, methods=["GET", "HEAD"], include_in_schema=False),
    ]


def _schema(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        app.openapi_schema = openapi.complete(made)
    return app.openapi_schema


async def _http_error(request: Request, exc: Exception) -> JSONResponse:
    """Starlette's own errors (no such route, wrong method) in our form."""
    assert isinstance(exc, HTTPException)
    headers = tuple((exc.headers or {}).items())
    return _json(request, Problem(exc.status_code, _CODES.get(exc.status_code, "http_error"), str(exc.detail), headers))


async def _validation_error(request: Request, exc: Exception) -> JSONResponse:
    return _json(request, Problem(400, "invalid_parameter", "the request's parameters are not acceptable"))


async def _problem_error(request: Request, exc: Exception) -> JSONResponse:
    unforeseen = Problem(500, "internal_error", "something failed here that should not have")
    return _json(request, problem_of(exc) or unforeseen)


def _json(request: Request, problem: Problem) -> JSONResponse:
    asgi.Exchange.of(request.scope).error = problem.code
    security = {name.decode(): value.decode() for name, value in asgi.SECURITY_HEADERS}
    headers = dict([asgi.NO_STORE, asgi.SANDBOX, *security.items(), *problem.headers])
    return JSONResponse(problem.body(), status_code=problem.status, headers=headers)
