"""`/u/{upstream}/{path}`: set an SDK's base URL to it. The answer is upstream's own, and durable underneath.

What the caller gets are the recorded bytes, each after its commit, with upstream's status and headers. An answer that did
not come to its end is cut off, as upstream's would have been: nothing here ends cleanly that was not complete.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from urllib.parse import quote

from starlette.types import Message, Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.errors import problem
from streamkeep.proxy.forwarding import Destination
from streamkeep.proxy.reads import Reads, Target
from streamkeep.proxy.request_body import CallerLeft
from streamkeep.proxy.routes.transport import answer_refusal, describe, without_verdict
from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.access import SDK_KEY_HEADERS, Credentials, Principal
from streamkeep.proxy.rules.allowlist import Refused
from streamkeep.proxy.rules.event_source import EventId, EventIds
from streamkeep.proxy.rules.request_ids import ids_of
from streamkeep.proxy.rules.upstreams import Upstream
from streamkeep.proxy.service import Service
from streamkeep.storage import Generation, GenerationKey, State, StreamNotFound

_EVENT_STREAM = "text/event-stream"
_WITHOUT_BODY = (204, 205)
_ID_HEADERS = (
    wire.SESSION_ID,
    wire.REQUEST_ID,
    wire.IDEMPOTENCY_KEY,
    wire.LAST_EVENT_ID,
    wire.RESUME_ACTIVE_GENERATION,
)
_ROOT = b"/u/"


class DropIn:
    """Forward a request to a named upstream, and answer with what is recorded."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._reads = Reads(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        upstream = self._service.settings.upstreams.by_name.get(scope["path_params"]["upstream"])
        is_key_here = upstream is not None and upstream.has_credentials
        principal = await self._service.access.principal(
            scope, Credentials.SDKS if is_key_here else Credentials.VENDORS
        )
        if upstream is None:
            raise problem(404, "unknown_upstream", "there is no upstream of that name; STREAMKEEP_UPSTREAMS names them")
        headers = wire.single_headers(scope["headers"], _ID_HEADERS)
        last_event_id = headers[wire.LAST_EVENT_ID]
        if last_event_id:
            await self._continue(principal, EventId.parse(last_event_id), scope, receive, send)
            return
        key = GenerationKey(principal.tenant, *ids_of(headers, otherwise=uuid.uuid4().hex))
        if wire.is_resume(headers[wire.RESUME_ACTIVE_GENERATION]):
            found = await self._service.generations.resumable(key)
            if found is None:
                await asgi.answer(send, 204, b"", [asgi.NO_STORE])
                return
            row, is_replay = await self._with_verdict(found), True
        else:
            destination = _destination(principal, upstream, scope)
            # Whoever asks reads the answer, too; upstream is not called in vain.
            self._service.readers.check_room()
            try:
                row, is_replay = await self._service.forwarder.forward(
                    principal, key, scope["method"], destination, scope, receive, is_reader=True
                )
            except CallerLeft:
                return
        await self._answer(row, scope, receive, send, is_replay=is_replay)

    async def _continue(self, principal: Principal, event: EventId, scope: Scope, receive: Receive, send: Send) -> None:
        """An EventSource is back: what it has not seen yet, or 204, which ends it. Upstream is never called."""
        key = GenerationKey(principal.tenant, event.session_id, event.request_id)
        row = await self._service.generations.find(key)
        row = await self._with_verdict(row)
        if row.head is None:
            raise without_verdict(row, self._service, scope)
        tail = (await self._service.store.tails([row.data_stream]))[row.data_stream]
        if event.position > tail.position:
            raise problem(400, "invalid_event_id", f"{wire.LAST_EVENT_ID} is beyond the end of the answer")
        if tail.is_closed and event.position == tail.position:
            await asgi.answer(send, 204, b"", [asgi.NO_STORE])
            return
        await self._answer(row, scope, receive, send, is_replay=True, position=event.position)

    async def _with_verdict(self, row: Generation) -> Generation:
        if row.state is State.CREATING:
            row = await self._service.generations.verdict(row, within_seconds=self._service.settings.first_byte_seconds)
        return row

    async def _answer(
        self, row: Generation, scope: Scope, receive: Receive, send: Send, *, is_replay: bool, position: int = 0
    ) -> None:
        if row.state is State.REFUSED and row.refusal is not None:
            await answer_refusal(row.refusal, send)
            return
        head = row.head
        if head is None:
            raise without_verdict(row, self._service, scope)
        headers = self._headers(row, scope)
        if is_replay:
            headers.append((wire.REPLAYED, "true"))
        start: list[Message] = [
            {"type": "http.response.start", "status": head.status, "headers": asgi.raw_headers(headers)}
        ]
        if head.status in _WITHOUT_BODY or scope["method"] == "HEAD":
            await send(start[0])
            await send({"type": "http.response.body", "body": b""})
            return
        change: Callable[[bytes], bytes] | None = None
        if _is_event_source(scope) and _is_event_stream(row):
            ids = EventIds(row.key.session_id, row.key.request_id, position)
            start.append({"type": "http.response.body", "body": ids.opening, "more_body": True})
            change = ids.feed
        target = Target(row.data_stream, head.content_type or "")
        with self._service.audiences.attended(row, receive) as receive_and_look:
            try:
                is_whole = await self._reads.pass_on(
                    target, position, scope, receive_and_look, send, start=start, change=change
                )
            except StreamNotFound:
                # Its data went before anything of them was sent: say why.
                await self._service.generations.stored(row.key)
                raise
        if is_whole:
            ended = await self._service.store.generation(row.key)
            if ended is not None and ended.state is State.DONE:
                await send({"type": "http.response.body", "body": b""})
                return
        await _cut(scope, receive, within_seconds=self._service.settings.reader_stall_seconds)

    def _headers(self, row: Generation, scope: Scope) -> list[tuple[str, str]]:
        found = describe(row, self._service, scope)
        headers = [
            (wire.STREAM_URL, found["streamUrl"]),
            (wire.CONTROL_URL, found["controlUrl"]),
            (wire.SESSION_ID, row.key.session_id),
            (wire.RECORDED_AS, row.key.request_id),
            asgi.NO_STORE,
            asgi.SANDBOX,
        ]
        head = row.head
        assert head is not None
        headers += head.headers
        if head.content_type is not None:
            headers.append(("Content-Type", head.content_type))
        if head.content_encoding is not None:
            headers.append(("Content-Encoding", head.content_encoding))
        if _is_event_stream(row):
            headers.append(("X-Accel-Buffering", "no"))
        return headers


def _destination(principal: Principal, upstream: Upstream, scope: Scope) -> Destination:
    if not principal.may_use(upstream.name):
        raise problem(403, "not_permitted", "the key that was used may not call this upstream")
    decision = upstream.decide(_rest(scope))
    if isinstance(decision, Refused):
        raise problem(400, "invalid_upstream_url", decision.message)
    without = SDK_KEY_HEADERS if upstream.has_credentials else frozenset[bytes]()
    return Destination(replace(decision, label=upstream.name), upstream.headers, without, upstream.times)


def _rest(scope: Scope) -> str:
    """The path behind the upstream's name, as it was sent, with the query."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    _, _, rest = raw.partition(b"?")[0].partition(_ROOT)[2].partition(b"/")
    query: bytes = scope["query_string"]
    return "/" + (rest + (b"?" + query if query else b"")).decode("latin-1")


def _is_event_source(scope: Scope) -> bool:
    """An EventSource always asks so; SDKs post, and get upstream's very bytes."""
    return scope["method"] == "GET" and _EVENT_STREAM in (asgi.header(scope, b"accept") or "").lower()


def _is_event_stream(row: Generation) -> bool:
    head = row.head
    if head is None or head.content_encoding is not None:
        return False
    return (head.content_type or "").partition(";")[0].strip().lower() == _EVENT_STREAM


async def _cut(scope: Scope, receive: Receive, *, within_seconds: float) -> None:
    """Break the connection off behind what was sent, so that nobody takes the answer for whole."""
    scope["streamkeep.cut"]()
    with suppress(TimeoutError):
        async with asyncio.timeout(within_seconds):
            while (await receive())["type"] != "http.disconnect":
                pass
            return
    scope["streamkeep.abort"]()
