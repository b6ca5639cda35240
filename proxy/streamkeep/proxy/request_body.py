"""The body of a request that is to be forwarded: read first when it is small, passed through and hashed when it is not."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from starlette.types import Receive

from streamkeep.proxy.errors import problem

_IDLE_SECONDS = 60.0


class CallerLeft(Exception):
    """The caller's connection ended before the request's body did."""


class RequestBody:
    """A request's body. `content` holds all of it when it was small enough to read first, and is None otherwise."""

    def __init__(self, receive: Receive, *, max_bytes: int) -> None:
        self.content: bytes | None = None
        self._receive = receive
        self._max_bytes = max_bytes
        self._head: list[bytes] = []
        self.is_complete = False
        self._size_bytes = 0
        self._digest = hashlib.sha256()

    @classmethod
    async def read(cls, receive: Receive, *, max_buffered_bytes: int, max_bytes: int) -> RequestBody:
        """Read until the end, or until there is more than may be held.

        Raises:
            CallerLeft: the body was cut short; nothing was forwarded.
            ApiError: 413, larger than `max_bytes`.
        """
        body = cls(receive, max_bytes=max_bytes)
        while not body.is_complete and body._size_bytes <= max_buffered_bytes:
            body._head.append(await body._next())
        if body.is_complete:
            body.content = b"".join(body._head)
        return body

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that was read so far; of the whole body once it is complete."""
        return self._digest.digest()

    async def stream(self) -> AsyncIterator[bytes]:
        """The whole body, once, as it comes. Raises as `read` does."""
        head, self._head = self._head, []
        for data in head:
            yield data
        while not self.is_complete:
            yield await self._next()

    async def drain(self) -> None:
        """Read to the end and keep nothing but the digest. Raises as `read` does."""
        self._head = []
        while not self.is_complete:
            await self._next()

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise problem(408, "request_timeout", f"no byte of the body came for {_IDLE_SECONDS:.0f} seconds") from None
        if message["type"] == "http.disconnect":
            raise CallerLeft
        data: bytes = message.get("body", b"")
        self.is_complete = not message.get("more_body", False)
        self._size_bytes += len(data)
        if self._size_bytes > self._max_bytes:
            raise problem(413, "body_too_large", f"request bodies may have up to {self._max_bytes} bytes")
        self._digest.update(data)
        return data
