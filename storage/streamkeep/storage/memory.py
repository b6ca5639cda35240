"""MemoryStore: the whole contract in one process's memory. Nothing survives it; read it to learn the interface."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from streamkeep.storage._errors import (
    FingerprintMismatch,
    GenerationEnded,
    ItemRefused,
    OwnerFenced,
    StreamNotFound,
)
from streamkeep.storage._store import Listener
from streamkeep.storage._types import (
    Append,
    Claim,
    Ending,
    Generation,
    GenerationKey,
    Lease,
    Owner,
    Refusal,
    Retention,
    Slice,
    Tail,
    UpstreamHead,
)
from streamkeep.storage.rules.generations import State, orphaned
from streamkeep.storage.rules.json_messages import encode_message


@dataclass(slots=True)
class _Stream:
    data: bytearray = field(default_factory=bytearray)
    is_closed: bool = False

    @property
    def tail(self) -> Tail:
        return Tail(len(self.data), self.is_closed)


class MemoryStore:
    """Keeps every stream as one bytearray and every generation as one value; see `Store` for what each method means."""

    def __init__(self, retention: Retention = Retention()) -> None:  # noqa: B008
        self._retention = retention
        self._streams: dict[int, _Stream] = {}
        self._generations: dict[GenerationKey, Generation] = {}
        self._beats: dict[Owner, int] = {}
        self._listeners: list[Listener] = []
        self._signing_key = secrets.token_bytes(32)
        self._last_id = 0

    def __repr__(self) -> str:
        return f"MemoryStore(streams={len(self._streams)}, generations={len(self._generations)})"

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def ping(self) -> None: ...

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

    async def claim(self, owner: Owner, key: GenerationKey, fingerprint: bytes | None) -> Claim:
        self._check(owner)
        found = self._generations.get(key)
        if found is None:
            return Claim(self._create(owner, key, fingerprint), is_new=True)
        if found.state is State.REFUSED:
            anew = replace(
                found,
                epoch=found.epoch + 1,
                state=State.CREATING,
                owner=owner,
                fingerprint=fingerprint,
                created_at=_now(),
                ended_at=None,
                refusal=None,
                is_cancel_requested=False,
            )
            return Claim(self._put(anew), is_new=True)
        if fingerprint is not None and found.fingerprint is not None and fingerprint != found.fingerprint:
            raise FingerprintMismatch(f"{key} belongs to another request")
        return Claim(found, is_new=False)

    async def start(self, generation: Generation, head: UpstreamHead, fingerprint: bytes | None) -> Generation:
        row = self._creating(generation)
        return self._put(replace(row, state=State.RUNNING, head=head, fingerprint=fingerprint))

    async def refuse(self, generation: Generation, refusal: Refusal, fingerprint: bytes | None) -> None:
        row = self._creating(generation)
        self._put(replace(row, state=State.REFUSED, refusal=refusal, fingerprint=fingerprint, ended_at=_now()))

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
        return await self.tails(stream_ids)

    async def read(self, stream_id: int, position: int, max_bytes: int) -> Slice:
        stream = self._stream(stream_id)
        return Slice(position, bytes(stream.data[position : position + max_bytes]), stream.tail)

    async def tails(self, stream_ids: Collection[int]) -> dict[int, Tail]:
        return {i: self._streams[i].tail for i in stream_ids if i in self._streams}

    # Upkeep

    async def sweep(self, limit: int = 100) -> int:
        now = _now()
        data_before = now - timedelta(seconds=self._retention.data_seconds)
        row_before = now - timedelta(seconds=self._retention.row_seconds)
        rows = [g for g in self._generations.values() if g.ended_at is not None]
        due = [g for g in rows if not g.is_swept and g.ended_at is not None and g.ended_at <= data_before][:limit]
        for row in due:
            self._streams.pop(row.data_stream, None)
            self._streams.pop(row.control_stream, None)
            # A refused generation guards nothing: its key may be claimed anew, so its row goes with its error body.
            if row.state is State.REFUSED:
                self._delete(row)
            else:
                self._put(replace(row, is_swept=True))
        expired = [g for g in rows if g.is_swept and g.ended_at is not None and g.ended_at <= row_before][:limit]
        for row in expired:
            self._delete(row)
        return len(due) + len(expired)

    async def merge(self, limit: int = 20) -> int:
        return 0

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _check(self, owner: Owner) -> None:
        if owner not in self._beats:
            raise OwnerFenced(f"{owner} holds no lease")

    def _stream(self, stream_id: int) -> _Stream:
        try:
            return self._streams[stream_id]
        except KeyError:
            raise StreamNotFound(f"no stream {stream_id}") from None

    def _create(self, owner: Owner, key: GenerationKey, fingerprint: bytes | None) -> Generation:
        data, control = self._next_id(), self._next_id()
        self._streams[data], self._streams[control] = _Stream(), _Stream()
        row = Generation(self._next_id(), key, 1, State.CREATING, owner, data, control, fingerprint, _now())
        return self._put(row)

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
        self._put(replace(row, state=code.state, code=code.value, message=terminal.detail, ended_at=_now()))

    def _finish(self, owner: Owner) -> int:
        """End an owner and what it still records."""
        orphans = [g for g in self._generations.values() if g.owner == owner and g.state.is_live]
        for orphan in orphans:
            size = len(self._streams[orphan.data_stream].data)
            age_seconds = (_now() - orphan.created_at).total_seconds()
            self._end(Ending(orphan, orphaned(size, age_seconds, orphan.is_cancel_requested), size))
        del self._beats[owner]
        self._announce([s for g in orphans for s in (g.data_stream, g.control_stream)])
        return len(orphans)

    def _announce(self, stream_ids: Collection[int]) -> None:
        for listener in self._listeners:
            listener.streams_changed(stream_ids)


def _now() -> datetime:
    return datetime.now(UTC)
