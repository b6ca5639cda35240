"""A generation's two streams, by ids or by path. How they are read is in `reads.py`, and as shape logs in `shapes.py`; here is what
they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from functools import partial

from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.errors import not_found, problem
from streamkeep.proxy.json_view import JsonView
from streamkeep.proxy.reads import Reads, Target
from streamkeep.proxy.rules import wire
from streamkeep.proxy.rules.access import Right
from streamkeep.proxy.rules.shape_log import ShapeQuery, Table, is_shape_read, shape_query
from streamkeep.proxy.rules.stream_headers import DEFAULT_CONTENT_TYPE
from streamkeep.proxy.rules.wire import View
from streamkeep.proxy.service import Service
from streamkeep.proxy.shapes import ShapeReads
from streamkeep.storage import Generation, GenerationKey, State, StreamNotFound, UpstreamHead


class Which(StrEnum):
    DATA = "data"
    CONTROL = "control"


class StreamByIds:
    """`GET /stream/data` and `/stream/control`, with the ids in the query; as shape logs to those who ask for such."""

    def __init__(self, service: Service, which: Which) -> None:
        self._generations = _Generations(service)
        self._which = which

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parameters = wire.single_parameters(scope["query_string"])
        for name in ("sessionId", "requestId"):
            if name not in parameters:
                raise problem(400, "invalid_parameter", f"the parameter {name} is missing")
        ids = parameters["sessionId"], parameters["requestId"]
        is_shape = is_shape_read(parameters) and scope["method"] == "GET"
        await self._generations.answer(ids, self._which, parameters, scope, receive, send, is_shape=is_shape)


class StreamByPath:
    """`GET /v1/stream/generations/{session_id}/{request_id}/{which}`: the same streams under their own paths."""

    def __init__(self, service: Service, which: Which) -> None:
        self._generations = _Generations(service)
        self._which = which

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise problem(403, "read_only", "a generation's streams are written by the proxy alone")
        parameters = wire.single_parameters(scope["query_string"])
        ids = scope["path_params"]["session_id"], scope["path_params"]["request_id"]
        await self._generations.answer(ids, self._which, parameters, scope, receive, send)


def _key(tenant: str, ids: tuple[str, str]) -> GenerationKey:
    session_id, request_id = ids
    return GenerationKey(
        wire.check_tenant(tenant), wire.check_session_id(session_id), wire.check_request_id(request_id)
    )


class _Generations:
    """Find the stream that a request means, see whether it may be read, and read it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._reads = Reads(service)
        self._shapes = ShapeReads(service, self._reads)

    async def answer(
        self,
        ids: tuple[str, str],
        which: Which,
        parameters: Mapping[str, str],
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        is_shape: bool = False,
    ) -> None:
        read: Callable[[Generation, Scope, Receive, Send], Awaitable[None]]
        if is_shape:
            read = partial(self._answer_as_shape, which, shape_query(parameters))
        else:
            query = wire.read_query(parameters, last_event_id=asgi.header(scope, b"last-event-id"))
            read = partial(self._answer, which, wire.view_parameter(parameters), query)
        permit = await self._service.access.permit(scope, parameters, Right.READ, lambda tenant: _key(tenant, ids))
        row = await self._service.generations.find(permit.key)
        try:
            await read(row, scope, receive, send)
        except StreamNotFound:
            # Its data went while it was being read: say why.
            await self._service.generations.stored(permit.key)
            raise

    async def _answer(
        self,
        which: Which,
        view: View | None,
        query: wire.ReadQuery,
        row: Generation,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        target = self._target(row, which, view)
        if scope["method"] == "HEAD":
            await self._reads.answer(target, query, scope, receive, send)
            return
        with self._service.audiences.attended(row, receive) as receive_and_look:
            if which is Which.DATA and (query.live is not wire.Live.SSE or view is View.JSON):
                row = await self._with_verdict(row)
                target = self._target(row, which, view)
            await self._reads.answer(target, query, scope, receive_and_look, send)

    async def _answer_as_shape(
        self, which: Which, query: ShapeQuery, row: Generation, scope: Scope, receive: Receive, send: Send
    ) -> None:
        table = Table.DATA if which is Which.DATA else Table.CONTROL
        with self._service.audiences.attended(row, receive) as receive_and_look:
            await self._shapes.answer(row, table, query, scope, receive_and_look, send)

    def _target(self, row: Generation, which: Which, view: View | None) -> Target:
        return self._data(row, view) if which is Which.DATA else _control(row, view)

    def _data(self, row: Generation, view: View | None) -> Target:
        if view is View.JSON:
            _check_is_event_stream(row.head)
            events = JsonView(self._service.store, self._service.readers.decoding, row.data_stream, row.control_stream)
            headers = _upstream_headers(row.head, view)
            return Target(row.data_stream, "application/json", is_message_stream=True, headers=headers, view=events)
        content_type = DEFAULT_CONTENT_TYPE
        if row.head is not None and row.head.content_type and view is None:
            content_type = row.head.content_type
        return Target(row.data_stream, content_type, headers=_upstream_headers(row.head, view))

    async def _with_verdict(self, row: Generation) -> Generation:
        """Before upstream has answered there is no content type to read its bytes by."""
        if row.state is State.CREATING:
            hold = self._service.settings.long_poll_seconds
            row = await self._service.generations.verdict(row, within_seconds=hold)
            if row.state is State.CREATING:
                raise problem(503, "not_started", "upstream has not answered yet; try again", retry_after=1)
            if row.state is State.REFUSED:
                raise not_found()
        return row


def _control(row: Generation, view: View | None) -> Target:
    if view is View.BYTES:
        raise problem(400, "invalid_parameter", "the control stream is JSON; as=bytes goes with the data stream")
    return Target(row.control_stream, "application/json", is_message_stream=True)


def _upstream_headers(head: UpstreamHead | None, view: View | None) -> tuple[tuple[str, str], ...]:
    """What upstream said of its answer; its content type too, where the read has another."""
    if head is None:
        return ()
    headers = [*head.headers, (wire.UPSTREAM_STATUS, str(head.status))]
    if view is not None and head.content_type:
        headers.append((wire.UPSTREAM_CONTENT_TYPE, head.content_type))
    if head.content_encoding is not None:
        headers.append((wire.UPSTREAM_CONTENT_ENCODING, head.content_encoding))
    return tuple(headers)


def _check_is_event_stream(head: UpstreamHead | None) -> None:
    """Raises: ApiError. A generation that ended before upstream answered has no events, and an ending to tell."""
    if head is None:
        return
    if head.content_encoding is not None:
        raise problem(409, "not_an_event_stream", f"the JSON view cannot read {head.content_encoding!r} content")
    if (head.content_type or "").partition(";")[0].strip().lower() != "text/event-stream":
        found = head.content_type or "of no type"
        raise problem(409, "not_an_event_stream", f"the JSON view is of text/event-stream; this response is {found}")
