"""Encryption at rest: what the database holds, who can read it, and what is left without a key."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random

import pytest

from streamkeep.storage import (
    Append,
    Code,
    Ending,
    Erasure,
    ForkPoint,
    Generation,
    GenerationKey,
    KeyUnavailable,
    Owner,
    Producer,
    Refusal,
    SessionKey,
    Store,
    StoreError,
    StreamAppend,
    StreamConfig,
    StreamKey,
)
from streamkeep.storage.contract import (
    EVERY_BYTE,
    FINGERPRINT,
    HEAD,
    ending,
    events,
    raised,
    read_on,
    running,
    terminal,
)
from streamkeep.storage.encryption import InvalidKeyring, Key, Keyring, Sealer
from streamkeep.storage.postgres._segments import SEALED, SEGMENT_BYTES, Codec, Segment
from tests.postgres import Connection, connected, opened, until

OLD, NEW, OTHER = (Key.of(bytes([i]) * 32) for i in range(3))
KEYS = Keyring({"acme": [OLD]})
SECRET = b"the secret " * 50
MESSAGES = StreamConfig("application/json")


def key(request_id: str = "r1", tenant: str = "acme") -> GenerationKey:
    return GenerationKey(tenant, "s1", request_id)


async def recorded(store: Store, owner: Owner, of: GenerationKey, data: bytes = SECRET, step: int = 7) -> Generation:
    """A generation that ended, its data written in steps."""
    generation = await running(store, owner, of)
    for position in range(0, len(data), step):
        piece = Append(generation.data_stream, position, data[position : position + step], of.tenant)
        await store.commit(owner, [piece], [])
    await store.commit(owner, [], [ending(generation, len(data))])
    return generation


async def merged(store: Store) -> None:
    while await store.merge():
        pass


async def encodings(connection: Connection, stream_id: int) -> set[int]:
    rows = await connection.fetch("select encoding from streamkeep.chunks where stream_id = $1", stream_id)
    return {row["encoding"] for row in rows}


async def dump(connection: Connection) -> bytes:
    """All that the tables hold of what came from upstream or from writers."""
    rows = await connection.fetch("select data from streamkeep.chunks order by stream_id, position")
    rows += await connection.fetch("select agents as data from streamkeep.sessions order by number")
    more = await connection.fetch("select refusal_body, message from streamkeep.generations")
    return b"".join(row["data"] for row in rows) + repr([tuple(row) for row in more]).encode()


async def test_the_database_holds_no_byte_of_a_tenant_with_a_key_and_readers_get_all(database_url: str) -> None:
    async with opened(database_url, keyring=KEYS) as store, connected(database_url) as connection:
        owner = await store.register_owner()
        generation = await recorded(store, owner, key())
        failed = await running(store, owner, key("failed"))
        end = terminal(0, Code.UPSTREAM_FAILED, "it said the secret")
        await store.commit(owner, [], [Ending(failed, end, 0)])
        refused = (await store.claim(owner, key("refused"), FINGERPRINT)).generation
        await store.refuse(refused, Refusal(HEAD, b"the secret refusal"), FINGERPRINT)
        await store.create_stream(StreamKey("acme", "m"), MESSAGES, b'"the secret 1"\x1e')
        append = StreamAppend(StreamKey("acme", "m"), b'"the secret 2"\x1e', "application/json")
        await store.append([append])
        for _ in range(2):
            assert b"the secret" not in await dump(connection)
            for cut in (0, 1, 7, 8, 100, len(SECRET) - 1, len(SECRET)):
                assert await read_on(store, generation.data_stream, cut, 13) == SECRET[cut:]
            (event,) = await events(store, failed)
            assert event["message"] == "it said the secret"
            found = await store.generation(key("refused"))
            assert found is not None
            assert found.refusal == Refusal(HEAD, b"the secret refusal")
            stream = await store.stream(StreamKey("acme", "m"))
            assert await read_on(store, stream.id) == b'"the secret 1"\x1e"the secret 2"\x1e'
            await merged(store)
        assert await encodings(connection, generation.data_stream) == {SEALED | 1}


async def test_a_tenant_without_a_key_is_stored_as_it_comes(database_url: str) -> None:
    async with opened(database_url, keyring=KEYS) as store, connected(database_url) as connection:
        owner = await store.register_owner()
        generation = await recorded(store, owner, key(tenant="other"))
        assert await encodings(connection, generation.data_stream) == {0}
        assert await read_on(store, generation.data_stream) == SECRET


@pytest.mark.parametrize("is_random", [False, True])
async def test_large_writes_are_sealed_in_pieces_and_read_at_every_place(database_url: str, is_random: bool) -> None:
    size = 2 * SEGMENT_BYTES + 5
    whole = random.Random(1).randbytes(size) if is_random else b"ab" * (size // 2) + b"c"
    async with opened(database_url, keyring=KEYS) as store, connected(database_url) as connection:
        owner = await store.register_owner()
        generation = await recorded(store, owner, key(), whole, step=size)
        assert await connection.fetchval("select max(size) from streamkeep.chunks") == SEGMENT_BYTES
        created = await store.create_stream(StreamKey("acme", "big"), StreamConfig("text/plain"), whole)
        for _ in range(2):
            for stream_id in (generation.data_stream, created.stream.id):
                for cut in (0, 1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, size - 1):
                    assert (await store.read(stream_id, cut, 1000)).data == whole[cut : cut + 1000]
                assert await read_on(store, stream_id, 0, 100_000) == whole
            await merged(store)


async def test_forks_read_what_their_sources_hold(database_url: str) -> None:
    async with opened(database_url, keyring=KEYS) as store:
        owner = await store.register_owner()
        await recorded(store, owner, key(), EVERY_BYTE)
        config = StreamConfig(fork=ForkPoint(StreamKey("acme", key().data_path), 100))
        fork = await store.create_stream(StreamKey("acme", "fork"), config, b"own")
        nested = StreamConfig(fork=ForkPoint(StreamKey("acme", "fork"), 102))
        inner = await store.create_stream(StreamKey("acme", "inner"), nested)
        assert await read_on(store, fork.stream.id, 0, 9) == EVERY_BYTE[:100] + b"own"
        assert await read_on(store, inner.stream.id, 0, 9) == EVERY_BYTE[:100] + b"ow"


async def test_producers_are_told_apart_as_ever(database_url: str) -> None:
    async with opened(database_url, keyring=KEYS) as store:
        of = StreamKey("acme", "p")
        await store.create_stream(of, StreamConfig("text/plain"))
        append = StreamAppend(of, b"once", "text/plain", producer=Producer("p", 0, 0))
        results = [await store.append([append]) for _ in range(2)]
        assert [not isinstance(one, StoreError) and one.is_duplicate for (one,) in results] == [False, True]
        assert await read_on(store, (await store.stream(of)).id) == b"once"


async def test_a_stream_may_begin_without_a_key_and_go_on_with_one_and_with_the_next(database_url: str) -> None:
    of = StreamKey("acme", "s")
    pieces = [b"plain ", b"old ", b"new"]
    rings = [Keyring(), Keyring({"acme": [OLD]}), Keyring({"acme": [NEW, OLD]})]
    for number, (ring, piece) in enumerate(zip(rings, pieces, strict=True)):
        async with opened(database_url, keyring=ring) as store:
            await store.create_stream(of, StreamConfig("text/plain"))
            await store.append([StreamAppend(of, piece, "text/plain", is_close=piece is pieces[-1])])
            stream = await store.stream(of)
            assert await read_on(store, stream.id) == b"".join(pieces[: number + 1])
    async with opened(database_url, keyring=rings[-1]) as store:
        await merged(store)
    # What was merged has the newest key: the older one is needed no more.
    async with opened(database_url, keyring=Keyring({"acme": [NEW]})) as store:
        assert await read_on(store, stream.id) == b"".join(pieces)


async def test_everything_closed_can_be_given_the_newest_key_and_what_was_plain_too(database_url: str) -> None:
    whole = SECRET * 2000
    async with opened(database_url) as store:
        plain = await recorded(store, await store.register_owner(), key("plain"), whole, step=100_000)
        await merged(store)
    async with opened(database_url, keyring=KEYS) as store:
        old = await recorded(store, await store.register_owner(), key("old"), whole, step=100_000)
        await merged(store)
    both = (plain, old)
    async with opened(database_url, keyring=Keyring({"acme": [NEW, OLD]})) as store, connected(database_url) as looker:
        assert await store.rekey("acme") == 4
        assert await store.rekey("other") == 0
        await merged(store)
        for generation in both:
            for stream_id in (generation.data_stream, generation.control_stream):
                assert all(encoding & SEALED for encoding in await encodings(looker, stream_id))
    async with opened(database_url, keyring=Keyring({"acme": [NEW]})) as store:
        for generation in both:
            assert await read_on(store, generation.data_stream, 0, 300_000) == whole
            assert len(await events(store, generation)) == 1


async def test_without_its_key_a_stream_cannot_be_read_and_others_can(database_url: str) -> None:
    keys = Keyring({"acme": [OLD], "other": [OTHER]})
    async with opened(database_url, keyring=keys, merge_after_seconds=3600) as store:
        owner = await store.register_owner()
        gone = await recorded(store, owner, key())
        kept = await recorded(store, owner, key(tenant="other"))
        refused = (await store.claim(owner, key("refused"), FINGERPRINT)).generation
        await store.refuse(refused, Refusal(HEAD, b"the secret refusal"), FINGERPRINT)
        await store.create_stream(StreamKey("acme", "m"), MESSAGES, b'"the secret"\x1e')
    async with opened(database_url, keyring=Keyring({"other": [OTHER]})) as store:
        for stream_id in (gone.data_stream, gone.control_stream):
            await raised(KeyUnavailable, store.read(stream_id, 0, 100))
        point = ForkPoint(StreamKey("acme", "m"), 3)
        await raised(KeyUnavailable, store.create_stream(StreamKey("acme", "f"), StreamConfig(fork=point)))
        found = await store.generation(key("refused"))
        assert found is not None
        assert found.refusal == Refusal(HEAD, b"")
        await merged(store)
        assert await read_on(store, kept.data_stream) == SECRET
        assert gone.data_stream in await store.tails([gone.data_stream])
        owner = await store.register_owner()
        assert (await store.claim(owner, key("refused"), FINGERPRINT)).is_new
    # Nothing was harmed: with the key it is all there.
    async with opened(database_url, keyring=keys) as store:
        assert await read_on(store, gone.data_stream) == SECRET


async def test_rows_that_were_swapped_do_not_open(database_url: str) -> None:
    async with opened(database_url, keyring=KEYS) as store, connected(database_url) as connection:
        owner = await store.register_owner()
        one, two = [await recorded(store, owner, key(name), step=100) for name in ("one", "two")]
        await connection.execute(
            "update streamkeep.chunks set data = other.data from streamkeep.chunks other "
            "where chunks.stream_id = $1 and other.stream_id = $2 and chunks.position = 0 and other.position = 0",
            *(one.data_stream, two.data_stream),
        )
        await raised(StoreError, store.read(one.data_stream, 0, 10))
        assert await read_on(store, one.data_stream, 100) == SECRET[100:]


async def test_the_agents_of_a_session_are_sealed_and_get_the_newest_key(database_url: str) -> None:
    of, secret = SessionKey("acme", "s1"), b'{"authorization": "Bearer the secret"}'
    async with opened(database_url, keyring=Keyring()) as store:
        await store.sessions.create(of, agents=secret)
        await store.sessions.create(SessionKey("acme", "s2"))
    async with opened(database_url, keyring=KEYS) as store, connected(database_url) as connection:
        assert await store.sessions.agents(of) == secret
        await store.rekey("acme")
        assert b"the secret" not in await dump(connection)
        assert await store.sessions.change_agents(of, lambda old: old + b"!") == secret + b"!"
        await store.sessions.create(SessionKey("acme", "s3"), agents=secret)
        assert b"the secret" not in await dump(connection)
        before = await store.sessions.session(of)
    async with opened(database_url, keyring=Keyring({"acme": [NEW, OLD]})) as store:
        await store.rekey("acme")
        assert await store.sessions.session(of) == before
    async with opened(database_url, keyring=Keyring({"acme": [NEW]})) as store:
        assert await store.sessions.agents(of) == secret + b"!"
        assert await store.sessions.agents(SessionKey("acme", "s2")) == b""
        assert await store.sessions.agents(SessionKey("acme", "s3")) == secret
    async with opened(database_url, keyring=KEYS) as store:
        await raised(KeyUnavailable, store.sessions.agents(of))
        await raised(KeyUnavailable, store.sessions.change_agents(of, lambda old: old))
        await store.rekey("acme")


async def test_a_start_names_the_keys_that_are_missing_for_as_long_as_data_need_them(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    used = "select count(*) from streamkeep.sealing_keys"
    async with opened(database_url, keyring=KEYS) as store, connected(database_url) as connection:
        await recorded(store, await store.register_owner(), key())
        await recorded(store, await store.register_owner(), key(tenant="other"))
        assert await connection.fetchval(used) == 1
        async with opened(database_url, keyring=Keyring({"*": [NEW]})):
            await until(lambda: caplog.records)
        (record,) = caplog.records
        assert "acme" in record.getMessage()
        assert OLD.id.hex() in record.getMessage()
        assert (await store.erase(Erasure("acme"))).remaining == 0
        caplog.clear()
        async with opened(database_url, keyring=Keyring({"*": [NEW]})), asyncio.timeout(20):
            while await connection.fetchval(used):
                await asyncio.sleep(0.02)
        assert not caplog.records


# The rules alone


def encoded(secret: bytes) -> str:
    return base64.b64encode(secret).decode()


def test_a_keyring_is_read_newest_first_with_a_default() -> None:
    text = f"acme={encoded(NEW.secret)}, acme={encoded(OLD.secret)},*={base64.urlsafe_b64encode(OTHER.secret).decode()}"
    ring = Keyring.parse(text)
    assert (ring.newest("acme"), ring.newest("somebody")) == (NEW, OTHER)
    assert (ring.find("acme", OLD.id), ring.find("acme", OTHER.id), ring.find("x", OLD.id)) == (OLD, OTHER, None)
    assert Keyring().newest("acme") is None


@pytest.mark.parametrize(
    "text",
    ["acme", "=AAAA", "acme=", "acme=short", f"acme={encoded(b'x' * 31)}", f"acme={'A' * 43}", "*=%%%%", ",", " "],
)
def test_a_keyring_that_cannot_be_read_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(InvalidKeyring) as refused:
        Keyring.parse(f"ok={encoded(OLD.secret)},{text}")
    assert "entry 2" in str(refused.value)
    assert encoded(OLD.secret) not in str(refused.value)
    assert text.strip(", ") not in str(refused.value) or len(text.strip(", ")) < 2


def test_a_key_is_in_no_representation() -> None:
    sealer = Sealer(KEYS)
    for shown in (repr(OLD), repr(KEYS), repr(sealer)):
        assert encoded(OLD.secret) not in shown
        assert repr(OLD.secret) not in shown


def test_what_is_sealed_opens_in_its_own_place_alone_and_never_looks_the_same() -> None:
    sealer = Sealer(Keyring({"acme": [OLD], "other": [OLD]}))
    sealed = sealer.seal("acme", 1, b"place", SECRET)
    assert sealer.open("acme", 1, b"place", sealed) == SECRET
    assert sealer.seal("acme", 1, b"place", SECRET) != sealed
    for tenant, stream_id, place in (("other", 1, b"place"), ("acme", 2, b"place"), ("acme", 1, b"other")):
        with pytest.raises(StoreError):
            sealer.open(tenant, stream_id, place, sealed)
    for index in itertools.chain(range(8, 40), [len(sealed) - 1]):
        damaged = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        with pytest.raises(StoreError):
            sealer.open("acme", 1, b"place", damaged)
    for size in range(len(sealed)):
        with pytest.raises(StoreError):
            sealer.open("acme", 1, b"place", sealed[:size])


def test_a_row_is_bound_to_its_position_size_and_encoding() -> None:
    codec = Codec(KEYS)
    (row,) = codec.packed("acme", 1, 100, SECRET)
    assert codec.unpacked("acme", 1, row) == SECRET
    for position, size, encoding in (
        (101, row.size, row.encoding),
        (100, row.size - 1, row.encoding),
        (100, row.size, row.encoding ^ 1),
    ):
        with pytest.raises(StoreError):
            codec.unpacked("acme", 1, Segment(position, size, encoding, row.data))
