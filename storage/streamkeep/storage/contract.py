"""What every store must do, as tests: each test's name is a claim that the docstrings of `Store` make.

A store of one's own runs them all with a subclass that says how to make one, under any runner that awaits `async def
test_…` methods, such as pytest with anyio's plugin:

    class TestMyStore(StoreContract):
        def make_store(self, *, retention: Retention = Retention()) -> Store:
            return MyStore(retention=retention)

Every test makes its own store, and expects to find it empty.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from streamkeep.storage._errors import (
    FingerprintMismatch,
    GenerationEnded,
    ItemRefused,
    OwnerFenced,
    RateLimited,
    StreamNotFound,
    TooManyGenerations,
)
from streamkeep.storage._store import Store
from streamkeep.storage._types import (
    DEFAULT_TENANT,
    Append,
    Ending,
    Erasure,
    Generation,
    GenerationKey,
    GoneReason,
    Owner,
    Refusal,
    Retention,
    Slice,
    Tail,
    Terms,
    UpstreamHead,
    Wanted,
)
from streamkeep.storage.rules.generations import Code, State, Terminal, Usage
from streamkeep.storage.rules.json_messages import SEPARATOR
from streamkeep.storage.rules.offsets import format_offset

E = TypeVar("E", bound=BaseException)

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
HEAD = UpstreamHead(
    200, "text/event-stream; charset=utf-8", None, (("x-request-id", "r1"), ("x-ratelimit-remaining", "7"))
)
FINGERPRINT = b"\x00fingerprint\xff"
EVERY_BYTE = bytes(range(256))


class Ears:
    """A listener that remembers what it was told."""

    def __init__(self) -> None:
        self.changed: list[Collection[int] | None] = []
        self.cancelled: list[int] = []

    def streams_changed(self, stream_ids: Collection[int] | None) -> None:
        self.changed.append(stream_ids)

    def cancel_requested(self, generation_ids: Collection[int]) -> None:
        self.cancelled.extend(generation_ids)

    def has_heard_of(self, stream_id: int) -> bool:
        """Whether that stream was named, or everything."""
        return any(ids is None or stream_id in ids for ids in self.changed)


def key(request_id: str = "r1", session_id: str = "s1", tenant: str = DEFAULT_TENANT) -> GenerationKey:
    return GenerationKey(tenant, session_id, request_id)


async def running(store: Store, owner: Owner, of: GenerationKey | None = None) -> Generation:
    """A generation that upstream has accepted."""
    claim = await store.claim(owner, of or key(), FINGERPRINT)
    await store.start(claim.generation, HEAD, FINGERPRINT)
    return replace(claim.generation, state=State.RUNNING, head=HEAD)


def terminal(size_bytes: int, code: Code = Code.COMPLETE, detail: str | None = None) -> Terminal:
    usage = Usage(0, 12, "vendor")
    return Terminal(code, format_offset(size_bytes), size_bytes, "ab" * 32, 1234, usage, detail)


def ending(generation: Generation, size_bytes: int, code: Code = Code.COMPLETE) -> Ending:
    return Ending(generation, terminal(size_bytes, code), size_bytes)


async def ended(store: Store, owner: Owner, of: GenerationKey, data: bytes = b"data") -> Generation:
    """A generation that has come to its end, with those bytes."""
    generation = await running(store, owner, of)
    await store.commit(owner, [Append(generation.data_stream, 0, data)], [ending(generation, len(data))])
    return generation


async def read_on(store: Store, stream_id: int, position: int = 0, max_bytes: int = 65536) -> bytes:
    """What a reader gets who reads from a position until it is up to date."""
    pieces = []
    while True:
        piece = await store.read(stream_id, position, max_bytes)
        assert piece.position == position
        assert len(piece.data) <= max_bytes
        pieces.append(piece.data)
        if piece.is_up_to_date:
            return b"".join(pieces)
        assert piece.data, "a read short of the tail must make progress"
        position = piece.end


async def events(store: Store, generation: Generation) -> list[dict[str, object]]:
    """What stands on the control stream."""
    stored = await read_on(store, generation.control_stream)
    assert not stored or stored.endswith(SEPARATOR)
    return [json.loads(text) for text in stored.split(SEPARATOR)[:-1]]


async def raised(error: type[E], call: Awaitable[object]) -> E:
    """The error that a call raises; it must."""
    try:
        await call
    except error as exc:
        return exc
    raise AssertionError(f"{error.__name__} was not raised")


async def until_nothing_to_sweep(store: Store, limit: int = 100) -> int:
    total = 0
    while touched := await store.sweep(limit):
        total += touched
    return total


class StoreContract:
    def make_store(self, *, retention: Retention = Retention()) -> Store:  # noqa: B008
        """A store, not yet opened, that merges without delay."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self, retention: Retention = Retention()) -> AsyncIterator[Store]:  # noqa: B008
        store = self.make_store(retention=retention)
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    # The engine

    async def test_ping_returns_when_the_engine_answers(self) -> None:
        async with self.opened() as store:
            await store.ping()

    async def test_the_signing_key_is_32_bytes_and_stays_the_same(self) -> None:
        async with self.opened() as store:
            keys = set(await asyncio.gather(*(store.signing_key() for _ in range(5))))
            assert [len(found) for found in keys] == [32]

    # Owners

    async def test_every_registration_is_another_owner_with_a_lease(self) -> None:
        async with self.opened() as store:
            owners = {await store.register_owner() for _ in range(3)}
            assert {lease.owner for lease in await store.leases()} == owners
            assert len(owners) == 3

    async def test_renewing_changes_the_beat_of_that_lease_only(self) -> None:
        async with self.opened() as store:
            one, other = await store.register_owner(), await store.register_owner()
            before = {lease.owner: lease.beat for lease in await store.leases()}
            await store.renew(one)
            after = {lease.owner: lease.beat for lease in await store.leases()}
            assert after[one] != before[one]
            assert after[other] == before[other]

    async def test_a_released_lease_is_gone_and_a_second_release_does_nothing(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            await store.release(owner)
            await store.release(owner)
            assert await store.leases() == []
            await raised(OwnerFenced, store.renew(owner))

    async def test_release_ends_what_still_runs_under_the_lease(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.release(owner)
            assert [event["code"] for event in await events(store, generation)] == ["owner_lost"]

    async def test_recover_does_nothing_once_the_beat_has_changed(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            (seen,) = await store.leases()
            await store.renew(owner)
            assert await store.recover(seen) == 0
            await store.commit(owner, [Append(generation.data_stream, 0, b"alive")], [])
            assert len(await store.leases()) == 1

    async def test_recover_ends_the_owners_generations_with_owner_lost_and_keeps_their_bytes(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.commit(owner, [Append(generation.data_stream, 0, b"so far")], [])
            (seen,) = await store.leases()
            assert await store.recover(seen) == 1
            assert await store.leases() == []
            (event,) = await events(store, generation)
            assert (event["event"], event["code"], event["retryable"]) == ("error", "owner_lost", True)
            assert (event["offset"], event["bytes"]) == (format_offset(6), 6)
            assert "sha256" not in event
            assert await store.read(generation.data_stream, 0, 100) == Slice(0, b"so far", Tail(6, True))
            row = await store.generation(generation.key)
            assert row is not None
            assert (row.state, row.code) == (State.ERROR, "owner_lost")
            assert row.ended_at is not None

    async def test_recover_ends_generations_that_upstream_had_not_answered(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            claim = await store.claim(owner, key(), None)
            (seen,) = await store.leases()
            assert await store.recover(seen) == 1
            assert [event["code"] for event in await events(store, claim.generation)] == ["owner_lost"]

    async def test_recover_writes_the_cancellation_that_the_owner_did_not_live_to_see(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.request_cancel(generation.key)
            (seen,) = await store.leases()
            assert await store.recover(seen) == 1
            assert [event["event"] for event in await events(store, generation)] == ["cancelled"]
            row = await store.generation(generation.key)
            assert row is not None
            assert row.state is State.CANCELLED

    async def test_recover_leaves_ended_ones_and_other_owners_alone(self) -> None:
        async with self.opened() as store:
            dead, alive = await store.register_owner(), await store.register_owner()
            done = await ended(store, dead, key("done"))
            going = await running(store, alive, key("going"))
            (seen,) = [lease for lease in await store.leases() if lease.owner == dead]
            assert await store.recover(seen) == 0
            assert [lease.owner for lease in await store.leases()] == [alive]
            assert [event["code"] for event in await events(store, done)] == ["complete"]
            await store.commit(alive, [Append(going.data_stream, 0, b"on")], [])

    async def test_of_many_recoverers_one_ends_the_generations(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generations = [await running(store, owner, key(f"r{i}")) for i in range(5)]
            (seen,) = await store.leases()
            assert sorted(await asyncio.gather(*(store.recover(seen) for _ in range(8)))) == [0] * 7 + [5]
            for generation in generations:
                assert len(await events(store, generation)) == 1

    async def test_recover_tells_listeners_which_streams_closed(self) -> None:
        async with self.opened() as store:
            ears = Ears()
            store.listen(ears)
            generation = await running(store, await store.register_owner())
            (seen,) = await store.leases()
            await store.recover(seen)
            named = {stream for ids in ears.changed if ids is not None for stream in ids}
            assert {generation.data_stream, generation.control_stream} <= named

    async def test_every_write_of_a_fenced_owner_is_refused_and_writes_nothing(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            going = await running(store, owner)
            creating = (await store.claim(owner, key("creating"), FINGERPRINT)).generation
            (seen,) = await store.leases()
            await store.recover(seen)
            before = await store.tails([going.data_stream, going.control_stream, creating.data_stream])
            append = Append(going.data_stream, 0, b"late")
            for write in (
                store.renew(owner),
                store.claim(owner, key("new"), None),
                store.claim(owner, going.key, FINGERPRINT),
                store.start(creating, HEAD, FINGERPRINT),
                store.refuse(creating, Refusal(HEAD, b""), FINGERPRINT),
                store.commit(owner, [append], []),
                store.commit(owner, [Append(going.data_stream, 77, b"late and wrong")], []),
                store.commit(owner, [], [ending(going, 0)]),
                store.commit(owner, [append], [ending(going, 4)]),
                store.commit(owner, [], []),
                store.settle(owner, [going.data_stream]),
            ):
                await raised(OwnerFenced, write)
            assert await store.generation(key("new")) is None
            assert await store.tails(list(before)) == before
            assert len(await events(store, going)) == 1

    async def test_an_owner_of_another_epoch_is_fenced(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            stale = Owner(owner.id, owner.epoch + 1)
            await raised(OwnerFenced, store.renew(stale))
            await raised(OwnerFenced, store.commit(stale, [Append(generation.data_stream, 0, b"x")], []))
            await raised(OwnerFenced, store.settle(stale, []))
            await store.release(stale)
            await store.renew(owner)

    # Claims

    async def test_a_claim_makes_the_row_and_two_open_streams(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            claim = await store.claim(owner, key(), FINGERPRINT)
            row = claim.generation
            assert claim.is_new
            assert (row.key, row.owner, row.state, row.epoch) == (key(), owner, State.CREATING, 1)
            assert (row.fingerprint, row.head, row.refusal, row.code, row.ended_at) == (FINGERPRINT, *[None] * 4)
            assert not row.is_cancel_requested
            assert row.gone is None
            assert abs(datetime.now(UTC) - row.created_at) < timedelta(minutes=5)
            assert row.data_stream != row.control_stream
            for stream in (row.data_stream, row.control_stream):
                assert await store.read(stream, 0, 100) == Slice(0, b"", Tail(0, False))
            assert await store.generation(key()) == row

    async def test_a_repeated_claim_finds_the_first_whoever_asks(self) -> None:
        async with self.opened() as store:
            first = await store.claim(await store.register_owner(), key(), FINGERPRINT)
            again = await store.claim(await store.register_owner(), key(), FINGERPRINT)
            assert not again.is_new
            assert again.generation == first.generation

    async def test_of_fifty_concurrent_claims_of_a_key_one_is_new(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            claims = await asyncio.gather(*(store.claim(owner, key(), FINGERPRINT) for _ in range(50)))
            assert [claim.is_new for claim in claims].count(True) == 1
            assert len({claim.generation.id for claim in claims}) == 1

    async def test_tenants_sessions_and_requests_are_apart(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            keys = [key(), key("r2"), key(session_id="s2"), key(tenant="other")]
            claims = [await store.claim(owner, each, FINGERPRINT) for each in keys]
            assert all(claim.is_new for claim in claims)
            streams = [stream for claim in claims for stream in _streams(claim.generation)]
            assert len(set(streams)) == 8

    async def test_another_fingerprint_under_a_key_is_a_mismatch(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            await store.claim(owner, key(), FINGERPRINT)
            await raised(FingerprintMismatch, store.claim(owner, key(), b"other"))
            await ended(store, owner, key("done"))
            await raised(FingerprintMismatch, store.claim(owner, key("done"), b"other"))

    async def test_fingerprints_are_compared_only_when_both_are_known(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            claim = await store.claim(owner, key(), None)
            assert not (await store.claim(owner, key(), b"whatever")).is_new
            await store.start(claim.generation, HEAD, FINGERPRINT)
            assert not (await store.claim(owner, key(), None)).is_new
            await raised(FingerprintMismatch, store.claim(owner, key(), b"whatever"))

    async def test_a_refused_generation_is_claimed_anew_with_the_next_epoch(self) -> None:
        async with self.opened() as store:
            owner, later = await store.register_owner(), await store.register_owner()
            first = (await store.claim(owner, key(), FINGERPRINT)).generation
            await store.request_cancel(key())
            await store.refuse(first, Refusal(HEAD, b"no"), FINGERPRINT)
            claim = await store.claim(later, key(), b"another body")
            row = claim.generation
            assert claim.is_new
            assert (row.epoch, row.state, row.owner) == (2, State.CREATING, later)
            assert (row.fingerprint, row.head, row.refusal, row.ended_at) == (b"another body", None, None, None)
            assert not row.is_cancel_requested
            assert await read_on(store, row.data_stream) == b""
            assert await store.generation(key()) == row

    async def test_of_many_claims_of_a_refused_generation_one_is_new(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            first = (await store.claim(owner, key(), FINGERPRINT)).generation
            await store.refuse(first, Refusal(HEAD, b""), FINGERPRINT)
            claims = await asyncio.gather(*(store.claim(owner, key(), FINGERPRINT) for _ in range(20)))
            assert [claim.is_new for claim in claims].count(True) == 1
            assert {claim.generation.epoch for claim in claims} == {2}

    async def test_an_ended_generation_is_found_not_claimed_anew(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            for code in Code:
                generation = await running(store, owner, key(code.value))
                await store.commit(owner, [], [ending(generation, 0, code)])
                claim = await store.claim(owner, generation.key, FINGERPRINT)
                assert not claim.is_new
                assert claim.generation.state is code.state

    # Terms of a claim

    async def test_a_claims_terms_stand_in_its_row(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            plain = (await store.claim(owner, key("plain"), None)).generation
            assert (plain.holder, plain.cancel_after_seconds) == (None, None)
            terms = Terms(holder="key \N{SNOWMAN}", max_running=2, cancel_after_seconds=2.5)
            row = (await store.claim(owner, key(), None, terms)).generation
            assert (row.holder, row.cancel_after_seconds) == (terms.holder, 2.5)
            assert await store.generation(key()) == row
            # What is found keeps its own.
            found = await store.claim(owner, key(), None, Terms(holder="another", cancel_after_seconds=9.0))
            assert (found.is_new, found.generation) == (False, row)

    async def test_a_refused_generation_gets_the_terms_of_the_claim_that_takes_it_anew(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            first = (await store.claim(owner, key(), None, Terms("one", cancel_after_seconds=1.0))).generation
            await store.refuse(first, Refusal(HEAD, b""), None)
            anew = (await store.claim(owner, key(), None, Terms("two"))).generation
            assert (anew.epoch, anew.holder, anew.cancel_after_seconds) == (2, "two", None)

    async def test_at_its_limit_a_holder_claims_nothing_more(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            terms = Terms(holder="h", max_running=2)
            for request_id in ("r1", "r2"):
                assert (await store.claim(owner, key(request_id), None, terms)).is_new
            refused = await raised(TooManyGenerations, store.claim(owner, key("r3"), None, terms))
            assert refused.limit == 2
            assert await store.generation(key("r3")) is None

    async def test_limits_are_of_one_holder_in_one_tenant(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            for holder, tenant in (("h", "t"), ("h", "u"), ("i", "t")):
                terms = Terms(holder=holder, max_running=1, max_per_minute=1)
                assert (await store.claim(owner, key(holder, tenant=tenant), None, terms)).is_new
            # Without a holder there is nobody to count for.
            for request_id in ("r1", "r2"):
                assert (await store.claim(owner, key(request_id), None, Terms(max_running=1))).is_new

    async def test_whatever_ends_a_generation_gives_its_place_back(self) -> None:
        async with self.opened() as store:
            owner, other = await store.register_owner(), await store.register_owner()
            terms = Terms(holder="h", max_running=1)

            async def claimed(request_id: str, by: Owner = owner) -> Generation:
                claim = await store.claim(by, key(request_id), None, terms)
                assert claim.is_new
                return claim.generation

            first = await claimed("ended")
            await store.commit(owner, [], [ending(first, 0)])
            await store.refuse(await claimed("refused"), Refusal(HEAD, b""), None)
            await claimed("orphaned", by=other)
            await raised(TooManyGenerations, store.claim(owner, key("last"), None, terms))
            (lease,) = [lease for lease in await store.leases() if lease.owner == other]
            await store.recover(lease)
            await claimed("last")

    async def test_a_claim_that_finds_its_generation_is_not_limited(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            terms = Terms(holder="h", max_running=1, max_per_minute=1)
            first = await store.claim(owner, key(), FINGERPRINT, terms)
            again = await store.claim(owner, key(), FINGERPRINT, terms)
            assert (again.is_new, again.generation) == (False, first.generation)
            await raised(FingerprintMismatch, store.claim(owner, key(), b"other", terms))

    async def test_a_refused_generation_is_not_claimed_anew_beyond_the_limit(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            terms = Terms(holder="h", max_running=1)
            refused = (await store.claim(owner, key(), None, terms)).generation
            await store.refuse(refused, Refusal(HEAD, b"no"), None)
            await store.claim(owner, key("r2"), None, terms)
            await raised(TooManyGenerations, store.claim(owner, key(), None, terms))
            row = await store.generation(key())
            assert row is not None
            assert (row.state, row.epoch) == (State.REFUSED, 1)

    async def test_of_many_concurrent_claims_a_holder_gets_as_many_as_it_may(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            terms = Terms(holder="h", max_running=5)

            async def claim(request_id: str) -> bool:
                try:
                    return (await store.claim(owner, key(request_id), None, terms)).is_new
                except TooManyGenerations:
                    return False

            assert sum(await asyncio.gather(*(claim(f"r{i}") for i in range(60)))) == 5

    async def test_within_a_minute_a_holder_begins_as_many_as_it_may(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            terms = Terms(holder="h", max_per_minute=3)
            for request_id in ("r1", "r2", "r3"):
                generation = (await store.claim(owner, key(request_id), None, terms)).generation
                await store.commit(owner, [], [ending(generation, 0)])
            limited = await raised(RateLimited, store.claim(owner, key("r4"), None, terms))
            assert limited.limit == 3
            assert 0 < limited.retry_after_seconds <= 60
            assert await store.generation(key("r4")) is None
            assert (await store.claim(owner, key("r4"), None, Terms(holder="h", max_per_minute=4))).is_new

    # Audiences

    async def test_a_generation_is_without_readers_from_when_the_last_of_them_counts_no_more(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            one = (await store.claim(owner, key("one"), None)).generation.id
            two = (await store.claim(owner, key("two"), None)).generation.id
            assert await store.readerless_seconds([one, two]) == {}
            await store.note_readers("here", {one: 9.0, two: 0.0})
            await store.note_readers("there", {one: 20.0})
            found = await store.readerless_seconds([one, two])
            assert -20 <= found[one] < -9
            assert 0 <= found[two] < 9
            await store.note_readers("there", {one: 0.0})
            assert -9 <= (await store.readerless_seconds([one]))[one] < 0
            await store.note_readers("here", {one: 0.0, two: 5.0})
            found = await store.readerless_seconds([one, two])
            assert found[one] >= 0 > found[two]

    async def test_readers_of_a_refused_generation_are_none_of_the_one_that_is_claimed_anew(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            first = (await store.claim(owner, key(), None)).generation
            await store.note_readers("here", {first.id: 0.0})
            await store.refuse(first, Refusal(HEAD, b""), None)
            anew = (await store.claim(owner, key(), None)).generation
            assert await store.readerless_seconds([first.id, anew.id]) == {}

    async def test_sweeping_forgets_the_readers_of_what_has_ended(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            done, going = await ended(store, owner, key("done")), await running(store, owner, key("going"))
            await store.note_readers("here", {done.id: 9.0, going.id: 9.0})
            await store.note_readers("there", {done.id: 0.0})
            await until_nothing_to_sweep(store)
            assert list(await store.readerless_seconds([done.id, going.id])) == [going.id]

    # Upstream's verdict

    async def test_start_records_what_upstream_said(self) -> None:
        async with self.opened() as store:
            claim = await store.claim(await store.register_owner(), key(), None)
            assert not await store.start(claim.generation, HEAD, FINGERPRINT)
            expected = replace(claim.generation, state=State.RUNNING, head=HEAD, fingerprint=FINGERPRINT)
            assert await store.generation(key()) == expected

    async def test_start_tells_of_a_cancel_that_came_before_it(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            cancelled = (await store.claim(owner, key("cancelled"), None)).generation
            deleted = (await store.claim(owner, key("deleted"), None)).generation
            await store.request_cancel(cancelled.key)
            await store.erase(Erasure.of(deleted.key))
            assert await store.start(cancelled, HEAD, FINGERPRINT)
            assert await store.start(deleted, HEAD, FINGERPRINT)

    async def test_headers_come_back_whatever_they_hold(self) -> None:
        async with self.opened() as store:
            head = UpstreamHead(
                203, None, "gzip", (("x-odd", "caf\xe9 \u2603"), ("x-odd", 'nul \x00 "\udcff'), ("x", ""))
            )
            claim = await store.claim(await store.register_owner(), key(), None)
            await store.start(claim.generation, head, FINGERPRINT)
            row = await store.generation(key())
            assert row is not None
            assert row.head == head

    async def test_only_a_generation_that_is_being_created_starts(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await raised(GenerationEnded, store.start(generation, HEAD, FINGERPRINT))
            await store.commit(owner, [], [ending(generation, 0)])
            await raised(GenerationEnded, store.start(generation, HEAD, FINGERPRINT))
            await raised(GenerationEnded, store.refuse(generation, Refusal(HEAD, b""), FINGERPRINT))

    async def test_an_earlier_epoch_neither_starts_nor_refuses_nor_ends(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            old = (await store.claim(owner, key(), FINGERPRINT)).generation
            await store.refuse(old, Refusal(HEAD, b""), FINGERPRINT)
            anew = (await store.claim(owner, key(), FINGERPRINT)).generation
            await raised(GenerationEnded, store.start(old, HEAD, FINGERPRINT))
            await raised(GenerationEnded, store.refuse(old, Refusal(HEAD, b""), FINGERPRINT))
            assert await store.commit(owner, [], [ending(old, 0)]) == frozenset()
            assert await store.generation(key()) == anew

    async def test_a_refusal_keeps_upstreams_own_answer(self) -> None:
        async with self.opened() as store:
            claim = await store.claim(await store.register_owner(), key(), None)
            refusal = Refusal(UpstreamHead(429, "application/json", None, (("retry-after", "3"),)), EVERY_BYTE * 256)
            await store.refuse(claim.generation, refusal, FINGERPRINT)
            row = await store.generation(key())
            assert row is not None
            assert (row.state, row.refusal, row.head) == (State.REFUSED, refusal, None)
            assert row.ended_at is not None

    async def test_an_empty_refusal_is_still_one(self) -> None:
        async with self.opened() as store:
            claim = await store.claim(await store.register_owner(), key(), None)
            await store.refuse(claim.generation, Refusal(HEAD, b""), FINGERPRINT)
            row = await store.generation(key())
            assert row is not None
            assert row.refusal == Refusal(HEAD, b"")

    # Finding and cancelling

    async def test_an_unknown_key_has_no_generation(self) -> None:
        async with self.opened() as store:
            assert await store.generation(key()) is None
            assert await store.request_cancel(key()) is None
            assert await store.session_generations(DEFAULT_TENANT, "s1", ended_after=LONG_AGO) == []

    async def test_a_session_lists_the_live_and_the_lately_ended_newest_first(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            await ended(store, owner, key("early"))
            early = await store.generation(key("early"))
            assert early is not None
            assert early.ended_at is not None
            await running(store, owner, key("going"))
            await ended(store, owner, key("late"))
            await store.claim(owner, key("creating"), None)
            refused = (await store.claim(owner, key("refused"), None)).generation
            await store.refuse(refused, Refusal(HEAD, b""), FINGERPRINT)
            await running(store, owner, key("elsewhere", session_id="s2"))
            await running(store, owner, key("foreign", tenant="other"))
            found = await store.session_generations(DEFAULT_TENANT, "s1", ended_after=early.ended_at)
            assert [row.key.request_id for row in found] == ["creating", "late", "going"]
            found = await store.session_generations(DEFAULT_TENANT, "s1", ended_after=LONG_AGO)
            assert [row.key.request_id for row in found] == ["creating", "late", "going", "early"]

    async def test_generations_are_listed_page_by_page_newest_first(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            for number in range(5):
                await store.claim(owner, key(f"r{number}", session_id=f"s{number % 2}"), None)
            await store.claim(owner, key("foreign", tenant="other"), None)
            seen: list[str] = []
            before: int | None = None
            for _ in range(5):
                page = await store.list_generations(Wanted(DEFAULT_TENANT), before=before, limit=2)
                assert len(page.rows) <= 2
                seen += [row.key.request_id for row in page.rows]
                before = page.next_before
                if before is None:
                    break
            assert (seen, before) == (["r4", "r3", "r2", "r1", "r0"], None)
            everybodys = await store.list_generations(Wanted(), limit=1)
            assert [row.key.tenant for row in everybodys.rows] == ["other"]

    async def test_a_listing_shows_what_is_wanted_alone(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            await ended(store, owner, key("done"))
            await running(store, owner, key("going"))
            await store.claim(owner, key("begun", "other-chat"), None, Terms(upstream="Vendor.example"))
            refused = (await store.claim(owner, key("refused"), None)).generation
            await store.refuse(refused, Refusal(HEAD, b"no"), FINGERPRINT)
            await ended(store, owner, key("erased"))
            await store.erase(Erasure.of(key("erased")))

            async def listed(wanted: Wanted) -> list[str]:
                return [row.key.request_id for row in (await store.list_generations(wanted)).rows]

            live = frozenset({State.CREATING, State.RUNNING})
            assert await listed(Wanted(DEFAULT_TENANT)) == ["refused", "begun", "going", "done"]
            assert await listed(Wanted(DEFAULT_TENANT, states=live)) == ["begun", "going"]
            assert await listed(Wanted("other", states=live)) == []
            assert await listed(Wanted(states=frozenset({State.DONE, State.CREATING}))) == ["begun", "done"]
            assert await listed(Wanted(DEFAULT_TENANT, "other-chat")) == ["begun"]
            assert await listed(Wanted(None, "other-chat")) == ["begun"]
            assert await listed(Wanted(DEFAULT_TENANT, "other-chat", "begun")) == ["begun"]
            assert await listed(Wanted(DEFAULT_TENANT, "other-chat", "going")) == []
            assert await listed(Wanted(request_id="going")) == ["going"]
            assert await listed(Wanted(text="VENDOR.ex")) == ["begun"]
            assert await listed(Wanted(text="other-chat/BEG")) == ["begun"]
            assert await listed(Wanted(text="%")) == []

    async def test_a_listed_generation_tells_whom_it_called_and_what_it_used(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            claim = await store.claim(owner, key(), FINGERPRINT, Terms(upstream="vendor"))
            await store.start(claim.generation, HEAD, FINGERPRINT)
            assert (claim.generation.upstream, claim.generation.usage) == ("vendor", None)
            await store.commit(owner, [], [ending(claim.generation, 0)])
            (listed,) = (await store.list_generations(Wanted())).rows
            assert (listed.upstream, listed.head) == ("vendor", HEAD)
            assert listed.usage == terminal(0).usage
            refused = (await store.claim(owner, key("refused"), None, Terms(upstream="first"))).generation
            await store.refuse(refused, Refusal(HEAD, b"no"), FINGERPRINT)
            (shown, _) = (await store.list_generations(Wanted())).rows
            assert (shown.head, shown.refusal) == (HEAD, None)
            anew = await store.claim(owner, key("refused"), None, Terms(upstream="second"))
            assert anew.generation.upstream == "second"
            await store.erase(Erasure.of(key()))
            erased = await store.generation(key())
            assert erased is not None
            assert (erased.upstream, erased.usage) == (None, None)

    async def test_sessions_are_listed_by_their_newest_generation(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            for number, session_id in enumerate(["a", "b", "c", "a"]):
                await ended(store, owner, key(f"r{number}", session_id))
            await running(store, owner, key("going", "b"))
            await running(store, owner, key("foreign", "d", tenant="other"))
            first = await store.list_sessions(Wanted(DEFAULT_TENANT), limit=2)
            assert [(row.session_id, row.generations, row.live) for row in first.rows] == [("b", 2, 1), ("a", 2, 0)]
            assert first.rows[0].first_at < first.rows[0].last_at
            rest = await store.list_sessions(Wanted(DEFAULT_TENANT), before=first.next_before, limit=2)
            assert [(row.session_id, row.generations) for row in rest.rows] == [("c", 1)]
            assert rest.next_before is None
            found = await store.list_sessions(Wanted(None, states=frozenset({State.RUNNING})))
            assert [(row.tenant, row.session_id) for row in found.rows] == [("other", "d"), (DEFAULT_TENANT, "b")]

    async def test_a_cancel_request_flags_the_generation_and_wakes_its_owner(self) -> None:
        async with self.opened() as store:
            ears = Ears()
            store.listen(ears)
            owner, other = await store.register_owner(), await store.register_owner()
            generation = await running(store, owner)
            await running(store, owner, key("r2"))
            assert await store.cancel_requests(owner) == []
            row = await store.request_cancel(generation.key)
            assert row is not None
            assert (row.id, row.is_cancel_requested, row.state) == (generation.id, True, State.RUNNING)
            assert ears.cancelled == [generation.id]
            assert await store.cancel_requests(owner) == [generation.id]
            assert await store.cancel_requests(other) == []

    async def test_a_cancel_request_may_be_repeated(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            await running(store, owner)
            first = await store.request_cancel(key())
            assert await store.request_cancel(key()) == first
            assert len(await store.cancel_requests(owner)) == 1

    async def test_cancelling_what_has_ended_gives_the_row_and_changes_nothing(self) -> None:
        async with self.opened() as store:
            ears = Ears()
            store.listen(ears)
            owner = await store.register_owner()
            await ended(store, owner, key())
            before = await store.generation(key())
            assert await store.request_cancel(key()) == before
            assert before is not None
            assert not before.is_cancel_requested
            assert ears.cancelled == []

    async def test_an_ended_generation_is_no_longer_among_the_cancel_requests(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.request_cancel(key())
            await store.commit(owner, [], [ending(generation, 0, Code.CANCELLED)])
            assert await store.cancel_requests(owner) == []

    # Appends and reads

    async def test_appended_bytes_are_read_back_whatever_they_are(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            pieces = [b"\x00", EVERY_BYTE, "h\u00e9".encode()[:-1], "h\u00e9".encode()[-1:], b"\x00\x00"]
            whole = await _append_all(store, owner, generation, pieces)
            assert await store.read(generation.data_stream, 0, 10_000) == Slice(0, whole, Tail(len(whole), False))

    async def test_what_is_read_from_any_position_completes_what_came_before_it(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            whole = await _append_all(store, owner, generation, [b"a", b"bcdefg", b"h", b"ij", b"klmnopqrst"])
            for cut in range(len(whole) + 1):
                for max_bytes in (1, 3, 100):
                    assert whole[:cut] + await read_on(store, generation.data_stream, cut, max_bytes) == whole

    async def test_a_read_says_where_the_stream_ends_in_the_same_snapshot(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.commit(owner, [Append(generation.data_stream, 0, b"0123456789")], [])
            piece = await store.read(generation.data_stream, 2, 3)
            assert (piece.position, piece.data, piece.end, piece.tail) == (2, b"234", 5, Tail(10, False))
            assert not piece.is_up_to_date

    async def test_a_read_beyond_the_tail_is_empty_and_keeps_its_position(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.commit(owner, [Append(generation.data_stream, 0, b"12345")], [])
            for position in (5, 6, 1000, 10**15):
                piece = await store.read(generation.data_stream, position, 10)
                assert piece == Slice(position, b"", Tail(5, False))
                assert piece.is_up_to_date

    async def test_an_unknown_stream_is_not_found(self) -> None:
        async with self.opened() as store:
            await raised(StreamNotFound, store.read(10**9, 0, 100))
            assert await store.tails([10**9]) == {}

    async def test_a_large_append_is_read_in_bounded_pieces(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            whole = EVERY_BYTE * (3 * 4096) + b"end"
            await store.commit(owner, [Append(generation.data_stream, 0, whole)], [])
            assert await read_on(store, generation.data_stream, 0, 100_000) == whole
            assert await read_on(store, generation.data_stream, 1_234_567, 500_000) == whole[1_234_567:]

    async def test_a_thousand_streams_grow_in_one_commit(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generations = await asyncio.gather(*(running(store, owner, key(f"r{i}")) for i in range(1000)))
            for turn in range(2):
                appends = [
                    Append(generation.data_stream, 8 * turn, b"%08d" % generation.id) for generation in generations
                ]
                assert await store.commit(owner, appends, []) == frozenset()
            tails = await store.tails([generation.data_stream for generation in generations])
            assert set(tails.values()) == {Tail(16, False)}
            for generation in generations[::97]:
                assert await read_on(store, generation.data_stream) == b"%08d" % generation.id * 2

    async def test_tails_are_given_for_the_streams_that_exist(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            done = await ended(store, owner, key("done"), b"1234")
            await store.commit(owner, [Append(generation.data_stream, 0, b"12")], [])
            streams = [generation.data_stream, generation.control_stream, done.data_stream, 10**9]
            assert await store.tails(streams) == {
                generation.data_stream: Tail(2, False),
                generation.control_stream: Tail(0, False),
                done.data_stream: Tail(4, True),
            }
            assert await store.tails([]) == {}

    async def test_many_streams_are_read_in_one_call_each_from_its_position(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            one, other = await running(store, owner), await running(store, owner, key("other"))
            done = await ended(store, owner, key("done"), b"1234")
            await store.commit(owner, [Append(one.data_stream, 0, b"12"), Append(other.data_stream, 0, b"abc")], [])
            await store.commit(owner, [Append(one.data_stream, 2, b"345")], [])
            positions = {other.data_stream: 1, one.data_stream: 1, done.data_stream: 4, one.control_stream: 0, 10**9: 0}
            assert await store.read_each(positions, 3) == {
                one.data_stream: Slice(1, b"234", Tail(5, False)),
                other.data_stream: Slice(1, b"bc", Tail(3, False)),
                done.data_stream: Slice(4, b"", Tail(4, True)),
                one.control_stream: Slice(0, b"", Tail(0, False)),
            }
            assert await store.read_each({}, 3) == {}

    async def test_one_append_at_a_wrong_position_keeps_the_whole_batch_out(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            good, bad = await running(store, owner, key("good")), await running(store, owner, key("bad"))
            await store.commit(owner, [Append(bad.data_stream, 0, b"0123")], [])
            for position in (5, 0, 1, 3, 1000):
                batch = [Append(good.data_stream, 0, b"x"), Append(bad.data_stream, position, b"y")]
                await raised(ItemRefused, store.commit(owner, batch, []))
                await raised(ItemRefused, store.commit(owner, batch, [ending(good, 1)]))
            assert await store.tails([good.data_stream, bad.data_stream]) == {
                good.data_stream: Tail(0, False),
                bad.data_stream: Tail(4, False),
            }
            assert await events(store, good) == []
            await store.commit(owner, [Append(bad.data_stream, 4, b"4"), Append(good.data_stream, 0, b"x")], [])
            assert await read_on(store, bad.data_stream) == b"01234"

    async def test_an_append_to_a_closed_or_unknown_stream_keeps_the_whole_batch_out(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation, done = await running(store, owner, key("going")), await ended(store, owner, key("done"), b"12")
            for bad in (Append(done.data_stream, 2, b"x"), Append(10**9, 0, b"x")):
                await raised(ItemRefused, store.commit(owner, [Append(generation.data_stream, 0, b"x"), bad], []))
            assert await store.read(done.data_stream, 0, 10) == Slice(0, b"12", Tail(2, True))
            assert await read_on(store, generation.data_stream) == b""

    async def test_of_two_appends_at_one_position_one_lands(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            stream = generation.data_stream
            await raised(ItemRefused, store.commit(owner, [Append(stream, 0, b"a"), Append(stream, 0, b"bb")], []))
            await store.commit(owner, [Append(stream, 0, b"start")], [])
            rivals = [b"one", b"other"]
            results = await asyncio.gather(
                *(store.commit(owner, [Append(stream, 5, data)], []) for data in rivals), return_exceptions=True
            )
            assert sum(isinstance(result, ItemRefused) for result in results) == 1
            assert await read_on(store, stream) in {b"start" + data for data in rivals}

    async def test_an_empty_commit_writes_nothing(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            assert await store.commit(owner, [], []) == frozenset()

    async def test_settle_gives_the_tails(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            done = await ended(store, owner, key("done"), b"1234")
            await store.commit(owner, [Append(generation.data_stream, 0, b"12")], [])
            assert await store.settle(owner, [generation.data_stream, done.data_stream, 10**9]) == {
                generation.data_stream: Tail(2, False),
                done.data_stream: Tail(4, True),
            }

    async def test_commits_go_on_after_settle(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.commit(owner, [Append(generation.data_stream, 0, b"one ")], [])
            for _ in range(2):
                await store.settle(owner, [generation.data_stream])
            await store.commit(owner, [Append(generation.data_stream, 4, b"two")], [ending(generation, 7)])
            assert await read_on(store, generation.data_stream) == b"one two"

    # Endings

    async def test_an_ending_writes_the_event_and_closes_both_streams(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.commit(owner, [Append(generation.data_stream, 0, b"body")], [])
            end = terminal(4, Code.TRUNCATED, "cut short")
            assert await store.commit(owner, [], [Ending(generation, end, 4)]) == {generation.id}
            stored = end.to_json() + SEPARATOR
            assert await store.read(generation.control_stream, 0, 9999) == Slice(0, stored, Tail(len(stored), True))
            assert await store.read(generation.data_stream, 0, 9999) == Slice(0, b"body", Tail(4, True))
            row = await store.generation(generation.key)
            assert row is not None
            assert (row.state, row.code, row.message) == (State.ERROR, "truncated", "cut short")
            assert (row.head, row.fingerprint) == (HEAD, FINGERPRINT)
            assert row.ended_at is not None
            assert row.ended_at >= row.created_at

    async def test_the_last_bytes_and_the_end_go_into_one_commit(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation, empty = await running(store, owner, key("r1")), await running(store, owner, key("r2"))
            other = await running(store, owner, key("r3"))
            await store.commit(owner, [Append(generation.data_stream, 0, b"body, ")], [])
            appends = [Append(other.data_stream, 0, b"more"), Append(generation.data_stream, 6, b"end")]
            done = await store.commit(owner, appends, [ending(generation, 9), ending(empty, 0)])
            assert done == {generation.id, empty.id}
            assert await store.read(generation.data_stream, 0, 99) == Slice(0, b"body, end", Tail(9, True))
            assert await store.read(empty.data_stream, 0, 99) == Slice(0, b"", Tail(0, True))
            assert await store.read(other.data_stream, 0, 99) == Slice(0, b"more", Tail(4, False))

    async def test_a_second_ending_has_no_effect(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation, other = await running(store, owner), await running(store, owner, key("r2"))
            await store.commit(owner, [], [ending(generation, 0, Code.STALLED)])
            again = [ending(generation, 0, Code.COMPLETE), ending(other, 0, Code.COMPLETE)]
            assert await store.commit(owner, [], again) == {other.id}
            assert [event["code"] for event in await events(store, generation)] == ["stalled"]

    async def test_of_many_concurrent_endings_one_takes_effect(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            results = await asyncio.gather(*(store.commit(owner, [], [ending(generation, 0)]) for _ in range(8)))
            assert sorted(map(len, results)) == [0] * 7 + [1]
            assert len(await events(store, generation)) == 1

    async def test_a_generation_may_end_before_upstreams_verdict(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = (await store.claim(owner, key(), None)).generation
            assert await store.commit(owner, [], [ending(generation, 0, Code.TIMED_OUT)]) == {generation.id}
            row = await store.generation(key())
            assert row is not None
            assert (row.state, row.head) == (State.ERROR, None)

    async def test_every_code_leads_to_its_state(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            for code in Code:
                generation = await running(store, owner, key(code.value))
                await store.commit(owner, [], [ending(generation, 0, code)])
                row = await store.generation(generation.key)
                assert row is not None
                assert (row.state, row.code) == (code.state, code.value)

    async def test_one_owner_cannot_end_what_another_records(self) -> None:
        async with self.opened() as store:
            owner, other = await store.register_owner(), await store.register_owner()
            generation = await running(store, owner)
            assert await store.commit(other, [], [ending(generation, 0)]) == frozenset()
            assert await events(store, generation) == []

    async def test_an_ending_that_misstates_the_final_position_is_refused(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation, other = await running(store, owner), await running(store, owner, key("r2"))
            await store.commit(owner, [Append(generation.data_stream, 0, b"1234")], [])
            more = [Append(generation.data_stream, 4, b"56"), Append(other.data_stream, 0, b"x")]
            await raised(ItemRefused, store.commit(owner, [], [ending(generation, 3)]))
            await raised(ItemRefused, store.commit(owner, more, [ending(generation, 4)]))
            await raised(ItemRefused, store.commit(owner, more, [ending(generation, 7)]))
            assert await store.tails([generation.data_stream, other.data_stream, generation.control_stream]) == {
                generation.data_stream: Tail(4, False),
                other.data_stream: Tail(0, False),
                generation.control_stream: Tail(0, False),
            }
            assert await store.commit(owner, more, [ending(generation, 6)]) == {generation.id}

    async def test_no_message_keeps_a_generation_from_ending(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            end = terminal(0, Code.UPSTREAM_FAILED, "nul \x00, half a character \udce9, \u2603")
            assert await store.commit(owner, [], [Ending(generation, end, 0)]) == {generation.id}
            (event,) = await events(store, generation)
            assert event["message"] == end.detail

    # Upkeep

    async def test_nothing_is_swept_before_its_time(self) -> None:
        async with self.opened() as store:
            generation = await ended(store, await store.register_owner(), key())
            assert await store.sweep() == 0
            assert await read_on(store, generation.data_stream) == b"data"

    async def test_the_sweep_takes_the_data_and_leaves_the_row(self) -> None:
        async with self.opened(Retention(data_seconds=0)) as store:
            owner = await store.register_owner()
            generation, going = await ended(store, owner, key()), await running(store, owner, key("going"))
            await store.commit(owner, [Append(going.data_stream, 0, b"on")], [])
            before = await store.generation(key())
            assert await store.sweep() == 1
            assert await store.sweep() == 0
            for stream in _streams(generation):
                await raised(StreamNotFound, store.read(stream, 0, 100))
            assert await store.tails(_streams(generation)) == {}
            row = await store.generation(key())
            assert row is not None
            assert before is not None
            assert (row.state, row.code, row.ended_at) == (State.DONE, "complete", before.ended_at)
            assert (before.gone, row.gone and row.gone.reason) == (None, GoneReason.RETENTION)
            assert await read_on(store, going.data_stream) == b"on"

    async def test_a_swept_generation_still_guards_its_key(self) -> None:
        async with self.opened(Retention(data_seconds=0)) as store:
            owner = await store.register_owner()
            await ended(store, owner, key())
            await store.sweep()
            claim = await store.claim(owner, key(), FINGERPRINT)
            assert not claim.is_new
            assert claim.generation.gone is not None
            await raised(FingerprintMismatch, store.claim(owner, key(), b"other"))

    async def test_the_row_goes_when_its_own_time_is_over(self) -> None:
        async with self.opened(Retention(data_seconds=0, row_seconds=0)) as store:
            owner = await store.register_owner()
            old = await ended(store, owner, key())
            await until_nothing_to_sweep(store)
            assert await store.generation(key()) is None
            claim = await store.claim(owner, key(), b"other")
            assert claim.is_new
            assert not {*_streams(old)} & {*_streams(claim.generation)}
            assert await read_on(store, claim.generation.data_stream) == b""

    async def test_a_refusal_goes_with_the_data_and_its_key_is_free(self) -> None:
        async with self.opened(Retention(data_seconds=0)) as store:
            owner = await store.register_owner()
            refused = (await store.claim(owner, key(), FINGERPRINT)).generation
            await store.refuse(refused, Refusal(HEAD, b"secret"), FINGERPRINT)
            assert await store.sweep() == 1
            assert await store.generation(key()) is None
            generation = await running(store, owner)
            await store.commit(owner, [Append(generation.data_stream, 0, b"now")], [ending(generation, 3)])
            assert await read_on(store, generation.data_stream) == b"now"
            await raised(GenerationEnded, store.start(refused, HEAD, FINGERPRINT))

    async def test_a_refusal_claimed_anew_is_not_swept(self) -> None:
        async with self.opened(Retention(data_seconds=0)) as store:
            owner = await store.register_owner()
            refused = (await store.claim(owner, key(), FINGERPRINT, Terms(retention_seconds=0))).generation
            await store.refuse(refused, Refusal(HEAD, b""), FINGERPRINT)
            generation = await running(store, owner)
            assert await store.sweep() == 0
            await store.commit(owner, [Append(generation.data_stream, 0, b"now")], [])

    async def test_data_stay_as_long_as_the_claim_says_or_else_the_tenant_or_else_the_store(self) -> None:
        for store_seconds, tenant_seconds, claim_seconds, is_kept in (
            (0, None, None, False),
            (3600, 0, None, False),
            (0, 3600, None, True),
            (3600, 3600, 0, False),
            (0, 0, 3600, True),
        ):
            async with self.opened(Retention(data_seconds=store_seconds)) as store:
                owner = await store.register_owner()
                await store.set_retention("acme", tenant_seconds)
                of = key(f"{store_seconds}-{tenant_seconds}-{claim_seconds}", tenant="acme")
                terms = Terms(retention_seconds=claim_seconds)
                claim = await store.claim(owner, of, FINGERPRINT, terms)
                await store.commit(owner, [], [ending(claim.generation, 0, Code.CANCELLED)])
                await until_nothing_to_sweep(store)
                row = await store.generation(of)
                assert row is not None
                assert (row.gone is None) is is_kept, (store_seconds, tenant_seconds, claim_seconds)

    async def test_a_tenants_retention_is_set_changed_and_taken_back(self) -> None:
        async with self.opened() as store:
            for seconds in (60, 90.5):
                await store.set_retention("acme", seconds)
                assert await store.retentions() == {"acme": seconds}
            await store.set_retention("acme", None)
            assert await store.retentions() == {}

    async def test_a_sweep_takes_no_more_than_its_limit(self) -> None:
        async with self.opened(Retention(data_seconds=0)) as store:
            owner = await store.register_owner()
            for i in range(5):
                await ended(store, owner, key(f"r{i}"))
            assert [await store.sweep(2) for _ in range(4)] == [2, 2, 1, 0]

    async def test_concurrent_sweeps_share_the_work(self) -> None:
        async with self.opened(Retention(data_seconds=0, row_seconds=3600)) as store:
            owner = await store.register_owner()
            generations = [await ended(store, owner, key(f"r{i}")) for i in range(12)]
            assert sum(await asyncio.gather(*(until_nothing_to_sweep(store, 2) for _ in range(4)))) == 12
            assert await store.tails([stream for row in generations for stream in _streams(row)]) == {}

    async def test_merging_changes_no_byte_at_any_offset(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            going = await running(store, owner, key("going"))
            pieces = [b'data: {"delta": "%d"}\n\n' % i for i in range(40)] + [EVERY_BYTE * 3]
            whole = await _append_all(store, owner, generation, pieces)
            await _append_all(store, owner, going, pieces)
            await store.commit(owner, [], [ending(generation, len(whole))])
            await _merge_all(store)
            for cut in [*range(0, len(whole), 7), len(whole)]:
                assert await read_on(store, generation.data_stream, cut) == whole[cut:]
            assert await read_on(store, generation.data_stream, 0, 10) == whole
            assert await store.read(generation.data_stream, len(whole) + 5, 10) == Slice(
                len(whole) + 5, b"", Tail(len(whole), True)
            )
            assert len(await events(store, generation)) == 1
            assert await read_on(store, going.data_stream) == whole
            await store.commit(owner, [Append(going.data_stream, len(whole), b"more")], [])

    async def test_readers_get_whole_bytes_while_streams_are_merged(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            whole = EVERY_BYTE * 4096
            generations = []
            for i in range(4):
                generation = await running(store, owner, key(f"r{i}"))
                pieces = [whole[start : start + 50_000] for start in range(0, len(whole), 50_000)]
                await _append_all(store, owner, generation, pieces)
                await store.commit(owner, [], [ending(generation, len(whole))])
                generations.append(generation)
            merging = asyncio.create_task(_merge_all(store))
            while not merging.done():
                await asyncio.sleep(0)
                for generation in generations:
                    assert await read_on(store, generation.data_stream, 12_345, 300_000) == whole[12_345:]
            await merging

    async def test_merging_and_sweeping_at_once_leave_nothing_behind(self) -> None:
        async with self.opened(Retention(data_seconds=0, row_seconds=0)) as store:
            owner = await store.register_owner()
            generations = [await ended(store, owner, key(f"r{i}"), EVERY_BYTE * 20) for i in range(10)]
            await asyncio.gather(_merge_all(store), until_nothing_to_sweep(store, 3), _merge_all(store))
            await until_nothing_to_sweep(store)
            assert await store.tails([stream for row in generations for stream in _streams(row)]) == {}


def _streams(generation: Generation) -> list[int]:
    return [generation.data_stream, generation.control_stream]


async def _append_all(store: Store, owner: Owner, generation: Generation, pieces: Sequence[bytes]) -> bytes:
    """Append each piece in a commit of its own; return the whole."""
    position = 0
    for piece in pieces:
        await store.commit(owner, [Append(generation.data_stream, position, piece)], [])
        position += len(piece)
    return b"".join(pieces)


async def _merge_all(store: Store) -> None:
    while await store.merge(limit=3):
        pass
