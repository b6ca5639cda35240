"""Connections to one Postgres: a pool in which every call has a deadline and no driver error gets out.

Works through a transaction-mode pooler: nothing here or above it relies on what a session remembers between two
transactions, and nothing is asked of the server at start-up. What a transaction needs it sets itself, with
`set_config(…, true)` or by naming its isolation level.

Two lanes share the pool. Commits, heartbeats and recovery are urgent; all else leaves them a few connections, so that a
crowd of catching-up readers cannot starve a lease.

A connection that is new costs as much as dozens of statements, until its plans are made. So a few may be made ready before
anybody calls, a burst of calls waits for those there are, and one more is made only where somebody waits for long.

A few connections are held between calls while nobody waits for one: taking one from the pool and giving it back costs half as
much as sending a statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from streamkeep.storage._errors import ItemRefused, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

T = TypeVar("T")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

Statement: TypeAlias = tuple[str, tuple[object, ...]]
"""A statement and what it is run with."""

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)
"""Everything that asyncpg raises; time-outs are OSErrors."""

_MAX_ATTEMPTS = 4
_RESERVED_CONNECTIONS = 2
_FIRST_CONNECTIONS = 3
_HELD_CONNECTIONS = 3
_WARM_UP_SECONDS = 2.0
_RETRY_PAUSE_SECONDS = 0.02
# The server makes a plan for each of the first five runs of a statement, and with the sixth the one that it keeps.
_RUNS_UNTIL_PLANNED = 6
_PATIENCE_SECONDS = 0.02
_RELEASE_SECONDS = 1.0
_IDLE_SECONDS = 60.0

# Said here and not left to the role's defaults: statements after a lock must see what it waited for. And a plan that was
# made and kept while a table was small must not read all of it once it is large. All in one round trip.
_BEGIN = "begin isolation level read committed; set local synchronous_commit = on; set local enable_seqscan = off"

# The transaction was rolled back through no fault of its own, so running it again is safe.
_ROLLED_BACK = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError)

# Data exceptions, violated constraints, and limits that the values exceed: sending them again cannot help.
_QUOTING_CLASS = "22"
_REFUSED_CLASSES = (_QUOTING_CLASS, "23", "54")


def translated(error: BaseException) -> StoreError:
    """What a driver error means to the store's callers. Neither it nor the driver's own quotes a row from now on."""
    if isinstance(error, asyncpg.PostgresError):
        _silence(error)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, asyncpg.DataError):
        return ItemRefused(text)
    if isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "")[:2] in _REFUSED_CLASSES:
        return ItemRefused(text)
    if isinstance(error, ValueError):  # The DSN; some mistakes in it the driver reports as it met them.
        return StoreError(text)
    return StoreUnavailable(text)


def _silence(error: asyncpg.PostgresError) -> None:
    """Take out of an error what was being stored: it is printed with the chain of whatever is raised from it."""
    error.detail = None  # The failing row.
    if (error.sqlstate or "").startswith(_QUOTING_CLASS):
        error.args = (f"SQLSTATE {error.sqlstate}",)  # The failing value.


def given_up_after(seconds: float) -> str:
    """Has the server end a transaction whose client is silent for so long. Otherwise the locks of a machine that is gone would be
    held until its connection counts as lost, which may take hours."""
    return f"set local idle_in_transaction_session_timeout = {max(1, round(1000 * seconds))}"


async def connect(
    dsn: str, *, deadline_seconds: float, statement_seconds: float | None = None
) -> asyncpg.Connection[asyncpg.Record]:
    """One connection outside the pool, without named statements. Raises what the driver raises."""
    return await asyncpg.connect(
        dsn,
        timeout=deadline_seconds,
        command_timeout=statement_seconds or deadline_seconds,
        statement_cache_size=0,
    )


async def disconnect(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Close politely if the other side answers at once; never raises."""
    with suppress(*DRIVER_ERRORS):
        await connection.close(timeout=_RELEASE_SECONDS)


class Database:
    """Run statements and transactions; every failure is a `StoreError`.

    `deadline_seconds` bounds each call as a whole: waiting for a connection, connecting and all statements in it.
    `is_pooled` says that a transaction-mode pooler stands between, which forbids named prepared statements.
    """

    def __init__(self, dsn: str, *, pool_size: int, deadline_seconds: float, is_pooled: bool) -> None:
        self._dsn = dsn
        self.pool_size = pool_size
        self._deadline_seconds = deadline_seconds
        self._is_pooled = is_pooled
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._held: list[PoolConnectionProxy[asyncpg.Record]] = []
        self._waiting = 0
        self._urgent = _OpenLane()
        self._ordinary = _Lane(max(1, pool_size - _RESERVED_CONNECTIONS))

    async def open(self, warm_up: Sequence[Statement] = ()) -> None:
        """Make the pool and try it; further connections are made when they are needed. With statements to warm up with, those
        that are used first are made now, and each has the server's plans of these statements."""
        try:
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=0,
                max_size=self.pool_size,
                max_inactive_connection_lifetime=_IDLE_SECONDS,
                statement_cache_size=0 if self._is_pooled else 100,
                reset=_keep_as_it_is,
                timeout=self._deadline_seconds,
                # Ours come first; this one bounds the driver's own request to cancel a statement.
                command_timeout=self._deadline_seconds + _RELEASE_SECONDS,
            )
            await self.fetch_row("select 1")
            if warm_up and not self._is_pooled:
                await self._warm_up(self._pool, warm_up)
                await self._try_again()
        except (*DRIVER_ERRORS, ValueError) as exc:
            raise translated(exc) from exc
        except (StoreError, asyncio.CancelledError):
            await self.close()
            raise

    async def _warm_up(self, pool: asyncpg.Pool[asyncpg.Record], statements: Sequence[Statement]) -> None:
        """All that are held, or none: where the server has no more connections, or is far away, they are made when they are needed."""

        async def run_all(connection: Connection) -> None:
            try:
                for statement, args in statements:
                    for _ in range(_RUNS_UNTIL_PLANNED):
                        await connection.fetch(statement, *args)
            except BaseException:
                connection.terminate()
                raise

        try:
            async with asyncio.timeout(_WARM_UP_SECONDS), asyncio.TaskGroup() as tasks:
                for _ in range(min(_HELD_CONNECTIONS, self.pool_size)):
                    tasks.create_task(self._once(pool, run_all))
        except* DRIVER_ERRORS:
            await self._forget_idle(pool)

    async def _try_again(self) -> None:
        """Where there are few connections, those that the warm-up has just ended may count for a moment more."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_fixed(_RETRY_PAUSE_SECONDS),
            stop=stop_after_delay(_WARM_UP_SECONDS),
            reraise=True,
        ):
            with attempt:
                await self.fetch_row("select 1")

    def take_turns(self) -> None:
        """Have the next call use the connection that was silent for longest. A gateway on the way forgets one that is silent for
        minutes, and a call on it would find that out by its deadline."""
        if self._held:
            self._held.append(self._held.pop(0))

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections there are, and how many of them are idle."""
        if self._pool is None:
            return 0, 0
        return self._pool.get_size(), self._pool.get_idle_size() + len(self._held)

    async def close(self) -> None:
        """Let calls under way finish, for a moment, and disconnect."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                while self._held:
                    await pool.release(self._held.pop())
                await pool.close()
        except DRIVER_ERRORS:
            pool.terminate()

    async def fetch(self, statement: str, *args: object, is_urgent: bool = False) -> list[asyncpg.Record]:
        seconds = self._deadline_seconds
        return await self._run_one(lambda held: held.fetch(statement, *args, timeout=seconds), is_urgent=is_urgent)

    async def fetch_row(self, statement: str, *args: object, is_urgent: bool = False) -> asyncpg.Record | None:
        seconds = self._deadline_seconds
        return await self._run_one(lambda held: held.fetchrow(statement, *args, timeout=seconds), is_urgent=is_urgent)

    async def execute(self, statement: str, *args: object, is_urgent: bool = False) -> int:
        """Run a statement that writes; return how many rows it wrote."""
        seconds = self._deadline_seconds
        status = await self._run_one(lambda held: held.execute(statement, *args, timeout=seconds), is_urgent=is_urgent)
        return int(status.rpartition(" ")[2])

    async def transact(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        is_urgent: bool = False,
        deadline_seconds: float | None = None,
    ) -> T:
        """Run `work` in one durable READ COMMITTED transaction; it may run again when the database rolled it back."""

        begin = f"{_BEGIN}; {given_up_after(deadline_seconds or self._deadline_seconds)}"

        async def transaction(connection: Connection) -> T:
            await connection.execute(begin)
            try:
                result = await work(connection)
            except BaseException:
                try:
                    if not connection.is_closed():
                        await connection.execute("rollback")
                except DRIVER_ERRORS:
                    # The pool may have taken it back, when the server ended it.
                    with suppress(*DRIVER_ERRORS):
                        connection.terminate()
                raise
            await connection.execute("commit")
            return result

        return await self._run(transaction, is_urgent=is_urgent, deadline_seconds=deadline_seconds)

    async def _run_one(self, call: Callable[[Connection], Awaitable[T]], *, is_urgent: bool) -> T:
        """Run one statement, which the driver gives a deadline. With a connection at hand there is nothing else to wait for."""
        pool, lane = self._pool, self._urgent if is_urgent else self._ordinary
        if pool is None or lane.is_full or not (self._held and _is_open(self._held[-1])):
            return await self._run(call, is_urgent=is_urgent)
        try:
            async with lane:
                held = self._held.pop()
                return await self._on(pool, held, call(held))
        except _ROLLED_BACK:
            return await self._run(call, is_urgent=is_urgent)
        except DRIVER_ERRORS as exc:
            raise await self._failure(pool, exc) from exc

    async def _run(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        is_urgent: bool,
        deadline_seconds: float | None = None,
    ) -> T:
        if self._pool is None:
            raise StoreUnavailable("the store is not open")
        pool = self._pool
        try:
            async with asyncio.timeout(deadline_seconds or self._deadline_seconds):
                async with self._urgent if is_urgent else self._ordinary:
                    for _ in range(_MAX_ATTEMPTS - 1):
                        try:
                            return await self._once(pool, work)
                        except _ROLLED_BACK:
                            continue
                    return await self._once(pool, work)
        except DRIVER_ERRORS as exc:
            raise await self._failure(pool, exc) from exc

    async def _failure(self, pool: asyncpg.Pool[asyncpg.Record], error: BaseException) -> StoreError:
        if isinstance(error, TimeoutError) and not pool.is_closing():
            # The network may have swallowed the idle connections as well, and only new ones can tell.
            await self._forget_idle(pool)
        return translated(error)

    async def _forget_idle(self, pool: asyncpg.Pool[asyncpg.Record]) -> None:
        await pool.expire_connections()
        held, self._held = self._held, []
        for connection in held:
            if _is_open(connection):
                connection.terminate()

    async def _once(self, pool: asyncpg.Pool[asyncpg.Record], work: Callable[[Connection], Awaitable[T]]) -> T:
        connection = await self._acquire(pool)
        return await self._on(pool, connection, work(connection))

    async def _on(
        self, pool: asyncpg.Pool[asyncpg.Record], connection: PoolConnectionProxy[asyncpg.Record], call: Awaitable[T]
    ) -> T:
        """Wait for a call on a connection; then the connection is held, or given back."""
        is_held = False
        try:
            result = await call
            if len(self._held) < _HELD_CONNECTIONS and not self._waiting and self._pool is pool:
                self._held.append(connection)
                is_held = True
            return result
        finally:
            if not is_held:
                # It may wait for a cancelled statement's last word. A failure ends the connection and concerns nobody else.
                with suppress(*DRIVER_ERRORS):
                    await pool.release(connection, timeout=_RELEASE_SECONDS)

    async def _acquire(self, pool: asyncpg.Pool[asyncpg.Record]) -> PoolConnectionProxy[asyncpg.Record]:
        while self._held:
            held = self._held.pop()
            if _is_open(held):
                return held
            await pool.release(held)
        self._waiting += 1
        try:
            return await pool.acquire()
        finally:
            self._waiting -= 1


class _OpenLane(nullcontext[None]):
    """Lets everybody in at once."""

    is_full = False


class _Lane:
    """Lets a few calls in at once, and one more for good, up to `most`, when somebody has waited for long."""

    def __init__(self, most: int) -> None:
        self._width = min(_FIRST_CONNECTIONS, most)
        self._most = most
        self._places = asyncio.Semaphore(self._width)

    @property
    def is_full(self) -> bool:
        """Whether who enters now has to wait."""
        return self._places.locked()

    async def __aenter__(self) -> None:
        if self._width < self._most and self._places.locked():
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._places.acquire()
                return
            except TimeoutError:
                if self._width < self._most:
                    self._width += 1
                    return
        await self._places.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._places.release()


def _is_open(connection: PoolConnectionProxy[asyncpg.Record]) -> bool:
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # It was lost, and the pool has taken it back.
        return False


async def _keep_as_it_is(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Instead of the driver's clean-up query, a round trip for each release: there is no session state to clean up."""
