"""MemorySubscriptions: the store's part of subscriptions in one process's memory; nothing survives it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from streamkeep.storage._subscriptions import (
    MAX_EXPLICIT_LINKS,
    MAX_WAKE_STREAMS,
    Change,
    Decide,
    Glob,
    Link,
    Locked,
    StreamNews,
    Subscription,
    SubscriptionConfig,
    SubscriptionExists,
    SubscriptionKey,
    SubscriptionNotFound,
    T,
    TooManyLinks,
    Wake,
    Watch,
    WebhookKey,
)
from streamkeep.storage.rules.subscriptions import discovered, forgotten, noticed, refreshed


@dataclass(slots=True)
class _Row:
    subscription: Subscription
    config_hash: bytes
    links: dict[str, Link] = field(default_factory=dict)


class MemorySubscriptions:
    """See `SubscriptionStore` for what each method means."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._rows: dict[SubscriptionKey, _Row] = {}
        self._generations: dict[SubscriptionKey, int] = {}
        self._keys: list[WebhookKey] = []
        self._next_round_at = now()

    def __repr__(self) -> str:
        return f"MemorySubscriptions({len(self._rows)})"

    async def create(
        self, key: SubscriptionKey, config: SubscriptionConfig, config_hash: bytes, base_url: str, links: Sequence[Link]
    ) -> tuple[Subscription, bool]:
        found = self._rows.get(key)
        if found is not None:
            if found.config_hash != config_hash:
                raise SubscriptionExists(f"{key.id} has another configuration")
            return found.subscription, False
        wake = Wake(generation=self._generations.pop(key, 0))
        made = Subscription(key, config, base_url, self._now(), wake)
        self._rows[key] = _Row(made, config_hash, {link.path: link for link in links})
        return made, True

    def erase(self, tenant: str) -> None:
        """Forget everything of a tenant's."""
        self._rows = {key: row for key, row in self._rows.items() if key.tenant != tenant}
        self._generations = {key: last for key, last in self._generations.items() if key.tenant != tenant}

    async def subscription(self, key: SubscriptionKey) -> Subscription:
        return self._row(key).subscription

    async def links(self, key: SubscriptionKey, *, after: str = "", limit: int = MAX_WAKE_STREAMS) -> list[Link]:
        row = self._rows.get(key)
        links = row.links if row is not None else {}
        return [links[path] for path in sorted(links) if path > after][:limit]

    async def delete(self, key: SubscriptionKey) -> None:
        self._generations[key] = self._row(key).subscription.wake.generation
        del self._rows[key]

    async def link(self, key: SubscriptionKey, links: Sequence[Link]) -> None:
        row = self._row(key)
        merged = {link.path: replace(row.links.get(link.path, link), is_explicit=True) for link in links}
        if sum(link.is_explicit for link in {**row.links, **merged}.values()) > MAX_EXPLICIT_LINKS:
            raise TooManyLinks(f"a subscription may name {MAX_EXPLICIT_LINKS} streams")
        row.links |= merged

    async def unlink(self, key: SubscriptionKey, path: str) -> None:
        links = self._row(key).links
        found = links.get(path)
        if found is not None and found.is_glob:
            links[path] = replace(found, is_explicit=False)
        else:
            links.pop(path, None)

    async def watch(self) -> Watch:
        globs = [
            Glob(key, row.subscription.config.pattern, row.subscription.config.wake_stream)
            for key, row in self._rows.items()
            if row.subscription.config.pattern is not None
        ]
        return Watch(frozenset(key.tenant for key in self._rows), tuple(globs))

    async def note(
        self, tenant: str, news: Sequence[StreamNews], matches: Sequence[tuple[str, str]]
    ) -> Collection[SubscriptionKey]:
        due = []
        by_path = {one.path: one for one in news}
        for key, row in self._rows.items():
            if key.tenant != tenant:
                continue
            changed = {path: refreshed(row.links[path], one) for path, one in by_path.items() if path in row.links}
            for id, path in matches:
                if id == key.id:
                    known = changed.get(path)
                    changed[path] = replace(known, is_glob=True) if known is not None else discovered(by_path[path])
            row.links |= changed
            if any(link.is_pending for link in changed.values()):
                wake = noticed(row.subscription.wake, self._now())
                if wake != row.subscription.wake:
                    row.subscription = replace(row.subscription, wake=wake)
                    due.append(key)
        return due

    async def forget(self, tenant: str, stream_ids: Collection[int]) -> None:
        gone = set(stream_ids)
        for key, row in self._rows.items():
            if key.tenant == tenant:
                links = [forgotten(link) if link.stream_id in gone else link for link in row.links.values()]
                row.links = {link.path: link for link in links if link is not None}

    async def change(self, key: SubscriptionKey, decide: Decide[T], *, paths: Collection[str] = ()) -> T:
        return self._apply(self._row(key), decide(self._locked(key, paths)))

    async def change_due(self, decide: Decide[T]) -> T | None:
        key = self._longest_due()
        return await self.change(key, decide) if key is not None else None

    async def all_links(
        self, *, after: tuple[str, str, str] = ("", "", ""), limit: int
    ) -> list[tuple[SubscriptionKey, Link]]:
        found = sorted(
            ((key.tenant, key.id, path), (key, link))
            for key, row in self._rows.items()
            for path, link in row.links.items()
            if (key.tenant, key.id, path) > after
        )
        return [item for _, item in found[:limit]]

    async def claim_round(self, seconds: float) -> bool:
        now = self._now()
        if now < self._next_round_at:
            return False
        self._next_round_at = now + timedelta(seconds=seconds)
        return True

    async def webhook_keys(self, candidate: WebhookKey) -> list[WebhookKey]:
        if not self._keys:
            self._keys.append(replace(candidate, created_at=self._now()))
        return list(self._keys)

    def _locked(self, key: SubscriptionKey, paths: Collection[str]) -> Locked:
        row = self._row(key)
        # All links are at hand here; a decision may ask for none that it has not named.
        links = {path: link for path, link in row.links.items() if link.is_pending or path in set(paths)}
        return Locked(row.subscription, links, self._now())

    def _longest_due(self) -> SubscriptionKey | None:
        now = self._now()
        due = [
            (wake.due_at, key)
            for key, row in self._rows.items()
            if (wake := row.subscription.wake).due_at is not None and wake.due_at <= now
        ]
        return min(due, key=lambda one: one[0])[1] if due else None

    def _row(self, key: SubscriptionKey) -> _Row:
        try:
            return self._rows[key]
        except KeyError:
            raise SubscriptionNotFound(f"no subscription {key.id}") from None

    def _apply(self, row: _Row, change: Change[T]) -> T:
        row.subscription = replace(row.subscription, wake=change.wake)
        row.links |= {link.path: link for link in change.links}
        return change.answer
