"""What every store must do with streams of the open protocol, as tests; used as `contract.py` is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from streamkeep.storage._errors import (
    ContentTypeMismatch,
    InvalidEpochStart,
    InvalidFork,
    ItemRefused,
    ProducerFenced,
    SchemaMismatch,
    SequenceConflict,
    SequenceGap,
    StoreError,
    StreamClosed,
    StreamExists,
    StreamGone,
    StreamNotFound,
)
from streamkeep.storage._store import Store
from streamkeep.storage._types import (
    DEFAULT_TENANT,
    REGISTRY,
    Append,
    Appended,
    Created,
    Expiry,
    ForkPoint,
    Producer,
    Retention,
    Slice,
    StreamAppend,
    StreamChange,
    StreamConfig,
    StreamKey,
    Tail,
)
from streamkeep.storage.contract import (
    EVERY_BYTE,
    FINGERPRINT,
    HEAD,
    ended,
    ending,
    key,
    raised,
    read_on,
    running,
    until_nothing_to_sweep,
)
from streamkeep.storage.rules.schemas import schema_id

TEXT = StreamConfig("text/plain")
MESSAGES = StreamConfig("application/json; charset=utf-8")
LONG_AGO = Expiry(expires_at=datetime(2000, 1, 1, tzinfo=UTC))
_DEADLINE_SECONDS = 20.0


def at(path: str, tenant: str = DEFAULT_TENANT) -> StreamKey:
    return StreamKey(tenant, path)


def write(
    path: str,
    data: bytes = b"",
    *,
    producer: tuple[str, int, int] | None = None,
    sequence: str | None = None,
    is_close: bool = False,
    content_type: str | None = "text/plain",
) -> StreamAppend:
    return StreamAppend(at(path), data, content_type, is_close, Producer(*producer) if producer else None, sequence)


async def one(store: Store, append: StreamAppend) -> Appended:
    """What became of a lone append; its error is raised."""
    (result,) = await store.append([append])
    if isinstance(result, StoreError):
        raise result
    return result


async def content(store: Store, path: str) -> bytes:
    return await read_on(store, (await store.stream(at(path), is_touched=False)).id)


async def made(store: Store, path: str, data: bytes = b"", config: StreamConfig = TEXT) -> Created:
    created = await store.create_stream(at(path), config, data)
    assert created.is_new
    return created


async def fork(store: Store, path: str, source: str, position: int | None = None, sub_offset: int | None = None) -> int:
    """The id of a new fork."""
    created = await store.create_stream(at(path), StreamConfig(fork=ForkPoint(at(source), position, sub_offset)))
    assert created.is_new
    return created.stream.id


def _change(change: StreamChange) -> bytes:
    return f"{'-' if change.is_deletion else '+'}{change.key.path}\x1e".encode()


async def told(store: Store, tenant: str = DEFAULT_TENANT) -> list[str]:
    """All that a tenant's registry tells, once everything has been written into it."""
    while await store.write_registries(_change, 2):
        pass
    registry = await store.stream(at(REGISTRY, tenant))
    return (await read_on(store, registry.id)).decode().split("\x1e")[:-1]


async def until_expired(store: Store, path: str) -> type[StoreError]:
    """Wait for the end of a stream; how it is absent then."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            await store.stream(at(path), is_touched=False)
        except (StreamNotFound, StreamGone) as exc:
            return type(exc)
        assert time.monotonic() < deadline, f"{path} does not expire"
        await asyncio.sleep(0.02)


class StreamContract:
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

    # Creation

    async def test_a_stream_is_made_with_its_first_bytes(self) -> None:
        async with self.opened() as store:
            created = await made(store, "a/b c/\u00e9", EVERY_BYTE)
            info = created.stream
            assert (info.key, info.content_type, info.is_message_stream) == (at("a/b c/\u00e9"), "text/plain", False)
            assert (info.tail, info.expiry) == (Tail(256, False), Expiry())
            assert abs(datetime.now(UTC) - info.created_at) < timedelta(minutes=5)
            assert await store.read(info.id, 0, 999) == Slice(0, EVERY_BYTE, Tail(256, False))
            assert await store.stream(info.key) == info

    async def test_without_a_content_type_a_stream_holds_octets(self) -> None:
        async with self.opened() as store:
            assert (await made(store, "a", config=StreamConfig())).stream.content_type == "application/octet-stream"

    async def test_a_json_stream_is_a_message_stream_whatever_the_parameters(self) -> None:
        async with self.opened() as store:
            info = (await made(store, "a", b"1\x1e", MESSAGES)).stream
            assert (info.content_type, info.is_message_stream) == ("application/json; charset=utf-8", True)

    async def test_a_stream_may_be_made_closed(self) -> None:
        async with self.opened() as store:
            await made(store, "a", b"all", StreamConfig("text/plain", is_closed=True))
            await made(store, "b", b"", StreamConfig("text/plain", is_closed=True))
            assert (await store.stream(at("a"))).tail == Tail(3, True)
            assert (await store.stream(at("b"))).tail == Tail(0, True)

    async def test_the_same_wish_again_finds_the_stream(self) -> None:
        async with self.opened() as store:
            until = Expiry(expires_at=datetime(2100, 1, 1, tzinfo=UTC))
            for number, (first, again) in enumerate(
                [
                    (TEXT, StreamConfig("TEXT/Plain; charset=utf-8")),
                    (StreamConfig(), StreamConfig("application/octet-stream")),
                    (StreamConfig("a/b", Expiry(3600)), StreamConfig("a/b", Expiry(3600))),
                    (StreamConfig("a/b", until), StreamConfig("a/b", until)),
                    (StreamConfig(is_closed=True), StreamConfig(is_closed=True)),
                ]
            ):
                created = await made(store, f"a{number}", b"first", first)
                assert await store.create_stream(at(f"a{number}"), again, b"second") == Created(created.stream, False)
                assert await content(store, f"a{number}") == b"first"

    async def test_another_wish_for_a_taken_path_is_refused(self) -> None:
        async with self.opened() as store:
            await made(store, "source")
            await made(store, "a", config=StreamConfig("text/plain", Expiry(60)))
            for other in (
                StreamConfig("text/html", Expiry(60)),
                StreamConfig("text/plain", Expiry(61)),
                TEXT,
                StreamConfig("text/plain", Expiry(expires_at=datetime(2100, 1, 1, tzinfo=UTC))),
                StreamConfig("text/plain", Expiry(60), is_closed=True),
                StreamConfig("text/plain", Expiry(60), fork=ForkPoint(at("source"))),
            ):
                await raised(StreamExists, store.create_stream(at("a"), other))
            await one(store, write("a", is_close=True))
            await raised(StreamExists, store.create_stream(at("a"), StreamConfig("text/plain", Expiry(60))))

    async def test_of_many_creations_at_once_one_is_new(self) -> None:
        async with self.opened() as store:
            answers = await asyncio.gather(*(store.create_stream(at("a"), TEXT, b"x") for _ in range(8)))
            assert sum(answer.is_new for answer in answers) == 1
            assert len({answer.stream.id for answer in answers}) == 1
            assert await content(store, "a") == b"x"

    async def test_tenants_do_not_see_each_other(self) -> None:
        async with self.opened() as store:
            await made(store, "a", b"one")
            await raised(StreamNotFound, store.stream(at("a", "other")))
            await store.create_stream(at("a", "other"), TEXT, b"two")
            assert await content(store, "a") == b"one"
            assert await store.list_streams("third") == []
            config = StreamConfig(fork=ForkPoint(at("a")))
            await raised(StreamNotFound, store.create_stream(at("f", "third"), config))

    async def test_what_cannot_be_kept_is_refused_and_harms_nobody(self) -> None:
        async with self.opened() as store:
            await made(store, "a")
            for path in ("nul\0", "half \udce9"):
                await raised(ItemRefused, store.create_stream(at(path), TEXT))
                await raised(StreamNotFound, store.stream(at(path)))
                await raised(StreamNotFound, store.delete_stream(at(path)))
                assert await store.list_streams(DEFAULT_TENANT, prefix=path) == []
            results = await store.append(
                [
                    write("nul\0", b"x"),
                    write("a", b"x", producer=("nul\0", 0, 0)),
                    write("a", b"x", sequence="nul\0"),
                    write("a", b""),
                    write("a", b"good"),
                ]
            )
            assert [type(result) for result in results] == [
                StreamNotFound,
                ItemRefused,
                ItemRefused,
                ItemRefused,
                Appended,
            ]
            assert await content(store, "a") == b"good"

    # Appends

    async def test_appends_go_to_the_tail(self) -> None:
        async with self.opened() as store:
            stream = (await made(store, "a", b"one ")).stream
            assert await one(store, write("a", b"two ")) == Appended(stream.id, 4, Tail(8, False))
            assert await one(store, write("a", EVERY_BYTE)) == Appended(stream.id, 8, Tail(264, False))
            assert await content(store, "a") == b"one two " + EVERY_BYTE
            assert await store.tails([stream.id]) == {stream.id: Tail(264, False)}

    async def test_a_batch_takes_effect_in_order_and_each_item_for_itself(self) -> None:
        async with self.opened() as store:
            a, b = (await made(store, "a")).stream.id, (await made(store, "b")).stream.id
            results = await store.append(
                [
                    write("b", b"1"),
                    write("a", b"2", producer=("p", 0, 0)),
                    write("none", b"lost"),
                    write("a", b"wrong", content_type="text/html"),
                    write("a", b"3", producer=("p", 0, 1)),
                    write("a", b"again", producer=("p", 0, 1)),
                    write("b", b"4", is_close=True),
                    write("b", b"late"),
                ]
            )
            last = Producer("p", 0, 1)
            assert results[0] == Appended(b, 0, Tail(1, False))
            assert results[1] == Appended(a, 0, Tail(1, False), producer=Producer("p", 0, 0))
            assert [type(result) for result in results[2:4]] == [StreamNotFound, ContentTypeMismatch]
            assert results[4] == Appended(a, 1, Tail(2, False), producer=last)
            assert results[5] == Appended(a, 2, Tail(2, False), is_duplicate=True, producer=last)
            assert results[6] == Appended(b, 1, Tail(2, True))
            assert isinstance(results[7], StreamClosed)
            assert (await content(store, "a"), await content(store, "b")) == (b"23", b"14")
            assert await store.append([]) == []

    async def test_the_content_type_is_compared_by_media_type_and_only_with_a_body(self) -> None:
        async with self.opened() as store:
            await made(store, "a")
            await one(store, write("a", b"x", content_type="TEXT/plain;charset=utf-8"))
            error = await raised(ContentTypeMismatch, one(store, write("a", b"x", content_type="text/html")))
            assert (error.expected, error.received) == ("text/plain", "text/html")
            await one(store, write("a", is_close=True, content_type="text/html"))

    async def test_closing_is_final_and_may_be_repeated(self) -> None:
        async with self.opened() as store:
            stream = (await made(store, "a", b"x")).stream.id
            assert await one(store, write("a", b"y", is_close=True)) == Appended(stream, 1, Tail(2, True))
            assert await one(store, write("a", is_close=True)) == Appended(stream, 2, Tail(2, True), is_duplicate=True)
            for late in (write("a", b"z"), write("a", b"z", is_close=True), write("a", b"z", content_type="text/html")):
                assert (await raised(StreamClosed, one(store, late))).final_position == 2
            assert await store.read(stream, 0, 99) == Slice(0, b"xy", Tail(2, True))

    async def test_stream_seq_must_grow_byte_wise(self) -> None:
        async with self.opened() as store:
            await made(store, "a")
            await one(store, write("a", b"1", sequence="09"))
            await one(store, write("a", b"2", sequence="1"))
            for refused in ("1", "09", "0"):
                await raised(SequenceConflict, one(store, write("a", b"x", sequence=refused)))
            await one(store, write("a", b"3"))
            await one(store, write("a", b"4", sequence="\u00e9"))
            assert await content(store, "a") == b"1234"

    async def test_a_producers_turn_is_decided_as_the_protocol_says(self) -> None:
        async with self.opened() as store:
            await made(store, "a")
            assert (await raised(SequenceGap, one(store, write("a", b"x", producer=("p", 5, 1))))).expected == 0
            await one(store, write("a", b"1", producer=("p", 5, 0)))
            gap = await raised(SequenceGap, one(store, write("a", b"x", producer=("p", 5, 2))))
            assert (gap.expected, gap.received) == (1, 2)
            await one(store, write("a", b"2", producer=("p", 5, 1)))
            assert (await raised(ProducerFenced, one(store, write("a", b"x", producer=("p", 4, 0))))).current_epoch == 5
            await raised(InvalidEpochStart, one(store, write("a", b"x", producer=("p", 7, 1))))
            await one(store, write("a", b"3", producer=("p", 7, 0)))
            await one(store, write("a", b"4", producer=("other", 0, 0)))
            assert await content(store, "a") == b"1234"

    async def test_a_duplicate_stores_nothing_and_tells_the_last_sequence(self) -> None:
        async with self.opened() as store:
            await made(store, "a")
            for number in range(3):
                await one(store, write("a", b"%d" % number, producer=("p", 0, number), sequence=str(number)))
            result = await one(
                store, write("a", b"again", producer=("p", 0, 0), sequence="0", content_type="text/html")
            )
            assert (result.is_duplicate, result.producer, result.tail) == (True, Producer("p", 0, 2), Tail(3, False))
            assert await content(store, "a") == b"012"

    async def test_a_refused_append_moves_no_state(self) -> None:
        async with self.opened() as store:
            await made(store, "a")
            await one(store, write("a", b"1", sequence="5"))
            await raised(SequenceConflict, one(store, write("a", b"x", producer=("p", 3, 0), sequence="5")))
            await raised(ContentTypeMismatch, one(store, write("a", b"x", sequence="9", content_type="a/b")))
            await one(store, write("a", b"2", producer=("p", 0, 0), sequence="6"))
            assert await content(store, "a") == b"12"

    async def test_the_tuple_that_closed_a_stream_is_remembered(self) -> None:
        async with self.opened() as store:
            stream = (await made(store, "a")).stream.id
            await one(store, write("a", b"1", producer=("p", 0, 0)))
            await one(store, write("a", b"2", producer=("p", 0, 1), is_close=True))
            closing = Producer("p", 0, 1)
            for data in (b"2", b"another body", b""):
                result = await one(store, write("a", data, producer=("p", 0, 1), is_close=True))
                assert result == Appended(stream, 2, Tail(2, True), is_duplicate=True, producer=closing)
            for producer in (("p", 0, 0), ("p", 0, 2), ("p", 1, 0), ("q", 0, 0)):
                await raised(StreamClosed, one(store, write("a", b"x", producer=producer, is_close=True)))
            assert await content(store, "a") == b"12"

    async def test_of_a_producers_concurrent_repeats_one_is_stored(self) -> None:
        async with self.opened() as store:
            await made(store, "a")
            repeats = [one(store, write("a", b"once", producer=("p", 0, 0))) for _ in range(8)]
            results = await asyncio.gather(*repeats)
            assert sorted(result.is_duplicate for result in results) == [False] + [True] * 7
            assert await content(store, "a") == b"once"

    async def test_concurrent_batches_over_the_same_streams_do_not_block_each_other_for_good(self) -> None:
        async with self.opened() as store:
            paths = [f"a{number}" for number in range(5)]
            for path in paths:
                await made(store, path)

            async def writer(order: Sequence[str]) -> None:
                for _ in range(10):
                    await store.append([write(path, b"x") for path in order])

            await asyncio.gather(*(writer(paths[turn:] + paths[:turn]) for turn in range(4)), writer(paths[::-1]))
            for path in paths:
                assert await content(store, path) == b"x" * 50

    # Deletion

    async def test_a_deleted_stream_is_gone_and_its_path_free(self) -> None:
        async with self.opened() as store:
            old = (await made(store, "a", b"old")).stream.id
            await one(store, write("a", b"x", producer=("p", 0, 0), sequence="9"))
            await store.delete_stream(at("a"))
            for call in (store.stream(at("a")), store.delete_stream(at("a")), one(store, write("a", b"x"))):
                await raised(StreamNotFound, call)
            await raised(StreamNotFound, store.read(old, 0, 99))
            assert await store.tails([old]) == {}
            new = (await made(store, "a", b"")).stream.id
            assert new != old
            await one(store, write("a", b"new", producer=("p", 0, 0), sequence="1"))
            assert await content(store, "a") == b"new"

    async def test_streams_are_listed_in_path_order(self) -> None:
        async with self.opened() as store:
            paths = ["b", "a/2", "a/10", "a", "B", "a/\u00e9", "a_"]
            for path in paths:
                await made(store, path)
            await made(store, "a/expired", config=StreamConfig(expiry=LONG_AGO))
            await made(store, "a/deleted")
            await fork(store, "z", "a/deleted")
            await store.delete_stream(at("a/deleted"))
            await ended(store, await store.register_owner(), key())

            async def listed(prefix: str = "", after: str = "", limit: int = 1000) -> list[str]:
                found = await store.list_streams(DEFAULT_TENANT, prefix=prefix, after=after, limit=limit)
                return [info.key.path for info in found]

            assert await listed() == sorted([*paths, "z"])
            assert await listed("a/") == ["a/10", "a/2", "a/\u00e9"]
            assert await listed("a/", "a/10") == ["a/2", "a/\u00e9"]
            assert await listed("", "a/2", 2) == ["a/\u00e9", "a_"]
            (found,) = await store.list_streams(DEFAULT_TENANT, prefix="b")
            assert found == await store.stream(at("b"))

    # Expiry

    async def test_an_expired_stream_is_absent_at_once_and_its_path_free(self) -> None:
        async with self.opened() as store:
            for number, expiry in enumerate([LONG_AGO, Expiry(0)]):
                path = f"a{number}"
                old = (await made(store, path, b"old", StreamConfig("text/plain", expiry))).stream.id
                for call in (
                    store.stream(at(path)),
                    store.delete_stream(at(path)),
                    one(store, write(path, b"x")),
                    store.read(old, 0, 99),
                    store.create_stream(at("f"), StreamConfig(fork=ForkPoint(at(path)))),
                ):
                    await raised(StreamNotFound, call)
                assert await store.tails([old]) == {}
                assert await store.list_streams(DEFAULT_TENANT, prefix=path) == []
                new = (await made(store, path, b"new", StreamConfig("text/html"))).stream.id
                assert new != old
                assert await content(store, path) == b"new"

    async def test_a_ttl_ends_a_stream_that_nobody_touches(self) -> None:
        async with self.opened() as store:
            begun = time.monotonic()
            await made(store, "a", b"x", StreamConfig("text/plain", Expiry(1)))
            assert (await store.stream(at("a"), is_touched=False)).expiry == Expiry(1)
            assert await until_expired(store, "a") is StreamNotFound
            assert time.monotonic() - begun > 0.9

    async def test_touches_and_appends_start_the_ttl_anew(self) -> None:
        async with self.opened() as store:
            for path in ("read", "written", "left"):
                await made(store, path, b"", StreamConfig("text/plain", Expiry(1)))
            while True:
                try:
                    await store.stream(at("left"), is_touched=False)
                except StreamNotFound:
                    break
                await store.stream(at("read"))
                await one(store, write("written", b"x"))
                await asyncio.sleep(0.05)
            assert (await store.stream(at("read"))).expiry == Expiry(1)
            await one(store, write("written", b"x"))

    async def test_the_sweep_takes_expired_streams_only(self) -> None:
        async with self.opened() as store:
            await made(store, "stays", b"x", StreamConfig(expiry=Expiry(60)))
            await made(store, "too")
            for number in range(5):
                await made(store, f"a{number}", b"x", StreamConfig(expiry=LONG_AGO))
            assert [await store.sweep(2) for _ in range(4)] == [2, 2, 1, 0]
            assert len(await store.list_streams(DEFAULT_TENANT)) == 2

    async def test_registries_tell_once_of_each_stream_that_was_made_or_is_gone(self) -> None:
        async with self.opened() as store:
            await made(store, "a")
            await store.create_stream(at("a"), TEXT)
            await made(store, "expired", b"", StreamConfig("text/plain", LONG_AGO))
            await fork(store, "f", "a")
            await store.create_stream(at("theirs", "other"), TEXT)
            await store.delete_stream(at("a"))
            assert await told(store) == ["+a", "+expired", "+f", "-a"]
            await until_nothing_to_sweep(store)
            await store.delete_stream(at("f"))
            await made(store, "a")
            await made(store, "expired", b"", StreamConfig("text/plain", LONG_AGO))
            await made(store, "expired")
            assert await told(store) == [
                "+a",
                "+expired",
                "+f",
                "-a",
                "-expired",
                "-f",
                "+a",
                "+expired",
                "-expired",
                "+expired",
            ]
            assert await told(store, "other") == ["+theirs"]

    async def test_a_source_that_expired_is_told_of_when_its_last_fork_goes(self) -> None:
        async with self.opened() as store:
            await made(store, "source", b"x", StreamConfig("text/plain", Expiry(1)))
            await store.create_stream(at("f"), StreamConfig(expiry=Expiry(3600), fork=ForkPoint(at("source"))))
            await until_expired(store, "source")
            await store.delete_stream(at("f"))
            assert sorted(await told(store)) == ["+f", "+source", "-f", "-source"]

    async def test_registries_that_are_written_by_many_at_once_tell_in_order(self) -> None:
        async with self.opened() as store:

            async def live(path: str) -> None:
                for _ in range(5):
                    await made(store, path)
                    await store.delete_stream(at(path))
                    await store.write_registries(_change, 3)

            await asyncio.gather(*(live(path) for path in "abcd"))
            changes = await told(store)
            assert len(changes) == 40
            for path in "abcd":
                assert [change for change in changes if change[1] == path] == [f"+{path}", f"-{path}"] * 5

    async def test_concurrent_sweeps_and_creations_of_expired_paths_leave_the_new_streams(self) -> None:
        async with self.opened() as store:
            paths = [f"a{number}" for number in range(10)]
            for path in paths:
                await made(store, path, b"old", StreamConfig(expiry=LONG_AGO))
            sweeps = (until_nothing_to_sweep(store, 3) for _ in range(2))
            await asyncio.gather(*sweeps, *(store.create_stream(at(path), TEXT, b"new") for path in paths))
            for path in paths:
                assert await content(store, path) == b"new"

    # Forks

    async def test_a_fork_shares_the_bytes_up_to_its_point_and_goes_on_alone(self) -> None:
        async with self.opened() as store:
            source = (await made(store, "source", b"0123456789")).stream.id
            created = await store.create_stream(at("f"), StreamConfig(fork=ForkPoint(at("source"), 4)), b"own ")
            assert created.is_new
            info = created.stream
            assert (info.content_type, info.tail) == ("text/plain", Tail(8, False))
            assert await one(store, write("f", b"more")) == Appended(info.id, 8, Tail(12, False))
            await one(store, write("source", b"later"))
            whole = b"0123own more"
            for cut in range(len(whole) + 1):
                assert await read_on(store, info.id, cut) == whole[cut:]
                assert await read_on(store, info.id, cut, 3) == whole[cut:]
            assert await store.read(info.id, 0, 6) == Slice(0, b"0123ow", Tail(12, False))
            assert await store.read(info.id, 2, 100) == Slice(2, whole[2:], Tail(12, False))
            assert await store.read_each({info.id: 2, source: 9}, 4) == {
                info.id: Slice(2, whole[2:6], Tail(12, False)),
                source: Slice(9, b"9lat", Tail(15, False)),
            }
            assert await read_on(store, source) == b"0123456789later"
            assert await store.tails([info.id, source]) == {info.id: Tail(12, False), source: Tail(15, False)}

    async def test_a_fork_point_is_the_tail_unless_it_is_given(self) -> None:
        async with self.opened() as store:
            await made(store, "source", b"0123")
            assert await read_on(store, await fork(store, "tail", "source")) == b"0123"
            assert await read_on(store, await fork(store, "zero", "source", 0)) == b""
            assert await read_on(store, await fork(store, "sub", "source", 1, 2)) == b"012"
            assert await read_on(store, await fork(store, "none", "source", 1, 0)) == b"0"
            for number, point in enumerate([(5, None), (0, 5), (None, 1), (4, 1), (-1, None)]):
                config = StreamConfig(fork=ForkPoint(at("source"), *point))
                await raised(InvalidFork, store.create_stream(at(f"bad{number}"), config))
                await raised(StreamNotFound, store.stream(at(f"bad{number}")))

    async def test_in_a_message_stream_points_are_between_messages_and_sub_offsets_count_them(self) -> None:
        async with self.opened() as store:
            await made(store, "source", b'1\x1e"two"\x1e[3]\x1e', MESSAGES)
            for number, (point, expected) in enumerate(
                [
                    ((0, 2), b'1\x1e"two"\x1e'),
                    ((2, 1), b'1\x1e"two"\x1e'),
                    ((2, 2), b'1\x1e"two"\x1e[3]\x1e'),
                    ((8, 0), b'1\x1e"two"\x1e'),
                ]
            ):
                stream = await fork(store, f"f{number}", "source", *point)
                assert await read_on(store, stream) == expected
            assert (await store.stream(at("f0"))).is_message_stream
            for bad in [(1, 0), (3, 1), (0, 4), (8, 2), (None, 1)]:
                config = StreamConfig(fork=ForkPoint(at("source"), *bad))
                await raised(InvalidFork, store.create_stream(at("bad"), config))

    async def test_many_messages_are_counted(self) -> None:
        async with self.opened() as store:
            messages = [b"%d" % number * 50 + b"\x1e" for number in range(3000)]
            await made(store, "source", b"".join(messages[:1000]), MESSAGES)
            await one(store, write("source", b"".join(messages[1000:]), content_type="application/json"))
            stream = await fork(store, "f", "source", len(messages[0]), 2500)
            assert await read_on(store, stream) == b"".join(messages[:2501])

    async def test_forks_of_forks_read_through_all_of_them(self) -> None:
        async with self.opened() as store:
            await made(store, "a", b"aaaaaa")
            await fork(store, "b", "a", 4)
            await one(store, write("b", b"bbbb"))
            await fork(store, "c", "b", 6)
            await one(store, write("c", b"cccc"))
            low, high = await fork(store, "low", "c", 2), await fork(store, "high", "c", 9)
            await one(store, write("low", b"LL"))
            await one(store, write("high", b"HH"))
            await one(store, write("a", b"later"))
            for stream, whole in ((low, b"aaLL"), (high, b"aaaabbcccHH")):
                for cut in range(len(whole) + 1):
                    assert await read_on(store, stream, cut) == whole[cut:]
                    assert await read_on(store, stream, cut, 2) == whole[cut:]
                assert (await store.read(stream, 0, 100)).data == whole

    async def test_a_closed_stream_may_be_forked_and_the_fork_is_open(self) -> None:
        async with self.opened() as store:
            await made(store, "source", b"x", StreamConfig("text/plain", is_closed=True))
            await fork(store, "f", "source")
            await one(store, write("f", b"y", is_close=True))
            assert (await store.stream(at("f"))).tail == Tail(2, True)
            created = await store.create_stream(at("g"), StreamConfig(is_closed=True, fork=ForkPoint(at("source"))))
            assert created.stream.tail == Tail(1, True)

    async def test_a_fork_inherits_no_producer_and_no_sequence(self) -> None:
        async with self.opened() as store:
            await made(store, "source")
            await one(store, write("source", b"1", producer=("p", 4, 0), sequence="9", is_close=True))
            await fork(store, "f", "source")
            await raised(SequenceGap, one(store, write("f", b"x", producer=("p", 4, 1))))
            await one(store, write("f", b"2", producer=("p", 0, 0), sequence="1"))
            assert await content(store, "f") == b"12"

    async def test_a_stream_has_the_schema_that_it_was_made_with(self) -> None:
        config = replace(MESSAGES, schema='{"type":"object"}')
        async with self.opened() as store:
            stream = (await made(store, "s", b"{}\x1e", config)).stream
            assert stream.schema_id == schema_id('{"type":"object"}')
            assert await store.schema(stream.id) == '{"type":"object"}'
            assert not (await store.create_stream(at("s"), config)).is_new
            for other in (MESSAGES, replace(MESSAGES, schema="{}")):
                await raised(StreamExists, store.create_stream(at("s"), other))
            plain = (await made(store, "plain", config=MESSAGES)).stream
            assert (plain.schema_id, await store.schema(plain.id), await store.schema(-1)) == (None, None, None)
            await raised(StreamExists, store.create_stream(at("plain"), config))

    async def test_an_append_that_was_checked_by_another_schema_moves_no_state(self) -> None:
        async with self.opened() as store:
            await made(store, "s", config=replace(MESSAGES, schema="{}"))
            await made(store, "plain", config=MESSAGES)
            first = replace(
                write("s", b"1\x1e", producer=("p", 0, 0), content_type=MESSAGES.content_type), schema_id=None
            )
            for checked_by in (None, schema_id('{"type":"object"}')):
                await raised(SchemaMismatch, one(store, replace(first, schema_id=checked_by)))
            await raised(SchemaMismatch, one(store, replace(first, key=at("plain"), schema_id=schema_id("{}"))))
            assert not (await one(store, replace(first, schema_id=schema_id("{}")))).is_duplicate
            # What was stored once is a duplicate whoever checked it, and a close has nothing to check.
            assert (await one(store, first)).is_duplicate
            await one(store, write("s", is_close=True, content_type=None))
            await raised(StreamClosed, one(store, replace(first, producer=None)))
            assert await content(store, "s") == b"1\x1e"

    async def test_a_fork_has_the_schema_of_its_source_and_no_other(self) -> None:
        async with self.opened() as store:
            await made(store, "s", b"1\x1e", replace(MESSAGES, schema="{}"))
            point = StreamConfig(fork=ForkPoint(at("s")))
            forked = await made(store, "f", config=point)
            assert await store.schema(forked.stream.id) == "{}"
            assert forked.stream.schema_id == schema_id("{}")
            for again in (point, replace(point, schema="{}")):
                assert not (await store.create_stream(at("f"), again)).is_new
            await raised(StreamExists, store.create_stream(at("f"), replace(point, schema="[]")))
            await raised(SchemaMismatch, store.create_stream(at("g"), replace(point, schema="[]")))
            await raised(StreamNotFound, store.stream(at("g")))

    async def test_a_fork_inherits_content_type_and_expiry_unless_it_says_otherwise(self) -> None:
        async with self.opened() as store:
            until = Expiry(expires_at=datetime(2100, 1, 1, tzinfo=UTC))
            await made(store, "sliding", config=StreamConfig("text/plain; charset=utf-8", Expiry(60)))
            await made(store, "fixed", config=StreamConfig("text/plain", until))
            await fork(store, "f1", "sliding")
            await fork(store, "f2", "fixed")
            config = StreamConfig("TEXT/plain", Expiry(7), fork=ForkPoint(at("fixed")))
            await store.create_stream(at("f3"), config)
            found = [await store.stream(at(f"f{number}")) for number in (1, 2, 3)]
            assert [info.expiry for info in found] == [Expiry(60), until, Expiry(7)]
            assert found[0].content_type == "text/plain; charset=utf-8"
            config = StreamConfig("text/html", fork=ForkPoint(at("fixed")))
            await raised(ContentTypeMismatch, store.create_stream(at("f4"), config))
            await raised(StreamNotFound, store.stream(at("f4")))
            # A fork that was refused holds nothing.
            await store.delete_stream(at("sliding"))
            await store.delete_stream(at("f1"))
            await raised(StreamNotFound, store.stream(at("sliding")))

    async def test_the_same_fork_again_is_found_as_it_was_asked_for(self) -> None:
        async with self.opened() as store:
            await made(store, "source", b"0123", StreamConfig("text/plain", Expiry(60)))
            await made(store, "other", b"0123", StreamConfig("text/plain", Expiry(60)))
            await fork(store, "tail", "source")
            await fork(store, "sub", "source", 1, 2)
            await one(store, write("source", b"later"))

            def wish(
                position: int | None = None, sub_offset: int | None = None, source: str = "source"
            ) -> StreamConfig:
                return StreamConfig(fork=ForkPoint(at(source), position, sub_offset))

            point = ForkPoint(at("source"))
            explicit = StreamConfig("text/plain", Expiry(60), fork=point)
            for path, again in (
                ("tail", wish()),
                ("tail", wish(None, 0)),
                ("tail", wish(4)),
                ("tail", explicit),
                ("sub", wish(1, 2)),
                ("sub", wish(3)),
            ):
                assert not (await store.create_stream(at(path), again)).is_new
            for path, other in (
                ("tail", wish(3)),
                ("tail", wish(source="other")),
                ("tail", StreamConfig(expiry=Expiry(61), fork=point)),
                ("tail", StreamConfig("text/html", fork=point)),
                ("tail", StreamConfig("text/plain", Expiry(60))),
                ("sub", wish(1, 3)),
                ("sub", wish(1)),
                ("sub", wish()),
                ("source", wish()),
            ):
                await raised(StreamExists, store.create_stream(at(path), other))
            # Also when the source cannot be asked any more.
            await store.delete_stream(at("source"))
            assert not (await store.create_stream(at("tail"), wish())).is_new

    async def test_a_missing_source_is_told_from_a_deleted_one(self) -> None:
        async with self.opened() as store:
            config = StreamConfig(fork=ForkPoint(at("source")))
            await raised(StreamNotFound, store.create_stream(at("f2"), config))
            await made(store, "source")
            await fork(store, "f", "source")
            await store.delete_stream(at("source"))
            await raised(StreamExists, store.create_stream(at("f2"), config))

    async def test_a_deleted_source_is_gone_for_all_but_its_forks(self) -> None:
        async with self.opened() as store:
            source = (await made(store, "source", b"shared")).stream.id
            stream = await fork(store, "f", "source", 4)
            await store.delete_stream(at("source"))
            for call in (
                store.stream(at("source")),
                store.delete_stream(at("source")),
                one(store, write("source", b"x")),
                one(store, write("source", is_close=True)),
            ):
                await raised(StreamGone, call)
            await raised(StreamExists, store.create_stream(at("source"), TEXT))
            await raised(StreamNotFound, store.read(source, 0, 9))
            assert await store.tails([source]) == {}
            await one(store, write("f", b"!"))
            assert await read_on(store, stream) == b"shar!"

    async def test_the_last_forks_deletion_cleans_up_the_whole_line(self) -> None:
        async with self.opened() as store:
            await made(store, "a", b"a")
            await fork(store, "b", "a")
            c, other = await fork(store, "c", "b"), await fork(store, "other", "a")
            await store.delete_stream(at("a"))
            await store.delete_stream(at("b"))
            assert await read_on(store, c) == b"a"
            await store.delete_stream(at("c"))
            await raised(StreamNotFound, store.stream(at("b")))
            await raised(StreamGone, store.stream(at("a")))
            assert await read_on(store, other) == b"a"
            await store.delete_stream(at("other"))
            await raised(StreamNotFound, store.stream(at("a")))
            await made(store, "a", b"new")
            assert await content(store, "a") == b"new"

    async def test_a_source_that_is_not_deleted_stays_when_its_forks_go(self) -> None:
        async with self.opened() as store:
            await made(store, "source", b"x")
            await fork(store, "f", "source")
            await store.delete_stream(at("f"))
            assert await content(store, "source") == b"x"

    async def test_an_expired_source_is_like_a_deleted_one(self) -> None:
        async with self.opened() as store:
            await made(store, "source", b"x", StreamConfig("text/plain", Expiry(1)))
            config = StreamConfig(expiry=Expiry(3600), fork=ForkPoint(at("source")))
            stream = (await store.create_stream(at("f"), config)).stream.id
            assert await until_expired(store, "source") is StreamGone
            for _ in range(2):
                await raised(StreamGone, one(store, write("source", b"x")))
                await raised(StreamExists, store.create_stream(at("source"), TEXT))
                assert await read_on(store, stream) == b"x"
                await until_nothing_to_sweep(store)
            await store.delete_stream(at("f"))
            await raised(StreamNotFound, store.stream(at("source")))

    async def test_expired_forks_clean_up_behind_them(self) -> None:
        async with self.opened() as store:
            await made(store, "source", b"x")
            await store.create_stream(at("f"), StreamConfig(expiry=LONG_AGO, fork=ForkPoint(at("source"))))
            await store.delete_stream(at("source"))
            await until_nothing_to_sweep(store)
            await raised(StreamNotFound, store.stream(at("source")))

    async def test_forking_and_deleting_at_once_leave_every_fork_whole(self) -> None:
        async with self.opened() as store:
            for turn in range(5):
                await made(store, f"s{turn}", b"shared")

                async def try_fork(path: str, turn: int = turn) -> bytes | None:
                    try:
                        return await read_on(store, await fork(store, path, f"s{turn}"))
                    except (StreamExists, StreamNotFound):
                        return None

                tries = [try_fork(f"f{turn}-{number}") for number in range(3)]
                _, *seen = await asyncio.gather(store.delete_stream(at(f"s{turn}")), *tries)
                assert set(seen) <= {b"shared", None}
                for number, found in enumerate(seen):
                    if found is not None:
                        assert await content(store, f"f{turn}-{number}") == b"shared"

    async def test_merging_moves_no_byte_of_streams_and_forks(self) -> None:
        async with self.opened() as store:
            pieces = [b"piece %d, " % number for number in range(50)]
            whole = b"".join(pieces)
            source = (await made(store, "source")).stream.id
            for piece in pieces:
                await one(store, write("source", piece))
            stream = await fork(store, "f", "source", 100)
            for piece in pieces:
                await one(store, write("f", piece))
            for path in ("source", "f"):
                await one(store, write(path, is_close=True))
            while await store.merge():
                pass
            for cut in range(0, len(whole), 7):
                assert await read_on(store, source, cut) == whole[cut:]
                assert await read_on(store, stream, cut) == (whole[:100] + whole)[cut:]
                assert await read_on(store, stream, cut, 90) == (whole[:100] + whole)[cut:]
            third = await fork(store, "third", "f", 150)
            assert await read_on(store, third) == (whole[:100] + whole)[:150]

    # Generations

    async def test_a_generations_streams_are_found_by_their_paths(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = (await store.claim(owner, key(), FINGERPRINT)).generation
            data, control = at(key().data_path), at(key().control_path)
            found = await store.stream(data)
            assert (found.id, found.content_type) == (generation.data_stream, "application/octet-stream")
            await store.start(generation, HEAD, FINGERPRINT)
            await store.commit(owner, [Append(generation.data_stream, 0, b"data")], [])
            found = await store.stream(data)
            assert (found.content_type, found.tail, found.is_message_stream) == (
                HEAD.content_type,
                Tail(4, False),
                False,
            )
            found = await store.stream(control)
            assert (found.id, found.content_type, found.is_message_stream) == (
                generation.control_stream,
                "application/json",
                True,
            )
            await raised(StreamNotFound, store.stream(at("generations/s1/none/data")))
            await raised(StreamNotFound, store.stream(at("generations/s1/r1/other")))

    async def test_a_generations_streams_are_read_only(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            for path in (key().data_path, key().control_path):
                await raised(ItemRefused, one(store, write(path, b"x")))
                await raised(ItemRefused, one(store, write(path, is_close=True)))
                await raised(ItemRefused, store.delete_stream(at(path)))
                await raised(ItemRefused, store.create_stream(at(path), TEXT))
            await store.commit(owner, [Append(generation.data_stream, 0, b"data")], [ending(generation, 4)])
            for path in (key().data_path, key().control_path):
                await raised(StreamClosed, one(store, write(path, b"x")))
                await raised(StreamClosed, one(store, write(path, is_close=True)))
                await raised(ItemRefused, store.delete_stream(at(path)))
            await raised(ItemRefused, store.create_stream(at("generations/s1/new/data"), TEXT))

    async def test_a_live_generation_may_be_forked(self) -> None:
        async with self.opened() as store:
            owner = await store.register_owner()
            generation = await running(store, owner)
            await store.commit(owner, [Append(generation.data_stream, 0, b"first, ")], [])
            stream = await fork(store, "f", key().data_path)
            await store.commit(owner, [Append(generation.data_stream, 7, b"later")], [ending(generation, 12)])
            await one(store, write("f", b"own", content_type=HEAD.content_type))
            assert await read_on(store, stream) == b"first, own"
            assert (await store.stream(at("f"))).content_type == HEAD.content_type

    async def test_a_swept_generations_bytes_stay_for_its_forks_and_its_key_is_free_in_time(self) -> None:
        async with self.opened(Retention(data_seconds=0, row_seconds=0)) as store:
            owner = await store.register_owner()
            old = await ended(store, owner, key(), b"data")
            stream = await fork(store, "f", key().data_path, 3)
            events = await fork(store, "events", key().control_path)
            event = await read_on(store, events)
            await until_nothing_to_sweep(store)
            await raised(StreamNotFound, store.stream(at(key().data_path)))
            await raised(StreamNotFound, store.read(old.data_stream, 0, 9))
            assert await store.tails([old.data_stream]) == {}
            await running(store, owner)
            assert (await read_on(store, stream), await read_on(store, events)) == (b"dat", event)
            while await store.merge():
                pass
            assert await read_on(store, stream) == b"dat"
            await store.delete_stream(at("f"))
            assert await read_on(store, events) == event
