"""Generations: claim, call upstream, relay, end; join, cancel, recover, drain.

What this process records is a `Call`, see `calls.py`; how upstream is asked, `attempts.py` says.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from starlette.types import Receive
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from streamkeep.proxy.attempts import Attempts, Refused, Unknown, UpstreamRequest, our_refusal, persistently
from streamkeep.proxy.audiences import COUNTED_SECONDS, Audiences
from streamkeep.proxy.calls import Call
from streamkeep.proxy.errors import PLACE_RETRY_SECONDS, ApiError, gone, not_found, problem
from streamkeep.proxy.logs import GENERATION
from streamkeep.proxy.readers import Readers
from streamkeep.proxy.relay import End, Lost, Relay
from streamkeep.proxy.request_body import BodyBudget, CallerLeft, RequestBody
from streamkeep.proxy.rules.allowlist import Allowed, Origin
from streamkeep.proxy.rules.audiences import AudienceWatch
from streamkeep.proxy.rules.clocks import Clocks
from streamkeep.proxy.rules.endings import EndingObserver
from streamkeep.proxy.settings import Settings
from streamkeep.proxy.tallies import GenerationTally
from streamkeep.proxy.upstream import Resolver
from streamkeep.storage import (
    Claim,
    Code,
    FingerprintMismatch,
    Generation,
    GenerationEnded,
    GenerationKey,
    Owner,
    OwnerFenced,
    Refusal,
    State,
    Store,
    StoreError,
    StoreUnavailable,
    Terms,
    UpstreamHead,
    Usage,
)
from streamkeep.storage.rules.leases import LeaseWatch
from streamkeep.storage.writer import Writer

if TYPE_CHECKING:
    from streamkeep.proxy.tracing import Tracing

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

HEARTBEAT_SECONDS = 3.0
LEASE_SECONDS = 9.0
RECOVERY_SCAN_SECONDS = 2.0
CANCEL_WAIT_SECONDS = 2.0
ACTIVE_AFTER_END = timedelta(hours=1)

_MAX_SCAN_GAP_SECONDS = 6.0
_CLOCK_SECONDS = 0.25
_CANCEL_POLL_SECONDS = 1.0
# So long after the store was last asked what is to be stopped, memory is not believed any more.
_BELIEVED_SECONDS = 3.0
_AUDIENCE_POLL_SECONDS = 1.0
_MAX_AUDIENCE_GAP_SECONDS = 3.0
_VERDICT_POLL_SECONDS = 0.1
_MERGE_SECONDS = 5.0
_TAKE_BACK_SECONDS = 0.2
_LAST_WRITES_SECONDS = 5.0
_EARLY_ANSWER_SECONDS = 10.0


class Generations:
    """All generations as seen from this process. `open` before use; `run` does the background work."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        readers: Readers,
        audiences: Audiences,
        settings: Settings,
        resolve: Resolver,
        tracing: Tracing | None = None,
    ) -> None:
        self.is_draining = False
        self.tally = GenerationTally()
        self._tracing = tracing
        self._store = store
        self._writer = writer
        self._readers = readers
        self._audiences = audiences
        self._settings = settings
        self._calls: dict[int, Call] = {}
        self._calls_by_key: dict[GenerationKey, Call] = {}
        self._claiming: Counter[GenerationKey] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._owner: Owner | None = None
        self._renewed_at = -math.inf
        self._cancels_polled_at = -math.inf
        self._registering = asyncio.Lock()
        self._audience_watch = AudienceWatch(max_gap_seconds=_MAX_AUDIENCE_GAP_SECONDS, settle_seconds=COUNTED_SECONDS)
        self._attempts = Attempts(settings, self.tally, resolve)

    def __repr__(self) -> str:
        return f"Generations(calls={len(self._calls)}, owner={self._owner})"

    async def open(self) -> None:
        """Begin this process's lease."""
        await self.current_owner()

    async def close(self) -> None:
        """End what still runs, give the lease back, close upstream connections."""
        await self._stop_all(Code.SHUTDOWN)
        for task in list(self._tasks):
            task.cancel()
        await self._attempts.close()
        if self._owner is not None:
            with suppress(StoreError):
                await self._store.release(self._owner)

    async def run(self) -> None:
        """Hold the lease, watch the clocks and other owners, hear cancels, keep the store tidy."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_every(HEARTBEAT_SECONDS, self._renew))
            tasks.create_task(self._recover_for_ever())
            tasks.create_task(_every(_CLOCK_SECONDS, self._check_clocks))
            tasks.create_task(_every(_CANCEL_POLL_SECONDS, self._poll_cancels))
            tasks.create_task(_every(_AUDIENCE_POLL_SECONDS, self._poll_audiences))
            tasks.create_task(_every(_MERGE_SECONDS, self._tidy))

    @property
    def running(self) -> int:
        """How many generations this process records now."""
        return len(self._calls)

    async def current_owner(self) -> Owner:
        """This process's incarnation, a new one after it was taken for dead. Raises: StoreUnavailable."""
        async with self._registering:
            if self._owner is None:
                began_at = time.monotonic()
                self._owner = await self._store.register_owner()
                self._renewed_at = began_at
            return self._owner

    @property
    def _is_memory_sure(self) -> bool:
        """Whether nobody can have taken this process for dead, nor deleted or stopped what runs here unheard: not so after it
        was frozen, nor once it is cut off for long."""
        now = time.monotonic()
        return now - self._renewed_at < LEASE_SECONDS and now - self._cancels_polled_at < _BELIEVED_SECONDS

    # What routes ask for

    async def create(
        self, key: GenerationKey, request: UpstreamRequest, terms: Terms, *, reader: Receive | None = None
    ) -> tuple[Generation, bool]:
        """Call upstream, or join whoever did: the row once upstream's verdict is known, and whether it was a replay.

        `reader` listens to a caller who reads the answer itself, and so counts as a reader while it waits.

        Raises:
            FingerprintMismatch: the ids belong to another request.
            TooManyGenerations, RateLimited: the terms' holder is at a limit.
            ApiError: draining, as many generations as this process may have, gone, or a body that is too large.
            CallerLeft: the request's body was cut short, or the reader left.
            StoreUnavailable: nothing was sent.
        """
        GENERATION.set(key)
        try:
            claim = await self._claim(key, request, terms)
        except BaseException:
            request.body.release()
            raise
        if not claim.is_new:
            request.body.release()
            self.tally.resumes["join" if claim.generation.state.is_live else "replay"] += 1
            joined = self._join(claim.generation, request)
            return await self._audiences.answered(claim.generation, reader, joined), True
        # From here on it is the call that lets go of the body.
        call = self._begin(claim.generation, request)
        if request.body.content is not None:
            answer = asyncio.shield(call.outcome)
            return await self._audiences.answered(claim.generation, reader, answer), False
        # A body that passes through comes from this caller's connection: without it there is nothing to go on with.
        try:
            return await asyncio.shield(call.outcome), False
        except asyncio.CancelledError:
            call.stop(Code.UPSTREAM_FAILED)
            raise

    async def find(self, key: GenerationKey) -> Generation:
        """A generation that can be read, or could.

        Raises:
            ApiError: 404 when there is none or upstream refused it, 410 when its data are gone.
        """
        GENERATION.set(key)
        call = self._calls_by_key.get(key)
        if call is not None and call.is_streaming and self._is_memory_sure:
            return call.generation
        return await self.stored(key)

    async def stored(self, key: GenerationKey) -> Generation:
        """As `find`, from the store whatever runs here: it may know of an end that has not been heard of yet."""
        row = await self._store.generation(key)
        if row is None or row.state is State.REFUSED:
            raise not_found()
        if row.gone is not None:
            raise gone(row.gone)
        return row

    async def verdict(self, row: Generation, *, within_seconds: float) -> Generation:
        """The row once upstream's verdict is known, or as it is when the time is over."""
        deadline = time.monotonic() + within_seconds
        call = self._calls.get(row.id)
        if call is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_seconds):
                    return await asyncio.shield(call.outcome)
            return row
        epoch = row.epoch
        while row.state is State.CREATING and row.epoch == epoch and time.monotonic() < deadline:
            await asyncio.sleep(_VERDICT_POLL_SECONDS)
            row = await self._store.generation(row.key) or row
        return row

    async def active(self, tenant: str, session_id: str) -> list[Generation]:
        """A session's generations, newest first: those that run and those that ended within the hour."""
        rows = await self._store.session_generations(
            tenant, session_id, ended_after=datetime.now(UTC) - ACTIVE_AFTER_END
        )
        return [row for row in rows if row.gone is None]

    async def resumable(self, key: GenerationKey) -> Generation | None:
        """The generation under these ids if it runs, else the session's newest that does."""
        rows = [row for row in await self.active(key.tenant, key.session_id) if row.state.is_live]
        self.tally.resumes["active"] += bool(rows)
        return next((row for row in rows if row.key == key), rows[0] if rows else None)

    async def cancel(self, key: GenerationKey) -> str:
        """Stop a generation, wherever it is recorded; wait a little for its socket to be closed.

        Returns its state: `cancelled`, `done`, `error`, or `cancelling` when the end is not written yet.

        Raises:
            ApiError: 404, 410.
        """
        call = self._calls_by_key.get(key)
        if call is not None:
            self._cancel(call, "request")
            with suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_WAIT_SECONDS):
                    await asyncio.shield(call.recorder.ended)
                    return (await self.find(key)).state
            return "cancelling"
        row = await self.find(key)
        if row.state.is_live:
            row = await self._store.request_cancel(key) or row
        deadline = time.monotonic() + CANCEL_WAIT_SECONDS
        while row.state.is_live and time.monotonic() < deadline:
            await asyncio.sleep(_VERDICT_POLL_SECONDS)
            row = await self.find(key)
        return "cancelling" if row.state.is_live else row.state

    def is_claiming(self, key: GenerationKey) -> bool:
        """Whether somebody here is about to begin it: whoever is interrupted then leaves a claim that nobody follows up."""
        return key in self._claiming

    async def prevent(self, key: GenerationKey) -> None:
        """Cancel a generation, or see to it that it never begins: then it has ended before upstream was asked.

        Raises:
            ApiError: 410.
            StoreUnavailable: nobody can tell.
        """
        row = await self._store.generation(key)
        if row is not None and row.state is State.REFUSED:
            return
        if row is None:
            claim = await self._claim_as_owner(key, None, Terms())
            if claim.is_new:
                call = self._begin(claim.generation, await _nothing(self._settings.clocks))
                self._cancel(call, "request")
        await self.cancel(key)

    def usage_so_far(self, row: Generation) -> Usage | None:
        """Tokens of what runs here, as far as the vendor has told them, or as its end told them."""
        call = self._calls.get(row.id)
        return row.usage if call is None or call.relay is None else call.relay.usage_so_far

    def chunks_so_far(self, row: Generation) -> int | None:
        """How many pieces upstream has sent of what is recorded here; None elsewhere."""
        call = self._calls.get(row.id)
        return None if call is None else call.recorder.chunks

    # Listener of the store (streams go to the readers)

    def cancel_requested(self, generation_ids: Collection[int]) -> None:
        for generation_id in generation_ids:
            call = self._calls.get(generation_id)
            if call is not None:
                self._cancel(call, "other_process")

    def _cancel(self, call: Call, cause: str, detail: str | None = None) -> None:
        self.tally.cancels[cause] += call.stop(Code.CANCELLED, detail)

    # Draining

    async def drain(self) -> None:
        """Take nothing new, let what runs finish until the deadline, then end the rest with `shutdown`."""
        self.is_draining = True
        deadline = time.monotonic() + self._settings.drain_seconds
        while self._calls and (left := deadline - time.monotonic()) > 0:
            tasks = [call.task for call in self._calls.values() if call.task is not None]
            await asyncio.wait(tasks, timeout=left)
        await self._stop_all(Code.SHUTDOWN)

    async def _stop_all(self, code: Code) -> None:
        self.is_draining = True
        for call in list(self._calls.values()):
            call.stop(code)
        tasks = [call.task for call in self._calls.values() if call.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_WRITES_SECONDS)
        for task in tasks:
            task.cancel()

    # Claiming and joining

    async def _claim(self, key: GenerationKey, request: UpstreamRequest, terms: Terms) -> Claim:
        """Claim the ids. A body that passes through is read to its end first when the ids turn out to be taken."""
        if self.is_draining:
            raise problem(503, "draining", "this process is stopping; try again", retry_after=1)
        body = request.body
        if not body.is_complete and await self._is_taken(key):
            await body.drain()
        fingerprint = request.fingerprint() if body.is_complete else None
        if self._is_full and not await self._is_taken(key):
            raise problem(
                503, "overloaded", "this process has as many generations as it may", retry_after=PLACE_RETRY_SECONDS
            )
        self._claiming[key] += 1
        try:
            claim = await self._claim_as_owner(key, fingerprint, terms)
        except StoreUnavailable:
            self._start_task(self._take_back(key))
            raise
        finally:
            self._claiming[key] -= 1
            if not self._claiming[key]:
                del self._claiming[key]
        if claim.generation.gone is not None:
            raise gone(claim.generation.gone)
        if not claim.is_new and not body.is_complete:
            await body.drain()
        return claim

    @property
    def _is_full(self) -> bool:
        return len(self._calls) + self._claiming.total() >= self._settings.max_generations

    async def _is_taken(self, key: GenerationKey) -> bool:
        found = await self._store.generation(key)
        return found is not None and found.state is not State.REFUSED

    async def _claim_as_owner(self, key: GenerationKey, fingerprint: bytes | None, terms: Terms) -> Claim:
        began_at = time.monotonic()
        owner = await self.current_owner()
        try:
            claim = await self._store.claim(owner, key, fingerprint, terms)
        except OwnerFenced:
            await self._fenced(owner)
            claim = await self._store.claim(await self.current_owner(), key, fingerprint, terms)
        self.tally.claim_seconds.observe(time.monotonic() - began_at)
        return claim

    async def _take_back(self, key: GenerationKey) -> None:
        """A claim broke off, and its caller was told so. If it was made all the same, free the ids again."""
        while True:
            await asyncio.sleep(_TAKE_BACK_SECONDS)
            with suppress(StoreUnavailable):
                row = await self._store.generation(key)
                if key in self._claiming:
                    continue
                # No await from here to the refusal: a claim that begins now finds the row, and makes no call.
                if row is not None and self._is_unattended(row):
                    unavailable = our_refusal(503, "storage_unavailable", "the database did not answer; try again")
                    with suppress(OwnerFenced, GenerationEnded):
                        await self._store.refuse(row, unavailable, row.fingerprint)
                return

    def _is_unattended(self, row: Generation) -> bool:
        return row.state is State.CREATING and row.owner == self._owner and row.id not in self._calls

    async def _join(self, row: Generation, request: UpstreamRequest) -> Generation:
        """Wait for the verdict of a call that somebody else makes, here or in another process."""
        deadline = time.monotonic() + self._settings.first_byte_seconds + self._settings.retry_seconds
        while row.state is State.CREATING:
            if time.monotonic() > deadline:
                raise problem(504, "timed_out", "the call under these ids is still waiting for upstream", retry_after=5)
            row = await self.verdict(row, within_seconds=self._settings.long_poll_seconds)
        if row.fingerprint is not None and row.fingerprint != request.fingerprint():
            raise FingerprintMismatch(str(row.key))
        return row

    def _begin(self, generation: Generation, request: UpstreamRequest) -> Call:
        span = None
        if self._tracing is not None:
            span, request = self._tracing.begin(generation.key, request)
        call = Call(generation, self._writer.recorder(generation), request.clocks, request.target.label, span)
        self._calls[generation.id] = self._calls_by_key[generation.key] = call
        self._readers.recorded_here(generation.data_stream, generation.control_stream)
        call.task = asyncio.create_task(self._record(call, request), name=f"generation {generation.id}")
        return call

    def _start_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Recording

    async def _record(self, call: Call, request: UpstreamRequest) -> None:
        """The life of a call: upstream, relay, end. Leaves nothing open and nobody waiting."""
        call.has_begun = True
        try:
            end = await self._upstream(call, request)
            if end is not None:
                await self._end(call, end)
        except (Lost, OwnerFenced, GenerationEnded):
            logger.warning("generation %s was ended by another process", call.generation.id)
        except Refused as refused:
            await self._refuse(call, request, refused.refusal)
        except Exception:
            logger.exception("recording generation %s failed", call.generation.id)
            await self._end(call, End(Code.OWNER_LOST, "recording failed"))
        finally:
            request.body.release()
            await self._forget(call)

    async def _upstream(self, call: Call, request: UpstreamRequest) -> End | None:
        """Everything between the claim and the end: how it ended, or None when the call was abandoned."""
        try:
            if call.is_abandoned:
                return None
            if call.stop_reason is not None:
                return call.stop_reason
            began_at = time.monotonic()
            head, body = await self._attempts.accepted(call, request)
            self.tally.upstream_seconds.observe(time.monotonic() - began_at)
            request.body.release()
            async with aclosing(body):
                call.relay = await self._accept(call, request, head)
                return await call.relay.run(body)
        except Unknown as unknown:
            return unknown.end
        except StoreUnavailable:
            return End(Code.STORAGE_UNAVAILABLE)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or (call.stop_reason is None and not call.is_abandoned):
                raise
            task.uncancel()
            return None if call.stop_reason is None else call.stopped(call.stop_reason)
        finally:
            call.is_settled = True

    async def _end(self, call: Call, end: End) -> None:
        """Write the terminal event, behind all data; kept and tried until it is stored or this owner is fenced."""
        relay = call.relay or Relay(call.recorder, None, max_bytes=0)
        terminal = relay.terminal(end, duration_ms=call.duration_ms)
        ended = call.recorder.end(terminal)
        if end.code is Code.STORAGE_UNAVAILABLE:
            _answer_end(call, end)
        if await ended:
            self.tally.ended[call.upstream, end.code] += 1
            if call.span is not None:
                call.span.ended(terminal, relay.observation())
            _answer_end(call, end)
            logger.info("generation %s: %s, %d bytes", call.generation.id, end.code, relay.size_bytes)

    async def _refuse(self, call: Call, request: UpstreamRequest, refusal: Refusal) -> None:
        """Write upstream's refusal; like an end it is kept and tried until it is stored or this owner is fenced."""
        generation = call.generation
        fingerprint = request.fingerprint() if request.body.is_complete else None

        async def write() -> None:
            try:
                await self._store.refuse(generation, refusal, fingerprint)
            except StoreUnavailable:
                _answer(call, row)
                raise

        row = replace(generation, state=State.REFUSED, refusal=refusal, fingerprint=fingerprint)
        with suppress(OwnerFenced, GenerationEnded):
            await self._persist(write, State.REFUSED, generation, within_seconds=float("inf"))
            self.tally.refused[call.upstream, refusal.head.status] += 1
            if call.span is not None:
                call.span.refused(refusal)
            _answer(call, row)
        self._readers.drop((generation.data_stream, generation.control_stream))

    async def _forget(self, call: Call) -> None:
        """Whatever happened, nobody may go on waiting for this call."""
        generation = call.generation
        if call.span is not None:
            call.span.lost()
        if self._calls.get(generation.id) is call:
            del self._calls[generation.id]
        # Once a row is deleted, another call under its key has another id.
        if self._calls_by_key.get(generation.key) is call:
            del self._calls_by_key[generation.key]
        call.relay = None  # It knows the call, too.
        if not call.recorder.has_ended:
            call.recorder.abandon()
            self._readers.recorded_elsewhere((generation.data_stream, generation.control_stream))
        if call.outcome.done():
            return
        try:
            row = await self._store.generation(generation.key)
            _answer(call, row or generation)
        except StoreError:
            call.outcome.set_exception(StoreUnavailable("the generation's end is not known"))
            call.outcome.exception()

    async def _accept(self, call: Call, request: UpstreamRequest, head: UpstreamHead) -> Relay:
        """Record upstream's acceptance before anybody hears of it."""
        generation = call.generation
        if not request.body.is_complete:
            # Upstream answered before it had all; a repeat is compared by the whole body, or not at all.
            with suppress(CallerLeft, ApiError, TimeoutError):
                async with asyncio.timeout(_EARLY_ANSWER_SECONDS):
                    await request.body.drain()
        fingerprint = request.fingerprint() if request.body.is_complete else None
        began_at = time.monotonic()
        is_cancel_requested = await self._persist(
            lambda: self._store.start(generation, head, fingerprint),
            State.RUNNING,
            generation,
            within_seconds=self._settings.storage_outage_seconds,
        )
        self.tally.acceptance_seconds.observe(time.monotonic() - began_at)
        call.generation = replace(generation, state=State.RUNNING, head=head, fingerprint=fingerprint)
        observer = None
        if self._settings.observe_endings:
            observer = EndingObserver(head.content_type, head.content_encoding)
        if is_cancel_requested:
            # Nobody here heard of it: it came while the call had not begun, or the message was lost.
            self._cancel(call, "other_process")
        else:
            _answer(call, call.generation)
        return Relay(
            call.recorder,
            observer,
            max_bytes=self._settings.max_response_bytes,
            on_first_chunk=lambda: self._note_first_chunk(call),
        )

    def _note_first_chunk(self, call: Call) -> None:
        self.tally.note_first_chunk(call.upstream, time.monotonic() - call.sent_at)
        if call.span is not None:
            call.span.first_chunk()

    async def _persist(
        self, write: Callable[[], Awaitable[_T]], target: State, generation: Generation, *, within_seconds: float
    ) -> _T | None:
        """Write a verdict while the database comes and goes; what the write returns. A write that broke off may have been
        done: then the row is in its target state already, and this returns None.

        Raises:
            StoreUnavailable: it stayed away for longer than it may.
            OwnerFenced, GenerationEnded: the generation is not ours any more.
        """
        is_unknown = False

        async def attempt() -> _T | None:
            nonlocal is_unknown
            try:
                return await write()
            except StoreUnavailable:
                is_unknown = True
                raise
            except GenerationEnded:
                if not is_unknown:
                    raise
                row = await self._store.generation(generation.key)
                if row is None or row.epoch != generation.epoch or row.state is not target:
                    raise
                return None

        def policy() -> AsyncRetrying:
            return AsyncRetrying(
                retry=retry_if_exception_type(StoreUnavailable),
                wait=wait_random_exponential(multiplier=0.05, max=1.0),
                stop=stop_after_delay(within_seconds),
                reraise=True,
            )

        return await persistently(attempt, StoreUnavailable, policy)

    # Background work

    async def _renew(self) -> None:
        owner = await self.current_owner()
        began_at = time.monotonic()
        try:
            await self._store.renew(owner)
        except OwnerFenced:
            await self._fenced(owner)
        else:
            self._renewed_at = began_at

    async def _fenced(self, owner: Owner) -> None:
        """Another process took us for dead and ended our generations: stop them here, and begin a new lease."""
        if self._owner == owner:
            logger.warning("this process was taken for dead; its generations were ended elsewhere")
            self.tally.fenced += 1
            self._owner = None
        for call in list(self._calls.values()):
            if call.generation.owner == owner:
                call.abandon()

    async def _recover_for_ever(self) -> None:
        watch = LeaseWatch(lease_seconds=LEASE_SECONDS, max_gap_seconds=_MAX_SCAN_GAP_SECONDS)
        while True:
            try:
                leases = [lease for lease in await self._store.leases() if lease.owner != self._owner]
                for lease in watch.scan(leases, now=time.monotonic()):
                    ended = await self._store.recover(lease)
                    self.tally.recovered += ended
                    logger.warning("recovered %d generations of a dead process", ended)
            except StoreError:
                watch.lost_contact()
            await asyncio.sleep(RECOVERY_SCAN_SECONDS)

    async def _check_clocks(self) -> None:
        now = time.monotonic()
        away_since = self._writer.unavailable_since
        is_away = away_since is not None and now - away_since > self._settings.storage_outage_seconds
        for call in list(self._calls.values()):
            code = call.overdue(now)
            if is_away and call.relay is not None:
                code = Code.STORAGE_UNAVAILABLE
            if code is not None:
                call.stop(code)

    async def _poll_cancels(self) -> None:
        began_at = time.monotonic()
        if self._calls and self._owner is not None:
            self.cancel_requested(await self._store.cancel_requests(self._owner))
        self._cancels_polled_at = began_at

    async def _poll_audiences(self) -> None:
        """Stop what nobody reads any more, as its caller wished."""
        cancel_after = {
            id: call.generation.cancel_after_seconds
            for id, call in self._calls.items()
            if call.generation.cancel_after_seconds is not None
        }
        if not cancel_after:
            self._audience_watch.rest()
            return
        readerless = await self._store.readerless_seconds(cancel_after)
        for id in self._audience_watch.overdue(readerless, cancel_after, now=time.monotonic()):
            call = self._calls.get(id)
            if call is not None:
                seconds = cancel_after[id]
                self._cancel(call, "no_reader", f"no reader for {seconds:g} s" if seconds else "no reader any more")

    async def _tidy(self) -> None:
        while merged := await self._store.merge():
            self.tally.merged += merged
        while swept := await self._store.sweep():
            self.tally.swept += swept


async def _nothing(clocks: Clocks) -> UpstreamRequest:
    """A request that is never sent."""
    nowhere = Allowed("", Origin("", "", 0, may_be_private=False), b"")
    return UpstreamRequest("POST", nowhere, [], await RequestBody.of(b"", BodyBudget(0)), clocks)


def _answer(call: Call, row: Generation) -> None:
    if not call.outcome.done():
        call.outcome.set_result(row)


def _answer_end(call: Call, end: End) -> None:
    """Whoever still waits for upstream's verdict learns how the call ended."""
    if not call.outcome.done():
        state, now = end.code.state, datetime.now(UTC)
        _answer(call, replace(call.generation, state=state, code=end.code, message=end.detail, ended_at=now))


async def _every(seconds: float, action: Callable[[], Awaitable[None]]) -> None:
    """Do something at a pace; a database that is away is no reason to stop."""
    while True:
        try:
            await action()
        except StoreError as exc:
            logger.warning("%s failed: %s", getattr(action, "__name__", action), type(exc).__name__)
        await asyncio.sleep(seconds)
