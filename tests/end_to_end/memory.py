"""How far a process grows when everybody is in its way: `python -m tests.end_to_end.memory` measures the long form.

Upstreams that send 10 MB/s each, a database that answers nobody for a while, and readers of every kind that take nothing
once they have connected, all at once. What is printed is the resident growth of the serving process at its worst, beside
what it may be: the budget of bytes that are not durable yet, what a socket may hold for each reader, and a fixed rest.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.database import PrivateServer
from tests.serving import ServedProcess, served_process
from tests.upstream import Exchange, upstream

MIB = 1024 * 1024
SESSION = "memory"
PIECE = bytes(range(256)) * 256
PIECES_PER_SECOND = 10_000_000 / len(PIECE)

# Chosen so that few upstreams fill the budget of the process, and not only their own.
STREAM_BUDGET_BYTES = 2 * MIB
PROCESS_BUDGET_BYTES = 8 * MIB
# Where several generations wait, a commit takes up to 2 MiB and the one that is then due: once as rows, once as the
# driver sends them, once in the transport.
COMMIT_BYTES = 3 * (2 * MIB + STREAM_BUDGET_BYTES)
# What is sent to a reader at once, encoded, and the read or the page of the log that it was made of.
READER_BYTES = MIB // 2
# Interpreter, connections, and what the allocator does not give back.
REST_BYTES = 40 * MIB


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is sent by how many, read by how many of each kind, and for how long the database is frozen."""

    generations: int = 8
    size_bytes: int = 200 * MIB
    readers: int = 40
    frozen_seconds: float = 20.0


SHORT = Scale(generations=6, size_bytes=24 * MIB, readers=20, frozen_seconds=5.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run grew by, and what it may have grown by."""

    grown_bytes: int
    readers: int

    @property
    def allowed_bytes(self) -> int:
        return PROCESS_BUDGET_BYTES + COMMIT_BYTES + self.readers * READER_BYTES + REST_BYTES

    def __str__(self) -> str:
        return (
            f"grew by {self.grown_bytes / MIB:.1f} MiB of {self.allowed_bytes / MIB:g}: {PROCESS_BUDGET_BYTES / MIB:g} for"
            f" what is not durable, {COMMIT_BYTES / MIB:g} for the commit under way, {READER_BYTES / MIB:g} for each of"
            f" {self.readers} readers that take nothing, {REST_BYTES / MIB:g} besides"
        )


async def run(scale: Scale, home: Path) -> bool:
    """Measure and print; whether the process stayed within what it may be."""
    measured = await measure(scale, home)
    print(measured)
    return measured.grown_bytes < measured.allowed_bytes


async def measure(scale: Scale, home: Path) -> Measured:
    """One run; every generation comes out whole."""
    database = await asyncio.to_thread(PrivateServer, home)
    try:
        async with upstream(lambda exchange: _send(exchange, scale.size_bytes)) as vendor:
            environ = {
                "STREAMKEEP_UPSTREAMS": f"vendor={vendor.url}",
                "STREAMKEEP_STREAM_BUDGET_BYTES": str(STREAM_BUDGET_BYTES),
                "STREAMKEEP_PROCESS_BUDGET_BYTES": str(PROCESS_BUDGET_BYTES),
                "STREAMKEEP_READER_STALL_SECONDS": "3600",
                "STREAMKEEP_STORAGE_OUTAGE_SECONDS": "3600",
                "STREAMKEEP_LOG_LEVEL": "error",
            }
            async with served_process(database_url=database.url, environ=environ) as process:
                return await _measure(process, database, scale)
    finally:
        await asyncio.to_thread(database.stop)


async def _measure(process: ServedProcess, database: PrivateServer, scale: Scale) -> Measured:
    names = [str(number) for number in range(scale.generations)]
    await _warm_up(process)
    with stuck_readers() as readers:
        async with _growth_of(process) as peak:
            for name in names:
                readers.ask(process, f"POST /u/vendor/{name}", _ids(name))
            for name in names:
                await process.available(MIB, SESSION, name)
            for number in range(scale.readers):
                query = f"sessionId={SESSION}&requestId={names[number % len(names)]}"
                readers.ask(process, f"GET /stream/data?{query}&live=sse&encoding=base64")
                readers.ask(process, f"GET /stream/data?{query}")
                readers.ask(process, f"POST /u/vendor/{names[number % len(names)]}", _ids(names[number % len(names)]))
            await asyncio.to_thread(database.freeze)
            await asyncio.sleep(scale.frozen_seconds)
            await asyncio.to_thread(database.thaw)
            endings = [await _ending(process, name) for name in names]
        measured = Measured(peak.grown_bytes, readers.count)
    digest = hashlib.sha256(PIECE * (scale.size_bytes // len(PIECE))).hexdigest()
    assert {(event["code"], event["sha256"]) for event in endings} == {("complete", digest)}
    return measured


async def _ending(process: ServedProcess, name: str) -> dict[str, Any]:
    """The event, however long it takes."""
    async with asyncio.timeout(1800):
        while (await process.client.get(f"/api/{SESSION}/{name}")).json()["state"] in ("creating", "running"):
            await asyncio.sleep(0.1)
    return await process.ending(SESSION, name)


async def _send(exchange: Exchange, size_bytes: int) -> None:
    """10 MB/s, or as fast as it is taken."""
    await exchange.head(200, {"Content-Type": "application/octet-stream"})
    began_at = time.monotonic()
    for number in range(size_bytes // len(PIECE)):
        await asyncio.sleep(max(0.0, began_at + number / PIECES_PER_SECOND - time.monotonic()))
        await exchange.chunk(PIECE)
    await exchange.end()


async def _warm_up(process: ServedProcess) -> None:
    """What a process allocates once is no growth."""
    ids = {"X-Session-ID": SESSION, "X-Request-ID": "warm"}
    async with process.client.stream("POST", "/u/vendor/warm", headers=ids) as answer:
        received = 0
        async for piece in answer.aiter_raw():
            received += len(piece)
            if received > 4 * MIB:
                break
    await process.client.post(f"/api/{SESSION}/warm/cancel")


def _ids(name: str) -> str:
    return f"X-Session-ID: {SESSION}\r\nX-Request-ID: {name}\r\nContent-Length: 0\r\n"


class StuckReaders:
    """Peers that ask and never read."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    @property
    def count(self) -> int:
        return len(self.sockets)

    def ask(self, process: ServedProcess, what: str, headers: str = "") -> None:
        parts = urlsplit(process.url)
        peer = socket.socket()
        self.sockets.append(peer)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect((parts.hostname, parts.port))
        peer.sendall(f"{what} HTTP/1.1\r\nHost: {parts.netloc}\r\n{headers}\r\n".encode())


@contextmanager
def stuck_readers() -> Iterator[StuckReaders]:
    readers = StuckReaders()
    try:
        yield readers
    finally:
        for peer in readers.sockets:
            peer.close()


class _Peak:
    def __init__(self, before: int) -> None:
        self.before = before
        self.grown_bytes = 0


@asynccontextmanager
async def _growth_of(process: ServedProcess) -> AsyncIterator[_Peak]:
    """The most by which the process's resident memory exceeds what it is now."""
    observed = psutil.Process(process.process.pid)
    peak = _Peak(observed.memory_info().rss)

    async def watch() -> None:
        while True:
            peak.grown_bytes = max(peak.grown_bytes, observed.memory_info().rss - peak.before)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield peak
    finally:
        watching.cancel()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.end_to_end.memory", description=__doc__.splitlines()[0])
    usual = Scale()
    parser.add_argument("--generations", type=int, default=usual.generations)
    parser.add_argument("--megabytes", type=int, default=usual.size_bytes // MIB)
    parser.add_argument("--readers", type=int, default=usual.readers, help="of each kind")
    parser.add_argument("--frozen", type=float, default=usual.frozen_seconds, metavar="SECONDS")
    chosen = parser.parse_args()
    scale = Scale(chosen.generations, chosen.megabytes * MIB, chosen.readers, chosen.frozen)
    with tempfile.TemporaryDirectory() as home:
        return 0 if asyncio.run(run(scale, Path(home))) else 1


if __name__ == "__main__":
    sys.exit(main())
