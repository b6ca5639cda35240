"""RemoteSubscriptions: the store's part of subscriptions, through the journal.

A decision is a function, and cannot be written down. So it is made here, on what the replica shows, and its outcome goes
into the journal with what it was made of; when that is not what stands there any more, it is made again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from streamkeep.storage._subscriptions import (
    MAX_WAKE_STREAMS,
    Change,
    Decide,
    Link,
    StreamNews,
    Subscription,
    SubscriptionConfig,
    SubscriptionKey,
    T,
    Watch,
    WebhookKey,
)
from streamkeep.storage.remote._journal import Journal
from streamkeep.storage.remote._replica import ReplicaSubscriptions


class RemoteSubscriptions:
    """See `SubscriptionStore` for what each method means."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __repr__(self) -> str:
        return f"RemoteSubscriptions({self._journal!r})"

    async def create(
        self, key: SubscriptionKey, config: SubscriptionConfig, config_hash: bytes, base_url: str, links: Sequence[Link]
    ) -> tuple[Subscription, bool]:
        made = await self._write("create", key, config, config_hash, base_url, links)
        return cast("tuple[Subscription, bool]", made)

    async def subscription(self, key: SubscriptionKey) -> Subscription:
        return await (await self._current()).subscription(key)

    async def links(self, key: SubscriptionKey, *, after: str = "", limit: int = MAX_WAKE_STREAMS) -> list[Link]:
        return await (await self._current()).links(key, after=after, limit=limit)

    async def delete(self, key: SubscriptionKey) -> None:
        await self._write("delete", key)

    async def link(self, key: SubscriptionKey, links: Sequence[Link]) -> None:
        await self._write("link", key, links)

    async def unlink(self, key: SubscriptionKey, path: str) -> None:
        await self._write("unlink", key, path)

    async def watch(self) -> Watch:
        return await (await self._current()).watch()

    async def note(
        self, tenant: str, news: Sequence[StreamNews], matches: Sequence[tuple[str, str]]
    ) -> Collection[SubscriptionKey]:
        return cast("Collection[SubscriptionKey]", await self._write("note", tenant, news, matches))

    async def forget(self, tenant: str, stream_ids: Collection[int]) -> None:
        await self._write("forget", tenant, list(stream_ids))

    async def change(self, key: SubscriptionKey, decide: Decide[T], *, paths: Collection[str] = ()) -> T:
        while True:
            change = await self._try_change(key, decide, paths)
            if change is not None:
                return change.answer

    async def change_due(self, decide: Decide[T]) -> T | None:
        while True:
            key = (await self._current()).longest_due()
            if key is None:
                return None
            # Whoever comes second looks again which one is due.
            change = await self._try_change(key, decide, ())
            if change is not None:
                return change.answer

    async def _try_change(self, key: SubscriptionKey, decide: Decide[T], paths: Collection[str]) -> Change[T] | None:
        """A decision in effect; None: what it was made of has changed meanwhile."""
        locked = (await self._current()).locked(key, paths)
        change = decide(locked)
        seen = list(locked.links.values())
        is_done = await self._write("replace", locked.subscription, seen, list(paths), change.wake, change.links)
        return change if is_done else None

    async def all_links(
        self, *, after: tuple[str, str, str] = ("", "", ""), limit: int
    ) -> list[tuple[SubscriptionKey, Link]]:
        return await (await self._current()).all_links(after=after, limit=limit)

    async def claim_round(self, seconds: float) -> bool:
        if not (await self._current()).is_round_due:
            return False
        return cast("bool", await self._write("claim_round", seconds))

    async def webhook_keys(self, candidate: WebhookKey) -> list[WebhookKey]:
        return cast("list[WebhookKey]", await self._write("webhook_keys", candidate))

    async def _current(self) -> ReplicaSubscriptions:
        await self._journal.catch_up()
        return self._journal.replica.subscriptions

    async def _write(self, name: str, *arguments: object) -> object:
        return await self._journal.write(f"subscriptions.{name}", *arguments)
