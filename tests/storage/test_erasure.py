"""Deletion on request, held by both stores: what goes, what stays, and that nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from streamkeep.storage import (
    Append,
    Code,
    Erased,
    Erasure,
    ForkPoint,
    Generation,
    GenerationKey,
    GoneReason,
    Link,
    MemoryStore,
    Owner,
    Producer,
    Refusal,
    Retention,
    SessionKey,
    State,
    Store,
    StreamAppend,
    StreamChange,
    StreamConfig,
    StreamExists,
    StreamKey,
    StreamNotFound,
    SubscriptionKey,
    SubscriptionNotFound,
    Tail,
)
from streamkeep.storage.contract import (
    FINGERPRINT,
    HEAD,
    Ears,
    ended,
    ending,
    key,
    raised,
    read_on,
    running,
    until_nothing_to_sweep,
)
from streamkeep.storage.contract_streams import TEXT, at, content, fork, made
from streamkeep.storage.postgres import PostgresStore
from tests.postgres import connected, opened, until_waiting
from tests.storage.test_subscriptions import CONFIG


@pytest.fixture(params=["memory", "postgres"])
def unopened(request: pytest.FixtureRequest) -> Store:
    return MemoryStore() if request.param == "memory" else PostgresStore(request.getfixturevalue("database_url"))


@pytest.fixture
async def store(unopened: Store) -> AsyncIterator[Store]:
    await unopened.open()
    yield unopened
    await unopened.close()


@pytest.fixture
async def owner(store: Store) -> Owner:
    return await store.register_owner()


async def erased(store: Store, what: Erasure, limit: int = 1000) -> None:
    """Erase until nothing remains."""
    for _ in range(100):
        if not (await store.erase(what, limit)).remaining:
            return
    raise AssertionError("there is something left after 100 batches")


async def told(store: Store) -> set[str]:
    """The streams of whose deletion the registries have still to tell."""
    changes: list[StreamChange] = []

    def encode(change: StreamChange) -> bytes:
        changes.append(change)
        return b"{}\x1e"

    await store.write_registries(encode)
    return {change.key.path for change in changes if change.is_deletion}


async def is_readable(store: Store, generations: Sequence[Generation]) -> set[bool]:
    streams = [stream for row in generations for stream in (row.data_stream, row.control_stream)]
    return {stream in await store.tails(streams) for stream in streams}


async def test_a_deleted_generation_cannot_be_read_and_still_guards_its_key(store: Store, owner: Owner) -> None:
    ears = Ears()
    store.listen(ears)
    gone, other = await ended(store, owner, key(), b"data"), await ended(store, owner, key("other"), b"more")
    assert await store.erase(Erasure.of(key())) == Erased(1, 0)
    assert ears.has_heard_of(gone.data_stream)
    for stream in (gone.data_stream, gone.control_stream):
        await raised(StreamNotFound, store.read(stream, 0, 9))
    await raised(StreamNotFound, store.stream(at(key().data_path)))
    row = await store.generation(key())
    assert row is not None
    assert row.gone is not None
    assert (row.gone.reason, row.state, row.head, row.message) == (GoneReason.DELETED, State.DONE, None, None)
    claim = await store.claim(owner, key(), FINGERPRINT)
    assert (claim.is_new, claim.generation) == (False, row)
    assert await read_on(store, other.data_stream) == b"more"
    assert await store.erase(Erasure.of(key())) == Erased(0, 0)


async def test_nothing_is_found_where_nothing_is(store: Store) -> None:
    for what in (Erasure("acme"), Erasure("acme", "s"), Erasure("acme", "s", "r")):
        assert await store.erase(what) == Erased(0, 0)


async def test_a_running_generation_is_told_to_stop_and_goes_when_it_has_ended(store: Store, owner: Owner) -> None:
    ears = Ears()
    store.listen(ears)
    going = await running(store, owner)
    await store.commit(owner, [Append(going.data_stream, 0, b"some")], [])
    assert await store.erase(Erasure.of(key())) == Erased(1, 2)
    assert ears.cancelled == [going.id]
    assert await store.cancel_requests(owner) == [going.id]
    assert await is_readable(store, [going]) == {False}
    # Its owner does not know yet: it may write, ask where it stands, and end.
    await store.commit(owner, [Append(going.data_stream, 4, b" more")], [])
    assert (await store.settle(owner, [going.data_stream])) == {going.data_stream: Tail(9, False)}
    assert await store.commit(owner, [], [ending(going, 9, Code.CANCELLED)]) == {going.id}
    assert await is_readable(store, [going]) == {False}
    await until_nothing_to_sweep(store)
    assert await store.erase(Erasure.of(key())) == Erased(0, 0)
    row = await store.generation(key())
    assert row is not None
    assert (row.state, row.head, row.gone and row.gone.reason) == (State.CANCELLED, None, GoneReason.DELETED)


async def test_a_dead_owners_deleted_generation_is_recovered_and_goes(store: Store, owner: Owner) -> None:
    going = await running(store, owner)
    await store.erase(Erasure.of(key()))
    (lease,) = await store.leases()
    assert await store.recover(lease) == 1
    await until_nothing_to_sweep(store)
    assert await store.erase(Erasure.of(key())) == Erased(0, 0)
    assert await is_readable(store, [going]) == {False}


async def test_a_session_goes_and_the_others_stay(store: Store, owner: Owner) -> None:
    gone = [await ended(store, owner, key(f"r{i}", "s1"), b"gone") for i in range(5)]
    kept = [await ended(store, owner, of, b"kept") for of in (key("r1", "s2"), key("r1", "s"), key("r1", "s1", "acme"))]
    assert (await store.erase(Erasure("default", "s1"), limit=2)).remaining == 6
    await erased(store, Erasure("default", "s1"), limit=2)
    assert await is_readable(store, gone) == {False}
    assert await is_readable(store, kept) == {True}
    assert (await store.claim(owner, key("new", "s1"), FINGERPRINT)).is_new


async def test_a_refusal_goes_and_its_key_is_free(store: Store, owner: Owner) -> None:
    refused = (await store.claim(owner, key(), FINGERPRINT)).generation
    await store.refuse(refused, Refusal(HEAD, b"secret"), FINGERPRINT)
    await erased(store, Erasure.of(key()))
    assert await store.generation(key()) is None
    assert (await store.claim(owner, key(), b"other")).is_new


async def test_a_refusal_that_comes_after_the_deletion_goes_too(store: Store, owner: Owner) -> None:
    creating = (await store.claim(owner, key(), FINGERPRINT)).generation
    await store.erase(Erasure.of(key()))
    await store.refuse(creating, Refusal(HEAD, b"secret"), FINGERPRINT)
    assert not (await store.claim(owner, key(), FINGERPRINT)).is_new
    await until_nothing_to_sweep(store)
    assert await store.generation(key()) is None


async def test_forks_go_with_what_they_were_forked_from(store: Store, owner: Owner) -> None:
    generation = await ended(store, owner, key(), b"data")
    await fork(store, "fork", key().data_path, 2)
    await fork(store, "fork/of it", "fork")
    await fork(store, "events", key().control_path)
    await made(store, "own", b"kept")
    await erased(store, Erasure.of(key()))
    assert await told(store) == {"fork", "fork/of it", "events"}
    for path in ("fork", "fork/of it", "events"):
        await raised(StreamNotFound, store.stream(at(path)))
    assert await content(store, "own") == b"kept"
    assert await is_readable(store, [generation]) == {False}
    await made(store, "fork", b"anew")
    await raised(StreamNotFound, fork(store, "late", key().data_path))


async def test_a_stream_that_is_going_cannot_be_forked(store: Store, owner: Owner) -> None:
    await running(store, owner)
    await store.erase(Erasure.of(key()))
    with pytest.raises((StreamExists, StreamNotFound)):
        await fork(store, "late", key().data_path)


async def test_forks_of_what_retention_took_go_too(store: Store, owner: Owner) -> None:
    await store.set_retention("default", 0)
    await ended(store, owner, key(), b"data")
    await fork(store, "fork", key().data_path)
    await until_nothing_to_sweep(store)
    if isinstance(store, PostgresStore):  # In memory a fork holds a copy, and knows its source no more.
        await erased(store, Erasure.of(key()))
        await raised(StreamNotFound, store.stream(at("fork")))


async def test_a_tenant_goes_with_its_streams_producers_and_subscriptions(store: Store, owner: Owner) -> None:
    generation = await ended(store, owner, key(tenant="acme"), b"gone")
    kept = await ended(store, owner, key(), b"kept")
    for tenant in ("acme", "default"):
        for i in range(5):
            await store.create_stream(StreamKey(tenant, f"s{i}"), TEXT, b"bytes")
        source = ForkPoint(StreamKey(tenant, "s0"), 2)
        await store.create_stream(StreamKey(tenant, "fork"), StreamConfig(fork=source))
        append = StreamAppend(StreamKey(tenant, "s1"), b"more", "text/plain", producer=Producer("p", 0, 0))
        await store.append([append])
        await store.subscriptions.create(
            SubscriptionKey(tenant, "sub"), CONFIG, b"hash", "http://here", [Link("s1", True, False)]
        )
    await erased(store, Erasure("acme"), limit=2)
    assert await told(store) == set()
    assert await store.list_streams("acme") == []
    assert await is_readable(store, [generation]) == {False}
    await raised(SubscriptionNotFound, store.subscriptions.subscription(SubscriptionKey("acme", "sub")))
    assert await is_readable(store, [kept]) == {True}
    assert {found.key.path for found in await store.list_streams("default")} >= {"s0", "s1", "s2", "s3", "s4", "fork"}
    assert await content(store, "fork") == b"by"
    assert await store.subscriptions.links(SubscriptionKey("default", "sub"))
    append = StreamAppend(StreamKey("acme", "s1"), b"anew", "text/plain", producer=Producer("p", 0, 0))
    await store.create_stream(StreamKey("acme", "s1"), TEXT)
    (appended,) = await store.append([append])
    assert not isinstance(appended, Exception)
    assert not appended.is_duplicate


async def test_a_deleted_row_goes_when_its_own_time_is_over(database_url: str) -> None:
    for store in (
        MemoryStore(Retention(row_seconds=0)),
        PostgresStore(database_url, retention=Retention(row_seconds=0)),
    ):
        await store.open()
        owner = await store.register_owner()
        await ended(store, owner, key())
        live = await running(store, owner, key("live"))
        await erased(store, Erasure.of(key()))
        await store.erase(Erasure.of(key("live")))
        await until_nothing_to_sweep(store)
        assert await store.generation(key()) is None
        assert await store.generation(key("live")) is not None
        await store.commit(owner, [], [ending(live, 0, Code.CANCELLED)])
        await until_nothing_to_sweep(store)
        assert await store.generation(key("live")) is None
        await store.close()


async def test_no_row_of_what_was_erased_is_left_in_the_database(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as connection:
        owner = await store.register_owner()
        of = GenerationKey("acme", "s", "r")
        generation = await running(store, owner, of)
        await store.commit(owner, [Append(generation.data_stream, 0, b"secret")], [ending(generation, 6)])
        producer = Producer("p", 0, 0)
        await store.create_stream(StreamKey("acme", "x"), TEXT, b"secret")
        await store.append([StreamAppend(StreamKey("acme", "x"), b"secret", "text/plain", producer=producer)])
        await store.sessions.create(SessionKey("acme", "s"), agents=b"secret")
        await erased(store, Erasure("acme"))
        for table in ("chunks", "streams", "producers", "subscriptions", "sessions", "stream_changes"):
            assert await connection.fetchval(f"select count(*) from streamkeep.{table}") == 0
        row = await connection.fetchrow("select head, refusal_body, message from streamkeep.generations")
        assert row is not None
        assert list(row) == [None, None, None]


async def test_an_erasure_that_broke_off_is_finished_by_the_sweep(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as connection:
        owner = await store.register_owner()
        generation = await ended(store, owner, key(), b"data")
        await fork(store, "fork", key().data_path)
        async with connection.transaction():
            await connection.execute("lock table streamkeep.chunks in share row exclusive mode")
            dying = asyncio.create_task(store.erase(Erasure.of(key())))
            await until_waiting(connection)
            dying.cancel()
            await asyncio.wait([dying])
        assert await is_readable(store, [generation]) == {False}
        assert await connection.fetchval("select count(*) from streamkeep.chunks") > 0
        await until_nothing_to_sweep(store)
        assert await connection.fetchval("select count(*) from streamkeep.chunks") == 0
        assert await connection.fetchval("select count(*) from streamkeep.streams") == 0
