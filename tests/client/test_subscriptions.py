"""Subscriptions, workers and webhook signatures, against a real proxy, by both kinds of clients."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streamkeep.client import (
    AsyncSubscriptions,
    AsyncWebhookKeys,
    AsyncWorker,
    DurableStream,
    LeaseLost,
    ServerError,
    Subscriptions,
    WebhookKeys,
    WebhookRefused,
    Worker,
)
from streamkeep.storage import MemoryStore
from tests.client.both import Kind
from tests.client.streaming import HASTY, Handle, call, created, transport
from tests.receiver import receiving
from tests.serving import Proxy, serving


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with serving(MemoryStore()) as served:
        yield served


@pytest.fixture
def root(proxy: Proxy) -> str:
    return f"{proxy.url}/v1/stream"


@asynccontextmanager
async def subscriber(kind: Kind, root: str) -> AsyncIterator[Any]:
    made = (Subscriptions if kind == "sync" else AsyncSubscriptions)(root, http=transport(kind), patience=HASTY)
    try:
        yield made
    finally:
        await call(made.disconnect)


async def json_stream(kind: Kind, url: str, data: object = None) -> Handle:
    return await created(kind, url, content_type="application/json", data=data)


@asynccontextmanager
async def working(kind: Kind, subscriptions: Any, do: Callable[[Any], None], name: str = "w") -> AsyncIterator[Any]:
    """A worker whose handler may block, running until the end."""

    async def handle(work: Any) -> None:
        await asyncio.to_thread(do, work)

    worker: Any = (
        Worker(subscriptions, "jobs", do, name=name)
        if kind == "sync"
        else AsyncWorker(subscriptions, "jobs", handle, name=name)
    )
    running = asyncio.create_task(call(worker.run))
    try:
        yield running
    finally:
        worker.stop()
        async with asyncio.timeout(60):
            await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_subscription_is_created_found_and_deleted(kind: Kind, root: str) -> None:
    async with subscriber(kind, root) as subscriptions:
        wakes = await json_stream(kind, f"{root}/wakes")
        streams = [await json_stream(kind, f"{root}/manual/{name}") for name in "ab"]
        made = await call(
            subscriptions.create, "s", pattern="jobs/*", wake_stream="wakes", lease_seconds=5, description="mine"
        )
        assert (made.type, made.pattern, made.lease_seconds, made.status) == ("pull-wake", "jobs/*", 5.0, "active")
        await call(subscriptions.link, "s", "manual/a", "manual/b")
        await call(subscriptions.unlink, "s", "manual/b")
        assert [stream.path for stream in (await call(subscriptions.get, "s")).streams] == ["manual/a"]
        with pytest.raises(ServerError) as taken:
            await call(subscriptions.create, "s", pattern="other/*", wake_stream="wakes")
        assert taken.value.code == "SUBSCRIPTION_ALREADY_EXISTS"
        with pytest.raises(ValueError, match="either"):
            await call(subscriptions.create, "t", pattern="jobs/*")
        await call(subscriptions.delete, "s")
        with pytest.raises(ServerError) as gone:
            await call(subscriptions.get, "s")
        assert (gone.value.status, gone.value.code) == (404, "SUBSCRIPTION_NOT_FOUND")
        for handle in (wakes, *streams):
            await call(handle.disconnect)


async def test_a_worker_does_what_is_pending_and_what_comes(kind: Kind, root: str) -> None:
    done: list[object] = []

    def do(work: Any) -> None:
        for stream in work.streams:
            with DurableStream(f"{root}/{stream.path}") as handle:
                done.extend(handle.read(offset=stream.acked_offset).json())

    async with subscriber(kind, root) as subscriptions:
        wakes = await json_stream(kind, f"{root}/wakes")
        await call(subscriptions.create, "jobs", pattern="jobs/*", wake_stream="wakes")
        jobs = await json_stream(kind, f"{root}/jobs/a", 1)
        async with working(kind, subscriptions, do):
            await until(lambda: done == [1])
            for number in (2, 3, 4):
                await call(jobs.append, number)
                await until(lambda number=number: done[-1] == number)  # type: ignore[misc]
            assert done == [1, 2, 3, 4]

            async def acknowledged() -> bool:
                streams = (await call(subscriptions.get, "jobs")).streams
                return bool(streams[0].acked_offset == (await call(jobs.head)).offset)

            async with asyncio.timeout(60):
                while not await acknowledged():
                    await asyncio.sleep(0.02)
        for handle in (wakes, jobs):
            await call(handle.disconnect)


async def test_a_handler_may_append_read_and_acknowledge_beyond_its_claim(kind: Kind, root: str) -> None:
    """By the worker's own connections; what comes after that is work of its own."""
    done: list[list[object]] = []
    loop = asyncio.get_running_loop()

    def wait(made: Any) -> Any:
        return made if kind == "sync" else asyncio.run_coroutine_threadsafe(made, loop).result(20)

    def do(work: Any) -> None:
        (stream,) = work.streams
        handle = work.stream(stream.path)
        news = wait(handle.read(offset=stream.acked_offset))
        if not done:
            wait(handle.append(2))
            more = wait(handle.read(offset=news.offset))
            wait(work.ack(stream.path, more.offset))
            done.append(more.json())
        else:
            done.append(news.json())

    async with subscriber(kind, root) as subscriptions:
        wakes = await json_stream(kind, f"{root}/wakes")
        await call(subscriptions.create, "jobs", pattern="jobs/*", wake_stream="wakes")
        jobs = await json_stream(kind, f"{root}/jobs/a", 1)
        async with working(kind, subscriptions, do) as running:
            await until(lambda: done == [[2]] or running.done())
            await call(jobs.append, 3)
            await until(lambda: len(done) == 2 or running.done())
            assert (done, running.done()) == ([[2], [3]], False)
        for handle in (wakes, jobs):
            await call(handle.disconnect)


async def test_a_lease_is_renewed_while_a_handler_works(kind: Kind, root: str) -> None:
    seen: list[str] = []
    began, gate = threading.Event(), threading.Event()

    def do(work: Any) -> None:
        seen.append("began")
        began.set()
        gate.wait(60)

    async with subscriber(kind, root) as subscriptions:
        wakes = await json_stream(kind, f"{root}/wakes")
        await call(subscriptions.create, "jobs", pattern="jobs/*", wake_stream="wakes", lease_seconds=2)
        jobs = await json_stream(kind, f"{root}/jobs/a", 1)
        async with working(kind, subscriptions, do, name="first"):
            await until(began.is_set)
            async with working(kind, subscriptions, lambda work: seen.append("stolen"), name="second"):
                held_until = time.monotonic() + 3
                await until(lambda: time.monotonic() >= held_until)
                assert seen == ["began"]
            gate.set()
        for handle in (wakes, jobs):
            await call(handle.disconnect)


async def test_work_of_a_handler_that_fails_is_handed_out_again(kind: Kind, root: str) -> None:
    done: list[str] = []

    def fail(work: Any) -> None:
        raise KeyError("the handler's own")

    async with subscriber(kind, root) as subscriptions:
        wakes = await json_stream(kind, f"{root}/wakes")
        await call(subscriptions.create, "jobs", pattern="jobs/*", wake_stream="wakes", lease_seconds=60)
        jobs = await json_stream(kind, f"{root}/jobs/a", 1)
        async with working(kind, subscriptions, fail) as running:
            with pytest.raises(KeyError, match="own"):
                await running
        async with working(kind, subscriptions, lambda work: done.extend(each.path for each in work.streams)):
            await until(lambda: done == ["jobs/a"])
        for handle in (wakes, jobs):
            await call(handle.disconnect)


async def test_the_work_of_a_worker_that_is_killed_goes_to_another(root: str) -> None:
    program = f"""
import time
from streamkeep.client import Subscriptions, Worker

def work(work):
    print("claimed", flush=True)
    time.sleep(60)

Worker(Subscriptions({root!r}), "jobs", work, name="doomed").run()
"""
    done: list[str] = []
    async with subscriber("async", root) as subscriptions:
        wakes = await json_stream("async", f"{root}/wakes")
        await subscriptions.create("jobs", pattern="jobs/*", wake_stream="wakes", lease_seconds=1)
        jobs = await json_stream("async", f"{root}/jobs/a", 1)
        doomed = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
        assert doomed.stdout is not None
        async with asyncio.timeout(60):
            assert await doomed.stdout.readline() == b"claimed\n"
        async with working("async", subscriptions, lambda work: done.extend(each.path for each in work.streams)):
            doomed.kill()
            await doomed.wait()
            await until(lambda: done == ["jobs/a"])
        for handle in (wakes, jobs):
            await call(handle.disconnect)


async def test_a_lease_that_is_gone_acknowledges_nothing(kind: Kind, root: str) -> None:
    outcomes: list[object] = []

    def do(work: Any) -> None:
        with Subscriptions(root) as other:
            other.delete("jobs")
        (stream,) = work.streams
        try:
            acknowledge(work, stream.path, stream.tail_offset)
        except Exception as exc:
            outcomes.append(exc)
            raise

    def acknowledge(work: Any, path: str, offset: str) -> None:
        if kind == "sync":
            work.ack(path, offset)
        else:
            asyncio.run_coroutine_threadsafe(work.ack(path, offset), loop).result(20)

    loop = asyncio.get_running_loop()
    async with subscriber(kind, root) as subscriptions:
        wakes = await json_stream(kind, f"{root}/wakes")
        await call(subscriptions.create, "jobs", pattern="jobs/*", wake_stream="wakes", lease_seconds=60)
        jobs = await json_stream(kind, f"{root}/jobs/a", 1)
        async with working(kind, subscriptions, do) as running:
            with pytest.raises(ServerError, match="jobs"):
                await running
        assert [type(outcome) for outcome in outcomes] == [LeaseLost]
        for handle in (wakes, jobs):
            await call(handle.disconnect)


async def test_webhooks_are_checked_by_the_published_keys(kind: Kind, root: str) -> None:
    keys: Any
    async with receiving() as receiver, subscriber(kind, root) as subscriptions:
        made = await call(subscriptions.create, "hooks", pattern="jobs/*", webhook_url=receiver.url)
        assert (made.type, made.webhook_url) == ("webhook", receiver.url)
        jobs = await json_stream(kind, f"{root}/jobs/{uuid.uuid4()}", 1)
        webhook = await receiver.get()
        keys = (WebhookKeys if kind == "sync" else AsyncWebhookKeys)(made.jwks_url, http=transport(kind))
        await call(keys.verify, webhook.raw, webhook.signature)
        stamp, key_id, signed = webhook.signature.split(",")
        other = f"t={int(stamp[2:]) - 1},{key_id},{signed}"
        old = f"t={int(stamp[2:]) - 1000},{key_id},{signed}"
        foreign = f"{stamp},kid=ds_other,{signed}"
        for body, signature in (
            (webhook.raw + b" ", webhook.signature),
            (webhook.raw, other),
            (webhook.raw, old),
            (webhook.raw, foreign),
            (webhook.raw, None),
            (webhook.raw, ""),
            (webhook.raw, webhook.signature + "\n"),
            (webhook.raw, "t=1,kid=é,ed25519=x"),
        ):
            with pytest.raises(WebhookRefused):
                await call(keys.verify, body, signature)
        await call(keys.disconnect)
        await call(jobs.disconnect)


def test_without_its_package_a_check_of_webhooks_says_what_to_install() -> None:
    program = """
import sys
sys.modules["cryptography"] = None
from streamkeep.client import WebhookKeys
WebhookKeys("http://127.0.0.1/jwks.json")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (
        "ImportError: checking webhooks needs the package cryptography: pip install 'streamkeep[webhooks]'"
        in ended.stderr
    )
