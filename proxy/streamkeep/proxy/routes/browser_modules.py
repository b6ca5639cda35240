"""The browser's modules: files of the package `streamkeep.adapters`, served as they are to pages of any origin."""

from __future__ import annotations

import gzip
import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from streamkeep.proxy.asgi import SECURITY_HEADERS
from streamkeep.proxy.rules import caching

_TYPES = {".d.ts": "text/plain; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
# Pages of one visit load them once; a new version is there soon.
_CACHE_CONTROL = "public, max-age=300, stale-while-revalidate=3600"


class _File:
    """A module or its types, in the forms in which it is sent."""

    def __init__(self, name: str, body: bytes) -> None:
        self.name = name
        self._body = body
        self._gzipped = gzip.compress(body, 9, mtime=0)
        self._content_type = next(type for ending, type in _TYPES.items() if name.endswith(ending))
        self._tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'

    async def answer(self, request: Request) -> Response:
        is_gzip = caching.is_gzip_wanted(
            request.headers.get("accept-encoding"), self._content_type, size_bytes=len(self._body)
        )
        tag = f"W/{self._tag}" if is_gzip else self._tag
        headers = {"Cache-Control": _CACHE_CONTROL, "ETag": tag, "Vary": "Accept-Encoding"}
        headers |= {name.decode(): value.decode() for name, value in SECURITY_HEADERS}
        if caching.matches(request.headers.get("if-none-match"), tag):
            return Response(status_code=304, headers=headers)
        headers["Content-Type"] = self._content_type
        if is_gzip:
            headers["Content-Encoding"] = "gzip"
        return Response(self._gzipped if is_gzip else self._body, headers=headers)


def router() -> APIRouter:
    """`GET` and `HEAD` of each file, at the root."""
    routes = APIRouter(tags=["browser"])
    folder = files("streamkeep.adapters") / "browser"
    for found in sorted(folder.iterdir(), key=lambda file: file.name):
        file = _File(found.name, found.read_bytes())
        routes.add_api_route(
            f"/{file.name}",
            file.answer,
            methods=["GET", "HEAD"],
            response_class=Response,
            include_in_schema=False,
        )
    return routes
