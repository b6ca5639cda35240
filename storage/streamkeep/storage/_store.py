"""The contract that every store keeps; `contract.py` and `contract_streams.py` test it. Read `memory.py` first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from streamkeep.storage._errors import StoreError
from streamkeep.storage._keys import KeyStore
from streamkeep.storage._sessions import SessionStore
from streamkeep.storage._subscriptions import SubscriptionStore
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


class Listener(Protocol):
    """Told by a store about what other processes did. Both calls are made in the event loop and must not block."""

    def streams_changed(self, stream_ids: Collection[int] | None) -> None:
        """These streams grew or closed; None: something may have been missed, look at all of them."""

    def cancel_requested(self, generation_ids: Collection[int]) -> None:
        """Somebody asked, in any process, for these generations to be stopped."""


class Store(Protocol):
    """A log of streams with the generations that write them.

    An awaited write that returns is durable and readable from every instance. Any method may raise `StoreUnavailable`;
    then the write may or may not have happened.
    """

    async def open(self) -> None:
        """Connect, and bring the schema up to date. Called once, before anything else."""

    async def close(self) -> None:
        """Stop background work and disconnect."""

    async def ping(self) -> None:
        """Return when the engine answers."""

    def status(self) -> StoreStatus:
        """The engine as this store sees it now, without asking it."""

    def listen(self, listener: Listener) -> None:
        """Tell `listener` from now on what other processes do. Wake-ups may be lost: poll `tails` slowly as well."""

    async def signing_key(self) -> bytes:
        """The secret that signs: 32 bytes, made once and the same for every instance."""

    # Owners: a process that records holds a lease, and every write of a generation checks it.

    async def register_owner(self) -> Owner:
        """Begin a lease for this process."""

    async def renew(self, owner: Owner) -> None:
        """Change the lease's beat.

        Raises:
            OwnerFenced: the lease was taken away; every generation under it has ended.
        """

    async def release(self, owner: Owner) -> None:
        """Give the lease back; nothing may run under it any more. A second release does nothing."""

    async def leases(self) -> list[Lease]:
        """Every lease there is."""

    async def recover(self, lease: Lease) -> int:
        """Fence a dead owner off and end its generations with `owner_lost`; return how many ended.

        One transaction: after it no write under the old epoch can land. Does nothing, and returns 0, when the beat has
        changed since `lease` was seen.
        """

    # Generations

    async def claim(
        self,
        owner: Owner,
        key: GenerationKey,
        fingerprint: bytes | None,
        terms: Terms = Terms(),  # noqa: B008
    ) -> Claim:
        """Make the generation and its two streams, or find the one that has the key.

        A refused one is claimed anew with the next epoch. `fingerprint` is None when the body is not known yet; a found
        generation is compared only when both are known. Limits hold for what is new or claimed anew, counted over all
        instances (`rules/limits.py`); what is found keeps the terms that it was claimed with.

        Raises:
            FingerprintMismatch: the key belongs to another request.
            TooManyGenerations, RateLimited: the holder is at a limit; nothing was claimed.
            OwnerFenced: nothing was claimed.
        """

    async def start(self, generation: Generation, head: UpstreamHead, fingerprint: bytes | None) -> bool:
        """Record upstream's acceptance: creating → running. Returns whether a cancel was requested before, as deleting does,
        too. The fingerprint is None when the whole body never came.

        Raises:
            GenerationEnded: it is not `creating` in this epoch.
            OwnerFenced: the owner is finished.
        """

    async def refuse(self, generation: Generation, refusal: Refusal, fingerprint: bytes | None) -> None:
        """Record upstream's refusal: creating → refused. Raises as `start` does."""

    async def generation(self, key: GenerationKey) -> Generation | None:
        """The row under a key, if any."""

    async def session_generations(self, tenant: str, session_id: str, *, ended_after: datetime) -> list[Generation]:
        """A session's live generations and those that ended after an instant, newest first; refused ones never."""

    async def list_generations(self, wanted: Wanted, *, before: int | None = None, limit: int = 100) -> GenerationPage:
        """Generations in every state, by falling id, from below `before` on; deleted ones never. What one page costs is
        bounded, however many there are and however few are wanted. Of a refusal only the head is given, as `head`."""

    async def list_sessions(self, wanted: Wanted, *, before: int | None = None, limit: int = 100) -> SessionPage:
        """The sessions of those generations, by the id of the last one that was made. Pages are as bounded; a session's
        counts take in all its generations."""

    async def request_cancel(self, key: GenerationKey) -> Generation | None:
        """Flag a live generation for its owner to stop, and wake that owner. Returns the row; None if there is none."""

    async def cancel_requests(self, owner: Owner) -> list[int]:
        """Ids of the owner's live generations that somebody asked to stop."""

    async def set_retention(self, tenant: str, seconds: float | None) -> None:
        """How long the data of a tenant's generations stay, where a claim does not say; None: as the store has it. Counts
        for what is claimed from now on."""

    async def retentions(self) -> dict[str, float]:
        """The tenants that have a retention of their own, with it."""

    # Audiences: who reads generations that are to be stopped once nobody does, counted over all processes.

    async def note_readers(self, process: str, counted_seconds: Mapping[int, float]) -> None:
        """For how long from now on this process's readers of generations, by id, count; 0: they have left."""

    async def readerless_seconds(self, generation_ids: Collection[int]) -> dict[int, float]:
        """For how long generations have been without a reader that counts, negative while they have one. Those that
        never had a reader since they were claimed are absent."""

    # Bytes

    async def commit(self, owner: Owner, appends: Sequence[Append], endings: Sequence[Ending]) -> frozenset[int]:
        """Write all of it in one transaction: appends first, then endings. Returns the ids of generations that ended.

        At most one append for each stream. An ending takes effect only while its generation is live in its epoch:
        the event goes to the control stream, both streams are closed, and retention starts.

        Raises:
            OwnerFenced: nothing was written.
            ItemRefused: nothing was written; the caller may send the items one by one.
            StoreUnavailable: unknown; ask `settle`.
        """

    async def settle(self, owner: Owner, stream_ids: Collection[int]) -> dict[int, Tail]:
        """The tails of streams once no earlier commit of this owner can still be under way.

        Raises:
            OwnerFenced: the owner is finished.
        """

    async def read(self, stream_id: int, position: int, max_bytes: int) -> Slice:
        """Committed bytes from a position on, at most `max_bytes`, with the tail of the same snapshot.

        Beyond the tail the slice is empty and keeps the position.

        Raises:
            StreamNotFound: no such stream, it has expired or is deleted, or its data is gone.
        """

    async def read_each(self, positions: Mapping[int, int], max_bytes: int) -> dict[int, Slice]:
        """What `read` gives for each stream from its own position on, all of it in one call: at most `max_bytes` of each.
        Streams that do not exist, and those whose data nobody can decrypt now, are absent."""

    async def tails(self, stream_ids: Collection[int]) -> dict[int, Tail]:
        """The tails of those streams that exist."""

    async def erase(self, what: Erasure, limit: int = 1000) -> Erased:
        """Delete a batch of what a scope holds, with all that was forked from it; repeat until nothing remains.

        What the batch takes can be read by nobody when this returns, and live readers are told; a sweep does what is left
        of it should the caller die. A generation that runs is flagged to stop, and erased once it has ended. Its row stays
        and guards its key, with nothing of upstream's in it. A session's record goes with it, and a tenant loses its
        streams, subscriptions and all records of sessions as well.
        """

    # Streams of the open protocol: many writers, in any process. Generations' streams are such streams, read only.

    async def create_stream(self, key: StreamKey, config: StreamConfig, data: bytes = b"") -> Created:
        """Make a stream with its first bytes, or find the one of the same configuration.

        A stream that has expired counts as absent. A fork shares the source's bytes up to its fork point, and its
        positions go on from there; it inherits its schema, content type and expiry where none is given, and no producer
        state.

        Raises:
            StreamExists: the path is taken by another configuration (content type, expiry, closed, fork point, schema), or the
                source of a fork is deleted.
            StreamNotFound: the source of a fork does not exist.
            ContentTypeMismatch, SchemaMismatch: a fork's type or schema is not its source's.
            InvalidFork: the fork point is not in the source.
            ItemRefused: the path is reserved for generations, or the engine cannot keep such text.
        """

    async def stream(self, key: StreamKey, *, is_touched: bool = True) -> StreamInfo:
        """The stream under a path; a touch restarts its sliding TTL.

        It never expires before its TTL has passed since the last touch, and at most a tenth of it, or 10 s, later.

        Raises:
            StreamNotFound: there is none, or it has expired.
            StreamGone: it is deleted, or has expired, and only forks may read it.
        """

    async def schema(self, stream_id: int) -> str | None:
        """A stream's schema in its normal form; None: it has none, or there is no such stream."""

    async def append(self, appends: Sequence[StreamAppend]) -> list[Appended | StoreError]:
        """Append for many writers in one transaction; what became of each, in order.

        Serialised in the database for each stream, producer state and data together. An item that fails does not fail
        the others; several items for one stream take effect in their order. Precedence for one item: a producer's
        duplicate answers first (on a closed stream the closing tuple alone); then closed, content type, schema, producer,
        `Stream-Seq` (protocol 5.2, 5.2.1; `rules/appends.py`). A generation's stream answers `StreamClosed` or, while
        live, `ItemRefused`; so does what the engine cannot keep.

        Raises:
            StoreUnavailable: unknown for every item; nothing is sent again by the store.
        """

    async def delete_stream(self, key: StreamKey) -> None:
        """Delete a stream; while forks need its bytes it is only gone. The last fork's deletion cleans up behind it.

        Raises:
            StreamNotFound, StreamGone: as `stream`.
            ItemRefused: it is a generation's.
        """

    async def list_streams(
        self, tenant: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[StreamInfo]:
        """Streams of a tenant whose path begins with `prefix`, in path order, beginning after a path; neither deleted nor
        expired ones, nor generations' streams."""

    async def write_registries(self, encode: Callable[[StreamChange], bytes], limit: int = 500) -> list[int]:
        """Append what became of streams to their tenants' registries: messages in stored form, as `encode` gives them.

        Each creation, deletion and expiry of a stream is noted with its cause, in one transaction, and told once, in the
        order of causes for each stream; the registries' own are not. Returns the ids of the registries that grew; [] when
        everything has been told.
        """

    # Subscriptions

    @property
    def subscriptions(self) -> SubscriptionStore:
        """Who is to be told when streams grow: the part of the contract that `_subscriptions.py` says."""

    # Sessions

    @property
    def sessions(self) -> SessionStore:
        """Names and agents of sessions, and who works for them: the part of the contract that `_sessions.py` says."""

    # Keys

    @property
    def keys(self) -> KeyStore:
        """Who may use the service: the part of the contract that `_keys.py` says."""

    # Upkeep: small batches, safe to run in several processes at once

    async def sweep(self, limit: int = 100) -> int:
        """Delete expired streams, the data of generations past their retention, and rows past theirs; return how many
        were touched. What forks need stays readable for them."""

    async def rekey(self, tenant: str) -> int:
        """Encrypt the agents of a tenant's sessions anew, with its newest key, and have merges do the same for its closed
        streams; return how many of these there are."""

    async def merge(self, limit: int = 20) -> int:
        """Merge the chunks of closed streams, and old ones of long open streams, into larger, compressed segments.

        Returns how many pieces of streams were merged, a piece being bounded; less than `limit` when nothing is left.
        """
