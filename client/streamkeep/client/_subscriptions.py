"""Subscriptions of a stream server, the work that they hand out, and the webhooks that they send.

A `Worker` of a pull-wake subscription follows its wake stream, claims what there is to do, and renews the lease while its
handler works. Whatever was not acknowledged when a lease ends, by a handler's exception or a worker's death, is
handed out again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import httpx

from streamkeep.client._calls import timeouts_of
from streamkeep.client._channel import AsyncChannel, BlockingChannel, run_blocking
from streamkeep.client._errors import ConnectionFailed, LeaseLost, ProtocolError, ServerError
from streamkeep.client._handles import AsyncDurableStream, DurableStream, HandleCore
from streamkeep.client._peer import Address, Peer, Values, checked_url
from streamkeep.client._reading import StreamReading
from streamkeep.client._retry import Patience
from streamkeep.client._rules import protocol, subscriptions, webhooks
from streamkeep.client._rules.reading import Live
from streamkeep.client._rules.subscriptions import Lease, SubscribedStream, Subscription
from streamkeep.client._streams import DEFAULT_STREAM_TIMEOUT

logger = logging.getLogger("streamkeep.client")

_RENEWALS_PER_LEASE = 3
_KEYS_SECONDS = 300.0
_KEYS_AGAIN_SECONDS = 10.0
_JSON = {"Content-Type": protocol.JSON}


class Subscriptions:
    """The subscriptions of the server whose streams stand below `root_url`, as `http://127.0.0.1:4000/v1/stream`.

    Headers, parameters, `timeout`, `patience` and `http` are as in `DurableStream`. Streams are named by their paths below
    the root.
    """

    def __init__(
        self,
        root_url: str,
        *,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.BaseTransport | None = None,
    ) -> None:
        address = Address(root_url, headers, params)
        peer = Peer(BlockingChannel(http), address, within=timeouts_of(timeout), patience=patience or Patience())
        self._core = SubscriptionsCore(peer, root_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    def create(
        self,
        subscription_id: str,
        *,
        pattern: str | None = None,
        streams: Sequence[str] = (),
        webhook_url: str | None = None,
        wake_stream: str | None = None,
        lease_seconds: float | None = None,
        description: str | None = None,
    ) -> Subscription:
        """Subscribe to streams by name, and to all that match a glob: by webhook, or by events in a wake stream.

        The same again finds the subscription. The wake stream must be there, as a JSON stream.

        Raises:
            ServerError: another subscription has this id (409), or the server refuses this one.
            ConnectionFailed, ValueError.
        """
        return run_blocking(
            self._core.create(
                subscription_id,
                pattern=pattern,
                streams=streams,
                webhook_url=webhook_url,
                wake_stream=wake_stream,
                lease_seconds=lease_seconds,
                description=description,
            )
        )

    def get(self, subscription_id: str) -> Subscription:
        """A subscription and its streams, with what was acknowledged of each. Raises: ServerError (404)."""
        return run_blocking(self._core.get(subscription_id))

    def delete(self, subscription_id: str) -> None:
        """End a subscription. Raises: ServerError (404)."""
        run_blocking(self._core.delete(subscription_id))

    def link(self, subscription_id: str, *streams: str) -> None:
        """Add streams, from their tails on. Raises: ServerError (404)."""
        run_blocking(self._core.link(subscription_id, streams))

    def unlink(self, subscription_id: str, stream: str) -> None:
        """Take out a stream that was named; a glob may still match it. Raises: ServerError (404)."""
        run_blocking(self._core.unlink(subscription_id, stream))

    def disconnect(self) -> None:
        """Close the connections."""
        run_blocking(self._core.peer.channel.close())


class AsyncSubscriptions:
    """`Subscriptions` for asyncio."""

    def __init__(
        self,
        root_url: str,
        *,
        headers: Values | None = None,
        params: Values | None = None,
        timeout: httpx.Timeout | float | None = DEFAULT_STREAM_TIMEOUT,
        patience: Patience | None = None,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        address = Address(root_url, headers, params)
        peer = Peer(AsyncChannel(http), address, within=timeouts_of(timeout), patience=patience or Patience())
        self._core = SubscriptionsCore(peer, root_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def create(
        self,
        subscription_id: str,
        *,
        pattern: str | None = None,
        streams: Sequence[str] = (),
        webhook_url: str | None = None,
        wake_stream: str | None = None,
        lease_seconds: float | None = None,
        description: str | None = None,
    ) -> Subscription:
        """`Subscriptions.create`, awaited."""
        return await self._core.create(
            subscription_id,
            pattern=pattern,
            streams=streams,
            webhook_url=webhook_url,
            wake_stream=wake_stream,
            lease_seconds=lease_seconds,
            description=description,
        )

    async def get(self, subscription_id: str) -> Subscription:
        """`Subscriptions.get`, awaited."""
        return await self._core.get(subscription_id)

    async def delete(self, subscription_id: str) -> None:
        """`Subscriptions.delete`, awaited."""
        await self._core.delete(subscription_id)

    async def link(self, subscription_id: str, *streams: str) -> None:
        """`Subscriptions.link`, awaited."""
        await self._core.link(subscription_id, streams)

    async def unlink(self, subscription_id: str, stream: str) -> None:
        """`Subscriptions.unlink`, awaited."""
        await self._core.unlink(subscription_id, stream)

    async def disconnect(self) -> None:
        """Close the connections."""
        await self._core.peer.channel.close()


class Work:
    """What a worker has claimed: streams with something new. Everything in it counts as done when the handler returns."""

    def __init__(self, core: WorkCore) -> None:
        self._core = core

    @property
    def streams(self) -> tuple[SubscribedStream, ...]:
        """The streams, those without news too: read each on from its `acked_offset`."""
        return self._core.lease.streams

    @property
    def is_lost(self) -> bool:
        """Whether the lease is known to have gone to somebody else: stop then."""
        return self._core.is_lost

    def stream(self, path: str) -> DurableStream:
        """A handle for one of the streams; it shares the worker's connections."""
        handle = DurableStream.__new__(DurableStream)
        handle._core = self._core.stream(path)
        return handle

    def ack(self, path: str, offset: str) -> None:
        """Everything before an offset is done, whatever happens to the rest; also extends the lease. Raises: LeaseLost."""
        run_blocking(self._core.acknowledge({path: offset}, is_done=False))


class AsyncWork:
    """`Work` for asyncio. A handler whose lease is lost is cancelled."""

    def __init__(self, core: WorkCore) -> None:
        self._core = core

    @property
    def streams(self) -> tuple[SubscribedStream, ...]:
        """The streams, those without news too: read each on from its `acked_offset`."""
        return self._core.lease.streams

    def stream(self, path: str) -> AsyncDurableStream:
        """A handle for one of the streams; it shares the worker's connections."""
        handle = AsyncDurableStream.__new__(AsyncDurableStream)
        handle._core = self._core.stream(path)
        return handle

    async def ack(self, path: str, offset: str) -> None:
        """`Work.ack`, awaited."""
        await self._core.acknowledge({path: offset}, is_done=False)


class Worker:
    """Do the work of a pull-wake subscription, one piece at a time, in this thread; leases are renewed in another.

    `handle` gets each piece of work. When it returns, all of that counts as done. When it raises, the work is released for
    others, but for what it acknowledged itself, and `run` ends with the exception. `name` tells the server who works.
    """

    def __init__(
        self,
        subscriptions: Subscriptions,
        subscription_id: str,
        handle: Callable[[Work], object],
        *,
        name: str = "worker",
    ) -> None:
        self._core = _WorkerCore(subscriptions._core, subscription_id, name)
        self._handle = handle
        self._is_stopped = threading.Event()

    def run(self) -> None:
        """Work until `stop` is called. Raises: ServerError, ConnectionFailed, and what the handler does."""
        self._is_stopped.clear()
        run_blocking(self._core.run(self._do, self._is_stopped.is_set))

    def stop(self) -> None:
        """End `run` after the work under way, or within seconds where there is none. From any thread."""
        self._is_stopped.set()

    async def _do(self, work: WorkCore) -> None:
        is_over = threading.Event()

        def renew() -> None:
            while not is_over.wait(work.renewal_seconds):
                try:
                    run_blocking(work.renew())
                except LeaseLost:
                    return

        renewing = threading.Thread(target=renew, name="streamkeep-lease", daemon=True)
        renewing.start()
        try:
            self._handle(Work(work))
        finally:
            is_over.set()
            renewing.join()


class AsyncWorker:
    """`Worker` for asyncio; a handler whose lease is lost is cancelled, and the work goes on with the next piece."""

    def __init__(
        self,
        subscriptions: AsyncSubscriptions,
        subscription_id: str,
        handle: Callable[[AsyncWork], Awaitable[object]],
        *,
        name: str = "worker",
    ) -> None:
        self._core = _WorkerCore(subscriptions._core, subscription_id, name)
        self._handle = handle
        self._is_stopped = False

    async def run(self) -> None:
        """`Worker.run`, awaited. Cancelling it releases the work under way."""
        self._is_stopped = False
        await self._core.run(self._do, lambda: self._is_stopped)

    def stop(self) -> None:
        """End `run` after the work under way, or within seconds where there is none."""
        self._is_stopped = True

    async def _do(self, work: WorkCore) -> None:
        async def renew() -> None:
            while True:
                await asyncio.sleep(work.renewal_seconds)
                await work.renew()

        async def handle() -> None:
            await self._handle(AsyncWork(work))

        renewing, handling = asyncio.create_task(renew()), asyncio.create_task(handle())
        try:
            await asyncio.wait([renewing, handling], return_when=asyncio.FIRST_COMPLETED)
            if handling.done():
                handling.result()
            else:
                renewing.result()
        finally:
            for task in (renewing, handling):
                task.cancel()
            await asyncio.gather(renewing, handling, return_exceptions=True)


class WebhookKeys:
    """Check webhooks with the keys that their server publishes at `jwks_url` (`Subscription.jwks_url`).

    The keys are kept for five minutes, and asked for again sooner when a webhook names one that is not among them. Needs
    `streamkeep[webhooks]`, and raises ImportError without it.
    """

    def __init__(
        self, jwks_url: str, *, tolerance_seconds: float = 300.0, http: httpx.BaseTransport | None = None
    ) -> None:
        self._core = _KeysCore(
            Peer(BlockingChannel(http), Address(jwks_url), within=timeouts_of(10.0), patience=Patience()),
            tolerance_seconds,
        )

    def verify(self, body: bytes, signature: str | None) -> None:
        """Check a webhook's raw body against its header `Webhook-Signature`.

        Raises:
            WebhookRefused: answer 401. ServerError, ConnectionFailed, ProtocolError: the keys cannot be had.
        """
        run_blocking(self._core.verify(body, signature))

    def disconnect(self) -> None:
        """Close the connections."""
        run_blocking(self._core.peer.channel.close())


class AsyncWebhookKeys:
    """`WebhookKeys` for asyncio, as in a FastAPI route: `await keys.verify(await request.body(), signature)`."""

    def __init__(
        self, jwks_url: str, *, tolerance_seconds: float = 300.0, http: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._core = _KeysCore(
            Peer(AsyncChannel(http), Address(jwks_url), within=timeouts_of(10.0), patience=Patience()),
            tolerance_seconds,
        )

    async def verify(self, body: bytes, signature: str | None) -> None:
        """`WebhookKeys.verify`, awaited."""
        await self._core.verify(body, signature)

    async def disconnect(self) -> None:
        """Close the connections."""
        await self._core.peer.channel.close()


class SubscriptionsCore:
    """What both kinds of subscribers ask."""

    def __init__(self, peer: Peer, root_url: str) -> None:
        self.peer = peer
        self.root_url: str = checked_url(root_url)

    def at(self, *segments: str) -> Peer:
        return self.peer.at(subscriptions.url(self.root_url, *segments))

    def stream(self, path: str) -> Peer:
        return self.peer.at(f"{self.root_url.rstrip('/')}/{path}")

    async def create(
        self,
        subscription_id: str,
        *,
        pattern: str | None,
        streams: Sequence[str],
        webhook_url: str | None,
        wake_stream: str | None,
        lease_seconds: float | None,
        description: str | None,
    ) -> Subscription:
        config = subscriptions.config(
            pattern=pattern,
            streams=streams,
            webhook_url=webhook_url,
            wake_stream=wake_stream,
            lease_seconds=lease_seconds,
            description=description,
        )
        answer = await self.at(subscription_id).ask("PUT", _JSON, json.dumps(config).encode())
        return subscriptions.parse_subscription(answer.content)

    async def get(self, subscription_id: str) -> Subscription:
        return subscriptions.parse_subscription((await self.at(subscription_id).ask("GET")).content)

    async def delete(self, subscription_id: str) -> None:
        await self.at(subscription_id).ask("DELETE")

    async def link(self, subscription_id: str, streams: Sequence[str]) -> None:
        body = json.dumps({"streams": list(streams)}).encode()
        await self.at(subscription_id, "streams").ask("POST", _JSON, body)

    async def unlink(self, subscription_id: str, stream: str) -> None:
        await self.at(subscription_id, "streams", stream).ask("DELETE")


class WorkCore:
    """One lease, for as long as it holds."""

    def __init__(self, core: SubscriptionsCore, subscription_id: str, lease: Lease) -> None:
        self.lease = lease
        self.is_lost: bool = False
        self.renewal_seconds: float = lease.lease_seconds / _RENEWALS_PER_LEASE
        self._core = core
        self._id = subscription_id
        self._acked: dict[str, str] = {}
        self._extended_at = time.monotonic()

    def stream(self, path: str) -> HandleCore:
        return HandleCore(self._core.stream(path), None)

    async def acknowledge(self, offsets: dict[str, str], *, is_done: bool) -> bool:
        """Extend the lease, or end it; whether there is more to do. Raises: LeaseLost."""
        body = subscriptions.acknowledgement(self.lease, offsets, is_done=is_done)
        answer = await self._ask("ack", body)
        self._acked |= offsets
        return subscriptions.parse_next_wake(answer)

    async def finish(self) -> bool:
        """All of it is done; whether there is more to do. Raises: LeaseLost."""
        tails = {each.path: each.tail_offset for each in self.lease.streams if each.has_pending is not False}
        # A handler may have read, and acknowledged, what came since.
        behind = {path: tail for path, tail in tails.items() if tail is not None and tail > self._acked.get(path, "")}
        return await self.acknowledge(behind, is_done=True)

    async def renew(self) -> None:
        """Extend the lease; a server that is away for less than the lease does no harm. Raises: LeaseLost."""
        try:
            await self.acknowledge({}, is_done=False)
        except (ConnectionFailed, ProtocolError, ServerError) as exc:
            if time.monotonic() - self._extended_at >= self.lease.lease_seconds:
                self.is_lost = True
                raise LeaseLost("the lease could not be renewed in time") from exc

    async def release(self) -> None:
        """Hand the work to others."""
        body = {"wake_id": self.lease.wake_id, "generation": self.lease.generation}
        await self._ask("release", body)

    async def _ask(self, verb: str, body: dict[str, object]) -> bytes:
        peer = self._core.at(self._id, verb)
        others = {name: value for name, value in peer.address.headers.items() if name.lower() != "authorization"}
        peer.address.headers = {**others, "Authorization": f"Bearer {self.lease.token}"}
        try:
            answer = await peer.ask("POST", _JSON, json.dumps(body).encode())
        except ServerError as exc:
            if exc.code == subscriptions.FENCED or exc.status in (401, 404, 410):
                self.is_lost = True
                raise LeaseLost("the lease has ended, and somebody else may have the work") from exc
            raise
        self._extended_at = time.monotonic()
        return answer.content


class _WorkerCore:
    """Wait, claim, have it done, acknowledge; and again."""

    def __init__(self, core: SubscriptionsCore, subscription_id: str, name: str) -> None:
        self._core = core
        self._id = subscription_id
        self._name = name

    async def run(self, do: Callable[[WorkCore], Awaitable[None]], is_stopped: Callable[[], bool]) -> None:
        subscription = await self._core.get(self._id)
        if subscription.wake_stream is None:
            raise ValueError(f"the subscription {self._id} sends webhooks, and hands out no work")
        peer = self._core.stream(subscription.wake_stream)
        # A wake that is missed costs one such wait; a worker that is to stop looks up as often.
        peer.within = timeouts_of(httpx.Timeout(30.0, connect=5.0, read=min(2.0, subscription.lease_seconds)))
        # Events from here on are seen; what is pending already, the first claim finds.
        wakes = StreamReading(peer, offset=protocol.NOW, live=Live.AUTO)
        try:
            await wakes.begin()
            while not is_stopped():
                lease = await self._claim()
                if lease is None:
                    with suppress(httpx.ReadTimeout):
                        await wakes.next_piece(with_data=True)
                    continue
                await self._work(WorkCore(self._core, self._id, lease), do)
        finally:
            await wakes.close()

    async def _claim(self) -> Lease | None:
        body = json.dumps({"worker": self._name}).encode()
        try:
            answer = await self._core.at(self._id, "claim").ask("POST", _JSON, body)
        except ServerError as exc:
            if exc.code in (subscriptions.NO_PENDING_WORK, subscriptions.ALREADY_CLAIMED):
                return None
            raise
        return subscriptions.parse_lease(answer.content)

    async def _work(self, work: WorkCore, do: Callable[[WorkCore], Awaitable[None]]) -> None:
        try:
            await do(work)
            await work.finish()
        except LeaseLost:
            logger.warning("%s lost the lease of %s; the work is done again", self._name, self._id)
        except BaseException:
            # The handler's own exception is what matters; a lease that cannot be released ends by itself.
            with suppress(LeaseLost, ServerError, ConnectionFailed):
                await self._core.peer.channel.finish(work.release())
            raise


class _KeysCore:
    """The published keys, as they were lately."""

    def __init__(self, peer: Peer, tolerance_seconds: float) -> None:
        webhooks.check_is_possible()
        self.peer = peer
        self._tolerance_seconds = tolerance_seconds
        self._keys: dict[str, bytes] = {}
        self._asked_at = float("-inf")

    async def verify(self, body: bytes, header: str | None) -> None:
        signature = webhooks.parse_signature(header)
        age_seconds = time.monotonic() - self._asked_at
        is_unknown = signature.key_id not in self._keys
        if age_seconds >= _KEYS_SECONDS or (is_unknown and age_seconds >= _KEYS_AGAIN_SECONDS):
            self._keys = webhooks.parse_keys((await self.peer.ask("GET")).content)
            self._asked_at = time.monotonic()
        webhooks.verify(body, signature, self._keys, now=time.time(), tolerance_seconds=self._tolerance_seconds)
