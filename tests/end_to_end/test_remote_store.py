"""Proxies whose store is another server of the open protocol: one of ours, or the protocol's reference server."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from streamkeep.storage import MemoryStore
from streamkeep.storage.remote import RemoteStore
from tests import node
from tests.serving import AFTER_DEATH_SECONDS, served_process, serving
from tests.upstream import ticking, upstream

BODY = random.Random(11).randbytes(40_000)


@pytest.fixture(scope="session")
def reference() -> Path:
    return node.project(Path(__file__).parents[2] / "bench" / "reference")


@asynccontextmanager
async def reference_server(home: Path, data_dir: Path) -> AsyncIterator[str]:
    """The protocol's reference server; its base URL."""
    await asyncio.to_thread(data_dir.mkdir)
    process = await asyncio.create_subprocess_exec(
        *(node.NODE, "server.mjs", data_dir),
        cwd=home,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            url = (await process.stdout.readline()).decode().strip()
        yield url
    finally:
        process.kill()
        await process.wait()


@pytest.fixture(params=["ours", "reference"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def url(kind: str, reference: Path, tmp_path: Path) -> AsyncIterator[str]:
    """Where to keep streams on another server."""
    server = serving(MemoryStore()) if kind == "ours" else reference_server(reference, tmp_path / "reference")
    async with server as other:
        yield f"{other if isinstance(other, str) else other.url}/v1/stream/ours"


async def test_what_one_proxy_records_the_next_one_reads(url: str) -> None:
    async with upstream(ticking(BODY, pieces=40, seconds=0.4)) as server:
        async with serving(RemoteStore(url, roll_bytes=20_000)) as proxy:
            created = (await proxy.create("chat", "1", server.url)).json()
            reading = asyncio.create_task(proxy.read_all("chat", "1"))
            assert await proxy.read_all("chat", "1") == await reading == BODY
            event = await proxy.ending("chat", "1")
            assert (event["code"], event["sha256"]) == ("complete", hashlib.sha256(BODY).hexdigest())
            path = "/v1/stream/notes"
            assert (await proxy.client.put(path, headers={"Content-Type": "application/json"})).status_code == 201
            for number in (b"12345678901234567890", b'{"b":1,"a":2}'):
                written = await proxy.client.post(path, content=number, headers={"Content-Type": "application/json"})
                assert written.status_code == 204
            await proxy.service.store.merge()
        async with serving(RemoteStore(url)) as proxy:
            signed = await proxy.client.get(httpx.URL(created["streamUrl"]).raw_path.decode())
            assert signed.content == BODY
            for cut in (0, 1, 12_345, len(BODY) - 1, len(BODY)):
                assert await proxy.read_all("chat", "1", f"{0:016d}_{cut:016d}") == BODY[cut:]
            assert await proxy.ending("chat", "1") == event
            assert (await proxy.create("chat", "1", server.url)).headers["Streamkeep-Replayed"] == "true"
            assert (await proxy.client.get(path)).content == b'[12345678901234567890,{"b":1,"a":2}]'
        assert len(server.calls) == 1


async def test_reading_joining_and_cancelling_work_on_any_instance() -> None:
    never = asyncio.Event()
    async with (
        upstream(ticking(BODY, pieces=50, seconds=0.5, then=never)) as server,
        serving(MemoryStore()) as remote,
        serving(RemoteStore(url := f"{remote.url}/v1/stream/ours")) as owner,
        serving(RemoteStore(url)) as other,
    ):
        await owner.create("chat", "1", server.url)
        reading = asyncio.create_task(other.read_all("chat", "1"))
        assert (await other.create("chat", "1", server.url)).headers["Streamkeep-Replayed"] == "true"
        await other.available(len(BODY))
        assert await other.cancel("chat", "1") == "cancelled"
        await asyncio.wait_for(server.calls[0].is_gone.wait(), 30)
        assert await reading == BODY
        assert (await other.ending("chat", "1"))["code"] == "cancelled"
        assert len(server.calls) == 1


async def test_a_surviving_proxy_ends_the_orphans_of_a_killed_one() -> None:
    never = asyncio.Event()
    async with (
        upstream(ticking(BODY, pieces=10, seconds=0.1, then=never)) as server,
        serving(MemoryStore()) as remote,
        serving(RemoteStore(f"{remote.url}/v1/stream/ours"), long_poll_seconds=20.0) as survivor,
        served_process(environ={"STREAMKEEP_STREAMS_URL": f"{remote.url}/v1/stream/ours"}) as process,
    ):
        await process.create("chat", "1", server.url)
        reading = asyncio.create_task(survivor.read_all("chat", "1"))
        await survivor.available(len(BODY))
        process.kill()
        async with asyncio.timeout(AFTER_DEATH_SECONDS):
            assert await reading == BODY
        event = await survivor.ending("chat", "1")
        assert (event["code"], event["bytes"]) == ("owner_lost", len(BODY))
        assert len(server.calls) == 1


async def test_a_server_that_is_killed_and_comes_back_costs_no_byte_and_bounded_memory(database_url: str) -> None:
    body = random.Random(12).randbytes(2 * 1024 * 1024)
    budget = 128 * 1024
    never = asyncio.Event()
    async with (
        AsyncExitStack() as remotes,
        upstream(ticking(body, pieces=200, seconds=1.0)) as fast,
        upstream(ticking(BODY, pieces=400, seconds=4.0, then=never)) as slow,
    ):
        remote = await remotes.enter_async_context(served_process(database_url=database_url))
        url = f"{remote.url}/v1/stream/ours"
        async with (
            serving(RemoteStore(url), stream_budget_bytes=budget) as patient,
            serving(RemoteStore(url), storage_outage_seconds=1.0) as hasty,
        ):
            await patient.create("chat", "1", fast.url)
            await hasty.create("other", "1", slow.url)
            reading = asyncio.create_task(patient.read_all_patiently("chat", "1"))
            await patient.available(100_000)
            remote.kill()
            await remote.exit_code()
            async with asyncio.timeout(60):
                while patient.service.writer.pending_bytes < budget:
                    await asyncio.sleep(0.01)
            assert (await patient.client.get("/ready")).status_code == 503
            refused = await patient.create("chat", "2", fast.url)
            assert (refused.status_code, refused.json()["error"]) == (503, "storage_unavailable")
            await asyncio.wait_for(slow.calls[0].is_gone.wait(), 60)
            assert patient.service.writer.pending_bytes <= budget + 256 * 1024
            port = httpx.URL(remote.url).port or 0
            await remotes.enter_async_context(served_process(database_url=database_url, port=port))
            assert await reading == body
            assert (await patient.ending("chat", "1"))["code"] == "complete"
            event = await patient.ending("other", "1")
            assert (event["code"], event["retryable"]) == ("storage_unavailable", True)
            assert BODY.startswith(await patient.read_all("other", "1"))
        assert len(fast.calls) == 1
