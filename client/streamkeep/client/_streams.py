"""Streams of the open protocol, read and written: `stream`, `DurableStream`, and both for asyncio.

Each class comes twice, as a thin shell over one core: the sync one runs the core's coroutines over a channel that
blocks, the async one awaits them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

import httpx

from streamkeep.client._calls import timeouts_of
from streamkeep.client._channel import AsyncChannel, BlockingChannel, run_blocking
from streamkeep.client._errors import BodyConsumed
from streamkeep.client._peer import Address, Peer, Value, Values
from streamkeep.client._reading import StreamReading
from streamkeep.client._retry import Patience
from streamkeep.client._rules import decoding, protocol
from streamkeep.client._rules.decoding import Decoder, JsonBatch, ServerSentEvent, StreamChunk
from streamkeep.client._rules.reading import Live
from streamkeep.client._rules.schemas import message_codec

T = TypeVar("T")
D = TypeVar("D")

LiveMode = bool | Literal["sse", "long-poll"]

DEFAULT_STREAM_TIMEOUT = httpx.Timeout(30.0, connect=5.0, read=None)

_LIVE: dict[LiveMode, Live] = {False: Live.NO, True: Live.AUTO, "sse": Live.EVENTS, "long-poll": Live.LONG_POLL}


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as its server tells of it. `ttl_seconds` is the sliding window; `expires_at` is RFC 3339; `schema_url` is
    where the JSON Schema of its messages is read, if it has one."""

    content_type: str
    offset: str
    is_closed: bool
    ttl_seconds: int | None = None
    expires_at: str | None = None
    etag: str | None = None
    schema_url: str | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: `offset` is the tail after it."""

    offset: str
    is_closed: bool


@dataclass(frozen=True, slots=True)
class StreamData:
    """All that a read gave. Read on from `offset`."""

    data: bytes
    offset: str
    content_type: str
    is_closed: bool
    parts: tuple[bytes, ...]

    @property
    def text(self) -> str:
        """The data as UTF-8; what is none becomes U+FFFD."""
        return self.data.decode("utf-8", "replace")

    @overload
    def json(self) -> list[Any]: ...
    @overload
    def json(self, *, schema: type[T]) -> list[T]: ...
    @overload
    def json(self, *, schema: Mapping[str, Any]) -> list[Any]: ...
    def json(self, *, schema: object = None) -> list[Any]:
        """The messages of a JSON stream; with a `schema`, as instances of a dataclass or a Pydantic model, or checked by a
        JSON Schema. Raises: ProtocolError, InvalidMessage."""
        return list(map(_decoder(schema), (item for part in self.parts for item in protocol.messages(part))))


def stream(
    url: Value,
    *,
    offset: str | None = None,
    live: LiveMode = True,
    headers: Values | None = None,
    params: Values | None = None,
    timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
    patience: Patience | None = None,
    http: httpx.BaseTransport | None = None,
) -> StreamResponse:
    """Read a stream from an offset on: what is there first, then, if `live`, what comes until the stream is closed.

    Use it as a context manager; the first request is made on entering. `offset` is one that a server gave, "-1" for the
    start (the default), or "now" for the tail. `live` waits for more by server-sent events or by long-polls; True
    chooses by the content, and False stops at the tail. `url`, headers and parameters are values or callables; see
    `DurableStream`. `timeout` bounds how long one may wait for the next piece; by default that is for ever.

    Raises, on entering and while it is read:
        StreamNotFound, StreamGone, InvalidOffset, ServerError: the server refused.
        ConnectionFailed, ProtocolError: it cannot be reached, or what answers is no stream.
        httpx.ReadTimeout: nothing came within `timeout`; the next call goes on.
    """
    channel = BlockingChannel(http)
    peer = Peer(channel, Address(url, headers, params), within=timeouts_of(timeout), patience=patience or Patience())
    return StreamResponse(StreamCore(peer, offset, live, owns_channel=True))


def astream(
    url: Value,
    *,
    offset: str | None = None,
    live: LiveMode = True,
    headers: Values | None = None,
    params: Values | None = None,
    timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
    patience: Patience | None = None,
    http: httpx.AsyncBaseTransport | None = None,
) -> AsyncStreamResponse:
    """`stream` for asyncio, as an async context manager."""
    channel = AsyncChannel(http)
    peer = Peer(channel, Address(url, headers, params), within=timeouts_of(timeout), patience=patience or Patience())
    return AsyncStreamResponse(StreamCore(peer, offset, live, owns_channel=True))


class _Items(Generic[T]):
    """What a decoder makes of a reading, one by one."""

    def __init__(self, core: StreamCore, decoder: Decoder[T], *, with_data: bool) -> None:
        self.decoder = decoder
        self._core = core
        self._with_data = with_data
        self._ready: deque[T] = deque()
        self._offset = core.offset
        self._is_over = False

    async def next(self) -> T:
        """Raises: StopAsyncIteration at the end, and what `StreamReading.next_piece` does."""
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            try:
                piece = await self._core.reading.next_piece(with_data=self._with_data)
            finally:
                self._observe()
            if piece is None:
                self._is_over = True
                self._ready.extend(self.decoder.end())
            else:
                self._ready.extend(self.decoder.feed(piece))
            if not self._ready:
                self._settle()
        item = self._ready.popleft()
        if not self._ready:
            self._settle()
        return item

    def _observe(self) -> None:
        """What came without data tells where the reader stands too: at a tail, or at the end."""
        last = self._core.reading.last
        if last is not None:
            self._offset = last.offset
            self._core.is_up_to_date, self._core.is_closed = last.is_up_to_date, last.is_closed
            if not last.parts:
                self._settle()

    def _settle(self) -> None:
        """Nothing is ready: the offset moves on when everything before it is in the caller's hands."""
        if self._is_over or not self.decoder.holds_back:
            self._core.offset = self._offset


class StreamCore:
    """One reading of a stream, and how far its caller has come."""

    def __init__(self, peer: Peer, offset: str | None, live: LiveMode, *, owns_channel: bool) -> None:
        if live not in _LIVE:
            raise ValueError(f"live must be True, False, 'sse' or 'long-poll', not {live!r}")
        if offset == "":
            raise ValueError("an offset is never empty; '-1' is the start")
        self.offset: str = protocol.START if offset is None else offset
        self.is_up_to_date = False
        self.is_closed = False
        self.reading: StreamReading = StreamReading(peer, offset=self.offset, live=_LIVE[live])
        self._peer = peer
        self._owns_channel = owns_channel
        self._items: _Items[Any] | None = None

    def __repr__(self) -> str:
        return f"{self._peer.address!r} at {self.offset}"

    def items(self, decoder: Decoder[T], *, with_data: bool = True) -> _Items[T]:
        """The one iteration of this reading. Raises: BodyConsumed: it was begun as something else."""
        if self._items is None:
            self._items = _Items(self, decoder, with_data=with_data)
        if type(self._items.decoder) is not type(decoder):
            raise BodyConsumed(f"the stream is being read as {type(self._items.decoder).__name__.lower()} already")
        return self._items

    async def all(self) -> StreamData:
        """Everything to the end."""
        chunks = self.items(decoding.Bytes())
        parts: list[bytes] = []
        try:
            while True:
                parts.append(await chunks.next())
        except StopAsyncIteration:
            content_type = self.reading.position.content_type or ""
            return StreamData(b"".join(parts), self.offset, content_type, self.is_closed, tuple(parts))

    async def close(self) -> None:
        await self.reading.close()
        if self._owns_channel:
            await self._peer.channel.close()


class _Response:
    """What both kinds of responses tell."""

    def __init__(self, core: StreamCore) -> None:
        self._core = core

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._core!r}>"

    @property
    def offset(self) -> str:
        """Where to read on: everything before it was given out whole."""
        return self._core.offset

    @property
    def content_type(self) -> str | None:
        """The stream's type; None before the first answer."""
        return self._core.reading.position.content_type

    @property
    def is_up_to_date(self) -> bool:
        """Whether what was given last reaches the tail, as it was then."""
        return self._core.is_up_to_date

    @property
    def is_closed(self) -> bool:
        """Whether the stream is closed, and all of it was given."""
        return self._core.is_closed


class StreamResponse(_Response):
    """A stream as it is read, in one of these ways: bytes, text, lines, messages, batches of them, or events.

    An iteration that was left goes on where it was when it is begun again in the same way.
    """

    def __enter__(self) -> Self:
        try:
            run_blocking(self._core.reading.begin())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        return self.iter_bytes()

    def iter_bytes(self) -> Iterator[bytes]:
        """The bytes as they come."""
        return _Blocking(self._core.items(decoding.Bytes()))

    def iter_text(self, encoding: str = "utf-8") -> Iterator[str]:
        """The text as it comes, never half a character; what is none becomes U+FFFD."""
        return _Blocking(self._core.items(decoding.Text(encoding)))

    def iter_lines(self) -> Iterator[str]:
        """Lines of UTF-8, without their ends."""
        return _Blocking(self._core.items(decoding.Lines()))

    @overload
    def iter_json(self) -> Iterator[Any]: ...
    @overload
    def iter_json(self, *, schema: type[T]) -> Iterator[T]: ...
    @overload
    def iter_json(self, *, schema: Mapping[str, Any]) -> Iterator[Any]: ...
    def iter_json(self, *, schema: object = None) -> Iterator[Any]:
        """The messages of a JSON stream, one by one; with a `schema`, as instances of a dataclass or a Pydantic model, or
        checked by a JSON Schema.

        Raises:
            ProtocolError: it is no JSON stream.
            InvalidMessage: a message is not as the schema says; the iteration may go on behind it.
        """
        return map(_decoder(schema), _Blocking(self._core.items(decoding.Messages())))

    @overload
    def iter_json_batches(self) -> Iterator[JsonBatch[Any]]: ...
    @overload
    def iter_json_batches(self, *, schema: type[T]) -> Iterator[JsonBatch[T]]: ...
    @overload
    def iter_json_batches(self, *, schema: Mapping[str, Any]) -> Iterator[JsonBatch[Any]]: ...
    def iter_json_batches(self, *, schema: object = None) -> Iterator[JsonBatch[Any]]:
        """Its messages as they come together, each batch with the offset after it; an empty one tells of the tail."""
        return map(_batch_decoder(schema), _Blocking(self._core.items(decoding.Batches(), with_data=False)))

    def iter_chunks(self) -> Iterator[StreamChunk]:
        """The bytes as they come, each chunk with the offset after it; an empty one tells of the tail."""
        return _Blocking(self._core.items(decoding.Chunks(), with_data=False))

    def iter_events(self) -> Iterator[ServerSentEvent]:
        """The events of a stream whose content is server-sent events, as LLM vendors answer."""
        return _Blocking(self._core.items(decoding.Events()))

    def read_bytes(self) -> bytes:
        """All of it, to the end; of a live read that is when the stream is closed."""
        return run_blocking(self._core.all()).data

    def read_text(self) -> str:
        """`read_bytes` as UTF-8."""
        return run_blocking(self._core.all()).text

    @overload
    def read_json(self) -> list[Any]: ...
    @overload
    def read_json(self, *, schema: type[T]) -> list[T]: ...
    @overload
    def read_json(self, *, schema: Mapping[str, Any]) -> list[Any]: ...
    def read_json(self, *, schema: Any = None) -> list[Any]:
        """All messages to the end. Raises: ProtocolError, InvalidMessage, as `iter_json`."""
        return run_blocking(self._core.all()).json(schema=schema)

    def close(self) -> None:
        """Stop reading."""
        run_blocking(self._core.close())


class AsyncStreamResponse(_Response):
    """`StreamResponse` for asyncio."""

    async def __aenter__(self) -> Self:
        try:
            await self._core.reading.begin()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.iter_bytes()

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """`StreamResponse.iter_bytes`, awaited."""
        return _Awaited(self._core.items(decoding.Bytes()))

    def iter_text(self, encoding: str = "utf-8") -> AsyncIterator[str]:
        """`StreamResponse.iter_text`, awaited."""
        return _Awaited(self._core.items(decoding.Text(encoding)))

    def iter_lines(self) -> AsyncIterator[str]:
        """`StreamResponse.iter_lines`, awaited."""
        return _Awaited(self._core.items(decoding.Lines()))

    @overload
    def iter_json(self) -> AsyncIterator[Any]: ...
    @overload
    def iter_json(self, *, schema: type[T]) -> AsyncIterator[T]: ...
    @overload
    def iter_json(self, *, schema: Mapping[str, Any]) -> AsyncIterator[Any]: ...
    def iter_json(self, *, schema: object = None) -> AsyncIterator[Any]:
        """`StreamResponse.iter_json`, awaited."""
        return _AwaitedMap(_decoder(schema), self._core.items(decoding.Messages()))

    @overload
    def iter_json_batches(self) -> AsyncIterator[JsonBatch[Any]]: ...
    @overload
    def iter_json_batches(self, *, schema: type[T]) -> AsyncIterator[JsonBatch[T]]: ...
    @overload
    def iter_json_batches(self, *, schema: Mapping[str, Any]) -> AsyncIterator[JsonBatch[Any]]: ...
    def iter_json_batches(self, *, schema: object = None) -> AsyncIterator[JsonBatch[Any]]:
        """`StreamResponse.iter_json_batches`, awaited."""
        return _AwaitedMap(_batch_decoder(schema), self._core.items(decoding.Batches(), with_data=False))

    def iter_chunks(self) -> AsyncIterator[StreamChunk]:
        """`StreamResponse.iter_chunks`, awaited."""
        return _Awaited(self._core.items(decoding.Chunks(), with_data=False))

    def iter_events(self) -> AsyncIterator[ServerSentEvent]:
        """`StreamResponse.iter_events`, awaited."""
        return _Awaited(self._core.items(decoding.Events()))

    async def read_bytes(self) -> bytes:
        """`StreamResponse.read_bytes`, awaited."""
        return (await self._core.all()).data

    async def read_text(self) -> str:
        """`StreamResponse.read_text`, awaited."""
        return (await self._core.all()).text

    @overload
    async def read_json(self) -> list[Any]: ...
    @overload
    async def read_json(self, *, schema: type[T]) -> list[T]: ...
    @overload
    async def read_json(self, *, schema: Mapping[str, Any]) -> list[Any]: ...
    async def read_json(self, *, schema: Any = None) -> list[Any]:
        """`StreamResponse.read_json`, awaited."""
        return (await self._core.all()).json(schema=schema)

    async def aclose(self) -> None:
        """Stop reading."""
        await self._core.close()


class _Blocking(Generic[T]):
    def __init__(self, items: _Items[T]) -> None:
        self._items = items

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return run_blocking(self._items.next())
        except StopAsyncIteration:
            raise StopIteration from None


class _Awaited(Generic[T]):
    def __init__(self, items: _Items[T]) -> None:
        self._items = items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await self._items.next()


class _AwaitedMap(Generic[T, D]):
    def __init__(self, work: Callable[[T], D], items: _Items[T]) -> None:
        self._work = work
        self._items = items

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> D:
        return self._work(await self._items.next())


def _decoder(schema: object) -> Callable[[object], Any]:
    return _as_it_is if schema is None else message_codec(schema).decode


def _batch_decoder(schema: object) -> Callable[[JsonBatch[Any]], JsonBatch[Any]]:
    decode = _decoder(schema)
    return lambda batch: replace(batch, items=tuple(map(decode, batch.items)))


def _as_it_is(value: object) -> object:
    return value
