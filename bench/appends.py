"""Appends of the open protocol: how long one takes alone, and how many a server takes in from a crowd.

Each writer has a connection and a stream of its own and sends its next append when the last one is answered; with a
producer, under the producer's headers. At the end each stream is read back and compared with the digest of what its
writer sent: what was acknowledged and what is there must be the same bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bench.histogram import Histogram
from bench.http_client import Connection, RequestFailed
from bench.processes import cpu_seconds
from bench.systems import StreamServer

LEAST_APPENDS_PER_SECOND = 6000
"""The bar of a crowd, on a disk that is slow to sync too."""

_TYPE = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class Writing:
    """What is asked of a server: `writers` at once, each appending `append_bytes` again and again for `seconds`."""

    writers: int
    append_bytes: int
    seconds: float
    has_producer: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """What came of it. `cpu_seconds` is what each party used meanwhile, `faults` are the streams that did not keep what
    was acknowledged, and why."""

    latency: Histogram
    took_seconds: float
    cpu_seconds: Mapping[str, float]
    faults: list[str]

    @property
    def appends_per_second(self) -> float:
        return self.latency.count / self.took_seconds

    def micros_per_append(self, party: str) -> float | None:
        if party not in self.cpu_seconds or not self.latency.count:
            return None
        return 1e6 * self.cpu_seconds[party] / self.latency.count


async def write(server: StreamServer, writing: Writing, label: str) -> Written:
    """Let the writers write. `label` makes the streams of this call differ from those of all others."""
    latency = Histogram()
    writers = [_Writer(server, f"{label}-{number}", writing, latency) for number in range(writing.writers)]
    await asyncio.gather(*(writer.begin() for writer in writers))
    cpu_before, started_at = cpu_seconds(server.parties), time.monotonic()
    await asyncio.gather(*(writer.write_until(started_at + writing.seconds) for writer in writers))
    took_seconds = time.monotonic() - started_at
    used = {name: seconds - cpu_before[name] for name, seconds in cpu_seconds(server.parties).items()}
    faults = await asyncio.gather(*(writer.check() for writer in writers))
    return Written(latency, took_seconds, used, [fault for fault in faults if fault is not None])


class _Writer:
    """One connection that appends to one stream. What goes wrong ends its part and is told by `check`."""

    def __init__(self, server: StreamServer, name: str, writing: Writing, latency: Histogram) -> None:
        self._server = server
        self._path = server.path(name)
        self._writing = writing
        self._latency = latency
        self._digest = hashlib.sha256()
        self._sent_bytes = 0
        self._failure: str | None = None
        self._connection: Connection | None = None

    async def begin(self) -> None:
        try:
            self._connection = await self._server.connect()
            await self._connection.request("PUT", self._path, headers=_TYPE, wanted=(201,))
        except (OSError, RequestFailed) as exc:
            self._failure = str(exc)

    async def write_until(self, end_at: float) -> None:
        sequence = 0
        try:
            while self._failure is None and time.monotonic() < end_at:
                await self._append(sequence)
                sequence += 1
        except RequestFailed as exc:
            self._failure = str(exc)

    async def _append(self, sequence: int) -> None:
        assert self._connection is not None
        body = os.urandom(self._writing.append_bytes)
        headers = dict(_TYPE)
        if self._writing.has_producer:
            headers |= {"Producer-Id": "bench", "Producer-Epoch": "0", "Producer-Seq": str(sequence)}
        asked_at_ns = time.monotonic_ns()
        await self._connection.request("POST", self._path, headers=headers, body=body, wanted=(200, 204))
        self._latency.record(time.monotonic_ns() - asked_at_ns)
        self._digest.update(body)
        self._sent_bytes += len(body)

    async def check(self) -> str | None:
        """What is wrong with the stream; None when it holds what was sent. Ends the connection."""
        if self._connection is None:
            return f"{self._path}: {self._failure}"
        try:
            if self._failure is None:
                self._failure = await self._difference(self._connection)
                await self._server.remove(self._connection, self._path)
        except RequestFailed as exc:
            self._failure = str(exc)
        finally:
            self._connection.close()
        return f"{self._path}: {self._failure}" if self._failure else None

    async def _difference(self, connection: Connection) -> str | None:
        kept, kept_bytes, offset = hashlib.sha256(), 0, "-1"
        while True:
            data = await connection.request("GET", f"{self._path}?offset={offset}")
            kept.update(data)
            kept_bytes += len(data)
            if not data or connection.header("stream-up-to-date") == "true":
                break
            offset = connection.header("stream-next-offset")
        if kept_bytes != self._sent_bytes:
            return f"{kept_bytes} bytes are there of {self._sent_bytes} that were acknowledged"
        return None if kept.digest() == self._digest.digest() else "the bytes differ from those that were sent"
