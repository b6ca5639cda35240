"""Producers: appends that are gathered, sent several at a time, repeated when unanswered, and stored once.

`Outbox` decides what may be sent. Each kind of producer has as many senders as requests may be under way: threads, or
tasks. A sender takes a batch, sends it, and tells how that went.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from streamkeep.client._channel import run_blocking
from streamkeep.client._errors import ConnectionFailed, ProducerFenced, SequenceGap, ServerError
from streamkeep.client._handles import AsyncDurableStream, DurableStream, HandleCore, appended
from streamkeep.client._rules import protocol
from streamkeep.client._rules.batching import Batch, Outbox

_MAX_BATCH_BYTES = 1024 * 1024
_MAX_BUFFERED_BYTES = 16 * 1024 * 1024


class IdempotentProducer:
    """Write to a stream so that each append is stored once, whatever happens to requests and answers.

    `append` returns when there is room; what was appended is sent in batches of up to `max_batch_bytes` and
    `max_batch_items`, `linger_seconds` after its first at the latest, up to `max_in_flight` batches at once, in order.
    `flush` waits until all is stored. Leaving the context does that too and leaves the stream open, like `detach`;
    `close` closes the stream. Without any of them the last appends may be lost.

    The server knows a producer by `producer_id`, its `epoch` and the number of each batch, from `sequence` on. Of two
    producers with one id the later epoch wins, and the other one is fenced off. With `auto_claim` a producer takes the
    next free epoch by itself, so that a program that is started again goes on under its id; without it, a second run
    with the same epoch is taken for a repeat of the first, and stores nothing twice. One thread at a time appends.

    Raises:
        ValueError: the id is empty, or a number makes no sense; the message begins with its name.
    """

    def __init__(
        self,
        handle: DurableStream,
        producer_id: str,
        *,
        epoch: int = 0,
        sequence: int = 0,
        auto_claim: bool = False,
        max_batch_bytes: int = _MAX_BATCH_BYTES,
        max_batch_items: int = 1000,
        linger_seconds: float = 0.005,
        max_in_flight: int = 5,
        max_buffered_bytes: int = _MAX_BUFFERED_BYTES,
    ) -> None:
        self._outbox = Outbox(
            epoch=epoch,
            sequence=sequence,
            auto_claim=auto_claim,
            max_batch_bytes=max_batch_bytes,
            max_batch_items=max_batch_items,
            linger_seconds=linger_seconds,
            max_in_flight=max_in_flight,
        )
        self._core = _ProducerCore(handle._core, producer_id, self._outbox)
        self._max_in_flight = max_in_flight
        self._max_buffered_bytes = max_buffered_bytes
        self._changed = threading.Condition()
        self._senders: list[threading.Thread] = []
        self._is_over = False

    def __repr__(self) -> str:
        return f"<IdempotentProducer {self._core!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.detach()
            return
        # What is being raised says more than a delivery that failed because of it.
        with suppress(Exception):
            self.detach()

    @property
    def epoch(self) -> int:
        """The epoch in which the next batch goes."""
        return self._outbox.epoch

    @property
    def next_sequence(self) -> int:
        """The number of the next batch."""
        return self._outbox.next_sequence

    def append(self, data: object) -> None:
        """Hand over an append, as `DurableStream.append` takes it; waits while too much waits to be sent.

        Raises:
            DeliveryFailed: an earlier append could not be stored; the producer has stopped.
            TypeError, ValueError: the data cannot be appended to such a stream.
        """
        payload = run_blocking(self._core.payload(data))
        with self._changed:
            self._check_open()
            self._start()
            while self._outbox.waiting_bytes >= self._max_buffered_bytes and self._outbox.failure is None:
                self._outbox.seal()
                self._changed.wait()
            self._core.check()
            if self._outbox.append(payload, now=time.monotonic()):
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is stored. Raises: DeliveryFailed: it cannot be."""
        with self._changed:
            self._flush()

    def close(self, data: object = None) -> str:
        """Store everything, then close the stream, with `data` as its last append; its final offset.

        Raises:
            StreamClosed, ServerError, ConnectionFailed: everything was stored, and the stream could not be closed.
            DeliveryFailed: not everything was stored.
        """
        payload = None if data is None else run_blocking(self._core.payload(data))
        try:
            with self._changed:
                self._check_open()
                self._start()
                self._core.check()
                self._outbox.close(payload)
                self._flush()
        finally:
            self._stop()
        return self._core.final_offset

    def detach(self) -> None:
        """Store everything, and stop; the stream stays open. May be called again. Raises: DeliveryFailed."""
        if self._is_over:
            return
        try:
            self.flush()
        finally:
            self._stop()

    def _check_open(self) -> None:
        if self._is_over:
            raise ValueError("the producer is detached")

    def _start(self) -> None:
        if not self._senders:
            names = (f"streamkeep-producer-{number}" for number in range(self._max_in_flight))
            # An interpreter that exits does not wait for what nobody flushed.
            self._senders = [threading.Thread(target=self._send, name=name, daemon=True) for name in names]
            for sender in self._senders:
                sender.start()

    def _flush(self) -> None:
        self._outbox.seal()
        self._changed.notify_all()
        self._changed.wait_for(lambda: self._outbox.is_empty)
        self._core.check()

    def _stop(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
            is_idle = self._outbox.is_empty
        if is_idle:
            for sender in self._senders:
                sender.join()

    def _send(self) -> None:
        with self._changed:
            while not self._is_over:
                now = time.monotonic()
                batch = self._outbox.take(now=now)
                if batch is None:
                    self._changed.wait(self._outbox.seconds_until_due(now=now))
                    continue
                self._changed.release()
                try:
                    outcome = run_blocking(self._core.deliver(batch))
                finally:
                    self._changed.acquire()
                outcome()
                self._changed.notify_all()


class AsyncIdempotentProducer:
    """`IdempotentProducer` for asyncio, over an `AsyncDurableStream`."""

    def __init__(
        self,
        handle: AsyncDurableStream,
        producer_id: str,
        *,
        epoch: int = 0,
        sequence: int = 0,
        auto_claim: bool = False,
        max_batch_bytes: int = _MAX_BATCH_BYTES,
        max_batch_items: int = 1000,
        linger_seconds: float = 0.005,
        max_in_flight: int = 5,
        max_buffered_bytes: int = _MAX_BUFFERED_BYTES,
    ) -> None:
        self._outbox = Outbox(
            epoch=epoch,
            sequence=sequence,
            auto_claim=auto_claim,
            max_batch_bytes=max_batch_bytes,
            max_batch_items=max_batch_items,
            linger_seconds=linger_seconds,
            max_in_flight=max_in_flight,
        )
        self._core = _ProducerCore(handle._core, producer_id, self._outbox)
        self._max_in_flight = max_in_flight
        self._max_buffered_bytes = max_buffered_bytes
        self._changed = asyncio.Condition()
        self._senders: list[asyncio.Task[None]] = []
        self._is_over = False

    def __repr__(self) -> str:
        return f"<AsyncIdempotentProducer {self._core!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.detach()
            return
        # What is being raised says more than a delivery that failed because of it.
        with suppress(Exception):
            await self.detach()

    @property
    def epoch(self) -> int:
        """The epoch in which the next batch goes."""
        return self._outbox.epoch

    @property
    def next_sequence(self) -> int:
        """The number of the next batch."""
        return self._outbox.next_sequence

    async def append(self, data: object) -> None:
        """`IdempotentProducer.append`, awaited."""
        payload = await self._core.payload(data)
        async with self._changed:
            self._check_open()
            self._start()
            while self._outbox.waiting_bytes >= self._max_buffered_bytes and self._outbox.failure is None:
                self._outbox.seal()
                await self._changed.wait()
            self._core.check()
            if self._outbox.append(payload, now=time.monotonic()):
                self._changed.notify_all()

    async def flush(self) -> None:
        """`IdempotentProducer.flush`, awaited."""
        async with self._changed:
            await self._flush()

    async def close(self, data: object = None) -> str:
        """`IdempotentProducer.close`, awaited."""
        payload = None if data is None else await self._core.payload(data)
        try:
            async with self._changed:
                self._check_open()
                self._start()
                self._core.check()
                self._outbox.close(payload)
                await self._flush()
        finally:
            await self._stop()
        return self._core.final_offset

    async def detach(self) -> None:
        """`IdempotentProducer.detach`, awaited."""
        if self._is_over:
            return
        try:
            await self.flush()
        finally:
            await self._stop()

    def _check_open(self) -> None:
        if self._is_over:
            raise ValueError("the producer is detached")

    def _start(self) -> None:
        if not self._senders:
            self._senders = [asyncio.create_task(self._send()) for _ in range(self._max_in_flight)]

    async def _flush(self) -> None:
        self._outbox.seal()
        self._changed.notify_all()
        await self._changed.wait_for(lambda: self._outbox.is_empty)
        self._core.check()

    async def _stop(self) -> None:
        self._is_over = True
        for sender in self._senders:
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)

    async def _send(self) -> None:
        async with self._changed:
            while not self._is_over:
                now = time.monotonic()
                batch = self._outbox.take(now=now)
                if batch is None:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._outbox.seconds_until_due(now=now)):
                            await self._changed.wait()
                    continue
                self._changed.release()
                try:
                    outcome = await self._core.deliver(batch)
                finally:
                    await self._changed.acquire()
                outcome()
                self._changed.notify_all()


class _ProducerCore:
    """What both producers do."""

    def __init__(self, stream: HandleCore, producer_id: str, outbox: Outbox) -> None:
        if not producer_id:
            raise ValueError("producer_id must not be empty")
        self.final_offset = ""
        self._stream = stream
        self._producer_id = producer_id
        self._outbox = outbox

    def __repr__(self) -> str:
        return f"{self._producer_id!r} in epoch {self._outbox.epoch} on {self._stream!r}"

    async def payload(self, data: object) -> bytes:
        payload = protocol.payload(data, await self._stream.known_type())
        if not payload:
            raise ValueError("an append has at least one byte")
        return payload

    def check(self) -> None:
        """Raises: DeliveryFailed, or what went wrong where nothing was lost by it."""
        if self._outbox.failure is None:
            return
        error = self._outbox.delivery_error()
        if not error.undelivered:
            raise self._outbox.failure
        raise error from self._outbox.failure

    async def deliver(self, batch: Batch) -> Callable[[], None]:
        """Send a batch for as long as patience lasts; what the outbox is to be told then."""
        outbox = self._outbox
        try:
            body = protocol.body_of(list(batch.payloads), self._stream.content_type) if batch.payloads else b""
            headers = {
                protocol.PRODUCER_ID: self._producer_id,
                protocol.PRODUCER_EPOCH: str(batch.epoch),
                protocol.PRODUCER_SEQUENCE: str(batch.sequence),
            }
            answer = await self._stream.send(headers, body, closes=batch.closes, is_repeatable=True)
        # Without a name of their own here: a traceback leads to what is named here, and so to the body.
        except ProducerFenced as exc:
            return partial(outbox.fenced, batch, exc.current_epoch, exc)
        except SequenceGap as exc:
            return partial(outbox.came_early, batch, exc)
        except Exception as exc:  # noqa: BLE001  # whoever waits for the batch gets it
            is_unknown = isinstance(exc, ConnectionFailed) or (isinstance(exc, ServerError) and exc.status >= 500)
            return partial(outbox.failed, batch, exc, is_unknown=is_unknown)
        if batch.closes:
            self.final_offset = appended(answer).offset
        # A closing without data is answered so in any case.
        is_duplicate = answer.status == 204 and bool(body) and not answer.may_be_repeat
        return partial(outbox.stored, batch, is_duplicate=is_duplicate)
