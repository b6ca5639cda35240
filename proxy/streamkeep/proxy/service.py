"""The parts of one running proxy, wired together; `app.py` makes it and every route is given it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from streamkeep.proxy.access import Access
from streamkeep.proxy.agent_turns import TurnParts
from streamkeep.proxy.audiences import Audiences
from streamkeep.proxy.forwarding import Forwarder
from streamkeep.proxy.generations import Generations
from streamkeep.proxy.probe import DatabaseProbe
from streamkeep.proxy.readers import Readers
from streamkeep.proxy.registry import Registry
from streamkeep.proxy.request_body import BodyBudget
from streamkeep.proxy.rules.webhook_urls import WebhookRules
from streamkeep.proxy.schemas import Schemas
from streamkeep.proxy.session_runner import SessionRunner
from streamkeep.proxy.sessions import Sessions
from streamkeep.proxy.settings import Settings
from streamkeep.proxy.subscriptions import Subscriptions
from streamkeep.proxy.tallies import RequestTally, SessionTally
from streamkeep.proxy.upstream import Resolver
from streamkeep.proxy.webhooks import Webhooks
from streamkeep.storage import Store
from streamkeep.storage.appender import Appender
from streamkeep.storage.writer import Writer

logger = logging.getLogger(__name__)

_LAST_BYTES_SECONDS = 1.0


if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from streamkeep.proxy.tracing import Tracing


class Service:
    """Store, writer, appender, readers and generations, in the order in which they start and in reverse stop."""

    def __init__(
        self, store: Store, settings: Settings, resolve: Resolver, tracer_provider: TracerProvider | None = None
    ) -> None:
        self.store = store
        self.settings = settings
        self.access = Access(store, settings, resolve)
        self.readers = Readers(store, stall_seconds=settings.reader_stall_seconds, max_readers=settings.max_readers)
        self.writer = Writer(
            store,
            self.readers,
            stream_budget_bytes=settings.stream_budget_bytes,
            process_budget_bytes=settings.process_budget_bytes,
        )
        self.appender = Appender(store, self.readers)
        self.audiences = Audiences(store)
        self.registry = Registry(store, self.readers)
        self.webhooks = Webhooks(WebhookRules.of(settings.webhook_allow, host=settings.host), resolve)
        self.subscriptions = Subscriptions(store, self.appender, self.webhooks, public_url=settings.public_url)
        self.generations = Generations(
            store, self.writer, self.readers, self.audiences, settings, resolve, _tracing(tracer_provider)
        )
        self.schemas = Schemas(store)
        self.body_budget = BodyBudget(settings.request_budget_bytes)
        self.forwarder = Forwarder(self.generations, settings, self.body_budget)
        self.sessions = Sessions(
            store,
            self.appender,
            self.readers,
            self.registry,
            self.subscriptions,
            self.generations,
            self.forwarder,
            max_turns=settings.max_turns,
            wake=lambda key: self.session_runner.wake(key),
        )
        parts = TurnParts(
            store,
            self.appender,
            self.readers,
            self.generations,
            self.forwarder,
            self.subscriptions,
            SessionTally(),
            max_turns=settings.max_turns,
        )
        self.session_runner = SessionRunner(parts, self.sessions.folds, max_sessions=settings.max_active_sessions)
        self.requests = RequestTally()
        self.probe = DatabaseProbe(store)
        self.is_ready = False
        self.failure: BaseException | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Everything runs inside; on leaving, what still runs is ended with `shutdown`."""
        async with AsyncExitStack() as stack:
            await self.store.open()
            stack.push_async_callback(self.store.close)
            await self.access.open()
            stack.push_async_callback(self.access.close)
            self.store.listen(self)
            stack.push_async_callback(self.probe.close)
            await stack.enter_async_context(self._running("writer", self.writer.run()))
            await stack.enter_async_context(self._running("appender", self.appender.run()))
            await stack.enter_async_context(self._running("readers", self.readers.run()))
            await stack.enter_async_context(self._running("audiences", self.audiences.run()))
            await stack.enter_async_context(self._running("registry", self.registry.run()))
            await self.subscriptions.open()
            stack.push_async_callback(self.subscriptions.close)
            await stack.enter_async_context(self._running("subscriptions", self.subscriptions.run()))
            await self.generations.open()
            stack.push_async_callback(self.generations.close)
            await stack.enter_async_context(self._running("generations", self.generations.run()))
            await stack.enter_async_context(self._running("sessions", self.session_runner.run()))
            self.is_ready = True
            try:
                yield
            finally:
                self.is_ready = False

    async def drain(self) -> None:
        """A deploy: readers go elsewhere now, generations finish or are ended when the time is over, and so do readers
        that cannot go elsewhere."""
        deadline = time.monotonic() + self.settings.drain_seconds
        self.readers.rotate()
        await self.session_runner.drain()
        await self.generations.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(deadline - time.monotonic(), _LAST_BYTES_SECONDS)):
                await self.readers.steady_to_leave()

    # Listener of the store

    def streams_changed(self, stream_ids: Collection[int] | None) -> None:
        self.readers.streams_changed(stream_ids)

    def cancel_requested(self, generation_ids: Collection[int]) -> None:
        self.generations.cancel_requested(generation_ids)

    @asynccontextmanager
    async def _running(self, name: str, work: Coroutine[None, None, None]) -> AsyncIterator[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(lambda done: self._note_end(name, done))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _note_end(self, name: str, task: asyncio.Future[None]) -> None:
        """Background work ends only when it is told to; anything else makes this process useless, and it says so."""
        if task.cancelled():
            return
        self.failure = task.exception() or RuntimeError(f"{name} ended")
        self.is_ready = False
        logger.critical("%s failed; this process cannot go on", name, exc_info=self.failure)


def _tracing(provider: TracerProvider | None) -> Tracing | None:
    """An extra: nothing of it is imported where nothing is traced."""
    if provider is None:
        return None
    from streamkeep.proxy.tracing import Tracing

    return Tracing(provider)
