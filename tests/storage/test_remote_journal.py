"""The journal on another server: restarts, several processes, lost answers, outages, and what becomes of its past."""

from __future__ import annotations

import asyncio
import secrets
import sys
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any

import httpx
import pytest

from streamkeep.storage import (
    DEFAULT_TENANT,
    REGISTRY,
    ApiKey,
    Append,
    Code,
    Erasure,
    Expiry,
    ForkPoint,
    Link,
    MemoryStore,
    Owner,
    OwnerFenced,
    Refusal,
    Retention,
    SessionKey,
    StoreError,
    StoreUnavailable,
    StreamConfig,
    StreamKey,
    Tail,
)
from streamkeep.storage.contract import FINGERPRINT, HEAD, Ears, ended, ending, events, key, raised, read_on, running
from streamkeep.storage.contract_streams import TEXT, at, content, one, write
from streamkeep.storage.pauses import Pauses
from streamkeep.storage.remote import RemoteStore
from streamkeep.storage.remote._replica import Replica
from streamkeep.storage.rules import subscriptions as rules
from tests.postgres import Relay, until
from tests.serving import Proxy, serving
from tests.storage.test_subscriptions import CONFIG, KEY


@pytest.fixture(scope="module")
async def other() -> AsyncIterator[Proxy]:
    async with serving(MemoryStore()) as served:
        yield served


@pytest.fixture
def url(other: Proxy) -> str:
    """Where no stream is yet."""
    return f"{other.url}/v1/stream/{secrets.token_hex(8)}"


@asynccontextmanager
async def opened(url: str, *, ears: Ears | None = None, **options: Any) -> AsyncIterator[RemoteStore]:
    store = RemoteStore(url, **options)
    await store.open()
    if ears is not None:
        store.listen(ears)
    try:
        yield store
    finally:
        await store.close()


async def paths(other: Proxy, url: str) -> list[str]:
    """The streams of the other server below a URL."""
    prefix = httpx.URL(url).path.removeprefix("/v1/stream/")
    found = await other.service.store.list_streams(DEFAULT_TENANT, prefix=prefix)
    return [info.key.path.removeprefix(prefix) for info in found]


async def fill(store: RemoteStore) -> Owner:
    """Something of everything that a store holds."""
    owner = await store.register_owner()
    await ended(store, owner, key("done"), bytes(range(256)) * 3000)
    generation = await running(store, owner, key("going"))
    await store.commit(owner, [Append(generation.data_stream, 0, b"so far")], [])
    refused = (await store.claim(owner, key("refused"), None)).generation
    await store.refuse(refused, Refusal(HEAD, b"\xffno"), FINGERPRINT)
    await store.request_cancel(key("going"))
    await store.create_stream(at("a"), StreamConfig("text/plain", Expiry(3600)), b"shared")
    await store.create_stream(at("f"), StreamConfig(fork=ForkPoint(at("a"), 3)))
    await one(store, write("a", b"!", producer=("p", 1, 0), sequence="5"))
    await one(store, write("f", b"own", producer=("p", 4, 0), is_close=True))
    await store.delete_stream(at("a"))
    await store.create_stream(at("s"), StreamConfig("application/json", schema='{"type":"object"}'))
    await store.set_retention("t", 7.5)
    await store.keys.create(ApiKey("k1", "t", b"digest", datetime.now(UTC), upstreams=("openai",)))
    await store.keys.rotate_signing_key(b"second", is_only=True)
    await store.note_readers("here", {generation.id: 1e9})
    session = SessionKey("t", "chat")
    await store.sessions.create(session, name="a name", agents=b"[agents]")
    await store.sessions.create(SessionKey("t", "quiet"))
    await store.sessions.mark_due(session)
    await store.sessions.claim_due(owner)
    link = Link("b", is_explicit=True, is_glob=False, stream_id=7, acked=1, tail=2)
    await store.subscriptions.create(KEY, CONFIG, rules.config_hash(CONFIG), "http://here", [link])
    return owner


async def seen(store: RemoteStore, owner: Owner) -> list[object]:
    """All that can be asked about what `fill` made."""
    done, going, refused = [await store.generation(key(name)) for name in ("done", "going", "refused")]
    assert done is not None
    assert going is not None
    return [
        *(done, going, refused, await store.leases(), await store.cancel_requests(owner), await store.signing_key()),
        *(await read_on(store, done.data_stream), await events(store, done), await read_on(store, going.data_stream)),
        *(await content(store, "f"), await store.stream(at("f")), await store.list_streams(DEFAULT_TENANT)),
        await store.schema((await store.stream(at("s"))).id),
        *(await store.retentions(), await store.keys.all(), await store.keys.signing_keys()),
        *(await store.sessions.page("t"), await store.sessions.agents(SessionKey("t", "chat"))),
        *(await store.sessions.held(owner), await store.sessions.claim_due(owner)),
        *(await store.subscriptions.subscription(KEY), await store.subscriptions.links(KEY)),
        await one(store, write("f", producer=("p", 4, 0), is_close=True)),
        str(await raised(Exception, store.stream(at("a")))),
        set(await store.readerless_seconds([done.id, going.id])) == {going.id},
    ]


# Restarts and several processes


async def test_the_next_process_finds_everything(url: str) -> None:
    async with opened(url) as store:
        owner = await fill(store)
        before = await seen(store, owner)
    async with opened(url) as store:
        assert await seen(store, owner) == before


async def test_of_concurrent_claims_over_processes_one_is_new(url: str) -> None:
    async with opened(url) as one, opened(url) as two, opened(url) as three:
        owners = [(store, await store.register_owner()) for store in (one, two, three)]
        claims = await asyncio.gather(
            *(store.claim(owner, key(), FINGERPRINT) for store, owner in owners for _ in range(10))
        )
        assert [claim.is_new for claim in claims].count(True) == 1
        assert len({claim.generation.id for claim in claims}) == 1


async def test_an_acknowledged_write_is_read_at_once_in_another_process(url: str) -> None:
    async with opened(url) as one, opened(url) as two:
        owner = await one.register_owner()
        generation = await running(one, owner)
        for position in range(20):
            await one.commit(owner, [Append(generation.data_stream, position, b"x")], [])
            assert (await two.read(generation.data_stream, 0, 99)).data == b"x" * (position + 1)


async def test_other_processes_hear_of_appends_endings_and_cancels(url: str) -> None:
    mine, theirs = Ears(), Ears()
    async with opened(url, ears=mine) as one, opened(url, ears=theirs) as two:
        owner = await one.register_owner()
        generation = await running(one, owner)
        await until(lambda: theirs.has_heard_of(generation.data_stream))
        theirs.changed.clear()
        await one.commit(owner, [Append(generation.data_stream, 0, b"x")], [])
        await until(lambda: theirs.has_heard_of(generation.data_stream))
        assert not mine.has_heard_of(generation.data_stream)
        await two.request_cancel(generation.key)
        await until(lambda: mine.cancelled == [generation.id])
        await one.commit(owner, [], [ending(generation, 1, Code.CANCELLED)])
        await until(lambda: theirs.has_heard_of(generation.control_stream))


async def test_a_recovered_owner_is_fenced_in_its_own_process(url: str) -> None:
    async with opened(url) as one, opened(url) as two:
        owner = await one.register_owner()
        generation = await running(one, owner)
        (lease,) = await two.leases()
        assert await two.recover(lease) == 1
        await raised(OwnerFenced, one.commit(owner, [Append(generation.data_stream, 0, b"late")], []))
        assert [event["code"] for event in await events(one, generation)] == ["owner_lost"]


# Lost answers and outages


async def test_an_append_whose_answer_is_lost_is_stored_once(url: str) -> None:
    async with Relay.to(url) as relay, opened(_through(url, relay)) as store:
        await store.create_stream(at("a"), TEXT)
        for turn in range(3):
            relay.hold()
            writing = asyncio.create_task(one(store, write("a", b"%d" % turn)))
            await until(lambda: relay.held_bytes)
            # What was sent arrives; what is answered does not. It is sent again over another connection.
            relay.cut()
            relay.release()
            await writing
        assert await content(store, "a") == b"012"


async def test_what_was_unknown_is_known_once_the_owner_has_settled(url: str) -> None:
    async with Relay.to(url) as relay, opened(_through(url, relay), deadline_seconds=2.0) as store:
        owner = await store.register_owner()
        generation = await running(store, owner)
        stream = generation.data_stream
        relay.hold()
        await asyncio.gather(
            raised(StoreUnavailable, store.commit(owner, [Append(stream, 0, b"unknown")], [])),
            raised(StoreUnavailable, store.read(stream, 0, 9)),
            raised(StoreUnavailable, store.ping()),
        )
        # What was held goes on its way now, at the same time as what comes next.
        relay.release()
        async with asyncio.timeout(20):
            while True:
                try:
                    tail = (await store.settle(owner, [stream]))[stream]
                    break
                except StoreUnavailable:
                    continue
        assert tail in (Tail(0, False), Tail(7, False))
        await store.commit(owner, [Append(stream, tail.position, b", known")], [])
        assert await read_on(store, stream) == b"unknown"[: tail.position] + b", known"


async def test_a_server_that_cannot_be_reached_fails_the_start_in_time(other: Proxy) -> None:
    async with asyncio.timeout(20):
        await raised(StoreUnavailable, RemoteStore("http://127.0.0.1:9/v1/stream/x", deadline_seconds=0.3).open())
        await raised(StoreUnavailable, RemoteStore(f"{other.url}/health", deadline_seconds=0.3).open())


async def test_the_token_is_sent_and_never_shown() -> None:
    sent: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):  # The deadline may close a connection before it asked anything.
            sent.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = RemoteStore(f"http://127.0.0.1:{port}/v1/stream/x", token="s3cret", deadline_seconds=2.0)
        error = await raised(StoreUnavailable, store.open())
        assert b"authorization: bearer s3cret" in sent[0].lower()
        assert "s3cret" not in f"{store!r} {error!r} {error.__cause__!r}"


async def test_what_nobody_of_ours_has_written_stops_a_process_and_is_not_passed_over(
    other: Proxy, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(url) as store:
        journal = httpx.URL(url).path + f"/journal/{0:016d}"
        await other.client.post(journal, content=b"[1]\n", headers={"Content-Type": "application/octet-stream"})
        await until(lambda: "streamkeep-journal stopped" in caplog.text)
        for call in (store.ping(), store.register_owner(), store.leases()):
            await raised(StoreUnavailable, call)
    await raised(StoreError, RemoteStore(url).open())


# Its past


async def test_a_long_journal_becomes_a_snapshot_and_nothing_is_lost(other: Proxy, url: str) -> None:
    async with opened(url, roll_bytes=1000) as store:
        owner = await fill(store)
        before = await seen(store, owner)
        await store.merge()
        assert await seen(store, owner) == before
        assert len(await paths(other, url)) == 4, "the index, two journals, a snapshot"
    async with opened(url) as store:
        assert await seen(store, owner) == before
        assert await store.write_registries(lambda change: change.key.path.encode()) != []
        assert await content(store, REGISTRY) == b"afas"
        assert await store.write_registries(lambda change: b"again") == []
        await one(store, write("f", producer=("p", 4, 0), is_close=True))
        going = await store.generation(key("going"))
        assert going is not None
        await store.commit(owner, [Append(going.data_stream, 6, b", and on")], [])
        assert await read_on(store, going.data_stream) == b"so far, and on"


async def test_a_snapshot_is_read_with_pauses(url: str) -> None:
    async with opened(url, roll_bytes=1000) as store:
        await fill(store)
        await store.merge()
        await store.ping()
    records, pauses = 0, 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal records, pauses
        records += event == "call" and frame.f_code is Replica.restore.__code__
        pauses += event == "call" and frame.f_code is Pauses.take.__code__

    sys.setprofile(profile)
    try:
        async with opened(url):
            assert 0 < records <= pauses
    finally:
        sys.setprofile(None)


def test_a_snapshot_holds_all_that_the_memory_store_holds() -> None:
    """What is added to those must be added to the snapshot, and then here."""
    store = MemoryStore()
    assert vars(store).keys() - {"_retention", "_listeners", "_paths", "subscriptions", "sessions", "keys"} == {
        *("_streams", "_generations", "_retentions", "_audiences", "_beats", "_signing_key", "_changes", "_last_id")
    }
    assert vars(store.subscriptions).keys() - {"_now"} == {"_rows", "_generations", "_keys", "_next_round_at"}
    assert vars(store.sessions).keys() - {"_now", "_next_id", "_check"} == {"_rows"}
    assert vars(store.keys).keys() - {"_now"} == {"_keys", "_signing_keys"}


async def test_processes_write_on_while_journals_are_replaced(other: Proxy, url: str) -> None:
    turns = 60
    async with (
        opened(url, roll_bytes=2000) as one_store,
        opened(url, roll_bytes=2000) as two_store,
        opened(url, roll_bytes=2000) as three_store,
    ):
        stores = [one_store, two_store, three_store]
        await one_store.create_stream(at("all"), TEXT)

        async def record(store: RemoteStore, name: str) -> None:
            owner = await store.register_owner()
            generation = await running(store, owner, key(name))
            for turn in range(turns):
                await store.commit(owner, [Append(generation.data_stream, turn * 4, b"%04d" % turn)], [])
                await one(store, write("all", b"x", producer=(name, 0, turn)))
                if turn % 10 == 9:
                    await store.merge()
            await store.commit(owner, [], [ending(generation, turns * 4)])

        await asyncio.gather(*(record(store, f"r{number}") for number, store in enumerate(stores)))
        whole = b"".join(b"%04d" % turn for turn in range(turns))
        for store in stores:
            for number in range(3):
                row = await store.generation(key(f"r{number}"))
                assert row is not None
                assert await read_on(store, row.data_stream) == whole
                assert len(await events(store, row)) == 1
            assert await content(store, "all") == b"x" * 3 * turns
    rolled = [path for path in await paths(other, url) if path.startswith("/journal/")]
    assert len(rolled) == 2
    assert int(rolled[-1].removeprefix("/journal/")) >= 3


async def test_what_was_erased_leaves_the_server_with_the_journals_of_its_time(other: Proxy, url: str) -> None:
    secret = b64encode(b"a secret in a stream")
    async with opened(url, roll_seconds=0.0) as store:
        await store.create_stream(at("a"), TEXT, b64decode(secret))

        async def is_there() -> bool:
            prefix = httpx.URL(url).path.removeprefix("/v1/stream/")
            found = [await content(other.service.store, prefix + path) for path in await paths(other, url)]
            return any(secret in data for data in found)

        assert await is_there()
        await store.merge()
        await store.erase(Erasure(DEFAULT_TENANT))
        assert await is_there()
        for _ in range(2):
            await store.merge()
            await store.set_retention("t", 1.0)
        assert not await is_there()


async def test_a_process_that_was_away_for_journals_starts_over(other: Proxy, url: str) -> None:
    ears = Ears()
    async with (
        Relay.to(url) as relay,
        opened(url, roll_bytes=100) as store,
        opened(_through(url, relay), ears=ears, deadline_seconds=2.0) as lagging,
    ):
        owner = await lagging.register_owner()
        relay.hold()
        relay.cut()
        for turn in range(3):
            await store.create_stream(at(f"a{turn}"), TEXT, b"x" * 1000)
            await store.merge()
            await store.ping()
        assert len([path for path in await paths(other, url) if path.startswith("/journal/")]) == 2
        relay.release()
        async with asyncio.timeout(20):
            while True:
                try:
                    await lagging.renew(owner)
                    break
                except StoreUnavailable:
                    continue
        assert await content(lagging, "a2") == b"x" * 1000
        assert None in ears.changed, "whatever happened meanwhile was not told one by one"


async def test_a_sweep_is_written_down_only_when_there_is_something_to_sweep(other: Proxy, url: str) -> None:
    async with opened(url, retention=Retention(data_seconds=0)) as store:
        owner = await store.register_owner()
        await store.ping()
        journal = StreamKey(DEFAULT_TENANT, httpx.URL(url).path.removeprefix("/v1/stream/") + f"/journal/{0:016d}")
        before = await other.service.store.stream(journal)
        assert await store.sweep() == 0
        assert await other.service.store.stream(journal) == before
        await ended(store, owner, key())
        assert await store.sweep() == 1


def _through(url: str, relay: Relay) -> str:
    port = httpx.URL(relay.url).port
    return str(httpx.URL(url).copy_with(port=port))
