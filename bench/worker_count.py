"""Two workers beside one.

No load of this machine's own could keep both cores busy with nothing but the servers. So what is measured is what a chunk costs:
one worker at some load, and two at twice that, so that each has as much to do. From that follows what they carry at full
processors. One worker carries what its one thread can, with Postgres on the other core; two share both cores with
Postgres. How late chunks are meanwhile, and whether the run takes longer than it should, tells whether anything but processors is short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bench.bars import Figure, RowComparison
from bench.load import Outcome
from bench.processes import pinned
from bench.relay import MOST_OF_IDEAL, by_default, relay
from bench.systems import OURS, POSTGRES, PROXY, Place, site_at, streamkeep

_ROW = "workers"
_GENERATIONS_PER_WORKER = 200
_CORES = 2


async def compare_workers(place: Place, say: Callable[[str], None]) -> RowComparison:
    outcomes: dict[int, Outcome] = {}
    shared = replace(place, cores=None if place.cores is None else place.cores.shared())
    with pinned(shared.load_cores):
        async with site_at(shared) as site:
            for workers in (1, 2):
                workload = by_default(workers * _GENERATIONS_PER_WORKER)
                say(f"{_ROW}: {workers}, {workload.expected_seconds:.0f} s …")
                outcomes[workers] = await relay(streamkeep(site, workers=workers), workload, site)
    one, two = (_carried(outcomes[workers], workers) for workers in (1, 2))
    ideal_seconds = by_default(_CORES * _GENERATIONS_PER_WORKER).expected_seconds
    figures = [
        Figure("carried by two, of what one carries", "times", 1.7, two / one if one and two else None, is_floor=True),
        Figure("carried by one", "chunks/s", None, one, is_floor=True),
        Figure("carried by two", "chunks/s", None, two, is_floor=True),
        Figure("two: p50", "ms", None, outcomes[2].streaming_latency.percentile_ms(50)),
        Figure("two: p99", "ms", None, outcomes[2].streaming_latency.percentile_ms(99)),
        Figure("two: wall time", "of the ideal", MOST_OF_IDEAL, outcomes[2].took_seconds / ideal_seconds),
    ]
    title = (
        f"`--workers 2` with {2 * _GENERATIONS_PER_WORKER} generations and one worker with {_GENERATIONS_PER_WORKER}, all on the same "
        "two cores; what they carry follows from the processor time of a chunk, see README.md"
    )
    faults = [f"{OURS}: {fault}" for outcome in outcomes.values() for fault in outcome.faults]
    return RowComparison(_ROW, title, figures, faults)


def _carried(outcome: Outcome, workers: int) -> float | None:
    """Chunks a second at full processors: the workers have a core each, and Postgres has what is left of all cores."""
    proxy, postgres = (outcome.costs[party].streaming_micros for party in (PROXY, POSTGRES))
    if proxy is None or postgres is None:
        return None
    return 1e6 * min(workers / proxy, _CORES / (proxy + postgres))
