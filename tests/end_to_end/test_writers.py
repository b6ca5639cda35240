"""Many writers over several processes on one database, while processes are killed and answers are lost.

What is promised: an acknowledged append is there, an idempotent producer may try again for ever and is stored once, a
live reader skips nothing, and a fork keeps what it was made from.
"""

from __future__ import annotations

import asyncio
import random
import re
from base64 import b64decode
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from streamkeep.storage.postgres import PostgresStore
from tests.cutting import wire_to
from tests.serving import Proxy, served_process, serving

PROCESSES = 3
WRITERS = 16
STREAMS = 4
KILLS = 6
BYTES = {"Content-Type": "application/octet-stream"}
RECORD = re.compile(rb"\[(\d+):(\d+):x*\]")


@dataclass
class Fleet:
    """Processes of which some are up, at addresses that change."""

    client: httpx.AsyncClient
    rng: random.Random
    urls: dict[int, str] = field(default_factory=dict)
    doomed: list[asyncio.Event] = field(default_factory=lambda: [asyncio.Event() for _ in range(PROCESSES)])
    failures: int = 0

    async def run(self, number: int, database_url: str) -> None:
        """Keep one process up: whenever it is doomed it is killed, and another one started."""
        while True:
            environ = {
                "STREAMKEEP_LOG_LEVEL": "error",
                "STREAMKEEP_LONG_POLL_SECONDS": "1",
                "STREAMKEEP_SSE_SECONDS": "2",
            }
            async with served_process(database_url=database_url, environ=environ) as process:
                self.urls[number] = process.url
                try:
                    await self.doomed[number].wait()
                finally:
                    del self.urls[number]
                self.doomed[number].clear()
                process.kill()
                await process.exit_code()

    async def url(self) -> str:
        """The address of some process that is up."""
        while not self.urls:
            await asyncio.sleep(0.01)
        return self.rng.choice(list(self.urls.values()))

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
        """Send a request until it is answered, to one process after the other."""
        sent = {**BYTES, **{name.replace("_", "-"): value for name, value in headers.items()}}
        while True:
            try:
                answer = await self.client.request(method, await self.url() + path, content=body, headers=sent)
            except httpx.TransportError:
                self.failures += 1
                continue
            if answer.status_code != 503:
                return answer
            self.failures += 1

    async def kill_some(self, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(self.rng.uniform(0.2, 1.0))
            while not self.urls:
                await asyncio.sleep(0.01)
            self.doomed[self.rng.choice(list(self.urls))].set()


@asynccontextmanager
async def running_fleet(database_url: str, seed: int) -> AsyncIterator[Fleet]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=20, limits=limits) as client:
        fleet = Fleet(client, random.Random(seed))
        tasks = [asyncio.create_task(fleet.run(number, database_url)) for number in range(PROCESSES)]
        try:
            async with asyncio.timeout(60):
                while len(fleet.urls) < PROCESSES:
                    await asyncio.sleep(0.01)
            yield fleet
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


def stream_path(number: int) -> str:
    return f"/v1/stream/written/{number % STREAMS}"


def at(position: int) -> str:
    return f"{0:016d}_{position:016d}"


def position_of(offset: str) -> int:
    return int(offset.rpartition("_")[2])


async def write(fleet: Fleet, number: int, is_over: asyncio.Event) -> list[int]:
    """Append records, each until it is acknowledged; the offsets that were acknowledged."""
    rng = random.Random(number)
    acknowledged: list[int] = []
    while not is_over.is_set():
        body = b"[%d:%d:%b]" % (number, len(acknowledged), b"x" * rng.choice([0, 10, 100, 3000]))
        sequence = str(len(acknowledged))
        producer = {"Producer_Id": f"w{number}", "Producer_Epoch": "0", "Producer_Seq": sequence}
        answer = await fleet.send("POST", stream_path(number), body, **producer)
        assert answer.status_code in (200, 204), answer.text
        assert answer.headers["Producer-Seq"] == sequence
        acknowledged.append(position_of(answer.headers["Stream-Next-Offset"]))
        await asyncio.sleep(rng.uniform(0, 0.03))
    return acknowledged


async def tail_by_polls(fleet: Fleet, path: str) -> bytes:
    """Everything, until the stream is closed, by long-polls of one process after the other."""
    seen = b""
    while True:
        answer = await fleet.send("GET", f"{path}?offset={at(len(seen))}&live=long-poll")
        assert answer.status_code in (200, 204), answer.text
        seen += answer.content
        assert answer.headers["Stream-Next-Offset"] == at(len(seen))
        if answer.headers.get("Stream-Closed") == "true":
            return seen


async def tail_by_events(fleet: Fleet, path: str) -> bytes:
    """The same by server-sent events, over connections that break."""
    seen = b""
    while True:
        query = {"offset": at(len(seen)), "live": "sse"}
        try:
            async with fleet.client.stream("GET", await fleet.url() + path, params=query) as answer:
                async for line in answer.aiter_lines():
                    name, _, value = line.partition(":")
                    if name == "id":
                        after = position_of(value.strip())
                    elif name == "data" and value.startswith("{"):
                        if '"streamClosed":true' in value:
                            return seen
                    elif name == "data":
                        seen += b64decode(value)
                        assert after == len(seen)
        except httpx.TransportError:
            fleet.failures += 1


async def fork(fleet: Fleet, is_over: asyncio.Event) -> dict[str, tuple[str, int]]:
    """Make forks at tails, and append to each; their sources, and where they part."""
    forks: dict[str, tuple[str, int]] = {}
    while not is_over.is_set():
        source, path = stream_path(len(forks)), f"/v1/stream/forked/{len(forks)}"
        tail = (await fleet.send("HEAD", source)).headers["Stream-Next-Offset"]
        made = await fleet.send("PUT", path, Stream_Forked_From=source, Stream_Fork_Offset=tail)
        assert made.status_code in (200, 201), made.text
        producer = {"Producer_Id": "f", "Producer_Epoch": "0", "Producer_Seq": "0"}
        assert (await fleet.send("POST", path, b"<own>", **producer)).status_code in (200, 204)
        forks[path] = (source, position_of(tail))
        await asyncio.sleep(0.2)
    return forks


@pytest.mark.slow
async def test_writers_over_processes_that_are_killed_lose_and_double_nothing(database_url: str) -> None:
    is_over = asyncio.Event()
    async with running_fleet(database_url, seed=11) as fleet, asyncio.timeout(180):
        paths = [stream_path(number) for number in range(STREAMS)]
        for path in paths:
            assert (await fleet.send("PUT", path)).status_code == 201
        async with asyncio.TaskGroup() as tasks:
            writing = [tasks.create_task(write(fleet, number, is_over)) for number in range(WRITERS)]
            polling = [tasks.create_task(tail_by_polls(fleet, path)) for path in paths]
            following = [tasks.create_task(tail_by_events(fleet, path)) for path in paths]
            forking = tasks.create_task(fork(fleet, is_over))
            await fleet.kill_some(KILLS)
            is_over.set()
            await asyncio.wait([*writing, forking])
            for path in paths:
                await fleet.send("POST", path, Stream_Closed="true")
        assert fleet.failures, "no request failed: nothing was tried"
        wholes = {path: await read_all(fleet, path) for path in paths}
        for number, path in enumerate(paths):
            assert polling[number].result() == following[number].result() == wholes[path]
        assert_each_record_is_there_once(wholes, [task.result() for task in writing])
        forks = forking.result()
        assert forks
        for path, (source, tail) in forks.items():
            assert await read_all(fleet, path) == wholes[source][:tail] + b"<own>"


def assert_each_record_is_there_once(wholes: dict[str, bytes], acknowledged: list[list[int]]) -> None:
    for path, whole in wholes.items():
        assert RECORD.sub(b"", whole) == b"", "torn, or not written by anybody"
        found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for record in RECORD.finditer(whole):
            found[int(record[1])].append((int(record[2]), record.end()))
        assert set(found) == {number for number in range(WRITERS) if stream_path(number) == path}
        for number, records in found.items():
            assert [sequence for sequence, _ in records] == list(range(len(acknowledged[number])))
            assert all(end <= tail for (_, end), tail in zip(records, acknowledged[number], strict=True))


async def read_all(fleet: Fleet, path: str) -> bytes:
    """All pages."""
    seen = b""
    while True:
        answer = await fleet.send("GET", f"{path}?offset={at(len(seen))}")
        assert answer.status_code == 200, answer.text
        seen += answer.content
        if answer.headers.get("Stream-Up-To-Date") == "true":
            return seen


# An answer that is lost


def producer(sequence: int) -> dict[str, str]:
    return {**BYTES, "Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": str(sequence)}


async def append(client: httpx.AsyncClient, sequence: int) -> httpx.Response:
    return await client.post("/v1/stream/written", content=b"<%d>" % sequence, headers=producer(sequence))


async def test_an_append_whose_answer_was_lost_is_stored_once(database_url: str) -> None:
    async with (
        serving(PostgresStore(database_url)) as proxy,
        wire_to(proxy.url) as wire,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{wire.port}", timeout=20) as client,
    ):
        await client.put("/v1/stream/written", headers=BYTES)
        for sequence in range(10):
            wire.cut_after_answer()
            with pytest.raises(httpx.TransportError):
                await append(client, sequence)
            assert (await append(client, sequence)).status_code == 204, "known already"
        assert wire.cuts == 10
        assert await content(proxy) == b"".join(b"<%d>" % number for number in range(10))


async def test_an_append_is_known_to_the_next_process_when_its_own_dies_before_answering(database_url: str) -> None:
    async with served_process(database_url=database_url) as doomed, wire_to(doomed.url) as wire:
        await doomed.client.put("/v1/stream/written", headers=BYTES)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{wire.port}", timeout=20) as client:
            wire.cut_after_answer()
            with pytest.raises(httpx.TransportError):
                await append(client, 0)
        doomed.kill()
        await doomed.exit_code()
    async with serving(PostgresStore(database_url)) as proxy:
        again = await append(proxy.client, 0)
        assert (again.status_code, again.headers["Producer-Seq"]) == (204, "0")
        assert (await append(proxy.client, 1)).status_code == 200
        assert await content(proxy) == b"<0><1>"


async def test_an_append_during_which_the_database_is_lost_is_stored_once(database_url: str) -> None:
    async with wire_to(database_url) as wire, serving(PostgresStore(wire.url)) as proxy:
        await proxy.client.put("/v1/stream/written", headers=BYTES)
        unknown = 0
        for sequence in range(40):
            # The cut comes with the answer to one statement or another of the append, the commit too.
            cut = asyncio.get_running_loop().call_later(sequence % 8 * 0.0004, wire.cut_after_answer)
            async with asyncio.timeout(30):
                while (answer := await append(proxy.client, sequence)).status_code == 503:
                    assert answer.json()["error"] == "storage_unavailable"
                    unknown += 1
            assert answer.status_code in (200, 204), answer.text
            cut.cancel()
        assert unknown
        assert await content(proxy) == b"".join(b"<%d>" % number for number in range(40))


async def content(proxy: Proxy) -> bytes:
    async with asyncio.timeout(30):
        while (answer := await proxy.client.get("/v1/stream/written")).status_code == 503:
            await asyncio.sleep(0.05)
    return answer.content
