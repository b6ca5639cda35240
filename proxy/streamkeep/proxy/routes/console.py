"""The console at `/`: pages for people, from static files. What they show comes from the API, with its permissions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.errors import problem
from streamkeep.proxy.rules import caching
from streamkeep.proxy.rules.console import POLICY, prefers_html

_PAGE = "index.html"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    body: bytes
    media_type: str
    tag: str


class Console:
    """`GET /` for browsers, and `GET /console/{name}` for what the page loads. Everybody else is led to `/docs`, as a
    machine that asks for `/` always was."""

    def __init__(self) -> None:
        self._assets = _read_assets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"].get("name")
        if name is None:
            if not prefers_html(asgi.header(scope, b"accept")):
                await asgi.answer(send, 307, b"", [("Location", "/docs"), ("Vary", "Accept")])
                return
            name = _PAGE
        asset = self._assets.get(name)
        if asset is None:
            raise problem(404, "not_found", "the console has no such file")
        headers = [
            ("ETag", asset.tag),
            ("Cache-Control", "no-cache"),
            ("Vary", "Accept"),
            ("Content-Security-Policy", POLICY),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
        ]
        if caching.matches(asgi.header(scope, b"if-none-match"), asset.tag):
            await asgi.answer(send, 304, b"", headers)
            return
        body = b"" if scope["method"] == "HEAD" else asset.body
        await asgi.answer(send, 200, body, [*headers, ("Content-Type", asset.media_type)])


def _read_assets() -> dict[str, _Asset]:
    """Every file of the console, read once: no path of a request ever reaches the file system."""
    found: dict[str, _Asset] = {}
    for file in files("streamkeep.proxy").joinpath("console").iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            body = file.read_bytes()
            found[file.name] = _Asset(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return found
