"""Does the database answer? Asked once for everybody who wants to know."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from streamkeep.storage import Store, StoreError

_FRESH_SECONDS = 0.5
_PATIENCE_SECONDS = 1.0


class DatabaseProbe:
    """One ping at a time, however many ask, and none while the last answer is fresh (half a second).

    A ping that takes longer than a second counts as none, and goes on: it is not broken off and begun anew, which would
    cost connections just when there are none to spare.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked_at = 0.0
        self._is_up = False
        self._ping: asyncio.Task[None] | None = None

    async def is_up(self) -> bool:
        """Whether the database answered within a second, half a second ago at most."""
        now = time.monotonic()
        if self._ping is None and now - self._asked_at < _FRESH_SECONDS:
            return self._is_up
        if self._ping is None:
            self._asked_at = now
            self._ping = asyncio.create_task(self._ask(), name="database probe")
        left = self._asked_at + _PATIENCE_SECONDS - now
        if left > 0:
            await asyncio.wait([self._ping], timeout=left)
        return self._ping is None and self._is_up

    async def close(self) -> None:
        if self._ping is not None:
            self._ping.cancel()
            with suppress(asyncio.CancelledError):
                await self._ping

    async def _ask(self) -> None:
        self._is_up = False
        try:
            with suppress(StoreError):
                await self._store.ping()
                self._is_up = True
        finally:
            self._asked_at = time.monotonic()
            self._ping = None
