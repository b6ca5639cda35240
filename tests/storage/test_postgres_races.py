"""Races between a commit, its connection and those who end owners, staged with locks that a third connection holds."""

from __future__ import annotations

import asyncio

import pytest

from streamkeep.storage import Append, OwnerFenced, Slice, StoreUnavailable, Tail
from streamkeep.storage.contract import HEAD, ending, events, key, raised, running
from streamkeep.storage.rules.offsets import format_offset
from tests.postgres import Relay, connected, opened, take_key, until, until_waiting


async def test_recovery_waits_for_a_commit_under_way_and_counts_its_bytes(database_url: str) -> None:
    async with opened(database_url) as stale, opened(database_url) as other, connected(database_url) as third:
        owner = await stale.register_owner()
        generation = await running(stale, owner)
        (lease,) = await other.leases()
        rival = third.transaction()
        await rival.start()
        await take_key(third, generation, 0)
        commit = asyncio.create_task(stale.commit(owner, [Append(generation.data_stream, 0, b"just in time")], []))
        await until_waiting(third, 1)
        recovery = asyncio.create_task(other.recover(lease))
        await until_waiting(third, 2)
        await rival.rollback()
        await commit
        assert await recovery == 1
        (event,) = await events(other, generation)
        assert event["offset"] == format_offset(12)
        assert await other.read(generation.data_stream, 0, 99) == Slice(0, b"just in time", Tail(12, True))


async def test_a_commit_that_waits_for_a_recovery_is_fenced(database_url: str) -> None:
    async with opened(database_url) as stale, opened(database_url) as other, connected(database_url) as third:
        owner = await stale.register_owner()
        generation = await running(stale, owner)
        creating = (await stale.claim(owner, key("creating"), None)).generation
        await stale.commit(owner, [Append(generation.data_stream, 0, b"acked")], [])
        (lease,) = await other.leases()
        gate = third.transaction()
        await gate.start()
        await third.execute("select from streamkeep.generations for update")
        recovery = asyncio.create_task(other.recover(lease))
        await until_waiting(third, 1)
        late = [Append(generation.data_stream, 5, b"too late")]
        writes = [
            asyncio.create_task(raised(OwnerFenced, write))
            for write in (
                stale.commit(owner, late, []),
                stale.commit(owner, late, [ending(generation, 13)]),
                stale.renew(owner),
                stale.settle(owner, [generation.data_stream]),
                stale.claim(owner, key("new"), None),
                stale.start(creating, HEAD, b""),
            )
        ]
        await until_waiting(third, 1 + len(writes))
        await gate.rollback()
        await asyncio.gather(*writes)
        assert await recovery == 2
        (event,) = await events(other, generation)
        assert (event["code"], event["offset"]) == ("owner_lost", format_offset(5))
        assert await other.read(generation.data_stream, 0, 99) == Slice(0, b"acked", Tail(5, True))
        assert await other.generation(key("new")) is None


async def test_a_renewal_that_comes_first_stops_a_recovery(database_url: str) -> None:
    async with opened(database_url) as late, opened(database_url) as other, connected(database_url) as third:
        owner = await late.register_owner()
        generation = await running(late, owner)
        (lease,) = await other.leases()
        gate = third.transaction()
        await gate.start()
        await third.execute("select from streamkeep.owners for update")
        renewal = asyncio.create_task(late.renew(owner))
        await until_waiting(third, 1)
        recovery = asyncio.create_task(other.recover(lease))
        await until_waiting(third, 2)
        await gate.rollback()
        await renewal
        assert await recovery == 0
        await late.commit(owner, [Append(generation.data_stream, 0, b"x")], [])


_TERMINATE_WAITING = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and wait_event_type = 'Lock'
"""


async def test_after_a_commit_was_killed_settle_says_that_nothing_landed(database_url: str) -> None:
    async with opened(database_url) as store, connected(database_url) as third:
        owner = await store.register_owner()
        generation = await running(store, owner)
        await store.commit(owner, [Append(generation.data_stream, 0, b"acked")], [])
        append = Append(generation.data_stream, 5, b"lost")
        rival = third.transaction()
        await rival.start()
        await take_key(third, generation, 5)
        commit = asyncio.create_task(store.commit(owner, [append], [ending(generation, 9)]))
        await until_waiting(third)
        await third.execute(_TERMINATE_WAITING)
        await raised(StoreUnavailable, commit)
        await rival.rollback()
        assert await store.settle(owner, [generation.data_stream]) == {generation.data_stream: Tail(5, False)}
        assert await store.commit(owner, [append], [ending(generation, 9)]) == {generation.id}


async def test_settle_waits_for_a_commit_whose_connection_was_lost_and_counts_it(database_url: str) -> None:
    async with Relay.to(database_url) as relay, opened(relay.url) as store, connected(database_url) as third:
        owner = await store.register_owner()
        generation = await running(store, owner)
        rival = third.transaction()
        await rival.start()
        await take_key(third, generation, 0)
        commit = asyncio.create_task(store.commit(owner, [Append(generation.data_stream, 0, b"landed")], []))
        await until_waiting(third, 1)
        relay.cut()
        await raised(StoreUnavailable, commit)
        settle = asyncio.create_task(store.settle(owner, [generation.data_stream]))
        await until_waiting(third, 2)
        await rival.rollback()
        assert await settle == {generation.data_stream: Tail(6, False)}
        await store.commit(owner, [Append(generation.data_stream, 6, b", and on")], [])


async def test_a_commit_that_reaches_the_server_after_settle_cannot_land(database_url: str) -> None:
    async with Relay.to(database_url) as relay, opened(relay.url) as store, opened(database_url) as elsewhere:
        owner = await store.register_owner()
        await store.leases()  # It is alone, so nothing but commits is on the wire.
        generation = await running(store, owner)
        await store.commit(owner, [Append(generation.data_stream, 0, b"acked")], [])
        relay.hold()
        commit = asyncio.create_task(store.commit(owner, [Append(generation.data_stream, 5, b"stray")], []))
        await until(lambda: relay.held_bytes)
        relay.cut()
        await raised(StoreUnavailable, commit)
        assert await elsewhere.settle(owner, [generation.data_stream]) == {generation.data_stream: Tail(5, False)}
        relay.release()
        await until(lambda: relay.unheard_bytes)
        assert await elsewhere.tails([generation.data_stream]) == {generation.data_stream: Tail(5, False)}


async def test_a_commit_that_a_settle_overtook_asks_for_another_settle(database_url: str) -> None:
    async with opened(database_url) as store, opened(database_url) as elsewhere:
        owner = await store.register_owner()
        generation = await running(store, owner)
        # As if the answer to this store's own settle had been lost.
        await elsewhere.settle(owner, [])
        append = Append(generation.data_stream, 0, b"x")
        await raised(StoreUnavailable, store.commit(owner, [append], []))
        await raised(StoreUnavailable, store.commit(owner, [append], [ending(generation, 1)]))
        assert await store.settle(owner, [generation.data_stream]) == {generation.data_stream: Tail(0, False)}
        await store.commit(owner, [append], [])


async def test_a_commit_that_was_rolled_back_to_break_a_deadlock_runs_again(database_url: str) -> None:
    async with connected(database_url) as third:
        name = await third.fetchval("select current_database()")
        await third.execute(f"alter database {name} set deadlock_timeout = '20ms'")
        async with opened(database_url) as store:
            owner = await store.register_owner()
            one, two = await running(store, owner, key("one")), await running(store, owner, key("two"))
            rival = third.transaction()
            await rival.start()
            await third.execute("set local deadlock_timeout = '1h'")
            await take_key(third, two, 0)
            appends = [Append(generation.data_stream, 0, b"x") for generation in (one, two)]
            commit = asyncio.create_task(store.commit(owner, appends, []))
            await until_waiting(third)
            await take_key(third, one, 0)
            await rival.rollback()
            await commit
            assert await store.tails([one.data_stream, two.data_stream]) == {
                one.data_stream: Tail(1, False),
                two.data_stream: Tail(1, False),
            }


async def test_an_append_beside_one_of_another_length_cannot_land(database_url: str) -> None:
    """Two commits that saw the same tail: whichever comes second meets the first one's key, not its end."""
    async with opened(database_url) as store, connected(database_url) as third:
        owner = await store.register_owner()
        generation = await running(store, owner)
        await store.commit(owner, [Append(generation.data_stream, 0, b"12345")], [])
        rival = third.transaction()
        await rival.start()
        await take_key(third, generation, 5)
        commit = asyncio.create_task(store.commit(owner, [Append(generation.data_stream, 5, b"longer than that")], []))
        await until_waiting(third)
        await rival.commit()
        with pytest.raises(Exception, match="chunks_pkey"):
            await commit
        assert (await store.read(generation.data_stream, 0, 99)).data == b"12345rival"
