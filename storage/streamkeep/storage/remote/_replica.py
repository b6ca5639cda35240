"""Replica: the store's contents as the journal tells them, as far as this process has read it.

It is the memory store, changed by nothing but commands, in the order of the journal and at the time that each one says.
So what a command does follows from the journal alone, and all replicas that have read as far are equal. Between commands
it is only asked; then its time is this process's, but never before that of the last command.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import TypeVar, cast

from streamkeep.storage._errors import StoreError
from streamkeep.storage._keys import ApiKey, SigningKey
from streamkeep.storage._sessions import SessionKey, SessionRecord
from streamkeep.storage._store import Listener
from streamkeep.storage._subscriptions import Link, Locked, Subscription, SubscriptionKey, Wake, WebhookKey
from streamkeep.storage._types import (
    Append,
    Appended,
    Ending,
    Generation,
    Owner,
    Producer,
    Retention,
    StreamChange,
    StreamKey,
)
from streamkeep.storage.memory import MemoryStore, _Stream
from streamkeep.storage.memory_keys import MemoryKeys
from streamkeep.storage.memory_sessions import MemorySessions
from streamkeep.storage.memory_sessions import _Row as _SessionRow
from streamkeep.storage.memory_subscriptions import MemorySubscriptions, _Row
from streamkeep.storage.rules.expiry import moved_end
from streamkeep.storage.rules.records import decode_record, encode_record

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Command:
    """One call, as it stands in the journal. `author` is the process that wrote it, `number` counts what it writes, and
    `at` is its time."""

    author: str
    number: int
    at: datetime
    name: str
    arguments: tuple[object, ...]

    def to_line(self) -> bytes:
        return encode_record(self.author, self.number, self.at, self.name, *self.arguments)

    @classmethod
    def from_line(cls, line: bytes) -> Command:
        """Raises: StoreError."""
        match decode_record(line):
            case str() as author, int() as number, datetime() as at, str() as name, *arguments:
                return cls(author, number, at, name, tuple(arguments))
        raise StoreError(f"no command of this version: {line[:100]!r}")


class Replica(MemoryStore):
    """See the module. `apply` is all that changes it; `snapshot` and `restore` carry it over."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._time = _LONG_AGO
        self._is_applying = False
        super().__init__()
        self.subscriptions: ReplicaSubscriptions = ReplicaSubscriptions(self._now)
        self.sessions: ReplicaSessions = ReplicaSessions(self._now, self._next_id, self._check)
        self.keys: ReplicaKeys = ReplicaKeys(self._now)
        self._signing_key = b""
        self._listeners = list(listeners)
        self._commands: dict[str, Callable[..., Coroutine[None, None, object]]] = {
            name: getattr(self, name)
            for name in (
                *(
                    "adopt_signing_key",
                    "set_retention",
                    "register_owner",
                    "renew",
                    "release",
                    "recover",
                    "count_readers",
                ),
                *("claim", "start", "refuse", "request_cancel", "commit", "settle", "erase"),
                *("create_stream", "touch", "append", "delete_stream", "tell_registries", "sweep_for"),
            )
        }
        self._commands |= {f"keys.{name}": getattr(self.keys, name) for name in ("add", "revoke", "rotate")}
        self._commands |= {
            f"sessions.{name}": getattr(self.sessions, name)
            for name in (
                *("add", "rename", "replace_agents", "delete"),
                *("mark_due", "claim_due", "settle", "release"),
            )
        }
        self._commands |= {
            f"subscriptions.{name}": getattr(self.subscriptions, name)
            for name in (
                *("create", "delete", "link", "unlink", "note", "forget", "replace"),
                *("claim_round", "webhook_keys"),
            )
        }

    @property
    def listeners(self) -> Sequence[Listener]:
        return self._listeners

    def _now(self) -> datetime:
        return self._time if self._is_applying else max(self._time, datetime.now(UTC))

    def apply(self, command: Command) -> object:
        """Do what a command says; what it comes to.

        Raises:
            StoreError: as the method of that name says; nothing has changed.
        """
        method = self._commands.get(command.name)
        if method is None:
            raise StoreError(f"no command of this version: {command.name[:100]!r}")
        self._time = max(self._time, command.at)
        self._is_applying = True
        try:
            return finished(method(*command.arguments))
        except StoreError:
            raise
        except Exception as exc:
            # It fails in the same way wherever it is applied.
            logger.exception("the command %s failed in a way that nobody foresaw", command.name)
            raise StoreError(f"{command.name} failed") from exc
        finally:
            self._is_applying = False

    # Commands that the memory store has no method for

    async def adopt_signing_key(self, candidate: bytes) -> bytes:
        if not self._signing_key:
            self._signing_key = candidate
            self.keys.begin_with(candidate)
        return self._signing_key

    async def touch(self, key: StreamKey) -> None:
        self._touch(self._find(key))

    async def count_readers(self, process: str, counted_seconds: Sequence[tuple[int, float]]) -> None:
        await self.note_readers(process, dict(counted_seconds))

    async def tell_registries(self, changes: Sequence[StreamChange], messages: Sequence[bytes]) -> list[int] | None:
        """Tell these changes, if they are still the next ones; None: they are not."""
        if tuple(self.next_changes(len(changes))) != tuple(changes):
            return None
        following = iter(messages)
        return await self.write_registries(lambda _: next(following), len(changes))

    async def sweep_for(self, retention: Retention, limit: int) -> int:
        self._retention = retention
        return await self.sweep(limit)

    # Questions

    def has_due(self, retention: Retention) -> bool:
        """Whether a sweep would find anything."""
        self._retention = retention
        return any(self._due(1)) or bool(self._unwatched() or self._deleted())

    def next_changes(self, limit: int) -> list[StreamChange]:
        """What the registries are to be told next."""
        return self._changes[:limit]

    def needs_touch(self, key: StreamKey) -> bool:
        """Whether a touch would move the stream's end. Raises: StreamNotFound, StreamGone."""
        stream = self._find(key)
        return moved_end(stream.expiry.ttl_seconds, stream.ends_at, self._now()) is not None

    # Carrying it over

    def snapshot(self) -> Iterator[bytes]:
        """All there is, as records. Nothing may be applied meanwhile."""
        yield encode_record("store", self._time, self._last_id, self._signing_key)
        for owner, beat in self._beats.items():
            yield encode_record("owner", owner, beat)
        for tenant, seconds in self._retentions.items():
            yield encode_record("retention", tenant, seconds)
        for generation_id, audience in self._audiences.items():
            for process, counts_until in audience.items():
                yield encode_record("reader", generation_id, process, counts_until)
        for change in self._changes:
            yield encode_record("change", change)
        for stream in self._streams.values():
            values = [
                getattr(stream, field.name) for field in fields(stream) if field.name not in ("data", "producers")
            ]
            yield encode_record("stream", *values)
            for producer in stream.producers.values():
                yield encode_record("producer", stream.id, producer)
            for start in range(0, len(stream.data), _PIECE_BYTES):
                yield encode_record("data", stream.id, stream.data[start : start + _PIECE_BYTES])
        for generation in self._generations.values():
            yield encode_record("generation", generation)
        yield from self.keys.snapshot()
        yield from self.sessions.snapshot()
        yield from self.subscriptions.snapshot()

    def restore(self, line: bytes) -> None:
        """Take one record of a snapshot. Raises: StoreError."""
        kind, *values = decode_record(line)
        match kind, values:
            case "store", [datetime() as time, int(last_id), bytes(key)]:
                self._time, self._last_id, self._signing_key = time, last_id, key
            case "owner", [Owner() as owner, int(beat)]:
                self._beats[owner] = beat
            case "retention", [str(tenant), float() | int() as seconds]:
                self._retentions[tenant] = seconds
            case "reader", [int(generation_id), str(process), datetime() as counts_until]:
                self._audiences.setdefault(generation_id, {})[process] = counts_until
            case "change", [StreamChange() as change]:
                self._changes.append(change)
            case "api_key" | "signing_key", [ApiKey() | SigningKey() as key]:
                self.keys.restore(key)
            case "session", [SessionRecord() as session, *parts]:
                self.sessions.restore(session, parts)
            case "stream", [*parts]:
                names = [field.name for field in fields(_Stream) if field.name not in ("data", "producers")]
                self._add(_Stream(**dict(zip(names, parts, strict=False))))  # type: ignore[arg-type]  # as written
            case "producer", [int(stream_id), producer]:
                stream = self._streams[stream_id]
                known = cast("Producer", producer)
                stream.producers[known.id] = known
            case "data", [int(stream_id), bytes(data)]:
                self._streams[stream_id].data += data
            case "generation", [Generation() as generation]:
                self._put(generation)
            case _:
                self.subscriptions.restore(kind, values)


class ReplicaKeys(MemoryKeys):
    """The keys of a replica; the store's own signing key comes with a command, as all others do."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(b"", now)
        self._signing_keys = []

    def begin_with(self, secret: bytes) -> None:
        self._signing_keys = [SigningKey(1, secret, self._now())]

    async def add(self, key: ApiKey, if_first: bool) -> bool:
        return await self.create(key, if_first=if_first)

    async def rotate(self, secret: bytes, is_only: bool) -> SigningKey:
        return await self.rotate_signing_key(secret, is_only=is_only)

    def snapshot(self) -> Iterator[bytes]:
        for key in self._keys.values():
            yield encode_record("api_key", key)
        for signing_key in self._signing_keys:
            yield encode_record("signing_key", signing_key)

    def restore(self, key: ApiKey | SigningKey) -> None:
        if isinstance(key, ApiKey):
            self._keys[key.id] = key
        else:
            self._signing_keys.append(key)


class ReplicaSessions(MemorySessions):
    """The sessions of a replica. A change of agents is made outside and comes as what it was made of and what it gave."""

    @property
    def is_any_due(self) -> bool:
        return self._longest_due() is not None

    async def add(self, key: SessionKey, name: str | None, agents: bytes) -> tuple[SessionRecord, bool]:
        return await self.create(key, name=name, agents=agents)

    async def replace_agents(self, key: SessionKey, seen: bytes, agents: bytes) -> bool:
        """Put new agents in the place of those that were seen, if they stand there; whether they did."""
        if await self.agents(key) != seen:
            return False
        await self.change_agents(key, lambda _: agents)
        return True

    def snapshot(self) -> Iterator[bytes]:
        for row in self._rows.values():
            yield encode_record("session", row.session, row.agents, row.due, row.due_at, row.owner)

    def restore(self, session: SessionRecord, parts: Sequence[object]) -> None:
        self._rows[session.key] = _SessionRow(session, *parts)  # type: ignore[arg-type]  # as written


class ReplicaSubscriptions(MemorySubscriptions):
    """The subscriptions of a replica. A decision is made outside and comes as what it was made of and what it wants."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(now)
        self._next_round_at = _LONG_AGO

    def locked(self, key: SubscriptionKey, paths: Collection[str]) -> Locked:
        """What a decision sees. Raises: SubscriptionNotFound."""
        return self._locked(key, paths)

    def longest_due(self) -> SubscriptionKey | None:
        return self._longest_due()

    @property
    def is_round_due(self) -> bool:
        return self._now() >= self._next_round_at

    async def replace(
        self,
        subscription: Subscription,
        seen: Sequence[Link],
        paths: Collection[str],
        wake: Wake,
        links: Sequence[Link],
    ) -> bool:
        """Put a decision into effect if it would still be made of the same; whether it was."""
        now = self._locked(subscription.key, paths)
        if now.subscription != subscription or tuple(now.links.values()) != tuple(seen):
            return False
        row = self._row(subscription.key)
        row.subscription = replace(subscription, wake=wake)
        row.links |= {link.path: link for link in links}
        return True

    def snapshot(self) -> Iterator[bytes]:
        yield encode_record("subscriptions", self._next_round_at)
        for key, generation in self._generations.items():
            yield encode_record("tombstone", key, generation)
        for webhook_key in self._keys:
            yield encode_record("webhook_key", webhook_key)
        for row in self._rows.values():
            yield encode_record("subscription", row.subscription, row.config_hash, *row.links.values())

    def restore(self, kind: object, values: Sequence[object]) -> None:
        """Take one record of a snapshot. Raises: StoreError."""
        match kind, values:
            case "subscriptions", [datetime() as next_round_at]:
                self._next_round_at = next_round_at
            case "tombstone", [SubscriptionKey() as key, int(generation)]:
                self._generations[key] = generation
            case "webhook_key", [WebhookKey() as webhook_key]:
                self._keys.append(webhook_key)
            case "subscription", [Subscription() as subscription, bytes(config_hash), *links]:
                of_path = {link.path: link for link in links if isinstance(link, Link)}
                self._rows[subscription.key] = _Row(subscription, config_hash, of_path)
            case _:
                raise StoreError(f"no record of this version: {kind!r}")


def changed_streams(command: Command, result: object) -> list[int]:
    """The streams that a command has changed, as far as readers wait for such news."""
    match command.name, command.arguments:
        case "commit", (_, appends, endings):
            ids = [append.stream_id for append in cast("Sequence[Append]", appends)]
            for ending in cast("Sequence[Ending]", endings):
                ids += (ending.generation.data_stream, ending.generation.control_stream)
            return ids
        case "append", _:
            results = cast("Sequence[object]", result)
            return [one.stream_id for one in results if isinstance(one, Appended) and not one.is_duplicate]
        case (("start" | "refuse"), (Generation() as generation, *_)):
            return [generation.data_stream, generation.control_stream]
    return []


def finished(call: Coroutine[None, None, T]) -> T:
    """The result of a call that waits for nothing: the replica's methods are coroutines by their contract alone."""
    try:
        call.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("a replica waits for nothing")
