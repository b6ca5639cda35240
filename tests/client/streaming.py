"""Sync and async streams under one face, so that a test says once what both must do."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import httpx

from streamkeep.client import (
    AsyncDurableStream,
    AsyncStreamResponse,
    DurableStream,
    Patience,
    StreamResponse,
    astream,
    stream,
)
from streamkeep.client._network import Network
from tests.client.both import Kind
from tests.serving import CERTIFICATES

T = TypeVar("T")

Handle = DurableStream | AsyncDurableStream
Response = StreamResponse | AsyncStreamResponse

# What the scripted servers break is tried again at once, and given up after a few times, however long they take.
HASTY = Patience(send_seconds=30.0, silence_seconds=30.0, stall_seconds=30.0, max_reconnects=6, pause_seconds=0.02)


def transport(kind: Kind) -> Any:
    return Network(CERTIFICATES) if kind == "sync" else httpx.AsyncHTTPTransport(verify=CERTIFICATES)


async def call(method: Callable[..., T | Awaitable[T]], *args: Any, **options: Any) -> T:
    """Call a method of either kind; a blocking one in a thread."""
    if inspect.iscoroutinefunction(method):
        return cast("T", await method(*args, **options))
    return cast("T", await asyncio.to_thread(method, *args, **options))


@asynccontextmanager
async def opened(kind: Kind, url: Any, **options: Any) -> AsyncIterator[Response]:
    """`stream` or `astream`, entered."""
    chosen = {"http": transport(kind), "patience": HASTY, "timeout": 60.0, **options}
    response: Response = stream(url, **chosen) if kind == "sync" else astream(url, **chosen)
    async with entered(response):
        yield response


@asynccontextmanager
async def entered(response: Response) -> AsyncIterator[Response]:
    if isinstance(response, AsyncStreamResponse):
        async with response:
            yield response
        return
    await asyncio.to_thread(response.__enter__)
    try:
        yield response
    finally:
        await asyncio.to_thread(response.close)


async def items(iterator: Iterator[T] | AsyncIterator[T], count: int | None = None) -> list[T]:
    """What an iterator gives, at most `count`."""
    found: list[T] = []
    nothing: Any = object()
    while count is None or len(found) < count:
        if isinstance(iterator, AsyncIterator):
            item = await anext(iterator, nothing)
        else:
            item = await asyncio.to_thread(next, iterator, nothing)
        if item is nothing:
            break
        found.append(item)
    return found


async def created(kind: Kind, url: str, **options: Any) -> Handle:
    """A handle of either kind for a new stream."""
    chosen = {"http": transport(kind), "patience": HASTY, **options}
    if kind == "sync":
        return await asyncio.to_thread(lambda: DurableStream.create(url, **chosen))
    return await AsyncDurableStream.create(url, **chosen)
