"""Subscriptions: who is to be told when streams grow, how far each one has got, and the store's part of it.

A subscription follows streams through *links*, each with the position up to which it was acknowledged and the tail that
is known. What a subscription does next is decided in `rules/subscriptions.py`; a store locks the row, asks, and writes
down the answer. So nothing about a wake lives in a process.

SubscriptionError
├── SubscriptionNotFound   there is none, or it was deleted
├── SubscriptionExists     the id is taken by another configuration
├── SubscriptionFenced     the wake is over, or a newer one has begun
├── AlreadyClaimed         a worker holds the lease; carries its name and the generation
├── NoPendingWork          every stream is acknowledged up to its tail
├── InvalidAck             an offset that cannot be acknowledged; carries the path
└── TooManyLinks           more streams than one subscription may name
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from streamkeep.storage._errors import StoreError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_WAKE_STREAMS = 1000
"""How many streams one wake names. What is pending beyond that comes with the next one."""

MAX_EXPLICIT_LINKS = 1000
"""How many streams a subscription may name one by one."""


class SubscriptionError(StoreError):
    """The root of what subscriptions refuse."""


class SubscriptionNotFound(SubscriptionError):
    """There is no subscription under that id."""


class SubscriptionExists(SubscriptionError):
    """The id belongs to a subscription of another configuration."""


class SubscriptionFenced(SubscriptionError):
    """This wake may not do anything any more: it is over, expired, or overtaken."""


class AlreadyClaimed(SubscriptionError):
    """Another worker holds the lease."""

    def __init__(self, holder: str, generation: int) -> None:
        super().__init__(f"{holder!r} holds generation {generation}")
        self.holder = holder
        self.generation = generation


class NoPendingWork(SubscriptionError):
    """Nothing to claim."""


class InvalidAck(SubscriptionError):
    """A stream that is not linked, or an offset before the last acknowledged one or beyond the tail."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


class TooManyLinks(SubscriptionError):
    """The subscription would name more streams than it may."""


class Delivery(StrEnum):
    """How a subscriber learns of news; the values are those on the wire."""

    WEBHOOK = "webhook"
    PULL_WAKE = "pull-wake"


class Phase(StrEnum):
    """Where a subscription stands; `rules/subscriptions.py` says what leads from one to the next."""

    IDLE = "idle"
    WAKING = "waking"
    LEASED = "leased"


@dataclass(frozen=True, slots=True)
class SubscriptionKey:
    """What names a subscription."""

    tenant: str
    id: str


@dataclass(frozen=True, slots=True)
class SubscriptionConfig:
    """What a subscriber asks for, in normal form: `streams` sorted, each once. `webhook_url` for the one kind of
    delivery, `wake_stream` for the other."""

    delivery: Delivery
    pattern: str | None
    streams: tuple[str, ...]
    lease_ttl_ms: int
    webhook_url: str | None = None
    wake_stream: str | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    """The wake of a subscription, or what is left of its last one.

    `generation` grows with every wake and never returns to an earlier value, not even over a deletion. `attempts` counts
    deliveries that failed in a row. `due_at` is when somebody has to look at the subscription next.
    """

    phase: Phase = Phase.IDLE
    generation: int = 0
    id: str | None = None
    holder: str | None = None
    lease_until: datetime | None = None
    attempts: int = 0
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription's row. `base_url` is how its creator reached this service; callbacks lead there."""

    key: SubscriptionKey
    config: SubscriptionConfig
    base_url: str
    created_at: datetime
    wake: Wake = field(default_factory=Wake)


@dataclass(frozen=True, slots=True)
class Link:
    """A stream that a subscription follows. `stream_id` is None while there is no such stream; a stream made anew under
    the path begins at nothing acknowledged. `tail` is what is known, and may lag behind for a moment."""

    path: str
    is_explicit: bool
    is_glob: bool
    stream_id: int | None = None
    acked: int = 0
    tail: int = 0

    @property
    def is_pending(self) -> bool:
        """Whether there is something that nobody has acknowledged."""
        return self.tail > self.acked


@dataclass(slots=True)
class StreamNews:
    """A stream grew from `start` to `tail`; `is_new` says that `start` is where its life began."""

    path: str
    stream_id: int
    start: int
    tail: int
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Glob:
    """A subscription that follows every stream whose path matches; `wake_stream` is the one that it never follows."""

    key: SubscriptionKey
    pattern: str
    wake_stream: str | None


@dataclass(frozen=True, slots=True)
class Watch:
    """What there is to look out for: the globs, and the tenants that have any subscription at all."""

    tenants: frozenset[str] = frozenset()
    globs: tuple[Glob, ...] = ()


@dataclass(frozen=True, slots=True)
class Locked:
    """A subscription as a decision sees it: its row, links (all pending ones up to a bound, and those that were named), and
    the store's time."""

    subscription: Subscription
    links: Mapping[str, Link]
    now: datetime

    @property
    def pending(self) -> list[Link]:
        """In path order."""
        return [self.links[path] for path in sorted(self.links) if self.links[path].is_pending]


@dataclass(frozen=True, slots=True)
class Change(Generic[T_co]):
    """What a decision wants: the wake from now on, links as they are to stand, and an answer for the caller."""

    wake: Wake
    answer: T_co
    links: tuple[Link, ...] = ()


Decide = Callable[[Locked], Change[T]]
"""A decision: pure, and raises a `SubscriptionError` to leave everything as it was."""


@dataclass(frozen=True, slots=True)
class WebhookKey:
    """A key pair that signs webhooks: `kid` names it, `private_key` is its 32 secret bytes."""

    kid: str
    private_key: bytes = field(repr=False)
    created_at: datetime | None = None
    retired_at: datetime | None = None


class SubscriptionStore(Protocol):
    """The store's part of subscriptions; each method is one transaction, and durable when it returns."""

    async def create(
        self, key: SubscriptionKey, config: SubscriptionConfig, config_hash: bytes, base_url: str, links: Sequence[Link]
    ) -> tuple[Subscription, bool]:
        """Make a subscription with its links, or find the one of the same hash; whether this call made it.

        Made anew after a deletion, it goes on from the generation that it had.

        Raises:
            SubscriptionExists: the id is taken by another configuration.
        """

    async def subscription(self, key: SubscriptionKey) -> Subscription:
        """Raises: SubscriptionNotFound."""

    async def links(self, key: SubscriptionKey, *, after: str = "", limit: int = MAX_WAKE_STREAMS) -> list[Link]:
        """A subscription's links in path order, beginning after a path; none when there is no such subscription."""

    async def delete(self, key: SubscriptionKey) -> None:
        """Delete it and leave a tombstone, which keeps the generation.

        Raises:
            SubscriptionNotFound: there is none, or it was deleted before.
        """

    async def link(self, key: SubscriptionKey, links: Sequence[Link]) -> None:
        """Add explicit links. One that exists stays as it is, and is explicit from now on.

        Raises:
            SubscriptionNotFound: there is none.
            TooManyLinks: nothing was added.
        """

    async def unlink(self, key: SubscriptionKey, path: str) -> None:
        """Remove the explicit link; a link by glob stays. Does nothing when there is no such link.

        Raises:
            SubscriptionNotFound: there is none.
        """

    async def watch(self) -> Watch:
        """What there is to look out for now."""

    async def note(
        self, tenant: str, news: Sequence[StreamNews], matches: Sequence[tuple[str, str]]
    ) -> Collection[SubscriptionKey]:
        """Bring the links of streams that grew up to date, and make what is idle and now pending due.

        `matches` are subscription ids with paths that their globs match; a missing link is made, at where the stream's news
        begins. At most one piece of news for each path. Returns the subscriptions that became due.
        """

    async def forget(self, tenant: str, stream_ids: Collection[int]) -> None:
        """Streams that are gone: links by glob go with them, explicit ones wait for a stream of that path."""

    async def change(self, key: SubscriptionKey, decide: Decide[T], *, paths: Collection[str] = ()) -> T:
        """Lock a subscription, let `decide` look at it and at the links of `paths`, and do as it says.

        Raises:
            SubscriptionNotFound: there is none.
            SubscriptionError: whatever `decide` raised; nothing was changed.
        """

    async def change_due(self, decide: Decide[T]) -> T | None:
        """As `change`, for the one that has been due for longest and that nobody holds; None when there is none."""

    async def all_links(
        self, *, after: tuple[str, str, str] = ("", "", ""), limit: int
    ) -> list[tuple[SubscriptionKey, Link]]:
        """The links of all subscriptions, ordered by tenant, subscription and path, beginning after such a triple."""

    async def claim_round(self, seconds: float) -> bool:
        """Whether this caller is to do the round of checks that comes once in so many seconds, over all instances."""

    async def webhook_keys(self, candidate: WebhookKey) -> list[WebhookKey]:
        """The keys that sign or once signed webhooks, the one in use first; `candidate` becomes the first there ever is."""
