"""`POST /api/share`: a fresh signed URL for a generation or a stream, with the rights that whoever gets it shall have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, assert_never

from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.request_body import CallerLeft, WholeBody
from streamkeep.proxy.rules import stream_paths
from streamkeep.proxy.rules.access import Right
from streamkeep.proxy.rules.sharing import MAX_BODY_BYTES, ShareRequest
from streamkeep.proxy.rules.signing import Signed
from streamkeep.proxy.service import Service
from streamkeep.storage import GenerationKey, StreamKey


class Share:
    """Sign URLs within the caller's tenant. Nothing is looked up: what is not there yet can be shared, too."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = await self._service.access.principal(scope)
        try:
            async with WholeBody(receive, self._service.body_budget, max_bytes=MAX_BODY_BYTES) as body:
                request = ShareRequest.parse(body, principal.tenant)
        except CallerLeft:
            return
        expires = self._service.access.expiry(request.seconds)
        query = self._service.access.signed_query(request.subject, *request.rights, expires=expires)
        base = asgi.base_url(scope, self._service.settings.public_url)
        expires_at = datetime.fromtimestamp(expires, UTC)
        await asgi.answer_json(
            send,
            200,
            {
                **_urls(request.subject, request.rights, base, query),
                "rights": sorted(request.rights),
                "expiresAt": expires_at.isoformat().replace("+00:00", "Z"),
            },
        )


def _urls(subject: Signed, rights: tuple[Right, ...], base: str, query: str) -> dict[str, Any]:
    match subject:
        case StreamKey():
            return {"url": f"{base}{stream_paths.url_path(subject.path)}?{query}"}
        case GenerationKey():
            found: dict[str, Any] = {}
            if Right.READ in rights:
                found |= {"streamUrl": f"{base}/stream/data?{query}", "controlUrl": f"{base}/stream/control?{query}"}
            if Right.CANCEL in rights:
                found["cancelUrl"] = f"{base}/api/{subject.session_id}/{subject.request_id}/cancel?{query}"
            return found
        case _:
            assert_never(subject)
