"""MemoryStore: the whole contract in one process's memory. Nothing survives it; read it to learn the interface."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from streamkeep.storage._errors import (
    FingerprintMismatch,
    GenerationEnded,
    ItemRefused,
    OwnerFenced,
    StoreError,
    StreamExists,
    StreamGone,
    StreamNotFound,
)
from streamkeep.storage._store import Listener
from streamkeep.storage._types import (
    GENERATIONS,
    REGISTRY,
    REGISTRY_CONFIG,
    Append,
    Appended,
    Claim,
    Created,
    Ending,
    Erased,
    Erasure,
    Expiry,
    ForkPoint,
    Generation,
    GenerationKey,
    GenerationPage,
    Gone,
    GoneReason,
    Lease,
    Owner,
    Producer,
    Refusal,
    Retention,
    Session,
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
    generation_of,
)
from streamkeep.storage.memory_keys import MemoryKeys
from streamkeep.storage.memory_sessions import MemorySessions
from streamkeep.storage.memory_subscriptions import MemorySubscriptions
from streamkeep.storage.rules import content_types, forks, limits
from streamkeep.storage.rules.appends import StreamState, decide_batch
from streamkeep.storage.rules.expiry import first_end, is_over, moved_end
from streamkeep.storage.rules.generations import State, orphaned
from streamkeep.storage.rules.json_messages import encode_message
from streamkeep.storage.rules.schemas import schema_id
from streamkeep.storage.rules.texts import is_storable


@dataclass(slots=True)
class _Stream:
    """A stream of either kind. A fork holds a copy of what it shares, so nothing needs to be kept for it; `source` only
    tells whether a deleted stream may be forgotten. `asked` is what its creation asked for."""

    id: int
    key: StreamKey
    created_at: datetime
    content_type: str = content_types.DEFAULT
    is_message_stream: bool = False
    data: bytearray = field(default_factory=bytearray)
    is_closed: bool = False
    is_generation: bool = False
    is_deleted: bool = False
    asked: StreamConfig = field(default_factory=StreamConfig)
    expiry: Expiry = field(default_factory=Expiry)
    ends_at: datetime | None = None
    source: int | None = None
    fork_position: int | None = None
    writer_sequence: str | None = None
    closed_by: Producer | None = None
    producers: dict[str, Producer] = field(default_factory=dict)
    schema: str | None = None

    @property
    def tail(self) -> Tail:
        return Tail(len(self.data), self.is_closed)

    @property
    def schema_id(self) -> bytes | None:
        return None if self.schema is None else schema_id(self.schema)

    @property
    def standing(self) -> forks.Standing:
        return forks.Standing(
            self.asked, self.content_type, self.expiry, self.is_closed, self.fork_position, self.schema_id
        )


class MemoryStore:
    """Keeps every stream as one bytearray and every generation as one value; see `Store` for what each method means.

    `remote/` replays it: what a method does follows from its arguments, what is stored and `_now`; what only asks changes
    nothing; and nothing awaits anything.
    """

    def __init__(self, retention: Retention = Retention()) -> None:  # noqa: B008
        self._retention = retention
        self._streams: dict[int, _Stream] = {}
        self._paths: dict[StreamKey, _Stream] = {}
        self._generations: dict[GenerationKey, Generation] = {}
        self._retentions: dict[str, float] = {}
        self._audiences: dict[int, dict[str, datetime]] = {}
        self._beats: dict[Owner, int] = {}
        self._listeners: list[Listener] = []
        self.subscriptions = MemorySubscriptions(self._now)
        self.sessions = MemorySessions(self._now, self._next_id, self._check)
        self._signing_key = secrets.token_bytes(32)
        self.keys = MemoryKeys(self._signing_key, self._now)
        self._changes: list[StreamChange] = []
        self._last_id = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(streams={len(self._streams)}, generations={len(self._generations)})"

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> None: ...

    def status(self) -> StoreStatus:
        return StoreStatus()

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def signing_key(self) -> bytes:
        return self._signing_key

    # Owners

    async def register_owner(self) -> Owner:
        owner = Owner(self._next_id(), 1)
        self._beats[owner] = 0
        return owner

    async def renew(self, owner: Owner) -> None:
        self._check(owner)
        self._beats[owner] += 1

    async def release(self, owner: Owner) -> None:
        if owner in self._beats:
            self._finish(owner)

    async def leases(self) -> list[Lease]:
        return [Lease(owner, beat) for owner, beat in self._beats.items()]

    async def recover(self, lease: Lease) -> int:
        return self._finish(lease.owner) if self._beats.get(lease.owner) == lease.beat else 0

    # Generations

    async def claim(
        self,
        owner: Owner,
        key: GenerationKey,
        fingerprint: bytes | None,
        terms: Terms = Terms(),  # noqa: B008
    ) -> Claim:
        self._check(owner)
        found = self._generations.get(key)
        if found is None or _is_free(found):
            self._check_limits(key.tenant, terms)
        if found is None:
            return Claim(self._create(owner, key, fingerprint, terms), is_new=True)
        if _is_free(found):
            self._audiences.pop(found.id, None)
            anew = replace(
                found,
                epoch=found.epoch + 1,
                state=State.CREATING,
                owner=owner,
                fingerprint=fingerprint,
                created_at=self._now(),
                ended_at=None,
                refusal=None,
                is_cancel_requested=False,
                holder=terms.holder,
                cancel_after_seconds=terms.cancel_after_seconds,
                retention_seconds=self._retention_of(key.tenant, terms),
                upstream=terms.upstream,
            )
            return Claim(self._put(anew), is_new=True)
        if fingerprint is not None and found.fingerprint is not None and fingerprint != found.fingerprint:
            raise FingerprintMismatch(f"{key} belongs to another request")
        return Claim(found, is_new=False)

    async def start(self, generation: Generation, head: UpstreamHead, fingerprint: bytes | None) -> bool:
        row = self._creating(generation)
        self._put(replace(row, state=State.RUNNING, head=head, fingerprint=fingerprint))
        return row.is_cancel_requested

    async def refuse(self, generation: Generation, refusal: Refusal, fingerprint: bytes | None) -> None:
        row = self._creating(generation)
        self._put(replace(row, state=State.REFUSED, refusal=refusal, fingerprint=fingerprint, ended_at=self._now()))

    async def generation(self, key: GenerationKey) -> Generation | None:
        return self._generations.get(key)

    async def session_generations(self, tenant: str, session_id: str, *, ended_after: datetime) -> list[Generation]:
        rows = [
            g
            for g in self._generations.values()
            if (g.key.tenant, g.key.session_id) == (tenant, session_id)
            and (g.state.is_live or (g.state.is_terminal and g.ended_at is not None and g.ended_at > ended_after))
        ]
        return sorted(rows, key=lambda g: (g.created_at, g.id), reverse=True)

    async def list_generations(self, wanted: Wanted, *, before: int | None = None, limit: int = 100) -> GenerationPage:
        rows = [row for row in self._wanted(wanted) if before is None or row.id < before][:limit]
        heads = [row if row.refusal is None else replace(row, head=row.refusal.head, refusal=None) for row in rows]
        return GenerationPage(heads, rows[-1].id if len(rows) == limit else None)

    async def list_sessions(self, wanted: Wanted, *, before: int | None = None, limit: int = 100) -> SessionPage:
        newest: dict[tuple[str, str], int] = {}
        for row in self._wanted(wanted):
            newest.setdefault((row.key.tenant, row.key.session_id), row.id)
        page = [(names, id) for names, id in newest.items() if before is None or id < before][:limit]
        return SessionPage([self._session(*names) for names, _ in page], page[-1][1] if len(page) == limit else None)

    def _wanted(self, wanted: Wanted) -> list[Generation]:
        """By falling id."""
        rows = [row for row in self._generations.values() if not _is_deleted(row) and _is_wanted(row, wanted)]
        return sorted(rows, key=lambda row: row.id, reverse=True)

    def _session(self, tenant: str, session_id: str) -> Session:
        rows = self._wanted(Wanted(tenant, session_id))
        began = [row.created_at for row in rows]
        return Session(tenant, session_id, len(rows), sum(row.state.is_live for row in rows), min(began), max(began))

    async def request_cancel(self, key: GenerationKey) -> Generation | None:
        row = self._generations.get(key)
        if row is None or not row.state.is_live:
            return row
        row = self._put(replace(row, is_cancel_requested=True))
        for listener in self._listeners:
            listener.cancel_requested([row.id])
        return row

    async def cancel_requests(self, owner: Owner) -> list[int]:
        return [
            g.id for g in self._generations.values() if g.owner == owner and g.state.is_live and g.is_cancel_requested
        ]

    async def set_retention(self, tenant: str, seconds: float | None) -> None:
        if seconds is None:
            self._retentions.pop(tenant, None)
        else:
            self._retentions[tenant] = seconds

    async def retentions(self) -> dict[str, float]:
        return dict(self._retentions)

    # Audiences

    async def note_readers(self, process: str, counted_seconds: Mapping[int, float]) -> None:
        for generation_id, seconds in counted_seconds.items():
            self._audiences.setdefault(generation_id, {})[process] = self._now() + timedelta(seconds=seconds)

    async def readerless_seconds(self, generation_ids: Collection[int]) -> dict[int, float]:
        now = self._now()
        return {
            generation_id: min((now - counts_until).total_seconds() for counts_until in audience.values())
            for generation_id in generation_ids
            if (audience := self._audiences.get(generation_id)) is not None
        }

    # Bytes

    async def commit(self, owner: Owner, appends: Sequence[Append], endings: Sequence[Ending]) -> frozenset[int]:
        self._check(owner)
        tails: dict[int, int] = {}
        for append in appends:
            if append.stream_id in tails:
                raise ItemRefused(f"two appends to stream {append.stream_id} in one commit")
            self._expect(append.stream_id, append.position, tails)
            tails[append.stream_id] = append.position + len(append.data)
        effective = [ending for ending in endings if self._is_live(ending.generation, owner)]
        for ending in effective:
            self._expect(ending.generation.data_stream, ending.data_position, tails)
        # Nothing is refused from here on.
        for append in appends:
            self._streams[append.stream_id].data += append.data
        for ending in effective:
            self._end(ending)
        return frozenset(ending.generation.id for ending in effective)

    async def settle(self, owner: Owner, stream_ids: Collection[int]) -> dict[int, Tail]:
        self._check(owner)
        found = (self._streams.get(stream_id) for stream_id in stream_ids)
        return {stream.id: stream.tail for stream in found if stream is not None}

    async def read(self, stream_id: int, position: int, max_bytes: int) -> Slice:
        stream = self._streams.get(stream_id)
        if stream is None or not self._is_readable(stream):
            raise StreamNotFound(f"no stream {stream_id}")
        return Slice(position, bytes(stream.data[position : position + max_bytes]), stream.tail)

    async def read_each(self, positions: Mapping[int, int], max_bytes: int) -> dict[int, Slice]:
        found: dict[int, Slice] = {}
        for stream_id, position in positions.items():
            with suppress(StreamNotFound):
                found[stream_id] = await self.read(stream_id, position, max_bytes)
        return found

    async def tails(self, stream_ids: Collection[int]) -> dict[int, Tail]:
        found = (self._streams.get(stream_id) for stream_id in stream_ids)
        return {stream.id: stream.tail for stream in found if stream is not None and self._is_readable(stream)}

    async def erase(self, what: Erasure, limit: int = 1000) -> Erased:
        marked = [row for row in self._generations.values() if _is_in(row.key, what) and not _is_deleted(row)][:limit]
        for row in marked:
            self._put(
                replace(
                    row,
                    gone=Gone(GoneReason.DELETED, self._now()),
                    is_cancel_requested=row.is_cancel_requested or row.state.is_live,
                )
            )
            for stream_id in (row.data_stream, row.control_stream):
                if stream_id in self._streams:
                    self._streams[stream_id].is_deleted = True
            self._announce([row.data_stream, row.control_stream])
        for listener in self._listeners:
            listener.cancel_requested([row.id for row in marked if row.state.is_live])
        erased = [stream for row in marked if not row.state.is_live for stream in self._erase(row)]
        if what.request_id is None:
            self.sessions.erase(what.tenant, what.session_id)
        if what.session_id is None:
            mine = [stream for stream in self._streams.values() if stream.key.tenant == what.tenant]
            erased += [stream for stream in mine if not stream.is_generation and stream not in erased][:limit]
            self._changes = [change for change in self._changes if change.key.tenant != what.tenant]
            self.subscriptions.erase(what.tenant)
        for stream in erased:
            self._forget(stream)
        self._announce([stream.id for stream in erased])
        self._finish_deleted(limit)
        return Erased(len(marked), self._remaining(what))

    # Streams of the open protocol

    async def create_stream(self, key: StreamKey, config: StreamConfig, data: bytes = b"") -> Created:
        if key.path.startswith(GENERATIONS) or not is_storable(key.path):
            raise ItemRefused(f"no stream can be made at {key.path!r}")
        try:
            found = self._find(key)
        except StreamNotFound:
            if key in self._paths:
                self._remove(self._paths[key])
            made = self._fork(key, config, config.fork) if config.fork else self._new(key, config)
            made.data += data
            made.is_closed = config.is_closed
            self._note(made, is_deletion=False)
            return Created(self._info(made), is_new=True)
        except StreamGone:
            raise StreamExists(f"{key.path} is deleted, and forks need it") from None
        if not forks.is_same_configuration(found.standing, config):
            raise StreamExists(f"{key.path} has another configuration")
        return Created(self._info(found), is_new=False)

    async def stream(self, key: StreamKey, *, is_touched: bool = True) -> StreamInfo:
        stream = self._find(key)
        if is_touched:
            self._touch(stream)
        return self._info(stream)

    async def schema(self, stream_id: int) -> str | None:
        stream = self._streams.get(stream_id)
        return None if stream is None else stream.schema

    async def append(self, appends: Sequence[StreamAppend]) -> list[Appended | StoreError]:
        states: dict[StreamKey, StreamState] = {}
        producers: dict[tuple[int, str], Producer] = {}
        for append in appends:
            stream = self._paths.get(append.key)
            is_gone = stream is not None and not self._is_readable(stream)
            if stream is not None and (not is_gone or self._has_forks(stream)):
                states[append.key] = StreamState(
                    stream.id,
                    self._content_type(stream),
                    stream.tail,
                    stream.writer_sequence,
                    stream.closed_by,
                    is_generation=stream.is_generation,
                    is_gone=is_gone,
                    schema_id=stream.schema_id,
                )
                producers |= {(stream.id, name): known for name, known in stream.producers.items()}
        results, changes = decide_batch(appends, states, producers)
        for change in changes:
            stream = self._streams[change.state.id]
            stream.data += change.data
            stream.is_closed = change.state.tail.is_closed
            stream.writer_sequence = change.state.writer_sequence
            stream.closed_by = change.state.closed_by
            stream.producers |= change.producers
            self._touch(stream)
        return results

    async def delete_stream(self, key: StreamKey) -> None:
        stream = self._find(key)
        if stream.is_generation:
            raise ItemRefused(f"{key.path} goes with its generation")
        self._remove(stream)

    async def write_registries(self, encode: Callable[[StreamChange], bytes], limit: int = 500) -> list[int]:
        told, self._changes = self._changes[:limit], self._changes[limit:]
        registries: set[int] = set()
        for change in told:
            key = StreamKey(change.key.tenant, REGISTRY)
            registry = self._paths.get(key) or self._new(key, REGISTRY_CONFIG)
            registry.data += encode(change)
            registries.add(registry.id)
        return list(registries)

    async def list_streams(
        self, tenant: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[StreamInfo]:
        found = [
            stream
            for key, stream in self._paths.items()
            if key.tenant == tenant and key.path.startswith(prefix) and key.path > after
            if self._is_readable(stream) and not stream.is_generation
        ]
        return [self._info(stream) for stream in sorted(found, key=lambda stream: stream.key.path)[:limit]]

    # Upkeep

    async def sweep(self, limit: int = 100) -> int:
        due, expired, over = self._due(limit)
        for row in due:
            for stream_id in (row.data_stream, row.control_stream):
                self._forget(self._streams[stream_id])
            # A refused generation guards nothing: its key may be claimed anew, so its row goes with its error body.
            if row.state is State.REFUSED:
                self._delete(row)
            else:
                self._put(replace(row, gone=Gone(GoneReason.RETENTION, self._now())))
        for row in expired:
            self._delete(row)
        unwatched = self._unwatched()[:limit]
        for generation_id in unwatched:
            del self._audiences[generation_id]
        for stream in over:
            self._remove(stream)
        return len(due) + len(expired) + len(unwatched) + len(over) + self._finish_deleted(limit)

    async def rekey(self, tenant: str) -> int:
        return 0

    async def merge(self, limit: int = 20) -> int:
        return 0

    def _now(self) -> datetime:
        return datetime.now(UTC)

    def _due(self, limit: int) -> tuple[list[Generation], list[Generation], list[_Stream]]:
        """What a sweep takes: generations whose data, and those whose rows are past their retention; expired streams."""
        now = self._now()
        row_before = now - timedelta(seconds=self._retention.row_seconds)
        due = [g for g in self._generations.values() if g.gone is None and self._is_past(g, now)]
        gone = [g for g in self._generations.values() if g.gone is not None and g.data_stream not in self._streams]
        expired = [g for g in gone if g.gone is not None and g.gone.at <= row_before]
        over = [s for s in self._streams.values() if not s.is_deleted and is_over(s.ends_at, now)]
        return due[:limit], expired[:limit], over[:limit]

    def _finish_deleted(self, limit: int) -> int:
        """Erase generations that were deleted while they ran and have ended since."""
        left = self._deleted()[:limit]
        for row in left:
            for stream in self._erase(row):
                self._forget(stream)
        return len(left)

    def _deleted(self) -> list[Generation]:
        ended = [row for row in self._generations.values() if _is_deleted(row) and not row.state.is_live]
        return [row for row in ended if row.data_stream in self._streams]

    def _erase(self, row: Generation) -> list[_Stream]:
        """Take everything out of a generation that has ended; the streams that have to go with it."""
        if row.state is State.REFUSED:
            self._delete(row)
        else:
            row = self._generations[row.key]
            self._put(replace(row, head=None, refusal=None, message=None, upstream=None, usage=None))
        family = self._family([row.data_stream, row.control_stream])
        for stream in family:
            if not stream.is_generation:
                self._mark_deleted(stream)
        return family

    def _family(self, stream_ids: Collection[int]) -> list[_Stream]:
        """Those of these streams that exist, and all that was forked from them."""
        found: dict[int, _Stream] = {}
        wanted = set(stream_ids)
        while wanted:
            found |= {stream_id: self._streams[stream_id] for stream_id in wanted & self._streams.keys()}
            wanted = {stream.id for stream in self._streams.values() if stream.source in wanted} - found.keys()
        return list(found.values())

    def _remaining(self, what: Erasure) -> int:
        if what.session_id is None:
            return sum(stream.key.tenant == what.tenant for stream in self._streams.values())
        rows = [row for row in self._generations.values() if _is_in(row.key, what)]
        return len(self._family([stream for row in rows for stream in (row.data_stream, row.control_stream)]))

    def _unwatched(self) -> list[int]:
        """Generations whose readers need not be known any more."""
        watched = {g.id for g in self._generations.values() if g.state.is_live}
        return [generation_id for generation_id in self._audiences if generation_id not in watched]

    def _is_past(self, row: Generation, now: datetime) -> bool:
        seconds = self._retention.data_seconds if row.retention_seconds is None else row.retention_seconds
        return row.ended_at is not None and row.ended_at <= now - timedelta(seconds=seconds)

    def _retention_of(self, tenant: str, terms: Terms) -> float | None:
        return self._retentions.get(tenant) if terms.retention_seconds is None else terms.retention_seconds

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _check(self, owner: Owner) -> None:
        if owner not in self._beats:
            raise OwnerFenced(f"{owner} holds no lease")

    def _check_limits(self, tenant: str, terms: Terms) -> None:
        if not terms.is_limited:
            return
        held = [g for g in self._generations.values() if (g.key.tenant, g.holder) == (tenant, terms.holder)]
        claimed = sorted((g.created_at for g in held), reverse=True)[: terms.max_per_minute]
        is_full = len(claimed) == terms.max_per_minute
        refused = limits.exceeded(
            terms,
            running=sum(g.state.is_live for g in held),
            age_seconds=(self._now() - claimed[-1]).total_seconds() if is_full else None,
        )
        if refused is not None:
            raise refused

    def _create(self, owner: Owner, key: GenerationKey, fingerprint: bytes | None, terms: Terms) -> Generation:
        data = self._add(
            _Stream(self._next_id(), StreamKey(key.tenant, key.data_path), self._now(), is_generation=True)
        )
        control = self._add(
            _Stream(
                self._next_id(),
                StreamKey(key.tenant, key.control_path),
                self._now(),
                content_types.JSON,
                is_message_stream=True,
                is_generation=True,
            )
        )
        row = Generation(
            self._next_id(),
            key,
            1,
            State.CREATING,
            owner,
            data.id,
            control.id,
            fingerprint,
            self._now(),
            holder=terms.holder,
            cancel_after_seconds=terms.cancel_after_seconds,
            retention_seconds=self._retention_of(key.tenant, terms),
            upstream=terms.upstream,
        )
        return self._put(row)

    def _add(self, stream: _Stream) -> _Stream:
        self._streams[stream.id] = self._paths[stream.key] = stream
        return stream

    def _is_readable(self, stream: _Stream) -> bool:
        return not stream.is_deleted and not is_over(stream.ends_at, self._now())

    def _find(self, key: StreamKey) -> _Stream:
        """The readable stream under a path. One that has expired is gone while forks need it, and absent after that."""
        stream = self._paths.get(key)
        if stream is not None and self._is_readable(stream):
            return stream
        if stream is not None and self._has_forks(stream):
            raise StreamGone(f"{key.path} is deleted")
        raise StreamNotFound(f"no stream {key.path!r}")

    def _new(self, key: StreamKey, config: StreamConfig) -> _Stream:
        content_type = config.content_type or content_types.DEFAULT
        own_expiry = config.expiry or Expiry()
        return self._add(
            _Stream(
                self._next_id(),
                key,
                self._now(),
                content_type,
                content_types.is_json(content_type),
                asked=config,
                expiry=own_expiry,
                ends_at=first_end(own_expiry, self._now()),
                schema=config.schema,
            )
        )

    def _fork(self, key: StreamKey, config: StreamConfig, point: ForkPoint) -> _Stream:
        if point.source.tenant != key.tenant:
            raise StreamNotFound(f"no stream {point.source.path!r}")
        try:
            source = self._find(point.source)
        except StreamGone:
            raise StreamExists(f"the source {point.source.path} is deleted") from None
        content_type = forks.inherited_content_type(config, self._content_type(source))
        search = forks.resolve(point, tail=len(source.data), is_message_stream=source.is_message_stream)
        found: bytes | None = None
        while True:
            try:
                start, size = search.send(found) if found is not None else next(search)
            except StopIteration as end:
                position: int = end.value
                break
            found = bytes(source.data[start : start + size])
        schema = forks.inherited_schema(config, source.schema)
        fork = self._new(key, replace(config, expiry=config.expiry or source.expiry, schema=schema))
        fork.asked, fork.content_type, fork.is_message_stream = config, content_type, source.is_message_stream
        fork.source, fork.fork_position = source.id, position
        fork.data += source.data[:position]
        return fork

    def _content_type(self, stream: _Stream) -> str:
        generation_key = generation_of(stream.key)
        if generation_key is None or stream.is_message_stream:
            return stream.content_type
        head = self._generations[generation_key].head
        return (head and head.content_type) or content_types.DEFAULT

    def _info(self, stream: _Stream) -> StreamInfo:
        return StreamInfo(
            stream.id,
            stream.key,
            self._content_type(stream),
            stream.is_message_stream,
            stream.tail,
            stream.expiry,
            stream.created_at,
            stream.schema_id,
        )

    def _touch(self, stream: _Stream) -> None:
        stream.ends_at = moved_end(stream.expiry.ttl_seconds, stream.ends_at, self._now()) or stream.ends_at

    def _remove(self, stream: _Stream) -> None:
        """Delete a stream, and what was deleted before and only waited for it."""
        self._mark_deleted(stream)
        gone: _Stream | None = stream
        while gone is not None and not self._is_readable(gone) and not self._has_forks(gone):
            self._mark_deleted(gone)
            self._forget(gone)
            gone = self._streams.get(gone.source) if gone.source is not None else None

    def _mark_deleted(self, stream: _Stream) -> None:
        if not stream.is_deleted:
            stream.is_deleted = True
            self._note(stream, is_deletion=True)

    def _note(self, stream: _Stream, *, is_deletion: bool) -> None:
        if stream.key.path != REGISTRY:
            self._changes.append(StreamChange(stream.key, stream.content_type, stream.created_at, is_deletion))

    def _has_forks(self, stream: _Stream) -> bool:
        return any(other.source == stream.id for other in self._streams.values())

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.id]
        del self._paths[stream.key]

    def _put(self, row: Generation) -> Generation:
        self._generations[row.key] = row
        return row

    def _delete(self, row: Generation) -> None:
        del self._generations[row.key]

    def _creating(self, generation: Generation) -> Generation:
        self._check(generation.owner)
        row = self._generations.get(generation.key)
        if (
            row is None
            or (row.id, row.epoch, row.owner) != (generation.id, generation.epoch, generation.owner)
            or row.state is not State.CREATING
        ):
            raise GenerationEnded(f"{generation.key} is not being created in epoch {generation.epoch}")
        return row

    def _expect(self, stream_id: int, position: int, tails: dict[int, int]) -> None:
        """`tails` are where streams will stand after what this commit has appended so far."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_closed or position != tails.get(stream_id, len(stream.data)):
            raise ItemRefused(f"stream {stream_id} is not open at {position}")

    def _is_live(self, generation: Generation, owner: Owner) -> bool:
        row = self._generations.get(generation.key)
        return (
            row is not None
            and (row.id, row.epoch, row.owner) == (generation.id, generation.epoch, owner)
            and row.state.is_live
        )

    def _end(self, ending: Ending) -> None:
        row = self._generations[ending.generation.key]
        terminal = ending.terminal
        control = self._streams[row.control_stream]
        control.data += encode_message(terminal.to_json())
        control.is_closed = self._streams[row.data_stream].is_closed = True
        code = terminal.code
        self._put(
            replace(
                row,
                state=code.state,
                code=code.value,
                message=terminal.detail,
                usage=terminal.usage,
                ended_at=self._now(),
            )
        )

    def _finish(self, owner: Owner) -> int:
        """End an owner and what it still records."""
        orphans = [g for g in self._generations.values() if g.owner == owner and g.state.is_live]
        for orphan in orphans:
            size = len(self._streams[orphan.data_stream].data)
            age_seconds = (self._now() - orphan.created_at).total_seconds()
            self._end(Ending(orphan, orphaned(size, age_seconds, orphan.is_cancel_requested), size))
        self.sessions.release_all(owner)
        del self._beats[owner]
        self._announce([s for g in orphans for s in (g.data_stream, g.control_stream)])
        return len(orphans)

    def _announce(self, stream_ids: Collection[int]) -> None:
        for listener in self._listeners:
            listener.streams_changed(stream_ids)


def _is_free(row: Generation) -> bool:
    """Whether the key may be claimed anew."""
    return row.state is State.REFUSED and row.gone is None


def _is_deleted(row: Generation) -> bool:
    return row.gone is not None and row.gone.reason is GoneReason.DELETED


def _is_wanted(row: Generation, wanted: Wanted) -> bool:
    key = row.key
    return (
        wanted.tenant in (None, key.tenant)
        and wanted.session_id in (None, key.session_id)
        and wanted.request_id in (None, key.request_id)
        and (wanted.states is None or row.state in wanted.states)
        and wanted.text.lower() in f"{key.session_id}/{key.request_id} {row.upstream or ''}".lower()
    )


def _is_in(key: GenerationKey, what: Erasure) -> bool:
    return (
        key.tenant == what.tenant
        and what.session_id in (None, key.session_id)
        and what.request_id in (None, key.request_id)
    )
