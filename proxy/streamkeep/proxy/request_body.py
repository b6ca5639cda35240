"""The body of a request: read first when it is small, passed through and hashed when it is not.

What is read first is held, in one budget for all requests of the process, until whoever needed it lets go of it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from starlette.types import Message, Receive

from streamkeep.proxy.asgi import is_here
from streamkeep.proxy.errors import ApiError, problem

_IDLE_SECONDS = 60.0


class CallerLeft(Exception):
    """The caller's connection ended before the request's body did."""


class BodyBudget:
    """How many bytes of request bodies a process holds at once. Whoever is alone may have more: single bodies have limits."""

    def __init__(self, max_bytes: int) -> None:
        self.held_bytes = 0
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"BodyBudget({self.held_bytes} of {self._max_bytes} bytes)"

    def take(self, size_bytes: int, *, already_bytes: int) -> None:
        """Hold more for somebody who holds `already_bytes`. Raises: ApiError (503), and nothing more is held."""
        is_alone = self.held_bytes == already_bytes
        if not is_alone and self.held_bytes + size_bytes > self._max_bytes:
            raise problem(503, "overloaded", "this process holds as many request bodies as it may", retry_after=1)
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes


class RequestBody:
    """A request's body. `content` holds all of it when it was small enough to read first, and is None otherwise, and once
    it is released. Whoever reads one releases it."""

    def __init__(self, receive: Receive, budget: BodyBudget, *, max_bytes: int) -> None:
        self.content: bytes | None = None
        self._receive = receive
        self._budget = budget
        self._held_bytes = 0
        self._max_bytes = max_bytes
        self._head: list[bytes] = []
        self.is_complete = False
        self._size_bytes = 0
        self._digest = hashlib.sha256()

    @classmethod
    async def read(
        cls, receive: Receive, budget: BodyBudget, *, max_buffered_bytes: int, max_bytes: int
    ) -> RequestBody:
        """Read until the end, or until there is more than may be held.

        Raises:
            CallerLeft: the body was cut short; nothing was forwarded.
            ApiError: 413, larger than `max_bytes`; 503, the budget is used up; 408, no byte came for long.
        """
        body = cls(receive, budget, max_bytes=max_bytes)
        try:
            while not body.is_complete and body._size_bytes <= max_buffered_bytes:
                body._hold(await body._next())
        except BaseException:
            body.release()
            raise
        if body.is_complete:
            body.content = b"".join(body._head)
            body._head = []
        return body

    @classmethod
    async def of(cls, content: bytes, budget: BodyBudget) -> RequestBody:
        """A body of our own. Raises: ApiError (503): the budget is used up."""

        parts, size = [content], len(content)

        async def receive() -> Message:
            # Not `content` itself, which would be held here for as long as the body's reader is.
            return {"type": "http.request", "body": parts.pop()}

        return await cls.read(receive, budget, max_buffered_bytes=size, max_bytes=size)

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that was read so far; of the whole body once it is complete."""
        return self._digest.digest()

    async def stream(self) -> AsyncIterator[bytes]:
        """The whole body, once, as it comes. Raises as `read` does."""
        head, self._head = self._head, []
        for data in head:
            yield data
        del head
        self.release()
        while not self.is_complete:
            yield await self._next()

    async def drain(self) -> None:
        """Read to the end and keep nothing but the digest. Raises as `read` does."""
        self.release()
        while not self.is_complete:
            await self._next()

    def release(self) -> None:
        """Let go of what is held; what has not come yet can still be read. Safe to repeat."""
        self.content = None
        self._head = []
        self._budget.give_back(self._held_bytes)
        self._held_bytes = 0

    def _hold(self, data: bytes) -> None:
        self._budget.take(len(data), already_bytes=self._held_bytes)
        self._held_bytes += len(data)
        self._head.append(data)

    async def _next(self) -> bytes:
        data, self.is_complete = await _next_part(self._receive)
        self._size_bytes += len(data)
        if self._size_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        self._digest.update(data)
        return data


class WholeBody:
    """All of a body, held for as long as the context lasts. Entering raises as `RequestBody.read` does."""

    __slots__ = ("_budget", "_held_bytes", "_max_bytes", "_receive")

    def __init__(self, receive: Receive, budget: BodyBudget, *, max_bytes: int) -> None:
        self._receive = receive
        self._budget = budget
        self._held_bytes = 0
        self._max_bytes = max_bytes

    async def __aenter__(self) -> bytes:
        parts: list[bytes] = []
        is_complete = False
        try:
            while not is_complete:
                data, is_complete = await _next_part(self._receive)
                if self._held_bytes + len(data) > self._max_bytes:
                    raise _too_large(self._max_bytes)
                self._budget.take(len(data), already_bytes=self._held_bytes)
                self._held_bytes += len(data)
                parts.append(data)
        except BaseException:
            self._budget.give_back(self._held_bytes)
            raise
        return b"".join(parts)

    async def __aexit__(self, *_: object) -> None:
        self._budget.give_back(self._held_bytes)


async def _next_part(receive: Receive) -> tuple[bytes, bool]:
    """What comes next of a body, and whether it is the last of it. Raises: CallerLeft, ApiError (408)."""
    try:
        # For what is here already a deadline would cost more than all else about a small body.
        if is_here(receive):
            message = await receive()
        else:
            async with asyncio.timeout(_IDLE_SECONDS):
                message = await receive()
    except TimeoutError:
        raise problem(408, "request_timeout", f"no byte of the body came for {_IDLE_SECONDS:.0f} seconds") from None
    if message["type"] == "http.disconnect":
        raise CallerLeft
    return message.get("body", b""), not message.get("more_body", False)


def _too_large(max_bytes: int) -> ApiError:
    return problem(413, "body_too_large", f"request bodies may have up to {max_bytes} bytes")
