"""`serve --workers 2`: several processes on one port, seen from outside."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable

import httpx
import psutil
import pytest

from tests.serving import CERTIFICATES, ServedProcess, served_process
from tests.upstream import Exchange, upstream

COUNT = 2
BODY = b"".join(b"data: %d\n\n" % n for n in range(200))


@pytest.fixture
async def served(database_url: str) -> AsyncIterator[ServedProcess]:
    workers = {"STREAMKEEP_WORKERS": str(COUNT), "STREAMKEEP_DRAIN_SECONDS": "10"}
    async with served_process(database_url=database_url, environ=workers) as process:
        yield process


def workers(served: ServedProcess) -> list[psutil.Process]:
    """The processes that accept connections."""
    return [child for child in psutil.Process(served.process.pid).children() if is_listening(child)]


def is_listening(process: psutil.Process) -> bool:
    try:
        return any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections())
    except psutil.NoSuchProcess:  # A zombie is one, too.
        return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


async def read_whole(served: ServedProcess, request_id: str) -> tuple[bytes, str]:
    """All bytes, and how it ended, over connections that may each meet another worker."""
    body, offset = b"", "-1"
    async with asyncio.timeout(60):
        while True:
            async with httpx.AsyncClient(base_url=served.url, verify=CERTIFICATES, timeout=30) as client:
                query = {"sessionId": "s", "requestId": request_id, "offset": offset, "live": "long-poll"}
                try:
                    answer = await client.get("/stream/data", params=query)
                except httpx.TransportError:
                    continue
            body += answer.content
            offset = answer.headers.get("Stream-Next-Offset", offset)
            if answer.headers.get("Stream-Closed") == "true":
                break
    async with httpx.AsyncClient(base_url=served.url, verify=CERTIFICATES, timeout=30) as client:
        events = await client.get("/stream/control", params={"sessionId": "s", "requestId": request_id})
    return body, events.json()[0]["code"]


async def create(served: ServedProcess, url: str, request_id: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=served.url, verify=CERTIFICATES, timeout=30) as client:
        return await client.post(f"/api/s/{request_id}", content=b"{}", headers={"X-Proxy-Url": url})


async def test_every_worker_records_and_every_worker_reads_what_another_records(served: ServedProcess) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        for start in range(0, len(BODY), 200):
            await exchange.chunk(BODY[start : start + 200])
        await exchange.end()

    assert len(workers(served)) == COUNT
    async with upstream(play) as vendor:
        for n in range(16):
            assert (await create(served, vendor.url, str(n))).status_code == 200
        found = await asyncio.gather(*(read_whole(served, str(n)) for n in range(16)))
        assert found == [(BODY, "complete")] * 16
        assert len(vendor.calls) == 16


async def test_a_worker_that_is_killed_is_replaced_and_its_generations_end(served: ServedProcess) -> None:
    go_on = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(BODY[:200])
        await go_on.wait()
        await exchange.chunk(BODY[200:])
        await exchange.end()

    async with upstream(play) as vendor:
        for n in range(8):
            assert (await create(served, vendor.url, str(n))).status_code == 200
        victim = workers(served)[0]
        victim.send_signal(signal.SIGKILL)
        await until(lambda: len(workers(served)) == COUNT and victim not in workers(served))
        go_on.set()
        found = await asyncio.gather(*(read_whole(served, str(n)) for n in range(8)))
        assert set(found) <= {(BODY, "complete"), (BODY[:200], "owner_lost")}
        assert len(vendor.calls) == 8


async def test_a_signal_drains_every_worker_and_leaves_none(served: ServedProcess) -> None:
    go_on = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/event-stream"})
        await exchange.chunk(BODY[:200])
        await go_on.wait()
        await exchange.chunk(BODY[200:])
        await exchange.end()

    async with upstream(play) as vendor:
        for n in range(8):
            assert (await create(served, vendor.url, str(n))).status_code == 200
        reads = [asyncio.create_task(read_whole(served, str(n))) for n in range(8)]
        children = workers(served)
        served.terminate()
        await asyncio.sleep(0)
        go_on.set()
        for read in reads:
            read.cancel()
        assert await served.exit_code() == 0
        assert not [child for child in children if child.is_running()]


async def test_workers_do_not_outlive_their_supervisor(served: ServedProcess) -> None:
    children = workers(served)
    served.kill()
    await served.exit_code()
    await until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))


async def test_workers_that_cannot_start_end_the_command(database_url: str) -> None:
    """The port is taken by a server that does not share it."""
    async with served_process(database_url=database_url) as alone:
        port = int(alone.url.rpartition(":")[2])
        with pytest.raises(AssertionError, match="not ready"):
            async with served_process(database_url=database_url, port=port, environ={"STREAMKEEP_WORKERS": "2"}):
                pass
