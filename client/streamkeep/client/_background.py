"""Where the work of a chat goes on beside its caller: in threads, or in tasks of asyncio.

Work is a coroutine over a channel of the same kind. What is known is looked at and changed under `guard`; whoever changed
something says so with `announce`, and whoever needs something waits with `wait` until it is there.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakSet

from streamkeep.client._channel import run_blocking

T = TypeVar("T")

_PATIENCE_SECONDS = 2.0

Work = Callable[[], Coroutine[Any, Any, None]]


class WorkStopped(Exception):
    """Work in the background was told to end. Never leaves the core."""


class Background(Protocol):
    """The work that goes on, and the news that it has."""

    guard: AbstractContextManager[object]

    def start(self, name: str, work: Work) -> None:
        """Begin work; `stop` ends it."""

    def announce(self) -> None:
        """Something has changed."""

    async def wait(self, look: Callable[[], T | None], seconds: float | None = None) -> T:
        """What `look` finds, as soon as it is not None; it looks under the guard.

        Raises:
            TimeoutError: not within so many seconds.
            WorkStopped: it was stopped work that waited.
        """

    async def call(self, function: Callable[[], T | Awaitable[T]], *, may_block: bool = False) -> T:
        """Call a user's function. One that may block holds up nobody else."""

    def check(self) -> None:
        """Raises: WorkStopped: the work that asks is to end."""

    async def stop(self, release: Work) -> None:
        """End all work; `release` frees what it waits for. New work may be started then.

        A user's function is not interrupted, and the work that calls this from one ends when it waits next.
        """


class Threads:
    """Each piece of work has a thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.guard: AbstractContextManager[object] = self._changed
        self._workers: set[_Worker] = set()

    def start(self, name: str, work: Work) -> None:
        worker = _Worker(name, work, self._left)
        with self._changed:
            self._workers.add(worker)
        worker.start()

    def announce(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def wait(self, look: Callable[[], T | None], seconds: float | None = None) -> T:
        found: T | None = None

        def is_there() -> bool:
            nonlocal found
            self.check()
            found = look()
            return found is not None

        with self._changed:
            self._changed.wait_for(is_there, seconds)
        if found is None:
            raise TimeoutError(f"it did not come within {seconds} seconds")
        return found

    async def call(self, function: Callable[[], T | Awaitable[T]], *, may_block: bool = False) -> T:
        thread = threading.current_thread()
        if not isinstance(thread, _Worker):
            return cast("T", function())
        self._enter(thread, True)
        try:
            return cast("T", function())
        finally:
            self._enter(thread, False)

    def check(self) -> None:
        thread = threading.current_thread()
        if isinstance(thread, _Worker) and thread.is_stopped:
            raise WorkStopped

    async def stop(self, release: Work) -> None:
        with self._changed:
            stopped = set(self._workers)
            for worker in stopped:
                worker.is_stopped = True
            self._changed.notify_all()
        await release()
        with self._changed:
            # One that waits for a server's first word cannot be woken. It ends by itself, and does nothing more.
            self._changed.wait_for(
                lambda: all(worker.is_with_user for worker in stopped & self._workers), _PATIENCE_SECONDS
            )

    def _enter(self, worker: _Worker, is_with_user: bool) -> None:
        with self._changed:
            worker.is_with_user = is_with_user
            self._changed.notify_all()

    def _left(self, worker: _Worker) -> None:
        with self._changed:
            self._workers.discard(worker)
            self._changed.notify_all()


class _Worker(threading.Thread):
    """A thread that does one piece of work. `is_with_user` while it is in a function of theirs."""

    def __init__(self, name: str, work: Work, left: Callable[[_Worker], None]) -> None:
        super().__init__(name=f"streamkeep-{name}", daemon=True)
        self.is_stopped = False
        self.is_with_user = False
        self._work = work
        self._left = left

    def run(self) -> None:
        try:
            with suppress(WorkStopped):
                run_blocking(self._work())
        finally:
            self._left(self)


class Tasks:
    """Each piece of work has a task."""

    def __init__(self) -> None:
        self.guard: AbstractContextManager[object] = nullcontext()
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped: WeakSet[asyncio.Task[Any]] = WeakSet()

    def start(self, name: str, work: Work) -> None:
        task = asyncio.create_task(self._run(work), name=f"streamkeep-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, work: Work) -> None:
        with suppress(WorkStopped):
            await work()

    def announce(self) -> None:
        # Who waits from now on, waits for what comes next.
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def wait(self, look: Callable[[], T | None], seconds: float | None = None) -> T:
        async with asyncio.timeout(seconds):
            while True:
                self.check()
                found = look()
                if found is not None:
                    return found
                await self._news.wait()

    async def call(self, function: Callable[[], T | Awaitable[T]], *, may_block: bool = False) -> T:
        is_plain = may_block and not _is_coroutine_function(function)
        found = await asyncio.to_thread(function) if is_plain else function()
        return await found if inspect.isawaitable(found) else found

    def check(self) -> None:
        if asyncio.current_task() in self._stopped:
            raise WorkStopped

    async def stop(self, release: Work) -> None:
        stopped = {task for task in self._tasks if task is not asyncio.current_task()}
        for task in stopped:
            task.cancel()
        self._stopped |= self._tasks
        await release()
        if stopped:
            await asyncio.wait(stopped)


def _is_coroutine_function(function: Callable[..., object]) -> bool:
    function = getattr(function, "func", function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
