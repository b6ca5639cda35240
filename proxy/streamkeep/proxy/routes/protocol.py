"""`/v1/stream/{path}`: streams of the open protocol, written by anybody (protocol 5). Raw ASGI, as reads are."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from urllib.parse import quote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import Receive, Scope, Send

from streamkeep.proxy import asgi
from streamkeep.proxy.access import Permit
from streamkeep.proxy.errors import ApiError, not_found, problem
from streamkeep.proxy.readers import Keepalive
from streamkeep.proxy.reads import Reads, Target
from streamkeep.proxy.request_body import CallerLeft, WholeBody
from streamkeep.proxy.rules import stream_headers, stream_paths, wire
from streamkeep.proxy.rules.access import Right
from streamkeep.proxy.rules.json_mode import InvalidJson, split_messages
from streamkeep.proxy.rules.schemas import Schema
from streamkeep.proxy.rules.stream_headers import AppendRequest
from streamkeep.proxy.service import Service
from streamkeep.storage import (
    REGISTRY,
    Appended,
    ContentTypeMismatch,
    SchemaMismatch,
    StreamAppend,
    StreamClosed,
    StreamConfig,
    StreamInfo,
    StreamKey,
    Tail,
)
from streamkeep.storage.rules.json_messages import encode_message
from streamkeep.storage.rules.offsets import format_offset

# How often a stream with live readers is touched within its TTL, and how often at most.
_TOUCHES_PER_TTL = 3
_MIN_TOUCH_SECONDS = 0.25

# JSON that takes longer than a millisecond or so, or two dozen where it is hostile, is parsed in a thread, of which there
# are few: each holds a body, its messages and what it makes of them.
_MAX_PARSED_AT_ONCE_BYTES = 32 * 1024
_PARSING_THREADS = 2

# How often a stream may be made anew, with another schema, while an append to it is checked.
_MAX_SCHEMAS = 3


class _AnyPath(Convertor[str]):
    """The rest of a path, whatever it holds: what is wrong with it is told by `stream_paths`, not by a 404."""

    regex = r"(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("anything", _AnyPath())


class StreamByAnyPath:
    """`PUT POST GET HEAD DELETE /v1/stream/{path}`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store
        self._reads = Reads(service)
        self._schemas = service.schemas
        self._parsing = asyncio.Semaphore(_PARSING_THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope)
        if stream_paths.first_segment(path) == stream_paths.OPERATIONS:
            raise not_found()
        try:
            match scope["method"]:
                case "GET" | "HEAD":
                    await self._read(await self._permit(path, Right.READ, scope), scope, receive, send)
                case "PUT":
                    await self._create(_writable(await self._own(path, scope)), scope, receive, send)
                case "POST":
                    permit = await self._permit(path, Right.APPEND, scope)
                    await self._append(_writable(permit.key), scope, receive, send)
                case _:
                    await self._delete(_writable(await self._own(path, scope)), send)
        except CallerLeft:
            return

    async def _permit(self, path: str, right: Right, scope: Scope) -> Permit[StreamKey]:
        parameters = wire.single_parameters(scope["query_string"])
        return await self._service.access.permit(scope, parameters, right, lambda tenant: _key(tenant, path))

    async def _own(self, path: str, scope: Scope) -> StreamKey:
        return _key((await self._service.access.principal(scope)).tenant, path)

    async def _read(self, permit: Permit[StreamKey], scope: Scope, receive: Receive, send: Send) -> None:
        key = permit.key
        parameters = wire.single_parameters(scope["query_string"])
        query = wire.read_query(parameters, last_event_id=asgi.header(scope, b"last-event-id"))
        if parameters.get("as") == "schema":
            await self._read_schema(key, send)
            return
        if "as" in parameters:
            raise problem(400, "invalid_parameter", "as is schema here, or goes with a generation's data stream")
        if query.live is not None and query.offset is None:
            raise problem(400, "invalid_parameter", "a live read needs the parameter offset")
        if stream_paths.first_segment(key.path) == stream_paths.GENERATIONS:
            raise not_found()
        if key.path == REGISTRY:
            await self._service.registry.ensure(key.tenant)
        stream = await self._store.stream(key, is_touched=scope["method"] != "HEAD")
        target = self._target(stream, scope, is_shared=permit.is_public)
        await self._reads.answer(target, query, scope, receive, send)

    async def _read_schema(self, key: StreamKey, send: Send) -> None:
        stream = await self._store.stream(key, is_touched=False)
        schema = await self._schemas.of(stream)
        if schema is None:
            raise problem(404, "no_schema", "the stream has no schema")
        headers = [("Content-Type", "application/schema+json"), asgi.NO_STORE]
        await asgi.answer(send, 200, schema.text.encode(), headers)

    def _target(self, stream: StreamInfo, scope: Scope, *, is_shared: bool) -> Target:
        ttl = stream.expiry.ttl_seconds
        keepalive = None
        if ttl is not None:
            keepalive = Keepalive(
                lambda: self._store.stream(stream.key), max(ttl / _TOUCHES_PER_TTL, _MIN_TOUCH_SECONDS)
            )
        return Target(
            stream.id,
            stream.content_type,
            is_message_stream=stream.is_message_stream,
            head_headers=(*_expiry_headers(stream), *self._schema_headers(stream, scope)),
            tail=stream.tail,
            is_shared=is_shared,
            keepalive=keepalive,
        )

    async def _create(self, key: StreamKey, scope: Scope, receive: Receive, send: Send) -> None:
        _check_encoding(scope)
        values = wire.single_headers(scope["headers"], stream_headers.CREATE_HEADERS)
        content_type = stream_headers.content_type(values["Content-Type"])
        config = StreamConfig(
            content_type,
            stream_headers.expiry(values),
            stream_headers.is_true(values[wire.CLOSED]),
            stream_headers.fork_point(values, key.tenant),
        )
        schema = await self._schemas.asked_for(values[wire.SCHEMA])
        if schema is not None and config.fork is None and not stream_headers.is_json(content_type):
            raise problem(400, "invalid_header", f"{wire.SCHEMA} goes with Content-Type: application/json")
        async with self._body(values["Content-Length"], receive) as body:
            if body and config.fork is not None:
                source = await self._store.stream(config.fork.source, is_touched=False)
                content_type = content_type or source.content_type
                schema = schema or await self._schemas.of(source)
            data = b""
            if body:
                data = await self._stored_form(body, schema) if stream_headers.is_json(content_type) else body
            config = replace(config, schema=None if schema is None else schema.text)
            created = await self._store.create_stream(key, config, data)
        stream = created.stream
        headers = [("Content-Type", stream.content_type), *_tail_headers(stream.tail), *_expiry_headers(stream)]
        headers += [asgi.NO_STORE, ("Location", self._url(stream.key, scope)), *self._schema_headers(stream, scope)]
        if schema is not None:
            self._schemas.remember(key, schema)
        if created.is_new:
            tail = stream.tail.position
            self._service.subscriptions.stream_changed(key, stream.id, tail - len(data), tail, is_new=True)
            self._service.registry.streams_changed()
        await asgi.answer(send, 201 if created.is_new else 200, b"", headers)

    async def _append(self, key: StreamKey, scope: Scope, receive: Receive, send: Send) -> None:
        _check_encoding(scope)
        values = wire.single_headers(scope["headers"], stream_headers.APPEND_HEADERS)
        request = AppendRequest.of(values)
        async with self._body(values["Content-Length"], receive) as body:
            if not body and not request.is_close:
                raise problem(400, "empty_append", "an append needs a body, or Stream-Closed: true")
            if body and stream_headers.content_type(values["Content-Type"]) is None:
                raise problem(400, "missing_content_type", "an append with a body needs a Content-Type")
            appended = await self._stored(key, request, body)
        if not appended.is_duplicate:
            self._service.subscriptions.stream_changed(
                key, appended.stream_id, appended.position, appended.tail.position
            )
        is_accepted_data = request.producer is not None and bool(body) and not appended.is_duplicate
        await asgi.answer(send, 200 if is_accepted_data else 204, b"", _append_headers(request, appended))

    async def _stored(self, key: StreamKey, request: AppendRequest, body: bytes) -> Appended:
        """Append a body, checked by the stream's schema if it has one. The store says whether that was the right one."""
        content_type = stream_headers.content_type(request.content_type) if body else None
        schema = self._schemas.guess(key) if stream_headers.is_json(content_type) else None
        for _ in range(_MAX_SCHEMAS):
            try:
                data = b"" if content_type is None else await self._appended_form(key, body, content_type, schema)
                append = StreamAppend(
                    *(key, data, content_type, request.is_close, request.producer, request.writer_sequence),
                    schema_id=None if schema is None else schema.id,
                )
                return await self._service.appender.append(append)
            except SchemaMismatch:
                schema = await self._schemas.of(await self._store.stream(key, is_touched=False))
        raise SchemaMismatch(f"the schema of {key.path} changes all the time")

    async def _appended_form(self, key: StreamKey, body: bytes, content_type: str, schema: Schema | None) -> bytes:
        """The bytes to store. What is wrong with the stream is told before what is wrong with the JSON (5.2).

        Raises:
            ApiError: the body is not JSON, holds no message, or is not as the schema says.
            StreamNotFound, StreamGone, StreamClosed, ContentTypeMismatch, SchemaMismatch: as the append itself would raise.
        """
        if not stream_headers.is_json(content_type):
            return body
        try:
            data = await self._stored_form(body, schema)
            if not data:
                raise problem(400, "empty_append", "an empty array appends nothing")
        except ApiError:
            stream = await self._store.stream(key, is_touched=False)
            if stream.tail.is_closed:
                raise StreamClosed(stream.tail.position) from None
            if not stream.is_message_stream:
                raise ContentTypeMismatch(stream.content_type, content_type) from None
            if schema is not None and stream.schema_id != schema.id:
                raise SchemaMismatch(f"{key.path} has another schema now") from None
            raise
        return data

    async def _stored_form(self, body: bytes, schema: Schema | None) -> bytes:
        """A JSON body as a message stream keeps it; a large one is taken apart while the loop goes on. Raises: ApiError."""
        if schema is not None:
            return await self._checked_form(body, schema)
        if len(body) <= _MAX_PARSED_AT_ONCE_BYTES:
            return _joined(_messages(body))
        async with self._parsing:
            return await asyncio.to_thread(lambda: _joined(_messages(body)))

    async def _checked_form(self, body: bytes, schema: Schema) -> bytes:
        """As `_stored_form`, of messages that are as a schema says. Raises: ApiError."""
        if len(body) <= _MAX_PARSED_AT_ONCE_BYTES:
            messages = _messages(body)
        else:
            async with self._parsing:
                messages = await asyncio.to_thread(_messages, body)
        violation = await self._schemas.violation(schema, messages)
        if violation is not None:
            raise ApiError(violation)
        return _joined(messages)

    async def _delete(self, key: StreamKey, send: Send) -> None:
        stream = await self._store.stream(key, is_touched=False)
        await self._store.delete_stream(key)
        self._service.readers.drop([stream.id])
        self._service.registry.streams_changed()
        await asgi.answer(send, 204, b"", [asgi.NO_STORE])

    def _body(self, content_length: str | None, receive: Receive) -> WholeBody:
        """The whole request body, held until it is stored. Raises: ApiError (413, 503), CallerLeft."""
        limit = self._service.settings.max_append_bytes
        if content_length is not None and int(content_length) > limit:
            raise problem(413, "body_too_large", f"a request may carry up to {limit} bytes; send more of them")
        return WholeBody(receive, self._service.body_budget, max_bytes=limit)

    def _schema_headers(self, stream: StreamInfo, scope: Scope) -> tuple[tuple[str, str], ...]:
        if stream.schema_id is None:
            return ()
        return (("Link", f'<{self._url(stream.key, scope)}?as=schema>; rel="describedby"'),)

    def _url(self, key: StreamKey, scope: Scope) -> str:
        return asgi.base_url(scope, self._service.settings.public_url) + stream_paths.url_path(key.path)


def _check_encoding(scope: Scope) -> None:
    """Bodies are stored as they are, and nothing here decodes: an encoded one would be read as what it is not."""
    encoding = asgi.header(scope, b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise problem(415, "encoded_body", "bodies are stored as they are sent; send this one without Content-Encoding")


def _path(scope: Scope) -> str:
    """The stream's path, from the request as it was sent: decoding would hide encoded slashes. Raises: BadRequest."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    _, root, path = raw.partition(b"?")[0].partition(stream_paths.ROOT.encode())
    return stream_paths.parse_path(path if root else b"")


def _key(tenant: str, path: str) -> StreamKey:
    return StreamKey(wire.check_tenant(tenant), path)


def _writable(key: StreamKey) -> StreamKey:
    if stream_paths.is_read_only(key.path):
        raise problem(403, "read_only", "this stream is written by the proxy alone")
    return key


def _messages(body: bytes) -> list[bytes]:
    """The messages of a JSON body. Raises: ApiError."""
    try:
        return split_messages(body)
    except InvalidJson as exc:
        raise problem(400, "invalid_json", str(exc)) from None


def _joined(messages: list[bytes]) -> bytes:
    """Messages as a message stream keeps them."""
    return b"".join(map(encode_message, messages))


def _tail_headers(tail: Tail) -> list[tuple[str, str]]:
    headers = [(wire.NEXT_OFFSET, format_offset(tail.position))]
    if tail.is_closed:
        headers.append((wire.CLOSED, "true"))
    return headers


def _expiry_headers(stream: StreamInfo) -> tuple[tuple[str, str], ...]:
    if stream.expiry.ttl_seconds is not None:
        return ((wire.STREAM_TTL, str(stream.expiry.ttl_seconds)),)
    if stream.expiry.expires_at is not None:
        return ((wire.STREAM_EXPIRES_AT, stream_headers.format_timestamp(stream.expiry.expires_at)),)
    return ()


def _append_headers(request: AppendRequest, appended: Appended) -> list[tuple[str, str]]:
    headers = [*_tail_headers(appended.tail), asgi.NO_STORE]
    producer = appended.producer or request.producer
    if producer is not None:
        headers += [(wire.PRODUCER_EPOCH, str(producer.epoch)), (wire.PRODUCER_SEQ, str(producer.sequence))]
    return headers
