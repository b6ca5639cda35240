"""What kills a plain streamed response: processes, databases, deploys, readers. Every byte is compared afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from streamkeep.storage.postgres import PostgresStore
from tests.cutting import wire_to
from tests.database import PrivateServer
from tests.serving import AFTER_DEATH_SECONDS, ServedProcess, served_process, serving
from tests.upstream import Exchange, ticking, upstream

BODY = random.Random(7).randbytes(40_000)


async def test_t12_a_killed_proxy_loses_no_acknowledged_byte_and_leaves_no_reader_hanging(database_url: str) -> None:
    never = asyncio.Event()
    async with upstream(ticking(BODY, pieces=100, seconds=0.5, then=never)) as server:
        async with served_process(database_url=database_url) as process:
            created = (await process.create("chat", "1", server.url)).json()
            seen = await process.available(20_000)
            process.kill()
            await process.exit_code()
        async with served_process(database_url=database_url) as process:
            path = httpx.URL(created["streamUrl"]).raw_path.decode()
            again = await process.client.get(path)
            assert again.status_code == 200, "the signing key outlives the process"
            assert again.content[: len(seen)] == seen
            async with asyncio.timeout(AFTER_DEATH_SECONDS):
                event = await process.ending("chat", "1")
            assert (event["event"], event["code"], event["retryable"]) == ("error", "owner_lost", True)
            assert "sha256" not in event
            body = await process.read_all("chat", "1")
            assert BODY.startswith(body)
            assert event["bytes"] == len(body) >= len(seen)
            repeat = await process.create("chat", "1", server.url)
            assert repeat.headers["Streamkeep-Replayed"] == "true"
            assert len(server.calls) == 1


async def test_t12_every_reader_of_a_killed_process_gets_all_bytes_and_its_loss(database_url: str) -> None:
    never = asyncio.Event()
    async with (
        upstream(ticking(BODY, pieces=10, seconds=0.1, then=never)) as server,
        serving(PostgresStore(database_url), long_poll_seconds=20.0) as one,
        serving(PostgresStore(database_url), long_poll_seconds=20.0) as two,
    ):
        async with served_process(database_url=database_url) as process:
            await process.create("chat", "1", server.url)
            survivors = (one, two)
            bodies = [asyncio.create_task(proxy.read_all("chat", "1")) for proxy in survivors]
            events = [asyncio.create_task(proxy.ending("chat", "1")) for proxy in survivors]
            pushed = [
                asyncio.create_task(proxy.read("chat", "1", "control", live="sse", offset="-1")) for proxy in survivors
            ]
            for proxy in survivors:
                await proxy.available(len(BODY))
            process.kill()
            async with asyncio.timeout(AFTER_DEATH_SECONDS):
                await asyncio.gather(*bodies, *events, *pushed)
        late = [await proxy.read_all("chat", "1") for proxy in survivors]
        assert {task.result() for task in bodies} == {*late} == {BODY}
        events += [asyncio.create_task(proxy.ending("chat", "1")) for proxy in survivors]
        for event in await asyncio.gather(*events):
            assert (event["event"], event["code"], event["retryable"]) == ("error", "owner_lost", True)
            assert event["bytes"] == len(BODY)
        for answer in await asyncio.gather(*pushed):
            assert answer.text.count("owner_lost") == answer.text.count('"streamClosed":true') == 1


async def test_a_frozen_owner_is_fenced_and_writes_nothing_when_it_wakes(database_url: str) -> None:
    done = asyncio.Event()
    async with (
        upstream(ticking(BODY, pieces=10, seconds=0.1, then=done)) as server,
        serving(PostgresStore(database_url)) as survivor,
        served_process(database_url=database_url, environ={"STREAMKEEP_DRAIN_SECONDS": "0.5"}) as process,
    ):
        await process.create("chat", "1", server.url)
        await survivor.available(len(BODY))
        process.process.send_signal(signal.SIGSTOP)
        try:
            event = await survivor.ending("chat", "1")
        finally:
            process.process.send_signal(signal.SIGCONT)
        assert event["code"] == "owner_lost"
        await asyncio.wait_for(server.calls[0].is_gone.wait(), 60)
        events = (await survivor.read("chat", "1", "control")).json()
        assert [e["code"] for e in events] == ["owner_lost"]
        assert (await process.create("chat", "2", server.url)).status_code == 200


async def test_a_killed_database_costs_no_byte(private_server: PrivateServer) -> None:
    async with (
        serving(PostgresStore(private_server.url)) as proxy,
        upstream(ticking(BODY, pieces=200, seconds=3)) as server,
    ):
        await proxy.create("chat", "1", server.url)
        reading = asyncio.create_task(proxy.read_all_patiently("chat", "1"))
        await proxy.available(5_000)
        await asyncio.to_thread(private_server.kill)
        assert await reading == BODY
        event = await proxy.ending("chat", "1")
        assert (event["code"], event["sha256"]) == ("complete", hashlib.sha256(BODY).hexdigest())


@pytest.mark.slow
async def test_a_database_away_for_twenty_seconds_costs_no_byte_and_bounded_memory(
    private_server: PrivateServer,
) -> None:
    body = random.Random(8).randbytes(8 * 1024 * 1024)
    budget = 128 * 1024
    async with (
        serving(PostgresStore(private_server.url), stream_budget_bytes=budget) as proxy,
        upstream(ticking(body, pieces=400, seconds=1)) as server,
    ):
        await proxy.create("chat", "1", server.url)
        reading = asyncio.create_task(proxy.read_all_patiently("chat", "1"))
        await proxy.available(100_000)
        await asyncio.to_thread(private_server.stop)
        most = 0
        until = time.monotonic() + 20
        while time.monotonic() < until:
            most = max(most, proxy.service.writer.pending_bytes)
            assert (await proxy.client.get("/health")).status_code == 200
            await asyncio.sleep(0.2)
        assert (await proxy.client.get("/ready")).status_code == 503
        refused = await proxy.create("chat", "2", server.url)
        assert (refused.status_code, refused.json()["error"]) == (503, "storage_unavailable")
        await asyncio.to_thread(private_server.start)
        assert await reading == body
        assert (await proxy.ending("chat", "1"))["code"] == "complete"
        assert 0 < most <= budget + 256 * 1024
        assert len(server.calls) == 1


async def test_a_frozen_database_is_an_outage_too(private_server: PrivateServer) -> None:
    async with (
        serving(PostgresStore(private_server.url)) as proxy,
        upstream(ticking(BODY, pieces=100, seconds=2)) as server,
    ):
        await proxy.create("chat", "1", server.url)
        await proxy.available(5_000)
        await asyncio.to_thread(private_server.freeze)
        await asyncio.sleep(3)
        await asyncio.to_thread(private_server.thaw)
        assert await proxy.read_all_patiently("chat", "1") == BODY
        assert (await proxy.ending("chat", "1"))["code"] == "complete"


async def test_our_own_pause_is_not_blamed_on_upstream_and_what_it_sent_before_a_break_is_kept(
    private_server: PrivateServer,
) -> None:
    body = random.Random(10).randbytes(600_000)

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "application/octet-stream"})
        await exchange.chunk(body[:1000])
        sent = 1000
        while not frozen.is_set():  # So that upstream is silent in our own pause alone.
            await exchange.chunk(body[sent : sent + 1])
            sent += 1
            await asyncio.sleep(0.05)
        await exchange.chunk(body[sent:300_000])
        await thawed.wait()
        await exchange.chunk(body[300_000:])
        exchange.writer.close()

    frozen, thawed = asyncio.Event(), asyncio.Event()
    settings = {"idle_seconds": 2.0, "stream_budget_bytes": 32 * 1024}
    async with serving(PostgresStore(private_server.url), **settings) as proxy, upstream(play) as server:
        await proxy.create("chat", "1", server.url)
        await proxy.available(1000)
        await asyncio.to_thread(private_server.freeze)
        frozen.set()
        await asyncio.sleep(3)
        await asyncio.to_thread(private_server.thaw)
        thawed.set()
        assert await proxy.read_all_patiently("chat", "1") == body
        assert (await proxy.ending("chat", "1"))["code"] == "upstream_failed"


async def test_a_refusal_that_meets_an_outage_frees_the_ids_when_the_database_is_back(
    private_server: PrivateServer,
) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        if len(server.calls) > 1:
            await exchange.answer(200, b"fine", {"Content-Type": "text/plain"})
            return
        await gate.wait()
        await exchange.answer(400, b"no", {"Content-Type": "text/plain"})

    async with (
        serving(PostgresStore(private_server.url), storage_outage_seconds=0.5) as proxy,
        upstream(play) as server,
    ):
        post = asyncio.create_task(proxy.create("chat", "1", server.url))
        await server.called()
        await asyncio.to_thread(private_server.stop)
        gate.set()
        assert (await post).status_code == 400
        await asyncio.sleep(1)
        await asyncio.to_thread(private_server.start)
        async with asyncio.timeout(20):
            while (answer := await proxy.create("chat", "1", server.url)).status_code != 200:
                assert answer.status_code in (400, 503)
                await asyncio.sleep(0.05)
        assert await proxy.read_all_patiently("chat", "1") == b"fine"


async def test_t17_past_the_outage_limit_upstream_is_closed_and_the_end_is_written_when_the_database_is_back(
    private_server: PrivateServer,
) -> None:
    never = asyncio.Event()
    async with (
        serving(PostgresStore(private_server.url), storage_outage_seconds=1.0) as proxy,
        upstream(ticking(BODY, pieces=400, seconds=4, then=never)) as server,
    ):
        await proxy.create("chat", "1", server.url)
        seen = await proxy.available(2_000)
        await asyncio.to_thread(private_server.stop)
        await asyncio.wait_for(server.calls[0].is_gone.wait(), 30)
        await asyncio.to_thread(private_server.start)
        body = await proxy.read_all_patiently("chat", "1")
        event = await proxy.ending("chat", "1")
    assert (event["code"], event["retryable"], event["bytes"]) == ("storage_unavailable", True, len(body))
    assert BODY.startswith(body)
    assert len(body) >= len(seen)


async def test_a_claim_whose_answer_was_lost_frees_the_ids_and_is_called_once(database_url: str) -> None:
    async with (
        wire_to(database_url) as wire,
        serving(PostgresStore(wire.url)) as proxy,
        upstream(ticking(BODY, pieces=2, seconds=0.01)) as server,
    ):
        for number in range(5):
            wire.cut_after_answer()
            async with asyncio.timeout(30):
                while (answer := await proxy.create("chat", str(number), server.url)).status_code != 200:
                    assert (answer.status_code, answer.json()["error"]) == (503, "storage_unavailable")
            assert await proxy.read_all_patiently("chat", str(number)) == BODY
        assert wire.cuts >= 3
        assert len(server.calls) == 5


async def test_t36_on_sigterm_running_generations_finish_and_nothing_new_starts(database_url: str) -> None:
    finish = asyncio.Event()
    async with (
        upstream(ticking(BODY, pieces=5, seconds=0.1, then=finish)) as server,
        serving(PostgresStore(database_url)) as elsewhere,
        served_process(database_url=database_url) as process,
    ):
        await process.create("chat", "1", server.url)
        reading = asyncio.create_task(process.read_all("chat", "1"))
        await process.available(len(BODY))
        process.terminate()
        await _until(process, "/ready", 503)
        refused = await process.create("chat", "2", server.url)
        assert (refused.status_code, refused.json()["error"]) == (503, "draining")
        assert (await process.read("chat", "1")).content == BODY
        finish.set()
        assert await reading == BODY
        assert await process.exit_code() == 0
        assert (await elsewhere.ending("chat", "1"))["code"] == "complete"
        assert len(server.calls) == 1


async def test_t36_past_the_drain_deadline_generations_end_with_shutdown(database_url: str) -> None:
    never = asyncio.Event()
    async with (
        upstream(ticking(BODY, pieces=5, seconds=0.1, then=never)) as server,
        serving(PostgresStore(database_url)) as elsewhere,
        served_process(database_url=database_url, environ={"STREAMKEEP_DRAIN_SECONDS": "0.5"}) as process,
    ):
        await process.create("chat", "1", server.url)
        await process.available(len(BODY))
        process.terminate()
        assert await process.exit_code() == 0
        event = await elsewhere.ending("chat", "1")
        assert (event["code"], event["retryable"], event["bytes"]) == ("shutdown", True, len(BODY))
        assert await elsewhere.read_all("chat", "1") == BODY


async def test_the_embedded_databases_data_survive_a_restart_and_ctrl_c_stops_cleanly(tmp_path: Path) -> None:
    async with upstream(ticking(BODY, pieces=5, seconds=0.1)) as server:
        async with served_process(data_dir=tmp_path / "data") as process:
            await process.create("chat", "1", server.url)
            assert await process.read_all("chat", "1") == BODY
            children = psutil.Process(process.process.pid).children(recursive=True)
            assert children
            # As a terminal does: to the whole process group.
            os.killpg(process.process.pid, signal.SIGINT)
            assert await process.exit_code() == 0
            _, alive = psutil.wait_procs(children, timeout=60)
            assert not alive
        async with served_process(data_dir=tmp_path / "data") as process:
            assert await process.read_all("chat", "1") == BODY


async def test_a_reader_that_never_reads_is_cut_loose_and_slows_nobody(database_url: str) -> None:
    body = random.Random(9).randbytes(30 * 1024 * 1024)
    stuck = asyncio.Event()
    async with (
        serving(PostgresStore(database_url), reader_stall_seconds=1.0) as proxy,
        upstream(ticking(body, pieces=600, seconds=1, then=stuck)) as server,
    ):
        await proxy.create("chat", "1", server.url)
        host, port = proxy.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        query = "sessionId=chat&requestId=1&live=sse&encoding=base64"
        writer.write(f"GET /stream/data?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await writer.drain()
        reading = asyncio.create_task(proxy.read_all("chat", "1"))
        async with asyncio.timeout(30):
            while proxy.service.readers.count < 1:
                await asyncio.sleep(0.01)
        stuck.set()
        assert hashlib.sha256(await reading).digest() == hashlib.sha256(body).digest()
        async with asyncio.timeout(30):
            while proxy.service.readers.count:
                await asyncio.sleep(0.05)
        rest = b""
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # noqa: PT012  (read until it breaks)
            while True:
                piece = await reader.read(65_536)
                if not piece:
                    raise asyncio.IncompleteReadError(b"", None)
                rest = (rest + piece)[-1000:]
        assert b"streamClosed" not in rest
        writer.close()


async def test_readers_that_never_read_do_not_grow_the_process(database_url: str) -> None:
    body = random.Random(11).randbytes(60 * 1024 * 1024)
    async with (
        served_process(database_url=database_url) as process,
        upstream(ticking(body, pieces=600, seconds=1)) as server,
    ):
        await process.create("chat", "1", server.url)
        host, port = process.url.removeprefix("http://").split(":")
        stuck = []
        for _ in range(20):
            _, writer = await asyncio.open_connection(host, int(port), limit=1024)
            query = "sessionId=chat&requestId=1&live=sse&encoding=base64"
            writer.write(f"GET /stream/data?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            stuck.append(writer)
        before = psutil.Process(process.process.pid).memory_info().rss
        event = await process.ending("chat", "1")
        grown = psutil.Process(process.process.pid).memory_info().rss - before
        for writer in stuck:
            writer.transport.abort()
    assert (event["code"], event["sha256"]) == ("complete", hashlib.sha256(body).hexdigest())
    assert grown < len(body) // 2, "twenty readers, none of whom holds the stream"


async def test_t9_data_are_swept_after_their_retention_and_the_ids_stay_taken(database_url: str) -> None:
    from streamkeep.storage import Retention

    store = PostgresStore(database_url, retention=Retention(data_seconds=0.1))
    async with serving(store) as proxy, upstream(ticking(BODY, pieces=2, seconds=0.01)) as server:
        await proxy.create("chat", "1", server.url)
        async with asyncio.timeout(20):
            while (await proxy.client.get("/api/chat/1")).status_code != 410:
                await asyncio.sleep(0.05)
        for answer in (await proxy.read("chat", "1"), await proxy.create("chat", "1", server.url)):
            assert (answer.status_code, answer.json()["error"]) == (410, "gone")
        assert len(server.calls) == 1


async def test_merged_streams_read_the_same_from_every_offset(database_url: str) -> None:
    async with (
        serving(PostgresStore(database_url)) as proxy,
        upstream(ticking(BODY[:4_000], pieces=100, seconds=0.5)) as server,
    ):
        await proxy.create("chat", "1", server.url)
        await proxy.ending("chat", "1")
        while await proxy.service.store.merge():
            pass
        for start in range(0, 4_001, 97):
            got = await proxy.read("chat", "1", offset=f"{0:016d}_{start:016d}")
            assert got.content == BODY[start:4_000]


async def _until(process: ServedProcess, path: str, status: int) -> None:
    async with asyncio.timeout(60):
        while (await process.client.get(path)).status_code != status:
            await asyncio.sleep(0.02)
