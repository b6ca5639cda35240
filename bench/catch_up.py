"""Catch-up: what is there already, read by many at once, and read again in the middle of an answer that goes on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.bars import Figure, RowComparison
from bench.histogram import Histogram
from bench.http_client import Connection
from bench.listeners import Listener
from bench.routes import create
from bench.systems import OURS, SYSTEMS, Place, Site, StreamServer, System, measure_each, site_at
from bench.workload import Workload

_TYPE = {"Content-Type": "application/octet-stream"}
_CHUNKS = 10_000
_CHUNK_BYTES = 200
_READERS = 8
_READ_SECONDS = 2.0
_CLOSED = (
    f"{_READERS} readers of a closed stream of {_CHUNKS} chunks of {_CHUNK_BYTES} bytes, all of it again and again"
)
# By then what was closed has been merged.
_MERGED_SECONDS = 20.0

_ANSWER = Workload(generations=1, rate=500, chunk_bytes=200, seconds=15, ramp_seconds=0)
_ANSWERED_BYTES = 1_000_000
_RESUMES = 100


@dataclass(frozen=True, slots=True)
class Throughput:
    """Bytes a second of all readers together, in their first round and in all rounds; and what was wrong with what they got."""

    first_per_second: float
    bytes_per_second: float
    faults: list[str]


@dataclass(frozen=True, slots=True)
class Resumed:
    """How long it took from asking until all that was there had come."""

    latency: Histogram = field(default_factory=Histogram)
    faults: list[str] = field(default_factory=list)


async def compare_catch_up(place: Place, peers: Sequence[str], say: Callable[[str], None]) -> RowComparison:
    """A closed stream of many chunks on each server, at once and with us when it was merged; then resumes of ours."""
    say("catch-up: a stream of 10,000 chunks, a minute in all …")

    async def measure(server: StreamServer) -> Throughput:
        stream = await _ClosedStream.write(server)
        throughput = await stream.read()
        await stream.remove()
        return throughput

    if place.foreign is not None:
        return _foreign(await measure(place.foreign))
    async with site_at(place) as site, SYSTEMS[OURS](site) as system:
        stream = await _ClosedStream.write(StreamServer(system.route.base_url, system.parties, ""))
        closed_at = time.monotonic()
        fresh = await stream.read()
        resumed = await _resume(system, site)
        await asyncio.sleep(closed_at + _MERGED_SECONDS - time.monotonic())
        merged = await stream.read()
    measured, left_out = await measure_each(peers, place, measure)
    peers_all = {name: throughput.bytes_per_second / 1e6 for name, throughput in measured.items()}
    peers_first = {name: throughput.first_per_second / 1e6 for name, throughput in measured.items()}
    figures = [
        Figure("closed just now, first round", "MB/s", 400, fresh.first_per_second / 1e6, peers_first, is_floor=True),
        Figure("closed just now, all rounds", "MB/s", 400, fresh.bytes_per_second / 1e6, peers_all, is_floor=True),
        Figure("merged, first round", "MB/s", 400, merged.first_per_second / 1e6, peers_first, is_floor=True),
        Figure("merged, all rounds", "MB/s", 400, merged.bytes_per_second / 1e6, peers_all, is_floor=True),
        Figure("resume of 1 MB while it goes on: p50", "ms", 30, resumed.latency.percentile_ms(50)),
        Figure("resume of 1 MB while it goes on: p99", "ms", 30, resumed.latency.percentile_ms(99)),
    ]
    faults = [f"{OURS}: {fault}" for fault in (*fresh.faults, *resumed.faults, *merged.faults)]
    faults += [f"{name}: {fault}" for name, throughput in measured.items() for fault in throughput.faults]
    title = f"{_CLOSED}; and a generation read from its beginning by server-sent events, one reader after the other, while it goes on"
    return RowComparison("catch-up", title, figures, faults, left_out)


def _foreign(found: Throughput) -> RowComparison:
    figures = [
        Figure("closed just now, first round", "MB/s", 400, found.first_per_second / 1e6, is_floor=True),
        Figure("closed just now, all rounds", "MB/s", 400, found.bytes_per_second / 1e6, is_floor=True),
    ]
    return RowComparison("catch-up", _CLOSED, figures, found.faults)


class _ClosedStream:
    """A stream on some server, and what was written to it."""

    def __init__(self, server: StreamServer, path: str, digest: bytes) -> None:
        self._server = server
        self._path = path
        self._digest = digest

    @classmethod
    async def write(cls, server: StreamServer) -> _ClosedStream:
        path = server.path("closed")
        digest = hashlib.sha256()
        writer = await server.connect()
        await writer.request("PUT", path, headers=_TYPE, wanted=(201,))
        for _ in range(_CHUNKS):
            body = os.urandom(_CHUNK_BYTES // 2).hex().encode()
            await writer.request("POST", path, headers=_TYPE, body=body, wanted=(200, 204))
            digest.update(body)
        await writer.request("POST", path, headers={**_TYPE, "Stream-Closed": "true"}, wanted=(200, 204))
        writer.close()
        return cls(server, path, digest.digest())

    async def read(self) -> Throughput:
        """All readers read all of it, again and again; what they got is compared between the rounds."""
        connections = [await self._server.connect() for _ in range(_READERS)]
        rounds: list[float] = []
        faults: list[str] = []
        while sum(rounds) < _READ_SECONDS:
            started_at = time.monotonic()
            bodies = await asyncio.gather(*(self._read_once(connection) for connection in connections))
            rounds.append(time.monotonic() - started_at)
            for pages in bodies:
                data = b"".join(pages)
                if hashlib.sha256(data).digest() != self._digest:
                    faults.append(f"{self._path}: {len(data)} bytes came, and they are others than were sent")
        for connection in connections:
            connection.close()
        round_bytes = _READERS * _CHUNKS * _CHUNK_BYTES
        return Throughput(round_bytes / rounds[0], round_bytes * len(rounds) / sum(rounds), faults)

    async def remove(self) -> None:
        connection = await self._server.connect()
        await self._server.remove(connection, self._path)
        connection.close()

    async def _read_once(self, connection: Connection) -> list[bytes]:
        pages: list[bytes] = []
        offset = "-1"
        while True:
            pages.append(await connection.request("GET", f"{self._path}?offset={offset}"))
            if connection.header("stream-up-to-date") == "true":
                return pages
            offset = connection.header("stream-next-offset")


async def _resume(system: System, site: Site) -> Resumed:
    """A generation that goes on, read from its beginning again and again once it is long enough."""
    resumed = Resumed()
    connection = await Connection.open(system.route.base_url)
    stream = urlsplit(await create(connection, site.upstream.url + _ANSWER.target("resumed"), "resumed"))
    target = f"{stream.path}?{stream.query}&offset=-1&live=sse&encoding=base64"
    whole = await Listener.open(system.route.base_url, target)
    await asyncio.sleep(_ANSWERED_BYTES / _ANSWER.chunk_bytes / _ANSWER.rate)
    got: list[bytes] = []
    for _ in range(_RESUMES):
        asked_at_ns = time.monotonic_ns()
        listener = await Listener.open(system.route.base_url, target)
        await listener.caught_up
        resumed.latency.record(time.monotonic_ns() - asked_at_ns)
        listener.close()
        got.append(b"".join(data for data, _ in listener.received()))
    await whole.ended
    connection.close()
    answer = b"".join(data for data, _ in whole.received())
    if hashlib.sha256(answer).hexdigest() != await _digest_sent(site):
        resumed.faults.append("the generation's bytes differ from those that upstream sent")
    resumed.faults.extend(
        f"resume {number}: what came is not the answer's beginning, or is short"
        for number, data in enumerate(got)
        if len(data) < _ANSWERED_BYTES * 0.9 or not answer.startswith(data)
    )
    return resumed


async def _digest_sent(site: Site) -> str:
    connection = await Connection.open(site.upstream.url)
    sent = json.loads(await connection.request("GET", "/sent"))
    connection.close()
    digest: str = sent["streams"]["resumed"]["sha256"]
    return digest
