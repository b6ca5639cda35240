"""Group commit for appends of the open protocol: one transaction for whatever all writers have pending.

The loop takes what is pending, commits it, and takes what has gathered meanwhile. A lone append is committed at once; in
company the loop rests for a millisecond between two commits, so that each has more to store. One batch is under way at a
time, so appends of one stream take effect in the order in which they were handed over.

Nothing is ever sent twice. When the database breaks off, whether the batch happened is unknown, and an append without a
producer could be stored twice: every caller of that batch is told, and a client with a producer repeats its request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from streamkeep.storage._errors import ItemRefused, StoreError, StoreUnavailable
from streamkeep.storage._store import Store
from streamkeep.storage._types import Appended, StreamAppend
from streamkeep.storage.tallies import CommitTally
from streamkeep.storage.writer import Audience

logger = logging.getLogger(__name__)

# Beside what its appends cost, a commit costs as much as several of them.
_REST_SECONDS = 0.001


@dataclass(slots=True)
class _Item:
    append: StreamAppend
    outcome: asyncio.Future[Appended]
    since: float
    size: int


class Appender:
    """Owns the commits of the appends that come to this process; `run` must be running.

    A batch holds at most `batch_items` appends and ends with the one that fills `batch_bytes`. While `budget_bytes` are
    pending, further appends wait for room. `tally` counts what was committed.
    """

    def __init__(
        self,
        store: Store,
        audience: Audience,
        *,
        batch_items: int = 500,
        batch_bytes: int = 4 * 1024 * 1024,
        budget_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.tally = CommitTally()
        self._store = store
        self._audience = audience
        self._batch_items = batch_items
        self._batch_bytes = batch_bytes
        self._pending: deque[_Item] = deque()
        self._pending_bytes = 0
        self._work = asyncio.Event()
        self._committed = asyncio.Event()
        self._is_stopped = False

    def __repr__(self) -> str:
        return f"Appender(pending={self._pending_bytes} bytes in {len(self._pending)} appends)"

    @property
    def pending_bytes(self) -> int:
        """Bytes taken from callers whose outcome is not known yet."""
        return self._pending_bytes

    async def append(self, append: StreamAppend) -> Appended:
        """Append, durably; the audience was told when this returns. What it raises is as `Store.append` gives it.

        A caller that is cancelled before its append was taken up leaves nothing behind.
        """
        return await (await self._hand_over(append))

    async def append_all(self, appends: Sequence[StreamAppend]) -> list[Appended | StoreError]:
        """Append several, in their order and mostly in one commit: what became of each. As `append` else."""
        outcomes: list[asyncio.Future[Appended]] = []
        try:
            for append in appends:
                outcomes.append(await self._hand_over(append))
            await asyncio.wait(outcomes)
        except BaseException:
            for outcome in outcomes:
                outcome.cancel()
            raise
        return [_result(outcome) for outcome in outcomes]

    async def _hand_over(self, append: StreamAppend) -> asyncio.Future[Appended]:
        """Wait for room, and put an append in the queue: its outcome."""
        while self._pending_bytes >= self.budget_bytes and not self._is_stopped:
            await self._committed.wait()
        if self._is_stopped:
            raise StoreUnavailable("this process takes no more appends")
        item = _Item(append, asyncio.get_running_loop().create_future(), time.monotonic(), len(append.data))
        self._pending.append(item)
        self._pending_bytes += item.size
        self._work.set()
        return item.outcome

    async def run(self) -> None:
        """Commit for as long as the process lives. When cancelled, whoever still waits is told that nobody knows."""
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                while batch := self._take():
                    try:
                        await self._commit(batch)
                    finally:
                        self._done(batch)
                    if len(batch) > 1:
                        await asyncio.sleep(_REST_SECONDS)
        finally:
            self._is_stopped = True
            left, self._pending = list(self._pending), deque()
            self._fail(left, StoreUnavailable("this process stopped before the append was stored"))
            self._done(left)

    def _take(self) -> list[_Item]:
        """The oldest of what is pending, without those whose callers have gone."""
        batch: list[_Item] = []
        size = 0
        while self._pending and len(batch) < self._batch_items and size < self._batch_bytes:
            item = self._pending.popleft()
            if item.outcome.done():
                self._done([item])
                continue
            batch.append(item)
            size += item.size
        return batch

    async def _commit(self, batch: Sequence[_Item]) -> None:
        try:
            results = await self._store.append([item.append for item in batch])
        except ItemRefused as exc:
            # Nothing was written, and one item must not fail its neighbours: halve until it stands alone.
            if len(batch) == 1:
                self._fail(batch, exc)
                return
            middle = len(batch) // 2
            await self._commit(batch[:middle])
            await self._commit(batch[middle:])
        except StoreError as exc:
            self._fail(batch, exc)
        except asyncio.CancelledError:
            self._fail(batch, StoreUnavailable("this process stopped while the append was being stored"))
            raise
        except Exception:
            logger.exception("an append failed in a way that nobody foresaw")
            self._fail(batch, StoreUnavailable("the append failed"))
        else:
            self.tally.note(
                lag_seconds=time.monotonic() - batch[0].since,
                size_bytes=sum([item.size for item in batch]),
                items=len(batch),
            )
            self._publish(batch, results)

    def _publish(self, batch: Sequence[_Item], results: Sequence[Appended | StoreError]) -> None:
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, StoreError):
                self._fail([item], result)
                continue
            if len(batch) == 1 and not item.outcome.done():
                # Whoever is alone is answered before a crowd is told, which may take ten milliseconds. Many answers would
                # take longer than that.
                item.outcome.set_result(result)
            if not result.is_duplicate:
                if item.append.data:
                    self._audience.appended(result.stream_id, result.position, item.append.data)
                if item.append.is_close:
                    self._audience.closed(result.stream_id, result.tail.position)
            if not item.outcome.done():
                item.outcome.set_result(result)

    def _fail(self, batch: Sequence[_Item], exc: StoreError) -> None:
        for item in batch:
            if not item.outcome.done():
                item.outcome.set_exception(exc)

    def _done(self, batch: Sequence[_Item]) -> None:
        self._pending_bytes -= sum([item.size for item in batch])
        # Wake everybody who waits for room, without a future for each.
        self._committed.set()
        self._committed = asyncio.Event()


def _result(outcome: asyncio.Future[Appended]) -> Appended | StoreError:
    exc = outcome.exception()
    if isinstance(exc, StoreError):
        return exc
    return outcome.result()
