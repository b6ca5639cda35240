"""Memory: what a reader who waits, and a generation that runs, add to the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bench.bars import Figure, RowComparison
from bench.http_client import Connection
from bench.listeners import Listener
from bench.load import Load, Outcome
from bench.processes import memory_bytes
from bench.systems import OURS, PROXY, SYSTEMS, Place, Site, System, site_at
from bench.workload import Workload

_READERS = 1000
_WARM_UP_READERS = 50
_GENERATIONS = 500
_RUNNING = Workload(generations=_GENERATIONS, rate=5, chunk_bytes=200, seconds=6, ramp_seconds=4)
_WARM_UP = Workload(generations=10, rate=30, chunk_bytes=200, seconds=0.5, ramp_seconds=0.1)
_TYPE = {"Content-Type": "text/plain"}


async def compare_memory(place: Place, say: Callable[[str], None]) -> RowComparison:
    say("memory: 25 s …")
    # A process for each: what one thing let go of, the next would take.
    async with site_at(place) as site, SYSTEMS[OURS](site) as system:
        await _idle_readers(system, _WARM_UP_READERS, "warm-up")
        reader_bytes = await _idle_readers(system, _READERS, "idle")
    async with site_at(place) as site, SYSTEMS[OURS](site) as system:
        await _run(system, site, _WARM_UP)
        outcome = await _run(system, site, _RUNNING)
    used = outcome.memory[PROXY]
    generation_bytes = (used.peak_bytes - used.idle_bytes) / _GENERATIONS
    figures = [
        Figure("a reader who waits", "KiB", 30, reader_bytes / 1024),
        Figure("a running generation and its reader", "KiB", 60, generation_bytes / 1024),
    ]
    title = (
        f"Memory of the proxy, for {_READERS} streams with a waiting reader each, and for {_GENERATIONS} generations"
    )
    return RowComparison("memory", title, figures, outcome.faults)


async def _run(system: System, site: Site, workload: Workload) -> Outcome:
    label = f"{workload.generations}"
    return await Load(system.route, workload, upstream_url=site.upstream.url, parties=system.parties).run(label)


async def _idle_readers(system: System, readers: int, label: str) -> float:
    """How many bytes of the proxy each of these takes."""
    url = system.route.base_url
    connection = await Connection.open(url)
    paths = [f"/v1/stream/{label}-{number}" for number in range(readers)]
    for path in paths:
        await connection.request("PUT", path, headers=_TYPE, wanted=(201,))
    before = memory_bytes(system.parties)[PROXY]
    listeners = [await Listener.open(url, f"{path}?offset=-1&live=sse") for path in paths]
    await asyncio.gather(*(listener.caught_up for listener in listeners))
    used = memory_bytes(system.parties)[PROXY] - before
    for listener in listeners:
        listener.close()
    connection.close()
    return used / readers
