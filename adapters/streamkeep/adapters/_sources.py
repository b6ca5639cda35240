"""What an app generates, or a vendor streams: an async iterable that is to be closed by whoever iterates."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


@asynccontextmanager
async def closed_afterwards(source: AsyncIterable[T]) -> AsyncIterator[AsyncIterable[T]]:
    """The source, closed on leaving if it can be: a generator is, and so are the streams of vendors' packages."""
    if isinstance(source, AsyncGenerator):
        async with aclosing(source):
            yield source
    elif isinstance(source, AbstractAsyncContextManager):
        async with source:
            yield source
    else:
        yield source
