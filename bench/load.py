"""The load side: starts the generations of a workload, reads each to its end, and checks every byte.

It keeps counts and one digest for each stream, never the chunks, so its memory does not grow with the length of a run.
Processor time is read twice inside the run: when every stream has begun, and when the first one ends. Between the two
all streams flow and nothing else happens, so that the difference, divided by the chunks of that time, is what a chunk
costs. The same division over the whole run includes what it costs to create generations and to end them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from bench.histogram import Histogram
from bench.http_client import Connection, RequestFailed
from bench.processes import ProcessTable, memory_bytes
from bench.routes import Route
from bench.workload import STAMP, Workload


class Phase(Enum):
    """What happens in a run: first streams begin, then all of them flow, then they end."""

    BEGINNING = auto()
    STREAMING = auto()
    ENDING = auto()


LOAD = "load"
"""This process, among the parties whose cost is measured."""

OTHERS = "others"
"""Whatever else runs on the machine, and should not while it is measured."""

_SEED = 1
_PATIENCE_FACTOR = 4
_PATIENCE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor time of one party: microseconds for each chunk that was received meanwhile, and the part of one core
    that it kept busy. What is said of streaming is None when there was no time at which all streams flowed."""

    streaming_micros: float | None
    streaming_share: float | None
    whole_run_micros: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """What one party occupied before the run, and while all streams were open."""

    idle_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One workload on one system. `latency` is that of every chunk, `streaming_latency` of those that came while all
    streams flowed. `repeated_reads` is how often a stream had to be asked for again, `faults` names the streams that did not come whole, and why."""

    lost_chunks: int
    faults: list[str]
    took_seconds: float
    latency: Histogram
    streaming_latency: Histogram
    repeated_reads: int
    first_chunk: Histogram
    create: Histogram
    costs: Mapping[str, Cost]
    memory: Mapping[str, Memory]
    upstream_lateness: Mapping[str, float | None]


class Load:
    """One run. `parties` are the processes whose cost is wanted, by name; each stands for all that descend from it."""

    def __init__(self, route: Route, workload: Workload, *, upstream_url: str, parties: Mapping[str, int]) -> None:
        self._route = route
        self._workload = workload
        self._upstream_url = upstream_url
        self._parties = parties
        self._latencies = {phase: Histogram() for phase in Phase}
        self._latency = self._latencies[Phase.BEGINNING]
        self._begun = 0
        self._readings: dict[Phase, _Reading] = {}
        self._peak: asyncio.Future[dict[str, int]] | None = None

    async def run(self, label: str) -> Outcome:
        """Play the workload. `label` makes the ids of this run differ from those of all others."""
        workload = self._workload
        receipts = [_Receipt(f"{label}-{number}", self) for number in range(workload.generations)]
        idle = memory_bytes(self._parties)
        self._enter(Phase.BEGINNING)
        # What has not come when the time is over is counted as lost.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_FACTOR * workload.expected_seconds + _PATIENCE_SECONDS):
                async with asyncio.TaskGroup() as tasks:
                    for receipt, pause_seconds in zip(receipts, _starts(workload), strict=True):
                        tasks.create_task(self._play(receipt, pause_seconds))
        end = self._read()
        peak = await self._peak if self._peak is not None else idle
        sent = await self._ask_upstream()
        streams: dict[str, dict[str, Any]] = sent["streams"]
        created = [receipt for receipt in receipts if receipt.created_at_ns and receipt.stream_id in streams]
        latency = Histogram.sum(self._latencies.values())
        return Outcome(
            lost_chunks=workload.generations * workload.chunks_per_generation - latency.count,
            faults=[fault for receipt in receipts if (fault := receipt.fault(streams.get(receipt.stream_id)))],
            took_seconds=end.since(self._readings[Phase.BEGINNING]).at_ns / 1e9,
            latency=latency,
            streaming_latency=self._latencies[Phase.STREAMING],
            repeated_reads=sum(receipt.repeated_reads for receipt in receipts),
            first_chunk=_durations(r.first_chunk_at_ns - r.asked_at_ns for r in receipts if r.first_chunk_at_ns),
            create=_durations(r.created_at_ns - r.asked_at_ns - streams[r.stream_id]["answerNs"] for r in created),
            costs=self._costs(end),
            memory={name: Memory(idle[name], peak[name]) for name in idle},
            upstream_lateness=sent["lateness"],
        )

    def chunk_arrived(self, latency_ns: int) -> None:
        self._latency.record(latency_ns)

    def stream_begun(self) -> None:
        self._begun += 1
        if self._begun == self._workload.generations and Phase.ENDING not in self._readings:
            self._enter(Phase.STREAMING)

    def _stream_ended(self) -> None:
        if Phase.ENDING not in self._readings:
            self._enter(Phase.ENDING)
            # In a thread, since adding up pages takes the kernel milliseconds.
            self._peak = asyncio.ensure_future(asyncio.to_thread(memory_bytes, self._parties))

    async def _play(self, receipt: _Receipt, pause_seconds: float) -> None:
        await asyncio.sleep(pause_seconds)
        target = self._workload.target(receipt.stream_id)
        try:
            connection = await Connection.open(self._route.base_url)
        except OSError as exc:
            receipt.failure = str(exc)
            return
        try:
            receipt.asked_at_ns = time.monotonic_ns()
            await self._route.play(connection, target, receipt)
        except RequestFailed as exc:
            receipt.failure = str(exc)
        finally:
            self._stream_ended()
            connection.close()

    async def _ask_upstream(self) -> dict[str, Any]:
        connection = await Connection.open(self._upstream_url)
        try:
            sent: dict[str, Any] = json.loads(await connection.request("GET", "/sent"))
            return sent
        finally:
            connection.close()

    def _enter(self, phase: Phase) -> None:
        self._readings[phase] = self._read()
        self._latency = self._latencies[phase]

    def _read(self) -> _Reading:
        table = ProcessTable.read()
        cpu_seconds = {name: table.cpu_seconds(pid) for name, pid in self._parties.items()}
        cpu_seconds[LOAD] = time.process_time()
        cpu_seconds[OTHERS] = table.busy_seconds - sum(cpu_seconds.values())
        chunks = sum(histogram.count for histogram in self._latencies.values())
        return _Reading(time.monotonic_ns(), chunks, cpu_seconds)

    def _costs(self, end: _Reading) -> dict[str, Cost]:
        all_flow, first_ends = self._readings.get(Phase.STREAMING), self._readings.get(Phase.ENDING)
        streaming = None if all_flow is None or first_ends is None else first_ends.since(all_flow)
        whole_run = end.since(self._readings[Phase.BEGINNING])
        return {
            name: Cost(
                streaming_micros=None if streaming is None else streaming.micros_per_chunk(name),
                streaming_share=None if streaming is None else streaming.share_of_core(name),
                whole_run_micros=whole_run.micros_per_chunk(name),
            )
            for name in end.cpu_seconds
        }


class _Receipt:
    """What one reader got of one stream, and when."""

    def __init__(self, stream_id: str, load: Load) -> None:
        self.stream_id = stream_id
        self.asked_at_ns = 0
        self.created_at_ns = 0
        self.first_chunk_at_ns = 0
        self.repeated_reads = 0
        self.failure: str | None = None
        self._load = load
        self._chunk_bytes = load._workload.chunk_bytes
        self._size_bytes = 0
        self._digest = hashlib.sha256()
        self._rest = b""

    def created(self, at_ns: int) -> None:
        self.created_at_ns = at_ns

    def repeated(self) -> None:
        self.repeated_reads += 1

    def receive(self, data: bytes, at_ns: int) -> None:
        """Bytes of the stream. They may hold parts of chunks, and several."""
        self._digest.update(data)
        self._size_bytes += len(data)
        held = self._rest + data if self._rest else data
        size = self._chunk_bytes
        whole = len(held) - len(held) % size
        for start in range(0, whole, size):
            sent_at_ns = int(held[start + STAMP.start : start + STAMP.stop])
            self._load.chunk_arrived(at_ns - sent_at_ns)
        self._rest = held[whole:]
        if whole and not self.first_chunk_at_ns:
            self.first_chunk_at_ns = at_ns
            self._load.stream_begun()

    def fault(self, sent: Mapping[str, Any] | None) -> str | None:
        """What is wrong with this stream, given what upstream says that it sent; None when all of it came."""
        if self.failure is not None:
            return f"{self.stream_id}: {self.failure}"
        if sent is None:
            return f"{self.stream_id}: upstream was not called"
        if not sent["isComplete"] or self._size_bytes != sent["bytes"]:
            return f"{self.stream_id}: {self._size_bytes} bytes came of {sent['bytes']} that were sent"
        if self._digest.hexdigest() != sent["sha256"]:
            return f"{self.stream_id}: the bytes differ from those that were sent"
        return None


@dataclass(frozen=True, slots=True)
class _Reading:
    """Everybody's processor time, and the chunks that had come: since the beginning, or since another reading."""

    at_ns: int
    chunks: int
    cpu_seconds: Mapping[str, float]

    def since(self, start: _Reading) -> _Reading:
        used = {name: seconds - start.cpu_seconds[name] for name, seconds in self.cpu_seconds.items()}
        return _Reading(self.at_ns - start.at_ns, self.chunks - start.chunks, used)

    def micros_per_chunk(self, name: str) -> float | None:
        return 1e6 * self.cpu_seconds[name] / self.chunks if self.chunks else None

    def share_of_core(self, name: str) -> float | None:
        return 1e9 * self.cpu_seconds[name] / self.at_ns if self.at_ns else None


def _starts(workload: Workload) -> list[float]:
    """When each stream starts, in seconds from the first: within its share of the ramp by chance, and the same for every system.
    At even distances streams would send in step wherever the rate is a multiple of theirs, as 30 a second is of 60."""
    chance = random.Random(_SEED)
    share_seconds = workload.ramp_seconds / workload.generations
    return [share_seconds * (number + chance.random()) for number in range(workload.generations)]


def _durations(durations_ns: Iterable[int]) -> Histogram:
    histogram = Histogram()
    for duration_ns in durations_ns:
        histogram.record(duration_ns)
    return histogram
