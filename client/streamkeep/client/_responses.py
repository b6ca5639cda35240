"""Answers as responses of httpx, or of a package with the same interface.

A transport must answer with the classes of the package that its request came from: newer SDKs are built on `httpx2`, a
successor of httpx with the same interface. It is found through the request, and never imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Protocol, Self, cast

import httpx

from streamkeep.client._body import Body
from streamkeep.client._channel import run_blocking
from streamkeep.client._exchange import Answer
from streamkeep.client._rules import wire

# What an exception of the core is for the caller.
Translate = Callable[[Exception], Exception]


class HttpLibrary(Protocol):
    """The part of httpx, or of its like, that is needed here."""

    Response: type[httpx.Response]
    ByteStream: type[httpx.ByteStream]
    SyncByteStream: type[httpx.SyncByteStream]
    AsyncByteStream: type[httpx.AsyncByteStream]
    ConnectError: type[httpx.ConnectError]
    LocalProtocolError: type[httpx.LocalProtocolError]
    ReadError: type[httpx.ReadError]
    ReadTimeout: type[httpx.ReadTimeout]
    RemoteProtocolError: type[httpx.RemoteProtocolError]
    RequestNotRead: type[httpx.RequestNotRead]
    StreamClosed: type[httpx.StreamClosed]

    def __hash__(self) -> int: ...


def library_of(request: httpx.Request) -> HttpLibrary:
    """The package whose class the request is."""
    return cast("HttpLibrary", sys.modules[type(request).__module__.partition(".")[0]])


def blocking_response(answer: Answer, translate: Translate, library: HttpLibrary) -> httpx.Response:
    """An answer for a sync caller; its body, even a short one, is still to be read."""
    body = answer.body
    stream = library.ByteStream(body) if isinstance(body, bytes) else _blocking_stream(library)(body, translate)
    return _streamed(answer, stream, library)


def async_response(answer: Answer, translate: Translate, library: HttpLibrary) -> httpx.Response:
    """An answer for an async caller; its body, even a short one, is still to be read."""
    body = answer.body
    stream = library.ByteStream(body) if isinstance(body, bytes) else _async_stream(library)(body, translate)
    return _streamed(answer, stream, library)


def _streamed(
    answer: Answer, stream: httpx.SyncByteStream | httpx.AsyncByteStream, library: HttpLibrary
) -> httpx.Response:
    extensions = {"http_version": b"HTTP/1.1"}
    headers = wire.without_nested_encodings(answer.headers)
    return library.Response(answer.status, headers=headers, stream=stream, extensions=extensions)


class _BodyStream:
    """A body that can be iterated again, and goes on where it was: some SDKs drain the rest through a second loop."""

    def __init__(self, body: Body, translate: Translate) -> None:
        self._body = body
        self._translate = translate


class _BlockingStream(_BodyStream):
    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = run_blocking(self._body.next_chunk())
        except Exception as exc:
            translated = self._translate(exc)
            if translated is exc:
                raise
            raise translated from exc
        if chunk is None:
            raise StopIteration
        return chunk

    def close(self) -> None:
        run_blocking(self._body.close())


class _AsyncStream(_BodyStream):
    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._body.next_chunk()
        except Exception as exc:
            translated = self._translate(exc)
            if translated is exc:
                raise
            raise translated from exc
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        await self._body.close()


@cache
def _blocking_stream(library: HttpLibrary) -> Callable[[Body, Translate], httpx.SyncByteStream]:
    made = type("BlockingBodyStream", (_BlockingStream, library.SyncByteStream), {})
    return cast("Callable[[Body, Translate], httpx.SyncByteStream]", made)


@cache
def _async_stream(library: HttpLibrary) -> Callable[[Body, Translate], httpx.AsyncByteStream]:
    made = type("AsyncBodyStream", (_AsyncStream, library.AsyncByteStream), {})
    return cast("Callable[[Body, Translate], httpx.AsyncByteStream]", made)
