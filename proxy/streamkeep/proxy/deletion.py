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


async def delete(store: Store, what: Erasure, *, within_seconds: float, limit: int = 1000) -> Deleted:
    """Delete for good, at most `limit` generations or streams in one transaction.

    When this returns no generation of it can be read, however long that took. What runs is stopped, and goes when it has
    ended; rows that are not deleted in time are left to the store's sweep, or to the same call once more.

    Raises:
        StoreUnavailable: some of it may be done.
    """
    deadline = time.monotonic() + within_seconds
    generations, remaining = 0, None
    while True:
        erased = await store.erase(what, limit)
        generations += erased.generations
        is_unreadable = erased.generations < limit
        if not erased.remaining or (is_unreadable and time.monotonic() >= deadline):
            return Deleted(generations, erased.remaining)
        if erased.remaining == remaining:
            await asyncio.sleep(_PAUSE_SECONDS)  # Waiting for owners to stop.
        remaining = erased.remaining
