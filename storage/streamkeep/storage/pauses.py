"""Long work in the event loop pauses: no stream of the process stands still until it is done."""

from __future__ import annotations

import asyncio
import time

_WORK_SECONDS = 0.005


class Pauses:
    """The pauses of one piece of work, which begins when this is made."""

    __slots__ = ("_next_at",)

    def __init__(self) -> None:
        self._next_at = time.monotonic() + _WORK_SECONDS

    async def take(self) -> None:
        """Let all others have their turn, if the work has gone on for some milliseconds. It is cheap: call it every
        millisecond or more often, wherever nothing is half changed."""
        if time.monotonic() >= self._next_at:
            await asyncio.sleep(0)
            self._next_at = time.monotonic() + _WORK_SECONDS
