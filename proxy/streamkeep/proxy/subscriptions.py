"""Subscriptions at work: news of streams in, wakes out (protocol 6, 7).

Three loops, in every instance. One notes news: each append and creation of this process is handed to `stream_changed`, and
what has gathered is written to the links of the subscriptions that it concerns, in one transaction. One delivers: it takes
what is due from the store, which no other instance can take meanwhile, sends it, and reports. One does rounds: once in a
while, in one instance at a time, the links are compared with the streams themselves, so that news which died with a process
only come late.

Nothing that matters is kept here. A delivery that is never reported is taken up again when its hold is over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar
from urllib.parse import urlencode

from streamkeep.proxy.rules.subscription_requests import SubscriptionRefused, WakeRequest, refused
from streamkeep.proxy.rules.subscription_tokens import TokenSigner
from streamkeep.proxy.rules.webhook_signing import jwks, webhook_key
from streamkeep.proxy.rules.webhook_urls import WebhookUrlRejected
from streamkeep.proxy.webhooks import DEADLINE_SECONDS, Answer, Webhooks
from streamkeep.storage import (
    DEFAULT_TENANT,
    Change,
    Delivery,
    InvalidAck,
    Link,
    Locked,
    NoPendingWork,
    Producer,
    Store,
    StoreError,
    StoreUnavailable,
    StreamAppend,
    StreamGone,
    StreamInfo,
    StreamKey,
    StreamNews,
    StreamNotFound,
    Subscription,
    SubscriptionConfig,
    SubscriptionKey,
    SubscriptionNotFound,
    Watch,
    WebhookKey,
)
from streamkeep.storage.appender import Appender
from streamkeep.storage.pauses import Pauses
from streamkeep.storage.rules import subscriptions as rules
from streamkeep.storage.rules.globs import literal_prefix, matches
from streamkeep.storage.rules.json_messages import encode_message
from streamkeep.storage.rules.offsets import format_offset

logger = logging.getLogger(__name__)

T = TypeVar("T")

_HOLD_SECONDS = DEADLINE_SECONDS + 5.0
_POLL_SECONDS = 0.5
_WATCH_SECONDS = 1.0
_ROUND_SECONDS = 15.0
_PAUSE_SECONDS = 1.0
_KEYS_SECONDS = 30.0
_MAX_DELIVERIES = 200
_MAX_NEWS = 100_000
_BATCH = 500
_PAGE = 1000
_PRIVATE_KEY_BYTES = 32


class Subscriptions:
    """Create, read, change and serve subscriptions; `run` must be running for anything to be delivered.

    `webhooks` is closed with it. `public_url` is the base of callback URLs; None: as the subscription's creator reached this service.
    """

    def __init__(self, store: Store, appender: Appender, webhooks: Webhooks, *, public_url: str | None) -> None:
        self._store = store
        self._subscriptions = store.subscriptions
        self._appender = appender
        self._public_url = public_url
        self._webhooks = webhooks
        self._signer: TokenSigner | None = None
        self._keys: tuple[float, list[WebhookKey]] | None = None
        self._watch = Watch()
        # News not yet written, and news that a subscription made in another process may not have seen.
        self._news: dict[StreamKey, StreamNews] = {}
        self._recent: dict[StreamKey, StreamNews] = {}
        self._has_news = asyncio.Event()
        self._noting = asyncio.Lock()
        self._is_due = asyncio.Event()

    def __repr__(self) -> str:
        return f"Subscriptions(globs={len(self._watch.globs)}, news={len(self._news)})"

    async def open(self) -> None:
        """Read what there is. Raises: StoreError."""
        self._signer = TokenSigner.derived(await self._store.signing_key())
        self._watch = await self._subscriptions.watch()

    async def close(self) -> None:
        await self._webhooks.close()

    async def run(self) -> None:
        """Note news, deliver and do rounds for as long as the process lives."""
        async with asyncio.TaskGroup() as tasks:
            for work in (self._note_news, self._follow_watch, self._deliver_due, self._do_rounds):
                tasks.create_task(work(), name=f"subscriptions{work.__name__}")

    # News

    def stream_changed(self, key: StreamKey, stream_id: int, start: int, tail: int, *, is_new: bool = False) -> None:
        """A stream was created here, or grew from `start` to `tail`, and that is committed."""
        if start == tail and not is_new:
            return
        news = StreamNews(key.path, stream_id, start, tail, is_new)
        _add(self._recent, key, news)
        if key.tenant in self._watch.tenants:
            _add(self._news, key, news)
            self._has_news.set()

    async def _note_news(self) -> None:
        while True:
            await self._has_news.wait()
            await self._patiently(self._flush)

    async def _flush(self) -> None:
        """Write down all news there are. On failure they stay."""
        async with self._noting:
            self._has_news.clear()
            news, self._news = self._news, {}
            try:
                await self._note(news)
            except (StoreUnavailable, asyncio.CancelledError):
                self._news = news | self._news
                self._has_news.set()
                raise

    async def _note(self, news: Mapping[StreamKey, StreamNews]) -> None:
        for tenant in {key.tenant for key in news} & self._watch.tenants:
            found = [one for key, one in news.items() if key.tenant == tenant]
            for start in range(0, len(found), _BATCH):
                batch = found[start : start + _BATCH]
                if await self._subscriptions.note(tenant, batch, await self._matches(tenant, batch)):
                    self._is_due.set()

    async def _matches(self, tenant: str, news: Iterable[StreamNews]) -> list[tuple[str, str]]:
        globs = [glob for glob in self._watch.globs if glob.key.tenant == tenant]
        found, pauses = [], Pauses()
        for one in news:
            for glob in globs:
                if one.path != glob.wake_stream and matches(glob.pattern, one.path):
                    found.append((glob.key.id, one.path))
                await pauses.take()
        return found

    async def _follow_watch(self) -> None:
        """Learn of subscriptions that other instances made, and show them what they have just missed."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            await self._patiently(self._refresh_watch)

    async def _refresh_watch(self) -> None:
        recent, self._recent = self._recent, {}
        watch = await self._subscriptions.watch()
        if watch != self._watch:
            self._watch = watch
            self._news = recent | self._news
            self._has_news.set()

    # Deliveries

    async def _deliver_due(self) -> None:
        places = asyncio.Semaphore(_MAX_DELIVERIES)
        async with asyncio.TaskGroup() as tasks:

            async def deliver_all() -> None:
                while self._watch.tenants:
                    await places.acquire()
                    try:
                        step = await self._subscriptions.change_due(_proceed)
                    except BaseException:
                        places.release()
                        raise
                    if isinstance(step, rules.Attempt):
                        task = tasks.create_task(self._deliver(step))
                        task.add_done_callback(lambda _: places.release())
                        continue
                    places.release()
                    if step is None:
                        return

            while True:
                self._is_due.clear()
                await self._patiently(deliver_all)
                try:
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._is_due.wait()
                except TimeoutError:
                    pass

    async def _deliver(self, attempt: rules.Attempt) -> None:
        """Make one attempt and report it. Not reported, it is made again."""
        try:
            is_webhook = attempt.subscription.config.delivery is Delivery.WEBHOOK
            report = await (self._send(attempt) if is_webhook else self._announce(attempt))
            await self._change(attempt.subscription.key, report, [link.path for link in attempt.links])
        except SubscriptionNotFound:
            return
        except StoreError as exc:
            logger.warning("a delivery to %s was not reported: %s", attempt.subscription.key.id, type(exc).__name__)
        except Exception:
            logger.exception("a delivery failed in a way that nobody foresaw")

    async def _send(self, attempt: rules.Attempt) -> Callable[[Locked], Change[bool]]:
        subscription = attempt.subscription
        assert subscription.config.webhook_url is not None
        now = time.time()
        value = {
            "subscription_id": subscription.key.id,
            "wake_id": attempt.wake_id,
            "generation": attempt.generation,
            "streams": [link_json(link) for link in attempt.links],
            "callback_url": self._callback_url(subscription),
            "callback_token": self._tokens.issue(subscription.key, attempt.generation, now=now),
        }
        key = (await self._webhook_keys())[0]
        try:
            answer = await self._webhooks.send(subscription.config.webhook_url, value, key, at=int(now))
        except WebhookUrlRejected:
            # The rules for URLs have become stricter since.
            answer = Answer.FAILED
        match answer:
            case Answer.DONE:
                return partial(rules.done, attempt=attempt)
            case Answer.ACCEPTED:
                return partial(rules.delivered, attempt=attempt)
            case Answer.FAILED:
                return _failed(attempt)

    async def _announce(self, attempt: rules.Attempt) -> Callable[[Locked], Change[bool]]:
        """Append the wake's event. A repeat of it is the same producer's same sequence, and stores nothing."""
        subscription = attempt.subscription
        assert subscription.config.wake_stream is not None
        event = {
            "type": "wake",
            "subscription_id": subscription.key.id,
            "stream": attempt.links[0].path,
            "generation": attempt.generation,
            "ts": int(time.time() * 1000),
        }
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
        key = StreamKey(subscription.key.tenant, subscription.config.wake_stream)
        producer = Producer(f"__ds/subscriptions/{subscription.key.id}", attempt.generation, 0)
        try:
            appended = await self._appender.append(
                StreamAppend(key, encode_message(text), "application/json", producer=producer)
            )
        except StoreError as exc:
            logger.info("no wake could be written to %s: %s", key.path, type(exc).__name__)
            return _failed(attempt)
        if not appended.is_duplicate:
            self.stream_changed(key, appended.stream_id, appended.position, appended.tail.position)
        return partial(rules.delivered, attempt=attempt)

    # Rounds

    async def _do_rounds(self) -> None:
        # Whatever died with the last process that ran here is looked for at once.
        await self._patiently(self._round)
        while True:
            await asyncio.sleep(_ROUND_SECONDS / 3)
            await self._patiently(self._round_if_ours)

    async def _round_if_ours(self) -> None:
        if self._watch.tenants and await self._subscriptions.claim_round(_ROUND_SECONDS):
            await self._round()

    async def _round(self) -> None:
        """Compare all links with their streams, and all streams with the globs."""
        linked: set[tuple[SubscriptionKey, str]] = set()
        after = ("", "", "")
        while page := await self._subscriptions.all_links(after=after, limit=_PAGE):
            await self._check_links(page)
            linked.update((key, link.path) for key, link in page)
            key, link = page[-1]
            after = (key.tenant, key.id, link.path)
        for glob in self._watch.globs:
            async for stream in self._streams(glob.key.tenant, glob.pattern):
                if (glob.key, stream.key.path) not in linked and stream.key.path != glob.wake_stream:
                    _add(self._news, stream.key, StreamNews(stream.key.path, stream.id, 0, stream.tail.position))
        if self._news:
            self._has_news.set()

    async def _check_links(self, page: Sequence[tuple[SubscriptionKey, Link]]) -> None:
        tails = await self._store.tails({link.stream_id for _, link in page if link.stream_id is not None})
        for key, link in page:
            stream_key = StreamKey(key.tenant, link.path)
            tail = None if link.stream_id is None else tails.get(link.stream_id)
            if tail is not None and link.stream_id is not None:
                if tail.position > link.tail:
                    _add(self._news, stream_key, StreamNews(link.path, link.stream_id, link.tail, tail.position))
                continue
            found = await self._found(stream_key)
            if found is not None:
                _add(self._news, stream_key, StreamNews(link.path, found.id, 0, found.tail.position))
            elif link.stream_id is not None:
                await self._subscriptions.forget(key.tenant, [link.stream_id])

    # Control

    async def create(
        self, key: SubscriptionKey, config: SubscriptionConfig, base_url: str
    ) -> tuple[Subscription, bool]:
        """Make a subscription, its streams linked at their tails, or find the same one; whether this call made it.

        Raises:
            SubscriptionRefused: the wake stream cannot take events.
            SubscriptionExists: the id has another configuration.
        """
        digest = rules.config_hash(config)
        try:
            await self._subscriptions.subscription(key)
            return await self._subscriptions.create(key, config, digest, base_url, [])
        except SubscriptionNotFound:
            pass
        if config.wake_stream is not None:
            wake_stream = await self._found(StreamKey(key.tenant, config.wake_stream))
            if wake_stream is None or not wake_stream.is_message_stream or wake_stream.tail.is_closed:
                raise refused("wake_stream must be an existing, open stream of application/json")
        links = {link.path: link for link in await self._explicit_links(key.tenant, config.streams)}
        if config.pattern is not None:
            async for stream in self._streams(key.tenant, config.pattern):
                path, tail = stream.key.path, stream.tail.position
                if path != config.wake_stream:
                    links[path] = Link(path, path in links, True, stream.id, tail, tail)
        made = await self._subscriptions.create(key, config, digest, base_url, list(links.values()))
        await self._refresh_watch()
        return made

    async def subscription(self, key: SubscriptionKey) -> tuple[Subscription, list[Link]]:
        """A subscription and its links. Raises: SubscriptionNotFound."""
        subscription = await self._subscriptions.subscription(key)
        links: list[Link] = []
        while page := await self._subscriptions.links(key, after=links[-1].path if links else "", limit=_PAGE):
            links += page
        return subscription, links

    async def delete(self, key: SubscriptionKey) -> None:
        """Raises: SubscriptionNotFound."""
        await self._subscriptions.delete(key)

    async def link(self, key: SubscriptionKey, paths: Sequence[str]) -> None:
        """Follow more streams, each from its tail. Raises: SubscriptionNotFound, SubscriptionRefused, TooManyLinks."""
        if (await self._subscriptions.subscription(key)).config.wake_stream in paths:
            raise refused("a subscription cannot follow its own wake_stream")
        await self._subscriptions.link(key, await self._explicit_links(key.tenant, paths))

    async def unlink(self, key: SubscriptionKey, path: str) -> None:
        """Follow a stream no longer, unless a glob does. Raises: SubscriptionNotFound."""
        await self._subscriptions.unlink(key, path)

    async def claim(self, key: SubscriptionKey, worker: str) -> tuple[rules.Attempt, str]:
        """Take the lease for a worker; the wake, and the token that proves it.

        Raises:
            SubscriptionNotFound, AlreadyClaimed, NoPendingWork: nothing was taken.
            SubscriptionRefused: it is a webhook's.
        """
        await self._check_delivery(key, Delivery.PULL_WAKE)
        if key.tenant not in self._watch.tenants:
            await self._refresh_watch()
        # What was appended before this request is pending for it.
        await self._flush()
        decide = partial(rules.claim, worker=worker, wake_id=_new_wake_id())
        try:
            attempt = await self._change(key, decide)
        except NoPendingWork:
            # The links may lag behind what was appended elsewhere.
            links = (await self.subscription(key))[1]
            for start in range(0, len(links), _PAGE):
                await self._check_links([(key, link) for link in links[start : start + _PAGE]])
            await self._flush()
            attempt = await self._change(key, decide)
        return attempt, self._tokens.issue(key, attempt.generation, now=time.time())

    async def acknowledge(self, key: SubscriptionKey, delivery: Delivery, token: str, request: WakeRequest) -> bool:
        """Take acknowledgements, all or none; whether another wake follows.

        Raises:
            TokenInvalid, TokenExpired, SubscriptionNotFound, SubscriptionFenced, InvalidAck, SubscriptionRefused: none
                was taken.
        """
        proof = await self._proof(key, delivery, token, request)
        acks = dict(request.acks)
        decide = partial(rules.acknowledge, proof=proof, acks=acks, is_done=request.is_done)
        try:
            return await self._change(key, decide, list(acks))
        except InvalidAck:
            # The links may lag behind what a worker has read.
            found = [await self._found(StreamKey(key.tenant, path)) for path in acks]
            news = [StreamNews(one.key.path, one.id, 0, one.tail.position) for one in found if one is not None]
            return await self._change(key, partial(decide, news=news), list(acks))

    async def release(self, key: SubscriptionKey, token: str, request: WakeRequest) -> None:
        """Give a claimed lease back. Raises as `acknowledge` does."""
        proof = await self._proof(key, Delivery.PULL_WAKE, token, request)
        await self._change(key, partial(rules.release, proof=proof))

    async def public_keys(self) -> dict[str, list[dict[str, str]]]:
        """The page of keys that verify webhooks' signatures."""
        return jwks(await self._webhook_keys(), now=datetime.now(UTC))

    async def key_id(self) -> str:
        """The key that signs webhooks now."""
        return (await self._webhook_keys())[0].kid

    # What they share

    @property
    def _tokens(self) -> TokenSigner:
        assert self._signer is not None, "subscriptions are not open"
        return self._signer

    async def _webhook_keys(self) -> list[WebhookKey]:
        """As they were within the last half minute: another instance may have put a new one in use."""
        now = time.monotonic()
        if self._keys is None or now - self._keys[0] > _KEYS_SECONDS:
            candidate = webhook_key(secrets.token_bytes(_PRIVATE_KEY_BYTES))
            self._keys = (now, await self._subscriptions.webhook_keys(candidate))
        return self._keys[1]

    async def _change(
        self, key: SubscriptionKey, decide: Callable[[Locked], Change[T]], paths: Sequence[str] = ()
    ) -> T:
        answer = await self._subscriptions.change(key, decide, paths=paths)
        self._is_due.set()
        return answer

    async def _proof(self, key: SubscriptionKey, delivery: Delivery, token: str, request: WakeRequest) -> rules.Proof:
        token_generation = self._tokens.generation(token, key, now=time.time())
        await self._check_delivery(key, delivery)
        return rules.Proof(token_generation, request.generation, request.wake_id)

    async def _check_delivery(self, key: SubscriptionKey, delivery: Delivery) -> None:
        if (await self._subscriptions.subscription(key)).config.delivery is not delivery:
            raise SubscriptionRefused(400, "INVALID_REQUEST", f"this is not a {delivery.value} subscription")

    async def _explicit_links(self, tenant: str, paths: Iterable[str]) -> list[Link]:
        links = []
        for path in paths:
            stream = await self._found(StreamKey(tenant, path))
            tail = 0 if stream is None else stream.tail.position
            links.append(Link(path, True, False, None if stream is None else stream.id, tail, tail))
        return links

    async def _streams(self, tenant: str, pattern: str) -> AsyncIterator[StreamInfo]:
        """The streams that match a glob."""
        prefix, after, pauses = literal_prefix(pattern), "", Pauses()
        while page := await self._store.list_streams(tenant, prefix=prefix, after=after, limit=_PAGE):
            for stream in page:
                if matches(pattern, stream.key.path):
                    yield stream
                await pauses.take()
            after = page[-1].key.path

    async def _found(self, key: StreamKey) -> StreamInfo | None:
        try:
            return await self._store.stream(key, is_touched=False)
        except (StreamNotFound, StreamGone):
            return None

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it; when the database is away, wait a little and leave the rest to the next time."""
        try:
            await work()
        except StoreUnavailable:
            await asyncio.sleep(_PAUSE_SECONDS)
        except StoreError:
            logger.exception("subscriptions could not go on")
            await asyncio.sleep(_PAUSE_SECONDS)

    def _callback_url(self, subscription: Subscription) -> str:
        key, base_url = subscription.key, self._public_url or subscription.base_url
        query = "" if key.tenant == DEFAULT_TENANT else f"?{urlencode({'tenant': key.tenant})}"
        return f"{base_url}/v1/stream/__ds/subscriptions/{key.id}/callback{query}"


def link_json(link: Link) -> dict[str, object]:
    """A link as answers and webhooks show it (protocol 6, 7.1)."""
    return {
        "path": link.path,
        "link_type": "explicit" if link.is_explicit else "glob",
        "acked_offset": format_offset(link.acked),
        "tail_offset": format_offset(link.tail),
        "has_pending": link.is_pending,
    }


def _proceed(locked: Locked) -> Change[rules.Attempt | rules.Rest]:
    return rules.proceed(locked, wake_id=_new_wake_id(), hold_seconds=_HOLD_SECONDS)


def _failed(attempt: rules.Attempt) -> Callable[[Locked], Change[bool]]:
    return partial(rules.failed, attempt=attempt, spread=random.uniform(-1, 1))


def _new_wake_id() -> str:
    return f"wake_{secrets.token_hex(12)}"


def _add(news: dict[StreamKey, StreamNews], key: StreamKey, one: StreamNews) -> None:
    """Put news beside those that wait. Beyond a bound they are left to the next round."""
    known = news.get(key)
    if known is None:
        if len(news) < _MAX_NEWS:
            news[key] = one
    elif one.stream_id > known.stream_id:
        news[key] = one
    elif one.stream_id == known.stream_id:
        start = min(known.start, one.start)
        news[key] = StreamNews(key.path, one.stream_id, start, max(known.tail, one.tail), known.is_new or one.is_new)
