"""What other processes did: notifications in, notifications out.

Both directions have a connection of their own, away from the write path: a transaction that notifies holds a lock of the
whole server until it is flushed, so a NOTIFY within a commit would end group commit for everybody. The notifier sends
what has gathered since its last statement, without waiting for a flush. A notification may be lost; readers poll
slowly as well, and whoever lost contact is told to look at everything.

A payload is the sender's name and a list of ids, or the sender's name and `*` for "look at all of them".
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable

import asyncpg
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from streamkeep.storage._errors import StoreError
from streamkeep.storage._store import Listener
from streamkeep.storage.postgres._database import DRIVER_ERRORS, connect, disconnect

logger = logging.getLogger(__name__)

STREAMS_CHANNEL = "streamkeep_streams"
CANCELS_CHANNEL = "streamkeep_cancels"

_EVERYTHING = "*"
_MAX_PAYLOAD_BYTES = 7900
_MAX_PENDING_IDS = 10_000
_PING_SECONDS = 10.0
_PAUSE_SECONDS = 0.05
_MAX_RETRY_PAUSE_SECONDS = 2.0


def new_sender() -> str:
    """A name for this process, so that it can ignore its own notifications."""
    return secrets.token_hex(6)


def format_payload(sender: str, ids: Iterable[int] | None) -> str:
    """What is sent: the ids if they fit into a notification, else the request to look at everything."""
    if ids is not None:
        payload = f"{sender} {','.join(map(str, sorted(ids)))}"
        if len(payload) <= _MAX_PAYLOAD_BYTES:
            return payload
    return f"{sender} {_EVERYTHING}"


def parse_payload(payload: str) -> tuple[str, list[int] | None]:
    """The sender, and the ids or None for everything; what cannot be read means everything, from nobody we know."""
    sender, _, text = payload.partition(" ")
    try:
        return sender, [int(part) for part in text.split(",")] if text != _EVERYTHING else None
    except ValueError:
        return "", None


class Feed:
    """Tell listeners what other processes notify, for as long as `run` runs; reconnects by itself.

    `cancel_requests` is asked after each (re)connect, since a request may have been missed. `is_listening` is False while
    there is no connection.
    """

    def __init__(
        self,
        dsn: str,
        sender: str,
        *,
        cancel_requests: Callable[[], Awaitable[Collection[int]]],
        deadline_seconds: float,
    ) -> None:
        self.is_listening = False
        self._dsn = dsn
        self._sender = sender
        self._cancel_requests = cancel_requests
        self._deadline_seconds = deadline_seconds
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def streams_changed(self, stream_ids: Collection[int] | None) -> None:
        for listener in self._listeners:
            listener.streams_changed(stream_ids)

    def cancel_requested(self, generation_ids: Collection[int]) -> None:
        for listener in self._listeners:
            listener.cancel_requested(generation_ids)

    async def run(self) -> None:
        while True:
            connection = await _connect_at_last(self._dsn, self._deadline_seconds)
            try:
                await self._follow(connection)
            except (*DRIVER_ERRORS, StoreError) as exc:
                logger.info("lost the notifications: %s", exc)
            finally:
                self.is_listening = False
                connection.terminate()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _follow(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        await connection.add_listener(STREAMS_CHANNEL, self._on_streams)
        await connection.add_listener(CANCELS_CHANNEL, self._on_cancels)
        self.is_listening = True
        self.streams_changed(None)
        if requested := await self._cancel_requests():
            self.cancel_requested(requested)
        while not lost.is_set():
            try:
                async with asyncio.timeout(_PING_SECONDS):
                    await lost.wait()
            except TimeoutError:
                # A peer that vanished says nothing, and neither does a quiet one: ask.
                await connection.execute("select 1")

    def _on_streams(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        sender, ids = parse_payload(str(payload))
        if sender != self._sender:
            self.streams_changed(ids)

    def _on_cancels(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        sender, ids = parse_payload(str(payload))
        if sender != self._sender and ids is not None:
            self.cancel_requested(ids)


class Notifier:
    """Tell other processes which streams changed, for as long as `run` runs; never in anybody's way."""

    def __init__(self, dsn: str, sender: str, *, deadline_seconds: float) -> None:
        self._dsn = dsn
        self._sender = sender
        self._deadline_seconds = deadline_seconds
        self._pending: set[int] = set()
        self._is_everything = False
        self._has_news = asyncio.Event()

    def announce(self, stream_ids: Iterable[int]) -> None:
        """Have these told soon, together with whatever else gathers until then."""
        if not self._is_everything:
            self._pending.update(stream_ids)
            if len(self._pending) > _MAX_PENDING_IDS:
                self._announce_everything()
        self._has_news.set()

    async def run(self) -> None:
        while True:
            await self._has_news.wait()
            connection = await _connect_at_last(self._dsn, self._deadline_seconds)
            try:
                await self._send(connection)
            except DRIVER_ERRORS as exc:
                logger.info("lost the notifier's connection: %s", exc)
                # What was on its way may not have arrived.
                self._announce_everything()
            finally:
                await disconnect(connection)

    async def _send(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            payload = format_payload(self._sender, None if self._is_everything else self._pending)
            self._pending, self._is_everything = set(), False
            # Without parameters, and so in one round trip with no statement to prepare: a payload is hex and digits.
            await connection.execute(
                f"select set_config('synchronous_commit', 'off', true), pg_notify('{STREAMS_CHANNEL}', '{payload}')"
            )

    def _announce_everything(self) -> None:
        self._pending.clear()
        self._is_everything = True
        self._has_news.set()


async def _connect_at_last(dsn: str, deadline_seconds: float) -> asyncpg.Connection[asyncpg.Record]:
    """A connection, as soon as the server grants one."""
    policy = AsyncRetrying(
        retry=retry_if_exception_type(DRIVER_ERRORS),
        wait=wait_random_exponential(multiplier=_PAUSE_SECONDS, max=_MAX_RETRY_PAUSE_SECONDS),
    )
    return await policy(connect, dsn, deadline_seconds=deadline_seconds)
