"""Rules of subscriptions by table: globs, pauses, links, and the wake's states."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from streamkeep.storage import (
    AlreadyClaimed,
    Change,
    Delivery,
    InvalidAck,
    Link,
    Locked,
    NoPendingWork,
    Phase,
    StreamNews,
    Subscription,
    SubscriptionConfig,
    SubscriptionFenced,
    SubscriptionKey,
    Wake,
)
from streamkeep.storage.rules import subscriptions as rules
from streamkeep.storage.rules.globs import literal_prefix, matches

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("events/*", "events/a", True),
        ("events/*", "events/a/b", False),
        ("events/*", "events", False),
        ("events/*", "other/a", False),
        ("events/**", "events", True),
        ("events/**", "events/a/b/c", True),
        ("**", "a", True),
        ("**", "a/b", True),
        ("**", "__registry__", False),
        ("__registry__", "__registry__", True),
        ("**/z", "z", True),
        ("**/z", "a/b/z", True),
        ("**/z", "a/b/zz", False),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("a/**/z", "a", False),
        ("a/**/m/*/**/z", "a/x/m/y/z", True),
        ("a/**/m/*/**/z", "a/m/z", False),
        ("a/**/a", "a", False),
        ("*/x-*", "a/x-1", True),
        ("*/x-*-y", "a/x-1-2-y", True),
        ("ab*ba", "aba", False),
        ("a.c", "abc", False),
    ],
)
def test_a_glob_matches_segments(pattern: str, path: str, is_match: bool) -> None:
    assert matches(pattern, path) is is_match
    if is_match:
        assert path.startswith(literal_prefix(pattern))


def test_no_glob_is_slow() -> None:
    assert not matches("**/a*a*a*a*a*a/" * 50 + "b", ("a" * 30 + "/") * 60 + "c")


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1000, 60)])
def test_pauses_double_up_to_a_minute_with_a_fifth_of_jitter(attempts: int, seconds: float) -> None:
    assert rules.retry_seconds(attempts, 0) == seconds
    assert rules.retry_seconds(attempts, 1) == pytest.approx(seconds * 1.2)
    assert rules.retry_seconds(attempts, -1) == pytest.approx(seconds * 0.8)


def test_news_move_a_link_s_tail_forward_only() -> None:
    link = Link("a", True, False, stream_id=1, acked=5, tail=10)
    assert rules.refreshed(link, StreamNews("a", 1, 10, 20)) == replace(link, tail=20)
    assert rules.refreshed(link, StreamNews("a", 1, 5, 8)) == link


def test_a_stream_made_anew_begins_at_nothing_acknowledged() -> None:
    link = Link("a", True, False, stream_id=1, acked=500, tail=500)
    assert rules.refreshed(link, StreamNews("a", 2, 0, 3, is_new=True)) == replace(link, stream_id=2, acked=0, tail=3)
    assert rules.refreshed(replace(link, stream_id=2), StreamNews("a", 1, 0, 900)).tail == 500


def test_a_fork_is_followed_from_where_it_branches_off() -> None:
    link = Link("a", True, False)
    assert rules.refreshed(link, StreamNews("a", 2, 40, 50, is_new=True)) == replace(
        link, stream_id=2, acked=40, tail=50
    )


def locked(delivery: Delivery, *links: Link, wake: Wake | None = None, now: datetime = NOW) -> Locked:
    config = SubscriptionConfig(
        delivery,
        "events/*",
        (),
        1000,
        webhook_url="https://example.com/" if delivery is Delivery.WEBHOOK else None,
        wake_stream="wake" if delivery is Delivery.PULL_WAKE else None,
    )
    subscription = Subscription(SubscriptionKey("t", "s"), config, "http://here", NOW, wake or Wake())
    return Locked(subscription, {link.path: link for link in links}, now)


PENDING = Link("events/a", False, True, stream_id=1, acked=0, tail=10)


def attempt_of(now: Locked) -> rules.Attempt:
    answer = rules.proceed(now, wake_id="w1", hold_seconds=15).answer
    assert isinstance(answer, rules.Attempt)
    return answer


def test_what_is_pending_wakes_with_the_next_generation() -> None:
    change = rules.proceed(locked(Delivery.WEBHOOK, PENDING), wake_id="w1", hold_seconds=15)
    assert isinstance(change.answer, rules.Attempt)
    assert change.answer.links == (PENDING,)
    assert change.wake == Wake(
        Phase.WAKING, 1, "w1", lease_until=NOW + timedelta(seconds=1), due_at=NOW + timedelta(seconds=15)
    )


def test_nothing_pending_is_idle_and_not_due() -> None:
    change = rules.proceed(locked(Delivery.WEBHOOK, wake=Wake(due_at=NOW)), wake_id="w1", hold_seconds=15)
    assert (change.wake, change.answer) == (Wake(), rules.Rest())


@pytest.mark.parametrize(("late_seconds", "generation"), [(0.5, 1), (1.0, 2)])
def test_a_retry_repeats_its_wake_while_the_lease_runs(late_seconds: float, generation: int) -> None:
    first = attempt_of(locked(Delivery.WEBHOOK, PENDING)).subscription.wake
    later = locked(Delivery.WEBHOOK, PENDING, wake=first, now=NOW + timedelta(seconds=late_seconds))
    change = rules.proceed(later, wake_id="w2", hold_seconds=15)
    assert (change.wake.generation, change.wake.id) == (generation, f"w{generation}")


def test_a_pull_wake_event_that_was_not_confirmed_is_repeated() -> None:
    first = attempt_of(locked(Delivery.PULL_WAKE, PENDING)).subscription.wake
    assert first.lease_until is None
    again = rules.proceed(
        locked(Delivery.PULL_WAKE, PENDING, wake=first, now=NOW + timedelta(hours=1)), wake_id="w2", hold_seconds=15
    )
    assert (again.wake.generation, again.wake.id) == (1, "w1")


@pytest.mark.parametrize("delivery", Delivery)
def test_a_lease_that_is_over_leads_to_another_wake(delivery: Delivery) -> None:
    wake = Wake(Phase.LEASED, 4, "w", holder="me", lease_until=NOW, due_at=NOW)
    change = rules.proceed(locked(delivery, PENDING, wake=wake), wake_id="w1", hold_seconds=15)
    assert (change.wake.phase, change.wake.generation, change.wake.holder) == (Phase.WAKING, 5, None)


def test_done_acknowledges_what_the_wake_showed_and_no_more() -> None:
    attempt = attempt_of(locked(Delivery.WEBHOOK, PENDING))
    grown = replace(PENDING, tail=25)
    change = rules.done(locked(Delivery.WEBHOOK, grown, wake=attempt.subscription.wake), attempt)
    assert change.links == (replace(grown, acked=10),)
    assert change.wake == Wake(generation=1, due_at=NOW)


def test_what_an_overtaken_delivery_reports_changes_nothing() -> None:
    attempt = attempt_of(locked(Delivery.WEBHOOK, PENDING))
    newer = Wake(Phase.WAKING, 2, "w2", lease_until=NOW + timedelta(seconds=1))
    now = locked(Delivery.WEBHOOK, PENDING, wake=newer)
    assert [rules.done(now, attempt), rules.delivered(now, attempt), rules.failed(now, attempt, spread=0)] == [
        Change(newer, False)
    ] * 3


def claimed(*links: Link) -> tuple[Wake, rules.Proof]:
    change = rules.claim(locked(Delivery.PULL_WAKE, *links), worker="me", wake_id="w1")
    return change.wake, rules.Proof(change.wake.generation, change.wake.generation, "w1")


def test_one_worker_holds_the_lease() -> None:
    wake, _ = claimed(PENDING)
    with pytest.raises(AlreadyClaimed) as caught:
        rules.claim(locked(Delivery.PULL_WAKE, PENDING, wake=wake), worker="you", wake_id="w2")
    assert (caught.value.holder, caught.value.generation) == ("me", 1)


def test_nothing_pending_is_nothing_to_claim() -> None:
    with pytest.raises(NoPendingWork):
        rules.claim(locked(Delivery.PULL_WAKE), worker="me", wake_id="w1")


@pytest.mark.parametrize(
    "changed", [{"token_generation": 2}, {"generation": 2}, {"wake_id": "w2"}, {"token_generation": 0}]
)
def test_a_proof_of_anything_but_the_current_wake_is_fenced(changed: dict[str, object]) -> None:
    wake, proof = claimed(PENDING)
    with pytest.raises(SubscriptionFenced):
        rules.release(locked(Delivery.PULL_WAKE, PENDING, wake=wake), replace(proof, **changed))  # type: ignore[arg-type]


def test_a_lease_that_is_over_fences_its_holder() -> None:
    wake, proof = claimed(PENDING)
    late = locked(Delivery.PULL_WAKE, PENDING, wake=wake, now=NOW + timedelta(seconds=1))
    with pytest.raises(SubscriptionFenced):
        rules.acknowledge(late, proof, {}, is_done=True)


@pytest.mark.parametrize(
    "acks", [{"events/a": 11}, {"events/b": 0}, {"events/a": 10, "events/none": 1}, {"events/a": 10, "events/gone": 0}]
)
def test_one_bad_acknowledgement_refuses_all(acks: dict[str, int]) -> None:
    wake, proof = claimed(PENDING)
    now = locked(Delivery.PULL_WAKE, PENDING, Link("events/gone", True, False), wake=wake)
    with pytest.raises(InvalidAck):
        rules.acknowledge(now, proof, acks, is_done=True)


def test_an_acknowledgement_never_goes_back() -> None:
    wake, proof = claimed(PENDING)
    with pytest.raises(InvalidAck):
        rules.acknowledge(
            locked(Delivery.PULL_WAKE, replace(PENDING, acked=5), wake=wake), proof, {"events/a": 4}, is_done=False
        )


def test_an_acknowledgement_without_done_extends_the_lease() -> None:
    wake, proof = claimed(PENDING)
    later = locked(Delivery.PULL_WAKE, PENDING, wake=wake, now=NOW + timedelta(seconds=0.9))
    change = rules.acknowledge(later, proof, {"events/a": 4}, is_done=False)
    assert change.wake.lease_until == NOW + timedelta(seconds=1.9)
    assert change.links == (replace(PENDING, acked=4),)
    assert change.answer is False


def test_done_with_something_left_announces_another_wake() -> None:
    wake, proof = claimed(PENDING)
    now = locked(Delivery.PULL_WAKE, PENDING, wake=wake)
    assert rules.acknowledge(now, proof, {"events/a": 4}, is_done=True).answer is True
    assert rules.acknowledge(now, proof, {"events/a": 10}, is_done=True).answer is False


def test_bytes_beyond_the_known_tail_can_be_acknowledged_when_they_exist() -> None:
    wake, proof = claimed(PENDING)
    now = locked(Delivery.PULL_WAKE, PENDING, wake=wake)
    news = [StreamNews("events/a", 1, 10, 30)]
    change = rules.acknowledge(now, proof, {"events/a": 30}, news=news, is_done=True)
    assert change.links == (replace(PENDING, acked=30, tail=30),)
    assert change.wake.due_at is None
