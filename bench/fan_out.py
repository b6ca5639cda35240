"""Fan-out: what is appended to one stream, read live by many."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.bars import Figure, RowComparison
from bench.histogram import Histogram
from bench.http_client import Connection
from bench.listeners import Listener
from bench.processes import cpu_seconds
from bench.systems import OURS, Place, StreamServer, measure_each

_TYPE = {"Content-Type": "text/plain"}
_STAMP_DIGITS = 19
_PATIENCE_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Crowd:
    """What is asked of a server: `readers` by server-sent events, of a stream with `rate` appends a second for `seconds`."""

    readers: int
    rate: float
    append_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Delivered:
    """What came of it. `latency` is from sending an append to a reader's having it; `cpu_seconds` is what each party
    used meanwhile; `faults` are the readers that did not get what was sent, and why."""

    latency: Histogram
    appends_per_second: float
    cpu_seconds: Mapping[str, float]
    faults: list[str]

    @property
    def micros_per_delivery(self) -> float | None:
        if not self.cpu_seconds or not self.latency.count:
            return None
        return 1e6 * sum(self.cpu_seconds.values()) / self.latency.count


async def compare_fan_out(
    place: Place, peers: Sequence[str], readers: Sequence[int], seconds: float, say: Callable[[str], None]
) -> RowComparison:
    """Crowds of so many readers, one after the other, on our server and on its peers."""
    crowds = [Crowd(number, 50, 200, seconds) for number in readers]

    async def measure(server: StreamServer) -> dict[int, Delivered]:
        await fan_out(server, Crowd(50, 50, 200, 1), "warm-up")
        return {crowd.readers: await fan_out(server, crowd, f"crowd-{crowd.readers}") for crowd in crowds}

    say(f"fan-out: {len(crowds) * seconds:.0f} s on each server …")
    measured, left_out = await measure_each((OURS, *peers), place, measure)
    ours = measured[OURS]
    theirs = {name: crowd for name, crowd in measured.items() if name != OURS}
    figures = [
        figure
        for number in readers
        for figure in _figures(number, ours[number], {n: c[number] for n, c in theirs.items()})
    ]
    faults = [
        f"{name}: {fault}"
        for name, by_number in measured.items()
        for found in by_number.values()
        for fault in found.faults
    ]
    title = "One stream with 50 appends of 200 bytes a second, read by server-sent events"
    return RowComparison("fan-out", title, figures, faults, left_out)


def _figures(readers: int, ours: Delivered, peers: Mapping[str, Delivered]) -> list[Figure]:
    def figure(
        what: str, unit: str, bar: float, value: Callable[[Delivered], float | None], *, is_floor: bool = False
    ) -> Figure:
        theirs = {name: value(found) for name, found in peers.items()}
        return Figure(f"{readers} readers: {what}", unit, bar, value(ours), theirs, is_floor)

    return [
        figure("processor time a delivery", "µs", 15, lambda found: found.micros_per_delivery),
        figure("p50", "ms", 6, lambda found: found.latency.percentile_ms(50)),
        figure("p99", "ms", 20, lambda found: found.latency.percentile_ms(99)),
        figure("appends", "a second", 49, lambda found: found.appends_per_second, is_floor=True),
    ]


async def fan_out(server: StreamServer, crowd: Crowd, label: str) -> Delivered:
    """Let the crowd read. `label` makes the stream of this call differ from those of all others."""
    path = server.path(label)
    writer = await server.connect()
    await writer.request("PUT", path, headers=_TYPE, wanted=(201,))
    listeners = [await server.listen(f"{path}?offset=-1&live=sse") for _ in range(crowd.readers)]
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await asyncio.gather(*(listener.caught_up for listener in listeners))
        before, started_at = cpu_seconds(server.parties), time.monotonic()
        sent = await _append_steadily(writer, path, crowd)
        took_seconds = time.monotonic() - started_at
        await writer.request("POST", path, headers={**_TYPE, "Stream-Closed": "true"}, wanted=(200, 204))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await asyncio.gather(*(listener.ended for listener in listeners))
        used = {name: seconds - before[name] for name, seconds in cpu_seconds(server.parties).items()}
        await server.remove(writer, path)
    finally:
        writer.close()
        for listener in listeners:
            listener.close()
    latency, digest = Histogram(), hashlib.sha256(sent).digest()
    faults = [
        f"{path}, reader {number}: {fault}"
        for number, listener in enumerate(listeners)
        if (fault := _difference(listener, len(sent), digest, crowd.append_bytes, latency)) is not None
    ]
    return Delivered(latency, len(sent) / crowd.append_bytes / took_seconds, used, faults)


async def _append_steadily(writer: Connection, path: str, crowd: Crowd) -> bytes:
    """One append after the other, each when it is due and the last one is answered; returns all that was sent."""
    filler = os.urandom(crowd.append_bytes).hex().encode()[: crowd.append_bytes - _STAMP_DIGITS]
    sent = bytearray()
    started_at = time.monotonic()
    for number in range(round(crowd.rate * crowd.seconds)):
        await asyncio.sleep(max(0.0, started_at + number / crowd.rate - time.monotonic()))
        body = b"%019d%b" % (time.monotonic_ns(), filler)
        await writer.request("POST", path, headers=_TYPE, body=body, wanted=(200, 204))
        sent += body
    return bytes(sent)


def _difference(
    listener: Listener, sent_bytes: int, digest: bytes, append_bytes: int, latency: Histogram
) -> str | None:
    """What is wrong with what came; None when it is what was sent. Counts how long each append took."""
    try:
        received = listener.received()
    except ValueError as exc:
        return str(exc)
    got, start = b"".join(data for data, _ in received), 0
    if len(got) != sent_bytes:
        return f"{len(got)} bytes came of {sent_bytes} that were sent"
    if hashlib.sha256(got).digest() != digest:
        return "the bytes differ from those that were sent"
    end = 0
    for data, at_ns in received:
        end += len(data)
        while start + append_bytes <= end:
            latency.record(at_ns - int(got[start : start + _STAMP_DIGITS]))
            start += append_bytes
    return None
