"""The journal: one order of commands for all processes, kept as streams of another server.

    journals            which journals there were, one number a line; a process that starts begins with the last
    journal/{number}    a first line that names a snapshot, then commands, one a line; closed when the next one is due
    snapshot/{token}    the contents at the end of a closed journal, as records; closed when it is whole

**Writing.** What callers have pending goes out as one append, and the next one when that is answered: a group commit. Each
append carries this process's producer id, epoch and sequence, so that it is stored once however often it is sent. When it
cannot be sent for a while, its callers are told that nobody knows, and the next append begins a new epoch: once that
is accepted, the server refuses whatever is left of the old one. So what was unknown becomes known behind the next command.

**Reading.** A long-poll follows the journal and applies every command to the replica. A command's caller waits until its
own command was applied here, and gets what it came to. Whoever asks something waits until everything is applied
that stood in the journal when it asked; one HEAD serves all who ask meanwhile.

**Rolling over.** A journal that has grown beyond the contents, or is old, is closed by whichever process notices. Nothing can follow
its last byte, so all replicas are equal there, and anyone may write the snapshot and create the next journal with
a line that names it; the first creation counts. An append that found the journal closed is looked up in it, and what is
not there goes into the next. The journal before the one just closed is deleted then: a process that was as far behind
starts over from the snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from streamkeep.storage._errors import (
    ProducerFenced,
    StoreError,
    StoreUnavailable,
    StreamClosed,
    StreamNotFound,
)
from streamkeep.storage._types import Producer
from streamkeep.storage.pauses import Pauses
from streamkeep.storage.remote._replica import Command, Replica, changed_streams
from streamkeep.storage.remote._server import START, Page, Server
from streamkeep.storage.rules.records import decode_record, encode_record

logger = logging.getLogger(__name__)

_INDEX = "journals"
_APPEND_BYTES = 1024 * 1024
_RETRY_SECONDS = 2.0
_NUDGE_SECONDS = 0.5
_SHORTEST_POLL_SECONDS = 0.1
_FIRST_ROLLER_SECONDS = 5.0
_ROLL_POLL_SECONDS = 0.1
_BACK_OFF = wait_random_exponential(multiplier=0.02, max=0.5)


@dataclass(frozen=True, slots=True)
class _Start:
    """The first line of a journal: the snapshot that it goes on from, and its size."""

    snapshot: str | None = None
    size_bytes: int = 0

    def to_line(self) -> bytes:
        return encode_record("start", self.snapshot, self.size_bytes)

    @classmethod
    def from_line(cls, line: bytes) -> _Start:
        match decode_record(line):
            case "start", (str() | None) as snapshot, int(size_bytes):
                return cls(snapshot, size_bytes)
        raise StoreError(f"not the beginning of a journal: {line[:100]!r}")


@dataclass(frozen=True, slots=True)
class _Pending:
    """A command on its way, and where its caller waits for what it comes to."""

    number: int
    line: bytes
    result: asyncio.Future[object]


class Journal:
    """Commands in, results out; `replica` is what the journal says so far, and `is_following` whether
    it is being told of more. `run` must be running.

    `deadline_seconds` bounds every call; `roll_bytes` is the least size at which a journal is closed, and
    `roll_seconds` the age at which it is closed all the same.
    """

    def __init__(self, server: Server, *, deadline_seconds: float, roll_bytes: int, roll_seconds: float) -> None:
        self.replica = Replica()
        self._server = server
        self._deadline_seconds = deadline_seconds
        self._roll_bytes = roll_bytes
        self._roll_seconds = roll_seconds
        self.is_following = False
        self._has_stopped = False
        self._author = secrets.token_hex(8)
        # Where the reader stands.
        self._number = 0
        self._offset = START
        self._cursor: str | None = None
        self._rest = b""
        self._start: _Start | None = None
        self._size_bytes = 0
        self._begun_at: datetime | None = None
        self._progress = asyncio.Event()
        self._looking = asyncio.Lock()
        self._next_look: asyncio.Task[None] | None = None
        # Where the writer stands.
        self._last_command = 0
        self._pending: deque[_Pending] = deque()
        self._sent: dict[int, _Pending] = {}
        self._work = asyncio.Event()
        self._epoch = 0
        self._sequence = 0
        self._written_to = 0
        self._closed: int | None = None

    def __repr__(self) -> str:
        return f"Journal({self._number}, {self._offset}, {self.replica!r}, pending={len(self._pending)})"

    async def open(self) -> None:
        """Read everything that there is.

        Raises:
            StoreUnavailable: not within the deadline.
        """
        try:
            async with asyncio.timeout(self._deadline_seconds):
                async for attempt in _retrying():
                    with attempt:
                        await self._begin()
        except TimeoutError as exc:
            raise StoreUnavailable("the stream server does not answer in time") from exc

    async def run(self) -> None:
        """Write and follow for as long as the process lives. It ends by itself only when the journal holds what this
        version cannot read; from then on every call is refused."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write_for_ever())
                tasks.create_task(self._follow_for_ever())
        finally:
            self._has_stopped = True

    async def check(self) -> None:
        """Return if the server serves, after one attempt. Raises: StoreUnavailable, which says what is wrong."""
        try:
            await self._newest()
        except StreamNotFound as exc:
            raise StoreUnavailable(f"{exc}, and makes none") from exc

    async def write(self, name: str, *arguments: object) -> object:
        """Put a command into the journal, durably; what it came to when it was applied here.

        Raises:
            StoreUnavailable: whether it was written is unknown; it is known when a later command has been applied.
            StoreError: as the command says.
        """
        self._check()
        self._last_command += 1
        number = self._last_command
        command = Command(self._author, number, datetime.now(UTC), name, arguments)
        pending = _Pending(number, command.to_line(), asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        self._work.set()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                # The follower's connection may have died without a word.
                while not (await asyncio.wait([pending.result], timeout=_NUDGE_SECONDS))[0]:
                    await self.catch_up()
                return pending.result.result()
        except TimeoutError as exc:
            raise StoreUnavailable("the stream server does not answer in time") from exc
        finally:
            pending.result.cancel()
            self._sent.pop(number, None)

    async def catch_up(self) -> None:
        """Return when everything is applied that stood in the journal when this was called.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        self._check()
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look())
            self._next_look.add_done_callback(_take_note)
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await asyncio.shield(self._next_look)
        except TimeoutError as exc:
            raise StoreUnavailable("the stream server does not answer in time") from exc

    async def roll_over(self) -> None:
        """Close the journal if it has outgrown the contents, or is old; the rest is the follower's."""
        start, begun_at, number = self._start, self._begun_at, self._number
        if start is None or begun_at is None:
            return
        is_long = self._size_bytes > max(self._roll_bytes, start.size_bytes)
        if is_long or (datetime.now(UTC) - begun_at).total_seconds() > self._roll_seconds:
            await self._server.append(_path(number), b"", is_close=True)
            self._closed = number

    def _check(self) -> None:
        if self._has_stopped:
            raise StoreUnavailable("the journal is not followed any more")

    # Writing

    async def _write_for_ever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while batch := self._take():
                try:
                    await self._send(batch)
                except StoreError as exc:
                    self._fail(batch, exc)

    def _take(self) -> list[_Pending]:
        """The oldest of what is pending, without those whose callers have gone."""
        batch: list[_Pending] = []
        size = 0
        while self._pending and (not batch or size + len(self._pending[0].line) <= _APPEND_BYTES):
            pending = self._pending.popleft()
            if not pending.result.done():
                batch.append(pending)
                size += len(pending.line)
                self._sent[pending.number] = pending
        return batch

    async def _send(self, batch: list[_Pending]) -> None:
        """Append a batch, to this journal or, if that is closed, what is not in it to the next.

        Raises:
            StoreUnavailable: what of it has been written is unknown.
            ItemRefused: nothing was written; it is larger than the server takes.
        """
        while batch:
            number = self._number
            if number != self._written_to:
                self._written_to, self._sequence = number, 0
            producer = Producer(self._author, self._epoch, self._sequence)
            data = b"".join(pending.line for pending in batch)
            try:
                async for attempt in _retrying(_RETRY_SECONDS):
                    with attempt:
                        await self._server.append(_path(number), data, producer=producer)
            except StreamClosed:
                await self._leave(number)
                batch = [pending for pending in batch if not pending.result.done()]
            except (StoreUnavailable, StreamNotFound, ProducerFenced) as exc:
                self._epoch, self._sequence = self._epoch + 1, 0
                raise StoreUnavailable("whether the journal was written is unknown") from exc
            else:
                self._sequence += 1
                return

    def _fail(self, batch: Sequence[_Pending], exc: StoreError) -> None:
        for pending in batch:
            self._sent.pop(pending.number, None)
            if not pending.result.done():
                pending.result.set_exception(exc)

    # Reading

    async def _look(self) -> None:
        async with self._looking:
            # Whoever comes from now on needs a later look.
            self._next_look = None
            async with asyncio.timeout(self._deadline_seconds):
                while True:
                    number = self._number
                    try:
                        tail = await self._server.tail(_path(number))
                        while self._number == number and self._offset < tail.offset:
                            await self._read(is_live=False)
                    except StreamNotFound as exc:
                        raise StoreUnavailable("this process lags behind the journal") from exc
                    if not tail.is_closed:
                        return
                    await self._leave(number)

    async def _leave(self, number: int) -> None:
        """Return when a journal that is closed has been read to its end, and the next one has begun."""
        while self._number == number:
            await self._progress.wait()

    async def _follow_for_ever(self) -> None:
        async for attempt in _retrying():
            with attempt:
                try:
                    await self._follow()
                finally:
                    self.is_following = False

    async def _follow(self) -> None:
        while True:
            number = self._number
            try:
                asked_at = time.monotonic()
                page = await self._read(is_live=True)
                self.is_following = True
                # A server that is being stopped answers at once, with nothing.
                if not page.data and not page.is_end and time.monotonic() - asked_at < _SHORTEST_POLL_SECONDS:
                    await asyncio.sleep(_SHORTEST_POLL_SECONDS)
                if page.is_end and self._number == number and self._offset == page.next_offset:
                    await self._roll()
            except StreamNotFound:
                logger.warning("this process lags behind the journal and starts over from a snapshot")
                await self._begin()

    async def _read(self, *, is_live: bool) -> Page:
        """Read on from where the reader stands; two reads of the same bytes apply them once."""
        number, offset = self._number, self._offset
        page = await self._server.read(_path(number), offset, is_live=is_live, cursor=self._cursor)
        # No await from here on.
        if (number, offset) == (self._number, self._offset):
            self._offset, self._cursor = page.next_offset, page.cursor or self._cursor
            self._receive(page.data)
        return page

    def _receive(self, data: bytes) -> None:
        self._size_bytes += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._start is None:
                self._start = _Start.from_line(line)
            else:
                command = Command.from_line(line)
                self._begun_at = self._begun_at or command.at
                self._apply(command)
        self._tell_progress()

    def _apply(self, command: Command) -> None:
        sent = self._sent.pop(command.number, None) if command.author == self._author else None
        result: object = None
        error: StoreError | None = None
        try:
            result = self.replica.apply(command)
        except StoreError as exc:
            error = exc
        if sent is not None and not sent.result.done():
            if error is not None:
                sent.result.set_exception(error)
            else:
                sent.result.set_result(result)
        if command.author != self._author and error is None and (changed := changed_streams(command, result)):
            for listener in self.replica.listeners:
                listener.streams_changed(changed)

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    # Beginnings and ends

    async def _begin(self) -> None:
        """Start with the newest journal, or make the first one; read it as far as it goes. Raises: StoreUnavailable."""
        try:
            number = await self._newest()
            start, page = await self._first_page(number)
            replica, pauses = Replica(self.replica.listeners), Pauses()
            if start.snapshot is not None:
                for line in (await self._read_all(_snapshot_path(start.snapshot), needs_end=True)).splitlines():
                    replica.restore(line)
                    await pauses.take()
            # No await in here: what is asked meanwhile finds the one or the other.
            self.replica = replica
            self._enter(number)
            self._offset = page.next_offset
            self._receive(page.data)
            while not (page.is_up_to_date or page.is_end):
                page = await self._read(is_live=False)
        except StreamNotFound as exc:
            raise StoreUnavailable("the journal moved on while it was being read") from exc
        for listener in replica.listeners:
            listener.streams_changed(None)

    async def _newest(self) -> int:
        await self._server.create(_INDEX)
        listed = (await self._read_all(_INDEX, needs_end=False)).split()
        if listed:
            return int(listed[-1])
        await self._server.create(_path(0), _Start().to_line())
        return 0

    async def _first_page(self, number: int) -> tuple[_Start, Page]:
        page = await self._server.read(_path(number), START)
        line, newline, _ = page.data.partition(b"\n")
        if not newline:
            raise StoreUnavailable("the beginning of a journal is not readable yet")
        return _Start.from_line(line), page

    def _enter(self, number: int) -> None:
        self._number, self._offset, self._cursor = number, START, None
        self._rest, self._start, self._size_bytes, self._begun_at = b"", None, 0, None
        self._tell_progress()

    async def _roll(self) -> None:
        """At the end of a closed journal: make the next one if nobody has, and go there."""
        ended, upcoming = self._number, self._number + 1
        start = await self._next_start(upcoming)
        if start is None:
            mine = await self._write_snapshot()
            await self._server.create(_path(upcoming), mine.to_line())
            start, _ = await self._first_page(upcoming)
            if start != mine and mine.snapshot is not None:
                await self._server.delete(_snapshot_path(mine.snapshot))
        # Everybody does all of it, in case that whoever made the journal died before it did.
        await self._server.append(_INDEX, b"%016d\n" % upcoming)
        if ended > 0:
            await self._delete(ended - 1)
        logger.info("journal %d goes on from a snapshot of %d bytes", upcoming, start.size_bytes)
        self._enter(upcoming)

    async def _next_start(self, number: int) -> _Start | None:
        """The first line of the next journal; None when it is for this process to write."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_ROLLER_SECONDS):
                while True:
                    try:
                        return (await self._first_page(number))[0]
                    except StreamNotFound:
                        if self._closed == number - 1:
                            return None
                    await asyncio.sleep(_ROLL_POLL_SECONDS)
        return None

    async def _write_snapshot(self) -> _Start:
        token = secrets.token_hex(8)
        path = _snapshot_path(token)
        await self._server.create(path)
        size_bytes = sequence = 0
        gathered = bytearray()

        async def flush(*, is_last: bool) -> None:
            nonlocal sequence
            producer = Producer(self._author, 0, sequence)
            await self._server.append(path, bytes(gathered), producer=producer, is_close=is_last)
            gathered.clear()
            sequence += 1

        for line in self.replica.snapshot():
            gathered += line
            size_bytes += len(line)
            if len(gathered) >= _APPEND_BYTES:
                await flush(is_last=False)
        await flush(is_last=True)
        return _Start(token, size_bytes)

    async def _delete(self, number: int) -> None:
        """Delete a journal that nobody needs, and its snapshot."""
        with suppress(StreamNotFound):
            start, _ = await self._first_page(number)
            await self._server.delete(_path(number))
            if start.snapshot is not None:
                await self._server.delete(_snapshot_path(start.snapshot))

    async def _read_all(self, path: str, *, needs_end: bool) -> bytes:
        pieces = []
        offset = START
        while True:
            page = await self._server.read(path, offset)
            pieces.append(page.data)
            offset = page.next_offset
            if page.is_end:
                return b"".join(pieces)
            if page.is_up_to_date:
                if needs_end:
                    raise StoreUnavailable("a snapshot is not whole")
                return b"".join(pieces)


def _retrying(within_seconds: float = float("inf")) -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(StoreUnavailable),
        wait=_BACK_OFF,
        stop=stop_after_delay(within_seconds),
        reraise=True,
    )


def _path(number: int) -> str:
    return f"journal/{number:016d}"


def _snapshot_path(token: str) -> str:
    return f"snapshot/{token}"


def _take_note(task: asyncio.Task[None]) -> None:
    """What a look raised belongs to those who wait for it; there may be none left."""
    if not task.cancelled():
        task.exception()
