"""Idempotent producers: every append is stored once and in order, or named by the error."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from streamkeep.client import (
    AsyncDurableStream,
    AsyncIdempotentProducer,
    ConnectionFailed,
    DeliveryFailed,
    IdempotentProducer,
    Patience,
    ProducerFenced,
    SequenceGap,
    StreamClosed,
    StreamNotFound,
)
from streamkeep.client._rules.batching import Batch, Outbox
from tests.client.both import Kind
from tests.client.streaming import Handle, call, created
from tests.serving import Proxy
from tests.upstream import Exchange, Script, upstream

Producer = IdempotentProducer | AsyncIdempotentProducer


@pytest.fixture
def url(proxy: Proxy) -> str:
    return f"{proxy.url}/v1/stream/producer/{uuid.uuid4()}"


def producing(handle: Handle, producer_id: str = "writer", **options: Any) -> Producer:
    if isinstance(handle, AsyncDurableStream):
        return AsyncIdempotentProducer(handle, producer_id, **options)
    return IdempotentProducer(handle, producer_id, **options)


async def append_all(producer: Producer, data: list[Any]) -> None:
    for one in data:
        await call(producer.append, one)


def flaky(proxy: Proxy, seed: int) -> Script:
    """In front of a proxy: some requests do not arrive, some answers do not, some are refused for now."""
    chance = random.Random(seed)

    async def play(exchange: Exchange) -> None:
        fault = (
            chance.choice(["none", "none", "before", "after", "429", "503"]) if exchange.method == "POST" else "none"
        )
        if fault == "before":
            exchange.reset()
            return
        if fault in ("429", "503"):
            await exchange.answer(int(fault), b"", {"Retry-After": "0"})
            return
        await asyncio.sleep(chance.random() * 0.01)
        sent = {name: value for name, value in exchange.headers if name.lower() not in ("host", "connection")}
        answer = await proxy.client.request(exchange.method, exchange.path, headers=sent, content=exchange.body)
        if fault == "after":
            exchange.reset()
            return
        known = ("content-type", "stream-next-offset", "stream-closed", "producer-epoch", "producer-expected-seq")
        await exchange.answer(
            answer.status_code, answer.content, {k: v for k, v in answer.headers.items() if k in known}
        )

    return play


@pytest.mark.parametrize("content_type", ["text/plain", "application/json"])
async def test_everything_is_stored_once_and_in_order_through_a_bad_network(
    kind: Kind, proxy: Proxy, url: str, content_type: str
) -> None:
    messages = [f'"{number:04d}"' for number in range(80)]
    patience = Patience(pause_seconds=0.02)
    async with upstream(flaky(proxy, seed=7)) as server:
        there = url.replace(proxy.url, server.url)
        handle = await created(kind, there, content_type=content_type, patience=patience)
        producer = producing(handle, max_batch_items=7, max_in_flight=4)
        await append_all(producer, messages)
        await call(producer.flush)
        final = await call(producer.close, '"end"')
        await call(handle.disconnect)
    answer = await proxy.client.get(url)
    assert (answer.headers["Stream-Closed"], answer.headers["Stream-Next-Offset"]) == ("true", final)
    expected = [*messages, '"end"']
    assert answer.text == ("[" + ",".join(expected) + "]" if content_type == "application/json" else "".join(expected))


async def test_appends_are_gathered(kind: Kind, url: str, proxy: Proxy) -> None:
    posts = 0

    async def play(exchange: Exchange) -> None:
        nonlocal posts
        posts += exchange.method == "POST"
        await exchange.answer(200, b"", {"Stream-Next-Offset": "o1", "Content-Type": "text/plain"})

    async with upstream(play) as server:
        handle = await created(kind, f"{server.url}/s", content_type="text/plain")
        producer = producing(handle, linger_seconds=60, max_batch_bytes=100)
        await append_all(producer, ["0123456789"] * 95)
        await call(producer.detach)
        assert posts == 10
        await call(handle.disconnect)


async def test_what_lingers_goes_without_a_flush(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain")
    producer = producing(handle, linger_seconds=0.01)
    await call(producer.append, "soon")
    async with asyncio.timeout(60):
        while (await call(handle.read)).data != b"soon":
            await asyncio.sleep(0.01)
    await call(producer.detach)
    with pytest.raises(ValueError, match="detached"):
        await call(producer.append, "late")
    assert not (await call(handle.head)).is_closed
    await call(handle.disconnect)


async def test_a_second_run_goes_on_with_auto_claim_and_is_a_repeat_without(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain")
    for number, (auto_claim, epoch) in enumerate([(True, 0), (True, 1), (False, 0), (True, 2)]):
        # The one that will be refused sends nothing before it is told to: a refusal in between would come with an append.
        batches: Any = {"linger_seconds": 0, "max_batch_items": 1} if auto_claim else {"linger_seconds": 60}
        producer = producing(handle, auto_claim=auto_claim, **batches)
        await append_all(producer, [f"{number}a ", f"{number}b ", f"{number}c "])
        if auto_claim:
            await call(producer.detach)
            assert (producer.epoch, producer.next_sequence) == (epoch, 3)
            continue
        with pytest.raises(DeliveryFailed) as caught:
            await call(producer.detach)
        assert isinstance(caught.value.__cause__, ProducerFenced)
        assert caught.value.undelivered == (b"2a ", b"2b ", b"2c ")
    assert (await call(handle.read)).text == "0a 0b 0c 1a 1b 1c 3a 3b 3c "
    again = producing(handle, epoch=2, linger_seconds=0)
    await append_all(again, ["3a 3b 3c "])
    await call(again.flush)
    assert (await call(handle.read)).text == "0a 0b 0c 1a 1b 1c 3a 3b 3c "
    await call(again.detach)
    await call(handle.disconnect)


async def test_of_two_producers_the_later_wins_and_the_other_is_told(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain")
    first, second = (producing(handle, auto_claim=claims) for claims in (False, True))
    await call(first.append, "first ")
    await call(first.flush)
    await call(second.append, "second")
    await call(second.flush)
    await call(first.append, "lost")
    with pytest.raises(DeliveryFailed) as caught:
        await call(first.flush)
    assert (caught.value.undelivered, caught.value.unknown) == ((b"lost",), 0)
    assert isinstance(caught.value.__cause__, ProducerFenced)
    with pytest.raises(DeliveryFailed):
        await call(first.append, "more")
    await call(second.detach)
    assert (await call(handle.read)).data == b"first second"
    await call(handle.disconnect)


async def test_a_closed_or_missing_stream_is_told(kind: Kind, url: str) -> None:
    handle = await created(kind, url, content_type="text/plain")
    closer, other = producing(handle, "a"), producing(handle, "b")
    final = await call(closer.close)
    with pytest.raises(StreamClosed) as caught:
        await call(other.close)
    assert caught.value.final_offset == final
    late = producing(handle, "c")
    await call(late.append, "late")
    with pytest.raises(DeliveryFailed) as failed:
        await call(late.detach)
    assert isinstance(failed.value.__cause__, StreamClosed)
    await call(handle.delete)
    gone = producing(handle, "d")
    await call(gone.append, "gone")
    with pytest.raises(DeliveryFailed) as missing:
        await call(gone.detach)
    assert isinstance(missing.value.__cause__, StreamNotFound)
    await call(handle.disconnect)


async def test_an_unanswered_batch_is_named_as_unknown(kind: Kind) -> None:
    async def play(exchange: Exchange) -> None:
        if exchange.method == "PUT":
            await exchange.answer(201, b"")
        else:
            exchange.reset()

    async with upstream(play) as server:
        patience = Patience(send_seconds=0.2, pause_seconds=0.02)
        handle = await created(kind, f"{server.url}/s", content_type="text/plain", patience=patience)
        producer = producing(handle, max_in_flight=1, max_batch_items=2, linger_seconds=5)

        async def produce() -> None:
            await append_all(producer, ["1", "2", "3"])
            await call(producer.detach)

        with pytest.raises(DeliveryFailed) as caught:
            await produce()
        assert (caught.value.undelivered, caught.value.unknown) == ((b"1", b"2", b"3"), 2)
        assert isinstance(caught.value.__cause__, ConnectionFailed)
        await call(handle.disconnect)


async def test_a_producer_waits_for_room(kind: Kind) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        if exchange.method == "POST":
            await gate.wait()
        await exchange.answer(200, b"", {"Stream-Next-Offset": "o1"})

    async with upstream(play) as server:
        handle = await created(kind, f"{server.url}/s", content_type="text/plain", timeout=None)
        producer = producing(handle, max_buffered_bytes=1000, max_batch_bytes=100)
        handed = 0

        async def append() -> None:
            nonlocal handed
            for _ in range(100):
                await call(producer.append, "x" * 50)
                handed += 1

        appending = asyncio.create_task(append())
        await server.called(6)
        assert not appending.done()
        assert handed <= 20
        gate.set()
        await appending
        await call(producer.detach)
        await call(handle.disconnect)


@pytest.mark.parametrize(
    "options",
    [
        {"epoch": -1},
        {"epoch": 2**53},
        {"sequence": -1},
        {"max_batch_bytes": 0},
        {"max_batch_items": 0},
        {"max_in_flight": 0},
        {"linger_seconds": -0.1},
        {"producer_id": ""},
    ],
)
async def test_a_number_that_makes_no_sense_is_named(kind: Kind, url: str, options: dict[str, Any]) -> None:
    handle = await created(kind, url)
    with pytest.raises(ValueError, match=next(iter(options))):
        producing(handle, **options)
    await call(handle.disconnect)


class Server:
    """The protocol's table for one producer."""

    def __init__(self) -> None:
        self.epoch, self.sequence = -1, -1
        self.stored: list[bytes] = []

    def receive(self, batch: Batch) -> Callable[[Outbox], None]:
        if batch.epoch < self.epoch:
            epoch = self.epoch
            error = ProducerFenced("", code="", current_epoch=epoch)
            return lambda outbox: outbox.fenced(batch, epoch, error)
        if batch.epoch > self.epoch:
            self.epoch, self.sequence = batch.epoch, -1
        if batch.sequence <= self.sequence:
            return lambda outbox: outbox.stored(batch, is_duplicate=True)
        if batch.sequence > self.sequence + 1:
            gap = SequenceGap("", code="", expected=self.sequence + 1, received=batch.sequence)
            return lambda outbox: outbox.came_early(batch, gap)
        self.sequence += 1
        self.stored.extend(batch.payloads)
        return lambda outbox: outbox.stored(batch)


@pytest.mark.parametrize("seed", range(200))
def test_any_order_of_arrivals_and_answers_stores_everything_once(seed: int) -> None:
    chance = random.Random(seed)
    server = Server()
    for _ in range(chance.randrange(3)):
        server.receive(Batch((b"before",), chance.randrange(4), 0))
    before = list(server.stored)
    outbox = Outbox(
        epoch=0,
        sequence=0,
        auto_claim=True,
        max_batch_bytes=chance.choice([1, 10, 1000]),
        max_batch_items=chance.choice([1, 3]),
        linger_seconds=chance.choice([0.0, 5.0]),
        max_in_flight=chance.choice([1, 2, 5]),
    )
    payloads = [b"%d;" % number for number in range(30)]
    to_append = list(payloads)
    travelling: list[Batch] = []
    answers: list[Callable[[Outbox], None]] = []
    for now in range(10_000):
        step = chance.choice(["append", "take", "arrive", "answer", "fence"])
        if step == "append" and to_append:
            outbox.append(to_append.pop(0), now=now)
        elif step == "take" and (batch := outbox.take(now=now)) is not None:
            travelling.append(batch)
        elif step == "arrive" and travelling:
            answers.append(server.receive(travelling.pop(chance.randrange(len(travelling)))))
        elif step == "answer" and answers:
            answers.pop(chance.randrange(len(answers)))(outbox)
        elif step == "fence" and now < 100 and chance.random() < 0.05:
            server.epoch, server.sequence = server.epoch + 1, 0
        if not to_append:
            outbox.seal()
            if outbox.is_empty:
                break
    assert outbox.failure is None
    assert server.stored == [*before, *payloads]
    assert outbox.waiting_bytes == 0


def test_a_gap_that_nobody_can_fill_is_a_failure() -> None:
    outbox = Outbox(
        epoch=0, sequence=5, auto_claim=False, max_batch_bytes=1, max_batch_items=1, linger_seconds=0, max_in_flight=5
    )
    outbox.append(b"a", now=0)
    batch = outbox.take(now=0)
    assert batch is not None
    gap = SequenceGap("", code="", expected=0, received=5)
    outbox.came_early(batch, gap)
    assert (outbox.failure, outbox.delivery_error().undelivered) == (gap, (b"a",))
    assert outbox.take(now=1) is None
