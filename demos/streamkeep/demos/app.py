"""What a demo's own server answers: its pages, the chat's route that the proxy calls, the bill, and the line's switches."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from streamkeep.demos.agents import AGENTS
from streamkeep.demos.answers import AiSdkForm, Form, TanStackForm, answer, prompt_of
from streamkeep.demos.catalogue import DEMOS, Demo
from streamkeep.demos.line import Line
from streamkeep.demos.model import Model

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_MAX_BODY_BYTES = 1024 * 1024
_EVENTS = {"Cache-Control": "no-cache", "X-Vercel-AI-UI-Message-Stream": "v1"}
_FILES = (("streamkeep.demos", "pages"), ("streamkeep.adapters", "browser"))


class DemoApp:
    """The server of one demo. `urls` are those that its page talks to beside its own, by what they lead to."""

    def __init__(self, demo: Demo, model: Model, line: Line, urls: Mapping[str, str]) -> None:
        self._demo = demo
        self._model = model
        self._line = line
        self._urls = dict(urls)
        self._files = dict(_read_files())
        self._policy = _policy(urls.values())

    def asgi(self, origins: list[str]) -> Starlette:
        """The application, for pages of these origins alone."""
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/config.json", self._config),
                Route("/bill", self._bill),
                Route("/line", self._show_line),
                Route("/line", self._switch, methods=["POST"]),
                Route("/api/chat", self._chat, methods=["POST"]),
                Route("/agents/{name}", self._agent, methods=["POST"]),
                Route("/{name}", self._file),
            ],
            middleware=[
                # A page of some other place must neither reach this server by a name of its own nor ask the model.
                Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"], www_redirect=False),
                Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["POST"], allow_headers=["*"]),
            ],
        )

    async def _page(self, request: Request) -> Response:
        return self._answer(self._demo.page or "gallery.html")

    async def _file(self, request: Request) -> Response:
        name: str = request.path_params["name"]
        return self._answer("gallery.html" if name == "gallery" else name)

    def _answer(self, name: str) -> Response:
        found = self._files.get(name)
        if found is None:
            return JSONResponse({"error": "not_found", "message": "there is no such page"}, 404)
        headers = {
            "Cache-Control": "no-store",
            "Content-Security-Policy": self._policy,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        return Response(found, headers=headers, media_type=_MEDIA_TYPES[name.rpartition(".")[2]])

    async def _config(self, request: Request) -> Response:
        demos = [{**asdict(demo), "command": demo.command} for demo in DEMOS]
        return JSONResponse({"demo": self._demo.name, "model": self._model.name, "urls": self._urls, "demos": demos})

    async def _bill(self, request: Request) -> Response:
        return JSONResponse({payer: bill.to_json() for payer, bill in self._model.bills.items()})

    async def _show_line(self, request: Request) -> Response:
        return JSONResponse({"isCut": self._line.is_cut, "isSlow": self._line.is_slow})

    async def _switch(self, request: Request) -> Response:
        match await _json(request):
            case {"isCut": bool(is_cut)}:
                self._line.is_cut = is_cut
            case {"isSlow": bool(is_slow)}:
                self._line.is_slow = is_slow
            case _:
                return _refusal("this switch is unknown")
        return await self._show_line(request)

    async def _chat(self, request: Request) -> Response:
        match await _json(request):
            case {"messages": list(messages), **more}:
                pass
            case _:
                return _refusal("a chat has messages")
        try:
            prompt = prompt_of(messages)
        except ValueError as exc:
            return _refusal(str(exc))
        payer = "plain" if request.query_params.get("payer") == "plain" else "durable"
        chunks = answer(self._model, prompt, _form(more), payer=payer)
        return StreamingResponse(_events(chunks), media_type="text/event-stream", headers=_EVENTS)

    async def _agent(self, request: Request) -> Response:
        agent = AGENTS.get(request.path_params["name"])
        if agent is None:
            return JSONResponse({"error": "not_found", "message": "there is no such agent"}, 404)
        match await _json(request):
            case {"messages": [_, *_] as messages}:
                pass
            case _:
                return _refusal("an agent is sent messages")
        try:
            prompt_of(messages)
        except ValueError as exc:
            return _refusal(str(exc))
        chunks = agent(self._model, messages)
        return StreamingResponse(_events(chunks), media_type="text/event-stream", headers=_EVENTS)


def _form(asked: Mapping[Any, Any]) -> Form:
    """TanStack AI names a run; the AI SDK does not."""
    match asked:
        case {"threadId": str(thread_id), "runId": str(run_id)}:
            return TanStackForm(thread_id, run_id)
        case _:
            return AiSdkForm(uuid.uuid4().hex)


async def _events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


async def _json(request: Request) -> object:
    """A request's body; None where it is not JSON by its own word, since any page may send what claims to be text."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return None
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _refusal(message: str) -> Response:
    return JSONResponse({"error": "invalid_request", "message": message}, 400)


def _read_files() -> Iterator[tuple[str, bytes]]:
    """Every page, and the browser's modules, read once: no path of a request ever reaches the file system."""
    for package, folder in _FILES:
        for file in files(package).joinpath(folder).iterdir():
            if file.name.rpartition(".")[2] in _MEDIA_TYPES:
                yield file.name, file.read_bytes()


def _policy(origins: Iterable[str]) -> str:
    """The content security policy: own scripts and styles, and connections to the demo's servers."""
    return "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            f"connect-src 'self' {' '.join(origins)}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    )
