"""`StreamDB` and `AsyncStreamDB`: typed collections that follow a state stream, two shells over one `Database`.

One thread, or task, reads the stream. Whoever waits, waits on one condition for what that has brought.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from streamkeep.client._errors import BodyConsumed, InvalidEvent
from streamkeep.client._handles import AsyncDurableStream, DurableStream
from streamkeep.client._rules.collections import Collection, Database, RowChange, Rows
from streamkeep.client._rules.decoding import JsonBatch
from streamkeep.client._streams import LiveMode

T = TypeVar("T")

Event = dict[str, Any]
Changed = dict[str, list[RowChange[Any]]]
OnChange = Callable[[list[RowChange[T]]], None]
OnInvalid = Callable[[object, InvalidEvent], None]

_CONFIRM_SECONDS = 30.0


class _Followed:
    """What both kinds share: the database, who wants to know of changes, and how the reading ended."""

    def __init__(self, collections: tuple[Collection[Any], ...], on_invalid: OnInvalid | None) -> None:
        self.database = Database(collections)
        self.failure: Exception | None = None
        self._on_invalid = on_invalid
        self._subscribers: dict[str, list[OnChange[Any]]] = {}

    def rows(self, collection: Collection[T]) -> Rows[T]:
        found = self.database.rows.get(collection.type)
        if found is None or found.collection is not collection:
            raise KeyError(f"{collection!r} is none of this database")
        return cast("Rows[T]", found)

    def subscribe(self, collection: Collection[T], callback: OnChange[T]) -> Callable[[], None]:
        subscribers = self._subscribers.setdefault(self.rows(collection).collection.type, [])
        subscribers.append(callback)
        return lambda: subscribers.remove(callback) if callback in subscribers else None

    def take(self, batch: JsonBatch[Any]) -> None:
        self.tell(self.database.take(batch.items, is_up_to_date=batch.is_up_to_date))
        if batch.is_up_to_date and self._on_invalid is not None:
            for event, error in self.database.invalid:
                self._on_invalid(event, error)

    def tell(self, changed: Changed) -> None:
        for type, changes in changed.items():
            for callback in tuple(self._subscribers.get(type, ())):
                callback(changes)

    def end(self, failure: Exception | None) -> None:
        self.failure = failure or BodyConsumed("nothing more is read: the stream has ended, or the database was closed")

    def check_loaded(self) -> bool:
        if not self.database.is_loaded and self.failure is not None:
            raise self.failure
        return self.database.is_loaded

    def check_committed(self, txid: str) -> bool:
        if not self.database.has_committed(txid) and self.failure is not None:
            raise self.failure
        return self.database.has_committed(txid)


class StreamDB:
    """Collections that follow a state stream. A thread reads it from `open`, or entering the context, until `close`.

    What is read shows when it reaches the tail, so nothing shows before the first time, which `preload` waits for. Events
    of other types are passed over; one that its schema does not admit is left out, and given to `on_invalid`. With
    `live=False` the stream is read to its tail once. Callbacks run in the thread that brings the change; one that raises
    ends the reading. Closing disconnects the handle.
    """

    def __init__(
        self,
        handle: DurableStream,
        *collections: Collection[Any],
        live: LiveMode = True,
        on_invalid: OnInvalid | None = None,
    ) -> None:
        self._handle = handle
        self._live = live
        self._followed = _Followed(collections, on_invalid)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<StreamDB {self._handle!r}>"

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Begin to read."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="streamkeep-database", daemon=True)
            self._thread.start()

    def preload(self, *, timeout: float | None = None) -> None:
        """Wait until the tail was reached.

        Raises:
            TimeoutError: it was not, within so many seconds.
            StreamNotFound, ServerError, ConnectionFailed, ProtocolError: the stream cannot be read.
        """
        self.open()
        self._wait(self._followed.check_loaded, timeout)

    def rows(self, collection: Collection[T]) -> Rows[T]:
        """The values of a collection. Raises: KeyError: it is none of this database's."""
        return self._followed.rows(collection)

    def subscribe(self, collection: Collection[T], callback: OnChange[T]) -> Callable[[], None]:
        """Call back with the changes of each step; what is returned ends that. Raises: KeyError."""
        with self._changed:
            return self._followed.subscribe(collection, callback)

    def changes(self, collection: Collection[T]) -> Iterator[list[RowChange[T]]]:
        """The changes of each step from now on, until the database is closed. What is not taken waits in memory."""
        waiting: deque[list[RowChange[T]]] = deque()
        leave = self.subscribe(collection, waiting.append)
        return self._iterate(waiting, leave)

    def write(
        self, *events: Event, send: Callable[[list[Event]], object] | None = None, timeout: float = _CONFIRM_SECONDS
    ) -> str:
        """Show events of collections at once, write them, and wait until they come back; the id of their transaction.

        They are appended together, or given to `send`, which has them written by other ways with the `txid` that stands
        in them. If that fails, they are shown no more, and its error is raised.

        Raises:
            InvalidEvent: they are none, or of no collection; nothing was shown or written.
            TimeoutError: they were written and did not come back in time; they stay shown until they do.
        """
        txid, marked = _marked(events)
        with self._changed:
            self._tell(self._followed.database.lay_over(txid, marked))
        try:
            if send is None:
                self._handle.append(_together(marked))
            else:
                send(marked)
        except BaseException:
            with self._changed:
                self._tell(self._followed.database.take_back(txid))
            raise
        self.await_txid(txid, timeout=timeout)
        return txid

    def await_txid(self, txid: str, *, timeout: float = _CONFIRM_SECONDS) -> None:
        """Wait until a transaction was read, whoever wrote it. Raises: TimeoutError, and what ended the reading."""
        self._wait(lambda: self._followed.check_committed(txid), timeout)

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._followed.end(self._followed.failure)
            self._changed.notify_all()
        self._handle.disconnect()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _wait(self, is_there: Callable[[], bool], timeout: float | None) -> None:
        with self._changed:
            if not self._changed.wait_for(is_there, timeout):
                raise TimeoutError(f"it did not come within {timeout} seconds")

    def _tell(self, changed: Changed) -> None:
        self._followed.tell(changed)
        self._changed.notify_all()

    def _iterate(self, waiting: deque[list[RowChange[T]]], leave: Callable[[], None]) -> Iterator[list[RowChange[T]]]:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: waiting or self._followed.failure is not None)
                if not waiting:
                    return
                yield waiting.popleft()
        finally:
            leave()

    def _read(self) -> None:
        failure: Exception | None = None
        try:
            with self._handle.stream(live=self._live) as response:
                for batch in response.iter_json_batches():
                    with self._changed:
                        if self._followed.failure is not None:
                            return
                        self._followed.take(batch)
                        self._changed.notify_all()
        except Exception as exc:  # noqa: BLE001  # whoever waits gets it
            failure = exc
        with self._changed:
            self._followed.end(self._followed.failure or failure)
            self._changed.notify_all()


class AsyncStreamDB:
    """`StreamDB` for asyncio, over an `AsyncDurableStream`. A task reads."""

    def __init__(
        self,
        handle: AsyncDurableStream,
        *collections: Collection[Any],
        live: LiveMode = True,
        on_invalid: OnInvalid | None = None,
    ) -> None:
        self._handle = handle
        self._live = live
        self._followed = _Followed(collections, on_invalid)
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<AsyncStreamDB {self._handle!r}>"

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def open(self) -> None:
        """Begin to read."""
        if self._task is None:
            self._task = asyncio.create_task(self._read())

    async def preload(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # as its sync twin
        """`StreamDB.preload`, awaited."""
        self.open()
        await self._wait(self._followed.check_loaded, timeout)

    def rows(self, collection: Collection[T]) -> Rows[T]:
        """The values of a collection. Raises: KeyError: it is none of this database's."""
        return self._followed.rows(collection)

    def subscribe(self, collection: Collection[T], callback: OnChange[T]) -> Callable[[], None]:
        """Call back with the changes of each step; what is returned ends that. Raises: KeyError."""
        return self._followed.subscribe(collection, callback)

    def changes(self, collection: Collection[T]) -> AsyncIterator[list[RowChange[T]]]:
        """`StreamDB.changes`, awaited."""
        waiting: deque[list[RowChange[T]]] = deque()
        leave = self.subscribe(collection, waiting.append)
        return self._iterate(waiting, leave)

    async def write(
        self,
        *events: Event,
        send: Callable[[list[Event]], Awaitable[object]] | None = None,
        timeout: float = _CONFIRM_SECONDS,  # noqa: ASYNC109  # as its sync twin
    ) -> str:
        """`StreamDB.write`, awaited."""
        txid, marked = _marked(events)
        self._tell(self._followed.database.lay_over(txid, marked))
        try:
            await (self._handle.append(_together(marked)) if send is None else send(marked))
        except BaseException:
            self._tell(self._followed.database.take_back(txid))
            raise
        await self.await_txid(txid, timeout=timeout)
        return txid

    async def await_txid(self, txid: str, *, timeout: float = _CONFIRM_SECONDS) -> None:  # noqa: ASYNC109
        """`StreamDB.await_txid`, awaited."""
        await self._wait(lambda: self._followed.check_committed(txid), timeout)

    async def close(self) -> None:
        """Stop reading."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._end(None)
        await self._handle.disconnect()

    async def _wait(self, is_there: Callable[[], bool], timeout: float | None) -> None:  # noqa: ASYNC109
        async with asyncio.timeout(timeout):
            while not is_there():
                await self._news.wait()

    def _announce(self) -> None:
        """Wake whoever waits; who waits from now on, waits for what comes next."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _tell(self, changed: Changed) -> None:
        self._followed.tell(changed)
        self._announce()

    async def _iterate(
        self, waiting: deque[list[RowChange[T]]], leave: Callable[[], None]
    ) -> AsyncIterator[list[RowChange[T]]]:
        try:
            while True:
                while waiting:
                    yield waiting.popleft()
                if self._followed.failure is not None:
                    return
                await self._news.wait()
        finally:
            leave()

    async def _read(self) -> None:
        failure: Exception | None = None
        try:
            async with self._handle.stream(live=self._live) as response:
                async for batch in response.iter_json_batches():
                    self._followed.take(batch)
                    self._announce()
        except Exception as exc:  # noqa: BLE001  # whoever waits gets it
            failure = exc
        self._end(failure)

    def _end(self, failure: Exception | None) -> None:
        self._followed.end(self._followed.failure or failure)
        self._announce()


def _marked(events: tuple[Event, ...]) -> tuple[str, list[Event]]:
    txid = str(uuid.uuid4())
    return txid, [{**event, "headers": {**event.get("headers", {}), "txid": txid}} for event in events]


def _together(events: list[Event]) -> str:
    """Events as the inside of an array, so that they are stored in one step."""
    return ",".join(json.dumps(event, separators=(",", ":"), ensure_ascii=False, allow_nan=False) for event in events)
