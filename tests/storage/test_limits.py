"""Limits of one holder: the rule by table, and in Postgres over several stores at once."""

from __future__ import annotations

import asyncio

import pytest

from streamkeep.storage import Owner, RateLimited, StoreError, Terms, TooManyGenerations
from streamkeep.storage.contract import ending, key, raised
from streamkeep.storage.postgres import PostgresStore
from streamkeep.storage.rules.limits import exceeded
from tests.postgres import connected, opened, until_waiting

_BOTH = Terms(holder="h", max_running=2, max_per_minute=3)


@pytest.mark.parametrize(
    ("terms", "running", "age_seconds", "expected"),
    [
        (_BOTH, 1, None, None),
        (_BOTH, 1, 60.0, None),
        (_BOTH, 2, None, TooManyGenerations),
        (_BOTH, 3, 60.0, TooManyGenerations),
        (_BOTH, 1, 59.9, RateLimited),
        (_BOTH, 0, 0.0, RateLimited),
        (Terms(holder="h", max_running=2), 1, 0.0, None),
        (Terms(holder="h", max_per_minute=3), 99, 61.0, None),
        (Terms(holder="h"), 99, 0.0, None),
    ],
)
def test_which_limit_stands_in_the_way(
    terms: Terms, running: int, age_seconds: float | None, expected: type[StoreError] | None
) -> None:
    found = exceeded(terms, running=running, age_seconds=age_seconds)
    assert (None if found is None else type(found)) is expected


def test_the_wait_is_until_the_claim_in_the_way_leaves_the_minute() -> None:
    limited = exceeded(_BOTH, running=0, age_seconds=45.0)
    assert isinstance(limited, RateLimited)
    assert limited.retry_after_seconds == 15.0


async def test_claims_of_an_earlier_minute_do_not_count(database_url: str) -> None:
    terms = Terms(holder="h", max_per_minute=2)
    async with opened(database_url) as store, connected(database_url) as third:
        owner = await store.register_owner()
        for request_id in ("r1", "r2"):
            await store.claim(owner, key(request_id), None, terms)
        await third.execute("update streamkeep.generations set created_at = created_at - interval '58 s'")
        limited = await raised(RateLimited, store.claim(owner, key("r3"), None, terms))
        assert 0 < limited.retry_after_seconds <= 2
        await third.execute("update streamkeep.generations set created_at = created_at - interval '2 s'")
        assert (await store.claim(owner, key("r3"), None, terms)).is_new


async def test_a_claim_elsewhere_waits_until_one_under_way_can_be_counted(database_url: str) -> None:
    terms = Terms(holder="h", max_running=1)
    async with opened(database_url) as one, opened(database_url) as two, connected(database_url) as third:
        owner, other = await one.register_owner(), await two.register_owner()
        gate = third.transaction()
        await gate.start()
        await third.execute("select from streamkeep.owners where id = $1 for update", owner.id)
        first = asyncio.create_task(one.claim(owner, key("first"), None, terms))
        await until_waiting(third, 1)
        second = asyncio.create_task(raised(TooManyGenerations, two.claim(other, key("second"), None, terms)))
        await until_waiting(third, 2)
        await gate.rollback()
        assert (await first).is_new
        await second


_MOST_AT_ONCE = """
select max((
    select count(*)
    from streamkeep.generations as other
    where other.created_at <= claimed.created_at and (other.ended_at is null or other.ended_at > claimed.created_at)
))
from streamkeep.generations as claimed
"""


async def test_two_thousand_claims_over_two_stores_never_exceed_five_at_once(database_url: str) -> None:
    """What was claimed ends at once, so that places come free while others are being counted."""
    terms = Terms(holder="h", max_running=5)
    async with opened(database_url) as one, opened(database_url) as two, connected(database_url) as third:

        async def claim(store: PostgresStore, owner: Owner, request_id: str) -> bool:
            try:
                claimed = await store.claim(owner, key(request_id), None, terms)
            except TooManyGenerations:
                return False
            await store.commit(owner, [], [ending(claimed.generation, 0)])
            return True

        owners = [(store, await store.register_owner()) for store in (one, two)]
        tries = [claim(store, owner, f"{owner.id}-{i}") for i in range(1000) for store, owner in owners]
        new = (await asyncio.gather(*tries)).count(True)
        assert await third.fetchval("select count(*) from streamkeep.generations") == new > 5
        assert await third.fetchval(_MOST_AT_ONCE) <= 5
