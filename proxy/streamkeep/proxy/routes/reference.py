"""The API's reference for people: FastAPI's page, around the same document that `/openapi.json` is.

Its scripts come from elsewhere. So it lives in a sandbox, with an origin of its own: what the console keeps in the browser
is out of its reach, and so is the API, which it only describes.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

_POLICY = "sandbox allow-scripts allow-popups"


def router() -> APIRouter:
    """The one route; the document is of the application that it is included in."""
    found = APIRouter(include_in_schema=False)

    @found.get("/docs")
    async def docs(request: Request) -> HTMLResponse:
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="streamkeep",
            swagger_ui_parameters={"spec": request.app.openapi(), "supportedSubmitMethods": []},
        )
        page.headers["Content-Security-Policy"] = _POLICY
        page.headers["Referrer-Policy"] = "no-referrer"
        return page

    return found
