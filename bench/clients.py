"""What the client costs, beside plain httpx that reads the same body from the same server.

All run in this process, on asyncio's own loop, in turns; the server is another process. What is counted is the processor
time of this whole process, system calls included, from a body's first piece to its last, divided by the chunks.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import httpx

from bench.bars import Figure, RowComparison
from bench.processes import server
from bench.replay import CHUNK
from bench.systems import Place
from streamkeep.client import AsyncFetchClient, DurableTransport, FetchClient, MemoryStore, astream, stream

_ROUNDS = 5
_MOST_TIMES_HTTPX = 1.5


@dataclass(frozen=True, slots=True)
class Load:
    """A body of so many chunks, so many of them sent at once; see `replay`."""

    chunks: int
    together: int = 1
    is_burst: bool = False

    @property
    def size(self) -> int:
        return self.chunks * len(CHUNK)

    @property
    def query(self) -> str:
        return f"chunks={self.chunks}&together={self.together}&is_burst={self.is_burst}"


LOADS = {
    "one at a time": Load(2000),
    "8 in a burst": Load(6400, together=8, is_burst=True),
    "8 that have gathered": Load(6400, together=8),
}


async def compare_clients(place: Place, say: Callable[[str], None]) -> RowComparison:
    """All clients on one server, which replays the same body to them."""
    figures: list[Figure] = []
    command = (sys.executable, "-m", "bench.replay")
    async with server(*command, log=place.folder / "replay.log", cores=place.server_cores) as replay:
        for name, load in LOADS.items():
            say(f"clients: {load.chunks} chunks, {name} …")
            costs = await asyncio.to_thread(measure, replay.url, load)
            for client, plain in CLIENTS.items():
                what, bar = f"{client}, {name}", round(_MOST_TIMES_HTTPX * costs[plain], 1)
                figures.append(Figure(what, "µs/chunk", bar, costs[client], {"httpx": costs[plain]}))
    size = len(CHUNK)
    title = f"Processor time of clients that read chunks of {size} bytes; 1 µs/chunk is {1000 / size:g} ms/MB"
    return RowComparison("client", title, figures)


def measure(url: str, load: Load) -> dict[str, float]:
    """Microseconds for a chunk, by the client's name. Raises: AssertionError: one did not get all."""
    taken: dict[str, list[float]] = {name: [] for name in READERS}
    for number in range(_ROUNDS + 1):
        for name, reader in READERS.items():
            reading = _Reading()
            reader(url, load.query, reading)
            assert reading.size == load.size, name
            if number:  # the first round warms up
                taken[name].append(reading.seconds)
    return {name: 1e6 * statistics.median(seconds) / load.chunks for name, seconds in taken.items()}


class _Reading:
    """One body being read: what it took from its first piece to its last, without what comes before and after."""

    def __init__(self) -> None:
        self.size = 0
        self._began = self._last = 0.0

    @property
    def seconds(self) -> float:
        return self._last - self._began

    def all(self, pieces: Iterator[bytes]) -> None:
        self.size = len(next(pieces))
        self._began = time.process_time()
        for piece in pieces:
            self.size += len(piece)
        self._last = time.process_time()

    async def all_async(self, pieces: AsyncIterator[bytes]) -> None:
        self.size = len(await anext(pieces))
        self._began = time.process_time()
        async for piece in pieces:
            self.size += len(piece)
        self._last = time.process_time()


def _httpx(url: str, query: str, reading: _Reading) -> None:
    with httpx.Client() as client, client.stream("POST", f"{url}/plain?{query}") as response:
        reading.all(response.iter_bytes())


def _fetch(url: str, query: str, reading: _Reading) -> None:
    with FetchClient(url, store=MemoryStore()) as client:
        reading.all(client.fetch(f"{url}/plain?{query}", method="POST").iter_bytes())


def _transport(url: str, query: str, reading: _Reading) -> None:
    transport = DurableTransport(url, store=MemoryStore())
    with httpx.Client(transport=transport) as client, client.stream("POST", f"{url}/plain?{query}") as response:
        reading.all(response.iter_bytes())


def _stream(url: str, query: str, reading: _Reading) -> None:
    with stream(f"{url}/stream/data?{query}", live="sse") as response:
        reading.all(response.iter_bytes())


async def _async_httpx(url: str, query: str, reading: _Reading) -> None:
    async with httpx.AsyncClient() as client, client.stream("POST", f"{url}/plain?{query}") as response:
        await reading.all_async(response.aiter_bytes())


async def _async_fetch(url: str, query: str, reading: _Reading) -> None:
    async with AsyncFetchClient(url, store=MemoryStore()) as client:
        response = await client.fetch(f"{url}/plain?{query}", method="POST")
        await reading.all_async(response.aiter_bytes())


async def _async_transport(url: str, query: str, reading: _Reading) -> None:
    transport = DurableTransport(url, store=MemoryStore())
    async with (
        httpx.AsyncClient(transport=transport) as client,
        client.stream("POST", f"{url}/plain?{query}") as response,
    ):
        await reading.all_async(response.aiter_bytes())


async def _async_stream(url: str, query: str, reading: _Reading) -> None:
    async with astream(f"{url}/stream/data?{query}", live="sse") as response:
        await reading.all_async(response.iter_bytes())


Reader = Callable[[str, str, _Reading], None]

READERS: dict[str, Reader] = {
    "httpx": _httpx,
    "FetchClient": _fetch,
    "DurableTransport": _transport,
    "stream": _stream,
    "async httpx": lambda *args: asyncio.run(_async_httpx(*args)),
    "AsyncFetchClient": lambda *args: asyncio.run(_async_fetch(*args)),
    "async DurableTransport": lambda *args: asyncio.run(_async_transport(*args)),
    "astream": lambda *args: asyncio.run(_async_stream(*args)),
}

CLIENTS = {
    "FetchClient": "httpx",
    "DurableTransport": "httpx",
    "stream": "httpx",
    "AsyncFetchClient": "async httpx",
    "async DurableTransport": "async httpx",
    "astream": "async httpx",
}
"""Ours, and what each is compared with."""
