"""Durable responses of a FastAPI or Starlette app: what an async generator yields is kept in a stream, and read from there.

A generation belongs to a chat. It is written to a stream of its own, or, for front ends that read one stream for the whole
chat, to that; the streams are on any server of the open protocol. The front end is answered in the shape that it expects,
and reads what is kept; the generator goes on whether it does or not.

**Once.** Each chat has a log, a JSON stream. Whoever is to generate appends a claim to it, and the first claim of an id wins;
everybody else joins. Nothing of a generator runs before that.

**Ends.** A generation ends when its stream is closed. Before that comes, unless the generator ended by itself, one message
that says why: a reader never takes a failure for the end. Each process keeps a lease, a stream with a short TTL that it reads
again and again. Where the lease of a generation's process is gone, whoever meets the generation ends it, as the same
producer with the next epoch: the server refuses what the process may still write should it be alive after all.

    {root}/{chat}                    the log: {"generation", "claim", "owner", "shared"}
    {root}/{chat}/{generation}       its chunks; empty where they are in the chat's stream, but closed at its end all the same
    {root}/{chat}/~messages          the chat's stream
    {root}/~owners/{owner}           a lease
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import anyio
import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from streamkeep.adapters._in_process import InProcess
from streamkeep.adapters._rules.ag_ui import messages_of
from streamkeep.adapters._sources import closed_afterwards
from streamkeep.client import (
    AsyncDurableStream,
    AsyncIdempotentProducer,
    AsyncStreamResponse,
    InvalidOffset,
    JsonBatch,
    StreamClosed,
    StreamExists,
    StreamGone,
    StreamkeepError,
    StreamNotFound,
)

__all__ = ["DurableResponses", "InProcess"]

logger: logging.Logger = logging.getLogger(__name__)

Chunks = AsyncIterable[object]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@-]{0,199}")
_JSON = "application/json"
_NO_STORE = {"Cache-Control": "no-store"}
_EVENTS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
]
_LAST_WORDS_SECONDS = 5.0
_SILENCE_SECONDS = 90.0
_EVENT_ID = re.compile(r"([^/]{1,256})/([0-9]{1,9})")
# What a read of a stream may be asked, and what its answer tells; everything else stays between us and the server.
_READ_PARAMETERS = ("offset", "live", "cursor", "encoding")
_READ_HEADERS = ("accept", "last-event-id")
_ANSWER_HEADERS = (b"content-type", b"content-length", b"retry-after", b"x-accel-buffering")
_ANSWER_STATUSES = frozenset({200, 204, 400, 404, 410, 429, 503})


class InvalidId(ValueError):
    """A chat or a generation has an id that cannot stand in a URL."""


@dataclass(frozen=True, slots=True)
class _Generation:
    """What a chat's log says of one. `is_shared`: its chunks go to the chat's stream."""

    chat: str
    id: str
    claim: str
    owner: str
    is_shared: bool

    @classmethod
    def parse(cls, chat: str, entry: dict[str, Any]) -> _Generation:
        return cls(chat, entry["generation"], entry["claim"], entry["owner"], entry["shared"])

    def entry(self) -> dict[str, Any]:
        return {"generation": self.id, "claim": self.claim, "owner": self.owner, "shared": self.is_shared}

    @property
    def path(self) -> str:
        return _path(self.chat, self.id)

    @property
    def chunks_path(self) -> str:
        return f"{self.chat}/~messages" if self.is_shared else self.path

    def failure(self, text: str) -> dict[str, Any]:
        """The last message of a generation that did not come to its end."""
        if self.is_shared:
            return {"type": "RUN_ERROR", "message": text, "error": {"message": text}}
        return {"type": "error", "errorText": text}


class DurableResponses:
    """Answers of one app, kept below `url` on a server of the open protocol.

    Use it as a context manager for as long as the app runs. `read_url` is where front ends read: a route of yours that calls
    `read`, or the server itself where it is public; in it `{chat}` and `{generation}` are filled in, and a relative one is
    resolved by the front end. `key` and `headers` are for the server alone. `http` is the httpx transport, as for TLS
    settings; with `InProcess(create_app(store=…))` the server is a part of this process, and `url` any below its
    `/v1/stream/`. `ttl_seconds` is how long what is not read any more is kept.

    `error_text` says what front ends are told of an exception in a generator; that is logged in any case. When the
    context is left, generations have `drain_seconds` to end by themselves. When a process dies, others end its generations
    `lease_seconds` later, once somebody asks or reads.

    Raises:
        ValueError: `url` is not absolute http.
    """

    def __init__(
        self,
        url: str,
        *,
        read_url: str,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        http: httpx.AsyncBaseTransport | None = None,
        ttl_seconds: int = 7 * 24 * 3600,
        error_text: Callable[[Exception], str] = lambda _: "the answer broke off",
        drain_seconds: float = 10.0,
        lease_seconds: int = 15,
    ) -> None:
        self._root = url.rstrip("/")
        self._read_url = read_url
        self._headers = dict(headers or {}) if key is None else {**(headers or {}), "Streamkeep-Key": key}
        self._ttl_seconds = ttl_seconds
        self._error_text = error_text
        self._drain_seconds = drain_seconds
        self._lease_seconds = lease_seconds
        self._owner = uuid.uuid4().hex
        self._claims: set[str] = set()
        self._stopped: set[str] = set()
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._watches: dict[tuple[str, str | None], _Watch] = {}
        self._transport = http or httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None))
        self._lease: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<DurableResponses {len(self._runs)} running>"

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        self._lease = asyncio.create_task(self._renew_lease_for_ever())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._runs:
            await asyncio.wait(self._runs.values(), timeout=self._drain_seconds)
        assert self._lease is not None
        ending = {self._lease, *self._runs.values()}
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)
        await self._transport.__aexit__()

    # What the routes of an app answer

    async def ai_sdk(self, chat: str, generation: str, chunks: Chunks, *, wait: bool = False) -> Response:
        """Answer a message of the AI SDK: 201 with `Location` and `{streamUrl}`, or 200 where the generation was there.

        `chunks` are UI message chunks. They are asked for only if nobody generates `generation` yet. With `wait` the answer
        comes after the end.
        """
        try:
            made = await self._begin(chat, generation, chunks, is_shared=False)
            if wait:
                return self._location(chat, generation, 200, finalOffset=await self._ended(chat, generation))
        except (InvalidId, StreamkeepError) as exc:
            return _refusal(exc)
        return self._location(chat, generation, 201 if made else 200)

    async def running(self, chat: str) -> Response:
        """Answer the AI SDK when it reconnects: 200 with `Location` and `{streamUrl}`, or 204 where nothing runs."""
        try:
            found = await self._running(chat)
        except (InvalidId, StreamkeepError) as exc:
            return _refusal(exc)
        if found is None:
            return Response(status_code=204, headers=_NO_STORE)
        return self._location(chat, found.id, 200)

    async def stop(self, chat: str, generation: str | None = None) -> Response:
        """Stop the named generation, or the chat's newest, wherever it runs: 204, also where nothing runs.

        Its readers are told as of a failure. The generator is closed: here at once, and in another process when it yields.
        """
        try:
            found = await self._running(chat, generation)
            if found is not None:
                await self._stop(found)
        except (InvalidId, StreamkeepError) as exc:
            return _refusal(exc)
        return Response(status_code=204, headers=_NO_STORE)

    async def tanstack(
        self,
        chat: str,
        generation: str,
        messages: Sequence[Mapping[str, Any]],
        chunks: Chunks,
        *,
        wait: bool = False,
    ) -> Response:
        """Answer a message of TanStack AI, which reads one stream for the whole chat: 202, or 200 with `wait`.

        `messages` are the new ones, which the chat's other readers get to see too; `chunks` are those of the answer. Both go
        to the chat's stream, unless somebody generates `generation` already.
        """
        try:
            made = await self._begin(chat, generation, _after_echo(messages, chunks), is_shared=True)
            if wait:
                await self._ended(chat, generation)
        except (InvalidId, StreamkeepError) as exc:
            return _refusal(exc)
        return Response(status_code=200 if wait or not made else 202, headers=_NO_STORE)

    async def snapshot(self, chat: str) -> Response:
        """Answer with the chat's messages so far, and the offset from which to read on: `{messages, offset}`.

        For a page that is made on the server, and for TanStack AI's `initialMessages` and `initialOffset`.
        """
        try:
            path = f"{_path(chat)}/~messages"
            await self._create(path)
            read = await self._stream(path).read()
        except (InvalidId, StreamkeepError) as exc:
            return _refusal(exc)
        return JSONResponse({"messages": messages_of(read.json()), "offset": read.offset}, headers=_NO_STORE)

    async def sse(self, chat: str, generation: str, chunks: Chunks) -> Response:
        """Answer with the generation itself as server-sent events: one for each chunk, as JSON, and `[DONE]` at its end.

        That is what the default transports of the AI SDK and of TanStack AI read. After a failure there is no `[DONE]`.
        """
        try:
            await self._begin(chat, generation, chunks, is_shared=False)
            return await self._events(chat, generation, "-1", 0)
        except (InvalidId, StreamkeepError) as exc:
            return _refusal(exc)

    async def resume_sse(self, request: Request, chat: str, generation: str | None = None) -> Response:
        """Answer with the chat's running generation, or the named one, as `sse` does; 204 where nothing runs.

        It begins at the first chunk, or where `Last-Event-ID` says; at the end that is 204 too, which stops an EventSource.
        """
        given = _EVENT_ID.fullmatch(request.headers.get("last-event-id", ""))
        offset, skipped = given.groups() if given else ("-1", "0")
        try:
            if generation is None:
                running = await self._running(chat)
                if running is None:
                    return Response(status_code=204, headers=_NO_STORE)
                generation = running.id
            events = await self._events(chat, generation, offset, int(skipped))
        except (InvalidId, StreamkeepError) as exc:
            return _refusal(exc)
        if given and events.is_over:
            await events.close()
            return Response(status_code=204, headers=_NO_STORE)
        return events

    async def read(self, request: Request, chat: str, generation: str | None = None) -> Response:
        """Answer a read of the open protocol: of a generation, or without one of the chat's stream.

        Whoever calls it decides who may read; the key stays here.
        """
        try:
            path = f"{_path(chat)}/~messages" if generation is None else _path(chat, generation)
            if generation is None:
                # A front end reads the chat's stream before anything was said.
                await self._create(path)
            answer = await self._forwarded(request, path)
            is_live = "live" in request.query_params and answer.status_code == 200
            return _Forwarded(answer, self._watched(chat, generation) if is_live else None)
        except (InvalidId, StreamkeepError, httpx.TransportError) as exc:
            return _refusal(exc)

    # What is kept

    def _stream(self, path: str) -> AsyncDurableStream:
        return AsyncDurableStream(
            f"{self._root}/{path}", content_type=_JSON, headers=self._headers, http=self._transport
        )

    async def _create(self, path: str, *, ttl_seconds: int | None = None) -> None:
        """Make a stream that may be there already."""
        with suppress(StreamExists):
            await AsyncDurableStream.create(
                f"{self._root}/{path}",
                content_type=_JSON,
                ttl_seconds=ttl_seconds or self._ttl_seconds,
                headers=self._headers,
                http=self._transport,
            )

    async def _log(self, chat: str) -> dict[str, _Generation]:
        """The generations of a chat by their ids, oldest first, each as it was claimed first."""
        try:
            entries = (await self._stream(_path(chat)).read()).json()
        except StreamNotFound:
            return {}
        found: dict[str, _Generation] = {}
        for entry in entries:
            claimed = _Generation.parse(chat, entry)
            found.setdefault(claimed.id, claimed)
        return found

    async def _renew_lease_for_ever(self) -> None:
        while True:
            try:
                try:
                    await self._stream(f"~owners/{self._owner}").read(offset="now")
                except StreamNotFound:
                    await self._create_lease()
            except StreamkeepError as exc:
                logger.warning("the lease could not be renewed: %s", type(exc).__name__)
            await asyncio.sleep(self._lease_seconds / 3)

    async def _create_lease(self) -> None:
        await self._create(f"~owners/{self._owner}", ttl_seconds=self._lease_seconds)

    # One generation

    async def _begin(self, chat: str, generation: str, chunks: Chunks, *, is_shared: bool) -> bool:
        """Generate, or join whoever does. Whether this call made it. Raises: InvalidId, StreamkeepError."""
        _path(chat, _checked(generation))
        claimed = (await self._log(chat)).get(generation)
        if claimed is None:
            wanted = _Generation(chat, generation, uuid.uuid4().hex, self._owner, is_shared)
            self._claims.add(wanted.claim)
            try:
                claimed = await self._claim(wanted)
            except BaseException:
                self._claims.discard(wanted.claim)
                raise
            if claimed == wanted:
                run = self._runs[wanted.claim] = asyncio.create_task(self._generate(wanted, chunks))
                run.add_done_callback(lambda _: self._forget(wanted))
                return True
            self._claims.discard(wanted.claim)
        await self._end_if_lost(claimed)
        return False

    async def _claim(self, wanted: _Generation) -> _Generation:
        paths = [_path(wanted.chat), wanted.path, *([wanted.chunks_path] if wanted.is_shared else [])]
        await asyncio.gather(self._create_lease(), *map(self._create, paths))
        # By a producer, which repeats what was not answered.
        async with AsyncIdempotentProducer(self._stream(_path(wanted.chat)), wanted.claim, max_in_flight=1) as log:
            await log.append(wanted.entry())
        return (await self._log(wanted.chat))[wanted.id]

    async def _generate(self, generation: _Generation, chunks: Chunks) -> None:
        """Write what the generator yields, to its end."""
        try:
            async with self._producer(generation) as producer, aclosing(self._told(generation, chunks)) as messages:
                try:
                    async for message in messages:
                        await producer.append(message)
                except asyncio.CancelledError:
                    what = "answer" if generation.claim in self._stopped else "server"
                    async with asyncio.timeout(_LAST_WORDS_SECONDS):
                        await producer.append(_encoded(generation.failure(f"the {what} was stopped")))
                        await self._close(generation, producer)
                    raise
                await self._close(generation, producer)
        except (StreamkeepError, TimeoutError) as exc:
            logger.warning("%s cannot be written any more: %s", generation.path, type(exc).__name__)
            with suppress(StreamkeepError, TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_SECONDS):
                    await self._end(generation, "the answer could not be stored whole")

    def _forget(self, generation: _Generation) -> None:
        """It is not generated here any more."""
        self._claims.discard(generation.claim)
        self._stopped.discard(generation.claim)
        del self._runs[generation.claim]

    async def _stop(self, generation: _Generation) -> None:
        run = self._runs.get(generation.claim)
        if run is not None:
            if generation.claim not in self._stopped:
                self._stopped.add(generation.claim)
                run.cancel()
            await asyncio.wait([run], timeout=_LAST_WORDS_SECONDS)
            if (await self._stream(generation.path).head()).is_closed:
                return
            # It was just about to begin or to end, and had no last words; or it takes no notice.
        await self._end(generation, "the answer was stopped")

    async def _told(self, generation: _Generation, chunks: Chunks) -> AsyncGenerator[bytes, None]:
        """What a generator yields, as messages, and behind them what went wrong in it."""
        try:
            async with closed_afterwards(chunks):
                async for chunk in chunks:
                    yield _encoded(chunk)
        except Exception as exc:
            logger.exception("the generator of %s failed", generation.path)
            yield _encoded(generation.failure(self._error_text(exc)))

    def _producer(self, generation: _Generation, *, epoch: int = 0) -> AsyncIdempotentProducer:
        stream = self._stream(generation.chunks_path)
        return AsyncIdempotentProducer(stream, generation.id, epoch=epoch, max_in_flight=1)

    async def _close(self, generation: _Generation, producer: AsyncIdempotentProducer) -> None:
        if generation.is_shared:
            await producer.flush()
            await self._stream(generation.path).close()
        else:
            await producer.close()

    async def _end_if_lost(self, generation: _Generation) -> bool:
        """End what nobody generates any more. Whether it has ended. Raises: StreamkeepError."""
        if generation.claim in self._claims:
            return False
        if (await self._stream(generation.path).head()).is_closed:
            return True
        if generation.owner != self._owner:
            with suppress(StreamNotFound, StreamGone):
                await self._stream(f"~owners/{generation.owner}").head()
                return False
        await self._end(generation, "the server that generated this is gone")
        return True

    async def _end(self, generation: _Generation, text: str) -> None:
        """Fence off whoever generates it, and end it as a failure; of several who do that the first one's counts."""
        with suppress(StreamClosed):
            async with self._producer(generation, epoch=1) as producer:
                await producer.append(_encoded(generation.failure(text)))
                await self._close(generation, producer)

    async def _running(self, chat: str, generation: str | None = None) -> _Generation | None:
        """The named generation, or else the newest, if it runs. Raises: InvalidId, StreamkeepError."""
        log = await self._log(chat)
        found = log.get(generation or next(reversed(log), ""))
        return None if found is None or await self._end_if_lost(found) else found

    async def _ended(self, chat: str, generation: str) -> str:
        """Wait for the end of a generation; its final offset. Raises: StreamkeepError."""
        async with self._watched(chat, generation), self._stream(_path(chat, generation)).stream(offset="now") as rest:
            async for _ in rest.iter_bytes():
                pass
            return rest.offset

    @asynccontextmanager
    async def _watched(self, chat: str, generation: str | None) -> AsyncIterator[None]:
        """See to it, while somebody reads, that what he reads has an end."""
        watch = self._watches.setdefault((chat, generation), _Watch())
        watch.readers += 1
        if watch.task is None:
            watch.task = asyncio.create_task(self._watch(chat, generation))
        try:
            yield
        finally:
            watch.readers -= 1
            if not watch.readers:
                del self._watches[chat, generation]
                watch.task.cancel()

    async def _watch(self, chat: str, generation: str | None) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            try:
                await self._running(chat, generation)
            except StreamkeepError as exc:
                logger.warning("a chat could not be looked at: %s", type(exc).__name__)

    # Answers

    def _location(self, chat: str, generation: str, status: int, **more: str) -> Response:
        url = self._read_url.replace("{chat}", quote(chat)).replace("{generation}", quote(generation))
        headers = {"Location": url, "Access-Control-Expose-Headers": "Location", **_NO_STORE}
        return JSONResponse({"streamUrl": url, **more}, status, headers)

    async def _events(self, chat: str, generation: str, offset: str, skipped: int) -> _Events:
        stream = self._stream(_path(chat, generation)).stream(offset=offset)
        events = _Events(self._watched(chat, generation), stream, offset, skipped)
        await events.begin()
        return events

    async def _forwarded(self, request: Request, path: str) -> httpx.Response:
        """The server's own answer to a read. Raises: httpx.TransportError."""
        query = {name: value for name, value in request.query_params.items() if name in _READ_PARAMETERS}
        headers = {name: value for name, value in request.headers.items() if name in _READ_HEADERS}
        timeout = {"connect": 5.0, "pool": 5.0, "write": 30.0, "read": _SILENCE_SECONDS}
        forwarded = httpx.Request(
            request.method,
            f"{self._root}/{path}",
            params=query,
            headers={"accept-encoding": "identity", **headers, **self._headers},
            extensions={"timeout": timeout},
        )
        return await self._transport.handle_async_request(forwarded)


@dataclass(slots=True)
class _Watch:
    """A task of this process that looks after one generation, and for how many readers."""

    readers: int = 0
    task: asyncio.Task[None] | None = None


class _Live(Response):
    """An answer that is sent as it comes, until its reader leaves."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_until_left, receive, tasks.cancel_scope)
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async with aclosing(self.pieces()) as pieces:
                    async for piece in pieces:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self.close()

    def pieces(self) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


async def _until_left(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class _Forwarded(_Live):
    """A read's answer as the server gives it. `watched` is entered while it is sent."""

    def __init__(self, answer: httpx.Response, watched: AbstractAsyncContextManager[None] | None) -> None:
        is_told = answer.status_code in _ANSWER_STATUSES
        super().__init__(status_code=answer.status_code if is_told else 502)
        self.raw_headers = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if is_told and (name.lower() in _ANSWER_HEADERS or name.lower().startswith(b"stream-"))
        ]
        self.raw_headers.append((b"cache-control", b"no-store, no-transform"))
        self._is_told = is_told
        self._answer = answer
        self._watched = watched

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        if not self._is_told:
            return
        assert isinstance(self._answer.stream, httpx.AsyncByteStream)
        async with self._watched or nullcontext():
            async for piece in self._answer.stream:
                yield piece

    async def close(self) -> None:
        await self._answer.aclose()


class _Events(_Live):
    """A generation as server-sent events. An event's id is the offset before what it was read with, and its number in that."""

    def __init__(
        self,
        watched: AbstractAsyncContextManager[None],
        stream: AsyncStreamResponse,
        offset: str,
        skipped: int,
    ) -> None:
        super().__init__()
        self.raw_headers = list(_EVENTS)
        self._watched = watched
        self._stream = stream
        self._batches = stream.iter_json_batches()
        self._ahead: JsonBatch[Any] | None = None
        self._offset = offset
        self._skipped = skipped

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more."""
        ahead = self._ahead
        return ahead is None or (ahead.is_closed and len(ahead.items) <= self._skipped)

    async def begin(self) -> None:
        """Read ahead. Raises: StreamkeepError."""
        await self._stream.__aenter__()
        self._ahead = await anext(self._batches, None)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        last: object = None
        async with self._watched:
            while (batch := self._ahead) is not None:
                events: list[bytes] = []
                for number, item in enumerate(batch.items[self._skipped :], self._skipped + 1):
                    events += b"id: ", f"{self._offset}/{number}".encode(), b"\ndata: ", _encoded(item), b"\n\n"
                if batch.items:
                    last = batch.items[-1]
                if events:
                    yield b"".join(events)
                self._offset, self._skipped = batch.offset, 0
                self._ahead = await anext(self._batches, None)
        if not _is_failure(last):
            yield b"data: [DONE]\n\n"

    async def close(self) -> None:
        await self._stream.aclose()


def _path(chat: str, generation: str | None = None) -> str:
    """Raises: InvalidId."""
    return _checked(chat) if generation is None else f"{_checked(chat)}/{_checked(generation)}"


def _checked(given: object) -> str:
    """Raises: InvalidId."""
    if not (isinstance(given, str) and _ID.fullmatch(given)):
        raise InvalidId("an id has 1 to 200 characters out of A-Z a-z 0-9 . _ ~ : @ -, a letter or digit first")
    return given


def _encoded(chunk: object) -> bytes:
    """Raises: TypeError, ValueError: it is not JSON."""
    try:
        return json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a character, which vendors cut; its other half may come next
        return json.dumps(chunk, allow_nan=False, separators=(",", ":")).encode()


def _is_failure(chunk: object) -> bool:
    return isinstance(chunk, dict) and chunk.get("type") in ("error", "RUN_ERROR")


async def _after_echo(messages: Sequence[Mapping[str, Any]], chunks: Chunks) -> AsyncGenerator[object, None]:
    """The new messages of a chat as chunks, and behind them the answer's, which repeat nothing that was said before."""
    for message in messages:
        for echoed in _echo(message):
            yield echoed
    async with closed_afterwards(chunks):
        async for chunk in chunks:
            if isinstance(chunk, Mapping) and chunk.get("type") == "TEXT_MESSAGE_CONTENT" and "delta" in chunk:
                yield {name: value for name, value in chunk.items() if name != "content"}
            else:
                yield chunk


def _echo(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A message of the front end as the chunks by which other readers see it."""
    named = {
        "messageId": message.get("id") or uuid.uuid4().hex,
        "model": "client",
        "timestamp": time.time_ns() // 10**6,
    }
    role = message.get("role")
    yield {"type": "TEXT_MESSAGE_START", **named, "role": role if role in ("assistant", "system", "tool") else "user"}
    text = _text(message)
    if text:
        yield {"type": "TEXT_MESSAGE_CONTENT", **named, "delta": text}
    yield {"type": "TEXT_MESSAGE_END", **named}


def _text(message: Mapping[str, Any]) -> str:
    content, parts = message.get("content"), message.get("parts")
    if not isinstance(parts, list):
        return content if isinstance(content, str) else ""
    texts = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    return "".join(str(part.get("content", part.get("text", ""))) for part in texts)


def _refusal(exc: Exception) -> Response:
    """What an app answers where it cannot do what it was asked."""
    match exc:
        case InvalidId():
            status, code = 400, "invalid_id"
        case InvalidOffset():
            status, code = 400, "invalid_offset"
        case StreamNotFound() | StreamGone():
            status, code = 404, "not_found"
        case _:
            logger.warning("the stream server cannot be used: %s", type(exc).__name__)
            return JSONResponse(
                {"error": "storage_unavailable", "message": "streams cannot be kept now"},
                503,
                {**_NO_STORE, "Retry-After": "1"},
            )
    message = str(exc) if isinstance(exc, InvalidId) else "there is no such stream, or not this part of it"
    return JSONResponse({"error": code, "message": message}, status, _NO_STORE)
