"""What a subscription does next (protocol 7): every decision about wakes, leases, acknowledgements and fencing.

    IDLE     nothing under way. Pending links make it due.
    WAKING   a wake has begun. Webhook: its request is being sent, or waits for its next attempt; callbacks are taken while
             the lease runs. Pull-wake: its event is being written, or waits for a worker.
    LEASED   somebody works: the webhook's receiver answered without `done`, or a worker claimed. Acknowledgements extend
             the lease; its end, or a release, leads back to IDLE.

    from      what happens                                  to
    IDLE      due, something pending                        WAKING, next generation
    IDLE      claim, something pending                      LEASED, next generation
    WAKING    due again, lease running (or none: pull)      WAKING, the same wake once more
    WAKING    due again, lease over                         WAKING, next generation
    WAKING    delivered, not done                           LEASED; pull-wake: WAKING, and not due any more
    WAKING    delivery failed                               WAKING, due after a pause
    WAKING    claim                                         LEASED, the same wake
    LEASED    lease over, something pending                 WAKING, next generation
    any       done, release, nothing pending when due       IDLE, due at once if something is pending

A caller proves its wake by its id and generation, in the token and in the request. Once they are not the current ones, or
the lease is over, all it gets is `SubscriptionFenced`. `due_at` is set ahead while a delivery is under way: should its
process die, another one takes over then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from streamkeep.storage._subscriptions import (
    MAX_WAKE_STREAMS,
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
    Wake,
)

MIN_LEASE_TTL_MS = 1000
MAX_LEASE_TTL_MS = 600_000
DEFAULT_LEASE_TTL_MS = 30_000
FAILING_AFTER = 5
"""So many failed deliveries in a row make the status `failed`; attempts go on."""

_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 60.0
_JITTER = 0.2


@dataclass(frozen=True, slots=True)
class Attempt:
    """A delivery to be made now: the subscription with its wake, and the streams as the wake shows them."""

    subscription: Subscription
    links: tuple[Link, ...]

    @property
    def generation(self) -> int:
        return self.subscription.wake.generation

    @property
    def wake_id(self) -> str:
        assert self.subscription.wake.id is not None
        return self.subscription.wake.id


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to deliver."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a caller shows: the generation in its token, and those in its request."""

    token_generation: int
    generation: int
    wake_id: str


def config_hash(config: SubscriptionConfig) -> bytes:
    """What makes two configurations the same (protocol 6.2)."""
    values = [
        config.delivery.value,
        config.pattern,
        list(config.streams),
        config.lease_ttl_ms,
        config.webhook_url,
        config.wake_stream,
        config.description,
    ]
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).digest()


def retry_seconds(attempts: int, spread: float) -> float:
    """The pause after so many failures in a row: 1 s, doubled up to 60 s, a fifth more or less; `spread` is -1 to 1."""
    doublings = min(attempts - 1, 10)
    return min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0**doublings) * (1 + _JITTER * spread)


def refreshed(link: Link, news: StreamNews) -> Link:
    """A link after news of its stream. A stream made anew under the path begins at nothing acknowledged."""
    if link.stream_id is not None and news.stream_id < link.stream_id:
        return link
    if link.stream_id == news.stream_id:
        return replace(link, tail=max(link.tail, news.tail))
    return replace(link, stream_id=news.stream_id, acked=news.start if news.is_new else 0, tail=news.tail)


def discovered(news: StreamNews) -> Link:
    """The link to a stream that a glob has just found: before the news (protocol 6.2)."""
    return Link(news.path, is_explicit=False, is_glob=True, stream_id=news.stream_id, acked=news.start, tail=news.tail)


def forgotten(link: Link) -> Link | None:
    """A link whose stream is gone: None when nothing but a glob made it."""
    return Link(link.path, is_explicit=True, is_glob=False) if link.is_explicit else None


def noticed(wake: Wake, now: datetime) -> Wake:
    """The wake after news that left something pending."""
    return replace(wake, due_at=now) if wake.phase is Phase.IDLE and wake.due_at is None else wake


def proceed(locked: Locked, *, wake_id: str, hold_seconds: float) -> Change[Attempt | Rest]:
    """A subscription is due. `wake_id` is for a new wake; within `hold_seconds` a delivery will have been reported."""
    subscription, now = locked.subscription, locked.now
    wake = subscription.wake
    is_webhook = subscription.config.delivery is Delivery.WEBHOOK
    if wake.phase is Phase.LEASED and _lease_runs(wake, now):
        return Change(replace(wake, due_at=wake.lease_until), Rest())
    if not locked.pending:
        return Change(_idle(wake, locked, ()), Rest())
    is_same = wake.phase is Phase.WAKING and (not is_webhook or _lease_runs(wake, now))
    if not is_same:
        attempts = wake.attempts if wake.phase is Phase.WAKING else 0
        wake = Wake(Phase.WAKING, wake.generation + 1, wake_id, attempts=attempts)
    wake = replace(
        wake,
        lease_until=_lease_end(subscription, now) if is_webhook else None,
        due_at=now + timedelta(seconds=hold_seconds),
    )
    return Change(wake, Attempt(replace(subscription, wake=wake), shown(locked)))


def failed(locked: Locked, attempt: Attempt, *, spread: float) -> Change[bool]:
    """A delivery came to nothing: try again after a pause. True when that is still this wake's concern."""
    wake = locked.subscription.wake
    if not _is_current(wake, attempt) or wake.phase is not Phase.WAKING:
        return Change(wake, False)
    attempts = wake.attempts + 1
    due_at = locked.now + timedelta(seconds=retry_seconds(attempts, spread))
    return Change(replace(wake, attempts=attempts, due_at=due_at), True)


def delivered(locked: Locked, attempt: Attempt) -> Change[bool]:
    """The receiver took the wake and works on it, or the wake's event is written."""
    wake = locked.subscription.wake
    if not _is_current(wake, attempt) or wake.phase is not Phase.WAKING:
        return Change(wake, False)
    if attempt.subscription.config.delivery is Delivery.PULL_WAKE:
        return Change(replace(wake, attempts=0, due_at=None), True)
    return Change(replace(wake, phase=Phase.LEASED, attempts=0, due_at=wake.lease_until), True)


def done(locked: Locked, attempt: Attempt) -> Change[bool]:
    """The receiver is done with what the wake showed: acknowledge exactly that."""
    wake = locked.subscription.wake
    if not _is_current(wake, attempt) or wake.phase is Phase.IDLE:
        return Change(wake, False)
    acked = []
    for sent in attempt.links:
        link = locked.links.get(sent.path)
        if link is not None and link.stream_id == sent.stream_id and sent.tail > link.acked:
            acked.append(replace(link, acked=sent.tail))
    return Change(_idle(wake, locked, acked), True, tuple(acked))


def claim(locked: Locked, *, worker: str, wake_id: str) -> Change[Attempt]:
    """A worker takes the lease; the answer is the wake that it has taken.

    Raises:
        AlreadyClaimed: somebody holds it.
        NoPendingWork: there is nothing to do.
    """
    subscription, now = locked.subscription, locked.now
    wake = subscription.wake
    if wake.phase is Phase.LEASED and _lease_runs(wake, now):
        raise AlreadyClaimed(wake.holder or "", wake.generation)
    if not locked.pending:
        raise NoPendingWork("every stream is acknowledged up to its tail")
    if wake.phase is not Phase.WAKING:
        wake = Wake(Phase.WAKING, wake.generation + 1, wake_id)
    until = _lease_end(subscription, now)
    wake = replace(wake, phase=Phase.LEASED, holder=worker, lease_until=until, attempts=0, due_at=until)
    return Change(wake, Attempt(replace(subscription, wake=wake), shown(locked)))


def acknowledge(
    locked: Locked, proof: Proof, acks: Mapping[str, int], *, news: Iterable[StreamNews] = (), is_done: bool
) -> Change[bool]:
    """Take acknowledgements, all or none; then extend the lease, or end the wake. True: another wake follows.

    `news` is what is known of the streams' tails beyond the links.

    Raises:
        SubscriptionFenced: the proof is not of the current wake, or its lease is over.
        InvalidAck: one of the offsets cannot be acknowledged.
    """
    wake = check(locked, proof)
    links = dict(locked.links)
    for one in news:
        if one.path in links:
            links[one.path] = refreshed(links[one.path], one)
    for path, position in acks.items():
        links[path] = _acked(links.get(path), path, position)
    changed = tuple(link for path, link in links.items() if link != locked.links[path])
    if is_done:
        wake = _idle(wake, locked, changed)
        return Change(wake, wake.due_at is not None, changed)
    until = _lease_end(locked.subscription, locked.now)
    return Change(replace(wake, phase=Phase.LEASED, lease_until=until, attempts=0, due_at=until), False, changed)


def release(locked: Locked, proof: Proof) -> Change[None]:
    """Give the lease back with nothing acknowledged; what is pending makes another wake. Raises: SubscriptionFenced."""
    return Change(_idle(check(locked, proof), locked, ()), None)


def check(locked: Locked, proof: Proof) -> Wake:
    """The current wake, if the proof is of it and its lease runs. Raises: SubscriptionFenced."""
    wake = locked.subscription.wake
    is_current = wake.generation == proof.generation == proof.token_generation and wake.id == proof.wake_id
    if not is_current or wake.phase is Phase.IDLE or not _lease_runs(wake, locked.now):
        raise SubscriptionFenced(f"generation {proof.generation} is over; the current one is {wake.generation}")
    return wake


def shown(locked: Locked) -> tuple[Link, ...]:
    """The streams that a wake names."""
    return tuple(locked.pending[:MAX_WAKE_STREAMS])


def _acked(link: Link | None, path: str, position: int) -> Link:
    if link is None or link.stream_id is None:
        raise InvalidAck(path, "no such stream is linked")
    if position < link.acked:
        raise InvalidAck(path, "the offset lies before the last acknowledged one")
    if position > link.tail:
        raise InvalidAck(path, "the offset lies beyond the stream's tail")
    return replace(link, acked=position)


def _idle(wake: Wake, locked: Locked, changed: Iterable[Link]) -> Wake:
    links = {**locked.links, **{link.path: link for link in changed}}
    is_pending = any(link.is_pending for link in links.values())
    return Wake(generation=wake.generation, due_at=locked.now if is_pending else None)


def _is_current(wake: Wake, attempt: Attempt) -> bool:
    return wake.generation == attempt.generation and wake.id == attempt.wake_id


def _lease_runs(wake: Wake, now: datetime) -> bool:
    return wake.lease_until is not None and now < wake.lease_until


def _lease_end(subscription: Subscription, now: datetime) -> datetime:
    return now + timedelta(milliseconds=subscription.config.lease_ttl_ms)
