"""Who reads here: told to the store, for generations that are to be stopped once nobody reads them anywhere.

A reader counts from its request to its answer's end, and for a while longer when the answer ended otherwise than by its
peer leaving: between two long-polls, and between two connections that we rotate, somebody is still there. All others,
which is most generations, cost nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from starlette.types import Message, Receive

from streamkeep.proxy.request_body import CallerLeft
from streamkeep.storage import Generation, Store, StoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")

COUNTED_SECONDS = 9.0
_TELL_SECONDS = 3.0
_RETRY_SECONDS = 1.0
_LINGER_SECONDS = 10.0
# From the end of the wait for an answer to its first byte.
_HANDOVER_SECONDS = 1.0


@dataclass(slots=True)
class _Audience:
    """One generation's readers in this process, and the monotonic instant until which those that were answered count."""

    readers: int = 0
    lingers_until: float = 0.0


class Audiences:
    """The readers of this process that keep generations going. `run` tells the store of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._process = secrets.token_hex(8)
        self._audiences: dict[int, _Audience] = {}
        self._untold: set[int] = set()
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        return f"Audiences({len(self._audiences)} of process {self._process})"

    @contextmanager
    def attended(
        self, generation: Generation, receive: Receive, *, linger_seconds: float = _LINGER_SECONDS
    ) -> Iterator[Receive]:
        """Count the reader that is answered inside, who is to be listened to through the `receive` that this gives.

        It counts for `linger_seconds` more unless it leaves.
        """
        if not _counts(generation):
            yield receive
            return
        audience = self._audiences.setdefault(generation.id, _Audience())
        has_left = False

        async def receive_and_look() -> Message:
            nonlocal has_left
            message = await receive()
            has_left = has_left or message["type"] == "http.disconnect"
            return message

        audience.readers += 1
        self._tell(generation.id)
        try:
            yield receive_and_look
        finally:
            audience.readers -= 1
            if not has_left:
                audience.lingers_until = max(audience.lingers_until, time.monotonic() + linger_seconds)
            self._tell(generation.id)

    async def answered(self, generation: Generation, receive: Receive | None, answer: Awaitable[T]) -> T:
        """Wait for an answer that has not begun; whoever waits for it counts as a reader. None is nobody.

        Raises:
            CallerLeft: nobody waits any more.
        """
        if receive is None or not _counts(generation):
            return await answer
        with self.attended(generation, receive, linger_seconds=_HANDOVER_SECONDS) as receive_and_look:
            leaving = asyncio.ensure_future(_disconnected(receive_and_look))
            waiting = asyncio.ensure_future(answer)
            try:
                await asyncio.wait((leaving, waiting), return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    raise CallerLeft
                return await waiting
            finally:
                leaving.cancel()
                waiting.cancel()

    async def run(self) -> None:
        """Tell of those who come and leave at once, and every few seconds of all who stay."""
        tell_all_at = time.monotonic()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, tell_all_at - time.monotonic())):
                    await self._news.wait()
            self._news.clear()
            if time.monotonic() >= tell_all_at:
                tell_all_at = time.monotonic() + _TELL_SECONDS
                self._untold.update(id for id, audience in self._audiences.items() if audience.readers)
            try:
                await self._tell_store()
            except StoreError as exc:
                logger.warning("readers could not be told of: %s", type(exc).__name__)
                await asyncio.sleep(_RETRY_SECONDS)

    def _tell(self, generation_id: int) -> None:
        self._untold.add(generation_id)
        self._news.set()

    async def _tell_store(self) -> None:
        told, self._untold = self._untold, set()
        now = time.monotonic()
        if told:
            try:
                await self._store.note_readers(self._process, {id: self._counted_for(id, now) for id in told})
            except StoreError:
                self._untold |= told
                self._news.set()
                raise
        for id, audience in list(self._audiences.items()):
            if not audience.readers and audience.lingers_until <= now and id not in self._untold:
                del self._audiences[id]

    def _counted_for(self, generation_id: int, now: float) -> float:
        audience = self._audiences[generation_id]
        lingering = max(0.0, audience.lingers_until - now)
        return max(COUNTED_SECONDS, lingering) if audience.readers else lingering


def _counts(generation: Generation) -> bool:
    return generation.cancel_after_seconds is not None and generation.state.is_live


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
