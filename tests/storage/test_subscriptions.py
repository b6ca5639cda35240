"""The store's part of subscriptions, held by every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from streamkeep.storage import (
    Change,
    Delivery,
    Link,
    Locked,
    Phase,
    Store,
    StreamNews,
    SubscriptionConfig,
    SubscriptionExists,
    SubscriptionFenced,
    SubscriptionKey,
    SubscriptionNotFound,
    SubscriptionStore,
    TooManyLinks,
    Wake,
    WebhookKey,
)
from streamkeep.storage.rules import subscriptions as rules

KEY = SubscriptionKey("t", "s")
CONFIG = SubscriptionConfig(Delivery.WEBHOOK, "events/*", ("b",), 1000, webhook_url="https://example.com/")


@pytest.fixture
def subscriptions(store: Store) -> SubscriptionStore:
    return store.subscriptions


async def create(subscriptions: SubscriptionStore, *links: Link, key: SubscriptionKey = KEY) -> None:
    await subscriptions.create(key, CONFIG, rules.config_hash(CONFIG), "http://here", links)


def take(locked: Locked) -> Change[rules.Attempt | rules.Rest]:
    return rules.proceed(locked, wake_id=f"w{locked.subscription.wake.generation + 1}", hold_seconds=60)


async def test_a_subscription_is_found_as_it_was_made(subscriptions: SubscriptionStore) -> None:
    link = Link("b", is_explicit=True, is_glob=False, stream_id=7, acked=3, tail=3)
    made, is_new = await subscriptions.create(KEY, CONFIG, b"hash", "http://here", [link])
    assert is_new
    assert (made.config, made.base_url, made.wake) == (CONFIG, "http://here", Wake())
    assert await subscriptions.subscription(KEY) == made
    assert await subscriptions.links(KEY) == [link]
    assert await subscriptions.create(KEY, CONFIG, b"hash", "http://there", []) == (made, False)
    with pytest.raises(SubscriptionExists):
        await subscriptions.create(KEY, CONFIG, b"other", "http://here", [])


async def test_a_deleted_subscription_is_gone_and_its_generation_goes_on(subscriptions: SubscriptionStore) -> None:
    await create(subscriptions, Link("a", True, False, stream_id=1))
    await subscriptions.note("t", [StreamNews("a", 1, 0, 5)], [])
    assert isinstance(await subscriptions.change_due(take), rules.Attempt)
    await subscriptions.delete(KEY)
    for gone in (subscriptions.subscription, subscriptions.delete):
        with pytest.raises(SubscriptionNotFound):
            await gone(KEY)
    with pytest.raises(SubscriptionNotFound):
        await subscriptions.change(KEY, take)
    assert await subscriptions.links(KEY) == []
    assert await subscriptions.change_due(take) is None
    await create(subscriptions)
    assert (await subscriptions.subscription(KEY)).wake == Wake(generation=1)


async def test_links_are_added_once_and_removed_by_kind(subscriptions: SubscriptionStore) -> None:
    by_glob = Link("a", is_explicit=False, is_glob=True, stream_id=1, acked=2, tail=4)
    await create(subscriptions, by_glob)
    await subscriptions.link(KEY, [Link("a", True, False, stream_id=1, acked=4, tail=4), Link("b/c", True, False)])
    assert await subscriptions.links(KEY) == [replace(by_glob, is_explicit=True), Link("b/c", True, False)]
    for path in ("a", "b/c", "never"):
        await subscriptions.unlink(KEY, path)
    assert await subscriptions.links(KEY) == [by_glob]


async def test_explicit_links_are_limited(subscriptions: SubscriptionStore) -> None:
    await create(subscriptions, *(Link(f"x/{n}", True, False) for n in range(999)))
    await subscriptions.link(KEY, [Link("y/0", True, False)])
    with pytest.raises(TooManyLinks):
        await subscriptions.link(KEY, [Link("y/1", True, False)])
    assert len(await subscriptions.links(KEY, limit=2000)) == 1000


async def test_links_come_in_pages(subscriptions: SubscriptionStore) -> None:
    other = SubscriptionKey("t", "z")
    await create(subscriptions, Link("a", True, False), Link("b", True, False))
    await create(subscriptions, Link("a", True, False), key=other)
    assert [link.path for link in await subscriptions.links(KEY, after="a")] == ["b"]
    first = await subscriptions.all_links(limit=2)
    assert [(key.id, link.path) for key, link in first] == [("s", "a"), ("s", "b")]
    rest = await subscriptions.all_links(after=("t", "s", "b"), limit=2)
    assert [(key.id, link.path) for key, link in rest] == [("z", "a")]


async def test_news_make_linked_subscriptions_due_and_no_others(subscriptions: SubscriptionStore) -> None:
    other = SubscriptionKey("t", "other")
    await create(subscriptions, Link("a", True, False, stream_id=1))
    await create(subscriptions, Link("b", True, False, stream_id=2), key=other)
    assert await subscriptions.change_due(take) is None
    assert list(await subscriptions.note("t", [StreamNews("a", 1, 0, 5)], [])) == [KEY]
    assert list(await subscriptions.note("t", [StreamNews("a", 1, 5, 6)], [])) == []
    attempt = await subscriptions.change_due(take)
    assert isinstance(attempt, rules.Attempt)
    assert attempt.subscription.key == KEY
    assert [(link.path, link.acked, link.tail) for link in attempt.links] == [("a", 0, 6)]
    assert await subscriptions.change_due(take) is None
    assert (await subscriptions.subscription(KEY)).wake == attempt.subscription.wake


async def test_what_a_glob_finds_is_linked_before_its_news(subscriptions: SubscriptionStore) -> None:
    await create(subscriptions)
    await subscriptions.note("t", [StreamNews("events/a", 1, 10, 15)], [("s", "events/a"), ("none", "events/a")])
    assert await subscriptions.links(KEY) == [Link("events/a", False, True, stream_id=1, acked=10, tail=15)]


async def test_a_decision_that_raises_changes_nothing(subscriptions: SubscriptionStore) -> None:
    await create(subscriptions, Link("a", True, False, stream_id=1, tail=5))
    before = await subscriptions.subscription(KEY)
    with pytest.raises(SubscriptionFenced):
        await subscriptions.change(KEY, lambda locked: rules.release(locked, rules.Proof(1, 1, "w")))
    assert await subscriptions.subscription(KEY) == before


async def test_acknowledged_links_stay_acknowledged(subscriptions: SubscriptionStore) -> None:
    await create(
        subscriptions, Link("a", True, False, stream_id=1, tail=5), Link("b", True, False, stream_id=2, tail=5)
    )
    attempt = await subscriptions.change(KEY, lambda locked: rules.claim(locked, worker="me", wake_id="w"))
    proof = rules.Proof(1, 1, "w")
    assert await subscriptions.change(
        KEY, lambda locked: rules.acknowledge(locked, proof, {"a": 5}, is_done=True), paths=["a"]
    )
    assert [link.acked for link in await subscriptions.links(KEY)] == [5, 0]
    wake = (await subscriptions.subscription(KEY)).wake
    assert (wake.phase, wake.generation, wake.id) == (Phase.IDLE, attempt.generation, None)
    assert wake.due_at is not None


async def test_streams_that_are_gone_are_forgotten_but_not_what_was_asked_for(subscriptions: SubscriptionStore) -> None:
    await create(
        subscriptions,
        Link("a", True, True, stream_id=1, acked=1, tail=5),
        Link("events/b", False, True, stream_id=2, acked=1, tail=5),
        Link("c", True, False, stream_id=3, acked=1, tail=5),
    )
    await subscriptions.forget("t", [1, 2])
    assert await subscriptions.links(KEY) == [
        Link("a", True, False),
        Link("c", True, False, stream_id=3, acked=1, tail=5),
    ]


async def test_the_watch_tells_tenants_and_globs(subscriptions: SubscriptionStore) -> None:
    assert (await subscriptions.watch()).tenants == frozenset()
    await create(subscriptions)
    watch = await subscriptions.watch()
    assert watch.tenants == {"t"}
    assert [(glob.key, glob.pattern) for glob in watch.globs] == [(KEY, "events/*")]
    await subscriptions.delete(KEY)
    assert await subscriptions.watch() == type(watch)()


async def test_a_round_comes_once_in_its_time(subscriptions: SubscriptionStore) -> None:
    assert [await subscriptions.claim_round(60) for _ in range(2)] == [True, False]


async def test_there_is_one_key_in_use(subscriptions: SubscriptionStore) -> None:
    found = await asyncio.gather(*(subscriptions.webhook_keys(WebhookKey(f"k{n}", bytes(32))) for n in range(5)))
    assert len({keys[0].kid for keys in found}) == 1
    assert [len(keys) for keys in found] == [1] * 5
    assert found[0][0].private_key == bytes(32)


async def test_of_many_takers_each_due_subscription_has_one(subscriptions: SubscriptionStore) -> None:
    keys = [SubscriptionKey("t", f"s{n}") for n in range(10)]
    for key in keys:
        await create(subscriptions, Link("a", True, False, stream_id=1), key=key)
    await subscriptions.note("t", [StreamNews("a", 1, 0, 5)], [])

    async def take_all() -> list[SubscriptionKey]:
        taken = []
        while (attempt := await subscriptions.change_due(take)) is not None:
            assert isinstance(attempt, rules.Attempt)
            taken.append(attempt.subscription.key)
        return taken

    taken = [key for found in await asyncio.gather(*(take_all() for _ in range(4))) for key in found]
    assert sorted(taken, key=lambda key: key.id) == keys


async def test_what_is_not_due_yet_is_left_alone(subscriptions: SubscriptionStore) -> None:
    await create(subscriptions, Link("a", True, False, stream_id=1, tail=5))

    def later(locked: Locked) -> Change[None]:
        return Change(replace(locked.subscription.wake, due_at=locked.now + timedelta(hours=1)), None)

    await subscriptions.change(KEY, later)
    assert await subscriptions.change_due(take) is None
