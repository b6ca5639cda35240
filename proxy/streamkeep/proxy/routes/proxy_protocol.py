"""`/v1/proxy`: the open proxy protocol (version 0.1), over the same generations as everything else.

A stream's id is a generation's session and request id at once. What is read is `application/octet-stream` with upstream's
type beside it, so event reads are base64. Where the text leaves the state after an abort or a failure open: the stream is
closed and its control stream tells why. Of version 0.2 there is `action=connect`, which renews a URL, and its lifetimes.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, replace
from http import HTTPStatus

from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi, deletion
from streamkeep.proxy.attempts import NOT_UPSTREAMS
from streamkeep.proxy.errors import Problem, problem, problem_of
from streamkeep.proxy.forwarding import Destination
from streamkeep.proxy.reads import Reads, Target
from streamkeep.proxy.request_body import CallerLeft
from streamkeep.proxy.routes.transport import without_verdict
from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.access import Credentials, Principal, Right
from streamkeep.proxy.rules.signing import is_signed
from streamkeep.proxy.rules.stream_headers import DEFAULT_CONTENT_TYPE
from streamkeep.proxy.service import Service
from streamkeep.storage import Erasure, Generation, GenerationKey, Refusal, State

ROOT = "/v1/proxy"
_DELETE_SECONDS = 5.0
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_TTL = re.compile(r"[1-9][0-9]{0,8}")

# Our codes in the protocol's words; all others are ours in capitals.
_CODES = {
    "missing_credentials": (401, "MISSING_SECRET"),
    "invalid_credentials": (401, "INVALID_SECRET"),
    "invalid_upstream_url": (403, "UPSTREAM_NOT_ALLOWED"),
    "redirect_refused": (400, "REDIRECT_NOT_ALLOWED"),
    "upstream_unreachable": (502, "UPSTREAM_ERROR"),
    "upstream_failed": (502, "UPSTREAM_ERROR"),
    "timed_out": (504, "UPSTREAM_TIMEOUT"),
    "stalled": (504, "UPSTREAM_TIMEOUT"),
    "storage_unavailable": (502, "STORAGE_ERROR"),
    "not_found": (404, "STREAM_NOT_FOUND"),
}


class ProxyProtocol:
    """`POST /v1/proxy` and `GET POST HEAD PATCH DELETE /v1/proxy/{id}`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._reads = Reads(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _Request(self._service, self._reads, scope, receive, send).answer()
        except CallerLeft:
            return
        except Exception as exc:
            found = problem_of(exc)
            if found is None:
                raise
            await _answer_problem(found, scope, send)


@dataclass(slots=True)
class _Request:
    """One request, taken apart by its method."""

    service: Service
    reads: Reads
    scope: Scope
    receive: Receive
    send: Send

    async def answer(self) -> None:
        parameters = wire.single_parameters(self.scope["query_string"])
        id = self.scope["path_params"].get("id")
        if id is None:
            if "action" in parameters:
                raise problem(400, "invalid_action", "a new stream takes no action")
            await self._create()
            return
        if not _ID.fullmatch(id):
            raise problem(404, "not_found", "there is no such stream")
        match self.scope["method"]:
            case "GET":
                await self._read(await self._permitted(id, parameters, Right.READ), parameters)
            case "HEAD":
                await self._head(await self._own(id))
            case "POST":
                if parameters.get("action") != "connect":
                    raise problem(400, "invalid_action", "the action here is connect")
                row = await self.service.generations.find(await self._own(id))
                await self._answer_location(200, row)
            case "PATCH":
                if parameters.get("action") != "abort":
                    raise problem(400, "invalid_action", "the action here is abort")
                if not is_signed(parameters):
                    raise problem(401, "missing_signature", "a stream is aborted by its signed URL")
                await self.service.generations.cancel(await self._permitted(id, parameters, Right.CANCEL))
                await asgi.answer(self.send, 204, b"", [asgi.NO_STORE])
            case _:
                await self._delete(await self._own(id))

    async def _create(self) -> None:
        principal = await self.service.access.principal(self.scope, Credentials.PROXY)
        names = (wire.UPSTREAM_URL, wire.UPSTREAM_METHOD, wire.UPSTREAM_AUTHORIZATION)
        headers = wire.single_headers(self.scope["headers"], names)
        url, method = headers[wire.UPSTREAM_URL], headers[wire.UPSTREAM_METHOD]
        if not url:
            raise problem(400, "missing_upstream_url", f"the header {wire.UPSTREAM_URL} names the URL to call")
        if not method:
            raise problem(400, "missing_upstream_method", f"the header {wire.UPSTREAM_METHOD} names the method to use")
        if method.upper() not in _METHODS:
            raise problem(
                400, "invalid_upstream_method", f"{wire.UPSTREAM_METHOD} must be one of {', '.join(sorted(_METHODS))}"
            )
        self._wanted_seconds()
        destination = self._destination(principal, url.strip(), headers[wire.UPSTREAM_AUTHORIZATION])
        id = str(uuid.uuid4())
        key = GenerationKey(principal.tenant, id, id)
        row, _ = await self.service.forwarder.forward(
            principal, key, method.upper(), destination, self.scope, self.receive
        )
        if row.state is State.REFUSED and row.refusal is not None:
            await self._answer_refusal(row.refusal)
        elif row.head is None:
            raise without_verdict(row, self.service, self.scope)
        else:
            await self._answer_location(201, row)

    def _destination(self, principal: Principal, url: str, authorization: str | None) -> Destination:
        found = self.service.forwarder.allowed(principal, url)
        # `Authorization` is ours here; the vendor's has a header of its own.
        headers = () if authorization is None else ((b"Authorization", authorization.encode("latin-1")),)
        return replace(found, headers=headers, without=frozenset({b"authorization"}))

    async def _own(self, id: str) -> GenerationKey:
        principal = await self.service.access.principal(self.scope, Credentials.PROXY)
        return GenerationKey(principal.tenant, id, id)

    async def _permitted(self, id: str, parameters: dict[str, str], right: Right) -> GenerationKey:
        if not is_signed(parameters):
            return await self._own(id)
        permit = await self.service.access.permit(
            self.scope, parameters, right, lambda tenant: GenerationKey(tenant, id, id)
        )
        return permit.key

    async def _read(self, key: GenerationKey, parameters: dict[str, str]) -> None:
        query = wire.read_query(parameters, last_event_id=asgi.header(self.scope, b"last-event-id"))
        row = await self.service.generations.find(key)
        with self.service.audiences.attended(row, self.receive) as receive_and_look:
            await self.reads.answer(_target(row), query, self.scope, receive_and_look, self.send)

    async def _head(self, key: GenerationKey) -> None:
        row = await self.service.generations.find(key)
        await self.reads.answer(_target(row), wire.ReadQuery(), self.scope, self.receive, self.send)

    async def _delete(self, key: GenerationKey) -> None:
        """Whatever is not gone within a moment goes by itself; nobody reads any of it from now on."""
        await deletion.delete(self.service.store, Erasure.of(key), within_seconds=_DELETE_SECONDS)
        await asgi.answer(self.send, 204, b"", [asgi.NO_STORE])

    async def _answer_location(self, status: int, row: Generation) -> None:
        headers = [("Location", self._location(row.key)), asgi.NO_STORE, *_upstream_headers(row)]
        await asgi.answer(self.send, status, b"", headers)

    def _location(self, key: GenerationKey) -> str:
        expires = self.service.access.expiry(self._wanted_seconds())
        query = self.service.access.signed_query(key, Right.READ, Right.CANCEL, expires=expires)
        base = asgi.base_url(self.scope, self.service.settings.public_url)
        return f"{base}{ROOT}/{key.session_id}?{query}"

    def _wanted_seconds(self) -> float | None:
        wanted = wire.single_headers(self.scope["headers"], (wire.SIGNED_URL_TTL,))[wire.SIGNED_URL_TTL]
        if wanted is None:
            return None
        if not _TTL.fullmatch(wanted):
            raise problem(400, "invalid_header", f"{wire.SIGNED_URL_TTL} is a number of seconds")
        return min(float(wanted), self.service.settings.url_seconds)

    async def _answer_refusal(self, refusal: Refusal) -> None:
        if refusal.head.status == NOT_UPSTREAMS:
            ours = json.loads(refusal.body)
            raise problem(ours["status"], ours["error"], ours["message"])
        if refusal.head.status == HTTPStatus.NOT_MODIFIED:  # One of the 3xx, here, like all others.
            raise problem(400, "redirect_refused", "upstream answered 304; this protocol takes no answers of its kind")
        headers = [(wire.UPSTREAM_STATUS, str(refusal.head.status)), asgi.NO_STORE, asgi.SANDBOX]
        if refusal.head.content_type is not None:
            headers.append(("Content-Type", refusal.head.content_type))
        await asgi.answer(self.send, 502, refusal.body, headers)


def _target(row: Generation) -> Target:
    return Target(row.data_stream, DEFAULT_CONTENT_TYPE, headers=tuple(_upstream_headers(row)))


def _upstream_headers(row: Generation) -> list[tuple[str, str]]:
    head = row.head
    headers: list[tuple[str, str]] = []
    if head is not None and head.content_type is not None:
        headers.append((wire.UPSTREAM_CONTENT_TYPE, head.content_type))
    if head is not None and head.content_encoding is not None:
        headers.append((wire.UPSTREAM_CONTENT_ENCODING, head.content_encoding))
    return headers


async def _answer_problem(found: Problem, scope: Scope, send: Send) -> None:
    status, code = _CODES.get(found.code, (found.status, found.code.upper()))
    error: dict[str, object] = {"code": code, "message": found.message}
    if code == "SIGNATURE_EXPIRED":
        error["streamId"] = scope["path_params"]["id"]
    await asgi.answer_json(send, status, {"error": error}, found.headers)
