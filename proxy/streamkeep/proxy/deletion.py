"""Deletion on request: the store's batches, one after the other, for as long as a caller may wait."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from streamkeep.storage import Erasure, Store

_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many generations were deleted now, and how many rows of what was to go are still there."""

    generations: int
    rows_remaining: int


async def delete(store: Store, what: Erasure, *, within_seconds: float) -> Deleted:
    """Delete for good; what is not done in time is done by the store's sweep, or by the same call once more.

    Nobody reads any of it from the first batch on that took it. What runs is stopped, and goes when it has ended.

    Raises:
        StoreUnavailable: some of it may be done.
    """
    deadline = time.monotonic() + within_seconds
    generations, remaining = 0, None
    while True:
        erased = await store.erase(what)
        generations += erased.generations
        if not erased.remaining or time.monotonic() >= deadline:
            return Deleted(generations, erased.remaining)
        if erased.remaining == remaining:
            await asyncio.sleep(_PAUSE_SECONDS)  # Waiting for owners to stop.
        remaining = erased.remaining
