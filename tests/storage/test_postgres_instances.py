"""Several instances on one database: what one does the others hear of, and they agree on who does what."""

from __future__ import annotations

import asyncio

import pytest

from streamkeep.storage import Append, Code, State
from streamkeep.storage.contract import FINGERPRINT, HEAD, Ears, ended, ending, events, key, running
from streamkeep.storage.postgres._listen import format_payload, parse_payload
from tests.postgres import connected, opened, until


async def test_an_append_wakes_the_readers_of_other_instances_only(database_url: str) -> None:
    ears_one, ears_two = Ears(), Ears()
    async with opened(database_url, ears=ears_one) as one, opened(database_url, ears=ears_two) as two:
        owner_one, owner_two = await one.register_owner(), await two.register_owner()
        first, second = await running(one, owner_one, key("r1")), await running(two, owner_two, key("r2"))
        await one.commit(owner_one, [Append(first.data_stream, 0, b"x")], [])
        await until(lambda: ears_two.has_heard_of(first.data_stream))
        await two.commit(owner_two, [Append(second.data_stream, 0, b"x")], [])
        await until(lambda: ears_one.has_heard_of(second.data_stream))
        # Notifications arrive in order, so by now each has had its own.
        assert not ears_one.has_heard_of(first.data_stream)


async def test_a_start_and_an_ending_wake_other_instances(database_url: str) -> None:
    ears = Ears()
    async with opened(database_url) as one, opened(database_url, ears=ears):
        owner = await one.register_owner()
        generation = await running(one, owner)
        await until(lambda: ears.has_heard_of(generation.data_stream) and ears.has_heard_of(generation.control_stream))
        ears.changed.clear()
        await one.commit(owner, [], [ending(generation, 0)])
        await until(lambda: ears.has_heard_of(generation.data_stream) and ears.has_heard_of(generation.control_stream))


async def test_a_recovery_wakes_other_instances(database_url: str) -> None:
    ears = Ears()
    async with opened(database_url) as dead, opened(database_url) as one, opened(database_url, ears=ears) as two:
        generation = await running(dead, await dead.register_owner())
        (lease,) = await one.leases()
        await one.recover(lease)
        await until(lambda: ears.has_heard_of(generation.control_stream))
        assert len(await events(two, generation)) == 1


async def test_a_store_that_is_alone_does_not_notify(database_url: str) -> None:
    heard: list[str] = []
    async with opened(database_url) as one, connected(database_url) as third:
        await third.add_listener("streamkeep_streams", lambda *args: heard.append(str(args[3])))
        owner = await one.register_owner()
        quiet, loud = await running(one, owner, key("quiet")), await running(one, owner, key("loud"))
        # Until leases have been looked at, there may be others.
        await until(lambda: {loud.data_stream, loud.control_stream} <= streams_of(heard))
        await one.leases()
        await one.commit(owner, [Append(quiet.data_stream, 0, b"x")], [])
        async with opened(database_url) as two:
            heard.clear()
            await two.register_owner()
            await one.leases()
            await one.commit(owner, [Append(loud.data_stream, 0, b"x")], [])
            await until(lambda: heard)
        assert streams_of(heard) == {loud.data_stream}


def streams_of(payloads: list[str]) -> set[int]:
    return {stream for payload in payloads for stream in parse_payload(payload)[1] or []}


async def test_the_wake_ups_of_one_commit_are_one_notification(database_url: str) -> None:
    heard: list[str] = []
    async with opened(database_url) as one, opened(database_url) as two, connected(database_url) as third:
        await two.register_owner()
        owner = await one.register_owner()
        rows = [await running(one, owner, key(f"r{number}")) for number in range(50)]
        await third.add_listener("streamkeep_streams", lambda *args: heard.append(str(args[3])))
        streams = {row.data_stream for row in rows}
        await one.commit(owner, [Append(stream, 0, b"x") for stream in sorted(streams)], [])
        await until(lambda: streams_of(heard) >= streams)
        # What is told of the last generations' starts may come as late as this.
        named = [streams & set(parse_payload(payload)[1] or []) for payload in heard]
        assert streams in named
        assert sum(map(len, named)) < 2 * len(streams)


async def test_repeated_and_unreadable_notifications_are_taken_calmly(database_url: str) -> None:
    ears = Ears()
    async with opened(database_url, ears=ears), connected(database_url) as third:
        for payload in ("abc 7,8", "abc 7,8", "abc 7,8"):
            await third.execute("select pg_notify('streamkeep_streams', $1)", payload)
        await until(lambda: len(ears.changed) == 3)
        assert ears.changed == [[7, 8]] * 3
        ears.changed.clear()
        for payload in ("", "abc", "abc *", "\N{SNOWMAN} 7,x"):
            await third.execute("select pg_notify('streamkeep_streams', $1)", payload)
            await third.execute("select pg_notify('streamkeep_cancels', $1)", payload)
        await third.execute("select pg_notify('streamkeep_cancels', 'abc 9')")
        await until(lambda: ears.cancelled)
        assert (ears.changed, ears.cancelled) == ([None] * 4, [9])


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], "me "),
        ([3, 1, 2], "me 1,2,3"),
        (range(10_000_000, 10_000_800), "800 of them"),
        (range(10_000_000, 10_001_000), "me *"),
        (None, "me *"),
    ],
)
def test_a_payload_names_the_streams_if_they_fit(ids: list[int] | None, expected: str) -> None:
    payload = format_payload("me", ids)
    if expected == "800 of them":
        assert ids is not None
        assert parse_payload(payload) == ("me", list(ids))
    else:
        assert payload == expected
    assert len(payload.encode()) < 8000


async def test_a_cancel_request_reaches_the_owner_in_another_instance(database_url: str) -> None:
    ears_one, ears_two = Ears(), Ears()
    async with opened(database_url, ears=ears_one) as one, opened(database_url, ears=ears_two) as two:
        owner = await one.register_owner()
        generation = await running(one, owner)
        await two.request_cancel(generation.key)
        await until(lambda: ears_one.cancelled and ears_two.cancelled)
        assert ears_one.cancelled == ears_two.cancelled == [generation.id]
        assert await one.cancel_requests(owner) == [generation.id]


_LOSE_LISTENERS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and query ilike '%listen%'
"""


_LOSE_NOTIFIERS = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and query like '%pg_notify(''streamkeep_streams%'
"""


async def test_a_lost_listener_comes_back_and_looks_at_everything(database_url: str) -> None:
    ears = Ears()
    async with (
        opened(database_url, ears=ears),
        opened(database_url) as two,
        connected(database_url) as third,
    ):
        owner = await two.register_owner()
        generation = await running(two, owner)
        await until(lambda: ears.has_heard_of(generation.data_stream))
        ears.changed.clear()
        await third.execute(_LOSE_LISTENERS)
        await until(lambda: None in ears.changed)
        ears.changed.clear()
        await two.commit(owner, [Append(generation.data_stream, 0, b"x")], [])
        await until(lambda: ears.has_heard_of(generation.data_stream))


async def test_a_cancel_request_that_nobody_heard_is_found_after_reconnecting(database_url: str) -> None:
    ears = Ears()
    async with opened(database_url, ears=ears) as store, connected(database_url) as third:
        generation = await running(store, await store.register_owner())
        await third.execute("update streamkeep.generations set is_cancel_requested = true")
        await third.execute(_LOSE_LISTENERS)
        await until(lambda: ears.cancelled)
        assert ears.cancelled == [generation.id]


async def test_a_lost_notifier_comes_back_and_tells_the_others_to_look_at_everything(database_url: str) -> None:
    ears = Ears()
    async with (
        opened(database_url) as one,
        opened(database_url, ears=ears),
        connected(database_url) as third,
    ):
        owner = await one.register_owner()
        generation = await running(one, owner)
        await until(lambda: ears.has_heard_of(generation.data_stream))
        ears.changed.clear()
        await third.execute(_LOSE_NOTIFIERS)
        await one.commit(owner, [Append(generation.data_stream, 0, b"x")], [])
        await until(lambda: ears.has_heard_of(generation.data_stream))


async def test_of_concurrent_claims_over_instances_one_is_new(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as two:
        owners = {one: await one.register_owner(), two: await two.register_owner()}
        for turn in range(5):
            claims = await asyncio.gather(
                *(
                    store.claim(owner, key(f"r{turn}"), FINGERPRINT)
                    for store, owner in owners.items()
                    for _ in range(10)
                )
            )
            (new,) = [claim for claim in claims if claim.is_new]
            assert {claim.generation for claim in claims} == {new.generation}


async def test_both_instances_give_the_same_signing_key(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as two:
        keys = await asyncio.gather(*(store.signing_key() for store in (one, two) for _ in range(3)))
        assert len(set(keys)) == 1


async def test_what_one_instance_writes_the_other_reads(database_url: str) -> None:
    async with opened(database_url) as one, opened(database_url) as two:
        generation = await ended(one, await one.register_owner(), key(), b"\x00bytes")
        assert (await two.read(generation.data_stream, 0, 99)).data == b"\x00bytes"
        row = await two.generation(key())
        assert row is not None
        assert (row.state, row.code, row.head) == (State.DONE, Code.COMPLETE.value, HEAD)


async def test_a_listener_is_told_to_look_at_everything_when_the_store_opens(database_url: str) -> None:
    ears = Ears()
    async with opened(database_url) as store:
        store.listen(ears)
        await until(lambda: None in ears.changed)
