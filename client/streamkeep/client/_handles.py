"""A stream to write to: `DurableStream` and `AsyncDurableStream`, two shells over one core."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar, overload
from urllib.parse import urlsplit

import httpx

from streamkeep.client._calls import timeouts_of
from streamkeep.client._channel import AsyncChannel, BlockingChannel, run_blocking
from streamkeep.client._peer import Address, Peer, PeerAnswer, Value, Values
from streamkeep.client._retry import Patience
from streamkeep.client._rules import protocol, wire
from streamkeep.client._rules.schemas import header_of, message_codec
from streamkeep.client._streams import (
    DEFAULT_STREAM_TIMEOUT,
    Appended,
    AsyncStreamResponse,
    LiveMode,
    StreamCore,
    StreamData,
    StreamInfo,
    StreamResponse,
)

T = TypeVar("T")

OCTETS = "application/octet-stream"


class DurableStream:
    """One stream by its URL. Making a handle asks nothing of the server; `create` and `connect` do.

    `url`, and each value in `headers` and `params`, is a text or a callable that gives one. Those of headers and params are
    asked before every request; the URL's own at first, and again when the server answers 401, so that is where a signature
    that has expired is renewed. `content_type` is asked of the server when it is needed and not given. `timeout` bounds the
    steps of a request; `patience` says how long they are repeated; `http` is the httpx transport, for TLS settings and
    the like. Leaving the handle's context, or `disconnect`, closes its connections and no stream. Several threads may
    share a handle.
    """

    def __init__(
        self,
        url: Value,
        *,
        content_type: str | None = None,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.BaseTransport | None = None,
    ) -> None:
        peer = Peer(
            BlockingChannel(http),
            Address(url, headers, params),
            within=timeouts_of(timeout),
            patience=patience or Patience(),
        )
        self._core = HandleCore(peer, content_type)

    def __repr__(self) -> str:
        return f"<DurableStream {self._core!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    @classmethod
    def create(
        cls,
        url: Value,
        *,
        content_type: str = OCTETS,
        schema: type[Any] | Mapping[str, Any] | None = None,
        ttl_seconds: int | None = None,
        expires_at: datetime | str | None = None,
        data: object = None,
        closed: bool = False,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.BaseTransport | None = None,
    ) -> Self:
        """Create the stream, with `data` as its first content, or find the one that was created so before.

        It expires `ttl_seconds` after it was last used, or at `expires_at`, an aware datetime or RFC 3339 text. With a
        `schema`, which is a JSON Schema, a dataclass or a Pydantic model, it is a JSON stream, and the server refuses
        whatever is not as it says, whoever appends it; servers of others overlook it.

        Raises:
            StreamExists: a stream with another configuration has this URL.
            SchemaViolation: the data is not as the schema says; nothing was made.
            ServerError, ConnectionFailed, ProtocolError: the server refused, or cannot be reached.
        """
        handle = cls(
            url,
            content_type=protocol.JSON if schema is not None and content_type == OCTETS else content_type,
            headers=headers,
            params=params,
            timeout=timeout,
            patience=patience,
            http=http,
        )
        try:
            run_blocking(handle._core.create(schema, ttl_seconds, expires_at, data, closed))
        except BaseException:
            handle.disconnect()
            raise
        return handle

    @classmethod
    def connect(
        cls,
        url: Value,
        *,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.BaseTransport | None = None,
    ) -> Self:
        """A handle for a stream that is there. Raises: StreamNotFound, StreamGone, and what `create` does."""
        handle = cls(url, headers=headers, params=params, timeout=timeout, patience=patience, http=http)
        try:
            handle.head()
        except BaseException:
            handle.disconnect()
            raise
        return handle

    @property
    def content_type(self) -> str | None:
        """The stream's type, as far as it is known."""
        return self._core.content_type

    def head(self) -> StreamInfo:
        """What the server tells of the stream. Raises: StreamNotFound, StreamGone, ServerError, ConnectionFailed."""
        return run_blocking(self._core.head())

    @overload
    def append(self, data: object, *, seq: str | None = None, close: bool = False) -> Appended: ...
    @overload
    def append(
        self, data: T | Mapping[str, Any], *, schema: type[T], seq: str | None = None, close: bool = False
    ) -> Appended: ...
    @overload
    def append(
        self, data: object, *, schema: Mapping[str, Any], seq: str | None = None, close: bool = False
    ) -> Appended: ...
    def append(self, data: object, *, schema: object = None, seq: str | None = None, close: bool = False) -> Appended:
        """Append, and with `close` close the stream in the same step; durable when this returns.

        `data` is bytes or text. For a JSON stream those are one message as JSON, and any other value is turned into one,
        a dataclass or a Pydantic model too. With a `schema`, `data` is a value, whatever it is, and checked before it is
        sent: an instance of the dataclass or model, JSON that makes one, or what the JSON Schema admits.
        `seq` is refused unless it sorts after the one before. What was sent and not answered is not sent again, since it
        may be stored: `IdempotentProducer` may repeat it.

        Raises:
            StreamClosed, SequenceConflict, StreamNotFound, StreamGone, SchemaViolation, ServerError: nothing was stored,
                but for a ServerError of 500 or more, which leaves it open.
            InvalidMessage: it is not as the given schema says; nothing was sent.
            ConnectionFailed: not answered; whether it was stored is not known.
            TypeError, ValueError: the data cannot be appended to such a stream.
        """
        return run_blocking(self._core.append(data, schema, seq, close))

    def close(self, data: object = None) -> str:
        """Close the stream, with `data` as its last append; its final offset. Closing again is no error.

        Raises what `append` does.
        """
        return run_blocking(self._core.close(data))

    def delete(self) -> None:
        """Delete the stream. Raises: StreamNotFound, StreamGone, ServerError, ConnectionFailed."""
        run_blocking(self._core.delete())

    def fork(
        self,
        url: str,
        *,
        offset: str | None = None,
        sub_offset: int = 0,
        ttl_seconds: int | None = None,
        expires_at: datetime | str | None = None,
    ) -> DurableStream:
        """Create a stream on the same server that begins with this one's data up to `offset`, by default all of it.

        `sub_offset` is so many messages, or bytes, further. Without an expiry it takes over this stream's. The new handle
        shares connections, headers and parameters with this one.

        Raises:
            StreamNotFound, StreamExists, InvalidOffset, ServerError, ConnectionFailed.
        """
        forked = DurableStream.__new__(DurableStream)
        forked._core = run_blocking(self._core.fork(url, offset, sub_offset, ttl_seconds, expires_at))
        return forked

    def read(self, *, offset: str | None = None, live: LiveMode = False) -> StreamData:
        """All that is there from an offset on, and the offset after it; with `live`, until the stream is closed.

        Raises what `stream` does.
        """
        return run_blocking(self._core.read(offset, live))

    def stream(self, *, offset: str | None = None, live: LiveMode = True) -> StreamResponse:
        """Read the stream piece by piece; see `streamkeep.client.stream`."""
        return StreamResponse(self._core.reading(offset, live))

    def disconnect(self) -> None:
        """Close the handle's connections."""
        run_blocking(self._core.peer.channel.close())


class AsyncDurableStream:
    """`DurableStream` for asyncio."""

    def __init__(
        self,
        url: Value,
        *,
        content_type: str | None = None,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        peer = Peer(
            AsyncChannel(http),
            Address(url, headers, params),
            within=timeouts_of(timeout),
            patience=patience or Patience(),
        )
        self._core = HandleCore(peer, content_type)

    def __repr__(self) -> str:
        return f"<AsyncDurableStream {self._core!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

    @classmethod
    async def create(
        cls,
        url: Value,
        *,
        content_type: str = OCTETS,
        schema: type[Any] | Mapping[str, Any] | None = None,
        ttl_seconds: int | None = None,
        expires_at: datetime | str | None = None,
        data: object = None,
        closed: bool = False,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,  # noqa: ASYNC109  # several limits
        patience: Patience | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> Self:
        """`DurableStream.create`, awaited."""
        handle = cls(
            url,
            content_type=protocol.JSON if schema is not None and content_type == OCTETS else content_type,
            headers=headers,
            params=params,
            timeout=timeout,
            patience=patience,
            http=http,
        )
        try:
            await handle._core.create(schema, ttl_seconds, expires_at, data, closed)
        except BaseException:
            await handle.disconnect()
            raise
        return handle

    @classmethod
    async def connect(
        cls,
        url: Value,
        *,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,  # noqa: ASYNC109  # several limits
        patience: Patience | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> Self:
        """`DurableStream.connect`, awaited."""
        handle = cls(url, headers=headers, params=params, timeout=timeout, patience=patience, http=http)
        try:
            await handle.head()
        except BaseException:
            await handle.disconnect()
            raise
        return handle

    @property
    def content_type(self) -> str | None:
        """The stream's type, as far as it is known."""
        return self._core.content_type

    async def head(self) -> StreamInfo:
        """`DurableStream.head`, awaited."""
        return await self._core.head()

    @overload
    async def append(self, data: object, *, seq: str | None = None, close: bool = False) -> Appended: ...
    @overload
    async def append(
        self, data: T | Mapping[str, Any], *, schema: type[T], seq: str | None = None, close: bool = False
    ) -> Appended: ...
    @overload
    async def append(
        self, data: object, *, schema: Mapping[str, Any], seq: str | None = None, close: bool = False
    ) -> Appended: ...
    async def append(
        self, data: object, *, schema: object = None, seq: str | None = None, close: bool = False
    ) -> Appended:
        """`DurableStream.append`, awaited."""
        return await self._core.append(data, schema, seq, close)

    async def close(self, data: object = None) -> str:
        """`DurableStream.close`, awaited."""
        return await self._core.close(data)

    async def delete(self) -> None:
        """`DurableStream.delete`, awaited."""
        await self._core.delete()

    async def fork(
        self,
        url: str,
        *,
        offset: str | None = None,
        sub_offset: int = 0,
        ttl_seconds: int | None = None,
        expires_at: datetime | str | None = None,
    ) -> AsyncDurableStream:
        """`DurableStream.fork`, awaited."""
        forked = AsyncDurableStream.__new__(AsyncDurableStream)
        forked._core = await self._core.fork(url, offset, sub_offset, ttl_seconds, expires_at)
        return forked

    async def read(self, *, offset: str | None = None, live: LiveMode = False) -> StreamData:
        """`DurableStream.read`, awaited."""
        return await self._core.read(offset, live)

    def stream(self, *, offset: str | None = None, live: LiveMode = True) -> AsyncStreamResponse:
        """Read the stream piece by piece; see `streamkeep.client.astream`."""
        return AsyncStreamResponse(self._core.reading(offset, live))

    async def disconnect(self) -> None:
        """Close the handle's connections."""
        await self._core.peer.channel.close()


class HandleCore:
    """What both handles do, over a channel of either kind."""

    def __init__(self, peer: Peer, content_type: str | None) -> None:
        self.peer = peer
        self.content_type = content_type

    def __repr__(self) -> str:
        return repr(self.peer.address)

    async def create(
        self, schema: object, ttl_seconds: int | None, expires_at: datetime | str | None, data: object, closed: bool
    ) -> None:
        headers = {"Content-Type": self.content_type or OCTETS, **_expiry(ttl_seconds, expires_at)}
        if schema is not None:
            headers[protocol.SCHEMA] = header_of(schema)
        if closed:
            headers[wire.CLOSED] = "true"
        await self.peer.ask("PUT", headers, b"" if data is None else self._body(data))

    async def head(self) -> StreamInfo:
        answer = await self.peer.ask("HEAD")
        head = protocol.parse_head(answer.headers)
        self.content_type = head.content_type or self.content_type
        ttl = answer.headers.get(protocol.TTL, "")
        return StreamInfo(
            content_type=head.content_type,
            offset=head.next_offset,
            is_closed=head.is_closed,
            ttl_seconds=int(ttl) if ttl.isascii() and ttl.isdigit() else None,
            expires_at=answer.headers.get(protocol.EXPIRES_AT),
            etag=answer.headers.get("ETag"),
            schema_url=protocol.schema_url(answer.headers.get("Link")),
        )

    async def append(self, data: object, schema: object, seq: str | None, close: bool) -> Appended:
        content_type = await self.known_type()
        if schema is not None:
            if not protocol.is_json(content_type):
                raise TypeError(f"a schema goes with a JSON stream, not with one of type {content_type}")
            data = protocol.json_text(message_codec(schema).encode(data))
        body = self._body(data)
        if not body:
            raise ValueError("an append has at least one byte")
        headers = {} if seq is None else {protocol.SEQUENCE: seq}
        return appended(await self.send(headers, body, closes=close, is_repeatable=False))

    async def close(self, data: object) -> str:
        if data is not None:
            return (await self.append(data, None, None, True)).offset
        return appended(await self.send({}, b"", closes=True, is_repeatable=True)).offset

    async def delete(self) -> None:
        await self.peer.ask("DELETE")

    async def fork(
        self,
        url: str,
        offset: str | None,
        sub_offset: int,
        ttl_seconds: int | None,
        expires_at: datetime | str | None,
    ) -> HandleCore:
        source = urlsplit(await self.peer.address.url())
        target = self.peer.at(url)
        if wire.origin(url) != wire.origin(source.geturl()):
            raise ValueError("a fork lives on the server of its source")
        headers = {protocol.FORKED_FROM: source.path, **_expiry(ttl_seconds, expires_at)}
        if offset is not None:
            headers[protocol.FORK_OFFSET] = offset
        if sub_offset:
            headers[protocol.FORK_SUB_OFFSET] = str(sub_offset)
        answer = await target.ask("PUT", headers)
        return HandleCore(target, answer.headers.get("Content-Type", self.content_type))

    async def read(self, offset: str | None, live: LiveMode) -> StreamData:
        reading = self.reading(offset, live)
        try:
            return await reading.all()
        finally:
            await reading.close()

    def reading(self, offset: str | None, live: LiveMode) -> StreamCore:
        return StreamCore(self.peer, offset, live, owns_channel=False)

    async def known_type(self) -> str:
        """The stream's content type, asked of the server where nobody said it."""
        if self.content_type is None:
            await self.head()
        return self.content_type or OCTETS

    async def send(self, headers: dict[str, str], body: bytes, *, closes: bool, is_repeatable: bool) -> PeerAnswer:
        """Append a body, close the stream, or both."""
        if body:
            headers = {**headers, "Content-Type": await self.known_type()}
        if closes:
            headers = {**headers, wire.CLOSED: "true"}
        return await self.peer.ask("POST", headers, body, is_repeatable=is_repeatable)

    def _body(self, data: object) -> bytes:
        payload = protocol.payload(data, self.content_type)
        return protocol.body_of([payload], self.content_type) if payload else b""


def appended(answer: PeerAnswer) -> Appended:
    """Raises: ProtocolError."""
    offset = answer.headers.get(wire.NEXT_OFFSET)
    # A repeat that the server knows is answered without an offset by some.
    is_closed = protocol.is_true(answer.headers.get(wire.CLOSED))
    return Appended("" if offset is None else protocol.check_offset(offset), is_closed)


def _expiry(ttl_seconds: int | None, expires_at: datetime | str | None) -> dict[str, str]:
    headers: dict[str, str] = {}
    if ttl_seconds is not None:
        headers[protocol.TTL] = str(ttl_seconds)
    if isinstance(expires_at, datetime):
        if expires_at.tzinfo is None:
            raise ValueError("expires_at needs a time zone")
        expires_at = expires_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if expires_at is not None:
        headers[protocol.EXPIRES_AT] = expires_at
    return headers
