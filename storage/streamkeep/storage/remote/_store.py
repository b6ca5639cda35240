"""RemoteStore: everything on another server of the open protocol, over plain HTTP; no database.

What such a server can carry. It orders appends, stores each once by producer and sequence, fences an old epoch off, makes
a stream once however many try, and closes one for good. It knows no transaction over two streams, no comparison with
what is stored, no index and no list. But a generation's end is an event, two closed streams and a row that nobody
else may end; a claim is a row, two streams and a limit; a session has a list. So none of this is spread over streams of
their own, where it would have to be mended after every crash. One stream, the *journal*, holds every call that changes
anything, in one order for all processes, and each process applies it to a memory store (`_replica.py`). A call takes
effect whole at its place in that order, or not at all, and every rule is the memory store's: the one upstream call
for a key, the one terminal event, leases and their epochs, producers, forks, subscriptions, keys.

What that costs. A change is one append, shared by all that are pending, and its way back through the follower; a question is one
HEAD, shared likewise. Every process holds in memory all that is within retention, and reads it when it starts: this is
for as much as fits there; Postgres has no such bound. Bytes stand in the journal among commands, so the other server's own
readers find no stream for each of ours: they read here. Clocks of the processes should agree: a command's time is its
author's. All processes should run the same version, or an upgrade must begin with all of them stopped.

How it stays sound: `_journal.py`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import cast

from streamkeep.storage._errors import StoreError
from streamkeep.storage._store import Listener
from streamkeep.storage._types import (
    Append,
    Appended,
    Claim,
    Created,
    Ending,
    Erased,
    Erasure,
    Generation,
    GenerationKey,
    GenerationPage,
    Lease,
    Owner,
    Refusal,
    Retention,
    SessionPage,
    Slice,
    StoreStatus,
    StreamAppend,
    StreamChange,
    StreamConfig,
    StreamInfo,
    StreamKey,
    Tail,
    Terms,
    UpstreamHead,
    Wanted,
)
from streamkeep.storage.remote._journal import Journal
from streamkeep.storage.remote._keys import RemoteKeys
from streamkeep.storage.remote._replica import Replica
from streamkeep.storage.remote._server import Server
from streamkeep.storage.remote._sessions import RemoteSessions
from streamkeep.storage.remote._subscriptions import RemoteSubscriptions

logger = logging.getLogger(__name__)

_SIGNING_KEY_BYTES = 32


class RemoteStore:
    """The store on another server of the open protocol; see `Store` for what each method means.

    `url` is where its streams are to lie, such as `https://other.example/v1/stream/chat`; nobody else may write below it. `token`
    is sent as a bearer token. `deadline_seconds` bounds every call. `roll_bytes` is the least size at which the journal is
    replaced by a snapshot and a new one, and `roll_seconds` the age at which it is all the same: what was erased stays in the
    journals of its time, and is gone when the second one after them begins.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        retention: Retention = Retention(),  # noqa: B008
        deadline_seconds: float = 10.0,
        roll_bytes: int = 16 * 1024 * 1024,
        roll_seconds: float = 12 * 3600.0,
    ) -> None:
        self._retention = retention
        self._server = Server(url, token, request_seconds=deadline_seconds / 2)
        self._journal = Journal(
            self._server, deadline_seconds=deadline_seconds, roll_bytes=roll_bytes, roll_seconds=roll_seconds
        )
        self.subscriptions = RemoteSubscriptions(self._journal)
        self.sessions = RemoteSessions(self._journal)
        self.keys = RemoteKeys(self._journal)
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"RemoteStore({self._server!r}, {self._journal!r})"

    async def open(self) -> None:
        try:
            await self._journal.open()
            self._task = asyncio.create_task(self._journal.run(), name="streamkeep-journal")
            self._task.add_done_callback(_log_failure)
            await self._journal.write("adopt_signing_key", secrets.token_bytes(_SIGNING_KEY_BYTES))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._server.close()

    async def ping(self) -> None:
        await self._journal.catch_up()

    def status(self) -> StoreStatus:
        return StoreStatus(is_listening=self._journal.is_following)

    def listen(self, listener: Listener) -> None:
        self._journal.replica.listen(listener)

    async def signing_key(self) -> bytes:
        return await (await self._current()).signing_key()

    async def _current(self) -> Replica:
        """The replica, with all that was written before this call."""
        await self._journal.catch_up()
        return self._journal.replica

    # Owners

    async def register_owner(self) -> Owner:
        return cast("Owner", await self._journal.write("register_owner"))

    async def renew(self, owner: Owner) -> None:
        await self._journal.write("renew", owner)

    async def release(self, owner: Owner) -> None:
        await self._journal.write("release", owner)

    async def leases(self) -> list[Lease]:
        return await (await self._current()).leases()

    async def recover(self, lease: Lease) -> int:
        return cast("int", await self._journal.write("recover", lease))

    # Generations

    async def claim(
        self,
        owner: Owner,
        key: GenerationKey,
        fingerprint: bytes | None,
        terms: Terms = Terms(),  # noqa: B008
    ) -> Claim:
        return cast("Claim", await self._journal.write("claim", owner, key, fingerprint, terms))

    async def start(self, generation: Generation, head: UpstreamHead, fingerprint: bytes | None) -> bool:
        return cast("bool", await self._journal.write("start", generation, head, fingerprint))

    async def refuse(self, generation: Generation, refusal: Refusal, fingerprint: bytes | None) -> None:
        await self._journal.write("refuse", generation, refusal, fingerprint)

    async def generation(self, key: GenerationKey) -> Generation | None:
        return await (await self._current()).generation(key)

    async def session_generations(self, tenant: str, session_id: str, *, ended_after: datetime) -> list[Generation]:
        return await (await self._current()).session_generations(tenant, session_id, ended_after=ended_after)

    async def list_generations(self, wanted: Wanted, *, before: int | None = None, limit: int = 100) -> GenerationPage:
        return await (await self._current()).list_generations(wanted, before=before, limit=limit)

    async def list_sessions(self, wanted: Wanted, *, before: int | None = None, limit: int = 100) -> SessionPage:
        return await (await self._current()).list_sessions(wanted, before=before, limit=limit)

    async def request_cancel(self, key: GenerationKey) -> Generation | None:
        return cast("Generation | None", await self._journal.write("request_cancel", key))

    async def cancel_requests(self, owner: Owner) -> list[int]:
        return await (await self._current()).cancel_requests(owner)

    async def set_retention(self, tenant: str, seconds: float | None) -> None:
        await self._journal.write("set_retention", tenant, seconds)

    async def retentions(self) -> dict[str, float]:
        return await (await self._current()).retentions()

    async def note_readers(self, process: str, counted_seconds: Mapping[int, float]) -> None:
        await self._journal.write("count_readers", process, list(counted_seconds.items()))

    async def readerless_seconds(self, generation_ids: Collection[int]) -> dict[int, float]:
        return await (await self._current()).readerless_seconds(generation_ids)

    # Bytes

    async def commit(self, owner: Owner, appends: Sequence[Append], endings: Sequence[Ending]) -> frozenset[int]:
        return cast("frozenset[int]", await self._journal.write("commit", owner, appends, endings))

    async def settle(self, owner: Owner, stream_ids: Collection[int]) -> dict[int, Tail]:
        # Behind everything that this process has sent, known or not.
        return cast("dict[int, Tail]", await self._journal.write("settle", owner, list(stream_ids)))

    async def read(self, stream_id: int, position: int, max_bytes: int) -> Slice:
        return await (await self._current()).read(stream_id, position, max_bytes)

    async def read_each(self, positions: Mapping[int, int], max_bytes: int) -> dict[int, Slice]:
        return await (await self._current()).read_each(positions, max_bytes)

    async def tails(self, stream_ids: Collection[int]) -> dict[int, Tail]:
        return await (await self._current()).tails(stream_ids)

    async def erase(self, what: Erasure, limit: int = 1000) -> Erased:
        return cast("Erased", await self._journal.write("erase", what, limit))

    # Streams of the open protocol

    async def create_stream(self, key: StreamKey, config: StreamConfig, data: bytes = b"") -> Created:
        return cast("Created", await self._journal.write("create_stream", key, config, data))

    async def stream(self, key: StreamKey, *, is_touched: bool = True) -> StreamInfo:
        replica = await self._current()
        if is_touched and replica.needs_touch(key):
            await self._journal.write("touch", key)
        return await replica.stream(key, is_touched=False)

    async def schema(self, stream_id: int) -> str | None:
        return await (await self._current()).schema(stream_id)

    async def append(self, appends: Sequence[StreamAppend]) -> list[Appended | StoreError]:
        return cast("list[Appended | StoreError]", await self._journal.write("append", appends))

    async def delete_stream(self, key: StreamKey) -> None:
        await self._journal.write("delete_stream", key)

    async def list_streams(
        self, tenant: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[StreamInfo]:
        return await (await self._current()).list_streams(tenant, prefix=prefix, after=after, limit=limit)

    async def write_registries(self, encode: Callable[[StreamChange], bytes], limit: int = 500) -> list[int]:
        while changes := (await self._current()).next_changes(limit):
            messages = [encode(change) for change in changes]
            told = await self._journal.write("tell_registries", changes, messages)
            if told is not None:
                return cast("list[int]", told)
        return []

    # Upkeep

    async def sweep(self, limit: int = 100) -> int:
        if not (await self._current()).has_due(self._retention):
            return 0
        return cast("int", await self._journal.write("sweep_for", self._retention, limit))

    async def rekey(self, tenant: str) -> int:
        return 0

    async def merge(self, limit: int = 20) -> int:
        """Nothing is merged here; but what has been written down of the past is dropped when it has grown too long."""
        await self._journal.roll_over()
        return 0


async def check(url: str, *, token: str | None = None) -> None:
    """Whether that server can be used. Raises: StoreUnavailable, which says why."""
    server = Server(url, token)
    try:
        await Journal(server, deadline_seconds=10.0, roll_bytes=0, roll_seconds=0.0).check()
    finally:
        await server.close()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.critical("%s stopped", task.get_name(), exc_info=task.exception())
