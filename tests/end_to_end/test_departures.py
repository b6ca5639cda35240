"""Readers that go away leave nothing behind, and a server that goes away lets its readers go."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from streamkeep.storage import MemoryStore
from streamkeep.storage.postgres import PostgresStore
from tests.end_to_end.memory import MIB, stuck_readers
from tests.serving import Proxy, ServedProcess, served_process, serving

STREAM = "/v1/stream/watched"
TEXT = {"Content-Type": "text/plain"}


class Watcher:
    """A raw connection that reads a stream's events from its start."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, url: str, path: str = STREAM) -> Watcher:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(f"GET {path}?offset=-1&live=sse HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        return cls(reader, writer)

    async def see(self, text: bytes) -> None:
        await self.reader.readuntil(text)

    async def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        return await self.reader.read()

    def leave(self, *, politely: bool) -> None:
        if politely:
            self.writer.close()
        else:
            self.writer.transport.abort()


async def test_two_hundred_readers_that_leave_are_forgotten(database_url: str) -> None:
    async with serving(PostgresStore(database_url)) as proxy:
        await proxy.client.put(STREAM, content=b"first ", headers=TEXT)
        tasks, connections = len(asyncio.all_tasks()), held_connections(proxy)
        watchers = await asyncio.gather(*(Watcher.open(proxy.url) for _ in range(200)))
        await asyncio.gather(*(watcher.see(b"data:first") for watcher in watchers))
        assert proxy.service.readers.count == 200
        assert held_connections(proxy) >= 200
        await append(proxy, b"second ")
        await asyncio.gather(*(watcher.see(b"data:second") for watcher in watchers))
        leaving = asyncio.create_task(leave(watchers))
        for number in range(20):
            await append(proxy, b"%d " % number)
        await leaving
        await until(lambda: proxy.service.readers.count == 0)
        await until(lambda: held_connections(proxy) <= connections)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert repr(proxy.service.readers) == "Readers(0 of 0 streams)"
        await append(proxy, b"last")
        whole = (await proxy.client.get(STREAM)).content
        assert whole == b"first second " + b"".join(b"%d " % number for number in range(20)) + b"last"


async def test_a_server_with_a_hundred_live_readers_stops_when_told(database_url: str) -> None:
    async with served_process(database_url=database_url, environ={"STREAMKEEP_DRAIN_SECONDS": "300"}) as process:
        await process.client.put(STREAM, content=b"first", headers=TEXT)
        watchers = await asyncio.gather(*(Watcher.open(process.url) for _ in range(100)))
        try:
            await asyncio.gather(*(watcher.see(b'"upToDate":true}\n\n') for watcher in watchers))
            process.terminate()
            async with asyncio.timeout(60):  # well within the grace for generations, of which there are none
                assert await process.exit_code() == 0
            rests = await asyncio.gather(*(watcher.rest() for watcher in watchers))
        finally:
            for watcher in watchers:
                watcher.leave(politely=False)
    assert {rest.endswith(b"0\r\n\r\n") for rest in rests} == {True}, "ended whole, and so to be resumed"


async def test_a_server_that_stops_cuts_readers_who_take_nothing_and_complains_of_none(
    database_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with served_process(database_url=database_url, log=log) as process:
        (await process.client.put(STREAM, content=b"x" * 8 * MIB, headers=TEXT)).raise_for_status()
        with stuck_readers() as readers:
            readers.ask(process, f"GET {STREAM}?offset=-1&live=sse")
            before, delivered = -1, 0
            async with asyncio.timeout(30):
                while not before == delivered > 0:
                    before, delivered = delivered, await delivered_bytes(process)
                    await asyncio.sleep(0.2)
            process.terminate()
            assert await process.exit_code() == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("live", ["sse", "long-poll"])
async def test_a_reader_that_comes_after_the_last_call_is_sent_away_too(live: str) -> None:
    async with serving(MemoryStore(), long_poll_seconds=600.0, sse_seconds=600.0) as proxy:
        await proxy.client.put(STREAM, content=b"first", headers=TEXT)
        proxy.service.readers.close()
        read = {"offset": "-1", "live": live}
        async with asyncio.timeout(60):
            assert "first" in (await proxy.client.get(STREAM, params=read)).text
            answer = await proxy.client.get(STREAM, params={**read, "offset": f"{0:016d}_{5:016d}"})
        assert "Stream-Closed" not in answer.headers
        assert "streamClosed" not in answer.text


async def leave(watchers: list[Watcher]) -> None:
    """One after the other, in both ways."""
    for number, watcher in enumerate(watchers):
        watcher.leave(politely=number % 2 == 0)
        await asyncio.sleep(0)


async def append(proxy: Proxy, data: bytes) -> None:
    answer = await proxy.client.post(STREAM, content=data, headers=TEXT)
    assert answer.status_code == 204, answer.text


def held_connections(proxy: Proxy) -> int:
    """Open sockets on the server's side."""
    port = urlsplit(proxy.url).port
    gone = {psutil.CONN_LISTEN, psutil.CONN_TIME_WAIT}
    found = psutil.Process().net_connections("tcp4")
    return sum(1 for connection in found if connection.laddr.port == port and connection.status not in gone)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def delivered_bytes(process: ServedProcess) -> int:
    (line,) = re.findall(
        r"^streamkeep_delivered_bytes_total (.*)$", (await process.client.get("/metrics")).text, re.MULTILINE
    )
    return int(float(line))
