"""Values that live in the database or elsewhere, and are asked for again once they are a few seconds old."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from streamkeep.storage import StoreUnavailable

T = TypeVar("T")

_PAUSE_SECONDS = 1.0


class Remembered(Generic[T]):
    """One value. Of many who want it, one asks, and the others wait for the answer.

    While the database is away an old value goes on: what it would permit needs the database too.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._value: T | None = None
        self._known_at: float | None = None
        self._asking = asyncio.Lock()

    async def get(self, *, max_age_seconds: float) -> T:
        """The value, no older than that. Raises: StoreUnavailable, when there was never one."""
        if not self._is_fresh(max_age_seconds):
            async with self._asking:
                if not self._is_fresh(max_age_seconds):
                    await self._renew(max_age_seconds)
        return self._value  # type: ignore[return-value]  # T may be None itself

    def _is_fresh(self, max_age_seconds: float) -> bool:
        return self._known_at is not None and time.monotonic() - self._known_at < max_age_seconds

    async def _renew(self, max_age_seconds: float) -> None:
        asked_at = time.monotonic()
        try:
            self._value = await self._ask()
        except StoreUnavailable:
            if self._known_at is None:
                raise
            # Those who wait behind us need not try as well.
            asked_at = time.monotonic() - max_age_seconds + _PAUSE_SECONDS
        self._known_at = asked_at


class RememberedByName(Generic[T]):
    """Many values, each by its name; only those used last are kept."""

    def __init__(self, ask: Callable[[str], Awaitable[T]], *, max_values: int) -> None:
        self._ask = ask
        self._max_values = max_values
        self._values: OrderedDict[str, Remembered[T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    async def get(self, name: str, *, max_age_seconds: float) -> T:
        """The value, no older than that. Raises: StoreUnavailable."""
        found = self._values.get(name)
        if found is None:
            found = self._values[name] = Remembered(lambda: self._ask(name))
            if len(self._values) > self._max_values:
                self._values.popitem(last=False)
        else:
            self._values.move_to_end(name)
        return await found.get(max_age_seconds=max_age_seconds)
