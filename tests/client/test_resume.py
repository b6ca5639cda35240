"""Resuming: whatever was taken before, what comes after it is the rest, byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from streamkeep.client import GenerationCancelled, GenerationRecord, MemoryStore, RecordState, SQLiteStore, Truncated
from streamkeep.storage import MemoryStore as Streams
from streamkeep.storage import Retention
from tests.client.both import Reading
from tests.client.conftest import MakeClient
from tests.serving import Proxy, served_process, serving
from tests.upstream import Exchange, Script, upstream, whole

TEXT = "Grüße 🌊\r\n\n水の流れ".encode()
WAVES = "日本語と🌊, CRLF\r\nand LF\n".encode() * 50
START = "Streamkeep-Start-Offset"
NOTHING = "Streamkeep-Nothing-To-Resume"


def held(first: bytes, second: bytes, gate: asyncio.Event, content_type: str = "text/plain") -> Script:
    """Send one part, wait for the gate, send the other."""

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": content_type})
        await exchange.chunk(first)
        await gate.wait()
        await exchange.chunk(second)
        await exchange.end()

    return play


async def test_t1_every_cut_point_joins_up(make_client: MakeClient, proxy: Proxy, session: str) -> None:
    """delivered[:k] + resume(k) == whole, for every k, inside characters and line ends too."""
    async with upstream(whole(TEXT, "text/plain", chunk_bytes=5)) as server:
        store = MemoryStore()
        client = make_client(proxy.url, store=store)
        assert await (await client.fetch(server.url, session_id=session, request_id="1")).rest() == TEXT
        (record,) = store.records(proxy.url, session)
        for cut in range(len(TEXT) + 1):
            store.put(replace(record, state=RecordState.OPEN, position=cut))
            resumed = await client.fetch(session_id=session, resume=True)
            assert resumed.response.headers[START] == str(cut)
            assert TEXT[:cut] + await resumed.rest() == TEXT
        assert len(server.calls) == 1


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_a_closed_body_is_resumed_after_what_was_taken(
    make_client: MakeClient, proxy: Proxy, session: str, taken: int
) -> None:
    gates = [asyncio.Event() for _ in range(5)]

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        for number, gate in enumerate(gates):
            await gate.wait()
            await exchange.chunk(b"%d" % number * 10)
        await exchange.end()

    async with upstream(play) as server:
        client = make_client(proxy.url)
        first = await client.fetch(server.url, session_id=session)
        got = b""
        for gate in gates[:taken]:
            gate.set()
            got += await first.at_least(10)
        await first.close()
        for gate in gates:
            gate.set()
        resumed = await client.fetch(session_id=session, resume=True)
        start = int(resumed.response.headers[START])
        assert start == max(0, taken - 1) * 10, "the last piece was handed over, and nobody asked for more"
        body = b"".join(b"%d" % number * 10 for number in range(5))
        assert got[:start] + await resumed.rest() == body
        assert resumed.response.headers["X-Request-ID"] == first.response.headers["X-Request-ID"]
        assert len(server.calls) == 1


async def test_a_resume_reads_on_while_the_generation_runs(make_client: MakeClient, proxy: Proxy, session: str) -> None:
    gate = asyncio.Event()
    async with upstream(held(WAVES, TEXT, gate)) as server:
        store = MemoryStore()
        first = await make_client(proxy.url, store=store).fetch(server.url, session_id=session)
        await first.at_least(len(WAVES))
        second = make_client(proxy.url, store=store)
        resumed = await second.fetch(
            headers={"X-Session-ID": session, "X-Resume-Active-Generation": "true", "X-Replay-From-Start": "true"}
        )
        assert resumed.response.headers["Content-Type"] == "text/plain"
        assert await resumed.at_least(len(WAVES)) == WAVES
        gate.set()
        assert (await first.rest(), await resumed.rest()) == (TEXT, TEXT)


@pytest.mark.parametrize("has_record", [True, False], ids=["by its record", "by asking the proxy"])
async def test_t5_the_running_generation_is_resumed_under_its_own_id(
    make_client: MakeClient, proxy: Proxy, session: str, has_record: bool
) -> None:
    gate = asyncio.Event()
    async with upstream(whole(b"turn 1")) as ended, upstream(held(b"turn ", b"2", gate)) as running:
        client = make_client(proxy.url)
        await (await client.fetch(ended.url, session_id=session, request_id="1")).rest()
        await (await client.fetch(running.url, session_id=session, request_id="2")).close()
        after = client if has_record else make_client(proxy.url)
        resumed = await after.fetch(session_id=session, resume=True)
        assert resumed.response.headers["X-Request-ID"] == "2"
        gate.set()
        assert await resumed.rest() == b"turn 2"


async def test_t19_stopping_what_was_resumed_ends_it_here_and_upstream(
    make_client: MakeClient, proxy: Proxy, session: str
) -> None:
    async with upstream(held(WAVES, b"never", asyncio.Event())) as server:
        client = make_client(proxy.url)
        first = await client.fetch(server.url, session_id=session, request_id="1")
        await first.at_least(len(WAVES))
        await first.close()
        resumed = await client.fetch(session_id=session, resume=True, replay_from_start=True)
        assert await resumed.at_least(len(WAVES)) == WAVES
        rest = asyncio.create_task(resumed.failing_rest())
        assert await client.cancel(session, "1") == "cancelled"
        await asyncio.wait_for(server.calls[0].is_gone.wait(), 30)
        got, raised = await rest
        assert (got, type(raised)) == (b"", GenerationCancelled)
        assert await nothing(await client.fetch(session_id=session, resume=True)) == "ended"


async def test_a_named_generation_is_resumed(make_client: MakeClient, proxy: Proxy, session: str) -> None:
    gate = asyncio.Event()
    async with upstream(held(b"one ", b"two", gate)) as server:
        client = make_client(proxy.url)
        for request in ("1", "2"):
            await (await client.fetch(server.url, session_id=session, request_id=request)).close()
        gate.set()
        resumed = await client.fetch(session_id=session, request_id="1", resume=True)
        assert resumed.response.headers["X-Request-ID"] == "1"
        assert await resumed.rest() == b"one two"


async def nothing(reading: Reading) -> str:
    assert reading.response.status_code == 204
    assert await reading.rest() == b""
    return reading.response.headers[NOTHING]


async def test_nothing_to_resume_is_a_204_that_says_why(make_client: MakeClient, proxy: Proxy, session: str) -> None:
    async with upstream(whole(WAVES)) as server:
        store = MemoryStore()
        client = make_client(proxy.url, store=store)
        assert await nothing(await client.fetch(session_id=session, resume=True)) == "none"
        assert await nothing(await client.fetch(session_id=session, request_id="1", resume=True)) == "none"
        await (await client.fetch(server.url, session_id=session, request_id="1")).rest()
        assert await nothing(await client.fetch(session_id=session, resume=True)) == "ended"
        assert await nothing(await client.fetch(session_id=session, resume=True, replay_from_start=True)) == "ended"
        assert await nothing(await client.fetch(session_id=session, request_id="1", resume=True)) == "ended"


async def test_t9_an_ended_generation_is_replayed_by_its_name(
    make_client: MakeClient, proxy: Proxy, session: str
) -> None:
    async with upstream(whole(WAVES)) as server:
        client = make_client(proxy.url)
        await (await client.fetch(server.url, session_id=session, request_id="1")).rest()
        for with_an_empty_store in (client, make_client(proxy.url)):
            again = await with_an_empty_store.fetch(
                session_id=session, request_id="1", resume=True, replay_from_start=True
            )
            assert await again.rest() == WAVES
        assert len(server.calls) == 1


async def test_a_generation_that_ended_meanwhile_is_delivered_to_its_end(
    make_client: MakeClient, proxy: Proxy, session: str
) -> None:
    body = b'data: {"choices":[{"delta":{"content":"half an ans"}}]}\n\n'
    async with upstream(whole(body)) as server:
        client = make_client(proxy.url)
        await (
            await client.fetch(f"{server.url}/v1/chat/completions", json={}, session_id=session, request_id="1")
        ).close()
        await proxy.ending(session, "1")
        got, raised = await (await client.fetch(session_id=session, resume=True)).failing_rest()
        assert (got, type(raised)) == (body, Truncated)


async def test_a_record_is_too_old_after_its_ttl(make_client: MakeClient, proxy: Proxy, session: str) -> None:
    gate = asyncio.Event()
    async with upstream(held(WAVES, TEXT, gate)) as server:
        store = MemoryStore()
        client = make_client(proxy.url, store=store)
        await (await client.fetch(server.url, session_id=session)).close()
        (record,) = store.records(proxy.url, session)
        store.put(replace(record, updated_at=datetime.now(UTC) - timedelta(minutes=61)))
        assert await nothing(await client.fetch(session_id=session, resume=True)) == "expired"
        brief = {"X-Session-ID": session, "X-Resume-Active-Generation": "1", "X-Active-Generation-TTL": "3600000"}
        assert await nothing(await client.fetch(headers=brief)) == "expired"
        gate.set()
        resumed = await client.fetch(headers={**brief, "X-Active-Generation-TTL": "7200000"})
        assert await resumed.rest() == WAVES + TEXT


async def test_with_an_empty_store_the_proxy_is_asked(make_client: MakeClient, proxy: Proxy, session: str) -> None:
    gate = asyncio.Event()
    async with upstream(held(WAVES, TEXT, gate)) as server:
        first = await make_client(proxy.url).fetch(server.url, session_id=session, request_id="1")
        await first.at_least(len(WAVES))
        store = MemoryStore()
        resumed = await make_client(proxy.url, store=store).resume(session)
        assert (resumed.response.headers["X-Request-ID"], resumed.response.headers[START]) == ("1", "0")
        assert [record.request_id for record in store.records(proxy.url, session)] == ["1"]
        gate.set()
        assert await resumed.rest() == WAVES + TEXT
        await first.close()


async def test_a_resume_before_upstreams_answer_waits_for_it(
    make_client: MakeClient, proxy: Proxy, session: str
) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.answer(202, b"late", {"Content-Type": "text/plain"})

    async with upstream(play) as server:
        client = make_client(proxy.url)
        fetching = asyncio.create_task(client.fetch(server.url, session_id=session, request_id="1"))
        await server.called()
        resuming = asyncio.create_task(client.fetch(session_id=session, resume=True))
        with pytest.raises(httpx.ReadTimeout):
            await client.fetch(session_id=session, resume=True, timeout=1.0)
        gate.set()
        resumed = await resuming
        assert resumed.response.status_code == 202
        assert await resumed.rest() == await (await fetching).rest() == b"late"


async def test_what_upstream_refused_meanwhile_is_nothing_to_resume(
    make_client: MakeClient, proxy: Proxy, session: str
) -> None:
    gate = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.answer(400, b"no")

    async with upstream(play) as server:
        client = make_client(proxy.url)
        fetching = asyncio.create_task(client.fetch(server.url, session_id=session, request_id="1"))
        await server.called()
        resuming = asyncio.create_task(client.fetch(session_id=session, resume=True))
        gate.set()
        assert (await fetching).response.status_code == 400
        assert await nothing(await resuming) == "none"


async def test_a_request_that_never_arrived_is_nothing_to_resume(
    make_client: MakeClient, proxy: Proxy, session: str
) -> None:
    store, now = MemoryStore(), datetime.now(UTC)
    store.put(GenerationRecord(proxy.url, session, "lost", now, now))
    assert await nothing(await make_client(proxy.url, store=store).fetch(session_id=session, resume=True)) == "none"
    assert store.records(proxy.url, session) == []


async def test_the_rest_of_an_encoded_body_is_given_as_it_is(
    make_client: MakeClient, proxy: Proxy, session: str
) -> None:
    encoded = gzip.compress(WAVES)

    async def play(exchange: Exchange) -> None:
        await exchange.answer(200, encoded, {"Content-Type": "text/plain", "Content-Encoding": "gzip"})

    async with upstream(play) as server:
        store = MemoryStore()
        client = make_client(proxy.url, store=store)
        assert await (await client.fetch(server.url, session_id=session)).decoded() == WAVES
        (record,) = store.records(proxy.url, session)
        store.put(replace(record, state=RecordState.OPEN, position=10))
        rest = await client.fetch(session_id=session, resume=True)
        assert rest.response.headers["Upstream-Content-Encoding"] == "gzip"
        assert await rest.decoded() == encoded[10:]
        store.put(replace(record, state=RecordState.OPEN, position=10))
        again = await client.fetch(session_id=session, resume=True, replay_from_start=True)
        assert await again.decoded() == WAVES


async def test_swept_data_are_expired(make_client: MakeClient, session: str) -> None:
    streams = Streams(Retention(data_seconds=0.01))
    async with serving(streams) as proxy, upstream(whole(WAVES)) as server:
        store = MemoryStore()
        client = make_client(proxy.url, store=store)
        await (await client.fetch(server.url, session_id=session, request_id="1")).close()
        (record,) = store.records(proxy.url, session)
        async with asyncio.timeout(60):
            while (await proxy.client.get(f"/api/{session}/1")).status_code != 410:
                await streams.sweep()
                await asyncio.sleep(0.01)
        store.put(replace(record, state=RecordState.OPEN))
        assert await nothing(await client.fetch(session_id=session, resume=True)) == "expired"


READER = """
import sys
from streamkeep.client import FetchClient, SQLiteStore

proxy_url, upstream_url, store, session, taken = sys.argv[1:]
resume = upstream_url == "-"
with FetchClient(proxy_url, store=SQLiteStore(store)) as client, open(taken, "r+b" if resume else "wb") as file:
    response = client.fetch(None if resume else upstream_url, session_id=session, resume=resume)
    file.seek(int(response.headers.get("Streamkeep-Start-Offset", "0")))
    for piece in response.iter_raw():
        file.write(piece)
        file.flush()
"""


async def test_a_killed_process_is_followed_by_one_that_resumes(database_url: str, tmp_path: Path) -> None:
    """The reader is killed while it reads; another process finds the place in the file, and the parts join up."""
    gate, pieces = asyncio.Event(), [f"{number:06d} 🌊\n".encode() for number in range(3000)]

    async def play(exchange: Exchange) -> None:
        await exchange.head(200, {"Content-Type": "text/plain"})
        for number, piece in enumerate(pieces):
            if number == 2000:
                await gate.wait()
            await exchange.chunk(piece)
            if number % 20 == 0:
                await asyncio.sleep(0.002)
        await exchange.end()

    body = b"".join(pieces)
    taken = tmp_path / "taken"
    arguments = [str(tmp_path / "client.sqlite3"), "chat", str(taken)]
    async with served_process(database_url=database_url) as proxy, upstream(play) as server:
        command = [sys.executable, "-c", READER, proxy.url]
        reader = await asyncio.create_subprocess_exec(*command, server.url, *arguments, env=dict(os.environ))
        async with asyncio.timeout(60):
            while not taken.exists() or taken.stat().st_size < len(body) // 3:
                await asyncio.sleep(0.005)
        reader.send_signal(signal.SIGKILL)
        assert await reader.wait() == -signal.SIGKILL
        before = taken.stat().st_size
        (record,) = SQLiteStore(tmp_path / "client.sqlite3").records(proxy.url, "chat")
        assert (record.state, 0 <= record.position <= before) == (RecordState.OPEN, True)
        gate.set()
        done = await asyncio.create_subprocess_exec(*command, "-", *arguments)
        assert await done.wait() == 0
        assert taken.read_bytes() == body
        assert len(server.calls) == 1
        assert before < len(body)
