"""Group commit: one transaction for whatever all generations of this process have pending.

The loop takes what is pending, commits it, rests until enough has gathered or a moment is over, and takes that: an idle
system adds one commit of delay, a busy one makes larger batches. Appends of one stream within a batch become one row.

What a relay hands over is visible to readers only after its commit, when the audience is told. The end of a generation
waits in the same queue, behind its data, so it can never overtake them.

When the database is away the batch in hand is kept and tried again until it is known to be stored or this owner is
fenced. A commit that broke off may have landed: the tails are read again, under the owner's lock, before anything is
sent twice. Meanwhile `Recorder.room` makes relays stop reading, so memory stays within the two budgets.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from streamkeep.storage._errors import ItemRefused, OwnerFenced, StoreUnavailable
from streamkeep.storage._store import Store
from streamkeep.storage._types import Append, Ending, Generation, Owner, Tail
from streamkeep.storage.rules.generations import Terminal
from streamkeep.storage.rules.json_messages import encode_message
from streamkeep.storage.tallies import CommitTally

logger = logging.getLogger(__name__)

_MAX_RETRY_PAUSE_SECONDS = 0.5
# A commit costs as much as ten chunks, whatever it holds, so the next one waits: until some streams have something for it, or
# for so long. The first after a quiet moment does not. The more there is to do, the less of it should go into commits: behind
# a few the wait is short, since there is time for them, behind many it is long, and behind a crowd it is always that long.
# uvloop's timers know whole milliseconds: the short wait is a turn of the loop there.
_SHORT_REST_SECONDS = 0.0005
_REST_SECONDS = 0.001
_LONG_REST_SECONDS = 0.002
_FEW = 12
_MANY = 16
_COMPANY = 20
_CROWD = 64


class Audience(Protocol):
    """Told what became durable, in commit order for each stream. The calls must not block."""

    def appended(self, stream_id: int, position: int, data: bytes) -> None:
        """These bytes are committed at that position."""

    def closed(self, stream_id: int, final_position: int) -> None:
        """The stream is committed as closed."""


class Recorder:
    """One generation's way into its streams. `position` is the data stream's tail once all pending is committed, `chunks`
    how many pieces were taken for that, but for those that wait."""

    __slots__ = (
        "_chunks",
        "_stream_id",
        "_tenant",
        "_terminal",
        "_writer",
        "chunks",
        "ended",
        "generation",
        "owner",
        "pending_bytes",
        "position",
    )

    def __init__(self, writer: Writer, generation: Generation) -> None:
        self.generation = generation
        # The same object for all of one owner's: it is compared for every chunk.
        self.owner = writer._owners.setdefault(generation.owner, generation.owner)
        self.position = 0
        self.chunks = 0
        self.pending_bytes = 0
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._writer = writer
        # Read for every chunk, and not from a row that has long gone from the processor's caches by then.
        self._stream_id = generation.data_stream
        self._tenant = generation.key.tenant
        self._chunks: list[bytes] = []
        self._terminal: Terminal | None = None

    def __repr__(self) -> str:
        return f"Recorder({self.generation.key}, position={self.position}, pending={self.pending_bytes})"

    def append(self, data: bytes) -> bool:
        """Queue bytes for the data stream, durable later. Returns whether there is room for more; if not, wait for `room`."""
        writer, size = self._writer, len(data)
        self._chunks.append(data)
        self.position += size
        self.pending_bytes += size
        writer._queue(self, size)
        # What `is_full` tells, without two more calls for every chunk.
        return self.pending_bytes < writer.stream_budget_bytes and writer._pending_bytes < writer.process_budget_bytes

    def end(self, terminal: Terminal) -> asyncio.Future[bool]:
        """Queue the end, behind all data. The future tells whether this call ended the generation."""
        if self._terminal is None and not self.ended.done():
            # What cannot be written must fail here, for one generation, and not in the commit of all.
            terminal.to_json()
            self._terminal = terminal
            self._writer._queue(self, 0)
        return self.ended

    @property
    def is_full(self) -> bool:
        return self.pending_bytes >= self._writer.stream_budget_bytes or self._writer.is_full

    async def room(self) -> None:
        """Return when there is room for more."""
        while self.is_full and not self.ended.done():
            await self._writer._next_commit()

    @property
    def has_ended(self) -> bool:
        """Whether the end that was queued here is the generation's."""
        return self.ended.done() and self.ended.result()

    def abandon(self) -> None:
        """Nothing more will come: whoever waits for an end that was never queued learns that there is none here."""
        self._settle(False)

    def _take(self) -> _Item:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self.chunks += len(self._chunks)
        self._chunks.clear()
        terminal, self._terminal = self._terminal, None
        return _Item(self, Append(self._stream_id, self.position - len(data), data, self._tenant), terminal)

    def _settle(self, is_ended: bool) -> None:
        if not self.ended.done():
            self.ended.set_result(is_ended)


@dataclass(slots=True)
class _Item:
    """What one recorder had pending; the data may be none when there is an end."""

    recorder: Recorder
    append: Append
    terminal: Terminal | None

    @property
    def end(self) -> int:
        return self.append.position + len(self.append.data)

    def has_landed(self, tail: Tail | None) -> bool:
        """Whether a commit with this item happened, given the data stream's tail now."""
        if tail is None:
            return False
        return tail.is_closed if self.terminal else tail.position >= self.end


class Writer:
    """Owns the commits of every generation that this process records.

    `stream_budget_bytes` and `process_budget_bytes` bound what may be pending for one stream and for all; `tally` counts
    what was committed; `unavailable_since` is the monotonic instant since which the database has not answered, None when it does.
    """

    def __init__(
        self,
        store: Store,
        audience: Audience,
        *,
        stream_budget_bytes: int = 256 * 1024,
        process_budget_bytes: int = 64 * 1024 * 1024,
        batch_bytes: int = 2 * 1024 * 1024,
    ) -> None:
        self.stream_budget_bytes = stream_budget_bytes
        self.process_budget_bytes = process_budget_bytes
        self.unavailable_since: float | None = None
        self.tally = CommitTally()
        self._store = store
        self._audience = audience
        self._batch_bytes = batch_bytes
        self._pending_bytes = 0
        self._dirty: dict[Recorder, None] = {}
        self._owners: dict[Owner, Owner] = {}
        self._oldest_at = 0.0
        self._work = asyncio.Event()
        self._resting: asyncio.Future[None] | None = None
        self._company: float = _COMPANY
        self._committed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Writer(pending={self._pending_bytes} bytes of {len(self._dirty)} streams)"

    @property
    def is_full(self) -> bool:
        return self._pending_bytes >= self.process_budget_bytes

    @property
    def pending_bytes(self) -> int:
        """Bytes taken from upstream and not yet known to be durable."""
        return self._pending_bytes

    def recorder(self, generation: Generation) -> Recorder:
        """The pen for a generation that this process claimed."""
        return Recorder(self, generation)

    async def run(self) -> None:
        """Commit for as long as the process lives; cancelled when everything has ended."""
        while True:
            await self._work.wait()
            # What one turn of the loop brings is committed together, a stream's end with its last bytes.
            await asyncio.sleep(0)
            self._work.clear()
            while self._dirty:
                batch = self._take()
                owner = batch[0].recorder.owner
                await self._commit(owner, batch)
                self._company = _COMPANY if len(batch) < _CROWD else math.inf
                await self._rest(_rest_behind(len(batch)))

    async def _rest(self, seconds: float) -> None:
        if len(self._dirty) >= self._company:
            return
        loop = asyncio.get_running_loop()
        self._resting = loop.create_future()
        timer = loop.call_later(seconds, self._go_on)
        try:
            await self._resting
        finally:
            timer.cancel()
            self._resting = None

    def _go_on(self) -> None:
        if self._resting is not None and not self._resting.done():
            self._resting.set_result(None)

    def _queue(self, recorder: Recorder, size: int) -> None:
        if not self._dirty:
            self._oldest_at = time.monotonic()
            self._work.set()
        self._pending_bytes += size
        self._dirty[recorder] = None
        if self._resting is not None and len(self._dirty) >= self._company:
            self._go_on()

    async def _next_commit(self) -> None:
        await self._committed.wait()

    def _take(self) -> list[_Item]:
        """What is pending, of one owner and up to about `batch_bytes`, oldest first."""
        batch: list[_Item] = []
        size = 0
        dirty, self._dirty = self._dirty, {}
        owner = next(iter(dirty)).owner
        for recorder in dirty:
            if size < self._batch_bytes and recorder.owner is owner:
                item = recorder._take()
                batch.append(item)
                size += len(item.append.data)
            else:
                self._dirty[recorder] = None
        return batch

    async def _commit(self, owner: Owner, batch: list[_Item]) -> None:
        oldest_at = self._oldest_at
        try:
            ended = await self._until_stored(owner, batch)
        except OwnerFenced:
            self._done(batch)
            for item in batch:
                item.recorder._settle(False)
        except ItemRefused as exc:
            await self._commit_apart(owner, batch, exc)
        else:
            self.tally.note(
                lag_seconds=time.monotonic() - oldest_at,
                size_bytes=sum([len(item.append.data) for item in batch]),
                items=len(batch),
            )
            self._publish(batch, ended)
            self._done(batch)

    async def _commit_apart(self, owner: Owner, batch: list[_Item], exc: ItemRefused) -> None:
        """One bad item must not fail its neighbours: halve until it stands alone."""
        if len(batch) == 1:
            logger.error("the store refused a write of generation %s: %s", batch[0].recorder.generation.id, exc)
            self._done(batch)
            batch[0].recorder._settle(False)
            return
        middle = len(batch) // 2
        await self._commit(owner, batch[:middle])
        await self._commit(owner, batch[middle:])

    async def _until_stored(self, owner: Owner, batch: list[_Item]) -> frozenset[int]:
        """Commit a batch, however long the database stays away; the ids of the generations that it ended."""
        appends = [item.append for item in batch if item.append.data]
        endings = [
            Ending(item.recorder.generation, item.terminal, item.end) for item in batch if item.terminal is not None
        ]
        # A retry policy makes more garbage than a commit does: it is asked only when there is something to retry.
        try:
            return await self._store.commit(owner, appends, endings)
        except StoreUnavailable:
            self.unavailable_since = time.monotonic()

        async def again() -> frozenset[int]:
            if await self._has_landed(owner, batch):
                return frozenset(ending.generation.id for ending in endings)
            return await self._store.commit(owner, appends, endings)

        try:
            return await AsyncRetrying(
                retry=retry_if_exception_type(StoreUnavailable),
                wait=wait_random_exponential(multiplier=0.02, max=_MAX_RETRY_PAUSE_SECONDS),
                reraise=True,
            )(again)
        finally:
            self.unavailable_since = None

    async def _has_landed(self, owner: Owner, batch: list[_Item]) -> bool:
        tails = await self._store.settle(owner, [item.append.stream_id for item in batch])
        return any(item.has_landed(tails.get(item.append.stream_id)) for item in batch)

    def _publish(self, batch: Iterable[_Item], ended: frozenset[int]) -> None:
        for item in batch:
            append = item.append
            if append.data:
                self._audience.appended(append.stream_id, append.position, append.data)
            if item.terminal is None:
                continue
            generation = item.recorder.generation
            is_ended = generation.id in ended
            if is_ended:
                event = encode_message(item.terminal.to_json())
                self._audience.closed(generation.data_stream, item.end)
                self._audience.appended(generation.control_stream, 0, event)
                self._audience.closed(generation.control_stream, len(event))
            item.recorder._settle(is_ended)

    def _done(self, batch: Iterable[_Item]) -> None:
        for item in batch:
            size = len(item.append.data)
            item.recorder.pending_bytes -= size
            self._pending_bytes -= size
        # Wake everybody who waits for room, without a future for each.
        self._committed.set()
        self._committed = asyncio.Event()


def _rest_behind(size: int) -> float:
    """How long a commit waits at most behind one of so many streams, in seconds."""
    if size < _FEW:
        return _SHORT_REST_SECONDS
    return _REST_SECONDS if size < _MANY else _LONG_REST_SECONDS
